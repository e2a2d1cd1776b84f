"""Settle orders as `one_service` does, each under a lock of redis-py.

lock order ▸ the transaction of one_service ▸ unlock ▸ answer

python -m tests.bench.peers.redis_lock.service postgresql://… redis://…   prints its port; ends when its input is closed
"""

from __future__ import annotations

import sys
from typing import Any

import uvloop
from redis.asyncio import Redis
from redis.exceptions import LockError

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.one_service.service import SettleService, pool
from tests.bench.peers.serving import Refused, Settle, serve

#: After this long Redis gives the lock to the next, whatever the holder does.
_EXPIRES_S = 10.0
_WAIT_S = 5.0


def locked(redis: Redis, settle: Settle, expires_s: float = _EXPIRES_S) -> Settle:
    """Return `settle` under the order's lock."""

    async def settle_locked(request: payment_pb2.SettleRequest) -> bytes:
        lock = redis.lock(f"order:{request.order_id}", timeout=expires_s, blocking_timeout=_WAIT_S)
        if not await lock.acquire():
            raise Refused("ABORTED", "the order is being settled; ask again with the same id")
        try:
            return await settle(request)
        finally:
            await _release(lock)

    return settle_locked


async def _release(lock: Any) -> None:
    """Release the lock; one that has expired meanwhile is another's, and the answer stands as it is."""
    try:
        await lock.release()
    except LockError:
        return


async def _serve(database: str, redis_url: str) -> None:
    async with pool(database) as connections, Redis.from_url(redis_url) as redis:
        await serve(locked(redis, SettleService(connections).settle))


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], sys.argv[2]))
