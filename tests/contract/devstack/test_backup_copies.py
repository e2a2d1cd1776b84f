"""Copies of several databases are of one moment, on SQLite and on PostgreSQL, also while they are written."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.devstack.backup import postgresql_archives, sqlite_copies
from services.kernel.errors import Unavailable
from services.runtime.database.database import Database
from services.runtime.database.pgpass import passfile_line
from services.runtime.database.transaction import Transaction

NAMES = ("first", "second")
#: Long enough for a writer that could get on to have got on.
BLOCKED_S = 0.2
_PATIENCE_S = 30.0
_ROUNDS = 3


class Copying:
    """Two databases with a counter each, and copies of them."""

    def __init__(self, databases: dict[str, Database], folder: Path) -> None:
        self.databases = databases
        self._folder = folder

    async def add(self, name: str) -> None:
        """Adds one to the counter of a database."""

        async def step(tx: Transaction) -> None:
            await tx.execute(text("UPDATE counters SET value = value + 1"))

        await self.databases[name].run(step)

    async def copy(
        self, at_moment: Callable[[], None] = lambda: None, copied: Callable[[str], None] = lambda _name: None
    ) -> dict[str, Path]:
        """Copies both. `at_moment` is called when nothing can be written, `copied` after each copy."""

        def now_ms() -> int:
            at_moment()
            return 7

        copies = {name: self._folder / f"{name}.copy" for name in NAMES}
        if self.databases[NAMES[0]].is_sqlite:
            files = {Path(make_url(self.databases[name].url).database or ""): copies[name] for name in NAMES}
            names = dict(zip(files, NAMES, strict=True))
            moment_ms = await asyncio.to_thread(
                sqlite_copies.copy, files, threading.Event(), now_ms, lambda file: copied(names[file])
            )
        else:
            urls = {copies[name]: make_url(self.databases[name].url) for name in NAMES}
            urls = {file: url.set(query={"passfile": str(self._passfile(url))}) for file, url in urls.items()}
            moment_ms = await postgresql_archives.dump(urls, os.environ, now_ms, lambda file: copied(file.stem))
        assert moment_ms == 7
        return copies

    async def restored(self, copy: Path, fresh_url: str) -> int:
        """The counter in a copy, once that was put in the place of an empty database."""
        if self.databases[NAMES[0]].is_sqlite:
            file = copy.with_suffix(".db")
            sqlite_copies.put_in_place(copy, file, self._folder / "aside", threading.Event())
            fresh_url = f"sqlite:///{file}"
        else:
            url = make_url(fresh_url)
            url = url.set(query={"passfile": str(self._passfile(url))})
            await postgresql_archives.load(copy, url, os.environ)
        async with Database(fresh_url) as database:
            return await counter(database)

    def _passfile(self, url: Any) -> Path:
        file = self._folder / "pgpass"
        file.touch(mode=0o600)
        file.write_text(passfile_line(url.username, url.password or "none"))
        return file


async def counter(database: Database) -> int:
    async def step(tx: Transaction) -> int:
        return int((await tx.execute(text("SELECT value FROM counters"))).scalar_one())

    return await database.read(step)


@pytest.fixture
async def copying(new_database_url: Callable[[], Awaitable[str]], tmp_path: Path) -> AsyncIterator[Copying]:
    async def create(connection: AsyncConnection) -> None:
        await connection.execute(text("CREATE TABLE counters (value INTEGER NOT NULL)"))
        await connection.execute(text("INSERT INTO counters VALUES (0)"))

    databases = {name: Database(await new_database_url()) for name in NAMES}
    for database in databases.values():
        await database.change_schema(create)
    folder = tmp_path / "copies"
    folder.mkdir()
    yield Copying(databases, folder)
    for database in databases.values():
        await database.close()


async def test_nothing_is_written_at_the_moment_and_everything_goes_on_after_it(
    copying: Copying, new_database_url: Callable[[], Awaitable[str]]
) -> None:
    """A write that begins at that moment waits, stands afterwards, and is in no copy."""
    loop, writes = asyncio.get_running_loop(), []

    def begin_writing() -> None:
        for name in NAMES:
            writes.append(asyncio.run_coroutine_threadsafe(copying.add(name), loop))

    await copying.add(NAMES[0])
    copies = await copying.copy(begin_writing)
    await asyncio.gather(*map(asyncio.wrap_future, writes))
    assert [await counter(copying.databases[name]) for name in NAMES] == [2, 1]
    assert [await copying.restored(copies[name], await new_database_url()) for name in NAMES] == [1, 0]


async def test_copies_do_not_have_what_is_written_while_they_are_made(
    copying: Copying, new_database_url: Callable[[], Awaitable[str]]
) -> None:
    """The second is copied after a write that came when the first was ready."""
    loop, writes = asyncio.get_running_loop(), []
    copies = await copying.copy(
        copied=lambda _name: writes.append(asyncio.run_coroutine_threadsafe(copying.add(NAMES[1]), loop))
    )
    await asyncio.gather(*map(asyncio.wrap_future, writes))
    assert await counter(copying.databases[NAMES[1]]) == len(NAMES)
    assert await copying.restored(copies[NAMES[1]], await new_database_url()) == 0


async def test_two_counters_that_are_raised_in_turn_never_differ_by_more_than_one(
    copying: Copying, new_database_url: Callable[[], Awaitable[str]]
) -> None:
    stop, begun = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        rounds = 0
        while not stop.is_set():
            for name in NAMES:
                await copying.add(name)
            rounds += 1
            if rounds == _ROUNDS:
                begun.set()

    writing = asyncio.create_task(write())
    await begun.wait()
    copies = await copying.copy()
    stop.set()
    await writing
    values = [await copying.restored(copies[name], await new_database_url()) for name in NAMES]
    assert _ROUNDS <= values[1] <= values[0] <= values[1] + 1


@asynccontextmanager
async def open_transaction(database: Database) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """A transaction that has raised the counter; it is committed by what is yielded, at the latest in the end."""
    may_commit, has_written = threading.Event(), threading.Event()

    async def step(tx: Transaction) -> None:
        await tx.execute(text("UPDATE counters SET value = value + 1"))
        has_written.set()
        if database.is_sqlite:  # a step waits for nothing but its connection there; it has a thread of its own
            may_commit.wait(_PATIENCE_S)
        else:
            await asyncio.to_thread(may_commit.wait, _PATIENCE_S)

    writing = asyncio.create_task(database.run(step))
    await asyncio.to_thread(has_written.wait, _PATIENCE_S)

    async def commit() -> None:
        may_commit.set()
        await writing

    yield commit
    await commit()


async def test_open_transaction_is_waited_for_and_is_in_the_copy(
    copying: Copying, new_database_url: Callable[[], Awaitable[str]]
) -> None:
    """A writer that holds what the copy wants is never the one that is given up."""
    async with open_transaction(copying.databases[NAMES[1]]) as commit:
        copy = asyncio.create_task(copying.copy())
        done, _ = await asyncio.wait({copy}, timeout=BLOCKED_S)
        assert not done, "it did not wait"
        await commit()
        copies = await copy
    assert await copying.restored(copies[NAMES[1]], await new_database_url()) == 1


async def test_transaction_that_stays_open_is_reported(copying: Copying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_copies, "_BUSY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(postgresql_archives, "_LOCK_ATTEMPTS", 1)
    second = copying.databases[NAMES[1]]
    async with open_transaction(second):
        with pytest.raises(Unavailable) as refusal:
            await copying.copy()
    assert refusal.value.reason == "DATABASE_BUSY"
    assert await counter(second) == 1
