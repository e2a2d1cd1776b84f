"""The order lock against kazoo's Lock recipe: the same ZooKeeper, the same minute, nobody else in line.

Each is used as it is meant to be. Kazoo's recipe blocks, so it runs on a thread of its own from its first lock to its
last and pays for no hand-over. Ours gives up the order at once and deletes its node in the background: measured is what
a clerk waits for, and apart from it the time until the node is gone, which is what the next clerk waits for.

The two take turns in short blocks, so that whatever else this machine does falls on both alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from kazoo.client import KazooClient

from coordination.lock import Holder, OrderLocks
from coordination.session import Session
from tests.bench.figures import Figure, median_ms

_BLOCKS, _PER_BLOCK = 10, 25
_WARM_UP = 25
_TIMEOUT_S = 10.0
_HOLDER = Holder("li", "cashier", "bench", "pay_bench", 0)


async def measure(zookeeper: str) -> list[Figure]:
    """Takes and releases locks on orders never seen before, and on one that is well known."""
    kazoo = KazooClient(hosts=zookeeper)
    await asyncio.to_thread(kazoo.start)
    try:
        async with Session(zookeeper, name="bench") as session:
            await session.wait_connected(_TIMEOUT_S)
            locks = OrderLocks(session, root="/bench/ours")
            await locks.prepare(_TIMEOUT_S)
            figures = []
            for kind in ("new", "known"):
                figures += await _compare(kind, locks, kazoo)
            return figures
    finally:
        await asyncio.to_thread(kazoo.stop)
        kazoo.close()


async def _compare(kind: str, locks: OrderLocks, kazoo: KazooClient) -> list[Figure]:
    await _ours(locks, _orders(kind, "warm", _WARM_UP))
    await asyncio.to_thread(_kazoos, kazoo, _orders(kind, "warm", _WARM_UP))
    waited_s: list[float] = []
    gone_s: list[float] = []
    recipe_s: list[float] = []
    for block in range(_BLOCKS):
        waited, gone = await _ours(locks, _orders(kind, f"b{block}", _PER_BLOCK))
        waited_s += waited
        gone_s += gone
        recipe_s += await asyncio.to_thread(_kazoos, kazoo, _orders(kind, f"b{block}", _PER_BLOCK))
    ours_ms, ours_gone_ms, kazoos_ms = median_ms(waited_s), median_ms(gone_s), median_ms(recipe_s)
    label = f"lock and release, {kind} order"
    return [
        Figure(f"lock_{kind}_ours_ms", f"{label}: ours, p50", ours_ms, "ms"),
        Figure(f"lock_{kind}_ours_gone_ms", f"{label}: ours, p50 until its node is gone", ours_gone_ms, "ms"),
        Figure(f"lock_{kind}_kazoo_ms", f"{label}: kazoo's recipe, p50", kazoos_ms, "ms"),
        Figure(f"lock_{kind}_ratio", f"{label}: kazoo's / ours", kazoos_ms / ours_ms, "×"),
        Figure(f"lock_{kind}_gone_ratio", f"{label}: kazoo's / ours until gone", kazoos_ms / ours_gone_ms, "×"),
    ]


def _orders(kind: str, block: str, count: int) -> list[str]:
    """New orders have a name each; a known one has been locked before."""
    return [f"{block}-{number}" for number in range(count)] if kind == "new" else ["known"] * count


async def _ours(locks: OrderLocks, orders: Sequence[str]) -> tuple[list[float], list[float]]:
    waited_s, gone_s = [], []
    for order_id in orders:
        began_s = time.perf_counter()
        lease = await locks.acquire(order_id, _HOLDER, timeout_s=_TIMEOUT_S)
        lease.release()
        waited_s.append(time.perf_counter() - began_s)
        await locks.drained(_TIMEOUT_S)
        gone_s.append(time.perf_counter() - began_s)
    return waited_s, gone_s


def _kazoos(kazoo: KazooClient, orders: Sequence[str]) -> list[float]:
    lasted_s = []
    for order_id in orders:
        began_s = time.perf_counter()
        lock = kazoo.Lock(f"/bench/kazoo/{order_id}", "li")
        lock.acquire(timeout=_TIMEOUT_S)
        lock.release()
        lasted_s.append(time.perf_counter() - began_s)
    return lasted_s
