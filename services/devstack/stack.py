"""The stack: a ZooKeeper and the services' processes, started as one, kept alive, stopped as one.

    start():  lock ▸ keys ▸ spawn ZooKeeper ▸ databases ▸ spawn acquirer and every instance ▸ all SERVING and registered
    stop():   payment ▸ order, ledger ▸ acquirer ▸ PostgreSQL ▸ ZooKeeper ▸ unlock

    one instance:   STARTING ──▶ SERVING ──ends──▶ RESTARTING ──▶ STARTING …        exit code 2: REFUSED

Invariants
1. One supervisor to a data directory (`state.StackLock`); the lock is given up when no process is left.
2. Whatever ends `start`, an error or a cancellation, nothing of it stays behind.
3. A process that ends is started again, after a pause that grows while it never gets as far as SERVING; never
   after exit code 2, which is a refusal: `refused` then has its last line.
4. ZooKeeper, PostgreSQL and the acquirer keep their ports over restarts, so that their clients find them again.
5. A stopped (SIGSTOP) process is left alone: only ending is ending.
6. Nothing that supervises ends by what it supervises: whatever fails while a process is started, watched or described
   (a full disk, no more processes, a terminal that is gone) is told and tried again.

Which function makes each move is in `managed_process.py`.

The services need not wait for ZooKeeper and are started beside it: they tolerate its absence. On PostgreSQL they wait
until their schemas are up to date (`databases.py`); on files there is nothing to wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from coordination.errors import BadAddress
from coordination.files import write_whole
from coordination.session import EnsembleAddress
from services.devstack import state
from services.devstack.child import Child, Command
from services.devstack.components import databases, postgresql, zookeeper
from services.devstack.components.databases import POSTGRESQL, SQLITE, FileDatabases, ServerDatabases
from services.devstack.components.zookeeper import PortReservation
from services.devstack.keys import Keys
from services.devstack.managed_process import ManagedProcess
from services.devstack.pruning import prune_daily
from services.devstack.state import (
    ACQUIRER,
    INTERFACES,
    Instance,
    InstanceState,
    StackFailed,
    StackLock,
    StackRefused,
    StackState,
)
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.guards import Guards
from services.kernel.principal import Principal, Role

if TYPE_CHECKING:
    from sqlalchemy import URL

    from services.devstack.readiness import Readiness

ZOOKEEPER = "zookeeper"
#: The one process of the outside bank; there is one wherever there are payments.
ACQUIRER_INSTANCE = f"{ACQUIRER}-1"

#: A service drains for `drain_s` at most (`runtime/settings.py`), and takes up to three seconds besides.
_DRAIN_S, _SERVICE_MARGIN_S = 5.0, 4.0
_ZOOKEEPER_GRACE_S = 3.0
_POSTGRESQL_GRACE_S = 5.0
_ZOOKEEPER_POLL_S = 0.03
_MAX_REPLICAS = 16
_DESCRIBE_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What to start.

    Args:
        data: Directory of everything the stack keeps; made if missing.
        zookeeper: Address of one to use (coordination/session/address.py); empty: one of our own.
        database: What the services keep their data in; see `databases.py`.
        services: Which services.
        replicas: Instances of a service; 1 unless named.
        ports: Port of a service's first instance; its others take the ports after it. Free ones unless named.
        guards_off: Guards to switch off, for demonstrations.
        failpoints: Whether faults may be brought about from outside.
        session_timeout_s: How long a dead instance's locks and registrations last; 1 to 10 s.
        settings: Further settings of the services by name (`runtime/settings.py`), such as `lease_s`.
        settings_of: Settings of single instances by their names; they prevail over all others.
        environment_of: Further environment variables of single instances.
        start_timeout_s: How long getting ready may take.
        detachable: Whether SIGTERM to this process stops the stack in good order.

    Raises:
        InvalidArgument: SERVICE_UNKNOWN, GUARD_UNKNOWN, DATABASE_UNKNOWN, ZOOKEEPER_ADDRESS or OUT_OF_RANGE.
    """

    data: Path
    zookeeper: str = ""
    database: str = field(default=SQLITE, repr=False)
    services: tuple[str, ...] = tuple(INTERFACES)
    replicas: Mapping[str, int] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    guards_off: tuple[str, ...] = ()
    failpoints: bool = False
    session_timeout_s: float = 4.0
    settings: Mapping[str, object] = field(default_factory=dict)
    settings_of: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    environment_of: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    start_timeout_s: float = 60.0
    detachable: bool = False

    def __post_init__(self) -> None:
        for name in (*self.services, *self.replicas, *self.ports):
            if name not in INTERFACES:
                raise InvalidArgument(
                    "SERVICE_UNKNOWN", f"there is no service {name!r}; there are {', '.join(INTERFACES)}"
                )
        for name, count in self.replicas.items():
            if not 1 <= count <= _MAX_REPLICAS:
                raise InvalidArgument("OUT_OF_RANGE", f"{name} can have 1 to {_MAX_REPLICAS} instances, not {count}")
        for name, port in self.ports.items():
            if not 1 <= port <= 65_536 - self.replicas.get(name, 1):
                raise InvalidArgument("OUT_OF_RANGE", f"{port} is not a port for {name}; ports are 1 to 65535")
        Guards.without(self.guards_off)
        if self.zookeeper:
            try:
                EnsembleAddress.parse(self.zookeeper)
            except BadAddress as error:
                raise InvalidArgument("ZOOKEEPER_ADDRESS", str(error)) from error
        databases.check_choice(self.database)


class Stack:
    """A stack of this process. `async with Stack(options) as stack:` starts and stops it.

    Start it on a thread that lives as long as the stack: the kernel kills the processes when that one ends.

    Args:
        environment: Of the processes, besides their settings.
        tell: Told in a sentence when a process ends, starts again or waits.
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
        self._clock = clock or SystemClock()
        self._environment = dict(os.environ if environment is None else environment)
        self._environment.pop(
            "COUNTINGHOUSE_DATABASE", None
        )  # a superuser's password is none of the services' business
        self._tell = tell
        self._lock: StackLock | None = None
        self._keys: Keys | None = None
        self._servers: dict[str, ManagedProcess] = {}  # ZooKeeper, PostgreSQL if they are our own; the acquirer
        self._acquirer_address = ""
        self._runners: dict[str, ManagedProcess] = {}
        self._address = options.zookeeper
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: list[Callable[[], Awaitable[None]]] = []  # after the services, the last first
        self._stopping: asyncio.Task[None] | None = None
        self._ready = False
        self._described = True  # as far as it was tried
        self._retrying: asyncio.Handle = asyncio.get_running_loop().call_soon(lambda: None)
        self._failure: CountinghouseError | None = None
        self._looking: asyncio.Future[Readiness] = asyncio.get_running_loop().create_future()
        self._news = asyncio.Event()
        self._restarts = asyncio.Event()
        self._restarts.set()

    # ---- life --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts everything; returns when every instance is SERVING and registered.

        Raises:
            StackRefused: STACK_RUNNING: another supervisor has the data directory.
            ZooKeeperMissing: There is none to start.
            PostgresqlMissing: Likewise.
            StackRefused: PROCESS_REFUSED: a process will not start as things are; its own last line.
            StackRefused: DATABASE_OTHER, DATABASE_REFUSED: as `databases.py`.
            StackFailed: Not ready in time, or crashing again and again.
        """
        try:
            async with asyncio.timeout(self.options.start_timeout_s):
                await self._start()
                await self.wait_until(self._all_serving, None)
            self._ready = True
        except TimeoutError:
            late = self._late()
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
        """Stops everything; returns when no process is left. Idempotent, and not undone by a cancellation."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop())
        await asyncio.shield(self._stopping)

    def kill_all(self) -> None:
        """Ends every process at once, for who cannot wait for `stop`."""
        for runner in self._all():
            if runner.child is not None:
                runner.child.signal(signal.SIGKILL)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # ---- what it is --------------------------------------------------------------------------------------

    @property
    def zookeeper(self) -> str:
        """`host:port`."""
        return self._address

    @property
    def zookeeper_pid(self) -> int:
        """Process of the stack's own ZooKeeper; 0 if it has none."""
        return self._servers[ZOOKEEPER].pid if ZOOKEEPER in self._servers else 0

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The services' processes as they are now."""
        return tuple(runner.instance() for runner in self._runners.values())

    @property
    def acquirer(self) -> str:
        """`host:port` of the outside bank; empty: there is none."""
        return self._acquirer_address

    def instance(self, name: str) -> Instance:
        """One of them, like `payment-1`; or the acquirer's, `acquirer-1`."""
        return self._runner(name).instance()

    @property
    def refused(self) -> CountinghouseError | None:
        """Why the stack cannot go on, once it cannot."""
        return self._failure

    def token(self, name: str, role: Role, ttl_s: int = 3600) -> str:
        """A token under which `name` acts as `role`."""
        if self._keys is None:
            raise CountinghouseError("STACK_NOT_STARTED", "the stack was not started")
        return self._keys.signer.sign(Principal(name, role), ttl_s)

    # ---- what one can do to it ---------------------------------------------------------------------------

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to an instance, or to the stack's own `zookeeper` or `postgresql`."""
        self._runner(name).signal(number)

    @property
    def restarts(self) -> bool:
        """Whether a process that ends is started again. Those that ended meanwhile start when it is set."""
        return self._restarts.is_set()

    @restarts.setter
    def restarts(self, allowed: bool) -> None:
        if allowed:
            self._restarts.set()
        else:
            self._restarts.clear()

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        """Waits until `condition()`, which is asked at every change of an instance.

        Raises:
            TimeoutError: Not within `timeout_s` seconds; None waits for ever.
            StackRefused, StackFailed: The stack cannot go on.
        """
        async with asyncio.timeout(timeout_s):
            while not condition():
                if self._failure is not None:
                    raise self._failure
                await self._news.wait()

    async def wait_serving(self, *names: str, timeout_s: float = 15.0) -> None:
        """Waits until these instances (none: all) are SERVING; raises as `wait_until`."""
        outside = (ACQUIRER_INSTANCE,) if ACQUIRER_INSTANCE in self._servers else ()
        chosen = names or (*self._runners, *outside)
        await self.wait_until(
            lambda: all(self.instance(name).state is InstanceState.SERVING for name in chosen), timeout_s
        )

    async def wait_state(self, name: str, wanted: InstanceState, timeout_s: float = 15.0) -> None:
        """Waits until an instance is in a state; raises as `wait_until`."""
        await self.wait_until(lambda: self.instance(name).state is wanted, timeout_s)

    async def wait_server(self, name: str, timeout_s: float = 30.0) -> None:
        """Waits until the stack's own `zookeeper` or `postgresql` serves; raises as `wait_until`."""
        await self.wait_until(lambda: self._runner(name).state is InstanceState.SERVING, timeout_s)

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
        self.changed()
        keys = self._keys = Keys(self.data, self._clock)
        zookeeper_up = asyncio.Event()
        if self.options.zookeeper:
            zookeeper_up.set()
        else:
            await self._add_zookeeper(zookeeper_up)
            self._run(self._servers[ZOOKEEPER])
        found = await self._open_databases(keys)
        if "payment" in self.options.services:
            self._add_acquirer(keys, found.settings(ACQUIRER))
            self._run(self._servers[ACQUIRER_INSTANCE])
        for service in self.options.services:
            token = keys.service_token(service)
            for number in range(1, self.options.replicas.get(service, 1) + 1):
                self._add_instance(service, number, found.settings(service), keys.verify_file, token)
        for runner in self._runners.values():
            self._run(runner)
        self._tasks.append(asyncio.create_task(keys.keep_fresh(self.tell)))
        prunes = [self._prune_command(service, found, keys) for service in self.options.services]
        self._tasks.append(asyncio.create_task(prune_daily(prunes)))
        await asyncio.sleep(0)  # every process has been spawned: import what follows while they import theirs
        await self._look_out(zookeeper_up)

    def _run(self, runner: ManagedProcess) -> None:
        self._tasks.append(asyncio.create_task(runner.run()))

    async def _open_databases(self, keys: Keys) -> FileDatabases | ServerDatabases:
        choice = self.options.database
        databases.check_kind(self.data, choice, self.options.services)
        if choice == SQLITE or not self.options.services:
            return FileDatabases(self.data)
        if choice == POSTGRESQL:
            server, house = await self._start_postgresql(keys), databases.HOUSE
        else:
            server, house = databases.server_and_house(choice)
        owned = not Guards.without(self.options.guards_off).unique
        opened = ServerDatabases(self.data, keys, server, house, owned=owned)
        outside = (ACQUIRER,) if "payment" in self.options.services else ()
        await opened.open((*self.options.services, *outside), self._environment)
        return opened

    async def _start_postgresql(self, keys: Keys) -> URL:
        """Starts a server of our own; returns its superuser's URL once it answers."""
        from sqlalchemy import URL  # noqa: PLC0415  a stack on files does without

        directory = self.data / "postgresql"
        installation = postgresql.find(self._environment, version=postgresql.version_of(directory))
        await postgresql.make(installation, directory, keys.password(postgresql.SUPERUSER))
        reservation = self._reserved_port(directory)
        server = URL.create(
            "postgresql+asyncpg",
            username=postgresql.SUPERUSER,
            host=postgresql.HOST,
            port=reservation.port,
            database=postgresql.SUPERUSER,
            query={"passfile": str(keys.passfile(postgresql.SUPERUSER))},
        )

        async def ready(_runner: ManagedProcess, _child: Child) -> str:
            await postgresql.until_answering(server)
            return f"{server.host}:{server.port}"

        async def close() -> None:
            await runner.stop()
            reservation.close()

        command = postgresql.command(installation, directory, reservation.port, self._environment)
        runner = self._servers[POSTGRESQL] = ManagedProcess(
            self,
            POSTGRESQL,
            service=POSTGRESQL,
            interface="",
            command=command,
            ready=ready,
            grace_s=_POSTGRESQL_GRACE_S,
        )
        self._closing.append(close)
        self._run(runner)
        await self.wait_until(lambda: runner.state is InstanceState.SERVING, None)
        return server

    def _reserved_port(self, directory: Path) -> PortReservation:
        """The port that the server of `directory` had before, or a free one."""
        remembered = directory / "port"
        reservation = PortReservation(_number_in(remembered))
        write_whole(remembered, str(reservation.port).encode(), mode=0o600)
        return reservation

    async def _add_zookeeper(self, up: asyncio.Event) -> None:
        installation = zookeeper.find(self._environment)
        directory = self.data / "zookeeper"
        directory.mkdir(mode=0o700, exist_ok=True)
        reservation = self._reserved_port(directory)
        self._address = f"{zookeeper.HOST}:{reservation.port}"
        if isinstance(installation, zookeeper.DockerInstallation):
            reservation.close()  # Docker's own proxy may not share it
            await zookeeper.remove_container(installation, directory)

        async def ready(_runner: ManagedProcess, _child: Child) -> str:
            while not await zookeeper.serves(self._address):  # noqa: ASYNC110  another process
                await asyncio.sleep(_ZOOKEEPER_POLL_S)
            up.set()
            return self._address

        async def close() -> None:
            if ZOOKEEPER in self._servers:
                await self._servers[ZOOKEEPER].stop()
            reservation.close()
            await zookeeper.remove_container(installation, directory)

        command = zookeeper.command(installation, directory, reservation.port, self._environment)
        self._servers[ZOOKEEPER] = ManagedProcess(
            self,
            ZOOKEEPER,
            service=ZOOKEEPER,
            interface="",
            command=command,
            ready=ready,
            grace_s=_ZOOKEEPER_GRACE_S,
        )
        self._closing.append(close)

    def _add_acquirer(self, keys: Keys, database: Mapping[str, object]) -> None:
        directory = self.data / ACQUIRER
        directory.mkdir(mode=0o700, exist_ok=True)
        reservation = self._reserved_port(directory)
        self._acquirer_address = f"{zookeeper.HOST}:{reservation.port}"

        async def ready(_runner: ManagedProcess, _child: Child) -> str:
            from services.devstack.readiness import until_serving  # noqa: PLC0415  as in `_look_out`

            await until_serving(self._acquirer_address)
            return self._acquirer_address

        async def close() -> None:
            await runner.stop()
            reservation.close()

        own = {**database, "listen_port": reservation.port}
        command = self._command(ACQUIRER_INSTANCE, ACQUIRER, own, keys.verify_file, keys.service_token(ACQUIRER))
        runner = self._servers[ACQUIRER_INSTANCE] = self._program(ACQUIRER_INSTANCE, ACQUIRER, "", command, ready)
        self._closing.append(close)

    def _add_instance(
        self, service: str, number: int, database: Mapping[str, object], verify_key: Path, token: Path
    ) -> None:
        name = f"{service}-{number}"
        first = self.options.ports.get(service, 0)
        own = {
            **database,
            "listen_port": first + number - 1 if first else 0,
            "zookeeper": self._address,
            "session_timeout_s": self.options.session_timeout_s,
            "discovery_cache": self.data / "cache" / name,
            "guards_off": ",".join(self.options.guards_off),
            "acquirer_address": self._acquirer_address,
        }
        command = self._command(name, service, own, verify_key, token)
        self._runners[name] = self._program(name, service, INTERFACES[service], command, self._serving_address)

    def _command(self, name: str, service: str, own: Mapping[str, object], verify_key: Path, token: Path) -> Command:
        """How a program of ours is run: with the settings of all, and its own."""
        settings = {
            **self.options.settings,
            **own,
            "instance": name,
            "verify_key_file": verify_key,
            "token_file": token,
            "failpoints": self.options.failpoints,
            **self.options.settings_of.get(name, {}),
        }
        environment = {
            **self._environment,
            "MALLOC_ARENA_MAX": "2",
            "GRPC_VERBOSITY": "NONE",
            **{f"COUNTINGHOUSE_{key.upper()}": str(value) for key, value in settings.items()},
            **self.options.environment_of.get(name, {}),
        }
        arguments = (sys.executable, "-P", "-m", f"services.{service}.main")
        return Command(arguments, environment, self.data / "logs" / f"{name}.log")

    def _prune_command(self, service: str, found: FileDatabases | ServerDatabases, keys: Keys) -> Command:
        own, token = found.owner_settings(service), keys.service_token(service)
        command = self._command(f"{service}-prune", service, own, keys.verify_file, token)
        return replace(command, arguments=(*command.arguments, "prune"))

    def _program(
        self,
        name: str,
        service: str,
        interface: str,
        command: Command,
        ready: Callable[[ManagedProcess, Child], Awaitable[str]],
    ) -> ManagedProcess:
        grace_s = float(str(self.options.settings.get("drain_s", _DRAIN_S))) + _SERVICE_MARGIN_S
        return ManagedProcess(
            self, name, service=service, interface=interface, command=command, ready=ready, grace_s=grace_s
        )

    async def _look_out(self, zookeeper_up: asyncio.Event) -> None:
        """Begins to look for the instances, once there is a ZooKeeper to look in."""
        from services.devstack.readiness import Readiness  # noqa: PLC0415  gRPC and kazoo: 0.2 s the children can use

        readiness = Readiness(self._address, self.options.session_timeout_s)
        self._closing.append(readiness.close)

        async def begin() -> None:
            await zookeeper_up.wait()
            await readiness.start()
            self._looking.set_result(readiness)

        self._tasks.append(asyncio.create_task(begin()))

    async def _serving_address(self, runner: ManagedProcess, child: Child) -> str:
        readiness = await asyncio.shield(self._looking)
        return await readiness.wait_serving(runner.interface, child.pid)

    async def _stop(self) -> None:
        try:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            # A payment being finished still needs the others; what has never served has none to finish.
            groups = ({"payment"}, set(INTERFACES) - {"payment"}) if self._ready else (set(INTERFACES),)
            for group in groups:
                await asyncio.gather(*(runner.stop() for runner in self._runners.values() if runner.service in group))
            for close in reversed(self._closing):
                await close()
        finally:
            self.kill_all()
            if self._lock is not None:
                state.forget(self.data)
                self._lock.give_up()

    def _all(self) -> list[ManagedProcess]:
        return [*self._servers.values(), *self._runners.values()]

    def _runner(self, name: str) -> ManagedProcess:
        if name in self._servers:
            return self._servers[name]
        if name not in self._runners:
            raise InvalidArgument(
                "INSTANCE_UNKNOWN", f"there is no instance {name!r}; there are {', '.join(self._runners)}"
            )
        return self._runners[name]

    def _all_serving(self) -> bool:
        return all(runner.state is InstanceState.SERVING for runner in self._all())

    def _late(self) -> str:
        if self.options.services and not self._runners:
            return f"its databases are not open yet, see {self.data / 'logs'}"
        if not (self._looking.done() and self._looking.result().connected):
            return f"ZooKeeper at {self._address} does not answer; see whether it runs there"
        late = [runner for runner in self._all() if runner.state is not InstanceState.SERVING]
        return "; ".join(f"{runner.name} is {runner.state}, see {runner.command.log}" for runner in late)

    def changed(self) -> None:
        """An instance has changed."""
        self._describe()
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _describe(self) -> None:
        """Writes stack.json; if that fails, again and again until it is written."""
        if self._lock is None or self._stopping is not None:
            return
        described = StackState(
            supervisor=os.getpid(),
            detachable=self.options.detachable,
            zookeeper=self._address,
            zookeeper_pid=self.zookeeper_pid,
            acquirer=self._acquirer_address,
            instances=self.instances,
            failpoints=self.options.failpoints,
            guards_off=self.options.guards_off,
        )
        try:
            described.write(self.data)
        except OSError as error:
            if self._described:
                self.tell(f"{self.data / 'stack.json'} cannot be written ({error.strerror}); trying again")
            self._described = False
            self._retrying.cancel()
            self._retrying = asyncio.get_running_loop().call_later(_DESCRIBE_AGAIN_S, self._describe)
        else:
            self._described = True

    def tell(self, sentence: str) -> None:
        """Tells whoever watches; nothing is said if they cannot hear."""
        with contextlib.suppress(Exception):
            self._tell(sentence)

    def fail(self, error: CountinghouseError) -> None:
        """The stack cannot go on."""
        self._failure = self._failure or error

    @property
    def ready(self) -> bool:
        """Whether every instance has been SERVING once."""
        return self._ready

    async def restarts_allowed(self) -> None:
        """Waits until `restarts`."""
        await self._restarts.wait()


def _number_in(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0
