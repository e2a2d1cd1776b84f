"""The embedded stack as a target: two of each service, PostgreSQL, an ensemble of three, an acquirer, and proxies.

    callers, services ──▶ proxy ──▶ each instance and the acquirer    links `payment-1`, `acquirer-1`, …
    each instance     ──▶ its own three proxies ──▶ ZooKeeper         links `zookeeper/payment-1`, …
    each service      ──▶ PostgreSQL

Every instance has proxies of its own towards ZooKeeper, so that one of them can lose its session while the others
keep theirs. The checker reads PostgreSQL directly.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from coordination.session.security import Security
from services.chaos.acquirer_log import read_acquirer_log
from services.chaos.faultproxy.proxy import HOST, Proxy, Stream, Toxic
from services.chaos.targets.target import ACQUIRER, Replicas
from services.checker.acquirer_log import AcquirerLog
from services.checker.snapshot import ACQUIRER as ACQUIRER_DATABASE
from services.checker.snapshot import SERVICES
from services.devstack.ensemble import ZooKeeperEnsemble
from services.devstack.files import database_url
from services.devstack.keys import Keys
from services.devstack.options import GATEWAY, POSTGRESQL
from services.devstack.ports import PortReservation
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import Clock
from services.kernel.principal import Role
from services.runtime.grpc.tls import Dialer
from services.testkit.waiting import NotBroughtAbout

_REPLICAS: Final = {"order": 2, "payment": 2, "ledger": 2}
_SETTINGS: Final[Mapping[str, object]] = {
    "lease_s": 2.0,
    "recovery_interval_s": 0.3,
    "drain_s": 3.0,
    "currencies": "CNY",
    "acquirer_timeout_s": 1.5,
    # The worker asks the acquirer so often before a payment waits for people: more often here, without people.
    "acquirer_asks": 40,
}
_DIE_WITHIN_S: Final = 15.0
_SERVE_WITHIN_S: Final = 30.0
_FAKETIME: Final = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")
#: Started under libfaketime, if it is installed.
_SHIFTABLE_CLOCKS: Final = ("payment-2", "order-2")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """The stack to start.

    Args:
        guards_off: Guards to switch off.
        database: `postgresql` or `sqlite`.
    """

    data: Path
    guards_off: tuple[str, ...] = ()
    database: str = POSTGRESQL
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class LocalTarget:
    """See `Target`. `async with LocalTarget(options, clock) as target:` starts and stops everything.

    Before that it makes no file, so that a run can be refused without a trace.
    """

    name = "local"
    session_timeout_s = 2.0
    holds_at_failpoints = False
    instances: tuple[str, ...] = (
        *(f"{service}-{number}" for service, count in _REPLICAS.items() for number in range(1, count + 1)),
        ACQUIRER,
    )
    links = instances
    has_gateway = True
    dialer: Callable[..., Dialer]
    zookeeper_security: Callable[[], Security]
    replicas: Replicas | None = None
    zookeeper: str
    _ensemble: ZooKeeperEnsemble
    _stack: Stack

    def __init__(self, options: LocalOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._resources = AsyncExitStack()
        self._proxies: dict[str, tuple[Proxy, ...]] = {}
        self.has_postgresql = options.database == POSTGRESQL
        self.shiftable_clocks: tuple[str, ...] = _SHIFTABLE_CLOCKS if _FAKETIME.exists() else ()

    async def __aenter__(self) -> Self:
        data, environment = self._options.data, self._options.environment
        self._ensemble = ZooKeeperEnsemble(data / "ensemble", environment, Keys(data, self._clock))
        self.zookeeper = ",".join(self._ensemble.address(server) for server in self._ensemble.servers)
        try:
            await self._resources.enter_async_context(self._ensemble)
            options = StackOptions(
                data=self._options.data,
                zookeeper=self.zookeeper,
                database=self._options.database,
                replicas=_REPLICAS,
                guards_off=self._options.guards_off,
                failpoints=True,
                session_timeout_s=self.session_timeout_s,
                settings=_SETTINGS,
                settings_of={name: await self._in_front_of(name) for name in (ACQUIRER, *self.instances[:-1])},
                environment_of={name: _faked(_clock_file(self._options.data, name)) for name in self.shiftable_clocks},
                start_timeout_s=90.0,
                gateway=True,
            )
            self._stack = Stack(options, clock=self._clock, environment=self._options.environment)
            self.dialer, self.zookeeper_security = self._stack.dialer, self._stack.zookeeper_security
            await self._resources.enter_async_context(self._stack)
            self._proxies[ACQUIRER][0].upstream = self._stack.acquirer
        except BaseException:
            await self._resources.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._ensemble.servers:
            self._ensemble.resume(server)
            await self._ensemble.start(server)
        for link in self._proxies:
            await self.heal(link)
        for name in self.instances:
            await self.resume(name)
        for name in self.shiftable_clocks:
            await self.shift_clock(name, 0.0)
        await self._resources.aclose()

    # ---- what it is ------------------------------------------------------------------------------------

    @property
    def databases(self) -> Mapping[str, str]:
        return {service: database_url(self._options.data, service) for service in (*SERVICES, ACQUIRER_DATABASE)}

    def token(self, name: str, role: Role, *, outside: bool = False) -> str:
        return self._stack.token(name, role, outside=outside)

    def address(self, instance: str) -> str:
        if instance == GATEWAY:
            return self._stack.describe().gateway
        return self._proxies[instance][0].listen

    async def acquirer_log(self) -> AcquirerLog:
        token = self.token("ops", Role.OPERATOR, outside=True)
        return await read_acquirer_log(self.dialer(outside=True), self.address(ACQUIRER), token)

    # ---- processes -------------------------------------------------------------------------------------

    async def kill(self, instance: str) -> None:
        await self._end(instance, signal.SIGKILL)

    async def terminate(self, instance: str) -> None:
        await self._end(instance, signal.SIGTERM)

    async def pause(self, name: str) -> None:
        if name in self._ensemble.servers:
            self._ensemble.pause(name)
        else:
            self._stack.kill(name, signal.SIGSTOP)

    async def resume(self, name: str) -> None:
        if name in self._ensemble.servers:
            self._ensemble.resume(name)
        else:
            self._stack.kill(name, signal.SIGCONT)

    async def is_paused(self, instance: str) -> bool:
        try:
            return psutil.Process(self._stack.instance(instance).pid).status() == psutil.STATUS_STOPPED
        except (psutil.NoSuchProcess, ValueError):
            return False

    async def wait_serving(self, instance: str) -> None:
        try:
            await self._stack.wait_serving(instance, timeout_s=_SERVE_WITHIN_S)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} does not come back") from None

    # ---- ZooKeeper and PostgreSQL ----------------------------------------------------------------------

    async def zookeeper_servers(self) -> dict[str, str]:
        return await self._ensemble.modes()

    async def kill_server(self, server: str) -> None:
        await self._ensemble.kill(server)

    async def start_server(self, server: str) -> None:
        await self._ensemble.start(server)

    async def stop_postgresql(self, *, fast: bool) -> None:
        """See `Target`. The stack starts it again at once."""
        self._stack.kill(POSTGRESQL, signal.SIGINT if fast else signal.SIGKILL)

    async def start_postgresql(self) -> None:
        await self._stack.wait_server(POSTGRESQL)

    # ---- links and clocks ------------------------------------------------------------------------------

    async def add_toxic(self, link: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        for proxy in self._proxies[link]:
            proxy.add(Toxic("fault", kind, Stream(stream), attributes=attributes))

    async def cut(self, link: str) -> None:
        for proxy in self._proxies[link]:
            await proxy.disable()

    async def affected_connections(self, link: str) -> int:
        return sum(proxy.affected for proxy in self._proxies[link])

    async def heal(self, link: str) -> None:
        for proxy in self._proxies[link]:
            await proxy.reset()
            proxy.affected = 0

    async def shift_clock(self, instance: str, by_s: float) -> None:
        _clock_file(self._options.data, instance).write_text(f"{by_s:+.1f}")

    # ---- inside ----------------------------------------------------------------------------------------

    async def _end(self, instance: str, number: signal.Signals) -> None:
        """End a process; return when it has ended."""
        pid = self._stack.instance(instance).pid
        self._stack.kill(instance, number)
        try:
            await self._stack.wait_until(lambda: self._stack.instance(instance).pid != pid, _DIE_WITHIN_S)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} does not end") from None

    async def _in_front_of(self, name: str) -> dict[str, object]:
        """Put a proxy in front of each port of an instance, and three between it and ZooKeeper; return its settings.

        The acquirer is not in ZooKeeper, and chooses its port itself: its proxy gets it once it has started.
        """
        if name == ACQUIRER:
            self._proxies[name] = (await self._resources.enter_async_context(Proxy(name, f"{HOST}:1")),)
            return {}
        public, internal = [await _in_front_of_port(name, self._resources) for _ in range(2)]
        self._proxies[name] = (public[1], internal[1])
        settings: dict[str, object] = {
            "listen_port": public[0],
            "advertise_port": public[1].port,
            "internal_port": internal[0],
            "advertise_internal_port": internal[1].port,
        }
        towards = [
            await self._resources.enter_async_context(Proxy(f"{name}/{server}", self._ensemble.address(server)))
            for server in self._ensemble.servers
        ]
        self._proxies[f"zookeeper/{name}"] = tuple(towards)
        settings["zookeeper"] = ",".join(each.listen for each in towards)
        if name.startswith("payment"):
            settings["acquirer_address"] = self._proxies[ACQUIRER][0].listen
        return settings


async def _in_front_of_port(name: str, resources: AsyncExitStack) -> tuple[int, Proxy]:
    """Reserve a port; return it, and the proxy in front of it."""
    reservation = PortReservation()
    resources.callback(reservation.close)
    proxy = await resources.enter_async_context(Proxy(name, f"{HOST}:{reservation.port}"))
    return reservation.port, proxy


def _clock_file(data: Path, instance: str) -> Path:
    return data / f"{instance}.clock"


def _faked(file: Path) -> dict[str, str]:
    """Return the environment of a process whose wall clock goes by a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("+0.0")
    return {
        "LD_PRELOAD": str(_FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
