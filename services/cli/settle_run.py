"""`countinghouse settle-run`: settle the orders of a CSV file, each once, however often it is started."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.cli import exit_codes, output
from services.cli.arguments import calling
from services.cli.batch_run import BatchRun
from services.cli.client import Client
from services.cli.order_file import OrderFile
from services.cli.result_file import Outcome, Result, ResultFile, open_result
from services.cli.run_progress import RunProgress
from services.cli.settling import Preview, Settling
from services.kernel.card_numbers import refuse_card_number
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.principal import Role
from services.kernel.printable import escape

_SIX_HOURS_S: Final = 21_600.0
_FIND_WITHIN_S: Final = 15.0
#: So that the request ids made of it are within 64 characters, and a colon ends it.
_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")
#: Fewer digits than a card number has.
_DIGEST_LENGTH: Final = 12
#: Lines that people have to look at, printed at the end; the result file has all, those too that were not asked about.
_SHOWN: Final = 20

_File = Annotated[
    Path,
    typer.Option(
        "--file",
        help="CSV file with a column order_id; a column amount, in major units, has to be the order's.",
        exists=True,
        dir_okay=False,
        readable=True,
    ),
]
_RunId = Annotated[
    str,
    typer.Option(
        "--run-id",
        help="Id of the run, up to 32 characters, by which it goes on; without it, one made of the file's content.",
        show_default=False,
    ),
]
_AtOnce = Annotated[int, typer.Option("--at-once", help="Batches of up to 64 orders in flight.", min=1, max=4)]
_Patience = Annotated[
    float,
    typer.Option("--patience", help="Seconds to ask again while no order gets an outcome.", min=0, max=3600),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would become of each order; change nothing.")]
_ResultPath = Annotated[
    Path | None,
    typer.Option(
        "--result",
        metavar="FILE",
        help="CSV file for the outcome of each line; without it, that of --file with .result.csv behind its name. "
        "A dry run writes one only if it is named.",
        show_default=False,
    ),
]


@calling(Role.ACCOUNTANT, timeout_s=_SIX_HOURS_S)
async def settle_run(
    client: Client,
    file: _File,
    run_id: _RunId = "",
    at_once: _AtOnce = 2,
    patience: _Patience = 60.0,
    dry_run: _DryRun = False,
    result: _ResultPath = None,
) -> None:
    """Settle the orders of a CSV file, each once. Starting it again goes on where it was.

    An accountant settles from the bank account. Each order is settled under a request id made of the run's id and its
    own: killed or interrupted, the same command by the same caller goes on, and names what it had settled as already
    settled in this run. What is locked or not known yet is asked about again, until no order got an outcome for
    --patience seconds; then it is open.

    The result file says of each line: settled, already settled in this run, skipped (paid, cancelled, missing, named
    twice, another amount), refused, open, bad line. It is written anew by each start.

    Exit code 0: every line is settled; 1: some are not, and the result file says why; 130: interrupted.

    Example: countinghouse settle-run --file orders.csv --as accountant:wang
    """
    orders = _orders(file)
    run_id = _run_id(run_id, orders)
    path = result or (None if dry_run else file.with_name(f"{file.name}.result.csv"))
    total = sum(1 for _ in orders)
    for service in ("order", "payment"):
        await client.find(service, _FIND_WITHIN_S)
    with ExitStack() as resources:
        written = _opened(path, file, resources)
        tells_each = dry_run and not client.as_json
        progress = RunProgress(total, SystemClock(), bar=not (tells_each and sys.stdout.isatty()))
        report = _Report(resources.enter_context(progress), written, tells_each=tells_each)
        run = BatchRun(
            Preview(client, run_id) if dry_run else Settling(client, run_id),
            report.record,
            SystemClock(),
            remaining_s=lambda: client.remaining_s,
            at_once=at_once,
            patience_s=patience,
            skipped=Outcome.WOULD_BE_SKIPPED if dry_run else Outcome.SKIPPED,
            tell=progress.tell,
        )
        try:
            await run.run(orders)
        except CountinghouseError as error:
            if report.counts[Outcome.SETTLED]:
                error.message = f"{error.message.removesuffix('.')}. {_how_to_go_on(run_id)}"
            raise
    facts = {"run_id": run_id, "file": str(file), "result": str(path or ""), "dry_run": dry_run}
    if client.as_json:
        output.print_json(report.document(facts, run))
    else:
        report.print_summary(facts)
    if run.stopped or report.counts[Outcome.OPEN]:
        why = f"{run.stopped}: some orders are open" if run.stopped else "some orders are open"
        print(f"countinghouse: {escape(why)}. {_how_to_go_on(run_id)}", file=sys.stderr)
    if run.interrupted:
        raise typer.Exit(exit_codes.ExitCode.INTERRUPTED)
    if any(outcome.is_finding for outcome in report.counts):
        raise typer.Exit(exit_codes.ExitCode.FAILED)


def _how_to_go_on(run_id: str) -> str:
    # Without a full stop: an id may end with one.
    return f"To go on, not twice, run the same command again with --run-id {run_id}"


def _orders(file: Path) -> OrderFile:
    if not file.is_file():
        raise typer.BadParameter("it is no regular file; a run reads it more than once", param_hint="--file")
    try:
        return OrderFile(file)
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--file") from error


def _run_id(given: str, orders: OrderFile) -> str:
    """Return the run's id: as given, or made of the content of the file.

    Raises:
        typer.BadParameter: It cannot be one.
    """
    if not given:
        return f"run-{orders.digest()[:_DIGEST_LENGTH]}"
    if not _RUN_ID.fullmatch(given):
        raise typer.BadParameter("it is 1 to 32 characters of A-Z a-z 0-9 _ . -", param_hint="--run-id")
    try:
        return refuse_card_number(given, "--run-id")
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--run-id") from error


def _opened(path: Path | None, file: Path, resources: ExitStack) -> ResultFile | None:
    """Return the result file, open; None: none is wanted.

    Raises:
        typer.BadParameter: It cannot be written without losing something else.
    """
    if path is None:
        return None
    if path.exists() and path.samefile(file):
        raise typer.BadParameter("it is the file of the orders", param_hint="--result")
    try:
        return resources.enter_context(open_result(path))
    except InvalidArgument as error:
        raise typer.BadParameter(error.message, param_hint="--result") from error


class _Report:
    """Counts the results, writes them, and keeps the first that people have to look at.

    Args:
        tells_each: Whether each result is printed at once.
    """

    def __init__(self, progress: RunProgress, written: ResultFile | None, *, tells_each: bool) -> None:
        self.counts: Counter[Outcome] = Counter()
        self._progress = progress
        self._written = written
        self._tells_each = tells_each
        self._findings: list[Result] = []

    def record(self, results: Sequence[Result]) -> None:
        """Take some results."""
        if self._written is not None:
            self._written.add(results)
        self.counts.update(result.outcome for result in results)
        for result in results:
            if self._tells_each:
                output.print_line(_sentence(result))
            elif result.outcome.is_finding and result.asked and len(self._findings) < _SHOWN:
                self._findings.append(result)
        self._progress.advance(sum(result.asked for result in results))

    def document(self, facts: dict[str, Any], run: BatchRun) -> dict[str, Any]:
        """Return the summary as JSON has it."""
        return {
            **facts,
            "lines": self.counts.total(),
            "outcomes": {outcome.replace(" ", "_"): self.counts[outcome] for outcome in Outcome},
            "seconds": round(self._progress.elapsed_s, 3),
            "stopped": run.stopped,
            "interrupted": run.interrupted,
        }

    def print_summary(self, facts: dict[str, Any]) -> None:
        """Print the counts, and the first lines that people have to look at."""
        output.print_facts(
            [
                ("run", facts["run_id"]),
                ("lines", f"{self.counts.total()} in {self._progress.elapsed_s:.1f} s, {self._progress.rate:.0f}/s"),
                *((outcome, str(self.counts[outcome] or "")) for outcome in Outcome),
                ("result", facts["result"]),
            ]
        )
        for each in self._findings:
            output.print_line(_sentence(each))
        if self._tells_each:
            return
        more = sum(count for outcome, count in self.counts.items() if outcome.is_finding) - len(self._findings)
        if more:
            output.print_line(f"and {more} more" + (f": see {facts['result']}" if facts["result"] else ""))


def _sentence(result: Result) -> str:
    about = f" order {result.order_id}" if result.order_id else ""
    return f"line {result.line}:{about} {result.outcome}" + (f": {result.reason}" if result.reason else "")
