"""A payment system in memory: any number of payment processes over one store, one order service, one ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from prometheus_client import CollectorRegistry

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import ChargeState
from services.kernel.clock import CallDeadline
from services.kernel.errors import CountinghouseError, may_come_right
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, RequestKey, RequestRow, RequestState, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind, Journal, house_accounts
from services.order.model import Order, OrderState, cancel
from services.payment.metrics import RecoveryMetrics
from services.payment.model import REVERSE, SETTLE, UNANSWERED, Payment, PaymentState, Source
from services.payment.operations import ParkCommand, PayCommand, PaymentOperations, ReverseCommand, SettleCommand
from services.payment.ports import Limits
from services.payment.servicer import PaymentResponses
from services.runtime.grpc.context import Call
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.ledger_store import FakeLedgerStore
from tests.fakes.order_store import FakeOrderStore
from tests.fakes.payment_acquirer import FakeAcquirer
from tests.fakes.payment_ports import FakeFailpoints, FakeLedger, FakeLockService, FakeOrders, Process
from tests.fakes.payment_store import FakePaymentStore, FakeRequestRecords

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
MEI = Principal("mei", Role.CUSTOMER)
AMOUNT = 300
WALLET, MERCHANT, DRAWER = "wallet:mei:CNY", "wallet:merchant:CNY", "drawer:CNY"
OWED_FOR_CARDS = "acquirer:CNY"
CARD = "tok-mei"
LEASE_S = 5.0
LEASE_MS = int(LEASE_S * 1000)
MAX_ASKS = 4
TICKET_QUOTA = 3
LIMITS = Limits(lock_wait_s=5, lease_s=LEASE_S, acquirer_asks=MAX_ASKS, ticket_quota=TICKET_QUOTA)


@dataclass
class Instance:
    """One payment process."""

    name: str
    operations: PaymentOperations
    process: Process
    failpoints: FakeFailpoints
    counted: CollectorRegistry


class InMemoryCluster:
    """Everything there is.

    Args:
        guards: Of the payment service; the others have theirs on.
        peer_guards: Of the order service and the ledger.
    """

    def __init__(self, guards: Guards | None = None, peer_guards: Guards | None = None) -> None:
        self.guards = guards or Guards()
        self.clock = ManualClock()
        self.ids = SeededIds(1)
        self.store = FakePaymentStore(self.guards)
        self.requests = FakeRequestRecords(self.store)
        self.orders = FakeOrderStore(peer_guards)
        self.ledger = FakeLedgerStore(peer_guards or Guards())
        self.acquirer = FakeAcquirer(self.clock)
        self.locks = FakeLockService()
        self.ledger.open = {account.account_id: account for account in house_accounts(["CNY"], 0)}
        for name in (WALLET, MERCHANT):
            self.ledger.open[name] = Account(name, AccountKind.LIABILITY, "CNY", balance=1000)
        self._instances = 0

    def instance(self, *, dies_at: int | None = None, after: bool = False) -> Instance:
        """Starts another payment process; see `Process`."""
        self._instances += 1
        name = f"payment-{self._instances}"
        process = Process(dies_at=dies_at, after=after)
        failpoints = FakeFailpoints()
        operations = PaymentOperations(
            store=process.wired(self.store),
            requests=process.wired(self.requests),
            orders=process.wired(FakeOrders(self.orders, self.clock)),
            ledger=process.wired(FakeLedger(self.ledger, self.clock, SeededIds(1_000 + self._instances))),
            acquirer=process.wired(self.acquirer),
            locks=process.locks(self.locks.of(name)),
            responses=PaymentResponses(),
            failpoints=failpoints,
            clock=self.clock,
            ids=self.ids,
            guards=self.guards,
            limits=LIMITS,
            instance=name,
            metrics=RecoveryMetrics(counted := CollectorRegistry()),
        )
        return Instance(name, operations, process, failpoints, counted)

    def call(self, principal: Principal, seconds: float = 60) -> Call:
        return Call("/x/y", principal, CallDeadline.after(seconds, self.clock))

    async def new_order(self, order_id: str = "o1", customer: str = "mei") -> str:
        """Makes an order of a customer's."""
        order = Order(order_id, customer, Money(AMOUNT, "CNY"), (), 1, 1)
        request = KeyedRequest(RequestKey(LI, "CreateOrder", order_id), "f", self.clock.now_ms())
        await self.orders.create(request, order, StoredResponse(True, b""))
        return order_id

    async def settle(
        self,
        instance: Instance,
        key: str = "s1",
        order_id: str = "o1",
        *,
        clerk: Principal | None = None,
        source: Source | None = None,
        seconds: float = 60,
        fingerprint: str = "f",
        card: str = CARD,
    ) -> Answer:
        """A clerk presses Settle; the money comes from the source that is theirs unless another is named.

        By default li does, and from the wallet its owner mei.
        """
        clerk = clerk or (MEI if source is Source.WALLET else LI)
        source = source or (Source.DRAWER if clerk.role is Role.CASHIER else Source.BANK)
        command = SettleCommand(key, order_id, source, "", fingerprint, card if source is Source.CARD else "")
        return await instance.operations.settle(self.call(clerk, seconds), command)

    async def ticket(
        self, instance: Instance, order_id: str = "", *, ttl_s: int = 900, clerk: Principal | None = None
    ) -> str:
        """Fetches a ticket; its id. By default li does for an order, and mei for a direct payment."""
        clerk = clerk or (LI if order_id else MEI)
        answer = await instance.operations.issue_ticket(self.call(clerk), self.ids.new("req"), order_id, ttl_s, "f")
        return pb.IssueTicketResponse.FromString(answer.response.body).ticket.ticket_id

    async def pay(
        self,
        instance: Instance,
        ticket_id: str,
        *,
        clerk: Principal = MEI,
        source: Source = Source.WALLET,
        amount: int = AMOUNT,
        payee: str = MERCHANT,
        customer: str = "mei",
    ) -> Answer:
        """Pays with a ticket that names no order."""
        card = CARD if source is Source.CARD else ""
        command = PayCommand(ticket_id, source, Money(amount, "CNY"), payee, customer, "", "f", card)
        return await instance.operations.pay(self.call(clerk), command)

    async def pay_order(
        self, instance: Instance, ticket_id: str, *, clerk: Principal = LI, customer: str = ""
    ) -> Answer:
        """Pays with a ticket that names an order."""
        command = PayCommand(ticket_id, Source.DRAWER, None, "", customer, "", "f")
        return await instance.operations.pay(self.call(clerk), command)

    async def reverse(self, instance: Instance, payment_id: str, key: str = "v1", *, clerk: Principal = WANG) -> Answer:
        """An accountant undoes a payment."""
        command = ReverseCommand(key, payment_id, "wrong order", "f")
        return await instance.operations.reverse(self.call(clerk), command)

    async def park(
        self,
        instance: Instance,
        payment_id: str,
        key: str = "k1",
        *,
        clerk: Principal = WANG,
        reason: str = "customer pays cash",
        seconds: float = 60,
    ) -> Answer:
        """A clerk gives up waiting for the acquirer's answer."""
        command = ParkCommand(key, payment_id, reason, "f")
        return await instance.operations.park(self.call(clerk, seconds), command)

    async def cancel(self, order_id: str = "o1") -> None:
        """The order is cancelled."""
        request = KeyedRequest(RequestKey(LI, "CancelOrder", order_id), "f", self.clock.now_ms())
        order = self.orders._orders[order_id]
        await self.orders.cancel(request, order, cancel(order, request.at_ms), "late", StoredResponse(True, b""))

    def fund(self, account_id: str, balance: int) -> None:
        """Lets an account hold so much and no more."""
        self.ledger.open[account_id] = replace(self.ledger.open[account_id], balance=balance)

    def forget_order(self, order_id: str = "o1") -> None:
        """The order service loses its memory of an order's settlement."""
        order = self.orders._orders[order_id]
        self.orders._orders[order_id] = replace(order, state=OrderState.UNPAID, payment_id="", settled_by=None)

    def forget_settled(self, order_id: str = "o1") -> None:
        """The order service and the store lose it; the ledger does not."""
        self.forget_order(order_id)
        for payment in list(self.store.payments.values()):
            if payment.order_id == order_id:
                self.store.payments[payment.payment_id] = replace(payment, state=PaymentState.REVERSED)

    def lapse(self, *dead: Instance) -> None:
        """Time passes: leases run out, and the sessions of the dead end."""
        self.clock.advance(LEASE_MS + 1)
        for instance in dead:
            self.locks.expire(instance.name)

    async def recovered(self, by: Instance, passes: int = 8) -> None:
        """The worker of `by` looks again and again until it finds nothing more to do."""
        for _ in range(passes):
            self.lapse()
            try:
                if await by.operations.recovery.recover() == 0:
                    return
            except CountinghouseError as error:
                if not may_come_right(error):
                    raise
        raise AssertionError("the worker does not come to an end")

    # Looking

    def order(self, order_id: str = "o1") -> Order:
        order = self.orders._orders[order_id]
        return replace(order)

    def state(self, key: str, method: str = SETTLE, caller: Principal | None = None) -> RequestState:
        """Where a request stands; without a caller the only one with this key."""
        return self._request(key, method, caller).state

    def stored(self, key: str, method: str = SETTLE, caller: Principal | None = None) -> StoredResponse | None:
        """What a request is to be answered with for ever; without a caller the only one with this key."""
        return self._request(key, method, caller).response

    def _request(self, key: str, method: str, caller: Principal | None) -> RequestRow:
        (row,) = [
            row
            for known, row in self.store.requests.rows.items()
            if (known.method, known.key) == (method, key) and caller in {None, known.caller}
        ]
        return row

    def of(self, key: str) -> Payment:
        """The one payment of a request id or ticket."""
        (payment,) = [payment for payment in self.store.payments.values() if payment.key.key == key]
        return payment

    def journals(self, order_id: str = "o1") -> list[Journal]:
        """The journals of an order that are not reversals."""
        return [
            journal
            for journal in self.ledger.chain
            if journal.draft.order_id == order_id and not journal.draft.reversal_of
        ]

    def check(self) -> None:
        """What the checker would say: raises if anything was done twice, left half done, or not as answered."""
        undone = [journal.draft.reversal_of for journal in self.ledger.chain if journal.draft.reversal_of]
        assert len(undone) == len(set(undone))
        standing = {
            journal.draft.payment_id: journal.journal_id
            for journal in self.ledger.chain
            if not journal.draft.reversal_of and journal.journal_id not in undone
        }
        assert len(standing) == len(self.ledger.chain) - 2 * len(undone)
        assert all(sum(leg.amount for leg in journal.draft.legs) == 0 for journal in self.ledger.chain)
        self.check_cards()
        for payment in self.store.payments.values():
            succeeded = payment.state is PaymentState.SUCCEEDED
            assert standing.get(payment.payment_id) == (payment.journal_id if succeeded else None)
            assert payment.state not in {*UNANSWERED, PaymentState.SUBMITTED}
            history = [event for event in self.store.events if event.payment_id == payment.payment_id]
            assert [event.version for event in history] == list(range(1, payment.version + 1))
            assert [event.fence for event in history] == sorted(event.fence for event in history)
        for order in self.orders._orders.values():
            paying = [
                payment.payment_id
                for payment in self.store.payments.values()
                if payment.order_id == order.order_id and payment.state is PaymentState.SUCCEEDED
            ]
            assert order.state in {OrderState.PAID, OrderState.UNPAID, OrderState.CANCELLED}
            assert paying == ([order.payment_id] if order.state is OrderState.PAID else [])
        for key, row in self.store.requests.rows.items():
            assert row.state is not RequestState.IN_PROGRESS, key
            assert (row.state is RequestState.DONE) is (row.response is not None), key
        assert all(message.delivered_at_ms is not None for message in self.store.outbox.values())
        assert not self.locks.held

    def check_cards(self) -> None:
        """What the acquirer holds is what the ledger says that it owes, payment for payment."""
        owed: Counter[str] = Counter()
        for journal in self.ledger.chain:
            for leg in journal.draft.legs:
                if leg.account_id == OWED_FOR_CARDS:
                    owed[journal.draft.payment_id] += leg.amount
        held: Counter[str] = Counter()
        for charge in self.acquirer.charges.values():
            if charge.state is ChargeState.CHARGED and charge.payload is not None:
                held[charge.payload.reference] += charge.payload.amount.minor_units
        assert +owed == +held

    def captured(self) -> int:
        """How often the acquirer has charged a card, whether or not it has given it back since."""
        return sum(
            charge.state in (ChargeState.CHARGED, ChargeState.REFUNDED) for charge in self.acquirer.charges.values()
        )


def payment_in(answer: Answer | StoredResponse) -> pb.Payment:
    """The payment in an answer that says OK."""
    response = answer.response if isinstance(answer, Answer) else answer
    assert response.ok
    return pb.SettleResponse.FromString(response.body).payment


def reversal_key(key: str = "v1") -> RequestKey:
    return RequestKey(WANG, REVERSE, key)
