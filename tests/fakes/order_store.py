"""The order service's store in memory: what `SqlOrderStore` promises, without a database."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kernel.errors import AlreadyExists, CountinghouseError, FailedPrecondition, StaleFence, StaleVersion
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import (
    Answer,
    Decision,
    RequestKey,
    RequestRow,
    RequestState,
    StoredResponse,
    decide,
)
from services.kernel.principal import Principal
from services.order import model
from services.order.model import Change, Order, OrderEvent
from services.order.operations import Encoding, Filter, Listed, OrderStore, Outcome, Request, not_found

#: One row of an order's history, as `order_events` has it.
Event = OrderEvent


class FakeOrderStore(OrderStore):
    """Never awaits, so each step is whole by itself.

    Args:
        guards: As for the real store.
    """

    def __init__(self, guards: Guards | None = None) -> None:
        self._guards = guards or Guards()
        self._orders: dict[str, Order] = {}  # in the order in which they were made
        self._requests: dict[RequestKey, RequestRow] = {}
        self.fences: dict[str, Fence] = {}
        self.events: list[Event] = []

    async def create(self, request: Request, order: Order, encoding: Encoding) -> Answer:
        def effect() -> bytes:
            if order.order_id in self._orders:
                raise AlreadyExists("ORDER_EXISTS", "taken", metadata={"order_id": order.order_id})
            self._put(None, order, request.actor, request.at_ms)
            return encoding.created(order)

        return self._once(request, encoding, effect)

    async def answered(self, request: Request) -> Answer | None:
        row = self._requests.get(request.key)
        if row is None or row.response is None:
            return None
        decide(row, request.fingerprint, request.at_ms)
        return Answer(row.response, replayed=True)

    async def cancel(
        self, request: Request, order_id: str, encoding: Encoding, *, customer_id: str | None, expected_version: int
    ) -> Answer:
        order = self._orders.get(order_id)
        if order is None or customer_id not in {None, order.customer_id}:
            raise not_found(order_id)

        def effect() -> bytes:
            if expected_version not in {0, order.version}:
                raise StaleVersion(f"order {order_id}", expected_version, order.version)
            cancelled = model.cancel(order, request.at_ms)
            self._put(order, cancelled, request.actor, request.at_ms, reason=request.reason)
            return encoding.cancelled(cancelled)

        return self._once(request, encoding, effect)

    async def claim(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._move(change, model.claim) for change in changes]

    async def complete(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._move(change, model.complete) for change in changes]

    async def release(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._move(change, model.release) for change in changes]

    async def reopen(self, changes: Sequence[Change]) -> list[Outcome]:
        return [self._move(change, model.reopen) for change in changes]

    async def get(self, order_id: str) -> Order | None:
        return self._orders.get(order_id)

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        events = [event for event in self.events if event.order_id == order_id and event.version > after]
        return sorted(events, key=lambda event: event.version)[:limit]

    async def page(self, which: Filter, *, limit: int, after: int | None) -> list[Listed]:
        places = list(enumerate(self._orders.values(), start=1))
        found = [
            Listed(place, order)
            for place, order in reversed(places)
            if (after is None or place < after)
            and which.customer_id in {None, order.customer_id}
            and which.state in {None, order.state}
        ]
        return found[:limit]

    def _once(self, request: Request, encoding: Encoding, effect: Callable[[], bytes]) -> Answer:
        row = self._requests.get(request.key)
        if row is not None and self._guards.ticket:
            assert decide(row, request.fingerprint, request.at_ms) is Decision.REPLAY
            assert row.response is not None
            return Answer(row.response, replayed=True)
        try:
            response = StoredResponse(True, effect())
        except (AlreadyExists, FailedPrecondition) as refusal:
            response = StoredResponse(False, encoding.refused(refusal))
        self._requests[request.key] = RequestRow(
            request.key, RequestState.DONE, request.fingerprint, 1, request.at_ms, request.at_ms, response
        )
        return Answer(response, replayed=False)

    def _move(self, change: Change, decide_move: Callable[..., Order]) -> Outcome:
        before = self._orders.get(change.order_id)
        if before is None:
            return not_found(change.order_id)
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
