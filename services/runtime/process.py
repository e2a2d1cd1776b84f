"""What every server process has: settings, a log, a database, a gRPC server that drains, and exit codes.

Exit codes: 0 stopped on a signal; 1 what it needs went away while it started: start it again; 2 refused to start. For
1 and 2 one line on standard error gives the reason and the remedy.

A database that is away is waited for. Stopping takes at most `drain_s`, whatever calls are running; a call that then
still runs is left between two commits, as if the process had died, and other instances finish it. A second signal
changes nothing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError
from sqlalchemy import Table

from countinghouse.debug.v1 import failpoint_pb2_grpc
from services.kernel.clock import CallDeadline
from services.kernel.errors import CountinghouseError, Unavailable
from services.runtime import log as logs
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.postgres_roles import grant
from services.runtime.grpc.failpoints import FailpointServicer, FailpointSet
from services.runtime.grpc.interceptors import CallInterceptor
from services.runtime.grpc.tls import TlsFiles
from services.runtime.settings import Profile, Settings
from services.runtime.trace_export import exporting

_FAILPOINT_SERVICE = "countinghouse.debug.v1.FailpointService"
#: How often a database that is away is tried again at start; and how long `migrate` does so.
_DATABASE_RETRY_S = 0.5
_MIGRATE_WAIT_S = 60.0
_RESTART_PAUSE_S = 0.5

log = structlog.get_logger()

Command = Callable[[Settings], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server program with a database.

    Args:
        name: `order`, `payment`, `ledger` or `acquirer`.
        interface: The proto service that it serves.
        package: Folder of the program, where its migrations are.
        append_only: Its tables of which no row is ever changed; its role on PostgreSQL may not (`postgres_roles.py`).
    """

    name: str
    interface: str
    package: Path
    append_only: tuple[Table, ...]


def run(program: Program, commands: Mapping[str, Command]) -> None:
    """Run the command that the arguments name, `""` without any; and end the process with an exit code.

    Args:
        commands: What each command does with the settings; `migrate` is added.
    """
    try:
        settings = Settings()
        logs.configure(program.name, settings.instance)
        command = " ".join(sys.argv[1:])
        with exporting(program.name, settings.instance):
            work = migrate(program, settings) if command == "migrate" else commands.get(command, commands[""])(settings)
            uvloop.run(_awaited(work))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        _end(program, problems, 2)
    except Unavailable as error:
        _end(program, error.message, 1)
    except CountinghouseError as error:
        _end(program, error.message, 2)


async def migrate(program: Program, settings: Settings) -> None:
    """Bring the database up to date, and grant the roles of a PostgreSQL what they need."""
    async with Database(settings.database_url) as database:
        with suppress(TimeoutError):
            async with asyncio.timeout(_MIGRATE_WAIT_S):
                await _migrated(database, program, migrate=True)
        await bring_up_to_date(database, program.package, migrate=True)
        if not database.is_sqlite:
            append_only = [table.name for table in program.append_only]
            await grant(database, append_only, user=settings.service_role, checker=settings.checker_role)


async def migrated_before(stop: asyncio.Event, database: Database, program: Program, *, migrate: bool) -> bool:
    """Wait until the database is there and up to date; False if a signal came before."""
    preparing = asyncio.create_task(_migrated(database, program, migrate=migrate))
    await first(stop, preparing)
    if preparing.done():
        preparing.result()
        return True
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    return False


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def add_standard_services(
    server: grpc.aio.Server, interface: str, failpoints: FailpointSet, profile: Profile, *debugging: str
) -> HealthServicer:
    """Add health; in the development profile reflection; and where the settings allow it the failpoints.

    Args:
        debugging: Further services that are served where failpoints are.
    """
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    if profile is Profile.DEVELOPMENT:
        _add_reflection(server, interface, failpoints, debugging)
    if failpoints.enabled:
        failpoint_pb2_grpc.add_FailpointServiceServicer_to_server(FailpointServicer(failpoints), server)
    return health


def _add_reflection(
    server: grpc.aio.Server, interface: str, failpoints: FailpointSet, debugging: Sequence[str]
) -> None:
    names = [interface, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    if failpoints.enabled:
        names += [_FAILPOINT_SERVICE, *debugging]
    reflection.enable_server_reflection(names, server)


def tls_files(settings: Settings) -> TlsFiles | None:
    """Return the certificates that the settings name; None, with a warning: calls go in plain text.

    Raises:
        CountinghouseError: TLS_FILE_MISSING, TLS_FILE_INVALID.
    """
    if settings.plaintext:
        log.warning("PLAIN TEXT: others on the network can read and change every call; unset COUNTINGHOUSE_PLAINTEXT")
        return None
    return TlsFiles(settings.ca_file, settings.identity_file)


def listen(server: grpc.aio.Server, address: str, files: TlsFiles | None, *, internal: bool = False) -> int:
    """Listen on an address; return the port.

    Args:
        files: None: in plain text.
        internal: Whether clients must show a certificate.

    Raises:
        CountinghouseError: PORT_BUSY.
    """
    try:
        if files is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, files.server_credentials(demand_certificate=internal))
    except RuntimeError as error:
        raise CountinghouseError(
            "PORT_BUSY",
            f"cannot listen on {address}: the port is taken, or the address is none of this machine's",
        ) from error


async def drain(server: grpc.aio.Server, interceptor: CallInterceptor, deadline: CallDeadline) -> None:
    """Take no new calls, and let those that run come to their end; what still runs at the deadline is left."""
    await server.stop(deadline.remaining_s())
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.remaining_s()):
            await interceptor.drained()


def begin(worker: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Run a worker until it is cancelled; one that fails is logged and begun again: no caller would retry it."""
    return asyncio.create_task(_forever(worker))


async def cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def first(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Wait for a signal to stop, or until `task` ends."""
    waiter = asyncio.ensure_future(stop.wait())
    await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()


async def _awaited(work: Awaitable[None]) -> None:
    await work


def _end(program: Program, message: str, code: int) -> NoReturn:
    print(f"{program.name}: {message}", file=sys.stderr)  # noqa: T201  the last line of a program
    raise SystemExit(code)


async def _migrated(database: Database, program: Program, *, migrate: bool) -> None:
    """Call `bring_up_to_date` once the database is there."""
    told = False
    while True:
        try:
            return await bring_up_to_date(database, program.package, migrate=migrate)
        except Unavailable as error:
            if not told:
                log.warning("waiting for the database", name=database.name, why=error.message)
            told = True
            await asyncio.sleep(_DATABASE_RETRY_S)


async def _forever(worker: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await worker()
        except Exception:
            log.exception("worker failed; beginning again")
            await asyncio.sleep(_RESTART_PAUSE_S)
