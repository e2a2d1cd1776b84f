"""Any number of payments pulling at orders in any order: what holds after every single step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from services.kernel.errors import CountinghouseError, FailedPrecondition, StaleFence
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import KeyedRequest, RequestKey, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order import model
from services.order.model import MOVES, Change, Order, OrderState
from services.order.ports import MoveOutcome
from tests.fakes.order_store import Event, FakeOrderStore

_T = TypeVar("_T")
LI = Principal("li", Role.CASHIER)
DONE = StoredResponse(True, b"done")
PAYMENTS = st.sampled_from(["p1", "p2", "p3"])
FENCES = st.builds(Fence, st.integers(1, 2), st.integers(1, 5))


def now(step: Coroutine[Any, Any, _T]) -> _T:
    """The result of a step that never waits; no event loop is needed for it."""
    try:
        step.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    raise AssertionError("the fake waited")


class Orders(RuleBasedStateMachine):
    """Some orders, three payments, and clerks whose fences come in any order."""

    orders = Bundle("orders")

    def __init__(self) -> None:
        super().__init__()
        self.store = FakeOrderStore()
        self.made = 0
        self.highest: dict[str, Fence] = {}

    @initialize(target=orders)
    def first(self) -> str:
        return self.made_one()

    @rule(target=orders)
    def create(self) -> str:
        return self.made_one()

    def made_one(self) -> str:
        self.made += 1
        order = Order(f"o{self.made}", "mei", Money(100, "CNY"), (), 1, 1)
        now(self.store.create(self.request("CreateOrder"), order, DONE))
        return order.order_id

    @rule(order_id=orders)
    def cancel(self, order_id: str) -> None:
        self.made += 1
        before = self.order(order_id)
        if before.state is OrderState.UNPAID:
            assert now(self.store.cancel(self.request("CancelOrder"), before, model.cancel(before, 1), "late", DONE))
        else:
            with pytest.raises(FailedPrecondition):
                model.cancel(before, 1)

    @rule(order_id=orders, payment_id=PAYMENTS, fence=FENCES)
    def claim(self, order_id: str, payment_id: str, fence: Fence) -> None:
        outcome = self.move(self.store.claim, order_id, payment_id, fence)
        assert not isinstance(outcome, FailedPrecondition)

    @rule(order_id=orders, payment_id=PAYMENTS, fence=FENCES)
    def complete(self, order_id: str, payment_id: str, fence: Fence) -> None:
        before = self.order(order_id)
        outcome = self.move(self.store.complete, order_id, payment_id, fence)
        if isinstance(outcome, Order):
            assert (outcome.state, outcome.payment_id) == (OrderState.PAID, payment_id)
            assert before.payment_id == payment_id

    @rule(order_id=orders, payment_id=PAYMENTS, fence=FENCES)
    def release(self, order_id: str, payment_id: str, fence: Fence) -> None:
        self.move(self.store.release, order_id, payment_id, fence)

    @rule(order_id=orders, payment_id=PAYMENTS, fence=FENCES)
    def reopen(self, order_id: str, payment_id: str, fence: Fence) -> None:
        self.move(self.store.reopen, order_id, payment_id, fence)

    @invariant()
    def history_has_no_gap_and_only_legal_moves(self) -> None:
        for order_id, events in self.histories().items():
            assert [event.version for event in events] == list(range(1, len(events) + 1))
            assert events[0].from_state is None
            for earlier, later in pairwise(events):
                assert later.from_state is earlier.to_state
                assert later.to_state in MOVES[earlier.to_state]
                reopened = (earlier.to_state, later.to_state) == (OrderState.PAID, OrderState.UNPAID)
                assert later.round == earlier.round + reopened
            assert self.order(order_id).version == events[-1].version
            assert self.order(order_id).state is events[-1].to_state

    @invariant()
    def fences_never_fall(self) -> None:
        for order_id, fence in self.store.fences.items():
            assert fence >= self.highest.get(order_id, NO_FENCE)
            self.highest[order_id] = fence
        for events in self.histories().values():
            fenced = [event.fence for event in events if event.fence]
            assert fenced == sorted(fenced)

    @invariant()
    def a_round_is_paid_at_most_once(self) -> None:
        for events in self.histories().values():
            holder = ""
            paid_rounds: set[int] = set()
            for event in events:
                if event.to_state is OrderState.PAYING:
                    assert not holder
                    holder = event.payment_id
                elif event.to_state is OrderState.PAID:
                    assert event.payment_id == holder
                    assert event.round not in paid_rounds
                    paid_rounds.add(event.round)
                else:
                    holder = ""

    @invariant()
    def fields_go_with_the_state(self) -> None:
        for order_id in self.histories():
            order = self.order(order_id)
            assert bool(order.payment_id) == (order.state in {OrderState.PAYING, OrderState.PAID})
            assert bool(order.settled_at_ms) == bool(order.settled_by) == (order.state is OrderState.PAID)

    def move(
        self,
        step: Callable[[Sequence[Change]], Awaitable[list[MoveOutcome]]],
        order_id: str,
        payment_id: str,
        fence: Fence,
    ) -> MoveOutcome:
        before, seen = self.order(order_id), self.store.fences.get(order_id, NO_FENCE)

        async def one() -> MoveOutcome:
            return (await step([Change(order_id, payment_id, fence, LI, at_ms=2, settled_at_ms=2)]))[0]

        outcome = now(one())
        assert isinstance(outcome, StaleFence) is (fence < seen)
        if isinstance(outcome, CountinghouseError):
            assert self.order(order_id) == before
        return outcome

    def order(self, order_id: str) -> Order:
        order = now(self.store.get(order_id))
        assert order is not None
        return order

    def histories(self) -> dict[str, list[Event]]:
        histories: dict[str, list[Event]] = {}
        for event in self.store.events:
            histories.setdefault(event.order_id, []).append(event)
        return histories

    def request(self, method: str) -> KeyedRequest:
        return KeyedRequest(RequestKey(LI, method, f"r{self.made}"), "fingerprint", at_ms=1)


TestOrders = Orders.TestCase
TestOrders.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
