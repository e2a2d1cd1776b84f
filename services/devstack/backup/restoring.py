"""Put a backup in the place of the books under a data directory, on which no stack may run.

    verify ▸ ZooKeeper and the server alone ▸ begin ▸ old books aside ▸ backup in place ▸ new generation ▸ finish

Invariants
1. Nothing is removed: what was there is renamed.
2. A restore that ended before its last step is repeated; until then no stack starts (`restore_marker.py`).
3. ZooKeeper's generation is raised: a fence that was given out before the restore is older than any after it.

The acquirer is an outside system, and keeps what it has. It may have charged cards for payments that the backup does
not hold: `countinghouse reconcile` names them, and should be read before clerks settle those orders again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from coordination.locks import generation
from coordination.session import Session
from services.devstack import restore_marker
from services.devstack.backup import postgresql_archives, sqlite_copies
from services.devstack.backup.manifest import BOOKS, Backup, verified
from services.devstack.components.databases import HOUSE, server_and_house
from services.devstack.files import databases_elsewhere
from services.devstack.generations import newest, seen_by_databases
from services.devstack.keys import Keys
from services.devstack.options import POSTGRESQL, SQLITE, StackOptions
from services.devstack.stack import Stack
from services.devstack.state import StackFailed, StackRefused
from services.kernel.clock import Clock
from services.runtime.database.errors import said
from services.runtime.database.pgpass import Roles
from services.runtime.database.postgres_roles import prepare
from services.runtime.zookeeper_paths import GENERATION_PATH

_ZOOKEEPER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore has done.

    Args:
        backup: What is in place now.
        set_aside: Where the books are that were there: a folder, or databases.
        generation: ZooKeeper's, from now on.
    """

    backup: Backup
    set_aside: tuple[str, ...]
    generation: int


async def restore(folder: Path, options: StackOptions, clock: Clock, tell: Callable[[str], None]) -> Restored:
    """Put the backup in `folder` in place; return when it is.

    Args:
        options: Of the stack that is not running: its data directory, database and ZooKeeper. No services.
        tell: Called with a sentence when a service's books are in place.

    Raises:
        StackRefused: As `manifest.verified`; DATABASE_OTHER: the backup is of another kind of database;
            DATABASE_REFUSED; as `Stack.start`.
        StackFailed: ARCHIVE_FAILED; as `Stack.start`.
    """
    backup = await asyncio.to_thread(verified, folder)
    _check_kind(backup, options)
    async with Stack(options, clock=clock) as alone:
        restore_marker.begin(alone.data, folder, backup.taken_at_ms)
        suffix = datetime.fromtimestamp(clock.now_ms() / 1000, UTC).strftime("_before_restore_%Y%m%d%H%M%S")
        if backup.database == SQLITE:
            aside = await asyncio.to_thread(_put_files, backup, folder, alone.data, suffix, tell)
            urls: dict[str, str] = {}
        else:
            server, house = (alone.server, HOUSE) if alone.server else server_and_house(options.database)
            try:
                aside, urls = await _put_archives(backup, folder, Keys(alone.data, clock), server, house, suffix, tell)
            except (SQLAlchemyError, OSError) as error:
                raise StackRefused("DATABASE_REFUSED", f"the server cannot be used: {said(error)}") from error
        seen, unread = await seen_by_databases(alone.data, urls)
        if unread:
            raise StackFailed("BACKUP_FAILED", f"what was put in place for {', '.join(unread)} cannot be read")
        async with Session(alone.zookeeper, name="restore") as session:
            await session.wait_connected(_ZOOKEEPER_TIMEOUT_S)
            found = await generation.read(session, _ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH) or 0
            now = await generation.advance(
                session, max(newest(seen), found) + 1, _ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH
            )
        restore_marker.finish(alone.data)
    return Restored(backup, tuple(aside), now)


def _check_kind(backup: Backup, options: StackOptions) -> None:
    """Refuse a backup that is of another kind than the database it is for."""
    wanted = SQLITE if options.database == SQLITE else POSTGRESQL
    if backup.database != wanted:
        raise StackRefused(
            "DATABASE_OTHER", f"the backup is of {backup.database}, and --database is {wanted}; give the one it is of"
        )
    if wanted == SQLITE and set(BOOKS) & databases_elsewhere(options.data).keys():
        raise StackRefused(
            "DATABASE_OTHER", f"the books of {options.data} are in PostgreSQL; name another --data for this backup"
        )
    if wanted == POSTGRESQL and any((options.data / f"{service}.db").exists() for service in BOOKS):
        raise StackRefused(
            "DATABASE_OTHER", f"the books of {options.data} are in SQLite files; name another --data for this backup"
        )


def _put_files(backup: Backup, folder: Path, data: Path, suffix: str, tell: Callable[[str], None]) -> list[str]:
    aside = data / suffix.removeprefix("_").replace("_", "-")
    for service, file in backup.files.items():
        sqlite_copies.put_in_place(folder / file.name, data / f"{service}.db", aside)
        tell(f"{service}: in place")
    return [str(aside)]


async def _put_archives(
    backup: Backup, folder: Path, keys: Keys, server: URL, house: str, suffix: str, tell: Callable[[str], None]
) -> tuple[list[str], dict[str, str]]:
    """Load archives into new databases; return the names of the old ones, and the owners' URLs of the new ones."""
    every = {service: Roles(house, service) for service in BOOKS}
    names = {name for roles in every.values() for name in (roles.owner, roles.user, roles.checker)}
    aside = await postgresql_archives.set_aside(server, [roles.database for roles in every.values()], suffix)
    await prepare(server, house, BOOKS, {name: keys.password(name) for name in names})
    urls: dict[str, str] = {}
    for service, roles in every.items():
        url = server.set(username=roles.owner, password=None, database=roles.database)
        url = url.set(query={"passfile": str(keys.passfile(roles.owner))})
        await postgresql_archives.load(folder / backup.files[service].name, url, os.environ)
        urls[service] = url.render_as_string()
        tell(f"{service}: in place")
    return aside, urls
