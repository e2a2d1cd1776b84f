"""Every server's life, from the first line of the log to the last.

    settings → database → listen → serving → registered → … → SIGTERM → unregistered → drained → stopped

Starting order: listen, SERVING, register, so that nobody is sent to a port that does not answer. Stopping order:
unregister, wait for consumers to hear of it, finish running calls, stop. Services start in any order, with or without
ZooKeeper: what is missing is waited for in the background, and calls that need it are answered UNAVAILABLE.

Exit codes: 0 stopped when told; 2 refused to start (one line on standard error says why and what to do).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from pydantic import ValidationError
from sqlalchemy import Table

from coordination.registry import Registry
from coordination.session import Session
from coordination.url import ProviderURL
from countinghouse.debug.v1 import failpoint_pb2_grpc
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import CountinghouseError
from services.kernel.guards import Guards
from services.kernel.ids import IdSource, RandomIds
from services.runtime import log as logs
from services.runtime.database import Database
from services.runtime.ensemble import Ensemble
from services.runtime.failpoints import Failpoints, FailpointServicer
from services.runtime.health import HealthMonitor
from services.runtime.interceptors import CallInterceptor
from services.runtime.methods import method_names
from services.runtime.migrations import bring_up_to_date
from services.runtime.peering import Peers
from services.runtime.settings import Settings
from services.runtime.tokens import TokenFile, TokenVerifier

_FAILPOINT_SERVICE = "countinghouse.debug.v1.FailpointService"
#: How long consumers get to hear that a provider is gone before it stops taking calls.
_UNREGISTER_PAUSE_S = 0.3

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


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service is made of.

    Args:
        add: Adds the servicer to the server.
        workers: What goes on without a caller; each runs until it is cancelled.
        close: Called last, when no call is running any more.
    """

    add: Callable[[grpc.aio.Server], None]
    workers: Sequence[Callable[[], Awaitable[None]]] = ()
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as its `main.py` describes it.

    Args:
        name: `order`, `payment` or `ledger`; also the application's name in the registry.
        interface: The proto service, which is the interface in the registry.
        package: Folder of the service, where its migrations are.
        ensemble: Its table of the ZooKeeper generation.
        build: Puts the parts together.
    """

    name: str
    interface: str
    package: Path
    ensemble: Table
    build: Callable[[Runtime], Awaitable[Parts]]


def run(service: Service) -> None:
    """The whole program of a service: `python -m services.<name>.main [migrate]`."""
    try:
        settings = Settings()
        logs.configure(service.name, settings.instance)
        work = _migrate if sys.argv[1:] == ["migrate"] else _serve
        uvloop.run(work(service, settings))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        _refuse(service, problems)
    except CountinghouseError as error:
        _refuse(service, error.message)


def _refuse(service: Service, message: str) -> None:
    print(f"{service.name}: {message}", file=sys.stderr)  # noqa: T201  the last word of a program
    raise SystemExit(2)


async def _migrate(service: Service, settings: Settings) -> None:
    async with Database(settings.database_url) as database:
        await bring_up_to_date(database, service.package, migrate=True)


async def _serve(service: Service, settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.guards.off:
        log.warning("GUARDS ARE OFF: bills may be settled twice", off=settings.guards.off)

    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            Database(
                settings.database_url,
                pool=settings.database_pool,
                statement_timeout_s=settings.statement_timeout_s,
            )
        )
        await bring_up_to_date(database, service.package, migrate=settings.migrate)
        session = Session(settings.zookeeper, timeout_s=settings.session_timeout_s, name=settings.instance)
        await session.start()
        stack.push_async_callback(session.close)
        peers = Peers(session, TokenFile(settings.token_file), cache=settings.discovery_cache)
        stack.push_async_callback(peers.close)
        clock = SystemClock()
        runtime = Runtime(
            settings=settings,
            guards=settings.guards,
            clock=clock,
            ids=RandomIds(),
            database=database,
            session=session,
            ensemble=Ensemble(session, database, service.ensemble),
            peers=peers,
            failpoints=Failpoints(enabled=settings.failpoints),
            whereabouts=Whereabouts(),
        )
        parts = await service.build(runtime)
        interceptor = CallInterceptor(
            _verifier(settings, clock),
            clock,
            default_deadline_s=settings.default_deadline_s,
            max_deadline_s=settings.max_deadline_s,
        )
        server = grpc.aio.server(
            interceptors=[interceptor],
            options=_options(settings),
            maximum_concurrent_rpcs=settings.max_concurrent_calls,
        )
        parts.add(server)
        health = _add_standard_services(server, service, runtime)
        port = _listen(server, settings, runtime.whereabouts)
        await server.start()
        monitor = HealthMonitor(health, database, session, (service.interface,))
        registry = Registry(session)
        stack.push_async_callback(registry.close)
        url = _provider_url(service, settings, port, clock)
        log.info("listening", address=f"{settings.listen_host}:{port}", pid=os.getpid())

        registering = asyncio.create_task(_register_when_ready(runtime, monitor, registry, url))
        tasks = [
            registering,
            asyncio.create_task(monitor.watch()),
            *(asyncio.create_task(_forever(worker)) for worker in parts.workers),
        ]
        gc.collect()
        gc.freeze()  # what was imported stays; looking through it again and again costs a tenth of every call
        await _first(stop, registering)
        log.info("stopping")
        with suppress(TimeoutError, CountinghouseError):
            async with asyncio.timeout(1.0):
                await registry.unregister(url)
                await asyncio.sleep(_UNREGISTER_PAUSE_S)
        refused = registering.exception() if registering.done() else None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await monitor.stopping()
        await server.stop(settings.drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(settings.drain_s):
                await interceptor.drained()
        if parts.close is not None:
            await parts.close()
        log.info("stopped")
        if refused is not None:
            raise refused


def _verifier(settings: Settings, clock: Clock) -> TokenVerifier:
    try:
        return TokenVerifier(settings.verify_key_file.read_bytes(), clock)
    except OSError as error:
        raise CountinghouseError(
            "VERIFY_KEY_MISSING",
            f"{settings.verify_key_file} cannot be read: {error.strerror}; COUNTINGHOUSE_VERIFY_KEY_FILE names the key",
        ) from error


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
    address = f"{settings.listen_host}:{settings.listen_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise CountinghouseError(
            "PORT_BUSY",
            f"port {settings.listen_port} on {settings.listen_host} is taken; choose another or stop what holds it",
        ) from error
    whereabouts.address = f"{settings.advertise_host or settings.listen_host}:{port}"
    return port


def _options(settings: Settings) -> list[tuple[str, int]]:
    """Sizes, and room for the pings of idle Dubbo clients: Java's after 60 s, dubbo-go's after 10 s."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.so_reuseport", 0),
    ]


def _provider_url(service: Service, settings: Settings, port: int, clock: Clock) -> ProviderURL:
    return ProviderURL(
        protocol="tri",
        host=settings.advertise_host or settings.listen_host,
        port=port,
        path=service.interface,
        parameters={
            "interface": service.interface,
            "side": "provider",
            "application": f"countinghouse-{service.name}",
            "methods": ",".join(method_names(service.interface)),
            "dubbo": "2.0.2",
            "release": "countinghouse",
            "timestamp": str(clock.now_ms()),
            "weight": "100",
            "instance": settings.instance,
            "pid": str(os.getpid()),
        },
    )


async def _register_when_ready(runtime: Runtime, monitor: HealthMonitor, registry: Registry, url: ProviderURL) -> None:
    """Registers once the ensemble is known to be ours and the server is SERVING. Ends only by an error."""
    await runtime.ensemble.settle()
    await monitor.ready.wait()
    await registry.register(url)
    log.info("registering", url=url.address)
    await asyncio.Event().wait()


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
