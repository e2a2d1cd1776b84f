"""One service's database: transactions as whole steps, on SQLite or PostgreSQL.

Guarantees
1. A step runs in one transaction: committed when it returns, rolled back when it raises.
2. A step that lost against another transaction (serialization failure, deadlock, busy database), or whose connection
   broke before its commit, is run again as a whole, a bounded number of times. So a step touches nothing but its
   connection, and awaits nothing else.
3. `Unavailable` means that nothing was done. Where PostgreSQL was told to commit and did not answer, nobody knows:
   `OutcomeUnknown`.
4. A commit is durable when `run` returns: SQLite with WAL and synchronous=FULL, PostgreSQL by default.

No network call is made inside a step.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import BigInteger, Column, Engine, Integer, MetaData, Table, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import CountinghouseError, OutcomeUnknown, Unavailable
from services.runtime.postgresql import CommitUnanswered, PostgresqlBackend, sqlstate_of
from services.runtime.sqlite import SqliteBackend

_T = TypeVar("_T")
Step = Callable[[AsyncConnection], Coroutine[Any, Any, _T]]

_ATTEMPTS = 6
_NOW_POSTGRESQL = "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"
_NOW_SQLITE = "SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"
#: PostgreSQL: serialization_failure, deadlock_detected, lock_not_available.
_RETRY_SQLSTATES = {"40001", "40P01", "55P03"}
#: query_canceled (statement_timeout), too_many_connections, cannot_connect_now, admin_shutdown, crash_shutdown.
_AWAY_SQLSTATES = {"57014", "53300", "57P03", "57P01", "57P02"}
#: What its operator has to mend, by the beginning of the SQLSTATE.
_REFUSED_SQLSTATES = {
    "28": ("DATABASE_LOGIN", "see that its URL names the right role, and its passfile that role's password"),
    "3D": ("DATABASE_MISSING", "make it (services/runtime/roles.py), or name another"),
    "42501": ("DATABASE_FORBIDDEN", "its role may not do this; only the owner of the tables may change the schema"),
}


class DatabaseRefused(CountinghouseError):
    """The database cannot be used as it is; the message says which one and what to do."""


class Database:
    """The database of one service.

    Args:
        url: `sqlite:///file` or `postgresql+asyncpg://…`; see `runtime/postgresql.py` for the password.
        pool: How many connections at most.
        statement_timeout_s: PostgreSQL: how long one statement may take; see there as well.
    """

    def __init__(self, url: str, *, pool: int = 8, statement_timeout_s: float = 5.0) -> None:
        parsed = make_url(url)
        self.url = url
        self.name = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._backend = (
            SqliteBackend(parsed, pool) if self.is_sqlite else PostgresqlBackend(parsed, pool, statement_timeout_s)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, step: Step[_T]) -> _T:
        """Runs a writing step.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE: the database is away, or was busy for too long; nothing was done.
            OutcomeUnknown: It went away while it committed.
            DatabaseRefused: DATABASE_CORRUPT, DATABASE_LOGIN, DATABASE_MISSING or DATABASE_FORBIDDEN.
        """
        return await self._attempt(lambda: self._backend.write(step))

    async def read(self, step: Step[_T]) -> _T:
        """Runs a step that only reads, on one snapshot."""
        return await self._attempt(lambda: self._backend.read(step))

    @property
    def sync_engine(self) -> Engine:
        """SQLAlchemy's engine, for listening to its events."""
        return self._backend.sync_engine

    async def ping(self) -> None:
        """Raises Unavailable if the database does not answer."""

        async def one(connection: AsyncConnection) -> None:
            await connection.exec_driver_sql("SELECT 1")

        await self.read(one)

    async def now_ms(self) -> int:
        """Unix time in milliseconds, as the database has it; Unavailable as from `run`."""

        async def ask(connection: AsyncConnection) -> int:
            answer = await connection.exec_driver_sql(_NOW_SQLITE if self.is_sqlite else _NOW_POSTGRESQL)
            return int(answer.scalar_one())

        return await self.read(ask)

    async def close(self) -> None:
        """Gives the connections back."""
        await self._backend.close()

    async def _attempt(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Tries a step again that lost against another; also one whose connection found the file being set up."""
        for attempt in range(_ATTEMPTS):
            try:
                return await work()
            except CommitUnanswered as error:
                raise OutcomeUnknown(
                    "OUTCOME_UNKNOWN", "the database went away while it committed; ask again with the same id"
                ) from error
            except DBAPIError as error:
                if not _is_passing(error) or attempt == _ATTEMPTS - 1:
                    raise self._translated(error) from error
                await asyncio.sleep(0.005 * 2**attempt)
            except (OSError, TimeoutError, PoolExhausted) as error:
                raise self._away(error) from error
        raise AssertionError("unreachable")

    def _translated(self, error: DBAPIError) -> Exception:
        original = _original(error)
        state = sqlstate_of(original)
        if error.connection_invalidated or state in _AWAY_SQLSTATES or _is_passing(error):
            return self._away(error)
        for beginning, (reason, remedy) in _REFUSED_SQLSTATES.items():
            if state.startswith(beginning):
                return DatabaseRefused(reason, f"{self.name} refuses us ({original}); {remedy}")
        if isinstance(original, sqlite3.DatabaseError) and not isinstance(
            original, (sqlite3.IntegrityError, sqlite3.OperationalError, sqlite3.ProgrammingError)
        ):
            return DatabaseRefused(
                "DATABASE_CORRUPT",
                f"{self.name} is damaged or no database of ours ({original}); restore a backup or move it away",
            )
        return error

    def _away(self, error: BaseException) -> Unavailable:
        return Unavailable("DATABASE_UNAVAILABLE", f"the database is away or busy: {type(error).__name__}; try again")


def _original(error: DBAPIError) -> BaseException | None:
    """The driver's own exception, under whatever an async adapter wrapped around it."""
    original: BaseException | None = error.orig
    while original is not None and original.__cause__ is not None:
        original = original.__cause__
    return original


def _is_passing(error: DBAPIError) -> bool:
    original = _original(error)
    if isinstance(original, sqlite3.OperationalError):
        return original.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    return error.connection_invalidated or sqlstate_of(original) in _RETRY_SQLSTATES


def ensemble_table(metadata: MetaData) -> Table:
    """The table with the one row that says under which ZooKeeper generation this database was last written."""
    return Table(
        "ensemble",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("generation", BigInteger, nullable=False),
    )


async def read_generation(database: Database, table: Table) -> int:
    """The generation beside the data; 0: never written."""

    async def step(connection: AsyncConnection) -> int:
        return (await connection.execute(select(table.c.generation))).scalar_one_or_none() or 0

    return await database.read(step)


async def write_generation(database: Database, table: Table, generation: int) -> None:
    """Raises the generation beside the data; never lowers it."""

    async def step(connection: AsyncConnection) -> None:
        known = (await connection.execute(select(table.c.generation))).scalar_one_or_none()
        if known is None:
            await connection.execute(insert(table).values(id=1, generation=generation))
        elif known < generation:
            await connection.execute(update(table).values(generation=generation))

    await database.run(step)
