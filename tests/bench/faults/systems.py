"""The systems that are brought into the faults: ours and the peers with cards, two instances each, on one acquirer.

Each is called by `PaymentService/Settle`. The instance that is killed, frozen and started again is the one that
charges: the one that was called, or with Restate and Temporal the one to which their server gave the step.
"""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from services.devstack.ports import HOST
from services.kernel.principal import Role
from services.runtime.grpc.tls import Dialer
from services.testkit.harness import ONE, TWO, Harness
from tests.bench.peers.charging import CHARGING, TOKEN
from tests.bench.settles.peers import Kind, Server, insert
from tests.bench.settles.results import DBOS, PEER, REDIS_LOCK, RESTATE, TEMPORAL
from tests.bench.settles.servers import servers

OURS: Final = "ours"
#: Of the instances of DBOS.
_EXECUTORS: Final = ("first", "second")
_START_TIMEOUT_S = 20.0
_RESTART_S = 0.3
_NUMBERS = itertools.count(1)
SYSTEMS: Final = (OURS, PEER, REDIS_LOCK, DBOS, RESTATE, TEMPORAL)


class System(Protocol):
    """One of the systems.

    Attributes:
        reverses: Whether it can undo a payment.
        dialer: What connects to its instances.
    """

    name: str
    reverses: bool
    dialer: Dialer

    def address(self, instance: int) -> str:
        """Return where an instance, 0 or 1, listens."""
        ...

    def token(self, clerk: str) -> str:
        """Return the token of a clerk; empty: it takes none."""
        ...

    async def new_order(self) -> str:
        """Return the id of a new order."""
        ...

    async def state(self, order_id: str) -> str:
        """Return where the order stands; PAID if it is settled."""
        ...

    async def kill(self) -> None:
        """Kill the instance that charges; it is started again at once."""
        ...

    def freeze(self) -> None:
        """Stop the instance that charges where it is."""
        ...

    def thaw(self) -> None:
        """Let it go on."""
        ...

    async def reverse(self, payment_id: str) -> str:
        """Undo a payment; return what was answered."""
        ...


class Ours:
    """Our services, with two payment services."""

    name = OURS
    reverses = True

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self.dialer = harness.stack.dialer()

    def address(self, instance: int) -> str:
        """See `System.address`."""
        return self._harness.address((ONE, TWO)[instance])

    def token(self, clerk: str) -> str:
        """See `System.token`."""
        return self._harness.stack.token(clerk, Role.CASHIER)

    async def new_order(self) -> str:
        """See `System.new_order`."""
        return await self._harness.cashier.new_order()

    async def state(self, order_id: str) -> str:
        """See `System.state`."""
        return await self._harness.cashier.order_state(order_id)

    async def kill(self) -> None:
        """See `System.kill`."""
        pid = self._harness.pid(ONE)
        self._harness.stack.kill(ONE, signal.SIGKILL)
        await self._harness.wait_died(ONE, pid)
        await self._harness.stack.wait_serving(ONE)

    def freeze(self) -> None:
        """See `System.freeze`."""
        self._harness.stack.kill(ONE, signal.SIGSTOP)

    def thaw(self) -> None:
        """See `System.thaw`."""
        self._harness.thaw(ONE)

    async def reverse(self, payment_id: str) -> str:
        """See `System.reverse`."""
        return (await self._harness.accountant.reverse(payment_id)).answer.state


class Peer:
    """A peer's two instances."""

    reverses = False
    dialer = Dialer(None)

    def __init__(self, kind: Kind, connection: Any, commands: Sequence[Sequence[str]], environment: dict[str, str]):
        self.name = kind.name
        self._connection = connection
        self._commands = commands
        self._environment = environment
        self._processes: list[asyncio.subprocess.Process] = []
        self._ports: list[int] = []
        self._frozen = 0

    async def start(self) -> None:
        """Start both instances."""
        for command in self._commands:
            process, port = await self._spawn(command)
            self._processes.append(process)
            self._ports.append(port)

    async def stop(self) -> None:
        """Kill both."""
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def address(self, instance: int) -> str:
        """See `System.address`."""
        return f"{HOST}:{self._ports[instance]}"

    def token(self, _clerk: str) -> str:
        """See `System.token`."""
        return ""

    async def new_order(self) -> str:
        """See `System.new_order`."""
        order_id = f"order-{next(_NUMBERS)}"
        await insert(self._connection, [order_id])
        return order_id

    async def state(self, order_id: str) -> str:
        """See `System.state`."""
        return str(await self._connection.fetchval("SELECT state FROM orders WHERE order_id = $1", order_id))

    async def kill(self) -> None:
        """See `System.kill`."""
        place = self._charging()
        self._processes[place].kill()
        await self._processes[place].wait()
        await asyncio.sleep(_RESTART_S)
        self._processes[place], self._ports[place] = await self._spawn(self._commands[place])

    def freeze(self) -> None:
        """See `System.freeze`."""
        self._frozen = self._charging()
        self._processes[self._frozen].send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """See `System.thaw`."""
        self._processes[self._frozen].send_signal(signal.SIGCONT)

    async def reverse(self, _payment_id: str) -> str:
        """See `System.reverse`."""
        raise NotImplementedError(f"{self.name} has no reversal")

    def _charging(self) -> int:
        """Return which instance asked the acquirer last."""
        pid = int(Path(self._environment[CHARGING]).read_text())
        return [process.pid for process in self._processes].index(pid)

    async def _spawn(self, command: Sequence[str]) -> tuple[asyncio.subprocess.Process, int]:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=self._environment
        )
        if process.stdout is None:
            raise RuntimeError("its output cannot be used")
        try:
            return process, int(await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S))
        except BaseException:
            process.kill()
            await process.wait()
            raise


@asynccontextmanager
async def ours(harness: Harness) -> AsyncIterator[System]:
    """Return our services."""
    yield Ours(harness)


@asynccontextmanager
async def running(kind: Kind, server: Server, harness: Harness) -> AsyncIterator[System]:
    """Run two instances of a peer on a database of its own, and on the acquirer of our stack."""
    database = f"faults_{kind.folder}"
    await server.create(database)
    connection = await server.connect(database)
    environment = {
        **server.environment,
        TOKEN: harness.stack.token("merchant", Role.ACCOUNTANT, outside=True),
        CHARGING: str(harness.stack.data / f"charging-{kind.folder}"),
        "GRPC_VERBOSITY": "NONE",
    }
    try:
        await connection.execute(kind.schema)
        async with servers(kind.programs) as arguments:
            module = f"tests.bench.peers.{kind.folder}.cards"
            common = (sys.executable, "-m", module, server.url(database), harness.stack.acquirer, *arguments)
            own = [(name,) if kind.name == DBOS else () for name in _EXECUTORS]
            peer = Peer(kind, connection, [(*common, *each) for each in own], environment)
            try:
                await peer.start()
                yield peer
            finally:
                await peer.stop()
    finally:
        await connection.close()
