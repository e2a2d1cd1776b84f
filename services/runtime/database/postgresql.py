"""The PostgreSQL backend, through asyncpg.

How long things may last, each bounded by `timeout_s` (settings: statement_timeout_s)

    waiting for a connection of the pool,    ours
    and opening one
    a statement, waiting for locks included  statement_timeout                     the server ends it
    a transaction that is abandoned          idle_in_transaction_session_timeout   the server ends it
    a step as a whole, and its commit        _GRACE_S more                         ours: the server may be frozen
    any other command                        asyncpg's command_timeout, the same   ours

A connection that broke before COMMIT was sent leaves nothing behind, so its step may run again. From the moment COMMIT
has been sent until its answer is there, the step's outcome is unknown: `CommitUnanswered`. A COMMIT is never cancelled
on the server: it may wait for a replica, and a cancelled one stands without that, and can be read.

A URL may name several servers, of which one is the primary (`postgresql_servers.py`).

The password is not in the URL: `?passfile=…` names a file in the form of ~/.pgpass, read anew for each connection, so
that a password can be changed without a restart. `?sslrootcert=…` asks for TLS (`postgresql_tls.py`).

Statements go from SQLAlchemy's compiler to asyncpg without SQLAlchemy's own execution, which runs each of them in a
greenlet. A transaction with one SELECT took 0.38 ms of processor time that way and takes 0.14 ms this way; `select`,
which needs no transaction, takes 0.08 ms (means of 500, the best of three runs, 2 cores).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import URL, Engine, Executable
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from services.runtime.database.errors import CommitUnanswered, is_answered, wrapped
from services.runtime.database.postgresql_servers import Servers
from services.runtime.database.postgresql_tls import ServerTls
from services.runtime.database.statements import CompiledStatement, Statements
from services.runtime.database.transaction import Parameters, Rows, Transaction

_T = TypeVar("_T")

#: The server's own timeouts come first, so that the reason arrives.
_GRACE_S = 1.0
#: A connection is never closed for the number of its queries: that would talk to the server after a commit.
_QUERIES = 2**62
_BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
#: What the driver raises of the server's errors, and of connections that broke.
_DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class PostgresqlBackend:
    """A PostgreSQL database.

    Args:
        pool: How many connections at most, besides one while the schema is changed.
        timeout_s: See the module.
    """

    def __init__(self, url: URL, pool: int, timeout_s: float) -> None:
        milliseconds = str(int(timeout_s * 1000))
        settings = {
            "application_name": "countinghouse",
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
            "jit": "off",  # planning a short statement anew costs more than it runs
        }
        self._timeout_s = timeout_s
        self._step_s = timeout_s + _GRACE_S
        limits = {"server_settings": settings, "timeout": timeout_s, "command_timeout": self._step_s}
        self._tls = ServerTls(url)
        url = self._tls.url
        several = isinstance(url.query.get("host"), tuple)
        if several:
            limits["target_session_attrs"] = "primary"
        self._engine = create_async_engine(url, hide_parameters=True, poolclass=NullPool, connect_args=limits)
        self.sync_engine: Engine = self._engine.sync_engine
        self._tls.secure(self.sync_engine)
        self._statements = Statements(self.sync_engine.dialect)
        self._connect_with = {**self.sync_engine.dialect.create_connect_args(url)[1], **limits}
        self._servers = Servers(self._connect_with["host"], self._connect_with["port"]) if several else None
        self._size = pool
        self._pool: Any = None
        self._opening = asyncio.Lock()

    async def write(self, step: Callable[[Transaction], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step in a transaction.

        Raises:
            CommitUnanswered: It may stand.
        """
        async with self._connection() as connection:
            async with self._begun(connection, "BEGIN") as tx:
                result = await step(tx)
            await self._commit(connection)
            return result

    async def read(self, step: Callable[[Transaction], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step on one snapshot."""
        async with self._connection() as connection:
            async with self._begun(connection, _BEGIN_SNAPSHOT) as tx:
                result = await step(tx)
            await connection.execute("COMMIT")
            return result

    async def select(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute one SELECT, which sees one snapshot by itself: one round trip instead of three."""
        async with self._connection() as connection, asyncio.timeout(self._step_s):
            return await _Transaction(connection, self._statements).execute(statement, parameters)

    async def inspect_schema(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step that reads on a connection of SQLAlchemy's."""
        return await self.change_schema(step)

    async def change_schema(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step in a transaction on a connection of SQLAlchemy's, which Alembic and `inspect` need."""
        async with self._engine.begin() as connection:
            return await step(connection)

    async def close(self) -> None:
        """Close the connections."""
        if self._pool is not None:
            self._pool.terminate()
        await self._engine.dispose()

    @asynccontextmanager
    async def _begun(self, connection: Any, begin: str) -> AsyncIterator[Transaction]:
        """Begin a transaction for a step; roll it back if the step raises."""
        await connection.execute(begin)
        try:
            async with asyncio.timeout(self._step_s):
                yield _Transaction(connection, self._statements)
        except Exception as error:
            if not isinstance(error, TimeoutError) and not _is_closed(connection):
                await connection.execute("ROLLBACK")
            raise

    async def _commit(self, connection: Any) -> None:
        try:
            async with asyncio.timeout(self._step_s):
                answer = await connection.execute("COMMIT")
        except asyncpg.PostgresError as error:
            if is_answered(error) and not _is_closed(connection):
                raise
            raise CommitUnanswered from error
        except (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            raise CommitUnanswered from error
        if answer != "COMMIT":
            raise AssertionError("the step went on after a statement that failed, so PostgreSQL rolled it back")

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """Lend a connection of the pool. One on which something was not answered is not given back to it.

        Raises:
            DBAPIError: Whatever the driver raised.
        """
        pool = self._pool or await self._opened()
        try:
            connection = await pool.acquire(timeout=self._timeout_s)
        except _DRIVER_ERRORS as error:
            if pool.is_closing():
                raise OSError("the database was closed") from error
            raise wrapped(error, invalidated=False) from error
        try:
            yield connection
        except _DRIVER_ERRORS as error:
            if isinstance(error, asyncpg.InternalClientError) and not _is_closed(connection):
                connection.terminate()  # it was lent half open, by a server that was killed
            raise wrapped(error, invalidated=_is_closed(connection)) from error
        except (TimeoutError, CommitUnanswered, asyncio.CancelledError) as error:
            if not _is_closed(connection):
                connection.terminate()  # before the driver asks the server to cancel, also a COMMIT
            if self._servers is not None and not isinstance(error, asyncio.CancelledError):
                await pool.expire_connections()  # the others may be to the same server, and it may be frozen
            raise
        finally:
            await self._give_back(connection)

    async def _give_back(self, connection: Any) -> None:
        """Give a connection back to the pool; whatever happens to it now changes nothing about the step."""
        try:
            await self._pool.release(connection, timeout=self._timeout_s)
        except (OSError, TimeoutError, *_DRIVER_ERRORS):
            if not _is_closed(connection):
                connection.terminate()

    async def _opened(self) -> Any:
        """Open the pool, which connects when it is asked for a connection."""
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    min_size=0,
                    max_size=self._size,
                    max_queries=_QUERIES,
                    reset=_nothing,
                    connect=self._connect,
                    **self._connect_with,
                )
        return self._pool

    async def _connect(self, *arguments: Any, **options: Any) -> Any:
        options |= self._tls.connect_args()
        if self._servers is None:
            return await asyncpg.connect(*arguments, **options)
        return await self._servers.connect(
            lambda host, port: asyncpg.connect(*arguments, **options | {"host": host, "port": port})
        )


class _Transaction:
    """See `Transaction`."""

    is_postgresql = True

    def __init__(self, connection: Any, statements: Statements) -> None:
        self._connection = connection
        self._statements = statements

    async def execute(self, statement: Executable, parameters: Parameters | None = None) -> Rows:
        compiled = self._statements.compiled(statement, parameters or ())
        text, arguments = compiled.with_values(parameters or {})
        if compiled.returns_rows:
            return _rows_of(compiled, await self._connection.fetch(text, *arguments))
        answer = await self._connection.execute(text, *arguments)
        return Rows((), _count_in(answer))

    async def execute_each(self, statement: Executable, rows: Sequence[Parameters]) -> Rows:
        if not rows:
            return Rows((), 0)
        if len(rows) == 1:
            return await self.execute(statement, rows[0])
        compiled = self._statements.compiled(statement, rows[0])
        text, _ = compiled.with_values(rows[0])
        values = [compiled.with_values(row)[1] for row in rows]
        if compiled.insert_many:
            return _rows_of(compiled, await self._connection.fetch(compiled.insert_many, *zip(*values, strict=True)))
        if compiled.returns_rows:
            return _rows_of(compiled, await self._fetched(text, values))
        await self._connection.executemany(text, values)
        return Rows((), 0)

    async def _fetched(self, text: str, values: Sequence[Sequence[Any]]) -> Sequence[Any]:
        try:
            found: Sequence[Any] = await self._connection.fetchmany(text, values)
        except TypeError:  # asyncpg's own mistake about a value it cannot encode
            raise asyncpg.InterfaceError("a value cannot be encoded") from None
        return found


def _is_closed(connection: Any) -> bool:
    """Return whether a connection of the pool is closed; the pool has taken one back that closed itself."""
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:
        return True


def _rows_of(compiled: CompiledStatement, records: Sequence[Any]) -> Rows:
    return compiled.rows_of(records, tuple(records[0].keys()) if records else ())


def _count_in(answer: str) -> int:
    """Return how many rows a command tag counts: `UPDATE 1`, `INSERT 0 1`."""
    last = answer.rpartition(" ")[2]
    return int(last) if last.isdecimal() else 0


async def _nothing(_connection: Any) -> None:
    """Reset nothing: a step leaves nothing behind on its connection, and the pool rolls back what was not committed."""
