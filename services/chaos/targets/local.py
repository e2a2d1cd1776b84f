"""The embedded stack as a world: two of each service, PostgreSQL, an ensemble of three, a bank, and a proxy everywhere.

    callers, services ──▶ proxy ──▶ each instance and the bank        lines `payment-1`, `acquirer-1`, …
    each instance     ──▶ its own three proxies ──▶ ZooKeeper         lines `zookeeper/payment-1`, …
    each service      ──▶ PostgreSQL

Every instance has proxies of its own towards ZooKeeper, so that one of them can lose its session while the others
keep theirs. The checker reads PostgreSQL directly.
"""

from __future__ import annotations

import os
import platform
import signal
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from services.chaos.acquirer_log import read_acquirer_log
from services.chaos.faultproxy.proxy import HOST, Proxy, Stream, Toxic
from services.chaos.faults.types import ACQUIRER, bank_kinds, postgresql_kinds, process_kinds, zookeeper_kinds
from services.chaos.plan import Kind
from services.chaos.targets.target import NotBroughtAbout
from services.checker.acquirer_log import AcquirerLog
from services.checker.snapshot import ACQUIRER as BANK
from services.checker.snapshot import SERVICES
from services.devstack.components.databases import POSTGRESQL
from services.devstack.components.zookeeper import PortReservation
from services.devstack.ensemble import ZooKeeperEnsemble
from services.devstack.files import database_url
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import Clock
from services.kernel.principal import Role

SESSION_TIMEOUT_S: Final = 2.0
_REPLICAS: Final = {"order": 2, "payment": 2, "ledger": 2}
_SETTINGS: Final[Mapping[str, object]] = {
    "lease_s": 2.0,
    "recovery_interval_s": 0.3,
    "drain_s": 3.0,
    "currencies": "CNY",
    "acquirer_timeout_s": 1.5,
    # So often the bank is asked before people have to look: here nobody would, so rather more often.
    "acquirer_asks": 40,
}
_DIE_WITHIN_S: Final = 15.0
_FAKETIME: Final = Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")
#: Whose wall clocks can be made wrong.
_FAKED: Final = ("payment-2", "order-2")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """How the stack is to be.

    Args:
        guards_off: Guards to switch off, to see what they stop.
        database: `postgresql` or `sqlite`.
    """

    data: Path
    guards_off: tuple[str, ...] = ()
    database: str = POSTGRESQL
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class LocalWorld:
    """See `world.World`. `async with LocalWorld(options, clock) as world:` starts and stops everything."""

    name = "local"
    holds_at_failpoints = False

    def __init__(self, options: LocalOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._resources = AsyncExitStack()
        self._ensemble = ZooKeeperEnsemble(options.data / "ensemble", options.environment)
        self._lines: dict[str, tuple[Proxy, ...]] = {}
        self._stack: Stack | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._resources.enter_async_context(self._ensemble)
            options = StackOptions(
                data=self._options.data,
                zookeeper=self.zookeeper,
                database=self._options.database,
                replicas=_REPLICAS,
                guards_off=self._options.guards_off,
                failpoints=True,
                session_timeout_s=SESSION_TIMEOUT_S,
                settings=_SETTINGS,
                settings_of={name: await self._in_front_of(name) for name in _names()},
                environment_of={name: self._faked(name) for name in _FAKED if _FAKETIME.exists()},
                start_timeout_s=90.0,
            )
            self._stack = Stack(options, clock=self._clock, environment=self._options.environment)
            await self._resources.enter_async_context(self._stack)
            self._lines[ACQUIRER][0].upstream = self._stack.acquirer
        except BaseException:
            await self._resources.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.heal()
        await self._resources.aclose()

    async def heal(self) -> None:
        """Whatever a fault has left behind is put right."""
        for server in self._ensemble.servers:
            self._ensemble.resume(server)
            await self._ensemble.start(server)
        for line in self._lines:
            await self.mend(line)
        for name in self.instances:
            await self.resume(name)
        for name in _FAKED:
            await self.shift_clock(name, 0.0)

    # ---- what it is ------------------------------------------------------------------------------------

    @property
    def zookeeper(self) -> str:
        """All three servers, not through any proxy."""
        return ",".join(self._ensemble.address(server) for server in self._ensemble.servers)

    @property
    def databases(self) -> Mapping[str, str]:
        """See `World`."""
        return {service: database_url(self._options.data, service) for service in (*SERVICES, BANK)}

    @property
    def instances(self) -> tuple[str, ...]:
        """See `World`."""
        bank, *services = _names()
        return (*services, bank)

    def kinds(self) -> tuple[Kind, ...]:
        """See `World`."""
        payments = self._named("payment")
        kinds = [
            *process_kinds(self.instances, rolling_s=8.0),
            *zookeeper_kinds(),
            *bank_kinds(),
            Kind("session-expiry", "zookeeper", payments, 3.0, 4.0),
            Kind("latency", "network", self.instances, 1.0, 3.0),
            Kind("reset", "network", self.instances, 0.5, 2.0),
            Kind("replies-lost", "network", self.instances, 1.0, 3.0),
            Kind("requests-lost", "network", self.instances, 1.0, 3.0),
            Kind("down", "network", self.instances, 1.0, 3.0),
        ]
        if self._options.database == POSTGRESQL:
            kinds += postgresql_kinds()
        if _FAKETIME.exists():
            kinds.append(Kind("clock-jump", "clock", _FAKED, 1.0, 4.0))
        return tuple(kinds)

    def token(self, name: str, role: Role) -> str:
        """See `World`."""
        return self._running.token(name, role)

    def address(self, instance: str) -> str:
        """See `World`."""
        return self._lines[instance][0].listen

    async def acquirer_log(self) -> AcquirerLog | None:
        """See `World`."""
        return await read_acquirer_log(self.address(ACQUIRER), self.token("ops", Role.OPERATOR))

    # ---- processes -------------------------------------------------------------------------------------

    async def incarnation(self, instance: str) -> str:
        """See `World`."""
        return str(self._running.instance(instance).pid)

    async def kill(self, instance: str) -> None:
        """See `World`."""
        await self._end(instance, signal.SIGKILL)

    async def terminate(self, instance: str) -> float:
        """See `World`."""
        began_s = self._clock.monotonic_s()
        await self._end(instance, signal.SIGTERM)
        return self._clock.monotonic_s() - began_s

    async def pause(self, instance: str) -> None:
        """See `World`."""
        self._running.kill(instance, signal.SIGSTOP)

    async def resume(self, instance: str) -> None:
        """See `World`."""
        self._running.kill(instance, signal.SIGCONT)

    async def is_paused(self, instance: str) -> bool:
        """See `World`."""
        try:
            return psutil.Process(self._running.instance(instance).pid).status() == psutil.STATUS_STOPPED
        except (psutil.NoSuchProcess, ValueError):
            return False

    async def wait_serving(self, instance: str, within_s: float = 30.0) -> None:
        """See `World`."""
        try:
            await self._running.wait_serving(instance, timeout_s=within_s)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} does not come back") from None

    # ---- ZooKeeper and PostgreSQL ----------------------------------------------------------------------

    async def zookeeper_servers(self) -> dict[str, str]:
        """See `World`."""
        return await self._ensemble.modes()

    async def kill_server(self, server: str) -> None:
        """See `World`."""
        await self._ensemble.kill(server)

    async def start_server(self, server: str) -> None:
        """See `World`."""
        await self._ensemble.start(server)

    async def pause_server(self, server: str) -> None:
        """See `World`."""
        self._ensemble.pause(server)

    async def resume_server(self, server: str) -> None:
        """See `World`."""
        self._ensemble.resume(server)

    async def stop_postgresql(self, *, politely: bool) -> None:
        """See `World`. Whoever looks after it starts it again at once."""
        self._running.kill(POSTGRESQL, signal.SIGINT if politely else signal.SIGKILL)

    async def start_postgresql(self) -> None:
        """See `World`."""
        await self._running.wait_server(POSTGRESQL)

    # ---- lines and clocks ------------------------------------------------------------------------------

    async def spoil(self, line: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        """See `World`."""
        for proxy in self._lines[line]:
            proxy.add(Toxic("fault", kind, Stream(stream), attributes=attributes))

    async def cut(self, line: str) -> None:
        """See `World`."""
        for proxy in self._lines[line]:
            await proxy.disable()

    async def concerned(self, line: str) -> int:
        """See `World`."""
        return sum(proxy.spoiled for proxy in self._lines[line])

    async def mend(self, line: str) -> None:
        """See `World`."""
        for proxy in self._lines[line]:
            await proxy.reset()
            proxy.spoiled = 0

    async def shift_clock(self, instance: str, by_s: float) -> None:
        """See `World`."""
        if _FAKETIME.exists():
            self._clock_file(instance).write_text(f"{by_s:+.1f}")

    # ---- inside ----------------------------------------------------------------------------------------

    @property
    def _running(self) -> Stack:
        if self._stack is None:
            raise NotBroughtAbout("the stack was not started")
        return self._stack

    def _named(self, service: str) -> tuple[str, ...]:
        return tuple(name for name in self.instances if name.startswith(service))

    async def _end(self, instance: str, number: signal.Signals) -> None:
        """Ends a process, and returns when it has ended."""
        pid = self._running.instance(instance).pid
        self._running.kill(instance, number)
        try:
            await self._running.wait_until(lambda: self._running.instance(instance).pid != pid, _DIE_WITHIN_S)
        except TimeoutError:
            raise NotBroughtAbout(f"{instance} does not end") from None

    async def _in_front_of(self, name: str) -> dict[str, object]:
        """Puts a proxy in front of an instance, and three between it and ZooKeeper; returns what it has to be told.

        The bank is not in ZooKeeper, and chooses its port itself: its proxy learns it once it has started.
        """
        if name == ACQUIRER:
            self._lines[name] = (await self._resources.enter_async_context(Proxy(name, f"{HOST}:1")),)
            return {}
        reservation = PortReservation()
        self._resources.callback(reservation.close)
        proxy = Proxy(name, f"{HOST}:{reservation.port}")
        self._lines[name] = (await self._resources.enter_async_context(proxy),)
        told: dict[str, object] = {"listen_port": reservation.port, "advertise_port": proxy.port}
        towards = [
            await self._resources.enter_async_context(Proxy(f"{name}/{server}", self._ensemble.address(server)))
            for server in self._ensemble.servers
        ]
        self._lines[f"zookeeper/{name}"] = tuple(towards)
        told["zookeeper"] = ",".join(each.listen for each in towards)
        if name.startswith("payment"):
            told["acquirer_address"] = self._lines[ACQUIRER][0].listen
        return told

    def _clock_file(self, instance: str) -> Path:
        return self._options.data / f"{instance}.clock"

    def _faked(self, instance: str) -> dict[str, str]:
        file = self._clock_file(instance)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("+0.0")
        return {
            "LD_PRELOAD": str(_FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


def _names() -> tuple[str, ...]:
    """The bank first: the others have to be told where it is."""
    return (
        ACQUIRER,
        *(f"{service}-{number}" for service, count in _REPLICAS.items() for number in range(1, count + 1)),
    )
