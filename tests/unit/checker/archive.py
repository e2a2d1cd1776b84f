"""Puts a dataset where the checker reads it: real databases, made by the services' own migrations, and files."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import column, delete, insert, table

import services
from services.checker.acquirer_log import KINDS, AcquirerLog
from services.checker.history import HistoryWriter, Invoked, RecordedCall
from services.checker.snapshot import ACQUIRER, SERVICES
from services.devstack.files import database_url
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction
from tests.fakes.clock import ManualClock
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.rows import Row

#: Each service's tables, in the order in which they refer to each other, and where the builder keeps their rows.
_TABLES = {
    "order": {"orders": "orders", "order_events": "order_events", "requests": "order_requests"},
    "payment": {name: name for name in ("payments", "payment_events", "requests", "outbox")},
    "ledger": {
        **{name: name for name in ("accounts", "journals", "postings", "order_fences", "refusals", "chain_head")},
        "requests": "ledger_requests",
    },
}


async def make(url: str, service: str) -> None:
    async with Database(url) as database:
        await bring_up_to_date(database, Path(str(services.__file__)).parent / service, migrate=True)


async def write(urls: Mapping[str, str], dataset: DatasetBuilder) -> None:
    for service, names in _TABLES.items():
        async with Database(urls[service], statement_timeout_s=60) as database:
            await database.run(_filling({name: getattr(dataset, kept) for name, kept in names.items()}))


async def archive(data: Path, dataset: DatasetBuilder) -> dict[str, str]:
    """A stack's data directory with these books; the databases' URLs."""
    urls = {service: database_url(data, service) for service in SERVICES}
    for service, url in urls.items():
        await make(url, service)
    await write(urls, dataset)
    return urls


async def archive_acquirer(data: Path, dataset: DatasetBuilder) -> str:
    """The acquirer's database in a stack's data directory, with its log and no keys; its URL."""
    url = database_url(data, ACQUIRER)
    await make(url, ACQUIRER)
    await write_log(url, dataset.acquirer_log())
    return url


async def write_log(url: str, records: AcquirerLog) -> None:
    methods = {kind: method for method, kind in KINDS.items()}
    rows: list[Row] = [
        {
            "number": entry.sequence,
            "at_ms": 1,
            "method": methods[entry.kind],
            "caller": "payment",
            "key": entry.key,
            "word": entry.decision,
            "card": "tok-mei",
            "amount_minor": entry.amount_minor,
            "currency": entry.currency,
            "reference": entry.payment_id,
        }
        for entry in records
    ]
    async with Database(url) as database:
        await database.run(_filling({"log": rows}))


def record(path: Path, calls: Iterable[RecordedCall]) -> None:
    """Writes calls down as their recorder would have while they happened."""
    events = [(call.invoked_ns, False, call.op, call) for call in calls]
    events += [(call.answered_ns, True, call.op, call) for *_, call in list(events) if call.answered_ns is not None]
    clock = _Stopped()
    invoked: dict[int, Invoked] = {}
    with HistoryWriter(path, clock, seed=7) as writer:
        for at_ns, is_answer, op, call in sorted(events, key=lambda event: event[:3]):
            clock.at_s = at_ns / 1e9
            if is_answer:
                writer.complete(invoked[op], call.answer, call.outcome)
            else:
                invoked[op] = writer.invoke(call.process, call.kind, call.arguments)


def log(path: Path, records: AcquirerLog) -> None:
    path.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in records))


class _Stopped(ManualClock):
    """A clock that is set to the moments of a history."""

    at_s = 0.0

    def monotonic_s(self) -> float:
        return self.at_s


def _filling(rows_of: Mapping[str, list[Row]]) -> Callable[[Transaction], Coroutine[Any, Any, None]]:
    async def step(tx: Transaction) -> None:
        for name, rows in rows_of.items():
            if name == "chain_head":
                await tx.execute(delete(table(name)))
            if rows:
                await tx.execute_each(insert(table(name, *map(column, rows[0]))), rows)

    return step
