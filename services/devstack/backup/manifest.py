"""What a backup is: a folder with one file for each service, and `backup.json`, which describes them.

    <folder>/backup.json                          when it was taken, from what, and each file's size and SHA-256
    <folder>/order.db, payment.db, ledger.db      from SQLite: copies of the databases
    <folder>/order.dump, payment.dump, …          from PostgreSQL: archives of pg_dump, without owners and rights

Invariants
1. A folder with `backup.json` is a whole backup: it gets its name when every file in it is on the disk.
2. A backup holds no key and no password. It holds the books, so only its owner can read it (mode 0700).
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from coordination.files import write_whole
from services.devstack.backup.threads import go_on
from services.devstack.state import StackRefused
from services.kernel.json_input import parse_json

#: The services whose books are in a backup. The acquirer's are its own.
BOOKS: Final = ("order", "payment", "ledger")
#: The end of a file's name, by the kind of database.
SUFFIXES: Final = {"sqlite": "db", "postgresql": "dump"}

_MANIFEST: Final = "backup.json"
_FORMAT: Final = 1
#: A manifest of ours has some hundred bytes.
_MAX_MANIFEST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class BackupFile:
    """One file of a backup."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup.

    Args:
        database: The kind of database, a key of `SUFFIXES`.
        taken_at_ms: The moment whose state it holds, Unix milliseconds.
        files: By service.
    """

    database: str
    taken_at_ms: int
    files: Mapping[str, BackupFile]


def file_name(service: str, database: str) -> str:
    """Return the name of a service's file."""
    return f"{service}.{SUFFIXES[database]}"


def describe(folder: Path, database: str, taken_at_ms: int, stop: threading.Event) -> Backup:
    """Write `backup.json` for the files in a folder; return what it says."""
    names = {service: file_name(service, database) for service in BOOKS}
    files = {
        service: BackupFile(name, (folder / name).stat().st_size, _sha256(folder / name, stop))
        for service, name in names.items()
    }
    backup = Backup(database, taken_at_ms, files)
    document = json.dumps({"format": _FORMAT, **asdict(backup)}, indent=1)
    write_whole(folder / _MANIFEST, document.encode(), mode=0o600)
    return backup


def verified(folder: Path, stop: threading.Event) -> Backup:
    """Return the backup in a folder, once every file was read and found as it was written.

    Raises:
        StackRefused: NO_BACKUP, BACKUP_UNREADABLE or BACKUP_DAMAGED.
    """
    backup = _read(_document(folder))
    if backup is None:
        raise StackRefused(
            "BACKUP_UNREADABLE", f"{folder / _MANIFEST} describes no backup that this release knows; take another one"
        )
    for file in backup.files.values():
        if not _is_whole(folder / file.name, file, stop):
            raise StackRefused(
                "BACKUP_DAMAGED",
                f"{folder / file.name} is not as it was written; nothing was done, use another",
            )
    return backup


def _document(folder: Path) -> Any:
    """Return what a manifest holds; None if that is no JSON, or far more than we write."""
    try:
        with (folder / _MANIFEST).open("rb") as manifest:
            if not stat.S_ISREG(os.fstat(manifest.fileno()).st_mode):
                return None
            content = manifest.read(_MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError:
        raise StackRefused("NO_BACKUP", f"{folder} holds no backup: it has no {_MANIFEST}") from None
    try:
        return parse_json(content) if len(content) <= _MAX_MANIFEST_BYTES else None
    except ValueError:
        return None


def _read(document: Any) -> Backup | None:
    """Return what a manifest says; None: nothing that can be used. It names no file but those that we write."""
    try:
        files = {service: BackupFile(**document["files"][service]) for service in BOOKS}
        backup = Backup(document["database"], document["taken_at_ms"], files)
        named = {service: file.name for service, file in files.items()}
        known = document["format"] == _FORMAT and named == {
            service: file_name(service, backup.database) for service in BOOKS
        }
    except (TypeError, KeyError):
        return None
    return backup if known and isinstance(backup.taken_at_ms, int) else None


def _is_whole(path: Path, file: BackupFile, stop: threading.Event) -> bool:
    """Return whether a file is a regular one with the content that was described."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    whole = stat.S_ISREG(found.st_mode) and found.st_size == file.size_bytes
    return whole and _sha256(path, stop) == file.sha256


def _sha256(path: Path, stop: threading.Event) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as content:
        while part := content.read(1 << 20):
            go_on(stop)
            digest.update(part)
    return digest.hexdigest()
