"""Orders in a database: each step as one transaction. SQL is here and in `schema.py`.

How a move of a payment is written, in one transaction (guard in brackets):

    1. raise the fences: a conditional UPDATE each, before anything is read [fence]; locks and returns the rows
    2. decide: `model.claim | complete | release | reopen`
    3. write: one UPDATE on the condition that version and state are the ones decided upon [state]
    4. append to the history

Steps 3 and 4 are left out when nothing changes; the fence stays raised even when the move is refused. The moves of
concurrent callers, of every kind, are committed together (`runtime/database/group_commit.py`), in the order of their
order ids, so that two batches never wait for each other in a circle.

Invariants of the tables, beyond those of the model
1. (fence_generation, fence_token) of an order never falls.
2. order_events has exactly one row for each version of each order; it and order_lines only grow (triggers).
3. An answer is stored in the transaction of its effect. It is encoded before, from the order as it was read; where the
   order has changed since, nothing is written, and the operations read and decide again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, bindparam, case, insert, select, tuple_, update

from services.kernel.errors import CountinghouseError, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.order import model
from services.order.model import Change, Order, OrderEvent, order_not_found
from services.order.ports import Listed, MoveOutcome, OrderFilter, OrderStore
from services.order.schema import (
    ORDER_EVENTS,
    ORDER_LINES,
    ORDERS,
    REQUESTS,
    changing_columns,
    event_row,
    line_rows,
    order_row,
    to_event,
    to_order,
)
from services.runtime.change_feed import ChangeFeed
from services.runtime.database.database import Database
from services.runtime.database.group_commit import GroupCommit
from services.runtime.database.idempotency_table import (
    DecisionOverturned,
    Requests,
    SqlAnswerStore,
    insert_each_if_absent,
)
from services.runtime.database.transaction import Transaction
from services.runtime.ports import NO_FAILPOINTS, Failpoints

_INSERT_LINE = insert(ORDER_LINES)
_INSERT_EVENT = insert(ORDER_EVENTS)
_LINES = (
    select(ORDER_LINES)
    .where(ORDER_LINES.c.order_id.in_(bindparam("ids", expanding=True)))
    .order_by(ORDER_LINES.c.order_id, ORDER_LINES.c.number)
)
_ONE = select(ORDERS).where(ORDERS.c.order_id == bindparam("wanted"))

#: One of the moves of `model.py` that a payment asks for.
_Decide = Callable[[Order, Change], Order]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What `create` is asked for."""

    request: KeyedRequest
    order: Order
    response: StoredResponse


class SqlOrderStore(SqlAnswerStore, OrderStore):
    """`ports.OrderStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database, guards: Guards, failpoints: Failpoints = NO_FAILPOINTS) -> None:
        self._failpoints = failpoints
        self.feed: ChangeFeed[Order] = ChangeFeed()
        super().__init__(database, Requests(REQUESTS, guards))
        self._raise_fence = _raise_fence(guarded=guards.fence)
        self._creating = GroupCommit(
            self._create_all, key=lambda one: one.request.key, committed=database.metrics.committed
        )
        self._moving = GroupCommit(
            self._move_all, key=lambda move: move[0].order_id, committed=database.metrics.committed
        )

    async def create(self, request: KeyedRequest, order: Order, response: StoredResponse) -> Answer | None:
        try:
            outcome = await self._creating.run(_Wanted(request, order, response))
        except DecisionOverturned:
            return None
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return outcome

    async def _create_all(self, wanted: Sequence[_Wanted]) -> list[Answer | CountinghouseError]:
        """Make some orders, each under another request; return of each its answer or its refusal.

        Raises:
            DecisionOverturned: One of the ids is taken.
        """
        in_turn = sorted(wanted, key=lambda one: str(one.request.key))

        async def effects(tx: Transaction, places: Sequence[int]) -> None:
            made = sorted((in_turn[place] for place in places), key=lambda one: one.order.order_id)
            inserted = await insert_each_if_absent(tx, ORDERS, [order_row(one.order) for one in made])
            if inserted.rowcount != len(made):
                raise DecisionOverturned
            await tx.execute_each(_INSERT_LINE, [row for one in made for row in line_rows(one.order)])
            events = [event_row(None, one.order, one.request.key.caller, one.request.at_ms) for one in made]
            await tx.execute_each(_INSERT_EVENT, events)
            changed.extend(one.order for one in made)

        async def step(tx: Transaction) -> list[Answer | CountinghouseError]:
            changed.clear()
            return await self._requests.answer_each(tx, [(one.request, one.response) for one in in_turn], effects)

        with self.feed.publishing() as changed:
            outcomes = dict(zip((one.request.key for one in in_turn), await self._database.run(step), strict=True))
        return [outcomes[one.request.key] for one in wanted]

    async def cancel(
        self, request: KeyedRequest, before: Order, after: Order, reason: str, response: StoredResponse
    ) -> Answer | None:
        async def effect(tx: Transaction) -> None:
            if not await _write(tx, before, after):
                raise DecisionOverturned
            event = event_row(before, after, request.key.caller, request.at_ms, reason=reason)
            await tx.execute(_INSERT_EVENT, event)
            changed[:] = [after]

        with self.feed.publishing() as changed:
            answer = await self._answer_once(request, response, effect)
            if answer is None or answer.replayed:
                changed.clear()
        return answer

    async def claim(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return await self._move(changes, model.claim)

    async def complete(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return await self._move(changes, model.complete)

    async def release(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return await self._move(changes, model.release)

    async def reopen(self, changes: Sequence[Change]) -> list[MoveOutcome]:
        return await self._move(changes, model.reopen)

    async def get(self, order_id: str) -> Order | None:
        async def step(tx: Transaction) -> Order | None:
            rows = (await tx.execute(_ONE, {"wanted": order_id})).all()
            found = await _orders_of(tx, rows)
            return found[0] if found else None

        return await self._database.read(step)

    async def history(self, order_id: str, *, after: int, limit: int) -> list[OrderEvent]:
        columns = ORDER_EVENTS.c
        wanted = select(ORDER_EVENTS).where(columns.order_id == order_id, columns.version > after)

        async def step(tx: Transaction) -> list[OrderEvent]:
            return [to_event(row) for row in await tx.execute(wanted.order_by(columns.version).limit(limit))]

        return await self._database.read(step)

    async def page(self, which: OrderFilter, *, limit: int, after: int | None) -> list[Listed]:
        query = select(ORDERS).order_by(ORDERS.c.seq.desc()).limit(limit)
        if which.customer_id is not None:
            query = query.where(ORDERS.c.customer_id == which.customer_id)
        if which.state is not None:
            query = query.where(ORDERS.c.state == which.state)
        if after is not None:
            query = query.where(ORDERS.c.seq < after)

        async def step(tx: Transaction) -> list[Listed]:
            rows = (await tx.execute(query)).all()
            found = await _orders_of(tx, rows)
            return [Listed(row.seq, order) for row, order in zip(rows, found, strict=True)]

        return await self._database.read(step)

    async def _move(self, changes: Sequence[Change], decide: _Decide) -> list[MoveOutcome]:
        return await self._moving.run_all([(change, decide) for change in changes])

    async def _move_all(self, moves: Sequence[tuple[Change, _Decide]]) -> list[MoveOutcome]:
        """Make the moves of some orders, each of which is named once."""
        in_turn = sorted(moves, key=lambda move: move[0].order_id)
        subjects = [name for change, _decide in in_turn for name in (change.order_id, change.payment_id)]

        async def step(tx: Transaction) -> dict[str, MoveOutcome]:
            outcomes: dict[str, MoveOutcome] = {}
            changed.clear()
            raised = await tx.execute_each(self._raise_fence, [_carried(change) for change, _decide in in_turn])
            found = {order.order_id: order for order in await _orders_of(tx, raised)}
            written: list[dict[str, Any]] = []
            events: list[dict[str, Any]] = []
            for change, decide in in_turn:
                before = found.get(change.order_id)
                if before is None:
                    outcomes[change.order_id] = await _why_not_raised(tx, change)
                    continue
                try:
                    after = outcomes[change.order_id] = decide(before, change)
                except CountinghouseError as refusal:
                    outcomes[change.order_id] = refusal
                    continue
                if after is not before:
                    changed.append(after)
                    written.append(_writing(before, after))
                    events.append(event_row(before, after, change.actor, change.at_ms, change, reason=change.reason))
            if (await tx.execute_each(_WRITE, written)).rowcount != len(written):
                raise AssertionError("an order changed under the lock of its row")
            await tx.execute_each(_INSERT_EVENT, events)
            await self._failpoints.hit("committing", None, *subjects)
            return outcomes

        with self.feed.publishing() as changed:
            outcomes = await self._database.run(step)
        await self._failpoints.hit("committed", None, *subjects)
        return [outcomes[change.order_id] for change, _decide in moves]


def _carried(change: Change) -> dict[str, Any]:
    """Return the parameters of `_raise_fence`."""
    return {"wanted": change.order_id, "generation": change.fence.generation, "token": change.fence.token}


def _raise_fence(*, guarded: bool) -> Any:
    """Return the statement that raises the fence of one order and gives its row; no row if the fence is behind.

    Args:
        guarded: Otherwise one that is behind is let through, and the larger one stays.
    """
    columns = ORDERS.c
    generation = bindparam("generation", type_=BigInteger)
    token = bindparam("token", type_=BigInteger)
    seen = tuple_(columns.fence_generation, columns.fence_token)
    is_new: ColumnElement[bool] = seen <= tuple_(generation, token)
    raised = update(ORDERS).where(columns.order_id == bindparam("wanted")).returning(*columns)
    if guarded:
        return raised.where(is_new).values(fence_generation=generation, fence_token=token)
    return raised.values(
        fence_generation=case((is_new, generation), else_=columns.fence_generation),
        fence_token=case((is_new, token), else_=columns.fence_token),
    )


async def _why_not_raised(tx: Transaction, change: Change) -> CountinghouseError:
    row = (await tx.execute(_ONE, {"wanted": change.order_id})).one_or_none()
    if row is None:
        return order_not_found(change.order_id)
    return StaleFence(change.order_id, change.fence, Fence(row.fence_generation, row.fence_token))


_WRITE = (
    update(ORDERS)
    .where(
        ORDERS.c.order_id == bindparam("wanted"),
        ORDERS.c.version == bindparam("seen_version"),
        ORDERS.c.state == bindparam("seen_state"),
    )
    .values(
        {
            column: bindparam(f"new_{column.name}")
            for column in (
                ORDERS.c.state,
                ORDERS.c.version,
                ORDERS.c.round,
                ORDERS.c.payment_id,
                ORDERS.c.settled_by_name,
                ORDERS.c.settled_by_role,
                ORDERS.c.settled_at_ms,
                ORDERS.c.updated_at_ms,
            )
        }
    )
    .returning(ORDERS.c.order_id)
)


def _writing(before: Order, after: Order) -> dict[str, Any]:
    """Return the parameters of `_WRITE`."""
    new = {f"new_{name}": value for name, value in changing_columns(after).items()}
    return {"wanted": before.order_id, "seen_version": before.version, "seen_state": before.state} | new


async def _write(tx: Transaction, before: Order, after: Order) -> bool:
    """Write `after` over `before`; return False if the row is another by now."""
    return (await tx.execute(_WRITE, _writing(before, after))).rowcount == 1


async def _orders_of(tx: Transaction, rows: Iterable[Row[Any]]) -> list[Order]:
    """Return the orders of some rows, with their lines, with at most one further query."""
    found = list(rows)
    with_lines = [row.order_id for row in found if row.line_count]
    lines: dict[str, list[Row[Any]]] = {}
    if with_lines:
        for line in await tx.execute(_LINES, {"ids": with_lines}):
            lines.setdefault(line.order_id, []).append(line)
    return [to_order(row, lines.get(row.order_id, ())) for row in found]
