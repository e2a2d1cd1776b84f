"""Reading the three databases: when they are those of one moment, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, table, text

from services.checker import snapshot as module
from services.checker.acquirer_log import log_of_rows
from services.checker.snapshot import ACQUIRER, SERVICES, Snapshot, caller_of, read_snapshot, settled_snapshot
from services.kernel.clock import SystemClock
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.transaction import Transaction
from tests.fakes.clock import ManualClock
from tests.unit.checker import archive
from tests.unit.checker.cases import payment
from tests.unit.checker.dataset import DatasetBuilder, legal, with_cards

Urls = Mapping[str, str]
#: Sets what is read, one after the other; returns what has been.
Reads = Callable[[list[Snapshot]], list[Snapshot]]


@pytest.fixture
async def urls(tmp_path: Path) -> Urls:
    """Empty databases, as the services and the acquirer make them."""
    found = {service: f"sqlite:///{tmp_path / service}.db" for service in (*SERVICES, ACQUIRER)}
    for service, url in found.items():
        await archive.make(url, service)
    return found


async def test_tables_are_those_that_the_services_make(urls: Urls) -> None:
    """The checker knows them by name only; here the names are held against the migrations."""
    snapshot = await read_snapshot(urls)
    assert snapshot.payments == snapshot.orders == snapshot.journals == snapshot.charges == snapshot.acquirer_log == ()
    without = await read_snapshot({service: urls[service] for service in SERVICES})
    assert (without.charges, without.acquirer_log) == (None, None)


async def test_columns_are_those_that_the_checks_read(urls: Urls) -> None:
    """The rows of the dataset, on which every check is tested, have no column that a real row has not."""
    dataset = legal()
    tables = {
        "order": ("orders", "order_events"),
        "payment": ("payments", "payment_events", "requests", "outbox"),
        "ledger": ("accounts", "journals", "postings"),
    }
    for service, names in tables.items():
        async with Database(urls[service]) as database:
            for name in names:
                with database.sync_engine.connect() as connection:
                    real = connection.execute(select(text("*")).select_from(table(name))).keys()
                assert set(getattr(dataset, name)[0]) <= set(real), name


async def test_removals_of_old_requests_are_read(urls: Urls) -> None:
    """Of the order and the payment service; by them the checks excuse a request that is gone."""
    for service, before_ms in (("order", 7), ("payment", 8)):

        async def note(tx: Transaction, before_ms: int = before_ms) -> None:
            await tx.execute(text("UPDATE removals SET before_ms = :at"), {"at": before_ms})
            if not (await tx.execute(text("SELECT 1 FROM removals"))).first():
                await tx.execute(text("INSERT INTO removals (id, before_ms) VALUES (1, :at)"), {"at": before_ms})

        async with Database(urls[service]) as database:
            await database.run(note)
    snapshot = await read_snapshot(urls)
    assert [row["before_ms"] for row in snapshot.order_removals] == [7]
    assert [row["before_ms"] for row in snapshot.removals] == [8]


def test_caller_of_a_row_of_the_first_release_has_no_role() -> None:
    assert caller_of({"caller": "li"}) == "li"
    assert caller_of({"caller": "li", "caller_role": "cashier"}) == "li (cashier)"
    assert caller_of({"request_caller": "li", "request_role": "customer"}, "request_") == "li (customer)"


async def test_every_row_of_every_table_is_read(urls: Urls) -> None:
    """As it was written, with all its columns; journals and events in their order."""
    dataset = with_cards()
    dataset.refusals.append(
        {
            "business_key": "settle:plain:1",
            "attempt": "pay_99",
            "order_id": "plain",
            "payment_id": "pay_99",
            "error": "{}",
            "refused_at_ms": 1,
        }
    )
    await archive.write(urls, dataset)
    snapshot, written = await read_snapshot(urls), dataset.snapshot()
    for name in {part.name for part in fields(Snapshot)} - {"charges", "acquirer_log"}:  # the acquirer's
        rows = getattr(written, name)
        read = [{column: row[column] for column in rows[0]} for row in getattr(snapshot, name)]
        assert sorted(read, key=repr) == sorted(rows, key=repr), name
    assert [row["sequence"] for row in snapshot.journals] == list(range(1, len(dataset.journals) + 1))


async def test_log_in_the_acquirers_database_equals_its_service_log(urls: Urls) -> None:
    """Every entry, in the order in which it was written."""
    dataset = with_cards()
    await archive.write_log(urls[ACQUIRER], dataset.acquirer_log()[::-1])
    rows = (await read_snapshot(urls)).acquirer_log
    assert rows is not None
    assert log_of_rows(rows) == dataset.acquirer_log()


def test_books_move_by_a_decision_of_the_acquirer_and_not_by_a_query() -> None:
    """A silent acquirer is asked again and again, and nothing changes by that."""
    dataset = with_cards()
    asked = replace(dataset.snapshot(), acquirer_log=({"word": "RECEIVED"}, {"word": "CHARGED"}))
    again = replace(asked, acquirer_log=(*(asked.acquirer_log or ()), {"word": "RECEIVED"}, {"word": "REPEATED"}))
    decided = replace(asked, acquirer_log=(*(asked.acquirer_log or ()), {"word": "REFUNDED"}))
    assert asked.as_moved() == again.as_moved() != decided.as_moved()
    assert dataset.snapshot().as_moved().acquirer_log is None
    before = dataset.snapshot().as_moved()
    payment(dataset, "settle-plain-1").update(asks=3, ask_at_ms=9, attention="ACQUIRER_SILENT")
    assert dataset.snapshot().as_moved() == before
    payment(dataset, "settle-plain-1").update(state="UNKNOWN")
    assert dataset.snapshot().as_moved() != before


def test_books_do_not_move_by_a_fence_alone() -> None:
    """Whoever asks a silent acquirer locks the order anew, and the ledger may see that fence for the first time."""
    dataset = with_cards()
    before = dataset.snapshot().as_moved()
    payment(dataset, "settle-plain-1").update(fence_generation=2, fence_token=999)
    dataset.order("plain").update(fence_generation=2, fence_token=999)
    dataset.see_fence("plain", 999)
    dataset.see_fence("open", 1_001)
    assert dataset.snapshot().as_moved() == before


@pytest.mark.parametrize("column", ["state", "version", "payment_id", "round"])
def test_books_move_by_a_change_of_an_order(column: str) -> None:
    dataset = legal()
    before = dataset.snapshot().as_moved()
    dataset.order("plain")[column] = "another"
    assert dataset.snapshot().as_moved() != before


@pytest.mark.parametrize("column", ["state", "version", "journal_id", "reversal_key"])
def test_books_move_by_a_change_of_a_payment(column: str) -> None:
    dataset = legal()
    before = dataset.snapshot().as_moved()
    payment(dataset, "settle-plain-1")[column] = "another"
    assert dataset.snapshot().as_moved() != before


@pytest.mark.parametrize("service", SERVICES)
async def test_missing_file_is_named_and_not_made(urls: Urls, service: str, tmp_path: Path) -> None:
    """SQLite would make it, and the checker would find that nothing is wrong in it."""
    elsewhere = tmp_path / "elsewhere" / "x.db"
    with pytest.raises(DatabaseRefused, match=f"no {service} database") as refused:
        await read_snapshot({**urls, service: f"sqlite:///{elsewhere}"})
    assert refused.value.reason == "DATABASE_MISSING"
    assert not elsewhere.parent.exists()


async def test_another_services_database_is_refused(urls: Urls) -> None:
    """With the service that it is not of."""
    with pytest.raises(DatabaseRefused, match="not the database of the order service") as refused:
        await read_snapshot({**urls, "order": urls["ledger"]})
    assert refused.value.reason == "DATABASE_FOREIGN"


async def test_no_database_is_left_open_behind_a_refusal(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told that one cannot be read may remove the others."""
    ended: list[str] = []
    read = module._read

    async def slowly(service: str, url: str) -> dict[str, tuple[Mapping[str, Any], ...]]:
        if service == "ledger":
            await asyncio.sleep(0.05)
        found = await read(service, url)
        ended.append(service)
        return found

    monkeypatch.setattr(module, "_read", slowly)
    with pytest.raises(DatabaseRefused):
        await read_snapshot({**urls, "order": urls["payment"]})
    assert set(ended) == {"payment", "ledger", "acquirer"}


class TestSettledSnapshot:
    """Two readings that agree, with nothing under way, are one snapshot of three databases."""

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> Reads:
        """What is read, one after the other; the last one for ever."""

        def prepare(snapshot: list[Snapshot]) -> list[Snapshot]:
            seen: list[Snapshot] = []

            async def read(_urls: Urls) -> Snapshot:
                seen.append(snapshot[min(len(seen), len(snapshot) - 1)])
                return seen[-1]

            monkeypatch.setattr(module, "read_snapshot", read)
            monkeypatch.setattr(module, "_READ_EVERY_S", 0.001)
            return seen

        return prepare

    async def test_quiet_books_are_read_twice(self, reads: Reads) -> None:
        seen = reads([legal().snapshot()])
        reading = await settled_snapshot({}, 10, SystemClock())
        assert reading.at_rest
        assert len(seen) == 2

    async def test_changing_books_are_read_until_they_are_at_rest(self, reads: Reads) -> None:
        """An order that is settled between two readings is never half of one and half of the other."""
        before, after = DatasetBuilder(), DatasetBuilder()
        for dataset in (before, after):
            dataset.new_order("b")
        after.settle("b")
        torn = replace(before.snapshot(), journals=after.snapshot().journals, postings=after.snapshot().postings)
        seen = reads([before.snapshot(), torn, after.snapshot()])
        reading = await settled_snapshot({}, 10, SystemClock())
        assert reading.at_rest
        assert reading.snapshot == after.snapshot()
        assert len(seen) == 4

    async def test_reading_yields_to_other_tasks(self, reads: Reads, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []

        async def pause(seconds: float) -> None:
            pauses.append(seconds)

        before, after = DatasetBuilder(), DatasetBuilder()
        after.new_order("b")
        reads([before.snapshot(), after.snapshot()])
        monkeypatch.setattr("services.checker.snapshot.asyncio.sleep", pause)
        reading = await settled_snapshot({}, 10, SystemClock())
        assert (pauses, reading.at_rest) == ([module._READ_EVERY_S], True)
        assert abs(reading.at_ms - SystemClock().now_ms()) < 10_000

    async def test_unfinished_work_is_waited_for(self, reads: Reads) -> None:
        """Also if it stands still for a while: a lease has to pass before others carry on."""
        left, done = legal(), legal()
        left.request_of("li", "Pay", "ticket-unused")["state"] = "IN_PROGRESS"
        reads([left.snapshot()] * 5 + [done.snapshot()])
        reading = await settled_snapshot({}, 10, SystemClock())
        assert reading.at_rest
        assert reading.snapshot.unfinished() == []

    async def test_work_that_never_ends_is_returned_as_it_is(self, reads: Reads) -> None:
        """A payment that nobody finishes is at rest, however often somebody takes its lease anew."""
        first, second = legal(), legal()
        for dataset, lease_ms in ((first, 1), (second, 2)):
            dataset.request_of("li", "Pay", "ticket-unused").update(state="IN_PROGRESS", lease_until_ms=lease_ms)
        reads([first.snapshot(), second.snapshot()])
        reading = await settled_snapshot({}, 0, ManualClock())
        assert reading.at_rest
        assert reading.snapshot.unfinished() == ["Pay ticket-unused of li (cashier) is IN_PROGRESS"]

    async def test_books_are_at_rest_while_a_silent_acquirer_is_asked(self, reads: Reads) -> None:
        """Each question has a new fence; what is returned has the newest."""
        first, second = legal(), legal()
        second.order("plain")["fence_token"] += 2
        payment(second, "settle-plain-1")["fence_token"] += 2
        second.see_fence("plain", second.order("plain")["fence_token"])
        reads([first.snapshot(), second.snapshot()])
        reading = await settled_snapshot({}, 0, ManualClock())
        assert reading.at_rest
        assert reading.snapshot == second.snapshot()

    async def test_books_that_never_rest_are_reported(self, reads: Reads) -> None:
        before, after = DatasetBuilder(), DatasetBuilder()
        after.new_order("b")
        reads([before.snapshot(), after.snapshot()])
        assert not (await settled_snapshot({}, 0, ManualClock())).at_rest
