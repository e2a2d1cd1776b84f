"""In what the stacks of the end-to-end tests keep their data: files, or one PostgreSQL that they share. And how it is
damaged there, for tests of who is to notice.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.runtime.database.pgpass import Roles
from tests.postgresql import PostgresServer

SQLITE = "sqlite"
_servers: list[PostgresServer] = []


def on_postgresql() -> bool:
    """What COUNTINGHOUSE_TEST_DATABASE says."""
    wanted = os.environ.get("COUNTINGHOUSE_TEST_DATABASE") or SQLITE
    if wanted not in (SQLITE, "postgresql"):
        raise ValueError(f"COUNTINGHOUSE_TEST_DATABASE is sqlite or postgresql, not {wanted}")
    return wanted != SQLITE


@contextmanager
def use(server: PostgresServer) -> Iterator[None]:
    """Makes `server` the one in which stacks keep their data from now on."""
    _servers.append(server)
    try:
        yield
    finally:
        _servers.remove(server)


def of(data: Path) -> str:
    """What `StackOptions.database` is to be for a data directory: the same one gets the same databases again."""
    if not _servers:
        return SQLITE
    return _servers[-1].of_house(f"{zlib.crc32(str(data.absolute()).encode()):08x}")


async def say(data: Path, service: str, statement: str, **values: str | int) -> list[Any]:
    """Says something to a service's database behind its back: there is nobody whom triggers would stop.

    Args:
        data: The data directory of the stack.
        statement: SQL, with `:name` where a value goes.

    Returns:
        The rows, if it asks for some.
    """
    if not _servers:
        return _say_to_file(data / f"{service}.db", statement, values)
    house = make_url(of(data)).database or ""
    engine = create_async_engine(_servers[-1].url.set(database=Roles(house, service).database))
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SET LOCAL session_replication_role = replica"))
            answer = await connection.execute(text(statement), values)
            return list(answer) if answer.returns_rows else []
    finally:
        await engine.dispose()


def _say_to_file(file: Path, statement: str, values: dict[str, str | int]) -> list[Any]:
    with closing(sqlite3.connect(file, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        triggers = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        rows = connection.execute(statement, values).fetchall()
        for _, made in triggers:
            connection.execute(made)
        connection.execute("COMMIT")
    return rows
