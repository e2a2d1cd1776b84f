"""`service.py` with a card: the order is claimed, the card charged, the rest recorded. `make bench-faults`.

    BEGIN ▸ request id ▸ order OPEN → PAYING by the request ▸ COMMIT
    charge under the request id
    BEGIN ▸ PAYING → PAID ▸ two postings ▸ stored response ▸ two balances ▸ COMMIT ▸ answer

No transaction is open while the acquirer is asked. A repeated request goes on where the first one ended, under the same
key; no other does.

    python -m tests.bench.peers.one_service.cards postgresql://… ACQUIRER      prints its port
"""

from __future__ import annotations

import sys
import time
from typing import Any

import uvloop

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.charging import Charger, charger
from tests.bench.peers.one_service import service
from tests.bench.peers.serving import Refused, serve

_CLAIM = """
    UPDATE orders SET state = 'PAYING', payment_id = $2
    WHERE order_id = $1 AND (state = 'OPEN' OR (state = 'PAYING' AND payment_id = $2))
    RETURNING amount_minor
"""
_RELEASE = """
    UPDATE orders SET state = 'OPEN', payment_id = NULL WHERE order_id = $1 AND payment_id = $2 AND state = 'PAYING'
"""
_PAY = """
    UPDATE orders SET state = 'PAID', paid_at_ms = $3 WHERE order_id = $1 AND payment_id = $2 AND state = 'PAYING'
    RETURNING 1
"""


class CardService:
    """Settle orders with cards on a pool of connections."""

    def __init__(self, pool: Any, acquirer: Charger) -> None:
        self._pool = pool
        self._acquirer = acquirer

    async def settle(self, request: payment_pb2.SettleRequest) -> bytes:
        """Return the response, which is durable; of a repeated request the stored one."""
        async with self._pool.acquire() as connection, connection.transaction():
            claimed = await _claim(connection, request)
        if isinstance(claimed, bytes):
            return claimed
        try:
            await self._acquirer.charge(request.request_id, request.card, claimed)
        except Refused as refused:
            if refused.code == "FAILED_PRECONDITION":
                await self._pool.execute(_RELEASE, request.order_id, request.request_id)
            raise
        async with self._pool.acquire() as connection, connection.transaction():
            return await _record(connection, request, claimed)


async def _claim(connection: Any, request: payment_pb2.SettleRequest) -> bytes | int:
    """Return the response if it is stored, or else the amount to charge."""
    await connection.execute(service.INSERT_REQUEST, request.request_id, request.order_id)
    stored = await connection.fetchrow(service.SELECT_REQUEST, request.request_id)
    if stored["order_id"] != request.order_id:
        raise Refused("INVALID_ARGUMENT", "this request_id was used for another order")
    if stored["response"] is not None:
        return bytes(stored["response"])
    amount_minor = await connection.fetchval(_CLAIM, request.order_id, request.request_id)
    if amount_minor is None:
        # The same request may have been answered since its response was looked for.
        stored = await connection.fetchrow(service.SELECT_REQUEST, request.request_id)
        if stored["response"] is not None:
            return bytes(stored["response"])
        raise Refused("ALREADY_EXISTS", "the order is paid, or being paid, by another request")
    return int(amount_minor)


async def _record(connection: Any, request: payment_pb2.SettleRequest, amount_minor: int) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    if await connection.fetchval(_PAY, request.order_id, request.request_id, now_ms) is None:
        return bytes((await connection.fetchrow(service.SELECT_REQUEST, request.request_id))["response"])
    return await service.record(connection, request, request.request_id, amount_minor)


async def _serve(database: str, address: str) -> None:
    async with service.pool(database) as connections, charger(address) as acquirer:
        await serve(CardService(connections, acquirer).settle)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2]))
