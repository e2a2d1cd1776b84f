"""The use cases of orders: the rights of each role, the order of the steps, and the answers. No I/O of its own.

Customers get NOT_FOUND, not PERMISSION_DENIED, for other customers' orders, so that ids cannot be probed. `settled_by`
and every name in the history come from tokens, never from a customer's request.

Failpoints passed: `accepted` before a change's transaction; `claimed` and `completed` after theirs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, FailedPrecondition, PermissionDenied, StaleVersion
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, KeyedRequest, RequestKey
from services.kernel.ids import IdSource, check_reason, is_blank
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order import model
from services.order.model import Change, Order, OrderEvent, OrderLine, order_exists, order_not_found, total
from services.order.ports import Listed, MoveOutcome, OrderFilter, OrderStore, Responses
from services.runtime.change_feed import Changes
from services.runtime.grpc.context import Call
from services.runtime.ports import Failpoints


@dataclass(frozen=True, slots=True)
class OrderDraft:
    """An order that is asked for.

    Args:
        order_id: Name wanted, by staff only; empty: one is made.
        amount: None: what the lines add up to.
    """

    order_id: str
    customer_id: str
    amount: Money | None
    lines: tuple[OrderLine, ...]


class OrderOperations:
    """The use cases."""

    def __init__(
        self, store: OrderStore, clock: Clock, ids: IdSource, failpoints: Failpoints, responses: Responses
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._failpoints = failpoints
        self._responses = responses

    async def create(self, call: Call, request_id: str, fingerprint: str, draft: OrderDraft) -> Answer:
        """Make an order.

        Raises:
            PermissionDenied: NOT_YOUR_ORDER: a customer asks for another customer's order; ORDER_ID_NOT_YOURS: they
                choose its id.
            InvalidArgument: As `model.total`.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        if call.principal.role is Role.CUSTOMER and not call.principal.is_customer(draft.customer_id):
            raise PermissionDenied(
                "NOT_YOUR_ORDER",
                f"a customer can only order for themselves; leave customer_id at {call.principal.name}",
                metadata={"customer_id": draft.customer_id},
            )
        request = self._request(call, "CreateOrder", request_id, fingerprint)
        if call.principal.role is Role.CUSTOMER and draft.order_id:
            # Otherwise a customer could find out by a taken id which orders there are, and take ids that others need.
            stored = await self._store.answered(request)  # by a release that let customers choose
            if stored is not None:
                return stored
            raise PermissionDenied(
                "ORDER_ID_NOT_YOURS",
                "only staff choose order ids; leave order_id out, and repeat a request under the same request_id",
            )
        order = Order(
            order_id=draft.order_id or self._ids.new("ord"),
            customer_id=draft.customer_id,
            amount=total(draft.amount, draft.lines),
            lines=draft.lines,
            created_at_ms=request.at_ms,
            updated_at_ms=request.at_ms,
        )
        call.concerns(order_id=order.order_id)
        await self._failpoints.hit("accepted", call, order.order_id)
        answer = await self._store.create(request, order, self._responses.created(order))
        return answer or await self._store.answer(request, self._responses.refusal(order_exists(order.order_id)))

    async def cancel(
        self, call: Call, request_id: str, fingerprint: str, order_id: str, expected_version: int, reason: str
    ) -> Answer:
        """Cancel an UNPAID order, for a reason.

        Args:
            expected_version: The version it must be at; 0: any.

        Raises:
            InvalidArgument: FIELD_REQUIRED: the reason is blank.
            NotFound: ORDER_NOT_FOUND. Not stored: it may be made yet.
            StaleVersion: Not stored: the caller reads again and decides anew.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        request = self._request(call, "CancelOrder", request_id, fingerprint)
        if is_blank(reason):
            stored = await self._store.answered(request)  # by a release that asked for none
            if stored is not None:
                return stored
            check_reason(reason, "reason")
        await self._failpoints.hit("accepted", call, order_id)
        while True:
            # The order is read first: not even a stored answer is shown to another customer, and a repeat of this
            # request that has cancelled the order by then has stored its answer.
            order = await self.get(call, order_id)
            answer = await self._store.answered(request) or await self._cancel(request, order, expected_version, reason)
            if answer is not None:
                return answer

    async def _cancel(self, request: KeyedRequest, order: Order, expected_version: int, reason: str) -> Answer | None:
        """Cancel an order as it was read; None: it has changed since."""
        if expected_version not in (0, order.version):
            raise StaleVersion(f"order {order.order_id}", expected_version, order.version)
        try:
            cancelled = model.cancel(order, request.at_ms)
        except FailedPrecondition as refusal:
            return await self._store.answer(request, self._responses.refusal(refusal))
        return await self._store.cancel(request, order, cancelled, reason, self._responses.cancelled(cancelled))

    async def get(self, call: Call, order_id: str) -> Order:
        """Read one order.

        Raises:
            NotFound: ORDER_NOT_FOUND: there is none, or none the caller may see.
        """
        call.concerns(order_id=order_id)
        order = await self._store.get(order_id)
        if order is None or _only(call) not in (None, order.customer_id):
            raise order_not_found(order_id)
        return order

    async def history(self, call: Call, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        """Return the changes of an order behind the version `after`, the oldest first. Raises as `get`."""
        await self.get(call, order_id)
        return await self._store.history(order_id, after=after, limit=limit)

    async def page(self, call: Call, which: OrderFilter, *, limit: int, after: int | None) -> list[Listed]:
        """List orders, newest first; a customer's own only."""
        only = _only(call)
        if only is not None:
            if which.customer_id not in (None, only):
                return []
            which = OrderFilter(only, which.state)
        return await self._store.page(which, limit=limit, after=after)

    def watch(self, call: Call, position: str, order_id: str) -> AsyncGenerator[Changes[Order], None]:
        """Yield the orders that change here, from a position on; a customer's own only. See `ChangeFeed.watch`.

        Args:
            order_id: Only this one; empty: all.
        """
        only = _only(call)
        return self._store.feed.watch(
            position, lambda order: order_id in ("", order.order_id) and only in (None, order.customer_id)
        )

    async def claim(self, call: Call, order_id: str, payment_id: str, fence: Fence, clerk: Principal) -> Order:
        """Claim an order for a payment; it is granted if the order is then PAYING with this payment id.

        Raises:
            NotFound: ORDER_NOT_FOUND.
            StaleFence: Another holder has locked the order since.
        """
        change = Change(order_id, payment_id, fence, clerk, self._clock.now_ms())
        order = await self._change(call, self._store.claim, change)
        await self._failpoints.hit("claimed", call, order_id, payment_id)
        return order

    async def complete(
        self,
        call: Call,
        order_id: str,
        payment_id: str,
        fence: Fence,
        *,
        settled_by: Principal,
        settled_at_ms: int,
    ) -> Order:
        """Mark an order paid by the payment that claimed it.

        Raises:
            FailedPrecondition: ILLEGAL_STATE: this payment has no claim on it.
            NotFound, StaleFence: As `claim`.
        """
        change = Change(order_id, payment_id, fence, settled_by, self._clock.now_ms(), settled_at_ms)
        order = await self._change(call, self._store.complete, change)
        await self._failpoints.hit("completed", call, order_id, payment_id)
        return order

    async def release(
        self,
        call: Call,
        order_id: str,
        payment_id: str,
        fence: Fence,
        *,
        actor: Principal | None = None,
        reason: str = "",
    ) -> Order:
        """Give an order back, whose claiming payment was declined. Raises as `claim`.

        Args:
            actor: On whose behalf; None: the caller's own.
        """
        change = Change(order_id, payment_id, fence, actor or call.principal, self._clock.now_ms(), reason=reason)
        return await self._change(call, self._store.release, change)

    async def reopen(
        self,
        call: Call,
        order_id: str,
        payment_id: str,
        fence: Fence,
        *,
        actor: Principal | None = None,
        reason: str = "",
    ) -> Order:
        """Open the next round of an order, whose paying payment was reversed. Raises as `claim`.

        Args:
            actor: On whose behalf; None: the caller's own.
        """
        change = Change(order_id, payment_id, fence, actor or call.principal, self._clock.now_ms(), reason=reason)
        return await self._change(call, self._store.reopen, change)

    async def _change(
        self, call: Call, step: Callable[[Sequence[Change]], Awaitable[Sequence[MoveOutcome]]], change: Change
    ) -> Order:
        call.concerns(order_id=change.order_id, payment_id=change.payment_id)
        await self._failpoints.hit("accepted", call, change.order_id, change.payment_id)
        (outcome,) = await step([change])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return outcome

    def _request(self, call: Call, method: str, request_id: str, fingerprint: str) -> KeyedRequest:
        return KeyedRequest(RequestKey(call.principal, method, request_id), fingerprint, self._clock.now_ms())


def _only(call: Call) -> str | None:
    """Return the one customer whose orders the caller may see; None: every customer's."""
    return call.principal.name if call.principal.role is Role.CUSTOMER else None
