"""The payment service's store in memory: what `PaymentStore` promises, without a database."""

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
from services.payment.card_owners import card_not_yours
from services.payment.model import (
    ACTIVE,
    NO_RETRY,
    PAY,
    REVERSE,
    UNANSWERED,
    Accepted,
    AcquirerRetry,
    Charge,
    ConflictingPayment,
    OutboxAction,
    Parking,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
    acquirer_key,
    check_quota,
    sources_of,
)
from services.payment.ports import Encode, Filter, Store
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
    purpose: OutboxAction
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

    def finish(self, key: RequestKey, response: StoredResponse, *, now_ms: int) -> bool:
        row = self.rows.get(key)
        if row is not None and not self._guards.ticket:
            self.rows[key] = replace(row, state=RequestState.DONE, response=response)
            return True
        return super().finish(key, response, now_ms=now_ms)


class FakePaymentStore(Store):
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

    # Tickets and requests

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
        with self._transaction():
            execution = self.requests.begin(request, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if quota is not None:
                check_quota(self.requests.unused(ticket.caller, PAY, now_ms=lease.now_ms), quota)
            self.requests.issue(ticket, now_ms=lease.now_ms, expires_at_ms=expires_at_ms, order_id=order_id)
            self.requests.finish(request, answer, now_ms=lease.now_ms)
            return None

    async def ticket_order(self, ticket: RequestKey) -> str:
        order_id = self.requests.order_of(ticket)
        if order_id is None:
            raise NotFound("TICKET_NOT_FOUND", f"there is no ticket {ticket.key} of yours")
        return order_id

    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse:
        with self._transaction():
            start = self.requests.consume if draft.key.method == PAY else self.requests.begin
            execution = start(draft.key, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            earlier = self._of_key(draft.key)
            if earlier is not None and self._guards.ticket:
                return Accepted(execution, earlier)
            self._put(draft)
            return Accepted(execution, draft)

    async def begin_request(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        return self.requests.begin(key, fingerprint, lease)

    async def refuse_request(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None:
        self.requests.finish(key, answer, now_ms=now_ms)

    async def response_to(self, key: RequestKey) -> StoredResponse:
        row = self.requests.find(key)
        if row is None or row.response is None:
            raise RequestInProgress(key.key)
        return row.response

    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        return self.requests.answered(key, fingerprint, now_ms=now_ms)

    async def give_back(self, execution: Execution, *, now_ms: int) -> None:
        self.requests.give_back(execution.key, execution.attempt, now_ms=now_ms)

    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None:
        self.requests.renew(held, until_ms=until_ms)

    # The payment's moves

    async def submit(
        self, payment_id: str, charge: Charge, fence: Fence, *, now_ms: int
    ) -> Payment | ConflictingPayment:
        payment = self._known(payment_id)
        conflicting = next(
            (
                other
                for other in self.payments.values()
                if payment.order_id and other.order_id == payment.order_id and other.state in ACTIVE
            ),
            None,
        )
        moves = payment.state is PaymentState.CREATED and (fence >= payment.fence or not self._guards.fence)
        if moves and conflicting is not None and self._guards.unique:
            return ConflictingPayment(conflicting)
        if moves and payment.card in self.card_owners and not charge.customer_id:
            raise card_not_yours("")
        binds = moves and payment.card and charge.customer_id
        if binds and self.card_owners.setdefault(payment.card, charge.customer_id) != charge.customer_id:
            raise card_not_yours(charge.customer_id)
        attempt = self._next_attempt(payment, charge.round) if charge.by_card else 0
        with self._transaction():
            return self._move(
                payment_id,
                PaymentState.SUBMITTED,
                fence,
                now_ms,
                round=charge.round,
                customer_id=charge.customer_id,
                amount=charge.amount,
                payer_account_id=charge.payer_account_id,
                payee_account_id=charge.payee_account_id,
                attempt=attempt,
                acquirer_key=acquirer_key(payment_id, attempt) if attempt else "",
            )

    async def mark_unknown(
        self, payment_id: str, fence: Fence, *, now_ms: int, retry: AcquirerRetry = NO_RETRY
    ) -> Payment:
        with self._transaction():
            payment = self._move(payment_id, PaymentState.UNKNOWN, fence, now_ms)
            if retry != NO_RETRY and payment.state in UNANSWERED:
                self.payments[payment_id] = replace(payment, retry=retry)
            return payment

    async def record(self, payment_id: str, fence: Fence, journal_id: str, encode: Encode, *, now_ms: int) -> Payment:
        with self._transaction():
            payment = self._move(
                payment_id,
                PaymentState.SUCCEEDED,
                fence,
                now_ms,
                only_from=(PaymentState.SUBMITTED, PaymentState.UNKNOWN),
                journal_id=journal_id,
                settled_at_ms=now_ms,
            )
            if payment.state is PaymentState.SUCCEEDED:
                self._end(payment, payment.key, OutboxAction.COMPLETE, encode, now_ms)
            return payment

    async def decline(
        self, payment_id: str, fence: Fence, reason: str, encode: Encode, *, release: bool, now_ms: int
    ) -> Payment:
        with self._transaction():
            payment = self._move(payment_id, PaymentState.DECLINED, fence, now_ms, decline_reason=reason)
            if payment.state is PaymentState.DECLINED:
                self._end(payment, payment.key, OutboxAction.RELEASE if release else None, encode, now_ms)
            return payment

    async def begin_reversal(self, payment_id: str, fence: Fence, reversal: Reversal, *, now_ms: int) -> Payment:
        with self._transaction():
            known = self._known(payment_id)
            begun_before = known.reversal is not None and known.reversal.key == reversal.key
            can_be_undone = known.state is PaymentState.SUCCEEDED or known.source is Source.CARD
            if begun_before or not can_be_undone:
                return self._seen(known, fence)
            return self._move(payment_id, PaymentState.REVERSING, fence, now_ms, reversal=reversal, retry=NO_RETRY)

    async def record_reversal(
        self, payment: Payment, fence: Fence, undone: ReversalResult, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment:
        was_unknown, in_books = not payment.journal_id, bool(undone.journal_id)
        with self._transaction():
            moved = self._move(
                payment.payment_id,
                PaymentState.REVERSED,
                fence,
                now_ms,
                only_from=(PaymentState.REVERSING,),
                journal_id=undone.journal_id,
                reversal_journal_id=undone.reversal_journal_id,
                settled_at_ms=now_ms if was_unknown and in_books else payment.settled_at_ms,
            )
            if moved.state is PaymentState.REVERSED and moved.reversal is not None:
                if was_unknown:
                    message = OutboxAction.COMPLETE if in_books else OutboxAction.RELEASE
                    self._end(moved, moved.key, message, encode_own, now_ms)
                self._end(moved, moved.reversal.key, OutboxAction.REOPEN if in_books else None, encode, now_ms)
            return moved

    async def refuse_reversal(
        self, payment: Payment, fence: Fence, journal_id: str, answer: StoredResponse, encode: Encode, *, now_ms: int
    ) -> None:
        with self._transaction():
            known = self._known(payment.payment_id)
            if known.version == payment.version:
                moved = self._move(
                    payment.payment_id,
                    PaymentState.SUCCEEDED,
                    fence,
                    now_ms,
                    only_from=(PaymentState.REVERSING,),
                    journal_id=journal_id,
                    settled_at_ms=payment.settled_at_ms if payment.journal_id else now_ms,
                )
            else:
                moved = self._seen(known, fence)
            if moved.state is PaymentState.SUCCEEDED and payment.reversal is not None:
                if not payment.journal_id:
                    self._end(moved, moved.key, OutboxAction.COMPLETE, encode, now_ms)
                self.requests.finish(payment.reversal.key, answer, now_ms=now_ms)

    async def park(
        self, payment_id: str, fence: Fence, parking: Parking, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment:
        with self._transaction():
            known = self._known(payment_id)
            if known.source is not Source.CARD or not known.order_id or known.journal_id:
                return self._seen(known, fence)
            moved = self._move(payment_id, PaymentState.PARKED, fence, now_ms, parking=parking, retry=NO_RETRY)
            if moved.state is PaymentState.PARKED and moved.is_parked_for(parking):
                self._end(moved, moved.key, OutboxAction.RELEASE, encode_own, now_ms)
                if moved.reversal is not None:
                    self._end(moved, moved.reversal.key, None, encode_own, now_ms)
                self._end(moved, parking.key, None, encode, now_ms)
            return moved

    async def record_parked_reversal(self, payment: Payment, *, now_ms: int) -> Payment:
        with self._transaction():
            return self._move(
                payment.payment_id, PaymentState.REVERSED, payment.fence, now_ms, only_from=(PaymentState.PARKED,)
            )

    async def schedule_query(self, key: str) -> None:
        for payment in list(self.payments.values()):
            if key and payment.acquirer_key == key and payment.state in UNANSWERED:
                retry = replace(payment.retry, ask_at_ms=0)
                self.payments[payment.payment_id] = replace(payment, retry=retry)

    async def delivered(self, payment_id: str, purpose: OutboxAction, *, now_ms: int) -> None:
        message = self.outbox.get((payment_id, purpose))
        if message is not None and message.delivered_at_ms is None:
            self.outbox[payment_id, purpose] = replace(message, delivered_at_ms=now_ms)

    # What was left between two commits

    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]:
        resting = {
            key
            for payment in self.payments.values()
            if payment.retry.ask_at_ms > now_ms and payment.state in UNANSWERED
            for key in (payment.key, payment.reversal.key if payment.reversal else None)
        }
        rows = self.requests.overdue(now_ms=now_ms, limit=len(self.requests.rows))
        return [row for row in rows if row.key not in resting][:limit]

    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]:
        found = [
            payment
            for payment in self.payments.values()
            if payment.state is PaymentState.PARKED and payment.retry.ask_at_ms <= now_ms
        ]
        return sorted(found, key=lambda payment: payment.retry.ask_at_ms)[:limit]

    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None:
        return self.requests.take_over(row.key, row.attempt, lease)

    async def undelivered(self, *, before_ms: int, limit: int) -> list[str]:
        messages = [
            message
            for message in self.outbox.values()
            if message.delivered_at_ms is None and message.created_at_ms <= before_ms
        ]
        return [message.payment_id for message in sorted(messages, key=lambda message: message.created_at_ms)][:limit]

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]:
        return tuple(
            purpose
            for purpose in (OutboxAction.COMPLETE, OutboxAction.RELEASE, OutboxAction.REOPEN)
            if (payment_id, purpose) in self.outbox and self.outbox[payment_id, purpose].delivered_at_ms is None
        )

    async def expire(self, *, now_ms: int) -> int:
        with self._transaction():
            keys = self.requests.expire(now_ms=now_ms)
            for key in keys:
                payment = self._of_key(key)
                if payment is not None and payment.state is PaymentState.CREATED:
                    ended = self._move(
                        payment.payment_id,
                        PaymentState.DECLINED,
                        payment.fence,
                        now_ms,
                        decline_reason="TICKET_EXPIRED",
                    )
                    self._tell(ended, OutboxAction.RELEASE, now_ms)
            return len(keys)

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
    def _transaction(self) -> Iterator[None]:
        saved = dict(self.payments), list(self.events), dict(self.outbox), dict(self.requests.rows)
        try:
            yield
        except BaseException:
            self.payments, self.events, self.outbox, self.requests.rows = saved
            raise

    def _move(
        self,
        payment_id: str,
        target: PaymentState,
        fence: Fence,
        now_ms: int,
        *,
        only_from: tuple[PaymentState, ...] = (),
        **values: object,
    ) -> Payment:
        payment = self._known(payment_id)
        if target not in UNANSWERED:
            values["retry"] = replace(payment.retry, attention="")
        if payment.state not in (only_from or sources_of(target)):
            return self._seen(payment, fence)
        moved = replace(
            payment,
            state=target,
            version=payment.version + 1,
            updated_at_ms=now_ms,
            fence=self._raised(payment, fence),
            **values,  # type: ignore[arg-type]  # the fields of Payment
        )
        self._put(moved)
        return moved

    def _next_attempt(self, payment: Payment, in_round: int) -> int:
        earlier = [
            other
            for other in self.payments.values()
            if payment.order_id and (other.order_id, other.round) == (payment.order_id, in_round) and other.attempt
        ]
        return 1 + sum(other.payment_id != payment.payment_id for other in earlier)

    def _seen(self, payment: Payment, fence: Fence) -> Payment:
        """The payment as it stands, with its fence raised."""
        seen = self.payments[payment.payment_id] = replace(payment, fence=self._raised(payment, fence))
        return seen

    def _raised(self, payment: Payment, fence: Fence) -> Fence:
        if fence < payment.fence and self._guards.fence:
            raise StaleFence(payment.order_id, fence, payment.fence)
        return max(fence, payment.fence)

    def _end(
        self, payment: Payment, key: RequestKey, purpose: OutboxAction | None, encode: Encode, now_ms: int
    ) -> None:
        if self.requests.finish(key, encode(payment), now_ms=now_ms) and purpose is not None:
            self._tell(payment, purpose, now_ms)

    def _tell(self, payment: Payment, purpose: OutboxAction, now_ms: int) -> None:
        if payment.order_id:
            message = OutboxMessage(payment.payment_id, purpose, payment.order_id, now_ms, None)
            self.outbox.setdefault((payment.payment_id, purpose), message)

    def _put(self, payment: Payment) -> None:
        self.payments[payment.payment_id] = payment
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
