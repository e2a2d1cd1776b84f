"""`countinghouse demo`: see `services/demo`."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from services.cli import exit_codes, output
from services.cli.arguments import GuardsOff, parse_guards_off
from services.cli.check import document, print_checks
from services.demo.acts import ACTS, ActResult
from services.demo.lanes import coloured, draw
from services.demo.picture import render_svg
from services.demo.run import RunResult, run
from services.devstack.state import StackRefused
from services.kernel.currency import format_amount
from services.kernel.errors import CountinghouseError
from services.kernel.ids import new_rng

#: Without a guard the same fault breaks every order of an act: a few tell it.
_MAX_SENTENCES = 3
_MARKS = {True: "✔", False: "✘", None: "?"}


def demo(
    guards_off: GuardsOff = None,
    act: Annotated[list[str] | None, typer.Option("--act", help="Run only this act; repeatable.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Repeat the run with this seed.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    keep: Annotated[Path | None, typer.Option("--keep", help="Keep the data and logs in this new directory.")] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", help="Draw the lanes of the acts into this file.", dir_okay=False, writable=True),
    ] = None,
) -> None:
    """Settle orders on a new stack while faults happen, and check the result.

    Guards: ticket, lock, fence, state, unique, recovery, acquirer-key. Exit code 0: ok, 1: violated, 2: unknown.

    Example: countinghouse demo --guards-off lock,fence,state,unique
    """
    off = parse_guards_off(guards_off)
    for name in act or ():
        if name not in ACTS:
            raise typer.BadParameter(f"there is no act {name!r}; there are: {'; '.join(ACTS)}", param_hint="--act")
    chosen_seed = new_rng().randrange(10**6) if seed is None else seed
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty; name a new directory", param_hint="--keep")
    if svg is not None and not svg.parent.is_dir():
        raise typer.BadParameter(f"there is no directory {svg.parent}; make it first", param_hint="--svg")
    data = keep or Path(tempfile.mkdtemp(prefix="countinghouse-demo-"))
    printer = _NoOutput() if as_json else _Printer()
    try:
        printer.begin(off, chosen_seed)
        outcome = asyncio.run(
            run(data, off, chosen_seed, on_ready=printer.ready, on_act=printer.act, only=tuple(act or ()))
        )
    except CountinghouseError as error:  # the stack did not come up: nothing is proved, and the logs say why
        raise StackRefused(error.reason, error.message) from error
    except BaseException:
        _remove(data, unless=keep)
        raise
    _remove(data, unless=keep)
    if svg is not None:
        svg.write_text(render_svg(outcome.acts), encoding="utf-8")
    if as_json:
        output.print_json(_document(outcome))
    else:
        printer.end(outcome)
    raise SystemExit(exit_codes.of_verdict(outcome.verdict))


def _remove(data: Path, unless: Path | None) -> None:
    if unless is None:
        shutil.rmtree(data, ignore_errors=True)


class _NoOutput:
    """Print nothing."""

    def begin(self, guards_off: tuple[str, ...], seed: int) -> None:
        """Report that the run begins."""

    def ready(self, seconds: float) -> None:
        """Report that the stack is ready."""

    def act(self, act: ActResult) -> None:
        """Report an act that has ended."""

    def end(self, outcome: RunResult) -> None:
        """Report the verdict."""


class _Printer(_NoOutput):
    """Print each act when it has ended: with its lanes on a terminal, in one line elsewhere."""

    def __init__(self) -> None:
        self._terminal = Console() if sys.stdout.isatty() else None

    def begin(self, guards_off: tuple[str, ...], seed: int) -> None:
        off = f" without {', '.join(guards_off)}" if guards_off else ""
        print(
            f"Starting ZooKeeper, order, ledger, an acquirer and two payment instances{off} (seed {seed}) …", flush=True
        )

    def ready(self, seconds: float) -> None:
        print(f"Ready after {seconds:.1f} s.", flush=True)

    def act(self, act: ActResult) -> None:
        if self._terminal is None:
            print(f"{_word(act.ok)}: {act.name}: {act.detail}", flush=True)
            return
        self._terminal.print(f"\n{_MARKS[act.ok]} {act.name}: {act.detail}", markup=False, highlight=False)
        for line in draw(act.lanes):
            self._terminal.print(coloured(f"    {line}"), soft_wrap=True)

    def end(self, outcome: RunResult) -> None:
        print()
        output.print_table(
            "Trial balance", ("account", "kind", "debits", "credits", "balance"), _trial_balance(outcome)
        )
        print()
        print_checks(outcome.checks, at_most=_MAX_SENTENCES)
        print(f"\nverdict: {outcome.verdict} ({outcome.seconds:.1f} s, seed {outcome.seed})")


def _word(ok: bool | None) -> str:
    return {True: "ok", False: "violated", None: "unknown"}[ok]


def _trial_balance(outcome: RunResult) -> list[tuple[str, ...]]:
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


def _document(outcome: RunResult) -> dict[str, Any]:
    return {
        "verdict": outcome.verdict,
        "acts": [{"name": act.name, "ok": act.ok, "detail": act.detail} for act in outcome.acts],
        "checks": document(outcome.checks),
        "seconds": outcome.seconds,
        "seed": outcome.seed,
    }
