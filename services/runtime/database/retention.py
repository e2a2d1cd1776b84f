"""How long tickets and request ids are kept, and the job that removes old ones.

A row of `requests` is removed when all of this holds:
1. It is DONE or EXPIRED: it will never be executed.
2. That was `retention_days` ago or more.
3. Its service says that it may go (`Service.retention`): no money can move, and no order be made, a second time because
   the row is not there.

What is kept for ever by 3, because the order or payment it is about is:

| service | kept for ever | removed | the same id or ticket after that |
|---|---|---|---|
| order | what made or cancelled an order | refusals | is looked at anew, and most likely refused again |
| payment | Settle, Reverse, Park, tickets that paid an order | tickets that paid no order | TICKET_NOT_FOUND |
| payment | IssueTicket whose ticket was paid with | IssueTicket whose ticket was not | gets a new ticket |
| ledger | | OpenAccount | finds the account open |

So a caller who asks for a ticket and pays with it under ids of their own, and repeats both after years, is led to the
ticket that is paid or gone, never to a second one.

The job is the owner's, `python -m services.<name>.main prune`: a service's role deletes nothing (`postgres_roles.py`).
It removes a batch in each transaction, in the order of the keys, and notes in `removals` up to which time: the checker
then knows that a row may be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Integer,
    MetaData,
    Row,
    Table,
    and_,
    delete,
    literal,
    select,
    tuple_,
    update,
)

from services.kernel.idempotency import RequestState
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import insert_if_absent
from services.runtime.database.transaction import Transaction

#: Rows in one transaction: few enough that no caller waits for them.
BATCH: Final = 500
DAY_MS: Final = 24 * 3600 * 1000
_ENDED: Final = (RequestState.DONE, RequestState.EXPIRED)


def removals_table(metadata: MetaData) -> Table:
    """Return the table whose one row says up to which time requests were removed; without a row none were."""
    return Table(
        "removals",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("before_ms", BigInteger, nullable=False),
    )


@dataclass(frozen=True, slots=True)
class Retention:
    """What of a service's requests need not be kept.

    Args:
        requests: Its table of requests.
        removals: Its table of `removals_table`.
        removable: A condition on a request that has ended.
    """

    requests: Table
    removals: Table
    removable: ColumnElement[bool]


async def remove_old_requests(database: Database, retention: Retention, *, before_ms: int, batch: int = BATCH) -> int:
    """Remove the requests that ended before a time and may go.

    Args:
        database: Connected to as the owner of the tables.
        before_ms: Unix time in milliseconds.

    Returns:
        How many were removed.
    """
    table = retention.requests
    key = tuple_(*table.primary_key.columns)
    may_go = and_(table.c.state.in_(_ENDED), table.c.updated_at_ms < before_ms, retention.removable)
    last: tuple[str, ...] = ()
    removed = 0

    async def step(tx: Transaction) -> list[Row[Any]]:
        query = select(*table.primary_key.columns).where(may_go).order_by(*table.primary_key.columns).limit(batch)
        if last:
            query = query.where(key > tuple_(*map(literal, last)))
        found = list((await tx.execute(query)).all())
        if found:
            await tx.execute(delete(table).where(may_go, key.in_([tuple(row) for row in found])))
            await _note(tx, retention.removals, before_ms)
        return found

    while found := await database.run(step):
        removed += len(found)
        last = tuple(found[-1])
    return removed


async def _note(tx: Transaction, removals: Table, before_ms: int) -> None:
    if not await insert_if_absent(tx, removals, {"id": 1, "before_ms": before_ms}):
        await tx.execute(update(removals).where(removals.c.before_ms < before_ms).values(before_ms=before_ms))
