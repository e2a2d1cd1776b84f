"""An SQLite file that is removed or replaced while it is open: no write is acknowledged that nobody can read."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text

import services.order
from services.kernel.errors import OutcomeUnknown, Unavailable
from services.order.schema import ENSEMBLE
from services.runtime.database.database import Database, DatabaseRefused, read_generation, write_generation
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.sqlite import SqliteBackend, log_of, made_note
from services.runtime.database.transaction import Transaction

PACKAGE = Path(services.order.__file__).parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "order.db"


@pytest.fixture
async def database(file: Path) -> AsyncIterator[Database]:
    async with Database(f"sqlite:///{file}") as database:
        await bring_up_to_date(database, PACKAGE, migrate=True)
        await write_generation(database, ENSEMBLE, 3)
        yield database


def list_files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def refused(database: Database) -> list[str]:
    """The reasons with which a write and a read are refused."""
    reasons = []
    for work in (write_generation(database, ENSEMBLE, 4), database.ping()):
        with pytest.raises(Unavailable) as refusal:
            await work
        reasons.append(refusal.value.reason)
        assert "nothing was done" in refusal.value.message
        assert refusal.value.retry_after_ms
    return reasons


async def test_removed_file_refuses_steps_and_is_not_made_anew(database: Database, file: Path) -> None:
    os.unlink(file)
    assert await refused(database) == ["DATABASE_LOST"] * 2
    assert file not in list_files(file.parent)


async def test_file_moved_back_is_used_without_a_restart(database: Database, file: Path) -> None:
    away = file.with_name("away.db")
    os.rename(file, away)
    assert await refused(database) == ["DATABASE_LOST"] * 2
    os.rename(away, file)
    await write_generation(database, ENSEMBLE, 5)
    assert await read_generation(database, ENSEMBLE) == 5


async def test_file_replaced_by_a_copy_refuses_steps(database: Database, file: Path) -> None:
    """The connections that are open would write to the old one."""
    copy = file.with_name("copy.db")
    shutil.copy(file, copy)
    copy.replace(file)
    assert await refused(database) == ["DATABASE_LOST"] * 2


async def test_removed_log_refuses_steps(database: Database, file: Path) -> None:
    """What was committed and not yet copied into the file is in the log only."""
    log_of(file).unlink()
    assert await refused(database) == ["DATABASE_LOST"] * 2


async def test_log_that_sqlite_removes_itself_is_not_missed(database: Database, file: Path) -> None:
    """It does with the last connection; the next one makes another."""
    backend = database._backend
    assert isinstance(backend, SqliteBackend)
    backend.sync_engine.pool.dispose()
    assert not log_of(file).exists()
    await write_generation(database, ENSEMBLE, 4)
    assert await read_generation(database, ENSEMBLE) == 4


async def test_database_in_memory_leaves_no_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with Database("sqlite:///:memory:") as database:
        assert database.file is None
    assert list_files(tmp_path) == []


def test_notes_of_databases_in_one_folder_are_apart(tmp_path: Path) -> None:
    names = ("order.db", "order", "house.order", "house.payment", "order.sqlite")
    assert len({made_note(tmp_path / name) for name in names}) == len(names)
    assert made_note(tmp_path / "order.db").name == "order.db.made"


async def test_file_removed_within_a_step_leaves_its_outcome_unknown(database: Database, file: Path) -> None:
    async def step(tx: Transaction) -> None:
        await tx.execute(text("UPDATE ensemble SET generation = 4"))
        os.unlink(file)

    with pytest.raises(OutcomeUnknown):
        await database.run(step)


@pytest.mark.parametrize("empty", [False, True], ids=["missing", "empty"])
async def test_start_without_the_file_that_was_made_is_refused_with_the_remedies(
    database: Database, file: Path, empty: bool
) -> None:
    """Until the file is back, or somebody says that an empty one is meant."""
    await database.close()
    kept = file.with_name("kept.db")
    os.rename(file, kept)
    if empty:
        shutil.copy(os.devnull, file)
    async with Database(f"sqlite:///{file}") as started:
        with pytest.raises(DatabaseRefused) as refusal:
            await bring_up_to_date(started, PACKAGE, migrate=True)
    assert refusal.value.reason == "DATABASE_LOST"
    assert str(made_note(file)) in refusal.value.message
    kept.replace(file)
    async with Database(f"sqlite:///{file}") as started:
        await bring_up_to_date(started, PACKAGE, migrate=True)
        assert await read_generation(started, ENSEMBLE) == 3
    for each in (file, made_note(file)):
        each.unlink()
    async with Database(f"sqlite:///{file}") as started:
        await bring_up_to_date(started, PACKAGE, migrate=True)
        assert await read_generation(started, ENSEMBLE) == 0


async def test_database_of_an_earlier_release_is_noted_at_its_next_start(database: Database, file: Path) -> None:
    made_note(file).unlink()
    await bring_up_to_date(database, PACKAGE, migrate=True)
    assert made_note(file).exists()
