"""The workload of a chaos run: workers that each choose their next call by their own seed, until the run is over.

    clerk      settles orders, settles twice at once, repeats a call word for word, reuses a request id, reverses,
               parks, reads
    customer   fetches tickets and pays with them, for orders and directly; cancels
    batcher    settles a batch of orders in one call, and the whole batch again if some of it has no final answer

They share a few open orders at a time, so that they meet. Each of them is one process of the history, and follows the
rule for callers: an unknown outcome is asked for again under the same key, and after a while given up, which leaves it
unknown. The seed decides on the requests; the faults decide on the outcomes.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.history import Outcome
from services.kernel.principal import Role
from services.testkit.client import CURRENCY, CallResult, RecordingClient, money
from services.testkit.identities import CUSTOMER

_TIMEOUT_S: Final = 4.0
_TRIES: Final = 4
_ASK_AGAIN_S: Final = (0.05, 0.4)
#: Orders open to all workers at one time: few, so that they meet.
_OPEN_ORDERS: Final = 8
#: After so many calls about it an order is taken away, so that no order's history grows beyond what can be examined.
_CALLS_PER_ORDER: Final = 10
_BATCH: Final = 6

_DRAWER, _BANK, _CARD = payment_pb2.SOURCE_DRAWER, payment_pb2.SOURCE_BANK, payment_pb2.SOURCE_CARD
_SOURCES: Final[Mapping[Role, tuple[payment_pb2.Source.ValueType, ...]]] = {
    Role.CASHIER: (_DRAWER, _DRAWER, _CARD),
    Role.ACCOUNTANT: (_BANK, _BANK, _CARD),
    Role.CUSTOMER: (_CARD,),
}
_REASON: Final = "chaos says so"


#: Its weight among the worker's operations, and what it does.
Operation = tuple[float, Callable[[], Awaitable[object]]]


@dataclass(slots=True)
class Order:
    """An open order."""

    order_id: str
    customer: str
    calls: int = 0


@dataclass(slots=True)
class SharedState:
    """What all workers see: the open orders, the payments that have settled some, and cards without an answer."""

    orders: deque[Order] = field(default_factory=lambda: deque(maxlen=_OPEN_ORDERS))
    settled: deque[str] = field(default_factory=lambda: deque(maxlen=20))  # payment ids
    unanswered: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=20))  # order, payment
    made: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


#: What may be sent again word for word.
Request = payment_pb2.SettleRequest | payment_pb2.PayRequest | payment_pb2.ReverseRequest | payment_pb2.ParkRequest


class Worker:
    """One process of the history.

    Args:
        rate_per_s: How often it begins something new, on average.
    """

    def __init__(self, client: RecordingClient, shared: SharedState, *, seed: int, rate_per_s: float) -> None:
        self.client = client
        self.name = client.process
        self.shared = shared
        self.rng = random.Random(f"{seed}/{self.name}")  # noqa: S311
        self._role = client.identity.role
        self._rate_per_s = rate_per_s
        self._number = 0
        self._remembered: deque[Request] = deque(maxlen=8)
        self._answered: Request | None = None

    async def run(self, operations: Sequence[Operation]) -> None:
        """Do one operation after the other, each with its weight, until the run is over.

        Then repeat the last request with a final answer: also a short run under faults has answers given again.
        """
        weights, functions = zip(*operations, strict=True)
        while not await self._rest():
            await self.rng.choices(functions, weights)[0]()
        if self._answered is not None:
            await self._call(self._answered)

    def new_id(self, what: str) -> str:
        """Return an id the same seed gives again."""
        self._number += 1
        return f"{self.name}-{what}-{self._number}"

    def an_order(self) -> Order | None:
        """Return one of the open orders, the newest most often; None: there is none."""
        if not self.shared.orders:
            return None
        order = self.shared.orders[-1 - min(int(self.rng.expovariate(0.7)), len(self.shared.orders) - 1)]
        order.calls += 1
        if order.calls >= _CALLS_PER_ORDER:
            self.shared.orders.remove(order)
        return order

    # ---- operations ----------------------------------------------------------------------------------

    async def make_order(self) -> None:
        """Make an order."""
        name, amount = self.new_id("order"), self.rng.randrange(100, 100_000)
        by_customer = self._role is Role.CUSTOMER
        customer, order_id = (self.client.name, "") if by_customer else (CUSTOMER, name)  # only staff choose order ids
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{name}", order_id=order_id, customer_id=customer, amount=money(amount)
        )
        for _ in range(_TRIES):
            result = await self._call(request)
            if result.outcome is Outcome.OK:
                self.shared.made.append(result.answer.order_id)
                self.shared.orders.append(Order(result.answer.order_id, customer))
                return
            if await self._rest(*_ASK_AGAIN_S):
                return

    async def read(self) -> None:
        """Read an order, or a payment."""
        if self.shared.settled and self.rng.random() < 0.4:
            payment_id = self.rng.choice(self.shared.settled)
            await self._call(payment_pb2.GetPaymentRequest(payment_id=payment_id))
        elif order := self.an_order():
            await self._call(order_pb2.GetOrderRequest(order_id=order.order_id))

    async def cancel(self) -> None:
        """Cancel an order, if it can still be."""
        if order := self.an_order():
            request_id = self.new_id("cancel")
            await self._call(
                order_pb2.CancelOrderRequest(request_id=request_id, order_id=order.order_id, reason=_REASON)
            )

    async def settle(self) -> None:
        """Settle an order, asking again until there is an answer or patience ends."""
        if order := self.an_order():
            await self._call_until_answered(self._settle_request(order, self.new_id("settle")))

    async def settle_twice(self) -> None:
        """Make the same call twice at once."""
        if order := self.an_order():
            request = self._settle_request(order, self.new_id("twice"))
            await asyncio.gather(self._call_until_answered(request), self._call_until_answered(request))

    async def settle_batch(self) -> None:
        """Settle several orders in one call; if some have no final answer send the whole batch again, word for word."""
        run = self.new_id("run")
        batch = list(self.shared.orders)[-_BATCH:]
        requests = [self._settle_request(order, f"{run}-{order.order_id}"[:64]) for order in batch]
        if not requests:
            return
        for _ in range(_TRIES):
            results = await self.client.settle_batch(requests, timeout_s=_TIMEOUT_S)
            for request, result in zip(requests, results, strict=True):
                self._look_at(request, result)
            if all(result.final for result in results) or await self._rest(*_ASK_AGAIN_S):
                break
        self._remembered.extend(requests)

    async def repeat(self) -> None:
        """Repeat an earlier request, long answered or given up, word for word."""
        if self._remembered:
            await self._call(self.rng.choice(self._remembered))

    async def reuse_request_id(self) -> None:
        """Use a request id a second time, for something else; it has to be refused."""
        settled = [request for request in self._remembered if isinstance(request, payment_pb2.SettleRequest)]
        if settled and (order := self.an_order()):
            used = self.rng.choice(settled)
            if (
                used.order_id != order.order_id
            ):  # a history does not say which card: for the same order it could be the same
                await self._call(self._settle_request(order, used.request_id))

    async def reverse(self) -> None:
        """Undo a payment."""
        if self.shared.settled:
            payment_id = self.rng.choice(self.shared.settled)
            request_id = self.new_id("reverse")
            await self._call_until_answered(
                payment_pb2.ReverseRequest(request_id=request_id, payment_id=payment_id, reason=_REASON)
            )

    async def park(self) -> None:
        """Park a card payment that has no answer, and pay its order from elsewhere, or only try to pay it."""
        if not self.shared.unanswered:
            return
        order_id, payment_id = self.rng.choice(self.shared.unanswered)
        if self.rng.random() < 0.7:
            request_id = self.new_id("park")
            await self._call_until_answered(
                payment_pb2.ParkRequest(request_id=request_id, payment_id=payment_id, reason=_REASON)
            )
        await self._call_until_answered(self.client.settle_request(order_id, self.new_id("instead")))

    async def pay_order(self) -> None:
        """Fetch a ticket for an order and pay with it, sometimes twice at once."""
        if order := self.an_order():
            await self._pay(order)

    async def pay_directly(self) -> None:
        """Fetch a ticket and pay something that is no order."""
        await self._pay(None)

    # ---- inside --------------------------------------------------------------------------------------

    async def _pay(self, order: Order | None) -> None:
        issued = await self._call(
            payment_pb2.IssueTicketRequest(request_id=self.new_id("ticket"), order_id=order.order_id if order else "")
        )
        if issued.response is None:
            return
        source = self._a_source()
        request = payment_pb2.PayRequest(ticket_id=issued.answer.ticket, source=source)
        if order is None:
            request.amount.CopyFrom(money(self.rng.randrange(100, 10_000)))
            request.payee_account_id = f"sales:{CURRENCY}"
        if source == payment_pb2.SOURCE_CARD:
            request.card = self._a_card(order.customer if order else self.client.name)
        await asyncio.gather(*(self._call_until_answered(request) for _ in range(1 + (self.rng.random() < 0.3))))

    def _settle_request(self, order: Order, key: str) -> payment_pb2.SettleRequest:
        source = self._a_source()
        card = self._a_card(order.customer) if source == payment_pb2.SOURCE_CARD else ""
        return self.client.settle_request(order.order_id, key, source=source, card=card)

    def _a_source(self) -> payment_pb2.Source.ValueType:
        return self.rng.choice(_SOURCES[self._role])

    def _a_card(self, customer: str) -> str:
        """Return a customer's card, a good one nearly always."""
        return f"tok-declined-{customer}" if self.rng.random() < 0.08 else f"tok-{customer}"

    async def _call_until_answered(self, request: Request) -> CallResult:
        """Call until the answer is final, some times at most."""
        for tried in range(_TRIES):
            result = await self._call(request)
            if result.final or tried == _TRIES - 1 or await self._rest(*_ASK_AGAIN_S):
                break
        self._remembered.append(request)
        if result.outcome is Outcome.OK and result.final:
            self._answered = request
        return result

    async def _call(self, request: Message) -> CallResult:
        result = await self.client.call(request, timeout_s=_TIMEOUT_S)
        self._look_at(request, result)
        return result

    def _look_at(self, request: Message, result: CallResult) -> None:
        """Remember what a payment's answer says for the operations to come."""
        told = result.answer
        if isinstance(request, payment_pb2.SettleRequest | payment_pb2.PayRequest) and told.order_id:
            if told.state == "SUCCEEDED":
                self.shared.settled.append(told.payment_id)
            elif told.state == "UNKNOWN" and request.source == payment_pb2.SOURCE_CARD:
                self.shared.unanswered.append((told.order_id, told.payment_id))

    async def _rest(self, shortest_s: float = 0.0, longest_s: float = 0.0) -> bool:
        """Wait; return whether the run is over."""
        pause_s = (
            self.rng.uniform(shortest_s, longest_s)
            if longest_s
            else min(self.rng.expovariate(self._rate_per_s), 5 / self._rate_per_s)
        )
        try:
            async with asyncio.timeout(pause_s):
                await self.shared.over.wait()
        except TimeoutError:
            return False
        return True


def build_workers(
    clients: Sequence[RecordingClient], shared: SharedState, *, seed: int, rate_per_s: float
) -> list[tuple[Worker, list[Operation]]]:
    """Return every worker, with its operations and their weights.

    Args:
        clients: The name of each one's process begins with its kind: clerk, customer or batcher.
        rate_per_s: Of all of them together.
    """
    workers = []
    for client in clients:
        worker = Worker(client, shared, seed=seed, rate_per_s=rate_per_s / len(clients))
        if worker.name.startswith("clerk"):
            operations: list[Operation] = [
                (3.0, worker.make_order),
                (5.0, worker.settle),
                (1.5, worker.settle_twice),
                (1.0, worker.repeat),
                (0.4, worker.reuse_request_id),
                (1.5, worker.read),
                (1.0 if client.identity.role is Role.ACCOUNTANT else 0.0, worker.reverse),
                (1.0, worker.park),
            ]
        elif worker.name.startswith("customer"):
            operations = [
                (2.0, worker.make_order),
                (3.0, worker.pay_order),
                (1.0, worker.pay_directly),
                (0.3, worker.cancel),
                (1.5, worker.read),
                (0.5, worker.repeat),
            ]
        else:
            operations = [(2.0, worker.make_order), (1.0, worker.settle_batch)]
        workers.append((worker, operations))
    return workers
