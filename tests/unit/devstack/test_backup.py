"""A backup's description, and what is refused before anything is touched."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.devstack.backup import restoring, taking
from services.devstack.backup.manifest import BOOKS, describe, verified
from services.devstack.backup.postgresql_archives import find_program
from services.devstack.components.postgresql import PostgresqlMissing
from services.devstack.files import remember_databases
from services.devstack.options import StackOptions
from services.devstack.restore_marker import begin, finish, refuse_unfinished, was_restored
from services.devstack.state import StackFailed, StackRefused
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument
from tests.fakes.clock import ManualClock

AT_MS = 1_700_000_000_000


def quiet(_sentence: str) -> None:
    """Hears nothing."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A backup of SQLite files that hold the names of their services."""
    made = tmp_path / "backup"
    made.mkdir()
    for service in BOOKS:
        (made / f"{service}.db").write_text(service)
    describe(made, "sqlite", AT_MS)
    return made


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def books(data: Path) -> Path:
    """A data directory with a database for each service."""
    data.mkdir()
    for service in BOOKS:
        with closing(sqlite3.connect(data / f"{service}.db")) as connection:
            connection.execute("CREATE TABLE facts (fact TEXT)")
            connection.execute("INSERT INTO facts VALUES (?)", (service,))
            connection.commit()
    return data


def test_backup_is_read_as_it_was_described(folder: Path) -> None:
    backup = verified(folder)
    assert (backup.database, backup.taken_at_ms) == ("sqlite", AT_MS)
    assert {service: file.name for service, file in backup.files.items()} == {each: f"{each}.db" for each in BOOKS}
    assert [backup.files[service].size_bytes for service in BOOKS] == [len(service) for service in BOOKS]


@pytest.mark.parametrize("change", ["longer", "another byte", "gone"])
def test_changed_file_is_reported(folder: Path, change: str) -> None:
    file = folder / "ledger.db"
    if change == "gone":
        file.unlink()
    else:
        file.write_text("ledger and more" if change == "longer" else "lodger")
    with pytest.raises(StackRefused) as refusal:
        verified(folder)
    assert refusal.value.reason == "BACKUP_DAMAGED"
    assert str(file) in refusal.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"database": "mysql"},
        {"database": ["sqlite"]},
        {"taken_at_ms": "now"},
        {"files": {}},
        {"files": {each: {"name": "../../etc/passwd", "size_bytes": 1, "sha256": ""} for each in BOOKS}},
        {"files": {each: {"name": f"{each}.db"} for each in BOOKS}},
    ],
)
def test_description_that_is_none_of_ours_is_refused(folder: Path, change: dict[str, Any]) -> None:
    """A file outside of the folder is never read."""
    described = json.loads((folder / "backup.json").read_text())
    (folder / "backup.json").write_text(json.dumps(described | change))
    with pytest.raises(StackRefused) as refusal:
        verified(folder)
    assert refusal.value.reason == "BACKUP_UNREADABLE"


@pytest.mark.parametrize("content", ["", "[]", "null", "{"])
def test_rubbish_is_no_description(folder: Path, content: str) -> None:
    (folder / "backup.json").write_text(content)
    with pytest.raises(StackRefused) as refusal:
        verified(folder)
    assert refusal.value.reason == "BACKUP_UNREADABLE"


async def test_only_the_owner_can_read_a_backup(tmp_path: Path) -> None:
    data, folder = books(tmp_path / "data"), tmp_path / "new" / "backup"
    told: list[str] = []
    backup = await taking.take(data, folder, ManualClock(), told.append)
    assert verified(folder) == backup
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert [sentence.partition(":")[0] for sentence in told] == list(BOOKS)
    for service in BOOKS:
        with closing(sqlite3.connect(folder / f"{service}.db")) as connection:
            assert connection.execute("SELECT fact FROM facts").fetchall() == [(service,)]


async def test_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    data = books(tmp_path / "data")
    content = bytearray((data / "payment.db").read_bytes())
    content[:16] = b"no database here"
    (data / "payment.db").write_bytes(content)
    with pytest.raises(StackFailed) as failure:
        await taking.take(data, tmp_path / "backup", SystemClock(), quiet)
    assert failure.value.reason == "BACKUP_FAILED"
    assert os.listdir(tmp_path) == ["data"]


async def test_nothing_is_backed_up_where_no_stack_was(tmp_path: Path) -> None:
    with pytest.raises(StackRefused) as refusal:
        await taking.take(tmp_path, tmp_path / "backup", SystemClock(), quiet)
    assert refusal.value.reason == "NOTHING_TO_BACK_UP"


async def test_existing_folder_is_left_alone(tmp_path: Path, folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(InvalidArgument) as refusal:
        await taking.take(books(tmp_path / "data"), folder, SystemClock(), quiet)
    assert refusal.value.reason == "BACKUP_EXISTS"
    assert contents(folder) == before


async def test_server_whose_owner_is_not_known_here_is_refused(tmp_path: Path) -> None:
    remember_databases(tmp_path, {each: f"postgresql+asyncpg://h_checker@host/h_{each}" for each in BOOKS})
    with pytest.raises(StackRefused) as refusal:
        await taking.take(tmp_path, tmp_path / "backup", SystemClock(), quiet)
    assert refusal.value.reason == "OWNER_UNKNOWN"


async def test_backup_of_another_kind_of_database_is_refused(tmp_path: Path, folder: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    elsewhere = StackOptions(data, database="postgresql", services=())
    with pytest.raises(StackRefused) as refusal:
        await restoring.restore(folder, elsewhere, SystemClock(), quiet)
    assert refusal.value.reason == "DATABASE_OTHER"
    remember_databases(data, {each: f"postgresql+asyncpg://h_checker@host/h_{each}" for each in BOOKS})
    with pytest.raises(StackRefused) as refusal:
        await restoring.restore(folder, StackOptions(data, services=()), SystemClock(), quiet)
    assert refusal.value.reason == "DATABASE_OTHER"
    assert os.listdir(data) == ["databases.json"]


def test_directory_is_refused_until_its_restore_is_finished(tmp_path: Path) -> None:
    refuse_unfinished(tmp_path)
    begin(tmp_path, Path("/backups/monday"), AT_MS)
    with pytest.raises(StackRefused, match="countinghouse restore /backups/monday"):
        refuse_unfinished(tmp_path)
    (tmp_path / "restore.json").write_text("rubbish")
    with pytest.raises(StackRefused, match="countinghouse restore"):
        refuse_unfinished(tmp_path)
    assert not was_restored(tmp_path)
    finish(tmp_path)
    refuse_unfinished(tmp_path)
    assert was_restored(tmp_path)


def programs(root: Path, *versions: str) -> dict[str, Path]:
    """Debian's folders, with pg_dump in them."""
    made = {}
    for version in versions:
        made[version] = root / "usr/lib/postgresql" / version / "bin" / "pg_dump"
        made[version].parent.mkdir(parents=True)
        made[version].touch(mode=0o755)
    return made


def test_program_of_the_servers_own_version_is_preferred_and_no_older_one_is_taken(tmp_path: Path) -> None:
    """An older pg_dump refuses a newer server."""
    made = programs(tmp_path, "9", "15", "17")
    nowhere = {"PATH": str(tmp_path)}
    assert find_program("pg_dump", nowhere, 15, tmp_path) == str(made["15"])
    assert find_program("pg_dump", nowhere, 16, tmp_path) == str(made["17"])
    with pytest.raises(PostgresqlMissing, match="PostgreSQL 18 or newer"):
        find_program("pg_dump", nowhere, 18, tmp_path)
    (tmp_path / "pg_dump").touch(mode=0o755)
    assert find_program("pg_dump", nowhere, 18, tmp_path) == str(tmp_path / "pg_dump")
