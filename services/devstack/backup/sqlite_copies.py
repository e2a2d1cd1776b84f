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
from services.devstack.state import StackRefused
from services.kernel.errors import Unavailable
from services.runtime.database.sqlite import log_of

_BUSY_TIMEOUT_S = 5.0
#: So many pages are copied before a request to stop is looked at.
_PAGES = 4096


class Stopped(Exception):
    """A copy was given up, for it was asked to stop."""


def copy(
    files: Mapping[Path, Path], stop: threading.Event, now_ms: Callable[[], int], copied: Callable[[Path], None]
) -> int:
    """Copy databases; return the moment whose state the copies hold, Unix milliseconds.

    Args:
        files: Where the copy of each database goes. None of them is changed.
        stop: Once it is set, the copying ends.
        copied: Called with a database when its copy is on the disk.

    Raises:
        Unavailable: DATABASE_BUSY: a database stayed locked by another writer.
        Stopped: `stop` was set.
    """
    with ExitStack() as resources:
        snapshots = {file: resources.enter_context(closing(_open(file))) for file in files}
        with ExitStack() as locks:
            for file in files:
                _lock(locks.enter_context(closing(_open(file))), file)
            for snapshot in snapshots.values():
                snapshot.execute("BEGIN")
                snapshot.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the snapshot
            moment_ms = now_ms()
        for file, snapshot in snapshots.items():
            _copy(snapshot, files[file], stop)
            copied(file)
    return moment_ms


def put_in_place(copy_of: Path, file: Path, aside: Path) -> None:
    """Put a copy where a database is; the old file and its log, if there are any, go to the folder `aside`."""
    aside.mkdir(mode=0o700, exist_ok=True)
    for old in (file, log_of(file), file.with_name(f"{file.name}-shm")):
        if old.exists():
            old.rename(aside / old.name)
    draft = file.with_name(f".{file.name}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with copy_of.open("rb") as source, os.fdopen(descriptor, "wb") as target:
        while part := source.read(1 << 20):
            target.write(part)
        target.flush()
        os.fsync(target.fileno())
    draft.rename(file)
    sync_directory(file.parent)


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
        if stop.is_set():
            raise Stopped

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
