"""Each step on the payment service's tables as one transaction. SQL is here, in `schema.py` and `statements.py`.

A step that changes a payment does it by one conditional UPDATE on (id, state, fence) and writes the event in the same
transaction. Where no row matches, the step finds out why: the fence is stale (refused), or the payment is already there
(answered as it stands, with the fence raised). The response to a request is stored in the transaction of the effect.

With the guard `fence` off, fences are kept but not compared; with `unique` off, the index is dropped by `prepare`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    exists,
    insert,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.dml import Update

from services.kernel.errors import NotFound, RequestInProgress, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow, StoredResponse
from services.kernel.principal import Principal
from services.payment.card_owners import bind_card
from services.payment.model import (
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
from services.payment.ports import Encode, Filter
from services.payment.schema import (
    EVENTS,
    IS_ACTIVE,
    ONE_ACTIVE_PER_ORDER,
    OUTBOX,
    PAYMENTS,
    REQUESTS,
    to_event,
    to_event_row,
    to_outbox_row,
    to_payment,
    to_row,
)
from services.payment.statements import earlier_attempts, made_by, page_of, raise_fence, undone_for
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import Requests, insert_if_absent, is_named, named

_INSERT_PAYMENT = insert(PAYMENTS)
_INSERT_EVENT = insert(EVENTS)
_NAME_TICKET = update(REQUESTS).where(is_named(REQUESTS)).values(ticket_key=bindparam("ticket"))


class PaymentStore:
    """The payment database.

    Args:
        guards: Which guards are on.
    """

    def __init__(self, database: Database, guards: Guards) -> None:
        self._database = database
        self._guards = guards
        self._requests = Requests(REQUESTS, guards)
        self._raise_fence = raise_fence(guarded=guards.fence)
        self._moves: dict[tuple[object, ...], Update] = {}

    async def prepare(self) -> None:
        """Makes the unique index stand, or, with the guard off, fall."""

        async def step(tx: AsyncConnection) -> None:
            if self._guards.unique:
                await tx.run_sync(ONE_ACTIVE_PER_ORDER.create, checkfirst=True)
            else:
                await tx.run_sync(ONE_ACTIVE_PER_ORDER.drop, checkfirst=True)

        await self._database.run(step)

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
        """Makes a ticket and stores the answer to the request for it; returns the stored answer of an earlier one.

        Args:
            quota: How many tickets the caller may have open; None: any number.

        Raises:
            ResourceExhausted: TICKET_QUOTA.
        """

        async def step(tx: AsyncConnection) -> StoredResponse | None:
            execution = await self._requests.begin(tx, request, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if quota is not None:
                check_quota(await self._requests.unused(tx, ticket.caller, PAY, now_ms=lease.now_ms), quota)
            await self._requests.issue(tx, ticket, now_ms=lease.now_ms, expires_at_ms=expires_at_ms, order_id=order_id)
            await tx.execute(_NAME_TICKET, named(request) | {"ticket": ticket.key})
            await self._requests.finish(tx, request, answer, now_ms=lease.now_ms)
            return None

        return await self._database.run(step)

    async def ticket_order(self, ticket: RequestKey) -> str:
        """The order that a ticket names; empty: none.

        Raises:
            NotFound: TICKET_NOT_FOUND.
        """

        async def step(tx: AsyncConnection) -> str | None:
            return await self._requests.order_of(tx, ticket)

        order_id = await self._database.read(step)
        if order_id is None:
            raise NotFound("TICKET_NOT_FOUND", f"there is no ticket {ticket.key} of yours; fetch one with IssueTicket")
        return order_id

    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse:
        """Starts the request of a payment and writes the payment; an earlier execution's payment is carried on.

        Raises:
            KeyMismatch, RequestInProgress, NotFound, FailedPrecondition: As `Requests.consume`.
        """

        async def step(tx: AsyncConnection) -> Accepted | StoredResponse:
            start = self._requests.consume if draft.key.method == PAY else self._requests.begin
            execution = await start(tx, draft.key, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if self._guards.ticket and not execution.fresh:
                earlier = await self._find(tx, *made_by(draft.key))
                if earlier is not None:
                    return Accepted(execution, earlier)
            await tx.execute(_INSERT_PAYMENT, to_row(draft))
            await self._write_event(tx, draft)
            return Accepted(execution, draft)

        return await self._database.run(step)

    async def begin_request(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        """Starts a request that makes no payment of its own: a reversal."""

        async def step(tx: AsyncConnection) -> Execution | StoredResponse:
            return await self._requests.begin(tx, key, fingerprint, lease)

        return await self._database.run(step)

    async def refuse_request(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None:
        """Stores a definitive refusal of a request that has no payment to change."""

        async def step(tx: AsyncConnection) -> None:
            await self._requests.finish(tx, key, answer, now_ms=now_ms)

        await self._database.run(step)

    async def response_to(self, key: RequestKey) -> StoredResponse:
        """What a finished request was answered with.

        Raises:
            RequestInProgress: It is not finished.
        """

        async def step(tx: AsyncConnection) -> RequestRow | None:
            return await self._requests.find(tx, key)

        row = await self._database.read(step)
        if row is None or row.response is None:
            raise RequestInProgress(key.key)
        return row.response

    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        """What a request was answered with, if it was; raises KeyMismatch."""

        async def step(tx: AsyncConnection) -> StoredResponse | None:
            return await self._requests.answered(tx, key, fingerprint, now_ms=now_ms)

        return await self._database.read(step)

    async def give_back(self, execution: Execution, *, now_ms: int) -> None:
        """Lets the same request run again, since nothing was done under it."""

        async def step(tx: AsyncConnection) -> None:
            await self._requests.give_back(tx, execution.key, execution.attempt, now_ms=now_ms)

        await self._database.run(step)

    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None:
        """Moves the end of the leases of running executions; a moment in the past lets others carry on at once."""

        async def step(tx: AsyncConnection) -> None:
            await self._requests.renew(tx, held, until_ms=until_ms)

        await self._database.run(step)

    # The payment's moves

    async def submit(
        self, payment_id: str, charge: Charge, fence: Fence, *, now_ms: int
    ) -> Payment | ConflictingPayment:
        """CREATED → SUBMITTED, before the acquirer or the ledger is asked.

        Raises:
            StaleFence: The order has been locked by somebody else since.
            FailedPrecondition: CARD_NOT_YOURS. Nothing is changed.
        """

        async def step(tx: AsyncConnection) -> Payment:
            attempt = 0
            if charge.by_card:  # all attempts before it were definitively declined
                attempt = 1 + (await tx.execute(earlier_attempts(payment_id, charge.round))).scalar_one()
            payment = await self._move(
                tx,
                payment_id,
                PaymentState.SUBMITTED,
                fence,
                now_ms,
                round=charge.round,
                customer_id=charge.customer_id,
                amount_minor=charge.amount.minor_units,
                currency=charge.amount.currency,
                payer_account_id=charge.payer_account_id,
                payee_account_id=charge.payee_account_id,
                attempt=attempt,
                acquirer_key=acquirer_key(payment_id, attempt) if attempt else "",
            )
            await bind_card(tx, payment, now_ms=now_ms)
            return payment

        try:
            return await self._database.run(step)
        except IntegrityError:
            active = await self._active_beside(payment_id)
            if active is None:
                raise
            return ConflictingPayment(active)

    async def mark_unknown(
        self, payment_id: str, fence: Fence, *, now_ms: int, retry: AcquirerRetry = NO_RETRY
    ) -> Payment:
        """SUBMITTED → UNKNOWN: the ledger or the acquirer was asked and nobody told us the outcome.

        Args:
            retry: Written down for a payment that then waits for the acquirer, whether or not it was SUBMITTED.
        """
        columns = PAYMENTS.c
        note_retry = (
            update(PAYMENTS)
            .where(columns.payment_id == payment_id, columns.state.in_(UNANSWERED))
            .values(asks=retry.asks, ask_at_ms=retry.ask_at_ms, attention=retry.attention)
        )

        async def step(tx: AsyncConnection) -> Payment:
            payment = await self._move(tx, payment_id, PaymentState.UNKNOWN, fence, now_ms)
            if retry != NO_RETRY:
                await tx.execute(note_retry)
            return payment

        return await self._database.run(step)

    async def record(self, payment_id: str, fence: Fence, journal_id: str, encode: Encode, *, now_ms: int) -> Payment:
        """SUBMITTED or UNKNOWN → SUCCEEDED, with the stored response and the message to the order service."""

        async def step(tx: AsyncConnection) -> Payment:
            payment = await self._move(
                tx,
                payment_id,
                PaymentState.SUCCEEDED,
                fence,
                now_ms,
                only_from=(PaymentState.SUBMITTED, PaymentState.UNKNOWN),
                journal_id=journal_id,
                settled_at_ms=now_ms,
            )
            if payment.state is PaymentState.SUCCEEDED:
                await self._end(tx, payment, payment.key, OutboxAction.COMPLETE, encode, now_ms)
            return payment

        return await self._database.run(step)

    async def decline(
        self, payment_id: str, fence: Fence, reason: str, encode: Encode, *, release: bool, now_ms: int
    ) -> Payment:
        """To DECLINED, with the stored refusal.

        Args:
            release: Whether the order service has to be told that the order is free again.
        """

        async def step(tx: AsyncConnection) -> Payment:
            payment = await self._move(tx, payment_id, PaymentState.DECLINED, fence, now_ms, decline_reason=reason)
            if payment.state is PaymentState.DECLINED:
                await self._end(tx, payment, payment.key, OutboxAction.RELEASE if release else None, encode, now_ms)
            return payment

        return await self._database.run(step)

    async def begin_reversal(self, payment_id: str, fence: Fence, reversal: Reversal, *, now_ms: int) -> Payment:
        """SUCCEEDED → REVERSING for this request, and of a card UNKNOWN → REVERSING; else the payment as it stands.

        A request whose reversal the ledger refused has been answered: it begins no other.
        """
        columns = PAYMENTS.c
        begun_before = and_(*undone_for(reversal.key))
        can_be_undone = or_(columns.state == PaymentState.SUCCEEDED, columns.source == Source.CARD)

        async def step(tx: AsyncConnection) -> Payment:
            return await self._move(
                tx,
                payment_id,
                PaymentState.REVERSING,
                fence,
                now_ms,
                only_if=and_(not_(begun_before), can_be_undone),
                reversal_caller=reversal.key.caller.name,
                reversal_role=reversal.clerk.role,
                reversal_key=reversal.key.key,
                reversal_reason=reversal.reason,
                asks=0,
                ask_at_ms=0,
                attention="",
            )

        return await self._database.run(step)

    async def record_reversal(
        self, payment: Payment, fence: Fence, undone: ReversalResult, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment:
        """REVERSING → REVERSED, with the stored response and the message to the order service.

        One that was UNKNOWN before ends its own request here, too. If it had been charged, the order service hears that
        it was paid, and that it is not any more; otherwise that the order is free again.

        Args:
            payment: As it was when it was undone.
            encode: Makes the response to the reversal; `encode_own` that to the payment's own request.
        """
        was_unknown = not payment.journal_id
        in_books = bool(undone.journal_id)
        settled_at_ms = now_ms if was_unknown and in_books else payment.settled_at_ms

        async def step(tx: AsyncConnection) -> Payment:
            moved = await self._move(
                tx,
                payment.payment_id,
                PaymentState.REVERSED,
                fence,
                now_ms,
                journal_id=undone.journal_id,
                only_from=(PaymentState.REVERSING,),
                reversal_journal_id=undone.reversal_journal_id,
                settled_at_ms=settled_at_ms,
            )
            if moved.state is PaymentState.REVERSED and moved.reversal is not None:
                if was_unknown:
                    message = OutboxAction.COMPLETE if in_books else OutboxAction.RELEASE
                    await self._end(tx, moved, moved.key, message, encode_own, now_ms)
                word_undone = OutboxAction.REOPEN if in_books else None
                await self._end(tx, moved, moved.reversal.key, word_undone, encode, now_ms)
            return moved

        return await self._database.run(step)

    async def refuse_reversal(
        self, payment: Payment, fence: Fence, journal_id: str, answer: StoredResponse, encode: Encode, *, now_ms: int
    ) -> None:
        """REVERSING → SUCCEEDED: the ledger definitively refused. The next reversal is another request's.

        Args:
            payment: As it was when the ledger was asked; a later reversal is not touched.
            journal_id: Its journal, which stands. One that was UNKNOWN before has succeeded hereby.
            answer: To the reversal; `encode` makes that to the payment's own request, if it is still open.
        """
        was_unknown = not payment.journal_id
        settled_at_ms = now_ms if was_unknown else payment.settled_at_ms

        async def step(tx: AsyncConnection) -> None:
            moved = await self._move(
                tx,
                payment.payment_id,
                PaymentState.SUCCEEDED,
                fence,
                now_ms,
                only_from=(PaymentState.REVERSING,),
                only_if=PAYMENTS.c.version == payment.version,
                journal_id=journal_id,
                settled_at_ms=settled_at_ms,
            )
            if moved.state is PaymentState.SUCCEEDED and payment.reversal is not None:
                if was_unknown:
                    await self._end(tx, moved, moved.key, OutboxAction.COMPLETE, encode, now_ms)
                await self._requests.finish(tx, payment.reversal.key, answer, now_ms=now_ms)

        await self._database.run(step)

    async def park(
        self, payment_id: str, fence: Fence, parking: Parking, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment:
        """SUBMITTED, UNKNOWN, REVERSING → PARKED, of an order's card without a journal; else the payment as it stands.

        Ends the payment's own request, the one that was to reverse it and the one that parks it, and leaves the order
        service to be told that the order is free. The acquirer is asked to reverse its key at the worker's next look.

        Args:
            encode: Makes the response to the parking; `encode_own` that to the others.
        """
        columns = PAYMENTS.c

        async def step(tx: AsyncConnection) -> Payment:
            moved = await self._move(
                tx,
                payment_id,
                PaymentState.PARKED,
                fence,
                now_ms,
                only_if=and_(columns.source == Source.CARD, columns.order_id != "", columns.journal_id == ""),
                parking_caller=parking.key.caller.name,
                parking_role=parking.clerk.role,
                parking_key=parking.key.key,
                parking_reason=parking.reason,
                asks=0,
                ask_at_ms=0,
                attention="",
            )
            if moved.state is PaymentState.PARKED and moved.is_parked_for(parking):
                await self._end(tx, moved, moved.key, OutboxAction.RELEASE, encode_own, now_ms)
                if moved.reversal is not None:
                    await self._end(tx, moved, moved.reversal.key, None, encode_own, now_ms)
                await self._end(tx, moved, parking.key, None, encode, now_ms)
            return moved

        return await self._database.run(step)

    async def record_parked_reversal(self, payment: Payment, *, now_ms: int) -> Payment:
        """PARKED → REVERSED: the acquirer holds nothing under its key and never will. Nobody waits to be told.

        Args:
            payment: As it was when the acquirer was asked; its fence is kept.
        """

        async def step(tx: AsyncConnection) -> Payment:
            return await self._move(
                tx, payment.payment_id, PaymentState.REVERSED, payment.fence, now_ms, only_from=(PaymentState.PARKED,)
            )

        return await self._database.run(step)

    async def schedule_query(self, key: str) -> None:
        """Lets the worker ask at its next look what became of an acquirer's key, if a payment waits for that."""
        columns = PAYMENTS.c

        async def step(tx: AsyncConnection) -> None:
            await tx.execute(
                update(PAYMENTS)
                .where(
                    columns.payment_id == key.rpartition(":")[0],
                    columns.acquirer_key == key,
                    columns.state.in_(UNANSWERED),
                )
                .values(ask_at_ms=0)
            )

        await self._database.run(step)

    async def delivered(self, payment_id: str, purpose: OutboxAction, *, now_ms: int) -> None:
        """Notes that the order service has been told."""

        async def step(tx: AsyncConnection) -> None:
            columns = OUTBOX.c
            await tx.execute(
                update(OUTBOX)
                .where(
                    columns.payment_id == payment_id,
                    columns.purpose == purpose,
                    columns.delivered_at_ms.is_(None),
                )
                .values(delivered_at_ms=now_ms)
            )

        await self._database.run(step)

    # What was left between two commits

    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]:
        """Executions whose lease has passed, but for those whose payment is not to be asked about yet."""
        columns, request = PAYMENTS.c, REQUESTS.c
        own = and_(
            columns.request_caller == request.caller,
            columns.request_role == request.caller_role,
            columns.request_method == request.method,
            columns.request_key == request.key,
        )
        undoing = and_(
            columns.reversal_caller == request.caller,
            columns.reversal_role == request.caller_role,
            columns.reversal_key == request.key,
        )
        resting = and_(columns.ask_at_ms > now_ms, columns.state.in_(UNANSWERED))

        async def step(tx: AsyncConnection) -> list[RequestRow]:
            return await self._requests.overdue(
                tx,
                not_(exists().where(own, resting)),
                not_(and_(request.method == REVERSE, exists().where(undoing, resting))),
                now_ms=now_ms,
                limit=limit,
            )

        return await self._database.read(step)

    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]:
        """Parked payments whose key the acquirer is to be asked to reverse by now, those that wait longest first."""
        columns = PAYMENTS.c

        async def step(tx: AsyncConnection) -> list[Payment]:
            query = (
                select(PAYMENTS)
                .where(columns.state == str(PaymentState.PARKED), columns.ask_at_ms <= now_ms)
                .order_by(columns.ask_at_ms)
                .limit(limit)
            )
            return [to_payment(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None:
        """Carries on an execution; None: somebody else does."""

        async def step(tx: AsyncConnection) -> Execution | None:
            return await self._requests.take_over(tx, row.key, row.attempt, lease)

        return await self._database.run(step)

    async def undelivered(self, *, before_ms: int, limit: int) -> list[str]:
        """Payments of which the order service has not been told since `before_ms`, by id."""

        async def step(tx: AsyncConnection) -> list[str]:
            columns = OUTBOX.c
            rows = await tx.execute(
                select(columns.payment_id)
                .where(columns.delivered_at_ms.is_(None), columns.created_at_ms <= before_ms)
                .order_by(columns.created_at_ms)
                .limit(limit)
            )
            return list(rows.scalars())

        return await self._database.read(step)

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]:
        """What the order service has yet to be told of a payment, in the order in which it came about.

        That is the order of their names, COMPLETE or RELEASE before REOPEN; the wall clock may have gone back between.
        """

        async def step(tx: AsyncConnection) -> tuple[OutboxAction, ...]:
            columns = OUTBOX.c
            rows = await tx.execute(
                select(columns.purpose)
                .where(columns.payment_id == payment_id, columns.delivered_at_ms.is_(None))
                .order_by(columns.purpose)
            )
            return tuple(OutboxAction(row) for row in rows.scalars())

        return await self._database.read(step)

    async def expire(self, *, now_ms: int) -> int:
        """Ends tickets and requests whose time passed before they were used, and the payments begun under them."""

        async def step(tx: AsyncConnection) -> int:
            keys = await self._requests.expire(tx, now_ms=now_ms)
            for key in keys:
                payment = await self._find(tx, *made_by(key), PAYMENTS.c.state == PaymentState.CREATED)
                if payment is not None:
                    reason = "TICKET_EXPIRED"
                    ended = await self._move(
                        tx, payment.payment_id, PaymentState.DECLINED, payment.fence, now_ms, decline_reason=reason
                    )
                    await self._tell(tx, ended, OutboxAction.RELEASE, now_ms)  # harmless if the order was never claimed
            return len(keys)

        return await self._database.run(step)

    # Reading

    async def get(self, payment_id: str) -> Payment:
        """Raises NotFound: PAYMENT_NOT_FOUND."""

        async def step(tx: AsyncConnection) -> Payment | None:
            return await self._find(tx, PAYMENTS.c.payment_id == payment_id)

        payment = await self._database.read(step)
        if payment is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return payment

    async def of_request(self, key: RequestKey) -> Payment | None:
        """The payment that a request made, or that it reverses."""

        async def step(tx: AsyncConnection) -> Payment | None:
            if key.method != REVERSE:
                return await self._find(tx, *made_by(key))
            return await self._find(tx, *undone_for(key))

        return await self._database.read(step)

    async def history(self, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]:
        """The changes of a payment behind the version `after`, the oldest first."""
        columns = EVENTS.c
        wanted = select(EVENTS).where(columns.payment_id == payment_id, columns.version > after)

        async def step(tx: AsyncConnection) -> list[PaymentEvent]:
            return [to_event(row) for row in await tx.execute(wanted.order_by(columns.version).limit(limit))]

        return await self._database.read(step)

    async def page(
        self, which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None
    ) -> list[Payment]:
        """Payments, newest first.

        Args:
            after: (created_at_ms, payment_id) of the last one before.
            seen_by: Only payments made by or for this customer; None: all.
        """

        async def step(tx: AsyncConnection) -> list[Payment]:
            query = page_of(which, limit=limit, after=after, seen_by=seen_by)
            return [to_payment(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    # Parts of steps

    async def _move(
        self,
        tx: AsyncConnection,
        payment_id: str,
        target: PaymentState,
        fence: Fence,
        now_ms: int,
        *,
        only_from: tuple[PaymentState, ...] = (),
        only_if: ColumnElement[bool] | None = None,
        **values: object,
    ) -> Payment:
        """The conditional UPDATE behind every move. A payment that cannot make it is returned as it stands.

        A payment that is SUCCEEDED is made so by `record`, or again by `refuse_reversal`: `only_from` keeps them apart.
        """
        if target not in UNANSWERED:
            values["attention"] = ""
        carried = {"of_payment": payment_id, "generation": fence.generation, "token": fence.token}
        statement = self._move_to(target, only_from or sources_of(target), tuple(values))
        if only_if is not None:
            statement = statement.where(only_if)
        changes = {f"new_{name}": value for name, value in values.items()}
        row = (await tx.execute(statement, carried | changes | {"now_ms": now_ms})).one_or_none()
        if row is not None:
            payment = to_payment(row)
            await self._write_event(tx, payment)
            return payment
        row = (await tx.execute(self._raise_fence, carried)).one_or_none()
        if row is not None:
            return to_payment(row)
        payment_now = await self._find(tx, PAYMENTS.c.payment_id == payment_id)
        if payment_now is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id}")
        raise StaleFence(payment_now.order_id, fence, payment_now.fence)

    def _move_to(self, target: PaymentState, sources: tuple[PaymentState, ...], names: tuple[str, ...]) -> Update:
        """The statement of a move that also changes the columns `names`; made once."""
        kind = (target, sources, names)
        if kind not in self._moves:
            columns = PAYMENTS.c
            self._moves[kind] = (
                self._raise_fence.where(columns.state.in_(sources))
                .values(state=target, version=columns.version + 1, updated_at_ms=bindparam("now_ms"))
                .values({name: bindparam(f"new_{name}", type_=columns[name].type) for name in names})
            )
        return self._moves[kind]

    async def _end(
        self,
        tx: AsyncConnection,
        payment: Payment,
        key: RequestKey,
        purpose: OutboxAction | None,
        encode: Encode,
        now_ms: int,
    ) -> None:
        """Stores the response and the message to the order service, if this transaction is the one that ended it."""
        ended = await self._requests.finish(tx, key, encode(payment), now_ms=now_ms)
        if ended and purpose is not None:
            await self._tell(tx, payment, purpose, now_ms)

    async def _tell(self, tx: AsyncConnection, payment: Payment, purpose: OutboxAction, now_ms: int) -> None:
        """Puts a message for the order service into the outbox."""
        if payment.order_id:
            await insert_if_absent(tx, OUTBOX, to_outbox_row(payment, purpose, now_ms))

    async def _write_event(self, tx: AsyncConnection, payment: Payment) -> None:
        await tx.execute(_INSERT_EVENT, to_event_row(payment))

    async def _active_beside(self, payment_id: str) -> Payment | None:
        async def step(tx: AsyncConnection) -> Payment | None:
            order = select(PAYMENTS.c.order_id).where(PAYMENTS.c.payment_id == payment_id).scalar_subquery()
            return await self._find(tx, PAYMENTS.c.order_id == order, IS_ACTIVE)

        return await self._database.read(step)

    @staticmethod
    async def _find(tx: AsyncConnection, *conditions: ColumnElement[bool]) -> Payment | None:
        row = (await tx.execute(select(PAYMENTS).where(*conditions).limit(1))).one_or_none()
        return None if row is None else to_payment(row)
