"""One service's database: transactions as whole steps, on SQLite or PostgreSQL.

Guarantees
1. A step runs in one transaction: committed when it returns, rolled back when it raises.
2. A step that lost against another transaction (serialization failure, deadlock, busy database), or whose connection
   broke before its commit, is run again as a whole, a bounded number of times. So a step touches nothing but its
   connection, and awaits nothing else.
3. `Unavailable` means that nothing was done. Where a commit was not answered, or failed in a way that leaves its
   outcome open, the error is `OutcomeUnknown`. Which error means what is in `runtime/database/errors.py`.
4. A commit is durable when `run` returns: SQLite with WAL and synchronous=FULL, PostgreSQL by default.

No network call is made inside a step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Executable,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import OutcomeUnknown, Unavailable
from services.runtime import tracing
from services.runtime.database.errors import (
    WRITES_FAIL,
    CommitUnanswered,
    DatabaseRefused,
    away,
    is_passing,
    keep_values_out,
    translated,
)
from services.runtime.database.metrics import DatabaseMetrics
from services.runtime.database.postgresql import PostgresqlBackend
from services.runtime.database.postgresql_tls import parse_url
from services.runtime.database.sqlite import SqliteBackend
from services.runtime.database.transaction import Parameters, Rows, Transaction

__all__ = [
    "Database",
    "DatabaseRefused",
    "ensemble_table",
    "probe_write",
    "read_generation",
    "read_newest_fence",
    "write_generation",
]

_T = TypeVar("_T")
Step = Callable[[Transaction], Coroutine[Any, Any, _T]]
SchemaStep = Callable[[AsyncConnection], Coroutine[Any, Any, _T]]

_ATTEMPTS = 6
_ONE = text("SELECT 1")
_NOW_POSTGRESQL = text("SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)")
_NOW_SQLITE = text("SELECT CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS INTEGER)")
#: What a probe writes after a write has failed: more than the pages in use have room for.
_PROBE_BYTES = 32_768


class Database:
    """The database of one service.

    Args:
        url: `sqlite:///file` or `postgresql+asyncpg://…`; see `runtime/database/postgresql.py` for the password.
        pool: How many connections at most.
        statement_timeout_s: PostgreSQL: how long one statement may take; see there as well.
        metrics: Counts what its stores commit; None: it is not read.
    """

    def __init__(
        self, url: str, *, pool: int = 8, statement_timeout_s: float = 5.0, metrics: DatabaseMetrics | None = None
    ) -> None:
        parsed = parse_url(url)
        self.url = url
        self.name = parsed.render_as_string(hide_password=True)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self._backend = (
            SqliteBackend(parsed, pool) if self.is_sqlite else PostgresqlBackend(parsed, pool, statement_timeout_s)
        )
        keep_values_out(self._backend.sync_engine)
        self._system = parsed.get_backend_name()
        self._writes_fail = False
        self.metrics = metrics or DatabaseMetrics()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def run(self, step: Step[_T]) -> _T:
        """Run a writing step.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE: the database is away, or was busy for too long; DATABASE_FULL,
                DATABASE_READ_ONLY, DATABASE_IO_ERROR, DATABASE_LOST. Nothing was done.
            OutcomeUnknown: It went away, failed or was removed while it committed.
            DatabaseRefused: DATABASE_CORRUPT, DATABASE_LOGIN, DATABASE_MISSING or DATABASE_FORBIDDEN.
        """
        with tracing.sql("write", self._system):
            return await self._write(lambda: self._backend.write(step))

    async def change_schema(self, step: SchemaStep[_T]) -> _T:
        """Run a step that changes the schema, on a connection of SQLAlchemy's. Raises as `run`."""
        return await self._write(lambda: self._backend.change_schema(step))

    async def inspect_schema(self, step: SchemaStep[_T]) -> _T:
        """Run a step that reads the schema, on a connection of SQLAlchemy's. Raises as `read`."""
        return await self._attempt(lambda: self._backend.inspect_schema(step), writing=False)

    @property
    def writes_fail(self) -> bool:
        """Whether the last write that was tried could not be done for want of space or the like."""
        return self._writes_fail

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database; None: it is on a server."""
        return self._backend.file if isinstance(self._backend, SqliteBackend) else None

    async def read(self, step: Step[_T]) -> _T:
        """Run a step that only reads, on one snapshot."""
        with tracing.sql("read", self._system):
            return await self._attempt(lambda: self._backend.read(step), writing=False)

    async def select(self, statement: Executable, parameters: Parameters) -> Rows:
        """Execute a single SELECT, outside a step. Raises as `read`."""
        with tracing.sql("select", self._system):
            return await self._attempt(lambda: self._backend.select(statement, parameters), writing=False)

    @property
    def sync_engine(self) -> Engine:
        """SQLAlchemy's engine, for listening to its events."""
        return self._backend.sync_engine

    async def ping(self) -> None:
        """Raise Unavailable if the database does not answer."""

        async def one(tx: Transaction) -> None:
            await tx.execute(_ONE)

        await self.read(one)

    async def now_ms(self) -> int:
        """Unix time in milliseconds, as the database has it; Unavailable as from `run`."""

        async def ask(tx: Transaction) -> int:
            return int((await tx.execute(_NOW_SQLITE if self.is_sqlite else _NOW_POSTGRESQL)).scalar_one())

        return await self.read(ask)

    async def close(self) -> None:
        """Close the connections."""
        await self._backend.close()

    async def _write(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        try:
            result = await self._attempt(work, writing=True)
        except Unavailable as error:
            self._writes_fail = self._writes_fail or error.reason in WRITES_FAIL
            raise
        self._writes_fail = False
        return result

    async def _attempt(self, work: Callable[[], Coroutine[Any, Any, _T]], *, writing: bool) -> _T:
        """Try a step again that lost against another; also one whose connection found the file being set up."""
        for attempt in range(_ATTEMPTS):
            try:
                return await work()
            except CommitUnanswered as error:
                raise OutcomeUnknown(
                    "OUTCOME_UNKNOWN", "the database failed while it committed; ask again with the same id"
                ) from error
            except DBAPIError as error:
                if not is_passing(error) or attempt == _ATTEMPTS - 1:
                    raise translated(error, self.name, writing=writing) from error
                await asyncio.sleep(0.005 * 2**attempt)
            except (OSError, TimeoutError, PoolExhausted) as error:
                raise away(error) from error
        raise AssertionError("unreachable")


def ensemble_table(metadata: MetaData) -> Table:
    """Return the table with the one row that says under which ZooKeeper generation this database was last written."""
    return Table(
        "ensemble",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("generation", BigInteger, nullable=False),
        Column("probe", LargeBinary, nullable=True),
    )


async def probe_write(database: Database, table: Table) -> None:
    """Write to see whether writing works; after a write has failed, as much as needs new space.

    Args:
        table: One with one row and a column `probe`: `ensemble_table`, or one whose row is there from the first.

    Raises:
        Unavailable: As from `Database.run`: writes do not work.
    """

    async def step(tx: Transaction) -> None:
        if (await tx.execute(select(table.c.id))).scalar_one_or_none() is None:
            await tx.execute(insert(table).values(id=1, generation=0))
        await tx.execute(update(table).values(probe=bytes(_PROBE_BYTES) if database.writes_fail else None))

    await database.run(step)


async def read_generation(database: Database, table: Table) -> int:
    """Return the generation beside the data; 0: never written."""

    async def step(tx: Transaction) -> int:
        return (await tx.execute(select(table.c.generation))).scalar_one_or_none() or 0

    return await database.read(step)


async def read_newest_fence(
    database: Database, table: Table, fences: tuple[Column[int], Column[int]]
) -> tuple[int, int]:
    """Return the newest generation that this database has seen, and the newest token used under it; 0: none.

    Args:
        fences: The columns of generation and token, of which there is an index.
    """
    generation, token = fences

    async def step(tx: Transaction) -> tuple[int, int]:
        known = (await tx.execute(select(table.c.generation))).scalar_one_or_none() or 0
        newest = select(generation, token).order_by(generation.desc(), token.desc()).limit(1)
        row = (await tx.execute(newest)).one_or_none()
        if row is None or row[0] < known:
            return known, 0
        return int(row[0]), int(row[1])

    return await database.read(step)


async def write_generation(database: Database, table: Table, generation: int) -> None:
    """Raise the generation beside the data; never lower it."""

    async def step(tx: Transaction) -> None:
        known = (await tx.execute(select(table.c.generation))).scalar_one_or_none()
        if known is None:
            await tx.execute(insert(table).values(id=1, generation=generation))
        elif known < generation:
            await tx.execute(update(table).values(generation=generation))

    await database.run(step)
