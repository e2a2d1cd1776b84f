"""The order service's store in memory: what `SqlOrderStore` promises, without a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kernel.errors import CountinghouseError, StaleFence
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.kernel.principal import Principal
from services.order import model
from services.order.model import Change, Order, OrderEvent, order_not_found
from services.order.ports import Listed, MoveOutcome, OrderFilter, OrderStore
from services.runtime.change_feed import ChangeFeed
from tests.fakes.request_table import FakeAnswers

#: One row of an order's history, as `order_events` has it.
Event = OrderEvent


class FakeOrderStore(OrderStore):
    """Never awaits, so each step is whole by itself.

    Args:
        guards: As for the real store.
    """

    def __init__(self, guards: Guards | None = None) -> None:
        self._guards = guards or Guards()
        self.feed: ChangeFeed[Order] = ChangeFeed()
        self._orders: dict[str, Order] = {}  # in the order in which they were made
        self._requests = FakeAnswers(self._guards)
        self.fences: dict[str, Fence] = {}
        self.events: list[Event] = []

    async def create(self, request: KeyedRequest, order: Order, response: StoredResponse) -> Answer | None:
        def effect() -> bool:
            if order.order_id in self._orders:
                return False
            self._put(None, order, request.key.caller, request.at_ms)
            return True

        return self._requests.once(request, response, effect)

    async def cancel(
        self, request: KeyedRequest, before: Order, after: Order, reason: str, response: StoredResponse
    ) -> Answer | None:
        def effect() -> bool:
            if self._orders[before.order_id].version != before.version:
                return False
            self._put(before, after, request.key.caller, request.at_ms, reason=reason)
            return True

        return self._requests.once(request, response, effect)

    async def answer(self, request: KeyedRequest, response: StoredResponse) -> Answer:
        return self._requests.answer(request, response)

    async def answered(self, request: KeyedRequest) -> Answer | None:
        return self._requests.answered(request)

    async def claim(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return [self._move(change, model.claim) for change in changes]

    async def complete(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return [self._move(change, model.complete) for change in changes]

    async def release(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return [self._move(change, model.release) for change in changes]

    async def reopen(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return [self._move(change, model.reopen) for change in changes]

    async def get(self, order_id: str) -> Order | None:
        return self._orders.get(order_id)

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        events = [event for event in self.events if event.order_id == order_id and event.version > after]
        return sorted(events, key=lambda event: event.version)[:limit]

    async def page(self, which: OrderFilter, *, limit: int, after: int | None) -> list[Listed]:
        places = list(enumerate(self._orders.values(), start=1))
        found = [
            Listed(place, order)
            for place, order in reversed(places)
            if (after is None or place < after)
            and which.customer_id in {None, order.customer_id}
            and which.state in {None, order.state}
        ]
        return found[:limit]

    def _move(self, change: Change, decide_move: Callable[..., Order]) -> MoveOutcome:
        before = self._orders.get(change.order_id)
        if before is None:
            return order_not_found(change.order_id)
        seen = self.fences.get(change.order_id, NO_FENCE)
        if change.fence < seen and self._guards.fence:
            return StaleFence(change.order_id, change.fence, seen)
        self.fences[change.order_id] = max(seen, change.fence)
        try:
            after = decide_move(before, change)
        except CountinghouseError as refusal:
            return refusal
        if after is not before:
            self._put(before, after, change.actor, change.at_ms, change, reason=change.reason)
        return after

    def _put(
        self,
        before: Order | None,
        after: Order,
        actor: Principal,
        at_ms: int,
        change: Change | None = None,
        *,
        reason: str = "",
    ) -> None:
        self._orders[after.order_id] = replace(after)
        self.feed.publish([after])
        self.events.append(
            Event(
                order_id=after.order_id,
                version=after.version,
                from_state=before.state if before else None,
                to_state=after.state,
                round=after.round,
                payment_id=change.payment_id if change else "",
                fence=change.fence if change else NO_FENCE,
                actor=actor,
                at_ms=at_ms,
                reason=reason,
            )
        )
