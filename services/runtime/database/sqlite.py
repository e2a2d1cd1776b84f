"""The SQLite backend: each transaction runs whole, in one thread.

A step uses only its connection, and SQLite answers at once, so that nothing in a step waits for the event loop. A
thread of the pool therefore runs the whole step, and each `await` in it returns at once. Through an async driver every
statement crosses threads several times: a step of three UPDATEs took 1.15 ms that way and 0.31 ms this way (2 cores,
400 steps each).

Writers of this process take turns, so that busy_timeout applies to other processes only.

A removed file stays open, and writes into it are lost. So each step compares the file at the path, and the write-ahead
log beside it, with those that were opened first; a writing step once more after its commit. A file in the same folder
records that the database was made (`made_note`), so that no start makes an empty one. Writing into the file in place,
by `cp` for instance, is not noticed.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import URL, Connection, Dialect, Engine, Executable, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from services.kernel.errors import Unavailable
from services.runtime.database.errors import CommitUnanswered, is_undone, lost, wrapped
from services.runtime.database.statements import CompiledStatement, Statements
from services.runtime.database.transaction import Parameters, Rows

_T = TypeVar("_T")

_BUSY_TIMEOUT_MS = 5_000
_PRAGMAS = (f"busy_timeout={_BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")


class SqliteBackend:
    """A SQLite file.

    Args:
        pool: How many connections, and threads, at most.
    """

    def __init__(self, url: URL, pool: int) -> None:
        self.file = Path(str(url.database)) if _is_file(url) else None
        self._opened: dict[Path, tuple[int, int]] = {}  # device and inode
        self._connections = 0
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        self.sync_engine: Engine = create_engine(
            url.set(drivername="sqlite"),
            hide_parameters=True,
            poolclass=QueuePool,
            pool_size=pool,
            max_overflow=0,
            connect_args={"check_same_thread": False},  # one thread at a time, but not always the same
        )
        event.listen(self.sync_engine, "connect", _prepare)
        event.listen(self.sync_engine, "connect", self._note_file)
        event.listen(self.sync_engine, "close", self._forget_log)
        event.listen(self.sync_engine, "begin", _begin)
        self._statements = Statements(self.sync_engine.dialect)
        self._threads = ThreadPoolExecutor(pool, thread_name_prefix="sqlite")
        self._writer = asyncio.Lock()

    async def write(self, step: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step in a transaction that may write from its first statement on.

        Raises:
            CommitUnanswered: It may stand.
            Unavailable: DATABASE_LOST; `read` raises it as well.
        """
        async with self._writer:
            return await self._in_thread(
                lambda connection: step(_Transaction(connection, self._statements)), reading=False
            )

    async def select(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute one SELECT."""
        return await self.read(lambda tx: tx.execute(statement, parameters))

    async def inspect_schema(self, step: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step that reads on what is much of an AsyncConnection."""
        return await self._in_thread(lambda connection: step(_SchemaConnection(connection)), reading=True)

    async def change_schema(self, step: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step in a transaction on what is much of an AsyncConnection."""
        async with self._writer:
            return await self._in_thread(lambda connection: step(_SchemaConnection(connection)), reading=False)

    async def read(self, step: Callable[[Any], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step on one snapshot."""
        return await self._in_thread(self._on(step), reading=True)

    async def close(self) -> None:
        """Close the connections and end the threads."""
        self._threads.shutdown(wait=False)
        self.sync_engine.dispose()

    def _on(self, step: Callable[[Any], Coroutine[Any, Any, _T]]) -> Callable[[Connection], Coroutine[Any, Any, _T]]:
        return lambda connection: step(_Transaction(connection, self._statements))

    async def _in_thread(self, step: Callable[[Connection], Coroutine[Any, Any, _T]], *, reading: bool) -> _T:
        """Run a step in a thread. A cancelled caller ends when the thread has: it cannot be stopped."""
        job = self._threads.submit(self._run, step, reading)
        running = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not job.cancel():  # it has begun
                await asyncio.wait({running})
                running.exception()  # marks it as taken
            raise

    def _run(self, step: Callable[[Connection], Coroutine[Any, Any, _T]], reading: bool) -> _T:
        self._check_file()
        with self.sync_engine.connect() as connection:
            connection.execution_options(countinghouse_read=reading)
            with connection.begin() as transaction:
                result = _driven(step(connection))
                try:
                    transaction.commit()
                except DBAPIError as error:
                    if reading or is_undone(error):
                        raise
                    raise CommitUnanswered from error
        if not reading:
            try:
                self._check_file()
            except Unavailable as error:  # what was committed may be in a file that is gone
                raise CommitUnanswered from error
        return result

    def _note_file(self, _connection: Any, _record: Any) -> None:
        """Note the file of an opened connection: every later one's has to be the same file."""
        self._connections += 1
        if self.file is not None:
            self._note(self.file)
        self._check_file()

    def _forget_log(self, _connection: Any, _record: Any) -> None:
        """Note a closed connection: with the last one SQLite removes its log."""
        self._connections -= 1
        if self._connections == 0 and self.file is not None:
            self._opened.pop(log_of(self.file), None)

    def _note(self, file: Path) -> None:
        found = _identity(file)
        if found is not None:
            self._opened.setdefault(file, found)

    def _check_file(self) -> None:
        """Raise Unavailable, DATABASE_LOST, if the file is another or missing."""
        if self.file is None or self.file not in self._opened:
            return
        self._note(log_of(self.file))  # SQLite makes it when it first needs it, and keeps it while a connection is open
        if any(_identity(file) != opened for file, opened in self._opened.items()):
            raise lost()


def made_note(database: Path) -> Path:
    """Return the file that says that a database was made: `order.db.made` beside `order.db`."""
    return database.with_name(f"{database.name}.made")


def log_of(database: Path) -> Path:
    """Return SQLite's write-ahead log of a database."""
    return database.with_name(f"{database.name}-wal")


def _is_file(url: URL) -> bool:
    """Return whether the database is a file under its own name: not in memory, not named by SQLite's own URI."""
    return bool(url.database) and url.database != ":memory:" and not str(url.database).startswith("file:")


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Transaction:
    """See `Transaction`; every await returns at once."""

    is_postgresql = False

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self._connection: Any = connection.connection.driver_connection
        self._statements = statements

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
        compiled = self._statements.compiled(statement, parameters or ())
        return self._executed(compiled, *compiled.with_values(parameters or {}))

    async def execute_each(self, statement: Executable, rows: Sequence[Parameters]) -> Rows:
        if not rows:
            return Rows((), 0)
        compiled = self._statements.compiled(statement, rows[0])
        answers = [self._executed(compiled, *compiled.with_values(row)) for row in rows]
        found = [row for answer in answers for row in answer]
        return Rows(found, len(found))

    def _executed(self, compiled: CompiledStatement, text: str, arguments: Sequence[Any]) -> Rows:
        try:
            cursor = self._connection.execute(text, arguments)
            if cursor.description is None:
                return Rows((), cursor.rowcount)
            return compiled.rows_of(cursor.fetchall(), tuple(column[0] for column in cursor.description))
        except sqlite3.Error as error:
            raise wrapped(error, invalidated=False) from error


class _SchemaConnection:
    """As much of an AsyncConnection as steps that change the schema use; every await returns at once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def dialect(self) -> Dialect:
        return self._connection.dialect

    async def execute(self, *arguments: Any, **options: Any) -> Any:
        return self._connection.execute(*arguments, **options)

    async def run_sync(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return function(self._connection, *arguments, **options)


def _driven(step: Coroutine[Any, Any, _T]) -> _T:
    """Return what the step returns.

    Raises:
        RuntimeError: It waited for something other than its connection.
    """
    try:
        step.send(None)
    except StopIteration as end:
        return cast(_T, end.value)
    step.close()
    raise RuntimeError(f"{step!r} waits for something other than its connection; a step must not")


def _prepare(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # we send BEGIN ourselves
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    """Begin a writing step with BEGIN IMMEDIATE, so that it never finds out halfway that it may not write."""
    reading = connection.get_execution_options().get("countinghouse_read", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
