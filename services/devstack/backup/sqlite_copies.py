"""Copies of SQLite databases that hold the state of one moment, taken beside the services that write into them.

For that moment no service may commit: the write lock of every database is held at once, a snapshot of each is opened,
and the locks are given up. That takes some milliseconds; the copies are then made from the snapshots. What the copies
hold is what `kill -9` of every process at that moment would have left, and the services recover from that.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from coordination.files import sync_directory
from services.devstack.backup.threads import go_on
from services.devstack.state import StackRefused
from services.kernel.errors import Unavailable

_BUSY_TIMEOUT_S = 5.0
#: So many pages are copied before a request to stop is looked at.
_PAGES = 4096
#: What may lie beside a database, and belongs to it.
_LOGS = ("-wal", "-shm", "-journal")


def copy(
    files: Mapping[Path, Path], stop: threading.Event, at_moment: Callable[[], int], copied: Callable[[Path], None]
) -> int:
    """Copy databases; return the moment whose state the copies hold, Unix milliseconds.

    Args:
        files: Where the copy of each database goes. None of them is changed.
        stop: Once it is set, the copying ends.
        at_moment: Called while nothing can be written; returns that moment, Unix milliseconds.
        copied: Called with a database when its copy is on the disk.

    Raises:
        Unavailable: DATABASE_BUSY: a database stayed locked by another writer. DATABASE_LOST: a file was replaced.
        Stopped: `stop` was set.
    """
    before = [_identity(file) for file in files]
    with ExitStack() as resources:
        snapshots = {file: resources.enter_context(closing(_open(file))) for file in files}
        with ExitStack() as locks:
            for file in files:
                _lock(locks.enter_context(closing(_open(file))), file)
            for snapshot in snapshots.values():
                snapshot.execute("BEGIN")
                snapshot.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the snapshot
            moment_ms = at_moment()
            if [_identity(file) for file in files] != before:
                raise Unavailable("DATABASE_LOST", "a database was replaced meanwhile; take the backup again")
        for file, snapshot in snapshots.items():
            _copy(snapshot, files[file], stop)
            copied(file)
    return moment_ms


def put_in_place(copy_of: Path, file: Path, aside: Path, stop: threading.Event) -> None:
    """Put a copy where a database is; the old file and its logs, if there are any, go to the folder `aside`.

    It can be repeated after a death in the middle of it, with the same folder: what lies there is never written over.
    """
    aside.mkdir(mode=0o700, exist_ok=True)
    for old in (*(file.with_name(f"{file.name}{log}") for log in _LOGS), file):  # a log never without its database
        if old.exists() and (aside / file.name).exists():
            old.unlink()  # of the copy that an earlier try put here
        elif old.exists():
            old.rename(aside / old.name)
    sync_directory(aside)
    sync_directory(file.parent)
    draft = file.with_name(f".{file.name}.draft")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with copy_of.open("rb") as source, os.fdopen(descriptor, "wb") as target:
            while part := source.read(1 << 20):
                go_on(stop)
                target.write(part)
            target.flush()
            os.fsync(target.fileno())
        draft.rename(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(file.parent)


def _identity(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_dev, found.st_ino


def _open(file: Path) -> sqlite3.Connection:
    uri = f"{file.absolute().as_uri()}?mode=rw"  # never makes one
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)


def _lock(connection: sqlite3.Connection, file: Path) -> None:
    """Take the write lock of a database; closing the connection gives it up."""
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        raise Unavailable("DATABASE_BUSY", f"{file} stays locked by another writer ({error}); try again") from error


def _copy(snapshot: sqlite3.Connection, to: Path, stop: threading.Event) -> None:
    """Copy a database as its open read transaction sees it, into one plain file without a log."""

    def look(_status: int, _remaining: int, _total: int) -> None:
        go_on(stop)

    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(to, isolation_level=None)) as target:
        snapshot.backup(target, pages=_PAGES, progress=look)
        target.execute("PRAGMA journal_mode=DELETE")
        verdict = target.execute("PRAGMA quick_check").fetchone()[0]
        if verdict != "ok":
            raise StackRefused("DATABASE_DAMAGED", f"{to.name} is damaged ({verdict}): no backup was taken of it")
    descriptor = os.open(to, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
