"""A step is whole, a snapshot stands still, and a database that cannot be used says so."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

import services.order
from services.kernel.errors import Unavailable
from services.order.schema import ENSEMBLE
from services.runtime.database.database import Database, DatabaseRefused, read_generation, write_generation
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf

PACKAGE = Path(services.order.__file__).parent


@pytest.fixture
async def migrated(fresh_database: FreshDatabase) -> Database:
    return await fresh_database(PACKAGE)


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    """Without a single table."""
    async with Database(database_url) as database:
        yield database


async def say(database: Database, statement: str) -> None:
    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    await database.run(step)


async def count(database: Database) -> int:
    async def step(tx: Transaction) -> int:
        return int((await tx.execute(text("SELECT count(*) FROM ensemble"))).scalar_one())

    return await database.read(step)


async def test_database_time_is_in_unix_milliseconds(empty: Database) -> None:
    """In Unix milliseconds, whatever time zone it is in; here its clock is the machine's."""
    before_ms = time.time() * 1000
    told_ms = await empty.now_ms()
    assert before_ms - 2 <= told_ms <= time.time() * 1000 + 2


async def test_cancelled_read_ends_only_when_its_step_has(empty: Database) -> None:
    """Whoever hangs up on reads gets no more of them at once than others: a thread cannot be stopped."""
    if not empty.is_sqlite:
        pytest.skip("a statement of PostgreSQL is cancelled")
    begun, go, ended = threading.Event(), threading.Event(), threading.Event()

    async def step(_tx: Transaction) -> None:
        begun.set()
        go.wait(20)
        ended.set()

    reading = asyncio.create_task(empty.read(step))
    await asyncio.to_thread(begun.wait, 20)
    reading.cancel()
    done, _ = await asyncio.wait({reading}, timeout=0.2)
    assert not done
    go.set()
    await asyncio.wait({reading})
    assert reading.cancelled()
    assert ended.is_set()


async def test_step_that_raises_did_nothing(migrated: Database) -> None:
    """All of it is rolled back, and the error is the step's own."""

    async def step(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 1)"))
        raise KeyError("enough")

    with pytest.raises(KeyError):
        await migrated.run(step)
    assert await count(migrated) == 0


async def test_reading_step_sees_one_moment(migrated: Database) -> None:
    """Whatever is committed while it runs."""
    await say(migrated, "INSERT INTO ensemble (id, generation) VALUES (1, 1)")

    async def step(tx: Transaction) -> tuple[int, int]:
        first = (await tx.execute(text("SELECT generation FROM ensemble"))).scalar_one()
        if migrated.is_sqlite:  # a step waits for nothing but its connection, so another one is used at once
            with sqlite3.connect(make_url(migrated.url).database or "") as other:
                other.execute("UPDATE ensemble SET generation = 2")
        else:
            await say(migrated, "UPDATE ensemble SET generation = 2")
        return first, (await tx.execute(text("SELECT generation FROM ensemble"))).scalar_one()

    assert await migrated.read(step) == (1, 1)
    assert await read_generation(migrated, ENSEMBLE) == 2


async def test_step_that_waits_for_something_else_is_refused_and_undone(migrated: Database) -> None:
    """On SQLite, where it would hold the file; PostgreSQL ends it by its timeouts."""
    if not migrated.is_sqlite:
        return

    async def step(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 1)"))
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="something other than its connection"):
        await migrated.run(step)
    assert await count(migrated) == 0


async def test_increments_at_once_are_all_counted(migrated: Database) -> None:
    """Read and written in one step by two instances: steps that lose are run again as a whole."""
    await say(migrated, "INSERT INTO ensemble (id, generation) VALUES (1, 0)")

    async def step(tx: Transaction) -> None:
        if tx.is_postgresql:
            await tx.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        seen = (await tx.execute(text("SELECT generation FROM ensemble"))).scalar_one()
        await tx.execute(text("UPDATE ensemble SET generation = :next"), {"next": seen + 1})

    async with Database(migrated.url) as other:
        await asyncio.gather(*((migrated, other)[number % 2].run(step) for number in range(6)))
    assert await read_generation(migrated, ENSEMBLE) == 6


async def test_mistake_of_ours_is_not_called_unavailable(migrated: Database) -> None:
    """Trying it again would not help."""
    with pytest.raises(DBAPIError):
        await say(migrated, "SELECT nonsense FROM nowhere")


async def test_generation_never_falls(migrated: Database) -> None:
    """0 before it was ever written."""
    assert await read_generation(migrated, ENSEMBLE) == 0
    for generation, expected in ((2, 2), (1, 2), (3, 3)):
        await write_generation(migrated, ENSEMBLE, generation)
        assert await read_generation(migrated, ENSEMBLE) == expected


async def test_database_that_is_away_is_unavailable() -> None:
    """Within its timeout, with the advice to try again."""
    async with Database("postgresql+asyncpg://nobody@127.0.0.1:1/none", statement_timeout_s=2.0) as database:
        for attempt in (database.ping(), say(database, "SELECT 1")):
            with pytest.raises(Unavailable) as refusal:
                await attempt
            assert refusal.value.reason == "DATABASE_UNAVAILABLE"


async def test_instances_that_start_at_once_migrate_once(database_url: str) -> None:
    """All of them find the newest schema afterwards."""
    databases = [Database(database_url) for _ in range(3)]
    try:
        await asyncio.gather(*(bring_up_to_date(database, PACKAGE, migrate=True) for database in databases))
        assert await count(databases[0]) == 0
    finally:
        for database in databases:
            await database.close()


async def test_migrated_database_is_left_alone(migrated: Database) -> None:
    """Also where migrating is not allowed."""
    await bring_up_to_date(migrated, PACKAGE, migrate=False)


async def test_newer_database_is_refused(migrated: Database, owner_of: OwnerOf) -> None:
    """It says which revision, and what to install."""
    await say(owner_of(migrated), "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseRefused, match="9999") as refusal:
        await bring_up_to_date(migrated, PACKAGE, migrate=True)
    assert refusal.value.reason == "DATABASE_NEWER"


async def test_database_that_is_behind_is_refused_where_nothing_may_be_changed(empty: Database) -> None:
    """It says the command that mends it."""
    with pytest.raises(DatabaseRefused, match=r"services\.order\.main migrate") as refusal:
        await bring_up_to_date(empty, PACKAGE, migrate=False)
    assert refusal.value.reason == "DATABASE_BEHIND"


async def test_database_with_foreign_tables_is_refused(empty: Database) -> None:
    """Its tables are not touched."""
    await say(empty, "CREATE TABLE theirs (id INTEGER)")
    with pytest.raises(DatabaseRefused) as refusal:
        await bring_up_to_date(empty, PACKAGE, migrate=True)
    assert refusal.value.reason == "DATABASE_FOREIGN"


async def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """It is named, and left as it was."""
    path = tmp_path / "orders.db"
    path.write_bytes(b"this is a letter, not a database" * 200)
    async with Database(f"sqlite:///{path}") as database:
        with pytest.raises(DatabaseRefused, match=r"orders\.db") as refusal:
            await bring_up_to_date(database, PACKAGE, migrate=True)
    assert refusal.value.reason == "DATABASE_CORRUPT"
    assert path.read_bytes().startswith(b"this is a letter")
