"""Callers who take all they can get, and what is left for their neighbours.

Nothing here is timed but by deadlines that only a starved server misses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import grpc

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.devstack.readiness import health
from services.devstack.stack import Stack
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Role
from services.testkit.harness import open_client

_SETTLE = "/countinghouse.payment.v1.PaymentService/Settle"
_CHECK = "/grpc.health.v1.Health/Check"
#: More than a server executes calls at once.
_STREAMS = 560
_CONNECTIONS = 8
_LISTS = 400


async def test_silent_streams_without_a_token_leave_a_server_to_its_callers(stack: Stack) -> None:
    """Of methods of ours, whose headers are refused at once, and of health, which waits for a request."""
    address = stack.instance("payment-1").address
    async with AsyncExitStack() as open_, open_client(stack, "li", Role.CASHIER) as client:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [
            await open_.enter_async_context(grpc.aio.insecure_channel(address, options)) for _ in range(_CONNECTIONS)
        ]
        silent: list[Any] = [
            channels[number % _CONNECTIONS].stream_unary(method)()
            for number in range(_STREAMS)
            for method in (_SETTLE, _CHECK)
        ]
        await asyncio.gather(*(call.wait_for_connection() for call in silent), return_exceptions=True)
        assert (await client.settle_ok(await client.new_order())).state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        assert await health(address) == "SERVING"
        assert await health(address, interface="countinghouse.payment.v1.PaymentService") == "SERVING"
        refused = Counter([await call.code() for call in silent[::2]])
        assert refused == {grpc.StatusCode.UNAUTHENTICATED: _STREAMS}
        for call in silent:
            call.cancel()


async def test_clients_many_lists_are_refused_and_its_neighbours_reads_are_served(stack: Stack) -> None:
    """At any moment it executes no more of them than its budget pays for; the rest is refused, and can be repeated."""
    async with open_client(stack, "zhang", Role.CASHIER) as greedy, open_client(stack, "li", Role.CASHIER) as neighbour:
        order_id = await neighbour.new_order()
        request = order_pb2.ListOrdersRequest(page_size=1_000)
        lists = [asyncio.ensure_future(greedy.ask(request, timeout_s=60.0)) for _ in range(_LISTS)]
        reads = 0
        while not all(each.done() for each in lists):
            await neighbour.ask(order_pb2.GetOrderRequest(order_id=order_id))
            reads += 1
        answers = await asyncio.gather(*lists, return_exceptions=True)
        refused = [each for each in answers if isinstance(each, CountinghouseError)]
        assert {error.reason for error in refused} == {"CALLER_LIMIT"}
        assert all(error.retry_after_ms for error in refused)
        assert reads
        assert (await greedy.ask(request)).orders
