"""The acquirer, put together. `python -m services.acquirer.main [migrate]`

It stands outside the house: no registry, no locks, no ensemble. It shares with the services the door (tokens,
deadlines, errors), the database's connection and readiness, and nothing of their life.

Exit codes: 0 stopped when told; 1 what it needs is away: start it again; 2 refused to start. For 1 and 2 one line on
standard error says why and what to do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError
from sqlalchemy import Table

from countinghouse.acquirer.v1.acquirer_pb2_grpc import (
    add_AcquirerServiceServicer_to_server,
    add_FaultServiceServicer_to_server,
)
from countinghouse.debug.v1.failpoint_pb2_grpc import add_FailpointServiceServicer_to_server
from services.acquirer.faults import Faults
from services.acquirer.operations import AcquirerOperations
from services.acquirer.peers import Merchants
from services.acquirer.servicer import AcquirerServicer, FaultServicer
from services.acquirer.store import COUNTER, LOG, SqlChargeStore
from services.kernel.clock import SystemClock
from services.kernel.errors import CountinghouseError, Unavailable
from services.runtime import log as logs
from services.runtime.database.database import Database, probe_write
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.postgres_roles import grant
from services.runtime.grpc.failpoints import Failpoints, FailpointServicer
from services.runtime.grpc.grpc_server import new_server
from services.runtime.grpc.health import HealthMonitor
from services.runtime.grpc.tokens import TokenFile
from services.runtime.settings import Settings

_DEBUGGING = ("countinghouse.acquirer.v1.FaultService", "countinghouse.debug.v1.FailpointService")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outside:
    """A program that is no service of the house, and has a database like one.

    Args:
        package: Folder of the program, where its migrations are.
        append_only: Its tables of which no row is ever changed; its role on PostgreSQL may not (`postgres_roles.py`).
    """

    name: str
    interface: str
    package: Path
    append_only: tuple[Table, ...]


SERVICE = Outside(
    name="acquirer",
    interface="countinghouse.acquirer.v1.AcquirerService",
    package=Path(__file__).parent,
    append_only=(LOG,),
)


def main() -> None:
    """The whole program."""
    try:
        settings = Settings()
        logs.configure(SERVICE.name, settings.instance)
        uvloop.run(_migrate(settings) if sys.argv[1:] == ["migrate"] else _serve(settings))
    except ValidationError as error:
        _end("; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()), 2)
    except Unavailable as error:
        _end(error.message, 1)
    except CountinghouseError as error:
        _end(error.message, 2)


async def _migrate(settings: Settings) -> None:
    async with Database(settings.database_url) as database:
        await bring_up_to_date(database, SERVICE.package, migrate=True)
        if not database.is_sqlite:
            append_only = [table.name for table in SERVICE.append_only]
            await grant(database, append_only, user=settings.service_role, checker=settings.checker_role)


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    clock = SystemClock()
    async with Database(
        settings.database_url, pool=settings.database_pool, statement_timeout_s=settings.statement_timeout_s
    ) as database:
        await bring_up_to_date(database, SERVICE.package, migrate=settings.migrate)
        merchants = Merchants(TokenFile(settings.token_file).token)
        server, interceptor = new_server(settings, clock)
        health = _add_services(server, settings, database, merchants, clock)
        port = _listen(server, settings)
        await server.start()
        write = partial(probe_write, database, COUNTER)
        monitor = HealthMonitor(health, database, None, SERVICE.interface, write, clock)
        watching = asyncio.create_task(monitor.watch())
        log.info("listening", host=settings.listen_host, port=port, pid=os.getpid())
        await stop.wait()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await monitor.stopping()
        await server.stop(settings.drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await interceptor.drained()
                await merchants.close()
        log.info("stopped")


def _add_services(
    server: grpc.aio.Server, settings: Settings, database: Database, merchants: Merchants, clock: SystemClock
) -> HealthServicer:
    """The bank, health and reflection; and what brings faults about, where the settings allow it."""
    faults, failpoints = Faults(), Failpoints(enabled=settings.failpoints)
    operations = AcquirerOperations(SqlChargeStore(database), merchants, faults, failpoints, clock)
    add_AcquirerServiceServicer_to_server(AcquirerServicer(operations), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [SERVICE.interface, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    if settings.failpoints:
        add_FaultServiceServicer_to_server(FaultServicer(faults), server)
        add_FailpointServiceServicer_to_server(FailpointServicer(failpoints), server)
        names += _DEBUGGING
    reflection.enable_server_reflection(names, server)
    return health


def _listen(server: grpc.aio.Server, settings: Settings) -> int:
    try:
        return server.add_insecure_port(settings.listen_address)
    except RuntimeError as error:
        raise CountinghouseError(
            "PORT_BUSY",
            f"cannot listen on {settings.listen_address}: the port is taken, or the address is none of this machine's",
        ) from error


def _end(message: str, code: int) -> None:
    print(f"{SERVICE.name}: {message}", file=sys.stderr)  # noqa: T201  the last word of a program
    raise SystemExit(code)


if __name__ == "__main__":
    main()
