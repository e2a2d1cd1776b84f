"""Settle orders in one service with one database transaction, as a team without ZooKeeper would write it.

    BEGIN ▸ request id ▸ order OPEN → PAID ▸ two postings ▸ stored response ▸ two balances ▸ COMMIT ▸ answer

It speaks `PaymentService/Settle` of this repository, so that one load generator measures both. README.md says what was
chosen and what it lacks.

    python -m tests.bench.peers.one_service.service postgresql://…      prints its port; ends when its input is closed
"""

from __future__ import annotations

import sys
import time
import uuid
from typing import Any

import asyncpg
import uvloop

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.serving import DRAWER, SALES, Refused, response, serve

#: Of 4, 8, 16 and 32 on two cores: more connections only wait for the same two balances.
_POOL = 8

INSERT_REQUEST = "INSERT INTO requests (request_id, order_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1"
SELECT_REQUEST = "SELECT order_id, response FROM requests WHERE request_id = $1"
_PAY_ORDER = """
    UPDATE orders SET state = 'PAID', payment_id = $2, paid_at_ms = $3 WHERE order_id = $1 AND state = 'OPEN'
    RETURNING amount_minor, currency_code
"""
_SELECT_ORDER = "SELECT payment_id FROM orders WHERE order_id = $1"
_INSERT_POSTINGS = f"""
    INSERT INTO postings (payment_id, account_id, order_id, amount)
    VALUES ($1, '{DRAWER}', $2, $3), ($1, '{SALES}', $2, -$3::bigint)
"""  # noqa: S608  constants
_STORE_RESPONSE = "UPDATE requests SET response = $2 WHERE request_id = $1"
#: Every settle updates these two in this order, so that none deadlocks with another.
_ADD_TO_DRAWER = f"UPDATE accounts SET balance = balance + $1 WHERE account_id = '{DRAWER}'"  # noqa: S608  a constant
_ADD_TO_SALES = f"UPDATE accounts SET balance = balance - $1 WHERE account_id = '{SALES}'"  # noqa: S608  a constant


class SettleService:
    """Settle orders on a pool of connections."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def settle(self, request: payment_pb2.SettleRequest) -> bytes:
        """Return the response, which is durable; of a repeated request the stored one."""
        async with self._pool.acquire() as connection, connection.transaction():
            return await _settle(connection, request)


async def _settle(connection: Any, request: payment_pb2.SettleRequest) -> bytes:
    """Run the transaction. asyncpg prepares each statement once a connection."""
    if await connection.fetchval(INSERT_REQUEST, request.request_id, request.order_id) is None:
        stored = await connection.fetchrow(SELECT_REQUEST, request.request_id)
        if stored["order_id"] != request.order_id:
            raise Refused("INVALID_ARGUMENT", "this request_id was used for another order")
        return bytes(stored["response"])
    payment_id, now_ms = f"pay-{uuid.uuid4().hex}", time.time_ns() // 1_000_000
    order = await connection.fetchrow(_PAY_ORDER, request.order_id, payment_id, now_ms)
    if order is None:
        found = await connection.fetchrow(_SELECT_ORDER, request.order_id)
        if found is None:
            raise Refused("NOT_FOUND", "there is no such order")
        raise Refused("ALREADY_EXISTS", f"the order is paid by {found['payment_id']}")
    return await record(connection, request, payment_id, order["amount_minor"])


async def record(connection: Any, request: payment_pb2.SettleRequest, payment_id: str, amount_minor: int) -> bytes:
    """Write the postings, the response and the balances of an order that is paid; return the response."""
    await connection.execute(_INSERT_POSTINGS, payment_id, request.order_id, amount_minor)
    answer = response(request.order_id, request.source, payment_id, amount_minor)
    await connection.execute(_STORE_RESPONSE, request.request_id, answer)
    # Last: every settle waits for these two rows.
    await connection.execute(_ADD_TO_DRAWER, amount_minor)
    await connection.execute(_ADD_TO_SALES, amount_minor)
    return answer


async def _keep_session(_connection: Any) -> None:
    """Spare the round trip with which asyncpg resets a session: no settle changes one."""


def pool(database: str) -> Any:
    """Return the service's pool of connections; use it as a context manager."""
    return asyncpg.create_pool(database, min_size=_POOL, max_size=_POOL, reset=_keep_session)


async def _serve(database: str) -> None:
    async with pool(database) as connections:
        await serve(SettleService(connections).settle)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
