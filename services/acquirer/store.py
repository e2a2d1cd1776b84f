"""The bank's keys and its log in a database; the only file here that knows SQL.

Whoever writes takes the next number of the log first, from the one row of `counter`. So writers take turns, a key that
is read after that does not change any more, and numbers have no gap and are committed in their order.

Invariants of the tables, beyond those of the model
1. `log` only grows, and a key is never removed (triggers).
2. A decision, the key it is about and the decision's entry in the log are one commit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    insert,
    select,
    update,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from services.acquirer.model import Charge, ChargeState, Payload
from services.acquirer.operations import (
    RECEIVED,
    REFUSED,
    REPEATED,
    ChargeStore,
    Decide,
    Entry,
    Request,
    moved_by,
)
from services.kernel.errors import KeyMismatch
from services.kernel.money import Money
from services.runtime.database.database import Database

METADATA = MetaData()

#: Of a tombstone, card, amount, currency and reference are empty.
CHARGES = Table(
    "charges",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("card", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("reference", String(64), nullable=False),
    Column("decline_reason", String(64), nullable=False),
    Column("number", BigInteger, nullable=False, unique=True),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("refunded_at_ms", BigInteger, nullable=False),
)

LOG = Table(
    "log",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("method", String(32), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("word", String(16), nullable=False),
    Column("card", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("reference", String(64), nullable=False),
)
Index("log_by_key", LOG.c.key, LOG.c.number)

#: One row, with id 1: the number of the last entry in the log, and what readiness writes to see that writing works.
COUNTER = Table(
    "counter",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("probe", LargeBinary, nullable=True),
)

_NEXT = update(COUNTER).values(last=COUNTER.c.last + 1).returning(COUNTER.c.last)
_INSERT_ENTRY = insert(LOG)
_INSERT_CHARGE = insert(CHARGES)


class SqlChargeStore(ChargeStore):
    """`operations.ChargeStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def receive(self, request: Request) -> None:
        async def step(tx: AsyncConnection) -> None:
            await _write_entry(tx, await _next_number(tx), request, RECEIVED)

        await self._database.run(step)

    async def decide(self, request: Request, decide: Decide) -> Charge:
        async def step(tx: AsyncConnection) -> Charge | KeyMismatch:
            number = await _next_number(tx)
            standing = await _find(tx, request.key)
            try:
                decided = decide(standing)
            except KeyMismatch as mismatch:
                await _write_entry(tx, number, request, REFUSED)
                return mismatch
            word = REPEATED if decided is standing else decided.state
            await _write_entry(tx, number, replace(request, payload=moved_by(request, word, decided)), word)
            if standing is None:
                await tx.execute(_INSERT_CHARGE, _charge_row(decided, number))
            elif decided is not standing:
                await tx.execute(
                    update(CHARGES)
                    .where(CHARGES.c.key == decided.key)
                    .values(state=decided.state, refunded_at_ms=decided.refunded_at_ms)
                )
            found = await _find(tx, request.key)
            if found is None:
                raise AssertionError(f"{request.key} was decided on and is not there")
            return found

        outcome = await self._database.run(step)
        if isinstance(outcome, KeyMismatch):
            raise outcome
        return outcome

    async def find(self, key: str) -> Charge | None:
        async def step(tx: AsyncConnection) -> Charge | None:
            return await _find(tx, key)

        return await self._database.read(step)

    async def statement(self, *, after: int, limit: int) -> list[Charge]:
        query = select(CHARGES).where(CHARGES.c.number > after).order_by(CHARGES.c.number).limit(limit)

        async def step(tx: AsyncConnection) -> list[Charge]:
            return [_to_charge(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> list[Entry]:
        number = LOG.c.number
        query = select(LOG).order_by(number.desc() if newest_first else number).limit(limit)
        if after is not None:
            query = query.where(number < after if newest_first else number > after)
        if key:
            query = query.where(LOG.c.key == key)

        async def step(tx: AsyncConnection) -> list[Entry]:
            return [_to_entry(row) for row in await tx.execute(query)]

        return await self._database.read(step)


async def _next_number(tx: AsyncConnection) -> int:
    """The number of the next entry; until the end of the transaction nobody else writes."""
    return int((await tx.execute(_NEXT)).scalar_one())


async def _find(tx: AsyncConnection, key: str) -> Charge | None:
    row = (await tx.execute(select(CHARGES).where(CHARGES.c.key == key))).one_or_none()
    return None if row is None else _to_charge(row)


async def _write_entry(tx: AsyncConnection, number: int, request: Request, word: str) -> None:
    entry = {
        "number": number,
        "at_ms": request.at_ms,
        "method": request.method,
        "caller": request.caller,
        "key": request.key,
        "word": word,
    }
    await tx.execute(_INSERT_ENTRY, entry | _payload_columns(request.payload))


def _charge_row(charge: Charge, number: int) -> dict[str, Any]:
    return {
        "key": charge.key,
        "state": charge.state,
        "decline_reason": charge.decline_reason,
        "number": number,
        "decided_at_ms": charge.decided_at_ms,
        "refunded_at_ms": charge.refunded_at_ms,
    } | _payload_columns(charge.payload)


def _payload_columns(payload: Payload | None) -> dict[str, Any]:
    return {
        "card": payload.card if payload else "",
        "amount_minor": payload.amount.minor_units if payload else 0,
        "currency": payload.amount.currency if payload else "",
        "reference": payload.reference if payload else "",
    }


def _to_payload(row: Row[Any]) -> Payload | None:
    return Payload(row.card, Money(row.amount_minor, row.currency), row.reference) if row.card else None


def _to_charge(row: Row[Any]) -> Charge:
    return Charge(
        key=row.key,
        state=ChargeState(row.state),
        payload=_to_payload(row),
        decline_reason=row.decline_reason,
        decided_at_ms=row.decided_at_ms,
        number=row.number,
        refunded_at_ms=row.refunded_at_ms,
    )


def _to_entry(row: Row[Any]) -> Entry:
    return Entry(row.number, Request(row.method, row.caller, row.key, _to_payload(row), row.at_ms), row.word)
