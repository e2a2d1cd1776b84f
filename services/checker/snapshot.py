"""What the three databases hold, read whole.

Each database is read in one transaction, and three transactions are not one: between them an order may be settled. So
`settled_snapshot` reads until nothing is under way and two readings are equal. Every change leaves a permanent trace (a
version, a journal, a row), so nothing changed between the end of the first and the beginning of the second: the
snapshot is of that moment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from services.kernel.clock import Clock
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.transaction import Transaction

#: One row, as a table has it.
Record = Mapping[str, Any]

_TABLES: dict[str, dict[str, str]] = {
    "order": {
        "orders": "SELECT * FROM orders ORDER BY order_id",
        "order_events": "SELECT * FROM order_events ORDER BY order_id, version",
        "order_requests": "SELECT * FROM requests ORDER BY caller, caller_role, method, key",
        "order_removals": "SELECT * FROM removals",
    },
    "payment": {
        "payments": "SELECT * FROM payments ORDER BY payment_id",
        "payment_events": "SELECT * FROM payment_events ORDER BY payment_id, version",
        "requests": "SELECT * FROM requests ORDER BY caller, caller_role, method, key",
        "removals": "SELECT * FROM removals",
        "outbox": "SELECT * FROM outbox ORDER BY payment_id, purpose",
    },
    "ledger": {
        "accounts": "SELECT * FROM accounts ORDER BY account_id",
        "journals": "SELECT * FROM journals ORDER BY sequence, journal_id",
        "postings": "SELECT * FROM postings ORDER BY journal_id, leg",
        "order_fences": "SELECT * FROM order_fences ORDER BY order_id",
        "refusals": "SELECT * FROM refusals ORDER BY business_key, attempt",
        "chain_head": "SELECT * FROM chain_head",
        "ledger_requests": "SELECT * FROM requests ORDER BY caller, caller_role, method, key",
    },
}

SERVICES = tuple(_TABLES)

#: The acquirer; it is read too if its database can be.
ACQUIRER = "acquirer"
_TABLES[ACQUIRER] = {
    "charges": "SELECT * FROM charges ORDER BY number",
    "acquirer_log": "SELECT * FROM log ORDER BY number",
}
_READ_EVERY_S = 0.1
#: How long one table may take to be read.
_STATEMENT_TIMEOUT_S = 60.0

#: States in which it is not known yet whether a payment's money has moved.
UNFINISHED = ("SUBMITTED", "UNKNOWN", "REVERSING")

#: Entries of the acquirer's log for requests without a decision of their own.
_NOTHING_DECIDED = ("RECEIVED", "REPEATED")

#: Columns of a payment about its questions to a silent acquirer.
_ASKING = ("asks", "ask_at_ms", "attention")

#: Columns of a payment and of an order about the last holder of the order's lock.
_FENCE = ("fence_generation", "fence_token")


def person(name: str, role: str) -> str:
    """Return a caller as it is in a key: a name alone does not tell a cashier from a customer."""
    return f"{name} ({role})" if role else name


def caller_of(row: Record, prefix: str = "") -> str:
    """Return the caller in a row, or with a prefix like `request_` one that a payment names.

    Rows of the first release have no role.
    """
    role = "caller_role" if not prefix else f"{prefix}role"
    return person(str(row[f"{prefix}caller"]), str(row.get(role, "")))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All rows of all three services.

    Args:
        charges: The acquirer's keys; None: its database was not read.
        acquirer_log: The acquirer's own log; None: its database was not read.
        requests: Of the payment service; the others' are `order_requests` and `ledger_requests`.
        removals: Until when old requests of the payment service were removed; `order_removals`: of the order service.
    """

    orders: tuple[Record, ...]
    order_events: tuple[Record, ...]
    payments: tuple[Record, ...]
    payment_events: tuple[Record, ...]
    requests: tuple[Record, ...]
    outbox: tuple[Record, ...]
    accounts: tuple[Record, ...]
    journals: tuple[Record, ...]
    postings: tuple[Record, ...]
    order_fences: tuple[Record, ...]
    charges: tuple[Record, ...] | None = None
    acquirer_log: tuple[Record, ...] | None = None
    refusals: tuple[Record, ...] = ()
    chain_head: tuple[Record, ...] = ()
    order_requests: tuple[Record, ...] = ()
    ledger_requests: tuple[Record, ...] = ()
    removals: tuple[Record, ...] = ()
    order_removals: tuple[Record, ...] = ()

    def unfinished(self) -> list[str]:
        """Return what is still under way, each in a few words."""
        return [
            *(described(row) for row in self.payments if row["state"] in (*UNFINISHED, "PARKED")),
            *(held(row) for row in self.orders if row["state"] == "PAYING"),
            *(
                f"{row['method']} {row['key']} of {caller_of(row)} is IN_PROGRESS"
                for row in self.requests
                if row["state"] == "IN_PROGRESS"
            ),
            *(
                f"the order service has not been notified to {row['purpose']} {row['order_id']}"
                for row in self.outbox
                if row["delivered_at_ms"] is None
            ),
        ]

    def as_moved(self) -> Snapshot:
        """Return the rows without what changes while nothing moves.

        That is the owner and lease of a request, and the count and fence of questions to a silent acquirer: each one
        locks the order anew. A real change under a fence leaves a version, a journal or a row.
        """
        kept = ("caller", "caller_role", "method", "key", "response")
        log = self.acquirer_log
        return replace(
            self,
            requests=tuple({name: row[name] for name in kept} for row in self.requests),
            orders=_without(_FENCE, self.orders),
            payments=_without((*_ASKING, *_FENCE), self.payments),
            order_fences=(),
            acquirer_log=None if log is None else tuple(row for row in log if row["word"] not in _NOTHING_DECIDED),
        )


def _without(columns: tuple[str, ...], rows: tuple[Record, ...]) -> tuple[Record, ...]:
    return tuple({name: row[name] for name in row if name not in columns} for row in rows)


def described(payment: Record) -> str:
    """Return a payment and its state in words."""
    return f"payment {payment['payment_id']} is {payment['state']}"


def held(order: Record) -> str:
    """Return an order that a payment holds in words."""
    return f"order {order['order_id']} is PAYING"


def was_parked(payment: Record) -> bool:
    """Return whether a clerk has parked this payment, whatever its state is since."""
    return bool(payment.get("parking_key"))


@dataclass(frozen=True, slots=True)
class Reading:
    """A snapshot, and whether it is of one moment.

    Args:
        at_rest: Whether nothing changed between this reading and the one before.
        at_ms: When this reading was done, in Unix milliseconds.
    """

    snapshot: Snapshot
    at_rest: bool
    at_ms: int


async def settled_snapshot(urls: Mapping[str, str], within_s: float, clock: Clock) -> Reading:
    """Read until nothing is under way and nothing changes any more, for `within_s` seconds at most.

    Args:
        urls: As `read_snapshot`.

    Raises:
        As `read_snapshot`.
    """
    until_s = clock.monotonic_s() + within_s
    before = await read_snapshot(urls)
    while True:
        snapshot = await read_snapshot(urls)
        at_rest = snapshot.as_moved() == before.as_moved()
        if (at_rest and not snapshot.unfinished()) or clock.monotonic_s() >= until_s:
            return Reading(snapshot, at_rest, clock.now_ms())
        before = snapshot
        await asyncio.sleep(_READ_EVERY_S)


async def read_snapshot(urls: Mapping[str, str]) -> Snapshot:
    """Read everything.

    Args:
        urls: SQLAlchemy URLs of the databases of `order`, `payment` and `ledger`, and of `acquirer` where there is one.

    Raises:
        DatabaseRefused: DATABASE_MISSING, DATABASE_FOREIGN: no such file, or not the database of that service.
        Unavailable, DatabaseRefused: As `Database.read`.
    """
    for service, url in urls.items():
        _check_present(service, url)
    # To the end of all of them, so that none is left open behind a refusal.
    wanted = (*SERVICES, *({ACQUIRER} & urls.keys()))
    parts = await asyncio.gather(*(_read(service, urls[service]) for service in wanted), return_exceptions=True)
    tables: dict[str, tuple[Record, ...]] = {}
    for part in parts:
        if isinstance(part, BaseException):
            raise part
        tables |= part
    return Snapshot(**tables)


def _check_present(service: str, url: str) -> None:
    """Refuse a missing file, which SQLite would create."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise DatabaseRefused("DATABASE_MISSING", f"there is no {service} database {parsed.database}")


async def _read(service: str, url: str) -> dict[str, tuple[Record, ...]]:
    async def step(tx: Transaction) -> dict[str, tuple[Record, ...]]:
        return {
            table: tuple(dict(row) for row in (await tx.execute(text(query))).mappings())
            for table, query in _TABLES[service].items()
        }

    async with Database(url, pool=1, statement_timeout_s=_STATEMENT_TIMEOUT_S) as database:
        try:
            return await database.read(step)
        except DBAPIError as error:
            raise DatabaseRefused(
                "DATABASE_FOREIGN", f"{database.name} is not the database of the {service} service: {error.orig}"
            ) from error
