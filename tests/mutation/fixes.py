"""Takes each fix of ARCHITECTURE's table of faults out, and says which tests pass without it: `make mutate-fixes`.

    fixes/<name>.patch      Fault: the row of the table     Test: a test that guards it (each on a line of its own)
                            then a diff that takes the fix out of the code

A test has noticed if at least one case of it fails by its own assertion. A case that cannot be set up does not count.
Exit code 0: every test has noticed; 1: some have not; 2: a patch does not apply any more, or a test fails without it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "fixes"
_FAULT, _TEST = "Fault: ", "Test: "


@dataclass(frozen=True)
class Fix:
    """One patch.

    Args:
        fault: The row of the table.
        tests: Node ids of pytest.
    """

    file: Path
    fault: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.file.stem


@dataclass(frozen=True)
class Case:
    """A test case that was run. `outcome`: passed, failure, error or skipped."""

    place: str
    outcome: str


def fixes() -> list[Fix]:
    """Return the patches, sorted by name.

    Raises:
        ValueError: One does not say what it is of.
    """
    return [_fix(file) for file in sorted(FOLDER.glob("*.patch"))]


def rows(document: str) -> list[str]:
    """Return the faults of ARCHITECTURE's table that have a test."""
    _, _, section = document.partition("\n## Faults found in the field\n")
    lines = [line for line in section.splitlines() if line.startswith("| ") and "`tests/" in line]
    return [line.removeprefix("| ").partition(" | ")[0] for line in lines]


def unnoticed(tests: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """Return the tests of which no case failed."""
    failed = [each.place for each in cases if each.outcome == "failure"]
    return [test for test in tests if not any(_is_of(place, _place(test)) for place in failed)]


@contextmanager
def copied() -> Iterator[Path]:
    """Give a copy of this tree, in which code can be broken."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="fixes-") as folder:
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(folder) / name)
        yield Path(folder)


def applies(fix: Fix, tree: Path) -> bool:
    """Tell whether the patch fits the code."""
    return _git_apply(tree, "--check", str(fix.file))


def main() -> int:
    """The program; its exit code."""
    chosen = _chosen(fixes())
    with copied() as tree:
        stale = [fix.name for fix in chosen if not applies(fix, tree)]
        if stale:
            _say(f"these patches do not fit the code any more; write them anew: {', '.join(stale)}")
            return 2
        tests = sorted({test for fix in chosen for test in fix.tests}, key=_order_in_file)
        _say(f"{len(tests)} tests as the code is …")
        failed = sorted({each.place for each in _run(tree, tests) if each.outcome in ("failure", "error")})
        if failed:
            _say(f"these fail as the code is; fix them first: {', '.join(failed)}")
            return 2
        passed = sum(not _tried(fix, tree) for fix in chosen)
    _say(f"{len(chosen)} fixes taken out, {len(chosen) - passed} noticed by every test of theirs, {passed} not")
    return 1 if passed else 0


def _tried(fix: Fix, tree: Path) -> bool:
    """Run the tests of a fix without it; tell whether each has noticed."""
    _git_apply(tree, str(fix.file))
    missed = unnoticed(fix.tests, _run(tree, fix.tests))
    _git_apply(tree, "-R", str(fix.file))
    _say(f"{'SURVIVED' if missed else 'noticed '}  {fix.name}: {fix.fault}")
    for test in missed:
        _say(f"          passes without the fix: {test}")
    return not missed


def _run(tree: Path, tests: Sequence[str]) -> list[Case]:
    report = tree / "report.xml"
    report.unlink(missing_ok=True)
    search_path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "", f"--junitxml={report}", *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree), "PATH": search_path},
        capture_output=True,
        check=False,
    )
    found = ElementTree.parse(report).getroot().iter("testcase") if report.exists() else ()  # noqa: S314  pytest's own
    return [
        Case(f"{each.get('classname')}.{each.get('name')}", next((child.tag for child in each), "passed"))
        for each in found
    ]


def _order_in_file(test: str) -> tuple[str, int]:
    """Sort as the files have the tests: the last ones of a file may leave a stack that those before do not expect."""
    file, *names = test.split("::")
    return file, (ROOT / file).read_text().find(names[-1].partition("[")[0]) if names else 0


def _place(test: str) -> str:
    """Return a node id as pytest's report writes it."""
    file, *names = test.split("::")
    return ".".join([file.removesuffix(".py").replace("/", "."), *names])


def _is_of(place: str, test: str) -> bool:
    return place == test or place.startswith((f"{test}.", f"{test}["))


def _fix(file: Path) -> Fix:
    header = file.read_text().partition("\ndiff --git ")[0].splitlines()
    faults = [line.removeprefix(_FAULT) for line in header if line.startswith(_FAULT)]
    tests = [line.removeprefix(_TEST) for line in header if line.startswith(_TEST)]
    if len(faults) != 1 or not tests:
        raise ValueError(f"{file.name} begins with one line `{_FAULT}…` and lines `{_TEST}…`")
    return Fix(file, faults[0], tuple(tests))


def _git_apply(tree: Path, *arguments: str) -> bool:
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(["git", "apply", *arguments], cwd=tree, env=environment, capture_output=True, check=False)
    return done.returncode == 0


def _chosen(known: list[Fix]) -> list[Fix]:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation.fixes", description=__doc__)
    parser.add_argument("--only", action="append", help="only this patch, by its name; repeatable")
    wanted = parser.parse_args().only
    if unknown := set(wanted or ()) - {fix.name for fix in known}:
        parser.error(f"no patch {', '.join(sorted(unknown))}")
    return [fix for fix in known if not wanted or fix.name in wanted]


def _say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
