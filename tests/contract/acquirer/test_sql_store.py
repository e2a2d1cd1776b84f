"""The bank's memory on SQLite and PostgreSQL: the suite, and what only a database can be asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.acquirer.ports import ChargeStore
from services.acquirer.schema import COUNTER, METADATA
from services.acquirer.store import SqlChargeStore
from services.runtime.database.database import Database, probe_write
from services.runtime.database.transaction import Transaction
from tests.contract.acquirer.store_contract import ChargeStoreContract, Make, asked, charge, words
from tests.contract.conftest import FreshDatabase


@pytest.fixture
def make(fresh_database: FreshDatabase, service_package: Path) -> Make:
    """Stores on empty, migrated databases."""

    async def make() -> ChargeStore:
        return SqlChargeStore(await fresh_database(service_package))

    return make


class TestSqlChargeStore(ChargeStoreContract):
    """The suite on the databases."""


async def test_migrations_make_the_tables_the_store_knows(database: Database) -> None:
    """Alembic finds no difference between a migrated database and schema.py."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async def step(connection: AsyncConnection) -> list[object]:
        return await connection.run_sync(differences)

    assert await database.inspect_schema(step) == []


async def test_probe_of_writing_works_under_the_acquirers_role_and_takes_no_number(database: Database) -> None:
    """Of the log, whose numbers have no gap."""
    store = SqlChargeStore(database)
    await charge(store)
    await probe_write(database, COUNTER)
    await charge(store, "k2")
    numbers = [entry.number for entry in await store.log(after=0, limit=9, key="")]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    "statement", ["UPDATE log SET word = 'RECEIVED'", "DELETE FROM log", "DELETE FROM charges WHERE key = 'k1'"]
)
async def test_append_only_rows_are_protected(database: Database, owner: Database, statement: str) -> None:
    """By the database itself, whoever asks it."""
    store = SqlChargeStore(database)
    decided = await charge(store)

    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    with pytest.raises(DBAPIError, match="refuses"):
        await owner.run(step)
    assert await store.find("k1") == decided
    assert await words(store) == ["CHARGED"]


async def test_two_processes_share_a_database(database: Database) -> None:
    """One key at both at once: charged once, and the log has no gap."""
    async with Database(database.url) as other:
        stores = [SqlChargeStore(database), SqlChargeStore(other)]
        outcomes = await asyncio.gather(*(charge(stores[n % 2]) for n in range(20)))
        assert len({outcome.number for outcome in outcomes}) == 1
        await asyncio.gather(*(stores[n % 2].receive(asked()) for n in range(10)))
        entries = await stores[0].log(after=0, limit=99, key="")
        assert [entry.number for entry in entries] == list(range(1, 31))
