"""A running stack with its clients, its failpoints and its databases: all that a demonstration, a scenario or a test
needs to make an order, settle it, inject a fault, and read the books.

    async with Stack(options) as stack, Harness(stack, clock) as harness:
        order_id = await harness.new_order()
        await harness.failpoints.arm("payment-1", "posted", KILL, order_id)
        await harness.cashier.settle(order_id, at="payment-1")
        books = await harness.snapshot()
"""

from __future__ import annotations

import random  # noqa: TID251  seeded, so that a run can be repeated
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Final, Generic, Self, TypeAlias, TypeVar

import psutil

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from services.checker.history import HistoryWriter
from services.checker.snapshot import ACQUIRER, SERVICES, Reading, Snapshot, read_snapshot, settled_snapshot
from services.devstack.files import database_url
from services.devstack.stack import Stack
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Role
from services.testkit.attached_stack import AttachedStack
from services.testkit.client import CURRENCY, Connections, RecordingClient, money
from services.testkit.failpoints import FailpointClient
from services.testkit.fair_clock import FairClock
from services.testkit.identities import CUSTOMER, Identity
from services.testkit.waiting import wait_until

#: The instance the cashier uses, and the instance the accountant uses: two clerks meet at two machines.
ONE: Final = "payment-1"
TWO: Final = "payment-2"

_StackT_co = TypeVar("_StackT_co", bound=Stack | AttachedStack, covariant=True)


class StackHarness(Generic[_StackT_co]):
    """A running stack and its clients. Leaving it closes the clients and lets frozen instances go on.

    Args:
        history: Where calls about orders and payments are recorded; None: nowhere.
        seed: The same seed gives the same ids and amounts; None: they are random.
        discovers: Whether a call to no certain instance goes to whichever discovery picks, and not to the first.
        accountant: Name of the accountant.
        tell: Called with a sentence for each step of what is done with the harness.
    """

    def __init__(
        self,
        stack: _StackT_co,
        clock: Clock | None = None,
        *,
        history: HistoryWriter | None = None,
        seed: int | None = None,
        discovers: bool = False,
        accountant: str = "wang",
        tell: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        self.stack = stack
        self.tell = tell
        self.clock = clock or SystemClock()
        self.rng = random.Random(seed or 0)  # noqa: S311
        self.connections = Connections(
            self.address,
            self.clock,
            history=history,
            dialer=stack.dialer,
            security=stack.zookeeper_security,
            zookeeper=stack.zookeeper if discovers else "",
            rng=None if seed is None else random.Random(f"{seed}/calls"),  # noqa: S311
        )
        self.cashier = self.client("li", Role.CASHIER)
        self.accountant = self.client(accountant, Role.ACCOUNTANT)
        self.customer = self.client(CUSTOMER, Role.CUSTOMER)
        self.operator = self.client("ops", Role.OPERATOR)
        self.failpoints = FailpointClient(self.operator, tell)
        #: The orders that `new_order` has made.
        self.orders: list[str] = []

    async def __aenter__(self) -> Self:
        await self.connections.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw_all()
        await self.connections.__aexit__(kind, error, trace)

    def client(self, name: str, role: Role, process: str = "") -> RecordingClient:
        """Return a client that calls as `name` in this role."""
        identity = Identity(name, role, self.stack.token(name, role), self.stack.token(name, role, outside=True))
        return RecordingClient(self.connections, identity, process)

    def new_id(self, what: str = "req") -> str:
        """Return an id that was never used."""
        return self.connections.new_id(what)

    async def new_order(self, minor_units: int | None = None) -> str:
        """Make an order of the customer, under an id of ours; return the id."""
        order_id = self.new_id("order")
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}",
            order_id=order_id,
            customer_id=self.customer.name,
            amount=money(minor_units or self.rng.randrange(100, 100_000)),
        )
        await self.cashier.ask_until_ok(request)
        self.orders.append(order_id)
        self.tell(f"{self.cashier.name} makes order {order_id} of {self.customer.name}")
        return order_id

    async def open_wallet(self, name: str) -> str:
        """Open a wallet; return its account id."""
        account_id = f"wallet:{name}:{CURRENCY}"
        request = ledger_pb2.OpenAccountRequest(
            request_id=f"open-{name}",
            account_id=account_id,
            kind=ledger_pb2.ACCOUNT_KIND_LIABILITY,
            currency_code=CURRENCY,
        )
        await self.operator.ask_until_ok(request)
        return account_id

    async def set_acquirer_faults(self, *faults: acquirer_pb2.Fault) -> None:
        """Have the acquirer do these faults and no others."""
        await self.operator.ask_until_ok(acquirer_pb2.SetFaultsRequest(faults=faults))

    # ---- processes -------------------------------------------------------------------------------------

    @property
    def second(self) -> str:
        """Return the payment instance of the second clerk: the only one, where there is no other."""
        return TWO if any(instance.name == TWO for instance in self.stack.instances) else ONE

    def address(self, instance: str) -> str:
        """Return where an instance listens."""
        return self.stack.instance(instance).address

    def pid(self, instance: str) -> int:
        """Return the process id of an instance; 0 while there is no process."""
        return self.stack.instance(instance).pid

    def is_frozen(self, instance: str) -> bool:
        """Return whether an instance is stopped (SIGSTOP)."""
        with suppress(psutil.NoSuchProcess, ValueError):
            return psutil.Process(self.pid(instance)).status() == psutil.STATUS_STOPPED
        return False

    def thaw(self, instance: str) -> None:
        """Let a frozen instance go on."""
        self.stack.kill(instance, signal.SIGCONT)

    def thaw_all(self) -> None:
        """Let all frozen instances go on."""
        with suppress(CountinghouseError):  # there is no stack any more
            for instance in self.stack.instances:
                if instance.pid:
                    with suppress(CountinghouseError, ProcessLookupError):
                        self.thaw(instance.name)

    async def wait_frozen(self, *instances: str) -> str:
        """Wait until one of these has stopped itself; return which. Raises NotBroughtAbout."""

        async def frozen() -> bool:
            return any(map(self.is_frozen, instances))

        await wait_until(frozen, f"{' and '.join(instances)} did not freeze")
        return next(filter(self.is_frozen, instances))

    async def wait_died(self, instance: str, pid: int) -> None:
        """Wait until the process `pid` of an instance is gone. Raises NotBroughtAbout."""

        async def died() -> bool:
            return self.pid(instance) != pid

        await wait_until(died, f"{instance} did not die")

    # ---- databases -------------------------------------------------------------------------------------

    @property
    def databases(self) -> dict[str, str]:
        """Return the SQLAlchemy URLs by service."""
        return {service: database_url(self.stack.data, service) for service in (*SERVICES, ACQUIRER)}

    async def snapshot(self) -> Snapshot:
        """Return what the databases hold now."""
        return await read_snapshot(self.databases)

    async def settled_snapshot(self, within_s: float) -> Reading:
        """Return the books once nothing is under way, or at the latest after `within_s` fair seconds."""
        return await settled_snapshot(self.databases, within_s, FairClock(self.clock))


#: Of a stack that this process has started.
Harness: TypeAlias = StackHarness[Stack]
#: Of a stack that any process has started.
AnyHarness: TypeAlias = StackHarness[Stack | AttachedStack]


@asynccontextmanager
async def open_client(
    stack: Stack, name: str, role: Role, *, token: str | None = None
) -> AsyncIterator[RecordingClient]:
    """Return a client of a running stack; with a token that is not its own, if one is given."""
    async with Harness(stack) as harness:
        client = harness.client(name, role)
        yield client if token is None else RecordingClient(harness.connections, Identity(name, role, token, token))
