"""A database without space, or one that can only be read, says that nothing was done; and one that fails within COMMIT
does not."""

from __future__ import annotations

import contextlib
import resource
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

import services.order
from services.kernel.errors import CountinghouseError, OutcomeUnknown, Unavailable
from services.order.schema import ENSEMBLE
from services.runtime.database.database import Database, probe_write, read_generation, write_generation
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf
from tests.full_disk import fill, small_disk
from tests.postgresql import PostgresServer

PACKAGE = Path(services.order.__file__).parent
SECRET = "tok_4f1e77b2"

#: PostgreSQL's own error, by its own code, in a statement or at COMMIT.
FULL_TRIGGER = """\
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$
"""
IN_A_STATEMENT = (
    "CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON ensemble FOR EACH ROW EXECUTE FUNCTION full_disk()"
)
AT_COMMIT = (
    "CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT OR UPDATE ON ensemble DEFERRABLE INITIALLY DEFERRED "
    "FOR EACH ROW EXECUTE FUNCTION full_disk()"
)


@dataclass
class Disk:
    """The space of a database.

    Attributes:
        database: As its service has it.
        fill: Takes the space away; free: gives it back.
    """

    database: Database
    fill: Callable[[], Awaitable[None]]
    free: Callable[[], Awaitable[None]]


@pytest.fixture
async def database(fresh_database: FreshDatabase) -> Database:
    return await fresh_database(PACKAGE)


@pytest.fixture
async def disk(database: Database, owner_of: OwnerOf) -> Disk:
    """On SQLite by a limit of pages, which fails as a full disk does; on PostgreSQL by the server's own error."""
    if database.is_sqlite:
        pages = 1 << 30

        @event.listens_for(database.sync_engine, "checkout")
        def limit(connection: Any, _record: Any, _proxy: Any) -> None:
            connection.execute(f"PRAGMA max_page_count={pages}")

        async def fill() -> None:
            nonlocal pages
            pages = 1  # SQLite takes as many as there are

        async def free() -> None:
            nonlocal pages
            pages = 1 << 30

        return Disk(database, fill, free)
    owner = owner_of(database)

    async def fill_server() -> None:
        await say(owner, FULL_TRIGGER)
        await say(owner, IN_A_STATEMENT)

    async def free_server() -> None:
        await say(owner, "DROP TRIGGER full_disk ON ensemble")

    return Disk(database, fill_server, free_server)


async def say(database: Database, statement: str, **values: object) -> None:
    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement), values)

    await database.run(step)


async def write_much(database: Database) -> None:
    """More than the pages in use have room for."""

    async def step(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 7)"))
        await tx.execute(text("UPDATE ensemble SET probe = :bytes"), {"bytes": bytes(100_000)})

    await database.run(step)


async def test_write_without_space_is_database_full_and_undone(disk: Disk) -> None:
    await disk.fill()
    with pytest.raises(Unavailable) as refusal:
        await write_much(disk.database)
    assert (refusal.value.reason, refusal.value.retry_after_ms) == ("DATABASE_FULL", 1000)
    assert "nothing was done" in refusal.value.message
    assert disk.database.writes_fail
    await disk.free()
    assert await read_generation(disk.database, ENSEMBLE) == 0


async def test_probe_after_a_failed_write_fails_until_there_is_space(disk: Disk) -> None:
    await disk.fill()
    with pytest.raises(Unavailable):
        await write_much(disk.database)
    for _ in range(2):
        with pytest.raises(Unavailable) as refusal:
            await probe_write(disk.database, ENSEMBLE)
        assert refusal.value.reason == "DATABASE_FULL"
        assert disk.database.writes_fail
    await disk.free()
    await probe_write(disk.database, ENSEMBLE)
    assert not disk.database.writes_fail


async def test_reads_succeed_on_a_full_disk(disk: Disk) -> None:
    await write_generation(disk.database, ENSEMBLE, 3)
    await disk.fill()
    with pytest.raises(Unavailable):
        await say(disk.database, "UPDATE ensemble SET probe = :bytes", bytes=bytes(100_000))
    await disk.database.ping()
    assert await read_generation(disk.database, ENSEMBLE) == 3


async def test_database_that_can_only_be_read_is_database_read_only(database: Database, owner_of: OwnerOf) -> None:
    if database.is_sqlite:
        event.listen(database.sync_engine, "checkout", lambda connection, *_: connection.execute("PRAGMA query_only=1"))
    else:
        name = make_url(database.url).database
        await say(owner_of(database), f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    async with reopened(database) as opened:
        with pytest.raises(Unavailable) as refusal:
            await write_generation(opened, ENSEMBLE, 3)
        assert refusal.value.reason == "DATABASE_READ_ONLY"
        assert opened.writes_fail


@asynccontextmanager
async def reopened(database: Database) -> AsyncIterator[Database]:
    """The same database by new connections, where only those see what was set."""
    if database.is_sqlite:
        yield database
        return
    async with Database(database.url) as opened:
        yield opened


class TestPostgresql:
    @pytest.fixture
    async def database(self, postgres_server: PostgresServer) -> AsyncIterator[Database]:
        """A migrated database, under its owner."""
        user, owner = await postgres_server.migrated(PACKAGE)
        async with Database(owner) as database:
            yield database
        await postgres_server.drop(user)

    async def test_commit_that_the_server_refuses_for_want_of_space_is_undone(self, database: Database) -> None:
        """It answered: nothing stands."""
        await say(database, FULL_TRIGGER)
        await say(database, AT_COMMIT)
        with pytest.raises(Unavailable) as refusal:
            await write_generation(database, ENSEMBLE, 3)
        assert refusal.value.reason == "DATABASE_FULL"
        assert await read_generation(database, ENSEMBLE) == 0

    @pytest.mark.parametrize(
        ("code", "reason"),
        [
            ("53000", "DATABASE_UNAVAILABLE"),
            ("53100", "DATABASE_FULL"),
            ("53200", "DATABASE_UNAVAILABLE"),
            ("53300", "DATABASE_UNAVAILABLE"),
            ("53400", "DATABASE_UNAVAILABLE"),
            ("57P01", "DATABASE_UNAVAILABLE"),
            ("57P03", "DATABASE_UNAVAILABLE"),
            ("25006", "DATABASE_READ_ONLY"),
            ("58030", "DATABASE_IO_ERROR"),
        ],
    )
    async def test_server_without_resources_is_unavailable(self, database: Database, code: str, reason: str) -> None:
        with pytest.raises(Unavailable) as refusal:
            await say(database, f"DO $$ BEGIN RAISE EXCEPTION 'none left' USING ERRCODE = '{code}'; END $$")
        assert refusal.value.reason == reason

    async def test_server_that_takes_no_more_connections_is_unavailable(self, postgres_server: PostgresServer) -> None:
        user, owner = await postgres_server.migrated(PACKAGE)
        async with Database(owner) as database:
            await say(database, f'ALTER DATABASE "{make_url(owner).database}" CONNECTION LIMIT 1')
            async with Database(user) as refused:
                with pytest.raises(Unavailable) as refusal:
                    await refused.ping()
        assert refusal.value.reason == "DATABASE_UNAVAILABLE"
        await postgres_server.drop(user)


class TestSqlite:
    @pytest.fixture
    async def database(self, tmp_path: Path) -> AsyncIterator[Database]:
        async with migrated(tmp_path) as database:
            yield database

    async def test_commit_that_fails_to_write_its_file_may_stand(self, database: Database) -> None:
        """The frame that makes it stand may be in the file: after a restart it would count."""
        with largest_file(0), pytest.raises(OutcomeUnknown):
            await write_generation(database, ENSEMBLE, 3)
        await write_generation(database, ENSEMBLE, 4)
        assert await read_generation(database, ENSEMBLE) == 4

    async def test_commit_on_a_full_disk_is_undone(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", 4 << 20) as folder:
            async with migrated(folder) as database:
                filler = folder / "filler"
                fill(filler)
                with pytest.raises(Unavailable) as refusal:
                    await write_on(database)
                assert refusal.value.reason == "DATABASE_FULL"
                filler.unlink()
                await write_generation(database, ENSEMBLE, 4)
                assert await read_generation(database, ENSEMBLE) == 4

    async def test_file_in_a_folder_that_cannot_be_opened_is_database_io_error(self, tmp_path: Path) -> None:
        (tmp_path / "order.db").mkdir()
        async with Database(f"sqlite:///{tmp_path / 'order.db'}") as database:
            with pytest.raises(Unavailable) as refusal:
                await database.ping()
        assert refusal.value.reason == "DATABASE_IO_ERROR"


async def write_on(database: Database) -> None:
    """What SQLite has taken of the disk in advance lasts for a while."""
    for _ in range(1000):
        await say(database, "UPDATE ensemble SET probe = :bytes", bytes=bytes(100_000))
        await write_generation(database, ENSEMBLE, 3)
        await probe_write(database, ENSEMBLE)


@asynccontextmanager
async def migrated(folder: Path) -> AsyncIterator[Database]:
    async with Database(f"sqlite:///{folder / 'order.db'}") as database:
        await bring_up_to_date(database, PACKAGE, migrate=True)
        yield database


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may be written beyond `size` bytes: a write is answered EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "statements",
    [
        ["SELECT * FROM ensemble WHERE no_such_column = :secret"],
        ["INSERT INTO orders (order_id) VALUES (:secret)"],
        ["INSERT INTO order_lines (order_id, position) VALUES (:secret, 1)"],
        ["CREATE_UNIQUE", "INSERT INTO named VALUES (:secret)", "INSERT INTO named VALUES (:secret)"],
        ["SELECT CAST(CAST(:secret AS text) AS integer) / 0 FROM nowhere"],
        ["SELECT CAST(CAST(:secret AS text) AS integer)"],
        ["SELECT generation FROM ensemble WHERE generation = :secret"],
        ["UPDATE ensemble SET generation = :secret"],
    ],
)
async def test_error_of_a_database_shows_no_value(database: Database, owner_of: OwnerOf, statements: list[str]) -> None:
    """Wherever it is logged, with all that it came from."""
    opened = owner_of(database)
    try:
        for statement in statements:
            if statement == "CREATE_UNIQUE":
                await say(opened, "CREATE TABLE named (name text UNIQUE)")
            else:
                await say(opened, statement, secret=SECRET)
    except (DBAPIError, CountinghouseError) as error:
        told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
        assert SECRET not in told
    else:
        assert opened.is_sqlite  # which takes any value for any column
