"""The PostgreSQL backend, through asyncpg.

How long things may last, each bounded by `timeout_s` (settings: statement_timeout_s)

    waiting for a connection of the pool     pool_timeout                          ours
    opening one                              asyncpg's timeout                     ours
    a statement, waiting for locks included  statement_timeout                     the server ends it
    a transaction that is abandoned          idle_in_transaction_session_timeout   the server ends it
    a step as a whole, and its commit        _GRACE_S more                         ours: the server may be frozen
    any other command                        asyncpg's command_timeout, the same   ours

A connection that broke before COMMIT was sent leaves nothing behind, so its step may run again. From the moment COMMIT
has been sent until its answer is there, the step's outcome is unknown: `CommitUnanswered`.

The password is not in the URL: `?passfile=…` names a file in the form of ~/.pgpass, read anew for each connection, so
that a password can be changed without a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.runtime.database.errors import CommitUnanswered, sqlstate_of

_T = TypeVar("_T")

#: The server's own timeouts come first, so that the reason arrives.
_GRACE_S = 1.0
#: What is no answer to COMMIT: class 08, the driver's code for a connection that broke; class 57P, the server is
#: being shut down or is crashing, and may have committed before this error.
_NO_ANSWERS = ("08", "57P")


class PostgresqlBackend:
    """A PostgreSQL database.

    Args:
        pool: How many connections at most.
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
        self._step_s = timeout_s + _GRACE_S
        self._engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=pool,
            max_overflow=0,
            pool_timeout=timeout_s,
            connect_args={"server_settings": settings, "timeout": timeout_s, "command_timeout": self._step_s},
        )
        self.sync_engine: Engine = self._engine.sync_engine

    async def write(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step in a transaction.

        Raises:
            CommitUnanswered: It may stand.
        """
        async with self._connection() as connection:
            transaction = await connection.begin()
            async with asyncio.timeout(self._step_s):
                result = await step(connection)
            try:
                async with asyncio.timeout(self._step_s):
                    await transaction.commit()
            except DBAPIError as error:
                if _was_refused(error):
                    raise
                raise CommitUnanswered from error
            except (OSError, TimeoutError) as error:
                raise CommitUnanswered from error
            return result

    async def read(self, step: Callable[[AsyncConnection], Coroutine[Any, Any, _T]]) -> _T:
        """Run a step on one snapshot."""
        async with self._connection() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            async with asyncio.timeout(self._step_s), connection.begin():
                return await step(connection)

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection]:
        """Lend a connection of the pool. One on which something was not answered in time is not given back to it."""
        async with self._engine.connect() as connection:
            try:
                yield connection
            except (TimeoutError, CommitUnanswered):
                await connection.invalidate()
                raise


def _was_refused(error: DBAPIError) -> bool:
    """Return whether the server answered COMMIT with a refusal, after which nothing stands."""
    state = sqlstate_of(error.orig)
    return bool(state) and not error.connection_invalidated and not state.startswith(_NO_ANSWERS)
