"""Settling on a running stack, as a client sees it: one order after the other, and many clerks at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.testkit.client import RecordingClient
from services.testkit.harness import open_client
from tests.bench.figures import Figure, median_ms, p95_ms

_WARM_UP = 20
_SEQUENTIAL = 200
_CLERKS = 16
_PIPELINED = 640
_TIMEOUT_S = 20.0


async def measure(stack: Stack) -> list[Figure]:
    """Settles some hundred orders."""
    async with open_client(stack, "li", Role.CASHIER) as client:
        await _one_by_one(client, await _orders(client, _WARM_UP))
        lasted_s = await _one_by_one(client, await _orders(client, _SEQUENTIAL))
        per_s = await _at_once(client, await _orders(client, _PIPELINED))
    return [
        Figure(
            "settle_median_ms", f"settle, sequential, {_SEQUENTIAL} orders: median", median_ms(lasted_s), "ms", "≤ 25"
        ),
        Figure("settle_p95_ms", f"settle, sequential, {_SEQUENTIAL} orders: p95", p95_ms(lasted_s), "ms"),
        Figure("settle_16_clerks_per_s", f"settle, {_CLERKS} clerks, {_PIPELINED} orders", per_s, "orders/s"),
    ]


async def _orders(client: RecordingClient, count: int) -> list[str]:
    return [await client.new_order() for _ in range(count)]


async def _one_by_one(client: RecordingClient, orders: Iterable[str]) -> list[float]:
    lasted_s = []
    for order_id in orders:
        began_s = time.perf_counter()
        await client.settle_ok(order_id)
        lasted_s.append(time.perf_counter() - began_s)
    return lasted_s


async def _at_once(client: RecordingClient, orders: list[str]) -> float:
    """Orders a second, when each clerk takes the next order as soon as theirs is settled."""
    pile = iter(orders)

    async def clerk() -> None:
        for order_id in pile:
            await client.settle_ok(order_id)

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as counter:
        for _ in range(_CLERKS):
            counter.create_task(clerk())
    return len(orders) / (time.perf_counter() - began_s)
