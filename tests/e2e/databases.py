"""In what the stacks of the end-to-end tests keep their data: files, or one PostgreSQL that they share."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
