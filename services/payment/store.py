"""Payments in a database: each step as one transaction. SQL is here, in `request_records.py` and in `schema.py`.

A transition of a payment is one conditional UPDATE on (id, state, version, fence), whatever `model.TRANSITIONS` says of
it; its event, the responses to the requests that it ends and the notifications to the order service are written in the
same transaction. Where no row matches, the fence is stale (refused), or the payment has changed (answered as it stands,
with the fence raised): the caller plans again.

With the guard `fence` off, fences are kept but not compared; with `unique` off, the index is dropped by `prepare`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.sql.dml import Update

from services.kernel.errors import NotFound, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Lease, RequestKey, StoredResponse
from services.kernel.principal import Principal
from services.payment.model import (
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
    Transition,
    acquirer_key,
    card_not_yours,
    plan,
)
from services.payment.ports import Filter, PaymentStore
from services.payment.schema import (
    CARD_OWNERS,
    EVENTS,
    IS_ACTIVE,
    ONE_ACTIVE_PER_ORDER,
    OUTBOX,
    PAYMENTS,
    REQUESTS,
    columns_of,
    to_event,
    to_event_row,
    to_outbox_row,
    to_payment,
    to_row,
)
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import Requests, insert_if_absent
from services.runtime.database.transaction import Transaction

_INSERT_PAYMENT = insert(PAYMENTS)
_INSERT_EVENT = insert(EVENTS)
_OWNER = select(CARD_OWNERS.c.customer_id).where(CARD_OWNERS.c.card == bindparam("of_card"))


class SqlPaymentStore(PaymentStore):
    """`ports.PaymentStore` on SQLite or PostgreSQL.

    Args:
        guards: Which guards are on.
    """

    def __init__(self, database: Database, guards: Guards) -> None:
        self._database = database
        self._guards = guards
        self._requests = Requests(REQUESTS, guards)
        self._raise_fence = _raise_fence(guarded=guards.fence)
        self._updates: dict[Transition, Update] = {}

    async def prepare(self) -> None:
        """Create the unique index, or drop it with the guard off."""

        index = ONE_ACTIVE_PER_ORDER
        change = index.create if self._guards.unique else index.drop
        await self._database.change_schema(lambda connection: connection.run_sync(change, checkfirst=True))

    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse:
        """Start the request of a payment and write the payment; an earlier execution's payment is carried on.

        Raises:
            KeyMismatch, RequestInProgress, NotFound, FailedPrecondition: As `Requests.consume`.
        """

        async def step(tx: Transaction) -> Accepted | StoredResponse:
            start = self._requests.consume if draft.key.method == PAY else self._requests.begin
            execution = await start(tx, draft.key, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if self._guards.ticket and not execution.fresh:
                earlier = await self._find(tx, *_made_by(draft.key))
                if earlier is not None:
                    return Accepted(execution, earlier)
            await tx.execute(_INSERT_PAYMENT, to_row(draft))
            await tx.execute(_INSERT_EVENT, to_event_row(draft))
            return Accepted(execution, draft)

        return await self._database.run(step)

    # The payment's transitions

    async def apply(self, change: Change, fence: Fence) -> Payment:
        """Commit a transition with its event, its answers and its outbox rows.

        Returns:
            The payment as it stands: if it has changed since it was read, nothing but its fence is written.

        Raises:
            StaleFence: The order has been locked by another holder since.
        """

        async def step(tx: Transaction) -> Payment:
            return await self._apply(tx, change, fence) or await self._seen(tx, change.before.payment_id, fence)

        return await self._database.run(step)

    async def submit(self, change: Change, fence: Fence) -> Payment | ConflictingPayment:
        """Commit SUBMIT, the transition that looks at other payments: of the order, and of the card.

        Raises:
            StaleFence: As `apply`.
            FailedPrecondition: CARD_NOT_YOURS. Nothing is changed.
        """
        before, after = change.before, change.after

        async def step(tx: Transaction) -> Payment:
            submitting = change
            if before.source is Source.CARD:  # all attempts before it were definitively declined
                attempt = 1 + (await tx.execute(_earlier_attempts(before, after.round))).scalar_one()
                key = acquirer_key(before.payment_id, attempt)
                submitting = replace(change, after=replace(after, attempt=attempt, acquirer_key=key))
            submitted = await self._apply(tx, submitting, fence)
            if submitted is None:
                return await self._seen(tx, before.payment_id, fence)
            await _bind_card(tx, submitted)
            return submitted

        try:
            return await self._database.run(step)
        except IntegrityError:
            active = await self._active_beside(before)
            if active is None:
                raise
            return ConflictingPayment(active)

    async def expire(self, *, now_ms: int) -> int:
        """End tickets and requests whose time passed before they were used, and the payments begun under them."""

        async def step(tx: Transaction) -> int:
            keys = await self._requests.expire(tx, now_ms=now_ms)
            for key in keys:
                payment = await self._find(tx, *_made_by(key))
                change = payment and plan(Step.EXPIRE, payment, now_ms, decline_reason="TICKET_EXPIRED")
                if change:
                    await self._apply(tx, change, change.before.fence)
            return len(keys)

        return await self._database.run(step)

    async def raise_fence(self, payment_id: str, fence: Fence) -> Payment:
        """Refuse every older fence from now on; return the payment as it stands. Raises as `apply`."""

        return await self._database.run(lambda tx: self._seen(tx, payment_id, fence))

    # When the acquirer is to be asked again

    async def schedule_retry(self, payment_id: str, fence: Fence, retry: AcquirerRetry) -> None:
        """Write down another silence of the acquirer, if the payment still waits for it. Raises as `apply`."""
        columns = PAYMENTS.c
        noted = (
            update(PAYMENTS)
            .where(columns.payment_id == payment_id, columns.state.in_(UNANSWERED))
            .values(asks=retry.asks, ask_at_ms=retry.ask_at_ms, attention=retry.attention)
        )

        async def step(tx: Transaction) -> None:
            await self._seen(tx, payment_id, fence)
            await tx.execute(noted)

        await self._database.run(step)

    async def schedule_query(self, key: str) -> None:
        """Let the worker ask at its next look what became of an acquirer's key, if a payment waits for that."""
        columns = PAYMENTS.c
        is_waited_for = and_(
            columns.payment_id == key.rpartition(":")[0],
            columns.acquirer_key == key,
            columns.state.in_(UNANSWERED),
        )
        due_now = update(PAYMENTS).where(is_waited_for).values(ask_at_ms=0)
        await self._database.run(lambda tx: tx.execute(due_now))

    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]:
        """Parked payments whose key the acquirer is to be asked to reverse by now, those that wait longest first."""
        columns = PAYMENTS.c

        async def step(tx: Transaction) -> list[Payment]:
            query = (
                select(PAYMENTS)
                .where(columns.state == str(PaymentState.PARKED), columns.ask_at_ms <= now_ms)
                .order_by(columns.ask_at_ms)
                .limit(limit)
            )
            return [to_payment(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    # Notifications to the order service

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]:
        """Return the undelivered notifications of a payment, in the order in which they came about.

        That is the order of their names, COMPLETE or RELEASE before REOPEN; the wall clock may have gone back between.
        """

        async def step(tx: Transaction) -> tuple[OutboxAction, ...]:
            columns = OUTBOX.c
            rows = await tx.execute(
                select(columns.purpose)
                .where(columns.payment_id == payment_id, columns.delivered_at_ms.is_(None))
                .order_by(columns.purpose)
            )
            return tuple(OutboxAction(row) for row in rows.scalars())

        return await self._database.read(step)

    async def delivered(self, payment_id: str, action: OutboxAction, *, now_ms: int) -> None:
        """Note that the order service has been notified."""

        columns = OUTBOX.c
        is_pending = and_(
            columns.payment_id == payment_id, columns.purpose == action, columns.delivered_at_ms.is_(None)
        )
        await self._database.run(lambda tx: tx.execute(update(OUTBOX).where(is_pending).values(delivered_at_ms=now_ms)))

    async def undelivered(self, *, before_ms: int, limit: int) -> list[str]:
        """Return payments with notifications undelivered since `before_ms`, by id."""

        async def step(tx: Transaction) -> list[str]:
            columns = OUTBOX.c
            rows = await tx.execute(
                select(columns.payment_id)
                .where(columns.delivered_at_ms.is_(None), columns.created_at_ms <= before_ms)
                .order_by(columns.created_at_ms)
                .limit(limit)
            )
            return list(rows.scalars())

        return await self._database.read(step)

    # Reading

    async def get(self, payment_id: str) -> Payment:
        """Return a payment; raise NotFound, PAYMENT_NOT_FOUND, if there is none."""

        payment = await self._database.read(lambda tx: self._find(tx, PAYMENTS.c.payment_id == payment_id))
        if payment is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return payment

    async def of_request(self, key: RequestKey) -> Payment | None:
        """Return the payment that a request made, or that it reverses."""

        async def step(tx: Transaction) -> Payment | None:
            if key.method != REVERSE:
                return await self._find(tx, *_made_by(key))
            return await self._find(tx, *_undone_for(key))

        return await self._database.read(step)

    async def history(self, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]:
        """Return the changes of a payment behind the version `after`, the oldest first."""
        columns = EVENTS.c
        wanted = select(EVENTS).where(columns.payment_id == payment_id, columns.version > after)

        async def step(tx: Transaction) -> list[PaymentEvent]:
            return [to_event(row) for row in await tx.execute(wanted.order_by(columns.version).limit(limit))]

        return await self._database.read(step)

    async def page(
        self, which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None
    ) -> list[Payment]:
        """Return payments, newest first.

        Args:
            after: (created_at_ms, payment_id) of the last one before.
            seen_by: Only payments made by or for this customer; None: all.
        """

        async def step(tx: Transaction) -> list[Payment]:
            query = _page_of(which, limit=limit, after=after, seen_by=seen_by)
            return [to_payment(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    # Parts of steps

    async def _apply(self, tx: Transaction, change: Change, fence: Fence) -> Payment | None:
        """Write a transition by its conditional UPDATE; return None if the payment or its fence has changed."""
        row = to_row(change.after)
        values = {f"new_{name}": row[name] for name in columns_of(change.transition)}
        read = {"of_payment": change.before.payment_id, "of_version": change.before.version}
        carried = {"generation": fence.generation, "token": fence.token}
        found = (await tx.execute(self._update_of(change.transition), read | carried | values)).one_or_none()
        if found is None:
            return None
        payment = to_payment(found)
        await tx.execute(_INSERT_EVENT, to_event_row(payment))
        for key, answer in change.answers:
            await self._requests.finish(tx, key, answer, now_ms=payment.updated_at_ms)
        for action in change.outbox:
            await insert_if_absent(tx, OUTBOX, to_outbox_row(payment, action))
        return payment

    def _update_of(self, transition: Transition) -> Update:
        """Return the statement of a transition; it is made once."""
        if transition not in self._updates:
            columns = PAYMENTS.c
            self._updates[transition] = self._raise_fence.where(
                columns.state.in_(transition.only_from), columns.version == bindparam("of_version")
            ).values({name: bindparam(f"new_{name}", type_=columns[name].type) for name in columns_of(transition)})
        return self._updates[transition]

    async def _seen(self, tx: Transaction, payment_id: str, fence: Fence) -> Payment:
        """Raise the payment's fence, and return the payment as it stands."""
        carried = {"of_payment": payment_id, "generation": fence.generation, "token": fence.token}
        row = (await tx.execute(self._raise_fence, carried)).one_or_none()
        if row is not None:
            return to_payment(row)
        payment = await self._find(tx, PAYMENTS.c.payment_id == payment_id)
        if payment is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id}")
        raise StaleFence(payment.order_id, fence, payment.fence)

    async def _active_beside(self, payment: Payment) -> Payment | None:
        return await self._database.read(lambda tx: self._find(tx, PAYMENTS.c.order_id == payment.order_id, IS_ACTIVE))

    @staticmethod
    async def _find(tx: Transaction, *conditions: ColumnElement[bool]) -> Payment | None:
        row = (await tx.execute(select(PAYMENTS).where(*conditions).limit(1))).one_or_none()
        return None if row is None else to_payment(row)


async def _bind_card(tx: Transaction, payment: Payment) -> None:
    """Make a payment's card its customer's, unless it is already.

    Of two customers who bring one card at once, the second waits for the first one's commit. A payment that names no
    customer binds nothing, and may not use a card that belongs to a customer.

    Raises:
        FailedPrecondition: CARD_NOT_YOURS: it is another customer's.
    """
    if not payment.card:
        return
    if not payment.customer_id:
        if (await tx.execute(_OWNER, {"of_card": payment.card})).first() is not None:
            raise card_not_yours("")
        return
    row = {
        "card": payment.card,
        "customer_id": payment.customer_id,
        "payment_id": payment.payment_id,
        "bound_at_ms": payment.updated_at_ms,
    }
    if await insert_if_absent(tx, CARD_OWNERS, row):
        return
    if (await tx.execute(_OWNER, {"of_card": payment.card})).scalar_one() != payment.customer_id:
        raise card_not_yours(payment.customer_id)


def _page_of(which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None) -> Select[Any]:
    """Return the query of a page of payments, newest first. Args as `SqlPaymentStore.page`."""
    columns = PAYMENTS.c
    query = select(PAYMENTS).order_by(columns.created_at_ms.desc(), columns.payment_id.desc()).limit(limit)
    if after is not None:
        query = query.where(
            tuple_(columns.created_at_ms, columns.payment_id) < tuple_(literal(after[0]), literal(after[1]))
        )
    if which.state is not None:
        query = query.where(columns.state == which.state)
    if which.source is not None:
        query = query.where(columns.source == which.source)
    if which.order_id:
        query = query.where(columns.order_id == which.order_id)
    if which.needs_attention:
        query = query.where(columns.attention != "")
    if seen_by is not None:
        made = and_(columns.clerk_name == seen_by.name, columns.clerk_role == seen_by.role)
        asked = and_(columns.request_caller == seen_by.name, columns.request_role == seen_by.role)
        query = query.where(or_(columns.customer_id == seen_by.name, made, asked))
    return query


def _made_by(key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the payment that a request made."""
    columns = PAYMENTS.c
    return (
        columns.request_caller == key.caller.name,
        columns.request_role == key.caller.role,
        columns.request_method == key.method,
        columns.request_key == key.key,
    )


def _undone_for(key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the payment that a request reverses."""
    columns = PAYMENTS.c
    return (
        columns.reversal_caller == key.caller.name,
        columns.reversal_role == key.caller.role,
        columns.reversal_key == key.key,
    )


def _raise_fence(*, guarded: bool) -> Update:
    """Return the statement that raises a payment's fence and gives its row; no row if the fence is behind.

    Args:
        guarded: Otherwise one that is behind is let through, and the larger one stays.
    """
    columns = PAYMENTS.c
    generation, token = bindparam("generation", type_=BigInteger), bindparam("token", type_=BigInteger)
    seen, carried = tuple_(columns.fence_generation, columns.fence_token), tuple_(generation, token)
    raised = update(PAYMENTS).where(columns.payment_id == bindparam("of_payment")).returning(*columns)
    if guarded:
        return raised.where(seen <= carried).values(fence_generation=generation, fence_token=token)
    return raised.values(
        fence_generation=case((seen < carried, generation), else_=columns.fence_generation),
        fence_token=case((seen < carried, token), else_=columns.fence_token),
    )


def _earlier_attempts(payment: Payment, in_round: int) -> Select[Any]:
    """Count the other card payments that were attempted at a payment's order in a round."""
    columns = PAYMENTS.c
    return select(func.count()).where(
        columns.order_id == payment.order_id,
        columns.order_id != "",
        columns.round == in_round,
        columns.attempt > 0,
        columns.payment_id != payment.payment_id,
    )
