"""Payments in a database: each step as one transaction. SQL is here, in `request_records.py` and in `schema.py`.

A transition of a payment is one conditional UPDATE on (id, state, version, fence), whatever `model.TRANSITIONS` says of
it; its event, the responses to the requests that it ends and the notifications to the order service are written in the
same transaction. Where no row matches, the fence is stale (refused), or the payment has changed (answered as it stands,
with the fence raised): the caller plans again.

What concurrent callers accept, change and deliver is committed together (`runtime/database/group_commit.py`). Only the
payments of cards are submitted alone, for that looks at other payments of the order and the card.

With the guard `fence` off, fences are kept but not compared; with `unique` off, the index is dropped by `prepare`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from sqlalchemy import (
    BigInteger,
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

from services.kernel.errors import CountinghouseError, NotFound, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Execution, Lease, RequestKey, StoredResponse
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
from services.runtime.change_feed import ChangeFeed
from services.runtime.database.database import Database
from services.runtime.database.group_commit import GroupCommit
from services.runtime.database.idempotency_table import (
    Requests,
    insert_each_if_absent,
    insert_if_absent,
    named,
    refusal_or,
)
from services.runtime.database.transaction import Parameters, Transaction
from services.runtime.ports import NO_FAILPOINTS, Failpoints

_INSERT_PAYMENT = insert(PAYMENTS)
_INSERT_EVENT = insert(EVENTS)
_OWNER = select(CARD_OWNERS.c.customer_id).where(CARD_OWNERS.c.card == bindparam("of_card"))
_BY_ID = select(PAYMENTS).where(PAYMENTS.c.payment_id == bindparam("of_payment"))
#: The payment that a request made, that it reverses, and that is active at an order.
_MADE_BY = (
    select(PAYMENTS)
    .where(
        PAYMENTS.c.request_caller == bindparam("of_caller"),
        PAYMENTS.c.request_role == bindparam("of_role"),
        PAYMENTS.c.request_method == bindparam("of_method"),
        PAYMENTS.c.request_key == bindparam("of_key"),
    )
    .limit(1)
)
_UNDONE_FOR = (
    select(PAYMENTS)
    .where(
        PAYMENTS.c.reversal_caller == bindparam("of_caller"),
        PAYMENTS.c.reversal_role == bindparam("of_role"),
        PAYMENTS.c.reversal_key == bindparam("of_key"),
    )
    .limit(1)
)
_ACTIVE_OF = select(PAYMENTS).where(PAYMENTS.c.order_id == bindparam("of_order"), IS_ACTIVE).limit(1)
_EARLIER_ATTEMPTS = select(func.count()).where(
    PAYMENTS.c.order_id == bindparam("of_order"),
    PAYMENTS.c.order_id != "",
    PAYMENTS.c.round == bindparam("of_round"),
    PAYMENTS.c.attempt > 0,
    PAYMENTS.c.payment_id != bindparam("but"),
)
_PENDING = (
    select(OUTBOX.c.purpose)
    .where(OUTBOX.c.payment_id == bindparam("of_payment"), OUTBOX.c.delivered_at_ms.is_(None))
    .order_by(OUTBOX.c.purpose)
)
_PARKED = (
    select(PAYMENTS)
    .where(PAYMENTS.c.state == str(PaymentState.PARKED), PAYMENTS.c.ask_at_ms <= bindparam("now_ms"))
    .order_by(PAYMENTS.c.ask_at_ms)
    .limit(bindparam("at_most", type_=BigInteger))
)
_UNDELIVERED = (
    select(OUTBOX.c.payment_id)
    .where(
        OUTBOX.c.delivered_at_ms.is_(None),
        or_(OUTBOX.c.created_at_ms <= bindparam("before_ms"), OUTBOX.c.created_at_ms > bindparam("ahead_ms")),
    )
    .order_by(OUTBOX.c.created_at_ms)
    .limit(bindparam("at_most", type_=BigInteger))
)
_DELIVERED = (
    update(OUTBOX)
    .where(
        OUTBOX.c.payment_id == bindparam("of_payment"),
        OUTBOX.c.purpose == bindparam("of_purpose"),
        OUTBOX.c.delivered_at_ms.is_(None),
    )
    .values(delivered_at_ms=bindparam("now_ms"))
)


@dataclass(frozen=True, slots=True)
class _Accept:
    """A payment to be accepted."""

    draft: Payment
    fingerprint: str
    lease: Lease

    @property
    def key(self) -> Hashable:
        return self.draft.key

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.draft.order_id, self.draft.payment_id


@dataclass(frozen=True, slots=True)
class _Apply:
    """A transition to be committed."""

    change: Change
    fence: Fence

    @property
    def key(self) -> str:
        return self.change.before.payment_id

    @property
    def subjects(self) -> tuple[str, ...]:
        return self.change.before.order_id, self.key

    @property
    def turn(self) -> tuple[str, str, str]:
        """Return by what the transitions of a batch are sorted: all instances lock the rows of a step in one order.

        By order first: payments of one order wait for each other through the unique index.
        """
        return self.change.step, self.change.before.order_id, self.key


@dataclass(frozen=True, slots=True)
class _Deliver:
    """A notification that the order service has received."""

    payment_id: str
    purpose: str
    at_ms: int

    @property
    def key(self) -> tuple[str, str]:
        return self.payment_id, self.purpose

    @property
    def subjects(self) -> tuple[str, ...]:
        return (self.payment_id,)


#: What is committed together.
_Item = _Accept | _Apply | _Deliver


class SqlPaymentStore(PaymentStore):
    """`ports.PaymentStore` on SQLite or PostgreSQL.

    Args:
        guards: Which guards are on.
    """

    def __init__(self, database: Database, guards: Guards, failpoints: Failpoints = NO_FAILPOINTS) -> None:
        self._database = database
        self.feed: ChangeFeed[Payment] = ChangeFeed()
        self._failpoints = failpoints
        self._guards = guards
        self._requests = Requests(REQUESTS, guards)
        self._raise_fence = _raise_fence(guarded=guards.fence)
        self._updates: dict[Transition, Update] = {}
        self._committing: GroupCommit[_Item, Any] = GroupCommit(
            self._commit_all, key=lambda item: item.key, committed=database.metrics.committed
        )

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

        accepted: Accepted | StoredResponse = await self._commit(_Accept(draft, fingerprint, lease))
        return accepted

    async def _commit(self, item: _Item) -> Any:
        """Commit an item with those of other callers; return its outcome, or raise it if it is a refusal."""
        outcome = await self._committing.run(item)
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return outcome

    async def _commit_all(self, items: Sequence[_Item]) -> list[Any]:
        """Commit some items in one transaction; return the outcome of each, of which a refusal is one."""
        subjects = [name for item in items for name in item.subjects]

        async def step(tx: Transaction) -> dict[Hashable, Any]:
            outcomes: dict[Hashable, Any] = {}
            changed.clear()
            outcomes |= await self._accept_all(tx, [item for item in items if isinstance(item, _Accept)], changed)
            outcomes |= await self._apply_all(tx, [item for item in items if isinstance(item, _Apply)], changed)
            await _deliver_all(tx, [item for item in items if isinstance(item, _Deliver)])
            await self._failpoints.hit("committing", None, *subjects)
            return outcomes

        with self.feed.publishing() as changed:
            outcomes = await self._database.run(step)
        await self._failpoints.hit("committed", None, *subjects)
        return [outcomes.get(item.key) for item in items]

    async def _accept_all(
        self, tx: Transaction, wanted: Sequence[_Accept], changed: list[Payment]
    ) -> dict[Hashable, Accepted | StoredResponse | CountinghouseError]:
        """Accept some payments, each under another request; return of each what `accept` returns or raises."""
        outcomes: dict[Hashable, Accepted | StoredResponse | CountinghouseError] = {}
        drafts: list[Payment] = []
        for one, begun in await _begin(self._requests, tx, wanted):
            if not isinstance(begun, Execution):
                outcomes[one.key] = begun
                continue
            earlier = None  # the payment of an earlier execution
            if self._guards.ticket and not begun.fresh:
                earlier = await _find(tx, _MADE_BY, named(one.draft.key))
            if earlier is None:
                drafts.append(one.draft)
            outcomes[one.key] = Accepted(begun, earlier or one.draft)
        await tx.execute_each(_INSERT_PAYMENT, [to_row(draft) for draft in drafts])
        await tx.execute_each(_INSERT_EVENT, [to_event_row(draft) for draft in drafts])
        changed += drafts
        return outcomes

    # The payment's transitions

    async def apply(self, change: Change, fence: Fence) -> Payment:
        """Commit a transition with its event, its answers and its outbox rows.

        Returns:
            The payment as it stands: if it has changed since it was read, nothing but its fence is written.

        Raises:
            StaleFence: The order has been locked by another holder since.
        """

        applied: Payment = await self._commit(_Apply(change, fence))
        return applied

    async def _apply_all(
        self, tx: Transaction, wanted: Sequence[_Apply], changed: list[Payment]
    ) -> dict[Hashable, Payment | CountinghouseError]:
        """Commit some transitions, each of another payment; return of each what `apply` returns or raises."""
        in_turn = sorted(wanted, key=lambda one: one.turn)
        applied = await self._apply(tx, in_turn)
        changed += applied.values()
        outcomes: dict[Hashable, Payment | CountinghouseError] = dict(applied.items())
        for one in in_turn:
            if one.key not in outcomes:
                outcomes[one.key] = await refusal_or(self._seen(tx, one.change.before.payment_id, one.fence))
        return outcomes

    async def submit(self, change: Change, fence: Fence) -> Payment | ConflictingPayment:
        """Commit SUBMIT, the transition that looks at other payments: of the order, and of the card.

        Raises:
            StaleFence: As `apply`.
            FailedPrecondition: CARD_NOT_YOURS. Nothing is changed.
        """
        by_card = change.before.source is Source.CARD
        try:
            return await (self._submit_card(change, fence) if by_card else self.apply(change, fence))
        except IntegrityError:
            active = await _select(self._database, _ACTIVE_OF, {"of_order": change.before.order_id})
            if active is None:
                raise
            return ConflictingPayment(active)

    async def _submit_card(self, change: Change, fence: Fence) -> Payment:
        """Commit SUBMIT of a card's payment, which looks at other payments of its order and of its card."""
        before, after = change.before, change.after

        async def step(tx: Transaction) -> Payment:
            # All attempts before it were definitively declined.
            attempt = 1 + (await tx.execute(_EARLIER_ATTEMPTS, _attempts_before(before, after.round))).scalar_one()
            key = acquirer_key(before.payment_id, attempt)
            submitting = replace(change, after=replace(after, attempt=attempt, acquirer_key=key))
            submitted = (await self._apply(tx, [_Apply(submitting, fence)])).get(before.payment_id)
            changed[:] = [] if submitted is None else [submitted]
            if submitted is None:
                return await self._seen(tx, before.payment_id, fence)
            await _bind_card(tx, submitted)
            return submitted

        with self.feed.publishing() as changed:
            return await self._database.run(step)

    async def expire(self, *, now_ms: int) -> int:
        """End tickets and requests whose time passed before they were used, and the payments begun under them."""

        async def step(tx: Transaction) -> int:
            changed.clear()
            keys = await self._requests.expire(tx, now_ms=now_ms)
            for key in keys:
                payment = await _find(tx, _MADE_BY, named(key))
                change = payment and plan(Step.EXPIRE, payment, now_ms, decline_reason="TICKET_EXPIRED")
                if change:
                    changed.extend((await self._apply(tx, [_Apply(change, change.before.fence)])).values())
            return len(keys)

        with self.feed.publishing() as changed:
            return await self._database.run(step)

    async def raise_fence(self, payment_id: str, fence: Fence) -> Payment:
        """Refuse every older fence from now on; return the payment as it stands. Raises as `apply`."""

        return await self._database.run(lambda tx: self._seen(tx, payment_id, fence))

    # When the acquirer is to be asked again

    async def schedule_retry(self, payment_id: str, fence: Fence, retry: AcquirerRetry) -> None:
        """Write down another silence of the acquirer, if the payment still waits for it. Raises as `apply`."""
        noted = update(PAYMENTS).where(PAYMENTS.c.payment_id == payment_id, PAYMENTS.c.state.in_(UNANSWERED))

        async def step(tx: Transaction) -> None:
            changed.clear()
            await self._seen(tx, payment_id, fence)
            written = noted.values(asks=retry.asks, ask_at_ms=retry.ask_at_ms, attention=retry.attention)
            changed.extend(map(to_payment, await tx.execute(written.returning(*PAYMENTS.c))))

        with self.feed.publishing() as changed:
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
        rows = await self._database.select(_PARKED, {"now_ms": now_ms, "at_most": limit})
        return [to_payment(row) for row in rows]

    # Notifications to the order service

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]:
        """Return the undelivered notifications of a payment, in the order in which they came about.

        That is the order of their names, COMPLETE or RELEASE before REOPEN; the wall clock may have gone back between.
        """

        rows = await self._database.select(_PENDING, {"of_payment": payment_id})
        return tuple(OutboxAction(row) for row in rows.scalars())

    async def delivered(self, payment_id: str, action: OutboxAction, *, now_ms: int) -> None:
        """Note that the order service has been notified."""

        await self._commit(_Deliver(payment_id, str(action), now_ms))

    async def undelivered(self, *, now_ms: int, grace_ms: int, limit: int) -> list[str]:
        """Return payments with notifications undelivered for longer than a grace, by id.

        Notifications dated ahead by more than that are among them: the clock of the process that wrote them was wrong.
        """
        said = {"before_ms": now_ms - grace_ms, "ahead_ms": now_ms + grace_ms, "at_most": limit}
        return (await self._database.select(_UNDELIVERED, said)).scalars()

    # Reading

    async def get(self, payment_id: str) -> Payment:
        """Return a payment; raise NotFound, PAYMENT_NOT_FOUND, if there is none."""

        payment = await _select(self._database, _BY_ID, {"of_payment": payment_id})
        if payment is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return payment

    async def of_request(self, key: RequestKey) -> Payment | None:
        """Return the payment that a request made, or that it reverses."""

        return await _select(self._database, _UNDONE_FOR if key.method == REVERSE else _MADE_BY, named(key))

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

    async def _apply(self, tx: Transaction, wanted: Sequence[_Apply]) -> dict[str, Payment]:
        """Write transitions, each by its conditional UPDATE.

        Returns:
            The payments by id, without those that have changed since they were read, or whose fence has.
        """
        applied: dict[str, Payment] = {}
        for _, group in groupby(wanted, key=lambda one: one.change.step):
            each = list(group)
            update_each = self._update_of(each[0].change.transition)
            for found in await tx.execute_each(update_each, [_writing(one.change, one.fence) for one in each]):
                applied[found.payment_id] = to_payment(found)
        made = [(one.change, payment) for one in wanted if (payment := applied.get(one.key))]
        await tx.execute_each(_INSERT_EVENT, [to_event_row(payment) for _, payment in made])
        await self._requests.finish_each(
            tx, [(key, answer, payment.updated_at_ms) for change, payment in made for key, answer in change.answers]
        )
        begun = [payment for change, payment in made if change.step is Step.BEGIN_REVERSAL]
        await self._requests.reopen_each(
            tx, [(payment.reversal.key, payment.updated_at_ms) for payment in begun if payment.reversal]
        )
        outbox = [to_outbox_row(payment, action) for change, payment in made for action in change.outbox]
        await insert_each_if_absent(tx, OUTBOX, outbox)
        return applied

    def _update_of(self, transition: Transition) -> Update:
        """Return the statement of a transition; it is made once."""
        if transition not in self._updates:
            columns = PAYMENTS.c
            only_from = [literal(str(state)) for state in transition.only_from]
            self._updates[transition] = self._raise_fence.where(
                columns.state.in_(only_from), columns.version == bindparam("of_version")
            ).values({name: bindparam(f"new_{name}", type_=columns[name].type) for name in columns_of(transition)})
        return self._updates[transition]

    async def _seen(self, tx: Transaction, payment_id: str, fence: Fence) -> Payment:
        """Raise the payment's fence, and return the payment as it stands."""
        carried = {"of_payment": payment_id, "generation": fence.generation, "token": fence.token}
        row = (await tx.execute(self._raise_fence, carried)).one_or_none()
        if row is not None:
            return to_payment(row)
        payment = await _find(tx, _BY_ID, {"of_payment": payment_id})
        if payment is None:
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id}")
        raise StaleFence(payment.order_id, fence, payment.fence)


async def _begin(
    requests: Requests, tx: Transaction, wanted: Sequence[_Accept]
) -> list[tuple[_Accept, Execution | StoredResponse | CountinghouseError]]:
    """Start the requests: a ticket must be there, any other request may be new."""
    in_turn = sorted(wanted, key=lambda one: str(one.draft.key))
    tickets = [one for one in in_turn if one.draft.key.method == PAY]
    others = [one for one in in_turn if one.draft.key.method != PAY]
    begun = dict(
        zip(
            (one.draft.key for one in others),
            await requests.begin_all(tx, [(one.draft.key, one.fingerprint, one.lease) for one in others]),
            strict=True,
        )
    )
    for one in tickets:
        begun[one.draft.key] = await refusal_or(requests.consume(tx, one.draft.key, one.fingerprint, one.lease))
    return [(one, begun[one.draft.key]) for one in wanted]


async def _find(tx: Transaction, query: Select[Any], said: Parameters) -> Payment | None:
    row = (await tx.execute(query, said)).one_or_none()
    return None if row is None else to_payment(row)


async def _select(database: Database, query: Select[Any], said: Parameters) -> Payment | None:
    row = (await database.select(query, said)).one_or_none()
    return None if row is None else to_payment(row)


async def _deliver_all(tx: Transaction, notifications: Sequence[_Deliver]) -> None:
    """Note that the order service has received some notifications."""
    in_turn = sorted(notifications, key=lambda one: one.key)
    rows = [{"of_payment": one.payment_id, "of_purpose": one.purpose, "now_ms": one.at_ms} for one in in_turn]
    await tx.execute_each(_DELIVERED, rows)


def _writing(change: Change, fence: Fence) -> dict[str, Any]:
    """Return the parameters of a transition's statement."""
    row = to_row(change.after)
    values = {f"new_{name}": row[name] for name in columns_of(change.transition)}
    return values | {
        "of_payment": change.before.payment_id,
        "of_version": change.before.version,
        "generation": fence.generation,
        "token": fence.token,
    }


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


def _attempts_before(payment: Payment, in_round: int) -> dict[str, Any]:
    """Return the parameters that count the other card payments attempted at a payment's order in a round."""
    return {"of_order": payment.order_id, "of_round": in_round, "but": payment.payment_id}
