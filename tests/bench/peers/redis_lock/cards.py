"""`service.py` with a card: under the order's lock, the order is looked at, the card charged, and the order paid.

    lock order ▸ is it OPEN? ▸ charge under the request id ▸ the transaction of one_service ▸ unlock ▸ answer

The lock is in place of the claim in `one_service/cards.py`: it is what keeps two callers apart. `make bench-faults`.

    python -m tests.bench.peers.redis_lock.cards postgresql://… ACQUIRER redis://…      prints its port
"""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from redis.asyncio import Redis

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.charging import Charger, charger
from tests.bench.peers.one_service.service import SELECT_REQUEST, SettleService, pool
from tests.bench.peers.redis_lock.service import locked
from tests.bench.peers.serving import Refused, serve

#: Less than the ten seconds of `service.py`, so that its end need not be waited for; as our session with ZooKeeper.
_EXPIRES_S = 4.0
_SELECT_ORDER = "SELECT state, amount_minor FROM orders WHERE order_id = $1"


class CardService:
    """Settle orders with cards; to be called under the order's lock."""

    def __init__(self, connections: Any, acquirer: Charger) -> None:
        self._connections = connections
        self._acquirer = acquirer
        self._orders = SettleService(connections)

    async def settle(self, request: payment_pb2.SettleRequest) -> bytes:
        """Return the response, which is durable; of a repeated request the stored one."""
        stored = await self._connections.fetchrow(SELECT_REQUEST, request.request_id)
        if stored is None:
            order = await self._connections.fetchrow(_SELECT_ORDER, request.order_id)
            if order is None or order["state"] != "OPEN":
                raise Refused("ALREADY_EXISTS", "the order is paid by another request")
            await self._acquirer.charge(request.request_id, request.card, order["amount_minor"])
        return await self._orders.settle(request)


async def _serve(database: str, address: str, redis_url: str) -> None:
    async with pool(database) as connections, charger(address) as acquirer, Redis.from_url(redis_url) as redis:
        await serve(locked(redis, CardService(connections, acquirer).settle, expires_s=_EXPIRES_S))


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:4]))
