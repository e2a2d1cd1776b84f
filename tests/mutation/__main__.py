"""Breaks the checker in every small way there is, and says which its tests do not notice: `make mutate-checker`.

A survivor is a test that is missing, or a change that makes no difference; those are listed with the reason in
`equivalent.txt`. Exit code 0: every other one was noticed; 1: some were not; 2: a test failed without any change.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections import Counter
from typing import TextIO

from tests.mutation.equivalent import read_equivalent
from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.trial import ROOT, Fate, sources, try_all

_SEED = 7
#: Where no terminal shows each number.
_SHOWN_EVERY = 100


def main() -> int:
    """The program; its exit code."""
    arguments = _arguments()
    os.chdir(ROOT)
    modules = {name: source for name, source in sources().items() if not arguments.module or name in arguments.module}
    whole = [Mutant(name, "module", "nothing", source) for name, source in list(modules.items())[:1]]
    if [trial.fate for trial in try_all(whole, 1)] != [Fate.SURVIVED]:
        _say("the tests fail without any change; mend them first")
        return 2
    mutants = [mutant for name, source in modules.items() for mutant in mutants_of(name, source)]
    if arguments.sample:
        mutants = random.Random(_SEED).sample(mutants, min(arguments.sample, len(mutants)))
    reasons = read_equivalent()
    stale = [name for name in reasons if name.partition(":")[0] in modules and name not in {m.name for m in mutants}]
    fates: Counter[str] = Counter()
    survivors = []
    for number, trial in enumerate(try_all(mutants, arguments.at_once), start=1):
        is_equivalent = trial.fate is Fate.SURVIVED and trial.mutant.name in reasons
        fates["equivalent" if is_equivalent else trial.fate] += 1
        if trial.fate in (Fate.SURVIVED, Fate.UNTRIED) and not is_equivalent:
            survivors.append(trial.mutant.name)
            _say(f"{trial.fate}: {trial.mutant.name}")
        if sys.stderr.isatty():
            _say(f"\r\x1b[K{number} of {len(mutants)} …", to=sys.stderr, end="")
        elif number % _SHOWN_EVERY == 0:
            _say(f"{number} of {len(mutants)} …", to=sys.stderr)
    for name in stale if not arguments.sample else ():
        _say(f"listed as equivalent, and there is no such change any more: {name}")
    _say(f"{len(mutants)} changes: " + ", ".join(f"{count} {fate}" for fate, count in sorted(fates.items())))
    return 1 if survivors else 0


def _say(words: str, to: TextIO = sys.stdout, end: str = "\n") -> None:
    to.write(words + end)
    to.flush()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--module", action="append", help="only this module, like checks/ledger.py; repeatable")
    parser.add_argument("--sample", type=int, default=0, help="only so many, chosen by a fixed seed")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="how many are tried at once")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
