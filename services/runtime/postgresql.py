"""PostgreSQL, through asyncpg."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy import URL, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

_T = TypeVar("_T")


class PostgresqlBackend:
    """A PostgreSQL database.

    Args:
        pool: How many connections at most.
        timeout_s: How long a statement, a connection attempt or an idle transaction may last.
    """

    def __init__(self, url: URL, pool: int, timeout_s: float) -> None:
        milliseconds = str(int(timeout_s * 1000))
        settings = {"statement_timeout": milliseconds, "idle_in_transaction_session_timeout": milliseconds}
        self._engine = create_async_engine(
            url,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=timeout_s,
            connect_args={"server_settings": settings, "timeout": timeout_s},
        )
        self.sync_engine: Engine = self._engine.sync_engine

    async def write(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a step in a transaction."""
        async with self._engine.begin() as connection:
            return await step(connection)

    async def read(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Runs a step on one snapshot."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with connection.begin():
                return await step(connection)

    async def close(self) -> None:
        """Gives the connections back."""
        await self._engine.dispose()
