"""The payment database in memory: what `SqlPaymentStore` and `SqlRequestRecords` promise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from services.kernel.errors import NotFound, RequestInProgress, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import (
    Execution,
    Lease,
    RequestKey,
    RequestRow,
    RequestState,
    StoredResponse,
)
from services.kernel.principal import Principal
from services.payment.model import (
    ACTIVE,
    PAY,
    REVERSE,
    UNANSWERED,
    Accepted,
    AcquirerRetry,
    Change,
    ConflictingPayment,
    OutboxAction,
    Payment,
    PaymentEvent,
    PaymentState,
    Source,
    Step,
    acquirer_key,
    card_not_yours,
    check_quota,
    plan,
)
from services.payment.ports import Filter, PaymentStore, RequestRecords
from services.runtime.change_feed import ChangeFeed
from tests.fakes.request_table import FakeRequestTable


@dataclass(frozen=True, slots=True)
class Event:
    """One row of a payment's history, as `payment_events` has it."""

    payment_id: str
    version: int
    state: PaymentState
    fence: Fence
    at_ms: int
    actor: Principal | None = field(default=None, compare=False)
    reason: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """One row of the outbox."""

    payment_id: str
    action: OutboxAction
    order_id: str
    created_at_ms: int
    delivered_at_ms: int | None


class GuardedRequestTable(FakeRequestTable):
    """The fake table with the guards `ticket` and `recovery` on a switch."""

    def __init__(self, guards: Guards) -> None:
        super().__init__()
        self._guards = guards

    def consume(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        row = self.rows.get(key)
        if row is not None and not self._guards.ticket:
            return self._started(replace(row, fingerprint=fingerprint), lease, first=row.state is RequestState.ISSUED)
        if row is not None and not self._guards.recovery and row.state is RequestState.IN_PROGRESS:
            raise RequestInProgress(key.key)
        return super().consume(key, fingerprint, lease)

    def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        return super().answered(key, fingerprint, now_ms=now_ms) if self._guards.ticket else None

    def finish(self, key: RequestKey, response: StoredResponse, *, now_ms: int) -> bool:
        row = self.rows.get(key)
        if row is not None and not self._guards.ticket:
            self.rows[key] = replace(row, state=RequestState.DONE, response=response)
            return True
        return super().finish(key, response, now_ms=now_ms)


class FakePaymentStore(PaymentStore):
    """Never waits, so each step is whole by itself; one that raises is undone.

    Args:
        guards: As for the real store.
    """

    def __init__(self, guards: Guards | None = None) -> None:
        self._guards = guards or Guards()
        self.requests = GuardedRequestTable(self._guards)
        self.payments: dict[str, Payment] = {}
        self.events: list[Event] = []
        self.outbox: dict[tuple[str, OutboxAction], OutboxMessage] = {}
        self.card_owners: dict[str, str] = {}
        self.feed: ChangeFeed[Payment] = ChangeFeed()
        self._changed: list[Payment] = []

    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse:
        with self.transaction():
            start = self.requests.consume if draft.key.method == PAY else self.requests.begin
            execution = start(draft.key, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            earlier = self._of_key(draft.key)
            if earlier is not None and self._guards.ticket:
                return Accepted(execution, earlier)
            self._put(draft)
            return Accepted(execution, draft)

    # The payment's transitions

    async def apply(self, change: Change, fence: Fence) -> Payment:
        with self.transaction():
            return self._apply(change, fence) or await self.raise_fence(change.before.payment_id, fence)

    async def submit(self, change: Change, fence: Fence) -> Payment | ConflictingPayment:
        before, after = change.before, change.after
        known = self._known(before.payment_id)
        active = [
            other
            for other in self.payments.values()
            if known.order_id and other.order_id == known.order_id and other.state in ACTIVE
        ]
        moves = known.version == before.version and (fence >= known.fence or not self._guards.fence)
        if moves and active and self._guards.unique:
            return ConflictingPayment(active[0])
        if moves and known.card in self.card_owners and not after.customer_id:
            raise card_not_yours("")
        binds = moves and known.card and after.customer_id
        if binds and self.card_owners.setdefault(known.card, after.customer_id) != after.customer_id:
            raise card_not_yours(after.customer_id)
        if known.source is Source.CARD:
            attempt = self._next_attempt(known, after.round)
            key = acquirer_key(known.payment_id, attempt)
            change = replace(change, after=replace(after, attempt=attempt, acquirer_key=key))
        return await self.apply(change, fence)

    async def expire(self, *, now_ms: int) -> int:
        with self.transaction():
            keys = self.requests.expire(now_ms=now_ms)
            for key in keys:
                payment = self._of_key(key)
                change = payment and plan(Step.EXPIRE, payment, now_ms, decline_reason="TICKET_EXPIRED")
                if change:
                    self._apply(change, change.before.fence)
            return len(keys)

    async def raise_fence(self, payment_id: str, fence: Fence) -> Payment:
        payment = self._known(payment_id)
        seen = self.payments[payment_id] = replace(payment, fence=self._raised(payment, fence))
        return seen

    # When the acquirer is to be asked again

    async def schedule_retry(self, payment_id: str, fence: Fence, retry: AcquirerRetry) -> None:
        payment = await self.raise_fence(payment_id, fence)
        if payment.state in UNANSWERED:
            self.payments[payment_id] = replace(payment, retry=retry)
            self.feed.publish([self.payments[payment_id]])

    async def schedule_query(self, key: str) -> None:
        for payment in list(self.payments.values()):
            if key and payment.acquirer_key == key and payment.state in UNANSWERED:
                retry = replace(payment.retry, ask_at_ms=0)
                self.payments[payment.payment_id] = replace(payment, retry=retry)

    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]:
        found = [
            payment
            for payment in self.payments.values()
            if payment.state is PaymentState.PARKED and payment.retry.ask_at_ms <= now_ms
        ]
        return sorted(found, key=lambda payment: payment.retry.ask_at_ms)[:limit]

    # What the order service is to be told

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]:
        return tuple(
            purpose
            for purpose in (OutboxAction.COMPLETE, OutboxAction.RELEASE, OutboxAction.REOPEN)
            if (payment_id, purpose) in self.outbox and self.outbox[payment_id, purpose].delivered_at_ms is None
        )

    async def delivered(self, payment_id: str, action: OutboxAction, *, now_ms: int) -> None:
        message = self.outbox.get((payment_id, action))
        if message is not None and message.delivered_at_ms is None:
            self.outbox[payment_id, action] = replace(message, delivered_at_ms=now_ms)

    async def undelivered(self, *, now_ms: int, grace_ms: int, limit: int) -> list[str]:
        messages = [
            message
            for message in self.outbox.values()
            if message.delivered_at_ms is None and not -grace_ms <= now_ms - message.created_at_ms < grace_ms
        ]
        return [message.payment_id for message in sorted(messages, key=lambda message: message.created_at_ms)][:limit]

    # Reading

    async def get(self, payment_id: str) -> Payment:
        return self._known(payment_id)

    async def of_request(self, key: RequestKey) -> Payment | None:
        if key.method != REVERSE:
            return self._of_key(key)
        return next(
            (
                payment
                for payment in self.payments.values()
                if payment.reversal is not None and payment.reversal.key == key
            ),
            None,
        )

    async def history(self, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]:
        found = [event for event in self.events if event.payment_id == payment_id and event.version > after]
        return [
            PaymentEvent(
                event.payment_id, event.version, event.state, event.fence, event.at_ms, event.actor, event.reason
            )
            for event in sorted(found, key=lambda event: event.version)[:limit]
        ]

    async def page(
        self,
        which: Filter,
        *,
        limit: int,
        after: tuple[int, str] | None,
        seen_by: Principal | None,
    ) -> list[Payment]:
        found = [
            payment
            for payment in self.payments.values()
            if (after is None or (payment.created_at_ms, payment.payment_id) < after)
            and which.state in {None, payment.state}
            and which.source in {None, payment.source}
            and which.order_id in {"", payment.order_id}
            and (payment.attention or not which.needs_attention)
            and (seen_by is None or payment.is_seen_by(seen_by))
        ]
        found.sort(key=lambda payment: (payment.created_at_ms, payment.payment_id), reverse=True)
        return found[:limit]

    # Parts of steps

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Undo all that was done inside if it raises; tell the feed of it if not."""
        self._changed = []
        saved = dict(self.payments), list(self.events), dict(self.outbox), dict(self.requests.rows)
        try:
            yield
        except BaseException:
            self.payments, self.events, self.outbox, self.requests.rows = saved
            raise
        self.feed.publish(self._changed)

    def _apply(self, change: Change, fence: Fence) -> Payment | None:
        known, row = self._known(change.before.payment_id), change.transition
        raised = self._raised(known, fence)
        if known.version != change.before.version or known.state not in row.only_from:
            return None
        after = change.after
        always = ("state", "version", "updated_at_ms")
        values = {name: getattr(after, name) for name in (*always, *row.sets)}
        values.setdefault("retry", replace(known.retry, attention=after.retry.attention))
        payment = replace(known, fence=raised, **values)
        self._put(payment)
        for key, answer in change.answers:
            self.requests.finish(key, answer, now_ms=payment.updated_at_ms)
        if change.step is Step.BEGIN_REVERSAL and payment.reversal:
            self.requests.reopen(payment.reversal.key, now_ms=payment.updated_at_ms)
        for action in change.outbox:
            message = OutboxMessage(payment.payment_id, action, payment.order_id, payment.updated_at_ms, None)
            self.outbox.setdefault((payment.payment_id, action), message)
        return payment

    def _next_attempt(self, payment: Payment, in_round: int) -> int:
        earlier = [
            other
            for other in self.payments.values()
            if payment.order_id and (other.order_id, other.round) == (payment.order_id, in_round) and other.attempt
        ]
        return 1 + sum(other.payment_id != payment.payment_id for other in earlier)

    def _raised(self, payment: Payment, fence: Fence) -> Fence:
        if fence < payment.fence and self._guards.fence:
            raise StaleFence(payment.order_id, fence, payment.fence)
        return max(fence, payment.fence)

    def _put(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment
        self._changed.append(payment)
        self.events.append(
            Event(
                payment.payment_id,
                payment.version,
                payment.state,
                payment.fence,
                payment.updated_at_ms,
                *payment.latest_change,
            )
        )

    def _known(self, payment_id: str) -> Payment:
        if payment_id not in self.payments:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return self.payments[payment_id]

    def _of_key(self, key: RequestKey) -> Payment | None:
        return next((payment for payment in self.payments.values() if payment.key == key), None)


class FakeRequestRecords(RequestRecords):
    """The tickets and requests beside the payments of a fake store."""

    def __init__(self, store: FakePaymentStore) -> None:
        self._store = store
        self._table = store.requests

    async def issue(
        self,
        request: RequestKey,
        fingerprint: str,
        ticket: RequestKey,
        *,
        lease: Lease,
        expires_at_ms: int,
        order_id: str,
        answer: StoredResponse,
        quota: int | None,
    ) -> StoredResponse | None:
        with self._store.transaction():
            execution = self._table.begin(request, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if quota is not None:
                check_quota(self._table.unused(ticket.caller, PAY, now_ms=lease.now_ms), quota)
            self._table.issue(ticket, now_ms=lease.now_ms, expires_at_ms=expires_at_ms, order_id=order_id)
            self._table.finish(request, answer, now_ms=lease.now_ms)
            return None

    async def ticket_order(self, ticket: RequestKey) -> str:
        order_id = self._table.order_of(ticket)
        if order_id is None:
            raise NotFound("TICKET_NOT_FOUND", f"there is no ticket {ticket.key} of yours")
        return order_id

    async def begin(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        return self._table.begin(key, fingerprint, lease)

    async def finish(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None:
        self._table.finish(key, answer, now_ms=now_ms)

    async def response_to(self, key: RequestKey) -> StoredResponse:
        row = self._table.find(key)
        if row is None or row.response is None:
            raise RequestInProgress(key.key)
        return row.response

    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        return self._table.answered(key, fingerprint, now_ms=now_ms)

    async def give_back(self, execution: Execution, *, now_ms: int) -> bool:
        return self._table.give_back(execution.key, execution.attempt, now_ms=now_ms)

    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None:
        self._table.renew(held, until_ms=until_ms)

    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]:
        resting = {
            key
            for payment in self._store.payments.values()
            if payment.retry.ask_at_ms > now_ms and payment.state in UNANSWERED
            for key in (payment.key, payment.reversal.key if payment.reversal else None)
        }
        rows = self._table.overdue(now_ms=now_ms, limit=len(self._table.rows))
        return [row for row in rows if row.key not in resting][:limit]

    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None:
        return self._table.take_over(row.key, row.attempt, lease)
