"""Take a backup of the books under a data directory, while the stack on it runs or not."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from coordination.files import sync_directory
from services.devstack import state
from services.devstack.backup import postgresql_archives, sqlite_copies
from services.devstack.backup.manifest import BOOKS, Backup, describe, file_name
from services.devstack.backup.threads import in_thread
from services.devstack.files import databases_elsewhere
from services.devstack.restore_marker import refuse_unfinished
from services.devstack.state import StackFailed, StackRefused
from services.kernel.clock import Clock
from services.kernel.errors import InvalidArgument
from services.runtime.database.errors import said
from services.runtime.database.pgpass import Roles


async def take(data: Path, folder: Path, clock: Clock, tell: Callable[[str], None]) -> Backup:
    """Write a backup into a new folder; return what is in it.

    Args:
        data: The stack's data directory.
        folder: Must not exist. Appears when the backup is whole.
        tell: Called with a sentence when a service's books have been copied.

    Raises:
        InvalidArgument: BACKUP_EXISTS.
        StackRefused: NOTHING_TO_BACK_UP, OWNER_UNKNOWN, DATABASE_DAMAGED, DATABASE_REFUSED, RESTORE_UNFINISHED.
        StackFailed: ARCHIVE_FAILED or BACKUP_FAILED.
        Unavailable: DATABASE_BUSY.
    """
    folder = _new(folder)
    refuse_unfinished(data)
    draft = _draft_beside(folder)
    try:
        elsewhere = databases_elsewhere(data)
        if set(BOOKS) <= elsewhere.keys():
            backup = await _archived(data, {service: elsewhere[service] for service in BOOKS}, draft, clock, tell)
        else:
            backup = await _copied(data, draft, clock, tell)
        _publish(draft, folder)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise StackFailed("BACKUP_FAILED", f"{folder} could not be written: {error.strerror}") from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return backup


def _draft_beside(folder: Path) -> Path:
    """Make the folder that gets the name of `folder` when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder.parent, prefix=".backup-"))  # mode 0700


def _publish(draft: Path, folder: Path) -> None:
    """Give a whole backup its name."""
    sync_directory(draft)
    draft.rename(folder)
    sync_directory(folder.parent)


def _new(folder: Path) -> Path:
    """Return where a new folder will be.

    Raises:
        InvalidArgument: BACKUP_EXISTS.
    """
    path = Path(os.path.abspath(folder))
    if os.path.lexists(path):
        raise InvalidArgument("BACKUP_EXISTS", f"{folder} exists already; name a folder that does not")
    return path


async def _copied(data: Path, draft: Path, clock: Clock, tell: Callable[[str], None]) -> Backup:
    """Copy SQLite files."""
    files = {data / f"{service}.db": draft / file_name(service, "sqlite") for service in BOOKS}
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise StackRefused("NOTHING_TO_BACK_UP", f"there is no {', '.join(missing)}; name the --data of a stack")

    def at_moment() -> int:
        refuse_unfinished(data)
        return clock.now_ms()

    def copied(file: Path) -> None:
        tell(f"{file.stem}: {_size(files[file])} copied")

    def work(stop: threading.Event) -> Backup:
        return describe(draft, "sqlite", sqlite_copies.copy(files, stop, at_moment, copied), stop)

    try:
        return await in_thread(work)
    except sqlite3.Error as error:
        raise StackFailed("BACKUP_FAILED", f"the databases of {data} could not be copied: {error}") from error


async def _archived(data: Path, urls: dict[str, str], draft: Path, clock: Clock, tell: Callable[[str], None]) -> Backup:
    """Have pg_dump write archives of the databases that a data directory names."""
    databases = {
        draft / file_name(service, "postgresql"): _owners_url(data, service, make_url(url))
        for service, url in urls.items()
    }

    def dumped(file: Path) -> None:
        tell(f"{file.stem}: {_size(file)} written")

    try:
        taken_at_ms = await postgresql_archives.dump(databases, os.environ, clock.now_ms, dumped)
    except (SQLAlchemyError, OSError) as error:
        remedy = "" if state.running(data) else "; start the stack if the server is its own"
        raise StackRefused("DATABASE_REFUSED", f"the databases cannot be read: {said(error)}{remedy}") from error
    return await in_thread(lambda stop: describe(draft, "postgresql", taken_at_ms, stop))


def _owners_url(data: Path, service: str, url: URL) -> URL:
    """Return the URL under which a database's owner connects: only the owner may lock its tables.

    Raises:
        StackRefused: OWNER_UNKNOWN: their password is not here.
    """
    roles = Roles(str(url.database).removesuffix(f"_{service}"), service)
    passfile = data / "keys" / f"{roles.owner}.pgpass"
    if not passfile.exists():
        raise StackRefused(
            "OWNER_UNKNOWN",
            f"{data / 'keys'} has no password of {roles.owner}, who may read {url.database} as a whole; "
            "back the server up with its own tools, see deploy/README.md",
        )
    return url.set(username=roles.owner, query={**url.query, "passfile": str(passfile.absolute())})


def _size(file: Path) -> str:
    return f"{file.stat().st_size / 1e6:.1f} MB"
