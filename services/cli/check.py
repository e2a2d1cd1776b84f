"""`countinghouse check`: compare the databases, the callers' records and the acquirer's log.

It asks no service, so it works on a stack that runs, has stopped or has died. See `services/checker`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import exit_codes, output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.checker.acquirer_log import AcquirerLog
    from services.checker.findings import Check
    from services.checker.history import History
    from services.checker.snapshot import Reading

#: Drivers that the services themselves use.
_SCHEMES = ("sqlite", "postgresql+asyncpg")


_Databases = Annotated[
    list[str] | None,
    typer.Option(
        "--database",
        metavar="SERVICE=URL",
        help="Read this database instead of the stack's, like order=postgresql+asyncpg://…; repeatable.",
        show_default=False,
    ),
]
_DatabasesFile = Annotated[
    Path | None,
    typer.Option(
        "--databases",
        metavar="FILE",
        help="As --database, one a line, so that no password is in the list of processes.",
        show_default=False,
    ),
]
_HistoryFile = Annotated[
    Path | None,
    typer.Option(
        "--history",
        metavar="FILE",
        help="Calls that clients recorded, as JSON lines, in a run that is over: then nothing may be left open, "
        "except a parked payment whose reversal the silent acquirer has not answered.",
        show_default=False,
    ),
]
_AcquirerLogFile = Annotated[
    Path | None,
    typer.Option(
        "--acquirer-log",
        metavar="FILE",
        help="Read this file instead of the log in the acquirer's database; `acquirer log --jsonl` prints one.",
        show_default=False,
    ),
]
_SettleS = Annotated[
    float, typer.Option("--settle-s", help="Seconds to wait until nothing is under way.", min=0, max=3600)
]
_OrderLimitS = Annotated[
    float,
    typer.Option(
        "--order-limit-s", help="Seconds to examine one order's calls; after that it is unknown.", min=0.1, max=3600
    ),
]


def check(
    data: Data = DEFAULT_DATA,
    database: _Databases = None,
    databases: _DatabasesFile = None,
    history: _HistoryFile = None,
    acquirer_log: _AcquirerLogFile = None,
    settle_s: _SettleS = 10.0,
    order_limit_s: _OrderLimitS = 10.0,
    as_json: AsJson = False,
) -> None:
    """Read the databases, and name every order that was settled twice or by halves, and all that disagrees.

    Exit code 0: ok, 1: violated, 2: unknown, or not to be read. A payment that is not finished makes the verdict
    unknown. A check without its evidence is not examined; a verdict of ok counts such checks.

    Example: countinghouse check --data .countinghouse --history history.jsonl
    """
    from services.checker.findings import verdict_of  # noqa: PLC0415
    from services.checker.registry import Options, run_checks  # noqa: PLC0415  `--help` does without
    from services.devstack.restore_marker import was_restored  # noqa: PLC0415
    from services.kernel.clock import SystemClock  # noqa: PLC0415

    told = _Progress()
    calls, entries = _files(history, acquirer_log)
    readings: list[Reading] = []
    told.step("reading the books", 0, 0)
    run(_read(_urls(data, [*_lines(databases), *(database or [])]), settle_s, readings))
    entries = entries if acquirer_log else _log_in(readings[0])
    restored = was_restored(data)
    checks = run_checks(
        readings[0].snapshot,
        history=calls,
        acquirer=entries,
        now_ms=readings[0].at_ms,
        ended=calls is not None,
        restored=restored,
        options=Options(SystemClock(), order_limit_s, told.step),
    )
    told.end()
    verdict = verdict_of(checks)
    if as_json:
        output.print_json({"verdict": verdict, "checks": _document(checks)})
    else:
        print_checks(checks)
        if entries is None:
            output.print_line(f"  there is no acquirer's database in {data}; its log may be given by --acquirer-log")
        if restored:
            output.print_line(
                "  a backup was restored here: what the acquirer has for other payments, `reconcile` names"
            )
        print(f"\nverdict: {verdict}{_not_examined(checks) if verdict == 'ok' else ''}")
    raise typer.Exit(exit_codes.of_verdict(verdict))


def document(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Return the checks as JSON has them."""
    return [
        {"name": each.name, "ok": each.ok, "examined": each.examined, "violations": list(each.violations)}
        for each in checks
    ]


def _document(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Also what could not be decided, and what was not examined."""
    return [
        {**shown, "verdict": each.verdict, "undecided": list(each.undecided), "not_examined": each.skipped}
        for shown, each in zip(document(checks), checks, strict=True)
    ]


def print_checks(checks: Sequence[Check], *, at_most: int | None = None) -> None:
    """Print a table of them, and below it what is wrong or undecided.

    Args:
        at_most: Sentences shown of one check, which are then counted; None: all it has.
    """
    from services.checker.findings import shortened  # noqa: PLC0415  `--help` does without

    output.print_table(
        "Checks", ("check", "examined", "result"), [(each.name, str(each.examined), _result(each)) for each in checks]
    )
    for each in checks:
        for word, sentences in (("broken", each.violations), ("unknown", each.undecided)):
            for sentence in sentences if at_most is None else shortened(sentences, at_most):
                first, *others = sentence.split("\n")
                output.print_line(f"  {word}: {each.name}: {first}")
                for line in others:
                    output.print_line(f"    {line}")


def _not_examined(checks: Sequence[Check]) -> str:
    """Return how many checks had no evidence, and which evidence was missing; empty if all were examined."""
    skipped = [each.skipped for each in checks if each.skipped]
    if not skipped:
        return ""
    count = "1 check" if len(skipped) == 1 else f"{len(skipped)} checks"
    return f"; {count} not examined ({', '.join(dict.fromkeys(skipped))})"


def _result(check: Check) -> str:
    if check.skipped:
        return f"not examined: {check.skipped}"
    return {"ok": "ok", "violated": "VIOLATED", "unknown": "UNKNOWN"}[check.verdict]


class _Progress:
    """Show progress on standard error, if that is a terminal."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def step(self, name: str, done: int, of: int) -> None:
        """Report that a check begins, or how many things it has examined."""
        if self._shown:
            print(f"\r\x1b[K{name}{f' {done} of {of}' if of else ''} …", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """There is nothing to wait for any more."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _files(history: Path | None, acquirer_log: Path | None) -> tuple[History | None, AcquirerLog | None]:
    from services.checker.acquirer_log import read_acquirer_log  # noqa: PLC0415
    from services.checker.history import read_history  # noqa: PLC0415
    from services.devstack.state import StackRefused  # noqa: PLC0415

    try:
        calls = read_history(history) if history else None
        entries = read_acquirer_log(acquirer_log) if acquirer_log else None
    except OSError as error:
        raise StackRefused("FILE_UNREADABLE", f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StackRefused("FILE_MALFORMED", f"{error}; record it anew, or give the file that was meant") from error
    return calls, entries


def _log_in(reading: Reading) -> AcquirerLog | None:
    """Return the log that was read from the acquirer's database; None: there is none to be read."""
    from services.checker.acquirer_log import MalformedLog, log_of_rows  # noqa: PLC0415
    from services.devstack.state import StackRefused  # noqa: PLC0415

    rows = reading.snapshot.acquirer_log
    try:
        return None if rows is None else log_of_rows(rows)
    except MalformedLog as error:
        raise StackRefused("ACQUIRER_LOG_MALFORMED", f"{error}; give its log by --acquirer-log instead") from error


def _lines(file: Path | None) -> list[str]:
    """Return the databases that a file names; blank lines and those that begin with # are ignored."""
    if file is None:
        return []
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--databases") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _urls(data: Path, named: Sequence[str]) -> dict[str, str]:
    """Return where the databases are: as named, others in `data`. No URL is repeated; it may hold a password."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415  `--help` does without
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    from services.checker.snapshot import ACQUIRER, SERVICES  # noqa: PLC0415
    from services.devstack.files import database_url, databases_elsewhere  # noqa: PLC0415

    urls = {service: database_url(data, service) for service in SERVICES}
    if ACQUIRER in databases_elsewhere(data) or (data / f"{ACQUIRER}.db").exists():
        urls[ACQUIRER] = database_url(data, ACQUIRER)
    for part in named:
        service, _, url = part.partition("=")
        try:
            scheme = make_url(url).drivername
        except (ArgumentError, ValueError):
            scheme = ""
        if service not in (*SERVICES, ACQUIRER) or scheme not in _SCHEMES:
            raise typer.BadParameter(
                f"not like order={_SCHEMES[1]}://user@host/name; services are {', '.join((*SERVICES, ACQUIRER))}, "
                f"schemes are {', '.join(_SCHEMES)}",
                param_hint="--database",
            )
        urls[service] = url
    return urls


async def _read(urls: dict[str, str], settle_s: float, readings: list[Reading]) -> None:
    from services.checker.snapshot import settled_snapshot  # noqa: PLC0415  SQLAlchemy, which `--help` can do without
    from services.devstack.state import StackRefused  # noqa: PLC0415
    from services.kernel.clock import SystemClock  # noqa: PLC0415
    from services.kernel.errors import Unavailable  # noqa: PLC0415
    from services.runtime.database.database import DatabaseRefused  # noqa: PLC0415

    try:
        reading = await settled_snapshot(urls, settle_s, SystemClock())
    except (DatabaseRefused, Unavailable) as error:
        remedy = "; name the stack's --data, or each --database" if error.reason == "DATABASE_MISSING" else ""
        raise StackRefused(error.reason, error.message + remedy) from error
    if not reading.at_rest:
        raise StackRefused(
            "BOOKS_MOVING",
            f"orders are still being settled after {settle_s:g} s, and three databases cannot be read at one moment; "
            "check again when it is quiet, or allow more by --settle-s",
        )
    readings.append(reading)
