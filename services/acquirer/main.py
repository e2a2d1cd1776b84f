"""The composition root of the acquirer. `python -m services.acquirer.main [migrate]`

It is no member of the cluster: no registry, no locks, no ensemble. It shares with the services what any server process
has (process.py), the interceptors, the database's connection and readiness.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import grpc
import structlog
from grpc_health.v1._async import HealthServicer

from countinghouse.acquirer.v1.acquirer_pb2_grpc import (
    add_AcquirerServiceServicer_to_server,
    add_FaultServiceServicer_to_server,
)
from services.acquirer.faults import Faults
from services.acquirer.operations import AcquirerOperations
from services.acquirer.peers import MerchantNotifier
from services.acquirer.schema import COUNTER, LOG
from services.acquirer.servicer import AcquirerServicer, FaultServicer
from services.acquirer.store import SqlChargeStore
from services.kernel.clock import CallDeadline, SystemClock
from services.runtime import process
from services.runtime.database.database import Database, probe_write
from services.runtime.grpc.failpoints import FailpointSet
from services.runtime.grpc.grpc_server import new_server
from services.runtime.grpc.health import HealthMonitor
from services.runtime.grpc.tls import Dialer, TlsFiles
from services.runtime.grpc.tokens import TokenFile
from services.runtime.process import Program
from services.runtime.settings import Settings

#: Of the credentials that the acquirer issues. A token of the house is of no use here.
AUDIENCE = "acquirer"
_FAULT_SERVICE = "countinghouse.acquirer.v1.FaultService"

log = structlog.get_logger()


SERVICE = Program(
    name="acquirer",
    interface="countinghouse.acquirer.v1.AcquirerService",
    package=Path(__file__).parent,
    append_only=(LOG,),
)


def main() -> None:
    """Run the program."""
    process.run(SERVICE, {"": _serve})


async def _serve(settings: Settings) -> None:
    stop = process.stop_event()
    clock = SystemClock()
    async with Database(
        settings.database_url, pool=settings.database_pool, statement_timeout_s=settings.statement_timeout_s
    ) as database:
        if not await process.migrated_before(stop, database, SERVICE, migrate=settings.migrate):
            return
        tls = process.tls_files(settings)
        merchants = Dialer(TlsFiles(settings.outside_ca_file) if tls else None)
        notifier = MerchantNotifier(merchants, TokenFile(settings.token_folder / "payment.token").token)
        server, interceptor = new_server(settings, clock, audience=AUDIENCE, house=False)
        health = _add_services(server, settings, database, notifier, clock)
        port = process.listen(server, settings.listen_address, tls)
        await server.start()
        write = partial(probe_write, database, COUNTER)
        monitor = HealthMonitor(health, database, None, SERVICE.interface, write, clock)
        watching = process.begin(monitor.watch)
        log.info("listening", host=settings.listen_host, port=port, pid=os.getpid())
        await stop.wait()
        await process.cancel([watching])
        await monitor.stopping()
        deadline = CallDeadline.after(settings.drain_s, clock)
        await process.drain(server, interceptor, deadline)
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline.remaining_s()):
                await notifier.close()
        log.info("stopped")


def _add_services(
    server: grpc.aio.Server, settings: Settings, database: Database, notifier: MerchantNotifier, clock: SystemClock
) -> HealthServicer:
    """Add the acquirer's own services and the standard ones; and the faults, where the settings allow them."""
    faults, failpoints = Faults(), FailpointSet(enabled=settings.failpoints)
    operations = AcquirerOperations(SqlChargeStore(database), notifier, faults, failpoints, clock)
    add_AcquirerServiceServicer_to_server(AcquirerServicer(operations), server)
    if failpoints.enabled:
        add_FaultServiceServicer_to_server(FaultServicer(faults), server)
    return process.add_standard_services(server, SERVICE.interface, failpoints, settings.profile, _FAULT_SERVICE)


if __name__ == "__main__":
    main()
