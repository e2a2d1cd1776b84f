"""`countinghouse check`: reads the three databases and proves that every bill was settled exactly once.

It asks no service, so it works on a stack that runs, has stopped or has died. See `services/checker`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import output
from services.cli.arguments import DEFAULT_DATA, AsJson, Data, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.checker.checks import Check

_VIOLATED = 1
#: Drivers that the services themselves use.
_SCHEMES = ("sqlite", "postgresql+asyncpg")


def check(
    data: Data = DEFAULT_DATA,
    database: Annotated[
        list[str] | None,
        typer.Option(
            "--database",
            metavar="SERVICE=URL",
            help="Read this database instead of the stack's, like order=postgresql+asyncpg://…; repeatable.",
            show_default=False,
        ),
    ] = None,
    settle_s: Annotated[
        float, typer.Option("--settle-s", help="Seconds to wait until nothing is under way.", min=0, max=3600)
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Reads the databases and proves that every bill was settled exactly once. Exit code 0: ok, 1: violated, 2: unread.

    Example: countinghouse check --data .countinghouse
    """
    checks: list[Check] = []
    run(_examine(_urls(data, database or []), settle_s, checks))
    verdict = "ok" if all(each.ok for each in checks) else "violated"
    if as_json:
        output.print_json({"verdict": verdict, "checks": document(checks)})
    else:
        print_checks(checks)
        print(f"\nverdict: {verdict}")
    if verdict != "ok":
        raise typer.Exit(_VIOLATED)


def document(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as JSON has them."""
    return [
        {"name": each.name, "ok": each.ok, "examined": each.examined, "violations": list(each.violations)}
        for each in checks
    ]


def print_checks(checks: Sequence[Check]) -> None:
    """Prints a table of them, and below it every violation."""
    output.print_table(
        "Checks",
        ("check", "examined", "result"),
        [(each.name, str(each.examined), "ok" if each.ok else "VIOLATED") for each in checks],
    )
    for each in checks:
        for violation in each.violations:
            print(f"  broken: {each.name}: {violation}")


def _urls(data: Path, named: Sequence[str]) -> dict[str, str]:
    """Where the databases are: as named, the others in `data`. A URL may hold a password, so none is repeated."""
    from sqlalchemy.engine import make_url  # noqa: PLC0415  `--help` does without
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    from services.checker.books import ACQUIRER, SERVICES  # noqa: PLC0415
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


async def _examine(urls: dict[str, str], settle_s: float, checks: list[Check]) -> None:
    from services.checker.books import settled_books  # noqa: PLC0415  SQLAlchemy, which `--help` can do without
    from services.checker.checks import run_checks  # noqa: PLC0415
    from services.devstack.state import StackRefused  # noqa: PLC0415
    from services.kernel.clock import SystemClock  # noqa: PLC0415
    from services.kernel.errors import Unavailable  # noqa: PLC0415
    from services.runtime.database import DatabaseRefused  # noqa: PLC0415

    try:
        reading = await settled_books(urls, settle_s, SystemClock())
    except (DatabaseRefused, Unavailable) as error:
        remedy = "; name the stack's --data, or each --database" if error.reason == "DATABASE_MISSING" else ""
        raise StackRefused(error.reason, error.message + remedy) from error
    if not reading.at_rest:
        raise StackRefused(
            "BOOKS_MOVING",
            f"bills are still being settled after {settle_s:g} s, and three databases cannot be read at one moment; "
            "check again when it is quiet, or allow more by --settle-s",
        )
    checks += run_checks(reading.books)
