"""The acquirer's keys and its log in a database. SQL is here and in `schema.py`.

What concurrent callers write is committed in batches (`group_commit.py`), requests and decisions alike: each entry of
the log has its caller's place in the batch. A batch takes its numbers of the log first, from the one row of `counter`.
So writers take turns, a key that is read after that does not change any more, and numbers have no gap and are committed
in their order.

Invariants of the tables, beyond those of the model
1. `log` only grows, and a key is never removed (triggers).
2. A decision, the key it is about and the decision's entry in the log are one commit.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from services.acquirer.model import RECEIVED, REFUSED, REPEATED, Charge, LogEntry, LoggedRequest, moved_by
from services.acquirer.ports import ChargeStore, Decide
from services.acquirer.schema import CHARGES, COUNTER, LOG, charge_row, entry_row, to_charge, to_entry
from services.kernel.errors import KeyMismatch
from services.runtime.database.database import Database
from services.runtime.database.group_commit import GroupCommit
from services.runtime.database.transaction import Transaction

_COUNT = update(COUNTER).values(last=COUNTER.c.last + bindparam("entries")).returning(COUNTER.c.last)
_BY_KEY = select(CHARGES).where(CHARGES.c.key.in_(bindparam("keys", expanding=True)))
_INSERT_ENTRY = insert(LOG)
_INSERT_CHARGE = insert(CHARGES)
_REFUND = (
    update(CHARGES)
    .where(CHARGES.c.key == bindparam("refunded"))
    .values(state=bindparam("new_state"), refunded_at_ms=bindparam("at_ms"))
)


@dataclass(frozen=True, slots=True)
class _Written:
    """One entry of the log to write.

    Args:
        decide: What decides on the key; None: the request was only received.
    """

    request: LoggedRequest
    decide: Decide | None


class SqlChargeStore(ChargeStore):
    """`ports.ChargeStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writing = GroupCommit(
            self._write_all, key=lambda written: written.request.key if written.decide else object()
        )

    async def receive(self, request: LoggedRequest) -> None:
        await self._writing.run(_Written(request, None))

    async def decide(self, request: LoggedRequest, decide: Decide) -> Charge:
        outcome = await self._writing.run(_Written(request, decide))
        if isinstance(outcome, KeyMismatch):
            raise outcome
        if outcome is None:
            raise AssertionError(f"{request.key} was not decided on")
        return outcome

    async def _write_all(self, batch: Sequence[_Written]) -> list[Charge | KeyMismatch | None]:
        """Write entries of the log, and the keys they decide on, each of which is named once; return the decisions."""

        async def step(tx: Transaction) -> list[Charge | KeyMismatch | None]:
            last = int((await tx.execute(_COUNT, {"entries": len(batch)})).scalar_one())
            found = await _find(tx, {written.request.key for written in batch if written.decide})
            entries: list[dict[str, Any]] = []
            made: list[dict[str, Any]] = []
            refunded: list[dict[str, Any]] = []
            outcomes: list[Charge | KeyMismatch | None] = []
            for number, written in enumerate(batch, last - len(batch) + 1):
                standing, request = found.get(written.request.key), written.request
                word, outcome = _decided(written, standing)
                if isinstance(outcome, Charge):
                    request = replace(request, payload=moved_by(request, word, outcome))
                    if standing is None:
                        outcome = replace(outcome, number=number)
                        made.append(charge_row(outcome, number))
                    elif outcome is not standing:
                        refunded.append(
                            {"refunded": outcome.key, "new_state": outcome.state, "at_ms": outcome.refunded_at_ms}
                        )
                entries.append(entry_row(number, request, word))
                outcomes.append(outcome)
            await tx.execute_each(_INSERT_ENTRY, entries)
            await tx.execute_each(_INSERT_CHARGE, made)
            await tx.execute_each(_REFUND, refunded)
            return outcomes

        return await self._database.run(step)

    async def find(self, key: str) -> Charge | None:
        async def step(tx: Transaction) -> Charge | None:
            return (await _find(tx, (key,))).get(key)

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


def _decided(written: _Written, standing: Charge | None) -> tuple[str, Charge | KeyMismatch | None]:
    """Return the word of the log's entry, and the key as it stands afterwards or why it was refused."""
    if written.decide is None:
        return RECEIVED, None
    try:
        decided = written.decide(standing)
    except KeyMismatch as mismatch:
        return REFUSED, mismatch
    return (REPEATED if decided is standing else decided.state), decided


async def _find(tx: Transaction, keys: Collection[str]) -> dict[str, Charge]:
    rows = await tx.execute(_BY_KEY, {"keys": sorted(keys)}) if keys else ()
    return {row.key: to_charge(row) for row in rows}
