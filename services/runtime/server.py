"""Every server's life, from the first line of the log to the last.

    settings → database → listen → serving → registered → … → SIGTERM → unregistered → drained → stopped

Starting order: listen, SERVING, register, so that nobody is sent to a port that does not answer. Stopping order:
unregister, wait for consumers to hear of it, finish running calls, stop. Services start in any order, with or without
ZooKeeper: what is missing is waited for in the background, and calls that need it are answered UNAVAILABLE. A database
that is away is waited for before listening.

Stopping takes `drain_s` and about three seconds at the most, whatever calls are running and wherever ZooKeeper is. What
then still runs is left between two commits, as by any death, and finished by others. A second signal changes nothing.

Exit codes: 0 stopped when told; 1 what it needs went away while it started: start it again; 2 refused to start. For
1 and 2 one line on standard error says why and what to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from sqlalchemy import Column, Table

from coordination.discovery import Consumer
from coordination.metrics import Metrics
from coordination.registry import ProviderURL, Registry
from coordination.session import Session
from coordination.session.address import EnsembleAddress, ServerAddress, is_loopback
from countinghouse.debug.v1 import failpoint_pb2_grpc
from services.kernel.clock import Clock, Deadline, SystemClock
from services.kernel.errors import CountinghouseError, Unavailable
from services.kernel.guards import Guards
from services.kernel.ids import IdSource, RandomIds
from services.runtime import log as logs
from services.runtime.database.clock import DatabaseClock
from services.runtime.database.database import Database, probe_write
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.postgres_roles import grant
from services.runtime.database.retention import DAY_MS, Retention, remove_old_requests
from services.runtime.ensemble import Ensemble
from services.runtime.grpc.failpoints import Failpoints, FailpointServicer
from services.runtime.grpc.grpc_server import new_server
from services.runtime.grpc.health import HealthMonitor
from services.runtime.grpc.interceptors import CallInterceptor
from services.runtime.grpc.methods import method_names
from services.runtime.grpc.service_client import Peers
from services.runtime.grpc.tokens import TokenFile
from services.runtime.metrics import CallMetrics, MetricsPage, process_registry
from services.runtime.settings import EVERYWHERE, Settings

_FAILPOINT_SERVICE = "countinghouse.debug.v1.FailpointService"
#: How long consumers get to hear that a provider is gone before it stops taking calls.
_UNREGISTER_PAUSE_S = 0.3
#: Of the time to stop in, besides `drain_s`. With ZooKeeper away the node cannot be deleted and goes with the session:
#: to wait longer would help nobody.
_UNREGISTER_S = 1.0
_REGISTRY_CLOSE_S = 0.1
_SESSION_CLOSE_S = 1.0
#: How often a database that is away is tried again at start; and how long `migrate`, which somebody waits for, does so.
_DATABASE_RETRY_S = 0.5
_MIGRATE_WAIT_S = 60.0

log = structlog.get_logger()


@dataclass(slots=True)
class Whereabouts:
    """Where this process is called.

    Args:
        address: `host:port`; empty until it listens.
    """

    address: str = ""


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a service is built from."""

    settings: Settings
    guards: Guards
    clock: Clock
    ids: IdSource
    database: Database
    session: Session
    ensemble: Ensemble
    peers: Peers
    failpoints: Failpoints
    whereabouts: Whereabouts
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of.

    Args:
        add: Adds the servicer to the server.
        workers: What goes on without a caller; each runs until it is cancelled, before the running calls are drained.
        keepers: What running calls need; cancelled after them.
        close: Called last, when no call is running any more.
    """

    add: Callable[[grpc.aio.Server], None]
    workers: Sequence[Callable[[], Awaitable[None]]] = ()
    keepers: Sequence[Callable[[], Awaitable[None]]] = ()
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as its `main.py` describes it.

    Args:
        name: `order`, `payment` or `ledger`; also the application's name in the registry.
        interface: The proto service, which is the interface in the registry.
        package: Folder of the service, where its migrations are.
        ensemble: Its table of the ZooKeeper generation.
        fences: The columns of generation and token of the fences it keeps.
        append_only: Its tables of which no row is ever changed; its role on PostgreSQL may not (`postgres_roles.py`).
        retention: Which of its requests need not be kept.
        build: Puts the parts together.
    """

    name: str
    interface: str
    package: Path
    ensemble: Table
    fences: tuple[Column[int], Column[int]]
    append_only: tuple[Table, ...]
    retention: Retention
    build: Callable[[Runtime], Awaitable[Parts]]


def run(service: Service) -> None:
    """The whole program of a service: `python -m services.<name>.main [migrate | prune]`."""
    try:
        settings = Settings()
        logs.configure(service.name, settings.instance)
        work = {"migrate": _migrate, "prune": _prune}.get(" ".join(sys.argv[1:]), _serve)
        uvloop.run(work(service, settings))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        _end(service, problems, 2)
    except Unavailable as error:
        _end(service, error.message, 1)
    except CountinghouseError as error:
        _end(service, error.message, 2)


def _end(service: Service, message: str, code: int) -> NoReturn:
    print(f"{service.name}: {message}", file=sys.stderr)  # noqa: T201  the last word of a program
    raise SystemExit(code)


async def _migrate(service: Service, settings: Settings) -> None:
    async with Database(settings.database_url) as database:
        with suppress(TimeoutError):
            async with asyncio.timeout(_MIGRATE_WAIT_S):
                await _prepared(database, service, migrate=True)
        await bring_up_to_date(database, service.package, migrate=True)
        if not database.is_sqlite:
            append_only = [table.name for table in service.append_only]
            await grant(database, append_only, user=settings.service_role, checker=settings.checker_role)


async def _prune(service: Service, settings: Settings) -> None:
    """Removes old requests, once or again and again; run as the owner of the tables (`retention.py`)."""
    async with Database(settings.database_url) as database:
        while True:
            try:
                await bring_up_to_date(database, service.package, migrate=False)
                before_ms = await database.now_ms() - settings.retention_days * DAY_MS
                removed = await remove_old_requests(database, service.retention, before_ms=before_ms)
                log.info("old requests removed", removed=removed, before_ms=before_ms)
            except Unavailable as error:
                if not settings.prune_every_h:
                    raise
                log.warning("old requests are removed later", why=error.message)
            if not settings.prune_every_h:
                return
            await asyncio.sleep(settings.prune_every_h * 3600)


async def _prepared(database: Database, service: Service, *, migrate: bool) -> None:
    """As `bring_up_to_date`, once the database is there."""
    told = False
    while True:
        try:
            return await bring_up_to_date(database, service.package, migrate=migrate)
        except Unavailable as error:
            if not told:
                log.warning("waiting for the database", name=database.name, why=error.message)
            told = True
            await asyncio.sleep(_DATABASE_RETRY_S)


async def _serve(service: Service, settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if settings.guards.off:
        log.warning("GUARDS ARE OFF: bills may be settled twice", off=settings.guards.off)

    async with AsyncExitStack() as stack:
        collected = process_registry()
        page = _open_page(settings, collected, stack)
        database = await stack.enter_async_context(
            Database(
                settings.database_url,
                pool=settings.database_pool,
                statement_timeout_s=settings.statement_timeout_s,
            )
        )
        if not await _prepared_before(stop, database, service, migrate=settings.migrate):
            return
        runtime = await _runtime(service, settings, database, Metrics(collected), stack)
        parts = await service.build(runtime)
        server, interceptor = new_server(settings, runtime.clock, CallMetrics(collected))
        parts.add(server)
        health = _add_standard_services(server, service, runtime)
        port = _listen(server, settings, runtime.whereabouts)
        await server.start()
        monitor = HealthMonitor(
            health,
            runtime.database,
            runtime.session,
            service.interface,
            partial(probe_write, runtime.database, service.ensemble),
            runtime.clock,
        )
        registry = Registry(runtime.session, metrics=runtime.metrics)
        stack.push_async_callback(registry.close, _REGISTRY_CLOSE_S)
        url = _provider_url(service, settings, port, page, runtime.clock)
        log.info("listening", address=str(ServerAddress(settings.listen_host, port)), metrics=page, pid=os.getpid())

        registering = asyncio.create_task(_register_when_ready(runtime, monitor, registry, url))
        beginning = [registering, _begin(monitor.watch), *map(_begin, parts.workers)]
        keeping = [_begin(runtime.ensemble.keep), *map(_begin, parts.keepers)]
        gc.collect()
        gc.freeze()  # what was imported stays; looking through it again and again costs a tenth of every call
        await _first(stop, registering)
        log.info("stopping")
        refused = registering.exception() if registering.done() else None
        await _unregister(registry, url)
        await _cancel(beginning)
        await monitor.stopping()
        await _drain(server, interceptor, Deadline.after(settings.drain_s, runtime.clock))
        await _cancel(keeping)
        if parts.close is not None:
            await parts.close()
        log.info("stopped")
        if refused is not None:
            raise refused


async def _prepared_before(stop: asyncio.Event, database: Database, service: Service, *, migrate: bool) -> bool:
    """As `_prepared`; False if told to stop before."""
    preparing = asyncio.create_task(_prepared(database, service, migrate=migrate))
    await _first(stop, preparing)
    if preparing.done():
        preparing.result()
        return True
    preparing.cancel()
    await asyncio.gather(preparing, return_exceptions=True)
    return False


async def _runtime(
    service: Service, settings: Settings, database: Database, metrics: Metrics, stack: AsyncExitStack
) -> Runtime:
    """Opens a ZooKeeper session, which `stack` closes."""
    clock = DatabaseClock(database, SystemClock())
    await clock.set()
    setting = _begin(clock.run)
    stack.push_async_callback(_cancel, [setting])
    session = Session(settings.zookeeper, timeout_s=settings.session_timeout_s, name=settings.instance, metrics=metrics)
    await session.start()
    stack.push_async_callback(session.close, _SESSION_CLOSE_S)
    peers = Peers(
        session,
        TokenFile(settings.token_file),
        consumer=_consumer(service, settings, clock),
        picker=settings.picker,
        cache=settings.discovery_cache,
        metrics=metrics,
    )
    stack.push_async_callback(peers.close)
    return Runtime(
        settings=settings,
        guards=settings.guards,
        clock=clock,
        ids=RandomIds(),
        database=database,
        session=session,
        ensemble=Ensemble(session, database, service.ensemble, service.fences),
        peers=peers,
        failpoints=Failpoints(enabled=settings.failpoints),
        whereabouts=Whereabouts(),
        metrics=metrics,
    )


async def _unregister(registry: Registry, url: ProviderURL) -> None:
    """Takes the server out of the registry, and waits until consumers have heard of it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_UNREGISTER_S):
            await registry.unregister(url)
            await asyncio.sleep(_UNREGISTER_PAUSE_S)


async def _drain(server: grpc.aio.Server, interceptor: CallInterceptor, deadline: Deadline) -> None:
    """Takes no new calls, and lets those that run come to their end; what still runs at the deadline is left."""
    await server.stop(deadline.remaining_s())
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.remaining_s()):
            await interceptor.drained()


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _add_standard_services(server: grpc.aio.Server, service: Service, runtime: Runtime) -> HealthServicer:
    """Health, reflection, and where the settings allow it the failpoints."""
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = [service.interface, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    if runtime.failpoints.enabled:
        failpoint_pb2_grpc.add_FailpointServiceServicer_to_server(FailpointServicer(runtime.failpoints), server)
        names.append(_FAILPOINT_SERVICE)
    reflection.enable_server_reflection(names, server)
    return health


def _listen(server: grpc.aio.Server, settings: Settings, whereabouts: Whereabouts) -> int:
    try:
        port = server.add_insecure_port(settings.listen_address)
    except RuntimeError as error:
        raise CountinghouseError(
            "PORT_BUSY",
            f"cannot listen on {settings.listen_address}: the port is taken, or the address is none of this machine's",
        ) from error
    host = _advertised_host(settings)
    if settings.listen_host in EVERYWHERE and is_loopback(host):
        log.warning(
            "listening on all addresses and registering one that only this machine can call; "
            "set COUNTINGHOUSE_ADVERTISE_HOST if others are to call",
            registered=host,
        )
    whereabouts.address = str(ServerAddress(host, settings.advertise_port or port))
    return port


def _application(service: Service) -> str:
    """The name under which Dubbo's rules know this service, as a provider and as a consumer."""
    return f"countinghouse-{service.name}"


def _consumer(service: Service, settings: Settings, clock: Clock) -> Consumer:
    host = _advertised_host(settings)
    return Consumer(_application(service), host, timestamp_ms=clock.now_ms(), instance=settings.instance)


def _open_page(settings: Settings, collected: CollectorRegistry, stack: AsyncExitStack) -> str:
    """Serves the metrics until `stack` is left; the page's address for others, empty if it is off."""
    if settings.metrics_port < 0:
        return ""
    page = MetricsPage(collected, settings.metrics_host, settings.metrics_port)
    stack.push_async_callback(page.close)
    host = settings.metrics_host
    if host in EVERYWHERE:
        host = _advertised_host(settings)
    return str(ServerAddress(host, page.port))


def _provider_url(service: Service, settings: Settings, port: int, page: str, clock: Clock) -> ProviderURL:
    return ProviderURL.provider(
        service.interface,
        _advertised_host(settings),
        settings.advertise_port or port,
        application=_application(service),
        methods=method_names(service.interface),
        release="countinghouse",
        timestamp_ms=clock.now_ms(),
        instance=settings.instance,
        pid=str(os.getpid()),
        warmup=str(round(settings.warmup_s * 1000)),
        **({"metrics": page} if page else {}),  # type: ignore[arg-type]  # mypy takes it for a weight
    )


def _advertised_host(settings: Settings) -> str:
    """The address under which others find us; of a server that listens on all, the one from which ZooKeeper is reached.

    One that listens on 0.0.0.0 is not called over IPv6, one that listens on :: is called over both.

    Raises:
        Unavailable: ADDRESS_UNKNOWN: ZooKeeper's name cannot be resolved, or there is no way to it.
    """
    if settings.advertise_host or settings.listen_host not in EVERYWHERE:
        return settings.advertise_host or settings.listen_host
    wanted = socket.AF_UNSPEC if settings.listen_host == "::" else socket.AF_INET
    for server in EnsembleAddress.parse(settings.zookeeper).servers:
        with suppress(OSError):
            for family, kind, _, _, address in socket.getaddrinfo(server.host, server.port, wanted, socket.SOCK_DGRAM):
                with suppress(OSError), socket.socket(family, kind) as probe:
                    probe.connect(address)  # sends nothing: it only asks the kernel for the way
                    host = str(probe.getsockname()[0])
                    if "%" not in host:  # link-local: its scope means nothing to others
                        return host
    raise Unavailable(
        "ADDRESS_UNKNOWN",
        f"no way to {settings.zookeeper} is known, so neither is our address; set COUNTINGHOUSE_ADVERTISE_HOST",
    )


async def _register_when_ready(runtime: Runtime, monitor: HealthMonitor, registry: Registry, url: ProviderURL) -> None:
    """Registers once the ensemble is known to be ours and the server is SERVING. Ends only by an error."""
    await runtime.ensemble.settle()
    await monitor.ready.wait()
    await registry.register(url)
    log.info("registering", url=url.address)
    await asyncio.Event().wait()


def _begin(worker: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    return asyncio.create_task(_forever(worker))


async def _forever(worker: Callable[[], Awaitable[None]]) -> None:
    """Runs a worker; one that fails is logged and begun again, for it has no caller who could."""
    while True:
        try:
            await worker()
        except Exception:
            log.exception("worker failed; beginning again")
            await asyncio.sleep(0.5)


async def _first(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    """Waits until told to stop, or until `task` ends, which it does only by an error."""
    waiter = asyncio.ensure_future(stop.wait())
    await asyncio.wait({waiter, task}, return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
