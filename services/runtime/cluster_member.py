"""A service as a member of the cluster: its session with ZooKeeper, its registration, its peers; from start to stop.

    settings → database → listen → serving → registered → … → SIGTERM → unregistered → drained → stopped

Starting order: listen, SERVING, register, so that no consumer is sent to a port that does not answer. Stopping order:
unregister, wait until consumers have noticed, finish running calls, stop. Services start in any order, with or without
ZooKeeper: what is missing is waited for in the background, and calls that need it are answered UNAVAILABLE. A database
that is away is waited for before listening.

Stopping takes `drain_s` and about three seconds at the most, wherever ZooKeeper is. process.py has what any server
process needs.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial

import grpc
import structlog
from prometheus_client import CollectorRegistry
from sqlalchemy import Column, Table

from coordination.discovery import Consumer
from coordination.metrics import Metrics
from coordination.registry import ProviderURL, Registry
from coordination.session import Session
from coordination.session.address import EnsembleAddress, ServerAddress, is_loopback
from coordination.session.security import OPEN, Security
from services.kernel.clock import CallDeadline, Clock, SystemClock
from services.kernel.errors import Unavailable
from services.kernel.guards import Guards
from services.kernel.ids import IdSource, RandomIds
from services.kernel.release import release
from services.runtime import process
from services.runtime.database.clock import DatabaseClock
from services.runtime.database.database import Database, probe_write
from services.runtime.database.metrics import DatabaseMetrics
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.retention import DAY_MS, Retention, remove_old_requests
from services.runtime.ensemble import Ensemble
from services.runtime.grpc.credential_metrics import CredentialMetrics
from services.runtime.grpc.failpoints import FailpointSet
from services.runtime.grpc.grpc_server import new_server
from services.runtime.grpc.health import HealthMonitor
from services.runtime.grpc.methods import method_names
from services.runtime.grpc.service_client import Peers
from services.runtime.grpc.tls import INTERNAL_PORT, Dialer, TlsFiles
from services.runtime.grpc.tokens import audience_of
from services.runtime.metrics import CallMetrics, MetricsPage, process_registry
from services.runtime.process import Program
from services.runtime.settings import EVERYWHERE, Settings
from services.runtime.zookeeper_paths import RELEASE_PARAMETER
from services.runtime.zookeeper_security import secured

#: How long a provider that has unregistered goes on taking calls, so that consumers notice.
_UNREGISTER_PAUSE_S = 0.3
#: Of the time to stop in, besides `drain_s`. With ZooKeeper away the node cannot be deleted and goes with the session:
#: to wait longer would change nothing.
_UNREGISTER_S = 1.0
_REGISTRY_CLOSE_S = 0.1
_SESSION_CLOSE_S = 1.0

log = structlog.get_logger()


@dataclass(slots=True)
class AdvertisedAddress:
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
    failpoints: FailpointSet
    advertised: AdvertisedAddress
    metrics: Metrics
    credentials: CredentialMetrics
    collected: CollectorRegistry


@dataclass(frozen=True, slots=True)
class Components:
    """What a service is made of.

    Args:
        add: Adds the servicer to the server.
        workers: What goes on without a caller; each runs until it is cancelled, before the running calls are drained.
        drain_tasks: What running calls need; cancelled after them.
        close: Called last, when no call is running any more.
    """

    add: Callable[[grpc.aio.Server], None]
    workers: Sequence[Callable[[], Awaitable[None]]] = ()
    drain_tasks: Sequence[Callable[[], Awaitable[None]]] = ()
    close: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Service(Program):
    """One service, as its `main.py` describes it; its name is also the application's in the registry.

    Args:
        ensemble: Its table of the ZooKeeper generation.
        fences: The columns of generation and token of the fences it keeps.
        retention: Which of its requests need not be kept.
        build: Puts the components together.
    """

    ensemble: Table
    fences: tuple[Column[int], Column[int]]
    retention: Retention
    build: Callable[[Runtime], Awaitable[Components]]


def run(service: Service) -> None:
    """Run a service: `python -m services.<name>.main [migrate | prune]`."""
    process.run(service, {"": partial(_serve, service), "prune": partial(_prune, service)})


async def _prune(service: Service, settings: Settings) -> None:
    """Remove old requests, once or repeatedly; run as the owner of the tables (`retention.py`)."""
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


async def _serve(service: Service, settings: Settings) -> None:
    stop = process.stop_event()
    if settings.guards.off:
        log.warning("GUARDS ARE OFF: orders may be settled twice", off=settings.guards.off)

    async with AsyncExitStack() as stack:
        collected = process_registry()
        page = _open_page(settings, collected, stack)
        database = await stack.enter_async_context(
            Database(
                settings.database_url,
                pool=settings.database_pool,
                statement_timeout_s=settings.statement_timeout_s,
                metrics=DatabaseMetrics(collected),
            )
        )
        if not await process.migrated_before(stop, database, service, migrate=settings.migrate):
            return
        tls = process.tls_files(settings)
        runtime = await _runtime(service, settings, database, tls, collected, stack)
        components = await service.build(runtime)
        server, interceptor = new_server(
            settings,
            runtime.clock,
            CallMetrics(collected),
            audience=audience_of(service.name),
            tls=tls,
            credentials=runtime.credentials,
        )
        components.add(server)
        health = process.add_standard_services(server, service.interface, runtime.failpoints, settings.profile)
        ports = _listen(server, settings, tls, runtime.advertised)
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
        url = _provider_url(service, settings, ports, page, runtime.clock)
        listening = str(ServerAddress(settings.listen_host, ports.public))
        log.info("listening", address=listening, internal=ports.internal, metrics=page, pid=os.getpid())

        registering = asyncio.create_task(_register_when_ready(runtime, monitor, registry, url))
        beginning = [registering, process.begin(monitor.watch), *map(process.begin, components.workers)]
        keeping = [process.begin(runtime.ensemble.keep), *map(process.begin, components.drain_tasks)]
        gc.collect()
        gc.freeze()  # what was imported stays; looking through it again and again costs a tenth of every call
        await process.first(stop, registering)
        log.info("stopping")
        refused = registering.exception() if registering.done() else None
        await _unregister(registry, url)
        await process.cancel(beginning)
        await monitor.stopping()
        await process.drain(server, interceptor, CallDeadline.after(settings.drain_s, runtime.clock))
        await process.cancel(keeping)
        if components.close is not None:
            await components.close()
        log.info("stopped")
        if refused is not None:
            raise refused


async def _runtime(
    service: Service,
    settings: Settings,
    database: Database,
    tls: TlsFiles | None,
    collected: CollectorRegistry,
    stack: AsyncExitStack,
) -> Runtime:
    """Open a ZooKeeper session, which `stack` closes."""
    metrics, credentials = Metrics(collected), CredentialMetrics(collected)
    credentials.show_tls("house", tls)
    clock = DatabaseClock(database, SystemClock())
    await clock.set()
    setting = process.begin(clock.run)
    stack.push_async_callback(process.cancel, [setting])
    session = Session(
        settings.zookeeper,
        timeout_s=settings.session_timeout_s,
        name=settings.instance,
        metrics=metrics,
        security=_zookeeper_security(settings),
    )
    await session.start()
    stack.push_async_callback(session.close, _SESSION_CLOSE_S)
    peers = Peers(
        session,
        settings.token_folder,
        dialer=Dialer(tls),
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
        failpoints=FailpointSet(enabled=settings.failpoints),
        advertised=AdvertisedAddress(),
        metrics=metrics,
        credentials=credentials,
        collected=collected,
    )


def _zookeeper_security(settings: Settings) -> Security:
    if settings.plaintext:
        return OPEN
    if settings.zookeeper_plaintext:
        log.warning(
            "PLAIN TEXT to ZooKeeper: others on the network can change it; unset COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT"
        )
        return OPEN
    return secured(settings.ca_file, settings.zookeeper_user_file)


async def _unregister(registry: Registry, url: ProviderURL) -> None:
    """Take the server out of the registry, and wait until consumers have noticed."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_UNREGISTER_S):
            await registry.unregister(url)
            await asyncio.sleep(_UNREGISTER_PAUSE_S)


@dataclass(frozen=True, slots=True)
class _Ports:
    """What a service listens on.

    Args:
        internal: 0: in plain text there is none.
    """

    public: int
    internal: int


def _listen(server: grpc.aio.Server, settings: Settings, tls: TlsFiles | None, advertised: AdvertisedAddress) -> _Ports:
    port = process.listen(server, settings.listen_address, tls)
    internal = process.listen(server, settings.internal_address, tls, internal=True) if tls else 0
    host = _advertised_host(settings)
    if settings.listen_host in EVERYWHERE and is_loopback(host):
        log.warning(
            "listening on all addresses and registering one that only this machine can call; "
            "set COUNTINGHOUSE_ADVERTISE_HOST if others are to call",
            registered=host,
        )
    advertised.address = str(ServerAddress(host, settings.advertise_port or port))
    return _Ports(port, internal)


def _application(service: Service) -> str:
    """Return the name under which Dubbo's rules know this service, as a provider and as a consumer."""
    return f"countinghouse-{service.name}"


def _consumer(service: Service, settings: Settings, clock: Clock) -> Consumer:
    host = _advertised_host(settings)
    return Consumer(_application(service), host, timestamp_ms=clock.now_ms(), instance=settings.instance)


def _open_page(settings: Settings, collected: CollectorRegistry, stack: AsyncExitStack) -> str:
    """Serve the metrics until `stack` is left; return the address of the page, empty if it is off."""
    if settings.metrics_port < 0:
        return ""
    page = MetricsPage(collected, settings.metrics_host, settings.metrics_port)
    stack.push_async_callback(page.close)
    host = settings.metrics_host
    if host in EVERYWHERE:
        host = _advertised_host(settings)
    return str(ServerAddress(host, page.port))


def _provider_url(service: Service, settings: Settings, ports: _Ports, page: str, clock: Clock) -> ProviderURL:
    more = {"metrics": page} if page else {}
    if ports.internal:
        more[INTERNAL_PORT] = str(settings.advertise_internal_port or ports.internal)
    if release():
        more[RELEASE_PARAMETER] = release()
    return ProviderURL.provider(
        service.interface,
        _advertised_host(settings),
        settings.advertise_port or ports.public,
        application=_application(service),
        methods=method_names(service.interface),
        release="countinghouse",
        timestamp_ms=clock.now_ms(),
        instance=settings.instance,
        pid=str(os.getpid()),
        warmup=str(round(settings.warmup_s * 1000)),
        **more,  # type: ignore[arg-type]  # mypy takes it for a weight
    )


def _advertised_host(settings: Settings) -> str:
    """Return the address to register; of a server that listens on all addresses, the one that reaches ZooKeeper.

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
    """Register once the ensemble is known to be ours and the server is SERVING. Ends only by an error."""
    await runtime.ensemble.settle()
    await monitor.ready.wait()
    await registry.register(url)
    log.info("registering", url=url.address)
    await asyncio.Event().wait()
