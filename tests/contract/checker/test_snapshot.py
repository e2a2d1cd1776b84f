"""Reading the books: the same from SQLite as from PostgreSQL, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields

import pytest
from sqlalchemy import text

from services.checker.findings import Verdict, verdict_of
from services.checker.registry import run_checks
from services.checker.snapshot import SERVICES, Record, Snapshot, read_snapshot, settled_snapshot
from services.kernel.clock import SystemClock
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.transaction import Transaction
from tests.unit.checker import archive
from tests.unit.checker.dataset import DatasetBuilder, with_cards

NewUrl = Callable[[], Awaitable[str]]


@pytest.fixture
async def urls(new_database_url: NewUrl) -> dict[str, str]:
    """Three databases, each of one service, with nothing in them."""
    found = {service: await new_database_url() for service in SERVICES}
    for service, url in found.items():
        await archive.make(url, service)
    return found


@pytest.fixture
async def dataset(urls: dict[str, str]) -> DatasetBuilder:
    """Whose rows are in them."""
    written = with_cards()
    written.seal()
    await archive.write(urls, written)
    return written


def as_written(snapshot: Snapshot, dataset: DatasetBuilder) -> dict[str, set[tuple[tuple[str, object], ...]]]:
    """The rows of each table, with the columns that the dataset has, in no order."""
    written = dataset.snapshot()
    found = {}
    for table in fields(Snapshot):
        names = sorted(getattr(written, table.name)[0]) if getattr(written, table.name) else []
        found[table.name] = {
            tuple((name, _plain(row[name])) for name in names) for row in rows_of(snapshot, table.name)
        }
    return found


def rows_of(snapshot: Snapshot, table: str) -> tuple[Record, ...]:
    """A table's rows; none of the acquirer's, which is not written here."""
    return getattr(snapshot, table) or ()


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


async def test_every_row_is_read_as_it_was_written(urls: dict[str, str], dataset: DatasetBuilder) -> None:
    snapshot = await read_snapshot(urls)
    assert as_written(snapshot, dataset) == as_written(dataset.snapshot(), dataset)
    assert all(
        len(rows_of(snapshot, table.name)) == len(rows_of(dataset.snapshot(), table.name)) for table in fields(Snapshot)
    )


async def test_legal_dataset_is_ok_on_both_databases(urls: dict[str, str], dataset: DatasetBuilder) -> None:
    """Also with what callers and the acquirer know."""
    reading = await settled_snapshot(urls, 5, SystemClock())
    assert reading.at_rest
    assert abs(reading.at_ms - SystemClock().now_ms()) < 60_000
    checks = run_checks(
        reading.snapshot,
        dataset.answers,
        history=dataset.history(),
        acquirer=dataset.acquirer_log(),
        now_ms=reading.at_ms,
    )
    assert [(check.name, check.violations) for check in checks if check.violations] == []
    assert verdict_of(checks) is Verdict.OK


async def test_journals_come_in_the_order_of_their_chain(urls: dict[str, str], dataset: DatasetBuilder) -> None:
    """And events in that of their versions, for checks go through them one after the other."""
    snapshot = await read_snapshot(urls)
    assert [row["sequence"] for row in snapshot.journals] == list(range(1, len(dataset.journals) + 1))
    versions = [row["version"] for row in snapshot.order_events if row["order_id"] == "reversed"]
    assert versions == sorted(versions)


async def test_nothing_can_be_written_while_it_is_read(urls: dict[str, str], dataset: DatasetBuilder) -> None:
    """The transaction of a reading is one that only reads, where the database knows such a thing."""

    async def step(connection: Transaction) -> None:
        await connection.execute(text("DELETE FROM outbox"))

    async with Database(urls["payment"]) as database:
        if database.is_sqlite:
            pytest.skip("SQLite has no transaction that only reads")
        with pytest.raises(Exception, match="read-only"):
            await database.read(step)
    assert len((await read_snapshot(urls)).outbox) == len(dataset.outbox)


async def test_another_services_database_is_refused(urls: dict[str, str]) -> None:
    """With the service that it is not of, and without its password."""
    with pytest.raises(DatabaseRefused, match="not the database of the order service") as refused:
        await read_snapshot({**urls, "order": urls["ledger"]})
    assert refused.value.reason == "DATABASE_FOREIGN"
