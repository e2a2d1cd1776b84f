"""The order store on SQLite and PostgreSQL: the suite, and what only a database can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Executable, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

import services.order
from services.kernel.errors import CountinghouseError, StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.principal import Principal, Role
from services.order.model import OrderState
from services.order.ports import OrderFilter
from services.order.schema import METADATA, ORDER_EVENTS, ORDERS
from services.order.store import SqlOrderStore
from services.runtime.database.database import Database
from services.runtime.database.transaction import Parameters, Rows, Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf
from tests.contract.order.store_contract import Made, Make, OrderStoreContract, create, created, new_order, request
from tests.fakes.order_store import Event

PACKAGE = Path(services.order.__file__).parent


@dataclass(frozen=True, slots=True)
class InDatabase:
    """The real store as a subject."""

    store: SqlOrderStore
    database: Database

    async def history(self, order_id: str) -> list[Event]:
        columns = ORDER_EVENTS.c

        async def step(tx: Transaction) -> list[Event]:
            rows = await tx.execute(select(ORDER_EVENTS).where(columns.order_id == order_id).order_by(columns.version))
            return [
                Event(
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
                for row in rows
            ]

        return await self.database.read(step)

    async def fence(self, order_id: str) -> Fence:
        async def step(tx: Transaction) -> Fence:
            columns = ORDERS.c
            row = await tx.execute(
                select(columns.fence_generation, columns.fence_token).where(columns.order_id == order_id)
            )
            return Fence(*row.one())

        return await self.database.read(step)


@pytest.fixture
def make(fresh_database: FreshDatabase) -> Make:
    """Stores on empty, migrated databases."""

    async def make(guards: Guards | None = None) -> InDatabase:
        database = await fresh_database(PACKAGE)
        return InDatabase(SqlOrderStore(database, guards or Guards()), database)

    return make


class TestSqlOrderStore(OrderStoreContract):
    """The suite on the databases."""


async def test_migrations_make_the_tables_the_store_knows(fresh_database: FreshDatabase) -> None:
    """Alembic finds no difference between a migrated database and schema.py."""
    database = await fresh_database(PACKAGE)

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async def step(connection: AsyncConnection) -> list[object]:
        return await connection.run_sync(differences)

    assert await database.inspect_schema(step) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE order_events SET at_ms = 0",
        "DELETE FROM order_events",
        "UPDATE order_lines SET quantity = 9",
        "DELETE FROM order_lines",
        "DELETE FROM orders",
    ],
)
async def test_append_only_rows_are_protected(fresh_database: FreshDatabase, owner_of: OwnerOf, statement: str) -> None:
    """By the database itself, whoever asks it."""
    database = await fresh_database(PACKAGE)
    subject = InDatabase(SqlOrderStore(database, Guards()), database)
    made = await created(subject, new_order(lines=2))

    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    with pytest.raises(DBAPIError, match="refuses"):
        await owner_of(database).run(step)
    assert await made.now() == made.order
    assert len(await subject.history("o1")) == 1


async def test_two_instances_share_a_database(fresh_database: FreshDatabase) -> None:
    """Claims and creations of two processes' stores at once: one claim granted, one order made, nobody fails."""
    database = await fresh_database(PACKAGE)
    async with Database(database.url) as other:
        subjects = [InDatabase(SqlOrderStore(each, Guards()), each) for each in (database, other)]
        made = await created(subjects[0])
        claims = await asyncio.gather(*(Made(subjects[n % 2], made.order).claim(f"p{n}") for n in range(20)))
        assert not any(isinstance(claim, CountinghouseError) for claim in claims)
        assert len({claim.payment_id for claim in claims if not isinstance(claim, CountinghouseError)}) == 1
        answers = await asyncio.gather(
            *(create(subjects[n % 2].store, request("CreateOrder", "same"), new_order(f"new{n}")) for n in range(20))
        )
        assert len({answer.response.body for answer in answers}) == 1
        assert sum(not answer.replayed for answer in answers) == 1
        assert len(await subjects[1].store.page(OrderFilter(), limit=50, after=None)) == 2


async def test_rising_fences_at_once_leave_the_highest(fresh_database: FreshDatabase) -> None:
    """Twenty holders write at once: the row ends at the highest fence, and each was told the truth about its own."""
    database = await fresh_database(PACKAGE)
    subject = InDatabase(SqlOrderStore(database, Guards()), database)
    made = await created(subject)
    fences = [Fence(1, token) for token in (7, 3, 20, 11, 5, 19, 2, 13, 17, 1)]
    outcomes = await asyncio.gather(*(made.claim("p1", fence) for fence in fences))
    assert await subject.fence("o1") == Fence(1, 20)
    assert not isinstance(outcomes[2], StaleFence)
    assert len(await subject.history("o1")) == 2


async def test_rows_of_a_list_are_locked_in_one_order(
    fresh_database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By order id, however they were asked for: so two lists never wait for each other in a circle."""
    database = await fresh_database(PACKAGE)
    subject = InDatabase(SqlOrderStore(database, Guards()), database)
    names = ["o3", "o1", "o2"]
    orders = [await created(subject, new_order(name)) for name in names]
    locked: list[str] = []

    class Noted(Transaction):
        def __init__(self, tx: Transaction) -> None:
            self._tx = tx
            self.is_postgresql = tx.is_postgresql

        async def execute(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
            if str(statement).startswith("UPDATE orders SET fence_generation"):
                locked.append((parameters or {})["wanted"])
            return await self._tx.execute(statement, parameters)

        async def execute_each(self, statement: Executable, rows: Sequence[Parameters]) -> Rows:
            if str(statement).startswith("UPDATE orders SET fence_generation"):
                locked.extend(row["wanted"] for row in rows)
            return await self._tx.execute_each(statement, rows)

    run = database.run
    monkeypatch.setattr(database, "run", lambda step: run(lambda tx: step(Noted(tx))))
    outcomes = await subject.store.claim([made.change("p1", Fence(1, 1)) for made in orders])
    assert locked == sorted(names)
    assert [outcome.order_id for outcome in outcomes if not isinstance(outcome, CountinghouseError)] == names
