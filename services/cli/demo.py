"""`countinghouse demo`: see `services/demo`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import exit_codes, output
from services.cli.check import document, print_checks
from services.cli.interruption import held_back
from services.devstack.state import StackRefused
from services.kernel.currency import format_amount
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.guards import Guards
from services.kernel.ids import dice

if TYPE_CHECKING:
    from services.demo.acts import ActResult
    from services.demo.programme import Outcome

_MARKS = {True: "✔", False: "✘", None: "?"}


def demo(
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="GUARD[,GUARD]", help="Switch guards off, to see what they stop."),
    ] = None,
    act: Annotated[list[str] | None, typer.Option("--act", help="Play only this act; may be repeated.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Repeat the run that named this seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the data and logs in this new directory.")] = None,
) -> None:
    """Settles bills on a stack of its own while things go wrong, and checks the result.

    Guards: ticket, lock, fence, state, unique, recovery, acquirer-key. Exit code 0: ok, 1: violated, 2: unknown.

    Example: countinghouse demo --without lock,fence,state,unique
    """
    with held_back():
        from services.demo.acts import ACTS  # noqa: PLC0415  heavy, and `--help` does without
        from services.demo.programme import perform  # noqa: PLC0415

    try:
        guards_off = Guards.without(name for part in without or () for name in part.split(",")).off
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--without") from error
    for name in act or ():
        if name not in ACTS:
            raise typer.BadParameter(f"there is no act {name!r}; there are: {'; '.join(ACTS)}", param_hint="--act")
    chosen_seed = dice().randrange(10**6) if seed is None else seed
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; name a new directory", param_hint="--keep")
    data = keep or Path(tempfile.mkdtemp(prefix="countinghouse-demo-"))
    say = _Silent() if as_json else _Teller()
    try:
        say.begin(guards_off, chosen_seed)
        outcome = asyncio.run(
            perform(data, guards_off, chosen_seed, on_ready=say.ready, on_act=say.act, only=tuple(act or ()))
        )
    except CountinghouseError as error:  # the stack did not come up: nothing is proved, and the logs say why
        raise StackRefused(error.reason, error.message) from error
    except BaseException:
        _remove(data, unless=keep)
        raise
    _remove(data, unless=keep)
    if as_json:
        output.print_json(_document(outcome))
    else:
        say.end(outcome)
    raise SystemExit(exit_codes.of_verdict(outcome.verdict))


def _remove(data: Path, unless: Path | None) -> None:
    if unless is None:
        shutil.rmtree(data, ignore_errors=True)


class _Silent:
    """Tells nothing."""

    def begin(self, guards_off: tuple[str, ...], seed: int) -> None:
        """The run begins."""

    def ready(self, seconds: float) -> None:
        """The stack is ready."""

    def act(self, act: ActResult) -> None:
        """An act has ended."""

    def end(self, outcome: Outcome) -> None:
        """The verdict is there."""


class _Teller(_Silent):
    """Tells a person, as it goes: with lanes on a terminal, in plain lines elsewhere."""

    def __init__(self) -> None:
        self._drawn = sys.stdout.isatty()

    def begin(self, guards_off: tuple[str, ...], seed: int) -> None:
        off = f" without {', '.join(guards_off)}" if guards_off else ""
        print(f"Starting ZooKeeper, order, ledger, a bank and two payment instances{off} (seed {seed}) …", flush=True)

    def ready(self, seconds: float) -> None:
        print(f"Ready after {seconds:.1f} s.", flush=True)

    def act(self, act: ActResult) -> None:
        print(
            f"\n{_MARKS[act.ok]} {act.name}: {act.detail}"
            if self._drawn
            else f"{_word(act.ok)}: {act.name}: {act.detail}"
        )
        if self._drawn:
            from services.demo.lanes import draw  # noqa: PLC0415

            for line in draw(act.lanes):
                print(f"    {_coloured(line)}")
        sys.stdout.flush()

    def end(self, outcome: Outcome) -> None:
        print()
        output.print_table(
            "Trial balance", ("account", "kind", "debits", "credits", "balance"), _trial_balance(outcome)
        )
        print()
        print_checks(outcome.checks)
        print(f"\nverdict: {outcome.verdict} ({outcome.seconds:.1f} s, seed {outcome.seed})")


def _coloured(line: str) -> str:
    """Green for what was done, cyan for what was replayed, red for what was refused."""
    for mark, colour in (("✔", 32), ("↺", 36), ("✘", 31)):
        before, found, after = line.partition(mark)
        if found:
            return f"{before}\x1b[{colour}m{found}{after}\x1b[0m"
    return line


def _word(ok: bool | None) -> str:
    return {True: "ok", False: "violated", None: "unknown"}[ok]


def _trial_balance(outcome: Outcome) -> list[tuple[str, ...]]:
    rows = []
    for account in outcome.books.accounts:
        amounts = [int(row["amount"]) for row in outcome.books.postings if row["account_id"] == account["account_id"]]
        debits = sum(amount for amount in amounts if amount > 0)
        credits = -sum(amount for amount in amounts if amount < 0)
        shown = [format_amount(each, account["currency_code"]) for each in (debits, credits, int(account["balance"]))]
        rows.append((account["account_id"], account["kind"].lower(), *shown))
    totals: Counter[str] = Counter()
    currencies = {row["account_id"]: row["currency_code"] for row in outcome.books.accounts}
    for row in outcome.books.postings:
        totals[currencies[row["account_id"]]] += int(row["amount"])
    total = ", ".join(format_amount(amount, currency) for currency, amount in sorted(totals.items()))
    return [*rows, ("debits less credits", "", "", "", total)]


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict,
        "acts": [{"name": act.name, "ok": act.ok, "detail": act.detail} for act in outcome.acts],
        "checks": document(outcome.checks),
        "seconds": outcome.seconds,
        "seed": outcome.seed,
    }
