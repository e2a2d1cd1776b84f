"""The steps of a settle on PostgreSQL, for the peers whose steps are recorded by a server of its own.

    claim: OPEN → PAYING by the payment ▸ post: two postings, two balances ▸ complete: PAYING → PAID

Each step is one transaction, and may be run again: such a server knows that a step is done only after its commit.
"""

from __future__ import annotations

import time
from typing import Any

import asyncpg

from tests.bench.peers.serving import DRAWER, SALES, Refused

#: As many connections as the peer `dbos` has.
_POOL = 16

#: A payment id is a request id, and unique: one request cannot claim two orders.
_CLAIM = """
    UPDATE orders SET state = 'PAYING', payment_id = $2
    WHERE order_id = $1 AND state = 'OPEN'
    RETURNING amount_minor
"""
_SELECT_ORDER = "SELECT payment_id, amount_minor FROM orders WHERE order_id = $1"
_RELEASE = """
    UPDATE orders SET state = 'OPEN', payment_id = NULL WHERE order_id = $1 AND payment_id = $2 AND state = 'PAYING'
"""
_INSERT_POSTINGS = f"""
    INSERT INTO postings (payment_id, account_id, order_id, amount)
    VALUES ($1, '{DRAWER}', $2, $3), ($1, '{SALES}', $2, -$3::bigint)
    ON CONFLICT DO NOTHING RETURNING 1
"""  # noqa: S608  constants
_ADD_TO_DRAWER = f"UPDATE accounts SET balance = balance + $1 WHERE account_id = '{DRAWER}'"  # noqa: S608  a constant
_ADD_TO_SALES = f"UPDATE accounts SET balance = balance - $1 WHERE account_id = '{SALES}'"  # noqa: S608  a constant
_COMPLETE = "UPDATE orders SET state = 'PAID', paid_at_ms = $3 WHERE order_id = $1 AND payment_id = $2"


class Books:
    """The order book, the postings and the balances on a pool of connections."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def claim(self, order_id: str, payment_id: str) -> int:
        """Claim the order for the payment; return its amount.

        Raises:
            Refused: NOT_FOUND; ALREADY_EXISTS: it is another payment's; INVALID_ARGUMENT: the payment has an order.
        """
        try:
            amount_minor = await self._pool.fetchval(_CLAIM, order_id, payment_id)
        except asyncpg.UniqueViolationError:
            raise Refused("INVALID_ARGUMENT", "this request_id was used for another order") from None
        if amount_minor is not None:
            return int(amount_minor)
        found = await self._pool.fetchrow(_SELECT_ORDER, order_id)
        if found is None:
            raise Refused("NOT_FOUND", "there is no such order")
        if found["payment_id"] != payment_id:
            raise Refused("ALREADY_EXISTS", f"the order is paid by {found['payment_id']}")
        return int(found["amount_minor"])

    async def release(self, order_id: str, payment_id: str) -> None:
        """Undo the claim."""
        await self._pool.execute(_RELEASE, order_id, payment_id)

    async def post(self, order_id: str, payment_id: str, amount_minor: int) -> None:
        """Write the postings and add to the balances, always in one order, so that no two settles deadlock."""
        async with self._pool.acquire() as connection, connection.transaction():
            if await connection.fetchval(_INSERT_POSTINGS, payment_id, order_id, amount_minor):
                await connection.execute(_ADD_TO_DRAWER, amount_minor)
                await connection.execute(_ADD_TO_SALES, amount_minor)

    async def complete(self, order_id: str, payment_id: str) -> None:
        """Set the order to PAID."""
        await self._pool.execute(_COMPLETE, order_id, payment_id, time.time_ns() // 1_000_000)


async def _keep_session(_connection: Any) -> None:
    """Spare the round trip with which asyncpg resets a session: no step changes one."""


def pool(database: str) -> Any:
    """Return the pool of connections; use it as a context manager."""
    return asyncpg.create_pool(database, min_size=_POOL, max_size=_POOL, reset=_keep_session)
