"""PostgreSQL goes away, is slow or full: what was not done is said to be so, and what may have been done is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

import services.order
from services.kernel.clock import SystemClock
from services.kernel.errors import OutcomeUnknown, Unavailable
from services.order.schema import ENSEMBLE
from services.runtime.database import postgresql
from services.runtime.database.database import Database, DatabaseRefused, read_generation, write_generation
from services.runtime.database.postgresql import PostgresqlBackend
from services.runtime.database.transaction import Transaction
from tests.contract.runtime.wire import Commit, Wire, wire_to
from tests.postgresql import PostgresServer

PACKAGE = Path(services.order.__file__).parent
#: Short, so that it can be waited for; a step as a whole gets a second more.
TIMEOUT_S = 0.5


@pytest.fixture
async def url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """A migrated database, under the service's role."""
    made, _ = await postgres_server.migrated(PACKAGE)
    yield made
    await postgres_server.drop(made)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    """The same, with two connections."""
    async with Database(url, pool=2, statement_timeout_s=TIMEOUT_S) as database:
        yield database


@pytest.fixture
async def wire(url: str) -> AsyncIterator[Wire]:
    async with wire_to(url) as wire:
        yield wire


@pytest.fixture
async def distant(wire: Wire) -> AsyncIterator[Database]:
    """The database at the other end of the wire; connected already, so that COMMIT is what comes next."""
    async with Database(wire.url, pool=1, statement_timeout_s=TIMEOUT_S) as database:
        await database.ping()
        yield database


@pytest.mark.parametrize(
    ("how", "stands"), [(Commit.ANSWER_IS_LOST, 7), (Commit.IS_LOST, 0), (Commit.IS_NOT_ANSWERED, 7)]
)
async def test_commit_that_is_not_answered_may_stand(
    wire: Wire, distant: Database, database: Database, how: Commit, stands: int
) -> None:
    """So it is neither called undone nor tried again by itself, whichever of both it is."""
    wire.commit = how
    with pytest.raises(OutcomeUnknown):
        await write_generation(distant, ENSEMBLE, 7)
    async with asyncio.timeout(5):
        while await read_generation(database, ENSEMBLE) != stands:  # noqa: ASYNC110  the server may yet be at it
            await asyncio.sleep(0.02)


async def test_connection_that_broke_before_the_commit_is_replaced(wire: Wire, distant: Database) -> None:
    """The step runs again on another, and its caller notices nothing."""
    began = 0

    async def step(tx: Transaction) -> None:
        nonlocal began
        began += 1
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 3)"))
        if began == 1:
            wire.cut()
            await tx.execute(text("SELECT 1"))

    await distant.run(step)
    assert began == 2
    assert await read_generation(distant, ENSEMBLE) == 3


async def test_idle_connections_that_broke_are_replaced(wire: Wire, distant: Database) -> None:
    wire.cut()
    await write_generation(distant, ENSEMBLE, 5)
    assert await read_generation(distant, ENSEMBLE) == 5


async def test_server_that_is_silent_is_unavailable_in_time(wire: Wire, distant: Database) -> None:
    """It holds its connections and answers nothing, as a frozen one does."""
    wire.go_silent()
    clock = SystemClock()
    began_s = clock.monotonic_s()
    with pytest.raises(Unavailable):
        await write_generation(distant, ENSEMBLE, 5)
    assert clock.monotonic_s() - began_s < 5


async def test_statement_that_takes_too_long_is_ended_and_undone(database: Database) -> None:
    """By the server, which says so: nothing was done."""

    async def step(tx: Transaction) -> None:
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 3)"))
        await tx.execute(text("SELECT pg_sleep(30)"))

    with pytest.raises(Unavailable):
        await database.run(step)
    assert await read_generation(database, ENSEMBLE) == 0


async def test_wait_for_a_locked_row_ends_in_time(database: Database) -> None:
    """A lock of another transaction is waited for as long as any statement."""
    await write_generation(database, ENSEMBLE, 1)
    held, done = asyncio.Event(), asyncio.Event()

    async def hold(tx: Transaction) -> None:
        await tx.execute(text("UPDATE ensemble SET generation = 2"))
        held.set()
        await done.wait()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.run(hold))
        await held.wait()
        async with Database(database.url, pool=1, statement_timeout_s=0.2) as other:
            with pytest.raises(Unavailable):
                await write_generation(other, ENSEMBLE, 3)
        done.set()
    assert await read_generation(database, ENSEMBLE) == 2


async def test_abandoned_transaction_is_ended_by_the_server(url: str, database: Database) -> None:
    """What it had locked is free again, whatever became of the process that began it."""
    await write_generation(database, ENSEMBLE, 1)
    backend = PostgresqlBackend(Database(url).sync_engine.url, 1, TIMEOUT_S)
    connection = await (await backend._opened()).acquire()
    await connection.execute("BEGIN")
    await connection.execute("UPDATE ensemble SET generation = 9")
    try:
        async with Database(url, statement_timeout_s=5.0) as patient:
            await write_generation(patient, ENSEMBLE, 2)
        assert await read_generation(database, ENSEMBLE) == 2
    finally:
        await backend.close()


async def test_wait_for_a_free_connection_ends_in_time(database: Database) -> None:
    """The pool is as large as it is; waiting in front of it has a bound."""
    held, done = asyncio.Semaphore(0), asyncio.Event()

    async def hold(tx: Transaction) -> None:
        held.release()
        while not done.is_set():  # idle for longer, the server would end it
            await tx.execute(text("SELECT pg_sleep(0.05)"))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(database.read(hold))
            await held.acquire()
        with pytest.raises(Unavailable):
            await database.ping()
        done.set()


@pytest.mark.parametrize(
    ("role", "name", "reason"),
    [("postgres", "nowhere", "DATABASE_MISSING"), ("nobody-we-know", "postgres", "DATABASE_LOGIN")],
)
async def test_database_that_needs_its_operator_is_refused(
    postgres_server: PostgresServer, role: str, name: str, reason: str
) -> None:
    """Trying again would not help; the message names the database and holds no password."""
    url = postgres_server.url.set(username=role, password="sesame", database=name)
    async with Database(url.render_as_string(hide_password=False)) as database:
        with pytest.raises(DatabaseRefused) as refusal:
            await database.ping()
    assert refusal.value.reason == reason
    assert "sesame" not in refusal.value.message
    assert {"nowhere", "nobody-we-know"} & {role, name} <= {word.strip('"') for word in refusal.value.message.split()}


async def test_connection_that_cannot_be_given_back_changes_nothing_about_the_commit(
    wire: Wire, distant: Database, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit was answered; what asyncpg still says to a server that is silent by then is not waited for."""
    monkeypatch.setattr(postgresql, "_QUERIES", 1)  # after so many asyncpg closes a connection that is given back
    async with Database(wire.url, pool=1, statement_timeout_s=TIMEOUT_S) as worn:
        await worn.ping()
        commit = PostgresqlBackend._commit

        async def commit_and_go_silent(backend: PostgresqlBackend, connection: object) -> None:
            await commit(backend, connection)
            wire.go_silent()

        monkeypatch.setattr(PostgresqlBackend, "_commit", commit_and_go_silent)
        await write_generation(worn, ENSEMBLE, 7)
    assert await read_generation(database, ENSEMBLE) == 7


async def test_step_that_runs_while_the_database_is_closed_is_unavailable(url: str) -> None:
    database = Database(url, pool=1)
    began = asyncio.Event()

    async def step(tx: Transaction) -> None:
        began.set()
        await tx.execute(text("SELECT pg_sleep(30)"))

    running = asyncio.create_task(database.run(step))
    await began.wait()
    await database.close()
    with pytest.raises(Unavailable):
        await running


async def test_step_whose_server_process_is_ended_after_a_batch_runs_again(database: Database) -> None:
    """Its rows stand once."""
    began = 0
    insert_generation = text("INSERT INTO ensemble (id, generation) VALUES (:id, 1)")

    async def step(tx: Transaction) -> None:
        nonlocal began
        began += 1
        await tx.execute_each(insert_generation, [{"id": number} for number in range(1, 31)])
        if began == 1:
            await tx.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    await database.run(step)
    assert began == 2
    assert (await database.select(text("SELECT COUNT(*) FROM ensemble"), {})).scalar_one() == 30


async def test_connection_that_was_lent_half_open_is_replaced(database: Database) -> None:
    """Of one whose server process was killed while it logged in, asyncpg says that another operation is in progress."""
    began = 0

    async def step(tx: Transaction) -> None:
        nonlocal began
        began += 1
        await tx.execute(text("INSERT INTO ensemble (id, generation) VALUES (1, 3)"))
        if began == 1:
            raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

    await database.run(step)
    assert began == 2
    assert await read_generation(database, ENSEMBLE) == 3
