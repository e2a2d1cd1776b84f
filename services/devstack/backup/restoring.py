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

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from coordination.locks import generation
from coordination.session import Session
from coordination.session.security import Security
from services.devstack import restore_marker
from services.devstack.backup import postgresql_archives, sqlite_copies
from services.devstack.backup.manifest import BOOKS, Backup, verified
from services.devstack.backup.threads import in_thread
from services.devstack.components.databases import HOUSE, server_and_house, url_of
from services.devstack.files import databases_elsewhere, remember_databases
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
            DATABASE_REFUSED, DATA_FULL, RESTORE_UNFINISHED; as `Stack.start`.
        StackFailed: ARCHIVE_FAILED, RESTORE_FAILED; as `Stack.start`.
    """
    backup = await in_thread(lambda stop: verified(folder, stop))
    _check_kind(backup, options)
    async with Stack(options, clock=clock) as alone:
        begun = _begin(backup, folder, alone.data, options, clock)
        try:
            if backup.database == SQLITE:
                aside = await _put_files(backup, folder, alone.data, begun.suffix, tell)
                urls: dict[str, str] = {}
            else:
                server, house = (alone.server, HOUSE) if alone.server else server_and_house(options.database)
                archives = _Archives(server, house, Keys(alone.data, clock), alone.data)
                aside, urls = await archives.put(backup, folder, begun.suffix, tell)
        except SQLAlchemyError as error:
            raise StackRefused("DATABASE_REFUSED", f"the server cannot be used: {said(error)}") from error
        except OSError as error:
            where = alone.data if backup.database == SQLITE else "the server"
            raise StackFailed(
                "RESTORE_FAILED", f"{where} cannot be used: {error.strerror}; put that right, and repeat the restore"
            ) from error
        seen, unread = await seen_by_databases(alone.data, urls)
        if unread:
            raise StackFailed("RESTORE_FAILED", f"what was put in place for {', '.join(unread)} cannot be read")
        now = await _raise_generation(alone.zookeeper, alone.zookeeper_security(), newest(seen))
        restore_marker.finish(alone.data)
    return Restored(backup, tuple(aside), now)


def _begin(backup: Backup, folder: Path, data: Path, options: StackOptions, clock: Clock) -> restore_marker.Restore:
    """Write down what is being done; of a restore that is repeated, the old books keep the place that they have.

    Raises:
        StackRefused: RESTORE_UNFINISHED: another restore was not finished, with another database or ZooKeeper.
        StackRefused: DATA_FULL: there is no room for the books.
    """
    database = options.database
    if "://" in database:
        database = make_url(database).set(password=None).render_as_string()
    before = restore_marker.unfinished(data)
    if before and (before.database, before.zookeeper) != (database, options.zookeeper):
        restore_marker.refuse_unfinished(data)
    if backup.database == SQLITE:
        wanted, free = sum(file.size_bytes for file in backup.files.values()), shutil.disk_usage(data).free
        if wanted > free:
            raise StackRefused(
                "DATA_FULL", f"the books need {wanted / 1e6:.0f} MB, and {data} has {free / 1e6:.0f} MB left"
            )
    suffix = datetime.fromtimestamp(clock.now_ms() / 1000, UTC).strftime("_before_restore_%Y%m%d%H%M%S")
    begun = restore_marker.Restore(
        str(folder.absolute()), database, options.zookeeper, before.suffix if before else suffix
    )
    restore_marker.begin(data, begun)
    return begun


async def _raise_generation(zookeeper: str, security: Security, seen: int) -> int:
    """Raise ZooKeeper's generation above what it is, and what the databases have seen; return it."""
    async with Session(zookeeper, name="restore", security=security) as session:
        await session.wait_connected(_ZOOKEEPER_TIMEOUT_S)
        found = await generation.read(session, _ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH) or 0
        return await generation.advance(session, max(seen, found) + 1, _ZOOKEEPER_TIMEOUT_S, path=GENERATION_PATH)


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


async def _put_files(backup: Backup, folder: Path, data: Path, suffix: str, tell: Callable[[str], None]) -> list[str]:
    """Put SQLite files in place; return the folder of the old ones."""
    aside = data / suffix.removeprefix("_").replace("_", "-")

    def work(stop: threading.Event) -> None:
        for service, file in backup.files.items():
            sqlite_copies.put_in_place(folder / file.name, data / f"{service}.db", aside, stop)
            tell(f"{service}: in place")

    await in_thread(work)
    return [str(aside)]


@dataclass(frozen=True, slots=True)
class _Archives:
    """Where archives are loaded."""

    server: URL
    house: str
    keys: Keys
    data: Path

    async def put(
        self, backup: Backup, folder: Path, suffix: str, tell: Callable[[str], None]
    ) -> tuple[list[str], dict[str, str]]:
        """Load archives into new databases; return the names of the old ones, and the owners' URLs of the new ones."""
        every = {service: Roles(self.house, service) for service in BOOKS}
        names = {name for roles in every.values() for name in (roles.owner, roles.user, roles.checker)}
        # Of a restore that is repeated, what an earlier try has loaded goes aside as well, under a name of its own.
        databases = [roles.database for roles in every.values()]
        aside = await postgresql_archives.set_aside(self.server, databases, suffix)
        await prepare(self.server, self.house, BOOKS, {name: self.keys.password(name) for name in names})
        owners = {service: url_of(self.server, roles, roles.owner, self.keys) for service, roles in every.items()}
        for service, url in owners.items():
            await postgresql_archives.load(folder / backup.files[service].name, url, os.environ)
            tell(f"{service}: in place")
        known = databases_elsewhere(self.data)
        checkers = {service: url_of(self.server, roles, roles.checker, self.keys) for service, roles in every.items()}
        remember_databases(self.data, known | {each: url.render_as_string() for each, url in checkers.items()})
        return aside, {service: url.render_as_string() for service, url in owners.items()}
