"""SQLite for asyncio with one visit to the connection's thread per statement.

aiosqlite runs a connection in a thread of its own and visits it for each small thing: to make a cursor, to execute, to
fetch, to close the cursor, to roll back what was never begun. SQLAlchemy asks for all of them, so a statement costs
four visits of about 0.1 ms, several times what SQLite itself needs. Here a statement is executed, fetched and closed
in one visit. Its rows are held in memory, as SQLAlchemy's adapter does in any case.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Self

import aiosqlite

#: aiosqlite wants one; it is used only by its own cursors.
_CHUNK = 64


class _Cursor:
    """As much of a cursor as SQLAlchemy's adapter uses."""

    __slots__ = ("_connection", "_rows", "arraysize", "description", "lastrowid", "rowcount")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, operation: str, parameters: Any = ()) -> Self:
        await self._connection.visit(self._execute, operation, parameters, many=False)
        return self

    async def executemany(self, operation: str, parameters: Sequence[Any]) -> Self:
        await self._connection.visit(self._execute, operation, parameters, many=True)
        return self

    async def fetchall(self) -> list[Any]:
        rows, self._rows = self._rows, []
        return rows

    async def close(self) -> None:
        self._rows = []

    def _execute(self, connection: sqlite3.Connection, operation: str, parameters: Any, *, many: bool) -> None:
        cursor = connection.executemany(operation, parameters) if many else connection.execute(operation, parameters)
        self.description, self.lastrowid = cursor.description, cursor.lastrowid
        self._rows = cursor.fetchall() if cursor.description else []
        self.rowcount = cursor.rowcount  # of an UPDATE … RETURNING it is known only when all rows are fetched
        cursor.close()


class Connection(aiosqlite.Connection):
    """An aiosqlite connection whose cursors live on this side of the thread."""

    def cursor(self) -> Any:
        """A cursor; nothing is visited for it."""
        return _Cursor(self)

    async def rollback(self) -> None:
        """Rolls back what was begun; where nothing was, there is nothing to visit for."""
        if self.in_transaction:
            await super().rollback()

    async def visit(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Runs `function(sqlite3_connection, …)` in the connection's thread."""
        return await self._execute(function, self._conn, *arguments, **named)  # type: ignore[no-untyped-call]


async def connect(path: str, **arguments: Any) -> Connection:
    """Opens the database file at `path`; `arguments` are sqlite3's."""
    connection = Connection(lambda: sqlite3.connect(path, **arguments), _CHUNK)
    connection._thread.daemon = True  # a forgotten connection must not keep the process from ending
    await connection
    return connection
