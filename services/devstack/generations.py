"""What the databases of a data directory have seen of ZooKeeper: its generation, and how far it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from services.devstack.files import databases_elsewhere
from services.kernel.errors import CountinghouseError
from services.runtime.database.database import Database
from services.runtime.database.transaction import Transaction

#: Where each service keeps its fences: table, column of the generation, column of the token.
_FENCES = {
    "order": ("orders", "fence_generation", "fence_token"),
    "payment": ("payments", "fence_generation", "fence_token"),
    "ledger": ("order_fences", "generation", "token"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What a database has seen: the newest generation, and the newest fence's zxid under it; 0: none."""

    generation: int
    zxid: int


def newest(seen: Mapping[str, Seen]) -> int:
    """Return the newest generation that any database has seen; 0: none."""
    return max((each.generation for each in seen.values()), default=0)


async def seen_by_databases(data: Path, urls: Mapping[str, str] | None = None) -> tuple[dict[str, Seen], list[str]]:
    """Return what each database has seen; and which of those that there are cannot be read.

    Args:
        urls: Of the databases that are no files; None: those that the data directory names.
    """
    elsewhere = databases_elsewhere(data) if urls is None else urls
    seen: dict[str, Seen] = {}
    unread: list[str] = []
    for service, (table, generation_column, token_column) in _FENCES.items():
        file = data / f"{service}.db"
        if service not in elsewhere and not file.exists():
            continue

        async def ask(query: str, url: str | None = elsewhere.get(service), file: Path = file) -> int:
            return int(str((read_file(file, query) if url is None else await read_url(url, query)) or 0))

        try:
            written = await ask("SELECT generation FROM ensemble")
            fenced = await ask(f"SELECT max({generation_column}) FROM {table}")  # noqa: S608  names of ours
            known = max(written, fenced)
            zxid = await ask(f"SELECT max({token_column}) FROM {table} WHERE {generation_column} = {known}")  # noqa: S608
            seen[service] = Seen(known, zxid)
        except (sqlite3.Error, CountinghouseError):
            unread.append(service)
    return seen, unread


def read_file(file: Path, query: str) -> object:
    """Return the first field of the first row, from a SQLite file; None: there is no row. Raises sqlite3.Error."""
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
    try:
        row = connection.execute(query).fetchone()
    finally:
        connection.close()
    return row[0] if row else None


async def read_url(url: str, query: str) -> object:
    """Return the first field of the first row, from a database that is no file here. Raises as `Database.read`."""

    async def step(tx: Transaction) -> object:
        return (await tx.execute(text(query))).scalar_one_or_none()

    async with Database(url, pool=1) as database:
        return await database.read(step)
