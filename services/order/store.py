"""Orders in a database; the only file that knows their tables.

How a move of a payment is written, in one transaction (guard in brackets):

    1. raise the fence: one conditional UPDATE, before anything is read [fence]; locks and returns the row
    2. decide: `model.claim | complete | release | reopen`
    3. write: one UPDATE on the condition that version and state are the ones decided upon [state]
    4. append to the history

Steps 3 and 4 are left out when nothing changes; the fence stays raised even when the move is refused. Changes
of a list are made in the order of their order ids, so that two lists never wait for each other in a circle.

Invariants of the tables, beyond those of the model
1. (fence_generation, fence_token) of an order never falls.
2. order_events has exactly one row for each version of each order; it and order_lines only grow (triggers).
3. An answer is stored in the transaction that had the effect it tells of.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    bindparam,
    case,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import (
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    StaleFence,
    StaleVersion,
)
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, Lease, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order import model
from services.order.model import Change, Order, OrderEvent, OrderLine, OrderState
from services.order.operations import Encoding, Filter, Listed, Outcome, Request, not_found
from services.runtime.database.database import Database, ensemble_table
from services.runtime.database.idempotency_table import Requests, insert_if_absent, request_table
from services.runtime.database.retention import Retention, removals_table

metadata = MetaData()

#: `seq` orders the orders by when they were made, for paging; SQLite counts only plain INTEGER keys by itself.
orders = Table(
    "orders",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("order_id", String(64), nullable=False, unique=True),
    Column("customer_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("amount_minor_units", BigInteger, nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("line_count", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("round", Integer, nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("settled_by_name", String(64), nullable=False),
    Column("settled_by_role", String(16), nullable=False),
    Column("settled_at_ms", BigInteger, nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    CheckConstraint("amount_minor_units > 0", name="orders_amount_is_payable"),
    CheckConstraint(
        "(state IN ('PAYING', 'PAID')) = (payment_id <> '')", name="orders_payment_is_named_while_it_holds"
    ),
    CheckConstraint("(state = 'PAID') = (settled_at_ms > 0)", name="orders_settled_when_paid"),
)
Index("orders_by_customer", orders.c.customer_id, orders.c.seq)
Index("orders_by_state", orders.c.state, orders.c.seq)
Index("orders_by_fence", orders.c.fence_generation, orders.c.fence_token)

order_lines = Table(
    "order_lines",
    metadata,
    Column("order_id", String(64), ForeignKey("orders.order_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("description", String(200), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("unit_minor_units", BigInteger, nullable=False),
)

#: The history. `from_state` is empty for an order's first event; `payment_id` is the payment that made the move,
#: empty for none; the fence is the one it was made under, 0.0 for none.
order_events = Table(
    "order_events",
    metadata,
    Column("order_id", String(64), ForeignKey("orders.order_id"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("round", Integer, nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("actor_name", String(64), nullable=False),
    Column("actor_role", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False, server_default=""),
)

requests = request_table(metadata)
ensemble = ensemble_table(metadata)
#: A refusal changed nothing; what made or cancelled an order is kept with it. See runtime/database/retention.py.
retention = Retention(requests, removals_table(metadata), requests.c.response_ok.is_(False))


#: One of the moves of `model.py` that a payment asks for.
_Decide = Callable[[Order, Change], Order]


class SqlOrderStore:
    """`operations.OrderStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database, guards: Guards) -> None:
        self._database = database
        self._requests = Requests(requests, guards)
        self._raise_fence = _raise_fence(guarded=guards.fence)

    async def create(self, request: Request, order: Order, encoding: Encoding) -> Answer:
        async def effect(tx: AsyncConnection) -> StoredResponse:
            if not await insert_if_absent(tx, orders, _row_of_new(order)):
                raise AlreadyExists(
                    "ORDER_EXISTS",
                    f"order {order.order_id} is there already; choose another id, or send none to have one made",
                    metadata={"order_id": order.order_id},
                )
            if order.lines:
                await tx.execute(insert(order_lines), _rows_of_lines(order))
            await tx.execute(insert(order_events), [_event(None, order, request.actor, request.at_ms)])
            return StoredResponse(True, encoding.created(order))

        async def step(tx: AsyncConnection) -> Answer:
            return await self._once(tx, request, encoding, effect)

        return await self._database.run(step)

    async def answered(self, request: Request) -> Answer | None:
        async def step(tx: AsyncConnection) -> Answer | None:
            stored = await self._requests.answered(tx, request.key, request.fingerprint, now_ms=request.at_ms)
            return None if stored is None else Answer(stored, replayed=True)

        return await self._database.read(step)

    async def cancel(
        self,
        request: Request,
        order_id: str,
        encoding: Encoding,
        *,
        customer_id: str | None,
        expected_version: int,
    ) -> Answer:
        async def step(tx: AsyncConnection) -> Answer:
            # Whose order it is comes first: not even a stored answer is shown to another customer.
            row = (await tx.execute(_one().with_for_update(), {"wanted": order_id})).one_or_none()
            if row is None or customer_id not in (None, row.customer_id):
                raise not_found(order_id)
            (order,) = await _orders_of(tx, [row])

            async def effect(tx: AsyncConnection) -> StoredResponse:
                if expected_version not in (0, order.version):
                    raise StaleVersion(f"order {order_id}", expected_version, order.version)
                cancelled = model.cancel(order, request.at_ms)
                await _write(tx, order, cancelled)
                await tx.execute(
                    insert(order_events),
                    [_event(order, cancelled, request.actor, request.at_ms, reason=request.reason)],
                )
                return StoredResponse(True, encoding.cancelled(cancelled))

            return await self._once(tx, request, encoding, effect)

        return await self._database.run(step)

    async def claim(self, changes: Sequence[Change]) -> list[Outcome]:
        return await self._move(changes, model.claim)

    async def complete(self, changes: Sequence[Change]) -> list[Outcome]:
        return await self._move(changes, model.complete)

    async def release(self, changes: Sequence[Change]) -> list[Outcome]:
        return await self._move(changes, model.release)

    async def reopen(self, changes: Sequence[Change]) -> list[Outcome]:
        return await self._move(changes, model.reopen)

    async def get(self, order_id: str) -> Order | None:
        async def step(tx: AsyncConnection) -> Order | None:
            rows = (await tx.execute(_one(), {"wanted": order_id})).all()
            found = await _orders_of(tx, rows)
            return found[0] if found else None

        return await self._database.read(step)

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        columns = order_events.c
        wanted = select(order_events).where(columns.order_id == order_id, columns.version > after)

        async def step(tx: AsyncConnection) -> list[OrderEvent]:
            return [_to_event(row) for row in await tx.execute(wanted.order_by(columns.version).limit(limit))]

        return await self._database.read(step)

    async def page(self, which: Filter, *, limit: int, after: int | None) -> list[Listed]:
        query = select(orders).order_by(orders.c.seq.desc()).limit(limit)
        if which.customer_id is not None:
            query = query.where(orders.c.customer_id == which.customer_id)
        if which.state is not None:
            query = query.where(orders.c.state == which.state)
        if after is not None:
            query = query.where(orders.c.seq < after)

        async def step(tx: AsyncConnection) -> list[Listed]:
            rows = (await tx.execute(query)).all()
            found = await _orders_of(tx, rows)
            return [Listed(row.seq, order) for row, order in zip(rows, found, strict=True)]

        return await self._database.read(step)

    async def _once(
        self,
        tx: AsyncConnection,
        request: Request,
        encoding: Encoding,
        effect: Callable[[AsyncConnection], Awaitable[StoredResponse]],
    ) -> Answer:
        """Has the effect unless the request id has had it, and stores the answer, be it a definitive refusal.

        The request row is IN_PROGRESS inside this transaction only, so its lease is never seen by anybody.
        """
        lease = Lease(request.actor.name, now_ms=request.at_ms, until_ms=request.at_ms)
        execution = await self._requests.begin(tx, request.key, request.fingerprint, lease)
        if isinstance(execution, StoredResponse):
            return Answer(execution, replayed=True)
        try:
            response = await effect(tx)
        except (AlreadyExists, FailedPrecondition) as refusal:
            response = StoredResponse(False, encoding.refused(refusal))
        await self._requests.finish(tx, request.key, response, now_ms=request.at_ms)
        return Answer(response, replayed=False)

    async def _move(self, changes: Sequence[Change], decide: _Decide) -> list[Outcome]:
        turns = sorted(range(len(changes)), key=lambda turn: changes[turn].order_id)

        async def step(tx: AsyncConnection) -> list[Outcome]:
            outcomes: dict[int, Outcome] = {}
            events: list[dict[str, Any]] = []
            for turn in turns:
                try:
                    outcomes[turn] = await self._move_one(tx, changes[turn], decide, events)
                except CountinghouseError as refusal:
                    outcomes[turn] = refusal
            if events:
                await tx.execute(insert(order_events), events)
            return [outcomes[turn] for turn in range(len(changes))]

        return await self._database.run(step)

    async def _move_one(
        self, tx: AsyncConnection, change: Change, decide: _Decide, events: list[dict[str, Any]]
    ) -> Order:
        carried = {
            "wanted": change.order_id,
            "generation": change.fence.generation,
            "token": change.fence.token,
        }
        row = (await tx.execute(self._raise_fence, carried)).one_or_none()
        if row is None:
            raise await _why_not_raised(tx, change)
        (before,) = await _orders_of(tx, [row])
        after = decide(before, change)
        if after is not before:
            await _write(tx, before, after)
            events.append(_event(before, after, change.actor, change.at_ms, change, reason=change.reason))
        return after


def _one() -> Any:
    return select(orders).where(orders.c.order_id == bindparam("wanted"))


def _raise_fence(*, guarded: bool) -> Any:
    """The statement that raises the fence of one order and gives its row; no row if the fence is behind.

    Args:
        guarded: Otherwise one that is behind is let through, and the larger one stays.
    """
    columns = orders.c
    generation = bindparam("generation", type_=BigInteger)
    token = bindparam("token", type_=BigInteger)
    seen = tuple_(columns.fence_generation, columns.fence_token)
    is_new: ColumnElement[bool] = seen <= tuple_(generation, token)
    raised = update(orders).where(columns.order_id == bindparam("wanted")).returning(*columns)
    if guarded:
        return raised.where(is_new).values(fence_generation=generation, fence_token=token)
    return raised.values(
        fence_generation=case((is_new, generation), else_=columns.fence_generation),
        fence_token=case((is_new, token), else_=columns.fence_token),
    )


async def _why_not_raised(tx: AsyncConnection, change: Change) -> CountinghouseError:
    row = (await tx.execute(_one(), {"wanted": change.order_id})).one_or_none()
    if row is None:
        return not_found(change.order_id)
    return StaleFence(change.order_id, change.fence, Fence(row.fence_generation, row.fence_token))


_WRITE = (
    update(orders)
    .where(
        orders.c.order_id == bindparam("wanted"),
        orders.c.version == bindparam("seen_version"),
        orders.c.state == bindparam("seen_state"),
    )
    .values(
        {
            column: bindparam(f"new_{column.name}")
            for column in (
                orders.c.state,
                orders.c.version,
                orders.c.round,
                orders.c.payment_id,
                orders.c.settled_by_name,
                orders.c.settled_by_role,
                orders.c.settled_at_ms,
                orders.c.updated_at_ms,
            )
        }
    )
)


async def _write(tx: AsyncConnection, before: Order, after: Order) -> None:
    """Writes `after` over `before`, and over nothing else."""
    new = {f"new_{name}": value for name, value in _changing(after).items()}
    wanted = {"wanted": before.order_id, "seen_version": before.version, "seen_state": before.state}
    if (await tx.execute(_WRITE, wanted | new)).rowcount != 1:
        raise AssertionError(f"order {before.order_id} changed under the lock of its row")


def _changing(order: Order) -> dict[str, Any]:
    """The columns that a move may change."""
    return {
        "state": order.state,
        "version": order.version,
        "round": order.round,
        "payment_id": order.payment_id,
        "settled_by_name": order.settled_by.name if order.settled_by else "",
        "settled_by_role": order.settled_by.role if order.settled_by else "",
        "settled_at_ms": order.settled_at_ms,
        "updated_at_ms": order.updated_at_ms,
    }


def _row_of_new(order: Order) -> dict[str, Any]:
    return _changing(order) | {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "amount_minor_units": order.amount.minor_units,
        "currency_code": order.amount.currency,
        "line_count": len(order.lines),
        "fence_generation": 0,
        "fence_token": 0,
        "created_at_ms": order.created_at_ms,
    }


def _rows_of_lines(order: Order) -> list[dict[str, Any]]:
    return [
        {
            "order_id": order.order_id,
            "number": number,
            "description": line.description,
            "quantity": line.quantity,
            "unit_minor_units": line.unit_price.minor_units,
        }
        for number, line in enumerate(order.lines, start=1)
    ]


def _event(
    before: Order | None, after: Order, actor: Principal, at_ms: int, change: Change | None = None, *, reason: str = ""
) -> dict[str, Any]:
    return {
        "order_id": after.order_id,
        "version": after.version,
        "from_state": before.state if before else "",
        "to_state": after.state,
        "round": after.round,
        "payment_id": change.payment_id if change else "",
        "fence_generation": change.fence.generation if change else 0,
        "fence_token": change.fence.token if change else 0,
        "actor_name": actor.name,
        "actor_role": actor.role,
        "at_ms": at_ms,
        "reason": reason,
    }


def _to_event(row: Row[Any]) -> OrderEvent:
    return OrderEvent(
        order_id=row.order_id,
        version=row.version,
        from_state=OrderState(row.from_state) if row.from_state else None,
        to_state=OrderState(row.to_state),
        round=row.round,
        payment_id=row.payment_id,
        fence=Fence(row.fence_generation, row.fence_token),
        actor=Principal(row.actor_name, Role(row.actor_role)),
        at_ms=row.at_ms,
        reason=row.reason,
    )


async def _orders_of(tx: AsyncConnection, rows: Iterable[Row[Any]]) -> list[Order]:
    """The orders of some rows, with their lines, in one further look at most."""
    found = list(rows)
    with_lines = [row.order_id for row in found if row.line_count]
    lines: dict[str, list[Row[Any]]] = {}
    if with_lines:
        columns = order_lines.c
        query = select(order_lines).where(columns.order_id.in_(with_lines)).order_by(columns.order_id, columns.number)
        for line in await tx.execute(query):
            lines.setdefault(line.order_id, []).append(line)
    return [_to_order(row, lines.get(row.order_id, ())) for row in found]


def _to_order(row: Row[Any], lines: Iterable[Row[Any]]) -> Order:
    currency = row.currency_code
    return Order(
        order_id=row.order_id,
        customer_id=row.customer_id,
        amount=Money(row.amount_minor_units, currency),
        lines=tuple(
            OrderLine(line.description, line.quantity, Money(line.unit_minor_units, currency)) for line in lines
        ),
        created_at_ms=row.created_at_ms,
        updated_at_ms=row.updated_at_ms,
        state=OrderState(row.state),
        version=row.version,
        round=row.round,
        payment_id=row.payment_id,
        settled_by=Principal(row.settled_by_name, Role(row.settled_by_role)) if row.settled_by_name else None,
        settled_at_ms=row.settled_at_ms,
    )
