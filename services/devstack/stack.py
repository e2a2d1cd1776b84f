"""The stack: ZooKeeper, databases, acquirer and services, started together, kept running, stopped together.

    start():  lock ▸ keys ▸ ZooKeeper ▸ databases ▸ acquirer ▸ services ▸ all SERVING and registered
    stop():   the same components in the opposite order ▸ unlock

    one process:   STARTING ──▶ SERVING ──ends──▶ RESTARTING ──▶ STARTING …        exit code 2: REFUSED

Invariants
1. One supervisor to a data directory (`state.StackLock`); the lock is given up when no process is left.
2. Whatever ends `start`, an error or a cancellation, nothing of it stays behind.
3. A process that ends is started again, after a pause that grows while it never gets as far as SERVING; never
   after exit code 2, which is a refusal: `wait_until` then raises its last line.
4. ZooKeeper, PostgreSQL and the acquirer keep their ports over restarts, so that their clients find them again.
5. A stopped (SIGSTOP) process is left alone: only ending is ending.
6. Nothing that supervises ends by what it supervises (`supervision.py`).

Which function makes each move is in `managed_process.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from services.devstack import dialers, state
from services.devstack.components import databases
from services.devstack.components.acquirer import ACQUIRER_INSTANCE, Acquirer
from services.devstack.components.component import Component, Context
from services.devstack.components.databases import Databases, FileDatabases, ServerDatabases
from services.devstack.components.gateway import Gateway
from services.devstack.components.postgresql import PostgreSQL
from services.devstack.components.services import Services
from services.devstack.components.zookeeper import ZooKeeper
from services.devstack.keys import ZOOKEEPER, Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.options import POSTGRESQL, SQLITE, StackOptions
from services.devstack.restore_marker import refuse_unfinished
from services.devstack.state import (
    ACQUIRER,
    INTERFACES,
    Instance,
    InstanceState,
    StackFailed,
    StackLock,
    StackRefused,
    StackState,
    StateWriter,
)
from services.devstack.supervision import Supervision
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.principal import Principal, Role

if TYPE_CHECKING:
    from sqlalchemy import URL

    from coordination.session.security import Security
    from services.runtime.grpc.tls import Dialer

__all__ = ["ACQUIRER_INSTANCE", "ZOOKEEPER", "Stack", "StackOptions"]


class Stack:
    """A stack of this process. `async with Stack(options) as stack:` starts and stops it.

    Start it on a thread that lives as long as the stack: the kernel kills the processes when that one ends.

    Args:
        environment: Of the processes, besides their settings.
        tell: Called with a sentence when a process ends, starts again or waits.

    Attributes:
        dialer: Returns what connects to its services, or with `outside=True` to its acquirer.
        zookeeper_security: Returns how a session of the operator comes to its ZooKeeper.
        server: The URL of the superuser of the stack's own PostgreSQL, once that was started; None: it has none.
    """

    def __init__(
        self,
        options: StackOptions,
        *,
        clock: Clock | None = None,
        environment: Mapping[str, str] | None = None,
        tell: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.options = options
        self.data = options.data.absolute()
        self.dialer: Callable[..., Dialer] = partial(dialers.of_stack, self.data, plaintext=options.plaintext)
        self.zookeeper_security: Callable[[], Security] = partial(
            dialers.zookeeper_of_stack, self.data, plaintext=options.plaintext or options.zookeeper_plaintext
        )
        self.server: URL | None = None
        self._clock = clock or SystemClock()
        self._environment = dict(os.environ if environment is None else environment)
        self._environment.pop("COUNTINGHOUSE_DATABASE", None)  # a superuser's password is not for the services
        self._supervision = Supervision(tell, self._write_state)
        self._writer = StateWriter(self.data, self.describe, self._supervision.tell)
        self._components: list[Component] = []
        self._lock: StackLock | None = None
        self._keys: Keys | None = None
        self._stopping: asyncio.Task[None] | None = None

    # ---- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start everything; return when every instance is SERVING and registered.

        Raises:
            StackRefused: STACK_RUNNING: another supervisor has the data directory.
            ZooKeeperMissing: There is none to start.
            PostgresqlMissing: Likewise.
            StackRefused: PROCESS_REFUSED: a process refuses to start; its own last line.
            StackRefused: DATABASE_OTHER, DATABASE_REFUSED: as `components/databases.py`. RESTORE_UNFINISHED.
            StackFailed: Not ready in time, or crashing again and again.
        """
        try:
            async with asyncio.timeout(self.options.start_timeout_s):
                await self._start()
                await self.wait_until(
                    lambda: all(component.state is InstanceState.SERVING for component in self._components), None
                )
            self._supervision.ready = True
        except TimeoutError:
            late = "; ".join(filter(None, (component.explain() for component in self._components)))
            await self.stop()
            raise StackFailed(
                "STACK_NOT_READY", f"not ready within {self.options.start_timeout_s:g} s: {late}"
            ) from None
        except OSError as error:
            await self.stop()
            raise StackRefused(
                "DATA_UNUSABLE", f"{error.filename or self.data} cannot be used: {error.strerror}; name another --data"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop everything; return when no process is left. Idempotent, and not undone by a cancellation."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def kill_all(self) -> None:
        """End every process at once, for a caller that cannot wait for `stop`."""
        for process in self._processes():
            if process.child is not None:
                process.child.signal(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ---- what it is --------------------------------------------------------------------------------------

    def describe(self) -> StackState:
        """Return the stack as it is now."""
        fields: dict[str, Any] = {"zookeeper": self.options.zookeeper, "zookeeper_pid": 0, "instances": ()}
        for component in self._components:
            fields |= component.describe()
        return StackState(
            supervisor=os.getpid(),
            detachable=self.options.detachable,
            failpoints=self.options.failpoints,
            plaintext=self.options.plaintext,
            zookeeper_plaintext=self.options.zookeeper_plaintext,
            guards_off=self.options.guards_off,
            **fields,
        )

    @property
    def zookeeper(self) -> str:
        """`host:port`."""
        return self.describe().zookeeper

    @property
    def zookeeper_pid(self) -> int:
        """Process of the stack's own ZooKeeper; 0 if it has none."""
        return self.describe().zookeeper_pid

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The services' processes as they are now."""
        return self.describe().instances

    @property
    def acquirer(self) -> str:
        """`host:port` of the acquirer; empty: there is none."""
        return self.describe().acquirer

    def instance(self, name: str) -> Instance:
        """Return one of them, like `payment-1`; or the acquirer's, `acquirer-1`."""
        return self._process(name).instance()

    def token(self, name: str, role: Role, ttl_s: int | None = None, *, outside: bool = False) -> str:
        """Return a token under which `name` acts as `role`: in the services, or outside at the acquirer.

        Args:
            ttl_s: None: an hour, or as long as the role allows.
        """
        if self._keys is None:
            raise CountinghouseError("STACK_NOT_STARTED", "the stack was not started")
        return self._keys.sign(Principal(name, role), ttl_s, outside=outside)

    # ---- what one can do to it ---------------------------------------------------------------------------

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to an instance, or to the stack's own `zookeeper` or `postgresql`."""
        self._process(name).signal(number)

    @property
    def restarts(self) -> bool:
        """Whether a process that ends is started again. Those that ended meanwhile start when it is set."""
        return self._supervision.restarts.is_set()

    @restarts.setter
    def restarts(self, allowed: bool) -> None:
        if allowed:
            self._supervision.restarts.set()
        else:
            self._supervision.restarts.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        """Wait until `condition()`, which is checked at every change of an instance.

        Raises:
            TimeoutError: Not within `timeout_s` seconds; None waits for ever.
            StackRefused, StackFailed: The stack cannot go on.
        """
        await self._supervision.wait_until(condition, timeout_s)

    async def wait_serving(self, *names: str, timeout_s: float = 60.0) -> None:
        """Wait until these instances (none: all, and the acquirer's) are SERVING; raises as `wait_until`."""
        ours = (ACQUIRER, *INTERFACES)
        chosen = names or tuple(process.name for process in self._processes() if process.service in ours)
        await self.wait_until(
            lambda: all(self.instance(name).state is InstanceState.SERVING for name in chosen), timeout_s
        )

    async def wait_state(self, name: str, wanted: InstanceState, timeout_s: float = 60.0) -> None:
        """Wait until an instance is in a state; raises as `wait_until`."""
        await self.wait_until(lambda: self.instance(name).state is wanted, timeout_s)

    async def wait_server(self, name: str, timeout_s: float = 60.0) -> None:
        """Wait until the stack's own `zookeeper` or `postgresql` serves; raises as `wait_until`."""
        await self.wait_state(name, InstanceState.SERVING, timeout_s)

    # ---- inside ------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if "?" in str(self.data) or "#" in str(self.data):
            raise InvalidArgument(
                "DATA_UNUSABLE", f"a database URL cannot name {self.data}; choose a directory without ? and #"
            )
        for folder in (self.data, self.data / "logs", self.data / "cache"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = StackLock(self.data)
        lock.take()
        self._lock = lock
        self._write_state()
        if self.options.services:
            refuse_unfinished(self.data)
        databases.check_kind(self.data, self.options.database, self.options.services)
        keys = self._keys = Keys(self.data, self._clock)
        self._components = _components(Context(self.options, self.data, self._environment, keys, self._supervision))
        for component in self._components:
            await component.start()
            if isinstance(component, PostgreSQL):
                self.server = component.url
        self._supervision.run(keys.keep_fresh(self._supervision.tell))

    async def _stop(self) -> None:
        try:
            await self._supervision.close()
            for component in reversed(self._components):
                await component.stop()
        finally:
            self.kill_all()
            self._writer.close()
            if self._lock is not None:
                state.forget(self.data)
                self._lock.give_up()

    def _write_state(self) -> None:
        if self._lock is not None and self._stopping is None:
            self._writer.write()

    def _processes(self) -> Iterator[ManagedProcess]:
        return (process for component in self._components for process in component.processes)

    def _process(self, name: str) -> ManagedProcess:
        known = {process.name: process for process in self._processes()}
        if name not in known:
            raise InvalidArgument("INSTANCE_UNKNOWN", f"there is no instance {name!r}; there are {', '.join(known)}")
        return known[name]


def _components(context: Context) -> list[Component]:
    """Return the components of a stack in the order in which they are started."""
    services = context.options.services
    zookeeper = ZooKeeper(context)
    if not services:
        return [zookeeper, *([PostgreSQL(context)] if context.options.database == POSTGRESQL else [])]
    takes_cards = "payment" in services
    server, found = _databases(context, (*services, ACQUIRER) if takes_cards else services)
    acquirer = Acquirer(context, found) if takes_cards else None
    gateway = Gateway(context) if context.options.gateway else None
    every = (zookeeper, server, found, acquirer, Services(context, zookeeper, found, acquirer), gateway)
    return [component for component in every if component is not None]


def _databases(context: Context, services: tuple[str, ...]) -> tuple[PostgreSQL | None, Databases]:
    """Return the databases, and the server that they are on if it is the stack's own."""
    choice = context.options.database
    if choice == SQLITE:
        return None, FileDatabases(context)
    if choice == POSTGRESQL:
        server = PostgreSQL(context)
        return server, ServerDatabases(context, server, databases.HOUSE, services)
    return None, ServerDatabases(context, *databases.server_and_house(choice), services)
