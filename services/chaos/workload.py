"""The people of a chaos run: each does what such people do, as their own random numbers say, until the day is over.

    clerk      settles orders, presses twice, asks again under the same id, reuses an id by mistake, reverses, parks,
               looks
    customer   fetches tickets and pays with them, for orders and directly; cancels
    batcher    settles a pile of orders at once, and the whole pile again if some of it failed

They share a few open orders at a time, so that they meet. Each of them is one process of the history, and follows the
rule for callers: an unknown outcome is asked for again under the same key, and after a while given up, which leaves it
unknown. The seed decides what they want; what comes of it is up to the faults.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.chaos.calls import Caller, Heard, Person
from services.checker.history import Arguments, Outcome
from services.kernel.principal import Role

CURRENCY: Final = "CNY"
_TIMEOUT_S: Final = 4.0
_TRIES: Final = 4
_ASK_AGAIN_S: Final = (0.05, 0.4)
#: Orders open to everybody at one time: few, so that people meet.
_OPEN_ORDERS: Final = 8
#: After so many calls about it an order is taken away, so that no order's history grows beyond what can be examined.
_CALLS_PER_ORDER: Final = 10
_PILE: Final = 6

_SOURCES: Final[Mapping[Role, tuple[str, ...]]] = {
    Role.CASHIER: ("DRAWER", "DRAWER", "CARD"),
    Role.ACCOUNTANT: ("BANK", "BANK", "CARD"),
    Role.CUSTOMER: ("CARD",),
}


#: How often somebody does something, beside what else they do, and what.
Deed = tuple[float, Callable[[], Awaitable[object]]]


@dataclass(slots=True)
class Order:
    """An order on the counter."""

    order_id: str
    amount: int
    customer: str
    calls: int = 0


@dataclass(slots=True)
class Counter:
    """What all of them see: the open orders, the payments that have settled some, and cards without an answer."""

    orders: deque[Order] = field(default_factory=lambda: deque(maxlen=_OPEN_ORDERS))
    settled: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=20))  # order, payment
    unanswered: deque[tuple[str, str]] = field(default_factory=lambda: deque(maxlen=20))  # order, payment
    made: list[str] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Asked:
    """A call that can be made again word for word."""

    kind: str
    request: payment_pb2.SettleRequest | payment_pb2.PayRequest | payment_pb2.ReverseRequest | payment_pb2.ParkRequest
    arguments: Arguments


class Worker:
    """One process of the history.

    Args:
        rate_per_s: How often they begin something new, on average.
    """

    def __init__(
        self, name: str, person: Person, caller: Caller, counter: Counter, *, seed: int, rate_per_s: float
    ) -> None:
        self.name = name
        self.person = person
        self.counter = counter
        self.rng = random.Random(f"{seed}/{name}")  # noqa: S311
        self._caller = caller
        self._rate_per_s = rate_per_s
        self._number = 0
        self._remembered: deque[Asked] = deque(maxlen=8)

    async def run(self, deeds: Sequence[Deed]) -> None:
        """Does one deed after the other, each with its weight, until the day is over."""
        weights, doings = zip(*deeds, strict=True)
        while not await self._rest():
            await self.rng.choices(doings, weights)[0]()

    def new_id(self, what: str) -> str:
        """An id the same seed gives again."""
        self._number += 1
        return f"{self.name}-{what}-{self._number}"

    def an_order(self) -> Order | None:
        """One of the open orders, the newest most often; None: there is none."""
        if not self.counter.orders:
            return None
        order = self.counter.orders[-1 - min(int(self.rng.expovariate(0.7)), len(self.counter.orders) - 1)]
        order.calls += 1
        if order.calls >= _CALLS_PER_ORDER:
            self.counter.orders.remove(order)
        return order

    # ---- what is asked -------------------------------------------------------------------------------

    async def make_order(self) -> None:
        """A new order comes to the counter."""
        name, amount = self.new_id("order"), self.rng.randrange(100, 100_000)
        by_customer = self.person.role is Role.CUSTOMER
        customer, order_id = (self.person.name, "") if by_customer else ("mei", name)  # only staff choose order ids
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{name}", order_id=order_id, customer_id=customer, amount=_money(amount)
        )
        arguments = self._arguments(order_id=order_id, key=request.request_id, amount_minor=amount, currency=CURRENCY)
        for _ in range(_TRIES):
            heard = await self._ask("CreateOrder", request, arguments)
            if heard.outcome is Outcome.OK:
                self.counter.made.append(heard.answer.order_id)
                self.counter.orders.append(Order(heard.answer.order_id, amount, customer))
                return
            if await self._rest(*_ASK_AGAIN_S):
                return

    async def look(self) -> None:
        """Reads an order, or a payment."""
        if self.counter.settled and self.rng.random() < 0.4:
            order_id, payment_id = self.rng.choice(self.counter.settled)
            looked = payment_pb2.GetPaymentRequest(payment_id=payment_id)
            await self._ask("GetPayment", looked, self._arguments(order_id=order_id, payment_id=payment_id))
        elif order := self.an_order():
            request = order_pb2.GetOrderRequest(order_id=order.order_id)
            await self._ask("GetOrder", request, self._arguments(order_id=order.order_id))

    async def cancel(self) -> None:
        """Cancels an order, if it can still be."""
        if order := self.an_order():
            request = order_pb2.CancelOrderRequest(
                request_id=self.new_id("cancel"), order_id=order.order_id, reason="chaos says so"
            )
            await self._ask("CancelOrder", request, self._arguments(order_id=order.order_id, key=request.request_id))

    async def settle(self) -> None:
        """Settles an order, asking again until there is an answer or patience ends."""
        if order := self.an_order():
            await self._insist(self._settle_call(order, self.new_id("settle")))

    async def press_twice(self) -> None:
        """The same call twice at once."""
        if order := self.an_order():
            asked = self._settle_call(order, self.new_id("twice"))
            await asyncio.gather(self._insist(asked), self._insist(asked))

    async def settle_pile(self) -> None:
        """Settles several orders at once; if some failed the whole pile is run again, word for word."""
        run = self.new_id("run")
        pile = list(self.counter.orders)[-_PILE:]
        calls = [self._settle_call(order, f"{run}-{order.order_id}"[:64]) for order in pile]
        for _ in range(2):
            results = await asyncio.gather(*(self._insist(call) for call in calls))
            if all(heard.outcome is Outcome.OK for heard in results):
                return
            if await self._rest(*_ASK_AGAIN_S):
                return

    async def ask_again(self) -> None:
        """Repeats something of before, long answered or given up, word for word."""
        if self._remembered:
            await self._once(self.rng.choice(self._remembered))

    async def mix_up_ids(self) -> None:
        """Uses an id a second time, for something else; it has to be refused."""
        settled = [asked for asked in self._remembered if asked.kind == "Settle"]
        if settled and (order := self.an_order()):
            await self._once(self._settle_call(order, self.rng.choice(settled).arguments.key))

    async def reverse(self) -> None:
        """Undoes a payment."""
        if not self.counter.settled:
            return
        order_id, payment_id = self.rng.choice(self.counter.settled)
        request = payment_pb2.ReverseRequest(
            request_id=self.new_id("reverse"), payment_id=payment_id, reason="chaos says so"
        )
        arguments = self._arguments(order_id=order_id, payment_id=payment_id, key=request.request_id)
        await self._insist(Asked("Reverse", request, arguments))

    async def park(self) -> None:
        """Parks a card payment that nobody has answered, and pays its order from elsewhere, or only tries to pay it."""
        if not self.counter.unanswered:
            return
        order_id, payment_id = self.rng.choice(self.counter.unanswered)
        if self.rng.random() < 0.7:
            request = payment_pb2.ParkRequest(
                request_id=self.new_id("park"), payment_id=payment_id, reason="chaos says so"
            )
            arguments = self._arguments(order_id=order_id, payment_id=payment_id, key=request.request_id)
            await self._insist(Asked("Park", request, arguments))
        source = "DRAWER" if self.person.role is Role.CASHIER else "BANK"
        settle = payment_pb2.SettleRequest(
            request_id=self.new_id("instead"),
            order_id=order_id,
            source=payment_pb2.Source.Value(f"SOURCE_{source}"),
        )
        arguments = self._arguments(order_id=order_id, key=settle.request_id, source=source)
        await self._insist(Asked("Settle", settle, arguments))

    async def pay_order(self) -> None:
        """Fetches a ticket for an order and pays with it, sometimes twice at once."""
        if order := self.an_order():
            await self._pay(order)

    async def pay_directly(self) -> None:
        """Fetches a ticket and pays something that is no order."""
        await self._pay(None)

    # ---- inside --------------------------------------------------------------------------------------

    async def _pay(self, order: Order | None) -> None:
        order_id = order.order_id if order else ""
        issue = payment_pb2.IssueTicketRequest(request_id=self.new_id("ticket"), order_id=order_id)
        issued = await self._ask("IssueTicket", issue, self._arguments(order_id=order_id, key=issue.request_id))
        if issued.message is None:
            return
        source = self._a_source()
        request = payment_pb2.PayRequest(
            ticket_id=issued.answer.ticket, source=payment_pb2.Source.Value(f"SOURCE_{source}")
        )
        amount, payee = 0, ""
        if order is None:
            amount, payee = self.rng.randrange(100, 10_000), f"sales:{CURRENCY}"
            request.amount.CopyFrom(_money(amount))
            request.payee_account_id = payee
        if source == "CARD":
            request.card = self._a_card(order.customer if order else self.person.name)
        arguments = self._arguments(
            order_id=order_id,
            key=request.ticket_id,
            source=source,
            amount_minor=amount,
            currency=CURRENCY if order is None else "",
            payee_account_id=payee,
        )
        asked = Asked("Pay", request, arguments)
        await asyncio.gather(*(self._insist(asked) for _ in range(1 + (self.rng.random() < 0.3))))

    def _settle_call(self, order: Order, key: str) -> Asked:
        source = self._a_source()
        request = payment_pb2.SettleRequest(
            request_id=key, order_id=order.order_id, source=payment_pb2.Source.Value(f"SOURCE_{source}")
        )
        if source == "CARD":
            request.card = self._a_card(order.customer)
        return Asked("Settle", request, self._arguments(order_id=order.order_id, key=key, source=source))

    def _a_source(self) -> str:
        return self.rng.choice(_SOURCES[self.person.role])

    def _a_card(self, customer: str) -> str:
        """A customer's card, a good one nearly always."""
        return f"tok-declined-{customer}" if self.rng.random() < 0.08 else f"tok-{customer}"

    async def _insist(self, asked: Asked) -> Heard:
        """Asks until there is a definitive answer, some times at most."""
        for tried in range(_TRIES):
            heard = await self._once(asked)
            if heard.outcome is Outcome.OK or heard.answer.code not in _MAY_COME_RIGHT:
                break
            if tried == _TRIES - 1 or await self._rest(*_ASK_AGAIN_S):
                break
        self._remembered.append(asked)
        return heard

    async def _once(self, asked: Asked) -> Heard:
        heard = await self._ask(asked.kind, asked.request, asked.arguments)
        told = heard.answer
        if asked.kind in ("Settle", "Pay") and told.state == "SUCCEEDED" and told.order_id:
            self.counter.settled.append((told.order_id, told.payment_id))
        if asked.arguments.source == "CARD" and told.state == "UNKNOWN" and told.order_id:
            self.counter.unanswered.append((told.order_id, told.payment_id))
        return heard

    async def _ask(self, kind: str, request: object, arguments: Arguments) -> Heard:
        return await self._caller.ask(
            self.name,
            self.person,
            kind,
            request,  # type: ignore[arg-type]  # the stubs' messages have no common type mypy knows
            arguments,
            timeout_s=_TIMEOUT_S,
        )

    async def _rest(self, shortest_s: float = 0.0, longest_s: float = 0.0) -> bool:
        """Waits; True: the day is over."""
        pause_s = (
            self.rng.uniform(shortest_s, longest_s)
            if longest_s
            else min(self.rng.expovariate(self._rate_per_s), 5 / self._rate_per_s)
        )
        try:
            async with asyncio.timeout(pause_s):
                await self.counter.over.wait()
        except TimeoutError:
            return False
        return True

    def _arguments(self, **told: str | int) -> Arguments:
        return Arguments(clerk=self.person.name, role=self.person.role.value, **told)  # type: ignore[arg-type]


#: Codes after which the same call may yet be answered otherwise; OK is one of them while the outcome is unknown.
_MAY_COME_RIGHT: Final = frozenset(
    {"", "OK", "ABORTED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"}
)


def hire(
    people: Mapping[str, Person], caller: Caller, counter: Counter, *, seed: int, rate_per_s: float
) -> list[tuple[Worker, list[Deed]]]:
    """Everybody, with what they do and how often.

    Args:
        people: By the name of their process, which begins with what they are: clerk, customer or batcher.
        rate_per_s: Of all of them together.
    """
    hired = []
    for name, person in people.items():
        worker = Worker(name, person, caller, counter, seed=seed, rate_per_s=rate_per_s / len(people))
        if name.startswith("clerk"):
            deeds: list[Deed] = [
                (3.0, worker.make_order),
                (5.0, worker.settle),
                (1.5, worker.press_twice),
                (1.0, worker.ask_again),
                (0.4, worker.mix_up_ids),
                (1.5, worker.look),
                (1.0 if person.role is Role.ACCOUNTANT else 0.0, worker.reverse),
                (1.0, worker.park),
            ]
        elif name.startswith("customer"):
            deeds = [
                (2.0, worker.make_order),
                (3.0, worker.pay_order),
                (1.0, worker.pay_directly),
                (0.3, worker.cancel),
                (1.5, worker.look),
                (0.5, worker.ask_again),
            ]
        else:
            deeds = [(2.0, worker.make_order), (1.0, worker.settle_pile)]
        hired.append((worker, deeds))
    return hired


def _money(minor_units: int) -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=CURRENCY)
