"""What can be done with orders: who may, in which order, and what is told to whom. No I/O of its own.

A customer's world holds only their own orders: another's is not forbidden but not there, so that nobody learns
which order ids exist. `settled_by` and every name in the history come from tokens, never from a customer's
request.

Failpoints passed: `accepted` before a change's transaction; `claimed` and `completed` after theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, NotFound, PermissionDenied
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, RequestKey
from services.kernel.ids import IdSource, check_reason, is_blank
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import Change, Order, OrderEvent, OrderLine, OrderState, total
from services.runtime.grpc.context import Call

#: One item's result of a step that takes a list: the order as it stands, or why it was refused.
Outcome = Order | CountinghouseError


@dataclass(frozen=True, slots=True)
class Request:
    """One caller's request of a change, as its request id remembers it.

    Args:
        fingerprint: Of the payload, `kernel.idempotency.fingerprint`.
        actor: Who asks; written into the history.
        at_ms: When, in Unix milliseconds.
        reason: Why; written into the history.
    """

    key: RequestKey
    fingerprint: str
    actor: Principal
    at_ms: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An order in a list.

    Args:
        place: Grows from the oldest order to the newest.
    """

    place: int
    order: Order


@dataclass(frozen=True, slots=True)
class Filter:
    """Which orders to list; None: all."""

    customer_id: str | None = None
    state: OrderState | None = None


class Encoding(Protocol):
    """How answers are written down, so that a replay is the same to the byte."""

    def created(self, order: Order) -> bytes:
        """The answer to a creation."""
        ...

    def cancelled(self, order: Order) -> bytes:
        """The answer to a cancellation."""
        ...

    def refused(self, error: CountinghouseError) -> bytes:
        """A definitive refusal."""
        ...


class OrderStore(Protocol):
    """Where orders are kept. Every method is one whole step: all of it happens, or none.

    The four moves of a payment raise the fence of the order first, whatever becomes of the move: a smaller one
    than the order has seen is refused with StaleFence, an equal one is the same holder asking again. The result
    has one entry for each change, in the order asked for; one refused change does not hinder the others.
    """

    async def create(self, request: Request, order: Order, encoding: Encoding) -> Answer:
        """Makes an order and stores the answer with it; stores the refusal ORDER_EXISTS of a taken id.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def answered(self, request: Request) -> Answer | None:
        """Return the stored answer to a request id that was used before; None: it was not.

        Raises:
            KeyMismatch: It was used with another payload.
        """
        ...

    async def cancel(
        self,
        request: Request,
        order_id: str,
        encoding: Encoding,
        *,
        customer_id: str | None,
        expected_version: int,
    ) -> Answer:
        """UNPAID → CANCELLED, and stores the answer; stores the refusal ILLEGAL_STATE.

        Args:
            customer_id: Whose order it must be; None: anybody's.
            expected_version: The version it must be at; 0: any.

        Raises:
            NotFound: ORDER_NOT_FOUND. Not stored: it may be made yet.
            StaleVersion: Not stored: the caller reads again and decides anew.
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def claim(self, changes: Sequence[Change]) -> list[Outcome]:
        """UNPAID → PAYING; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def complete(self, changes: Sequence[Change]) -> list[Outcome]:
        """PAYING → PAID. Refusals: NotFound, StaleFence, FailedPrecondition ILLEGAL_STATE."""
        ...

    async def release(self, changes: Sequence[Change]) -> list[Outcome]:
        """PAYING → UNPAID; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def reopen(self, changes: Sequence[Change]) -> list[Outcome]:
        """PAID → UNPAID, next round; any other order as it stands. Refusals: NotFound, StaleFence."""
        ...

    async def get(self, order_id: str) -> Order | None:
        """One order; None: there is none."""
        ...

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        """The changes of an order behind the version `after`, the oldest first."""
        ...

    async def page(self, which: Filter, *, limit: int, after: int | None) -> list[Listed]:
        """At most `limit` orders, newest first.

        Args:
            after: The place after which to begin; None: at the newest.
        """
        ...


class Failpoints(Protocol):
    """Named moments at which a test may interfere."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Passes the failpoint `name`, about `subjects`."""
        ...


@dataclass(frozen=True, slots=True)
class Draft:
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
        self, store: OrderStore, clock: Clock, ids: IdSource, failpoints: Failpoints, encoding: Encoding
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._failpoints = failpoints
        self._encoding = encoding

    async def create(self, call: Call, request_id: str, fingerprint: str, draft: Draft) -> Answer:
        """Makes an order.

        Raises:
            PermissionDenied: NOT_YOUR_ORDER: a customer asks for somebody else's order; ORDER_ID_NOT_YOURS: they
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
            # Or a customer could ask by a taken id which orders there are, and take the ids that others will want.
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
        await self._failpoints.hit("accepted", call, order.order_id)
        return await self._store.create(request, order, self._encoding)

    async def cancel(
        self, call: Call, request_id: str, fingerprint: str, order_id: str, expected_version: int, reason: str
    ) -> Answer:
        """Cancels an UNPAID order, for a reason.

        Raises:
            InvalidArgument: FIELD_REQUIRED: the reason is blank.
            CountinghouseError: As `OrderStore.cancel`.
        """
        request = replace(self._request(call, "CancelOrder", request_id, fingerprint), reason=reason)
        if is_blank(reason):
            stored = await self._store.answered(request)  # by a release that asked for none
            if stored is not None:
                return stored
            check_reason(reason, "reason")
        await self._failpoints.hit("accepted", call, order_id)
        return await self._store.cancel(
            request, order_id, self._encoding, customer_id=_only(call), expected_version=expected_version
        )

    async def get(self, call: Call, order_id: str) -> Order:
        """Reads one order.

        Raises:
            NotFound: ORDER_NOT_FOUND: there is none, or none the caller may see.
        """
        order = await self._store.get(order_id)
        if order is None or _only(call) not in (None, order.customer_id):
            raise not_found(order_id)
        return order

    async def history(self, call: Call, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        """Return the changes of an order behind the version `after`, the oldest first. Raises as `get`."""
        await self.get(call, order_id)
        return await self._store.history(order_id, after=after, limit=limit)

    async def page(self, call: Call, which: Filter, *, limit: int, after: int | None) -> list[Listed]:
        """Lists orders, newest first; a customer's own only."""
        only = _only(call)
        if only is not None:
            if which.customer_id not in (None, only):
                return []
            which = Filter(only, which.state)
        return await self._store.page(which, limit=limit, after=after)

    async def claim(self, call: Call, order_id: str, payment_id: str, fence: Fence, clerk: Principal) -> Order:
        """Claims an order for a payment; it is granted if the order is then PAYING with this payment id.

        Raises:
            NotFound: ORDER_NOT_FOUND.
            StaleFence: Somebody else has locked the order since.
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
        """Marks an order paid by the payment that claimed it.

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
        """Gives an order back, whose claiming payment was declined. Raises as `claim`.

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
        """Opens the next round of an order, whose paying payment was reversed. Raises as `claim`.

        Args:
            actor: On whose behalf; None: the caller's own.
        """
        change = Change(order_id, payment_id, fence, actor or call.principal, self._clock.now_ms(), reason=reason)
        return await self._change(call, self._store.reopen, change)

    async def _change(
        self, call: Call, step: Callable[[Sequence[Change]], Awaitable[Sequence[Outcome]]], change: Change
    ) -> Order:
        await self._failpoints.hit("accepted", call, change.order_id, change.payment_id)
        (outcome,) = await step([change])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return outcome

    def _request(self, call: Call, method: str, request_id: str, fingerprint: str) -> Request:
        key = RequestKey(call.principal, method, request_id)
        return Request(key, fingerprint, call.principal, self._clock.now_ms())


def _only(call: Call) -> str | None:
    """The one customer whose orders the caller may see; None: everybody's."""
    return call.principal.name if call.principal.role is Role.CUSTOMER else None


def not_found(order_id: str) -> NotFound:
    """There is no such order, or none the caller may see."""
    return NotFound("ORDER_NOT_FOUND", f"there is no order {order_id}; check the id", metadata={"order_id": order_id})
