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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from coordination.files import write_whole
from services.devstack.state import StackRefused

#: The services whose books are in a backup. The acquirer's are its own.
BOOKS: Final = ("order", "payment", "ledger")
#: The end of a file's name, by the kind of database.
SUFFIXES: Final = {"sqlite": "db", "postgresql": "dump"}

_MANIFEST: Final = "backup.json"
_FORMAT: Final = 1


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


def describe(folder: Path, database: str, taken_at_ms: int) -> Backup:
    """Write `backup.json` for the files in a folder; return what it says."""
    names = {service: file_name(service, database) for service in BOOKS}
    backup = Backup(
        database,
        taken_at_ms,
        {service: BackupFile(name, *_measured(folder / name)) for service, name in names.items()},
    )
    document = json.dumps({"format": _FORMAT, **asdict(backup)}, indent=1)
    write_whole(folder / _MANIFEST, document.encode(), mode=0o600)
    return backup


def verified(folder: Path) -> Backup:
    """Return the backup in a folder, once every file was read and found as it was written.

    Raises:
        StackRefused: NO_BACKUP, BACKUP_UNREADABLE or BACKUP_DAMAGED.
    """
    try:
        document = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        raise StackRefused("NO_BACKUP", f"{folder} holds no backup: it has no {_MANIFEST}") from None
    except ValueError:
        document = None
    backup = _read(document)
    if backup is None:
        raise StackRefused(
            "BACKUP_UNREADABLE", f"{folder / _MANIFEST} describes no backup that this release knows; take another one"
        )
    for file in backup.files.values():
        try:
            found = _measured(folder / file.name)
        except FileNotFoundError:
            found = (0, "")
        if found != (file.size_bytes, file.sha256):
            raise StackRefused(
                "BACKUP_DAMAGED",
                f"{folder / file.name} is not as it was written; nothing was done, take another backup",
            )
    return backup


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


def _measured(file: Path) -> tuple[int, str]:
    """Return a file's size in bytes and its SHA-256, in hexadecimal."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        return os.fstat(content.fileno()).st_size, digest
