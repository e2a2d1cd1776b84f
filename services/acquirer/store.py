"""The acquirer's keys and its log in a database: each step as one transaction. SQL is here and in `schema.py`.

A step that writes takes the next number of the log first, from the one row of `counter`. So writers take turns, a key
that is read after that does not change any more, and numbers have no gap and are committed in their order.

Invariants of the tables, beyond those of the model
1. `log` only grows, and a key is never removed (triggers).
2. A decision, the key it is about and the decision's entry in the log are one commit.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import insert, select, update

from services.acquirer.model import RECEIVED, REFUSED, REPEATED, Charge, LogEntry, LoggedRequest, moved_by
from services.acquirer.ports import ChargeStore, Decide
from services.acquirer.schema import CHARGES, COUNTER, LOG, charge_row, entry_row, to_charge, to_entry
from services.kernel.errors import KeyMismatch
from services.runtime.database.database import Database
from services.runtime.database.transaction import Transaction

_NEXT = update(COUNTER).values(last=COUNTER.c.last + 1).returning(COUNTER.c.last)
_INSERT_ENTRY = insert(LOG)
_INSERT_CHARGE = insert(CHARGES)


class SqlChargeStore(ChargeStore):
    """`ports.ChargeStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def receive(self, request: LoggedRequest) -> None:
        async def step(tx: Transaction) -> None:
            await tx.execute(_INSERT_ENTRY, entry_row(await _next_number(tx), request, RECEIVED))

        await self._database.run(step)

    async def decide(self, request: LoggedRequest, decide: Decide) -> Charge:
        async def step(tx: Transaction) -> Charge | KeyMismatch:
            number = await _next_number(tx)
            standing = await _find(tx, request.key)
            try:
                decided = decide(standing)
            except KeyMismatch as mismatch:
                await tx.execute(_INSERT_ENTRY, entry_row(number, request, REFUSED))
                return mismatch
            word = REPEATED if decided is standing else decided.state
            shown = replace(request, payload=moved_by(request, word, decided))
            await tx.execute(_INSERT_ENTRY, entry_row(number, shown, word))
            if standing is None:
                await tx.execute(_INSERT_CHARGE, charge_row(decided, number))
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
        async def step(tx: Transaction) -> Charge | None:
            return await _find(tx, key)

        return await self._database.read(step)

    async def statement(self, *, after: int, limit: int) -> list[Charge]:
        query = select(CHARGES).where(CHARGES.c.number > after).order_by(CHARGES.c.number).limit(limit)

        async def step(tx: Transaction) -> list[Charge]:
            return [to_charge(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> list[LogEntry]:
        number = LOG.c.number
        query = select(LOG).order_by(number.desc() if newest_first else number).limit(limit)
        if after is not None:
            query = query.where(number < after if newest_first else number > after)
        if key:
            query = query.where(LOG.c.key == key)

        async def step(tx: Transaction) -> list[LogEntry]:
            return [to_entry(row) for row in await tx.execute(query)]

        return await self._database.read(step)


async def _next_number(tx: Transaction) -> int:
    """Return the number of the next entry; until the end of the transaction no other writer gets one."""
    return int((await tx.execute(_NEXT)).scalar_one())


async def _find(tx: Transaction, key: str) -> Charge | None:
    row = (await tx.execute(select(CHARGES).where(CHARGES.c.key == key))).one_or_none()
    return None if row is None else to_charge(row)
