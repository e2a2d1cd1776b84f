"""A backup's description, and what is refused before anything is touched."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.devstack.backup import restoring, sqlite_copies, taking
from services.devstack.backup.manifest import BOOKS, describe, verified
from services.devstack.backup.postgresql_archives import find_program
from services.devstack.backup.threads import go_on, in_thread
from services.devstack.components.postgresql import PostgresqlMissing
from services.devstack.files import remember_databases
from services.devstack.options import StackOptions
from services.devstack.restore_marker import Restore, begin, finish, refuse_unfinished, was_restored
from services.devstack.state import StackFailed, StackRefused
from services.kernel.clock import SystemClock
from services.kernel.errors import InvalidArgument, Unavailable
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
    describe(made, "sqlite", AT_MS, threading.Event())
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
    backup = verified(folder, threading.Event())
    assert (backup.database, backup.taken_at_ms) == ("sqlite", AT_MS)
    assert {service: file.name for service, file in backup.files.items()} == {each: f"{each}.db" for each in BOOKS}
    assert [backup.files[service].size_bytes for service in BOOKS] == [len(service) for service in BOOKS]


@pytest.mark.parametrize("change", ["longer", "another byte", "gone", "a pipe", "a device", "a link"])
def test_changed_file_is_reported(folder: Path, change: str) -> None:
    """What is no regular file is not read: a pipe would be waited for, and a device read for ever."""
    file = folder / "ledger.db"
    if change in ("gone", "a pipe", "a device", "a link"):
        file.unlink()
        if change == "a pipe":
            os.mkfifo(file)
        elif change == "a device":
            file.symlink_to("/dev/zero")
        elif change == "a link":
            (folder / "elsewhere").write_text("ledger")
            file.symlink_to(folder / "elsewhere")
    else:
        file.write_text("ledger and more" if change == "longer" else "lodger")
    with pytest.raises(StackRefused) as refusal:
        verified(folder, threading.Event())
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
        verified(folder, threading.Event())
    assert refusal.value.reason == "BACKUP_UNREADABLE"


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 60_000, "{}" + " " * (1 << 16)])
def test_rubbish_is_no_description(folder: Path, content: str) -> None:
    (folder / "backup.json").write_text(content)
    with pytest.raises(StackRefused) as refusal:
        verified(folder, threading.Event())
    assert refusal.value.reason == "BACKUP_UNREADABLE"


async def test_only_the_owner_can_read_a_backup(tmp_path: Path) -> None:
    data, folder = books(tmp_path / "data"), tmp_path / "new" / "backup"
    told: list[str] = []
    backup = await taking.take(data, folder, ManualClock(), told.append)
    assert verified(folder, threading.Event()) == backup
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
    begin(tmp_path, Restore("/backups/last monday", "postgresql", "zoo:2181", "_before"))
    with pytest.raises(StackRefused) as refusal:
        refuse_unfinished(tmp_path)
    command = (
        f"countinghouse restore '/backups/last monday' --data {tmp_path} --database postgresql --zookeeper zoo:2181"
    )
    assert f"`{command}`" in refusal.value.message
    for content in ("rubbish", "[" * 20_000):
        (tmp_path / "restore.json").write_text(content)
        with pytest.raises(StackRefused, match=r"restore\.json cannot be read"):
            refuse_unfinished(tmp_path)
    assert not was_restored(tmp_path)
    finish(tmp_path)
    refuse_unfinished(tmp_path)
    assert was_restored(tmp_path)


def restored(copy: Path, data: Path) -> None:
    sqlite_copies.put_in_place(copy, data / "order.db", data / "aside", threading.Event())


@pytest.mark.parametrize("killed_after", ["nothing", "the log", "the database", "the end"])
def test_old_database_goes_aside_with_its_logs_also_if_it_takes_two_tries(tmp_path: Path, killed_after: str) -> None:
    """What was there before the first try is never written over, and stays together."""
    data, copy = tmp_path / "data", tmp_path / "copy"
    copy.write_text("from the backup")
    data.mkdir()
    old = {"order.db": "old", "order.db-wal": "old log", "order.db-journal": "old journal"}
    for name, content in old.items():
        (data / name).write_text(content)
    if killed_after != "nothing":
        (data / "aside").mkdir()
        (data / "order.db-wal").rename(data / "aside" / "order.db-wal")
    if killed_after in ("the database", "the end"):
        for name in ("order.db-journal", "order.db"):
            (data / name).rename(data / "aside" / name)
    if killed_after == "the end":
        (data / "order.db").write_text("from the backup")
    restored(copy, data)
    assert (data / "order.db").read_text() == "from the backup"
    assert {file.name: file.read_text() for file in (data / "aside").iterdir()} == old
    assert sorted(file.name for file in data.iterdir()) == ["aside", "order.db"]


def test_restore_that_fails_leaves_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft of the size of the books would keep a full disk full."""
    copy = tmp_path / "copy"
    copy.write_text("from the backup")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("services.devstack.backup.sqlite_copies.sync_directory", lambda _directory: None)
    monkeypatch.setattr("services.devstack.backup.sqlite_copies.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        restored(copy, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["aside", "copy"]


async def test_cancelled_copy_has_ended_when_its_caller_goes_on() -> None:
    """A thread that went on would write into the books of the next who holds the lock."""
    begun, ended = threading.Event(), threading.Event()

    def work(stop: threading.Event) -> None:
        begun.set()
        stop.wait(30)
        ended.set()
        go_on(stop)

    running = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(begun.wait, 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_restore_with_another_zookeeper_than_the_unfinished_one_is_refused(tmp_path: Path, folder: Path) -> None:
    """The generation would be raised in the wrong one."""
    data = tmp_path / "data"
    data.mkdir()
    backup = verified(folder, threading.Event())
    begun = Restore(str(folder), "sqlite", "zoo:2181", "_before_restore_1")
    begin(data, begun)
    with pytest.raises(StackRefused, match="--zookeeper zoo:2181"):
        restoring._begin(backup, folder, data, StackOptions(data, services=()), SystemClock())
    same = StackOptions(data, services=(), zookeeper="zoo:2181")
    assert restoring._begin(backup, folder, data, same, SystemClock()).suffix == begun.suffix


def test_restore_that_does_not_fit_on_the_disk_is_refused_before_anything_is_moved(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr("services.devstack.backup.restoring.shutil.disk_usage", lambda _path: usage)
    backup = verified(folder, threading.Event())
    with pytest.raises(StackRefused) as refusal:
        restoring._begin(backup, folder, tmp_path, StackOptions(tmp_path, services=()), SystemClock())
    assert refusal.value.reason == "DATA_FULL"
    refuse_unfinished(tmp_path)


@pytest.mark.parametrize("name", [".", "missing/..", "link"])
async def test_folder_that_is_there_is_refused_before_anything_is_copied(tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidArgument) as refusal:
        await taking.take(books(tmp_path / "data"), tmp_path / name, SystemClock(), quiet)
    assert refusal.value.reason == "BACKUP_EXISTS"
    assert sorted(os.listdir(tmp_path)) == ["data", "link"]


async def test_database_that_is_replaced_while_the_locks_are_taken_is_reported(tmp_path: Path) -> None:
    """By a restore that ran from its beginning to its end meanwhile: the copies would be of two moments."""
    data, other = books(tmp_path / "data"), books(tmp_path / "other")
    files = {data / f"{service}.db": tmp_path / f"{service}.copy" for service in BOOKS}

    def replaced() -> int:
        (other / "payment.db").rename(data / "payment.db")
        return 1

    with pytest.raises(Unavailable) as refusal:
        sqlite_copies.copy(files, threading.Event(), replaced, lambda _file: None)
    assert refusal.value.reason == "DATABASE_LOST"


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
