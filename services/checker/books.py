"""What the three databases hold, read whole: the checker's evidence.

Each database is read on one snapshot of its own. The three are not one snapshot, so the checker reads when nothing
is being settled, or counts what is still under way as such (`Books.unfinished`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database

#: One row, as a table has it.
Record = Mapping[str, Any]

_TABLES: dict[str, dict[str, str]] = {
    "order": {
        "orders": "SELECT * FROM orders ORDER BY order_id",
        "order_events": "SELECT * FROM order_events ORDER BY order_id, version",
    },
    "payment": {
        "payments": "SELECT * FROM payments ORDER BY payment_id",
        "payment_events": "SELECT * FROM payment_events ORDER BY payment_id, version",
        "requests": "SELECT * FROM requests ORDER BY caller, method, key",
        "outbox": "SELECT * FROM outbox ORDER BY payment_id, purpose",
    },
    "ledger": {
        "accounts": "SELECT * FROM accounts ORDER BY account_id",
        "journals": "SELECT * FROM journals ORDER BY sequence, journal_id",
        "postings": "SELECT * FROM postings ORDER BY journal_id, leg",
        "order_fences": "SELECT * FROM order_fences ORDER BY order_id",
    },
}

#: States in which a payment has not come to its end.
UNFINISHED = ("SUBMITTED", "UNKNOWN", "REVERSING")


@dataclass(frozen=True, slots=True)
class Books:
    """All rows of all three services."""

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

    def unfinished(self) -> list[str]:
        """What is still under way, each in a few words."""
        return [
            *(f"payment {row['payment_id']} is {row['state']}" for row in self.payments if row["state"] in UNFINISHED),
            *(f"order {row['order_id']} is PAYING" for row in self.orders if row["state"] == "PAYING"),
            *(
                f"{row['method']} {row['key']} of {row['caller']} is IN_PROGRESS"
                for row in self.requests
                if row["state"] == "IN_PROGRESS"
            ),
            *(
                f"the order service has not been told to {row['purpose']} {row['order_id']}"
                for row in self.outbox
                if row["delivered_at_ms"] is None
            ),
        ]


async def read_books(urls: Mapping[str, str]) -> Books:
    """Reads everything.

    Args:
        urls: SQLAlchemy URLs of the databases of `order`, `payment` and `ledger`.

    Raises:
        Unavailable, DatabaseRefused: As `Database.read`.
    """
    parts = await asyncio.gather(*(_read(urls[service], queries) for service, queries in _TABLES.items()))
    return Books(**{table: rows for part in parts for table, rows in part.items()})


async def _read(url: str, queries: Mapping[str, str]) -> dict[str, tuple[Record, ...]]:
    async def step(connection: AsyncConnection) -> dict[str, tuple[Record, ...]]:
        return {
            table: tuple(dict(row) for row in (await connection.execute(text(query))).mappings())
            for table, query in queries.items()
        }

    async with Database(url, pool=1) as database:
        return await database.read(step)
