"""Reading the books: the same from SQLite as from PostgreSQL, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.checker.books import SERVICES, Books, Record, read_books, settled_books
from services.checker.checks import run_checks
from services.checker.verdict import Verdict, verdict_of
from services.kernel.clock import SystemClock
from services.runtime.database.database import Database, DatabaseRefused
from tests.unit.checker import archive
from tests.unit.checker.scribe import Scribe, with_cards

NewUrl = Callable[[], Awaitable[str]]


@pytest.fixture
async def urls(new_database_url: NewUrl) -> dict[str, str]:
    """Three databases, each of one service, with nothing in them."""
    found = {service: await new_database_url() for service in SERVICES}
    for service, url in found.items():
        await archive.make(url, service)
    return found


@pytest.fixture
async def scribe(urls: dict[str, str]) -> Scribe:
    """Whose rows are in them."""
    written = with_cards()
    written.seal()
    await archive.write(urls, written)
    return written


def as_written(books: Books, scribe: Scribe) -> dict[str, set[tuple[tuple[str, object], ...]]]:
    """The rows of each table, with the columns that the scribe writes, in no order."""
    written = scribe.books()
    found = {}
    for table in fields(Books):
        names = sorted(getattr(written, table.name)[0]) if getattr(written, table.name) else []
        found[table.name] = {tuple((name, _plain(row[name])) for name in names) for row in rows_of(books, table.name)}
    return found


def rows_of(books: Books, table: str) -> tuple[Record, ...]:
    """A table's rows; none of the acquirer's, which is not written here."""
    return getattr(books, table) or ()


def _plain(value: object) -> object:
    return bytes(value) if isinstance(value, memoryview) else value


async def test_every_row_is_read_as_it_was_written(urls: dict[str, str], scribe: Scribe) -> None:
    books = await read_books(urls)
    assert as_written(books, scribe) == as_written(scribe.books(), scribe)
    assert all(len(rows_of(books, table.name)) == len(rows_of(scribe.books(), table.name)) for table in fields(Books))


async def test_a_lawful_evening_is_ok_wherever_it_is_kept(urls: dict[str, str], scribe: Scribe) -> None:
    """Also with what callers and the acquirer know."""
    reading = await settled_books(urls, 5, SystemClock())
    assert reading.at_rest
    assert abs(reading.at_ms - SystemClock().now_ms()) < 60_000
    checks = run_checks(
        reading.books, scribe.answers, history=scribe.history(), acquirer=scribe.acquirer_log(), now_ms=reading.at_ms
    )
    assert [(check.name, check.violations) for check in checks if check.violations] == []
    assert verdict_of(checks) is Verdict.OK


async def test_journals_come_in_the_order_of_their_chain(urls: dict[str, str], scribe: Scribe) -> None:
    """And events in that of their versions, for checks go through them one after the other."""
    books = await read_books(urls)
    assert [row["sequence"] for row in books.journals] == list(range(1, len(scribe.journals) + 1))
    versions = [row["version"] for row in books.order_events if row["order_id"] == "reversed"]
    assert versions == sorted(versions)


async def test_nothing_can_be_written_while_it_is_read(urls: dict[str, str], scribe: Scribe) -> None:
    """The transaction of a reading is one that only reads, where the database knows such a thing."""

    async def step(connection: AsyncConnection) -> None:
        await connection.execute(text("DELETE FROM outbox"))

    async with Database(urls["payment"]) as database:
        if database.is_sqlite:
            pytest.skip("SQLite has no transaction that only reads")
        with pytest.raises(Exception, match="read-only"):
            await database.read(step)
    assert len((await read_books(urls)).outbox) == len(scribe.outbox)


async def test_another_services_database_is_refused(urls: dict[str, str]) -> None:
    """With the service that it is not of, and without its password."""
    with pytest.raises(DatabaseRefused, match="not the database of the order service") as refused:
        await read_books({**urls, "order": urls["ledger"]})
    assert refused.value.reason == "DATABASE_FOREIGN"
