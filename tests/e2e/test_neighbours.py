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
from services.kernel.principal import Role
from services.runtime.grpc import status
from services.runtime.grpc.admission import LIST_COST
from services.runtime.settings import Settings
from services.testkit.harness import open_client

_SETTLE = "/countinghouse.payment.v1.PaymentService/Settle"
_LIST = "/countinghouse.order.v1.OrderService/ListOrders"
_CHECK = "/grpc.health.v1.Health/Check"
#: More than a server executes calls at once.
_STREAMS = 560
_CONNECTIONS = 8
_LISTS = 400


async def test_silent_streams_without_a_token_leave_a_server_to_its_callers(stack: Stack) -> None:
    """Of methods of ours, whose headers are refused at once, and of health, which waits for a request."""
    address = stack.instance("payment-1").address
    async with AsyncExitStack() as open_, open_client(stack, "li", Role.CASHIER) as client:
        channels = [
            await open_.enter_async_context(stack.dialer().open(address, "payment")) for _ in range(_CONNECTIONS)
        ]
        silent: list[Any] = [
            channels[number % _CONNECTIONS].stream_unary(method)()
            for number in range(_STREAMS)
            for method in (_SETTLE, _CHECK)
        ]
        await asyncio.gather(*(call.wait_for_connection() for call in silent), return_exceptions=True)
        assert (await client.settle_ok(await client.new_order())).state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        interface = "countinghouse.payment.v1.PaymentService"
        assert await health(stack.dialer(), address, "payment") == "SERVING"
        assert await health(stack.dialer(), address, "payment", interface=interface) == "SERVING"
        refused = Counter([await call.code() for call in silent[::2]])
        assert refused == {grpc.StatusCode.UNAUTHENTICATED: _STREAMS}
        for call in silent:
            call.cancel()


async def test_clients_many_lists_are_refused_and_its_neighbours_reads_are_served(stack: Stack) -> None:
    """No more of them are under way than the budget pays for; the rest is refused at once, and can be repeated.

    The lists wait for their requests, so that none ends before the others are counted.
    """
    address = stack.instance("order-1").address
    at_once = Settings.model_fields["caller_budget"].default // LIST_COST
    async with (
        open_client(stack, "zhang", Role.CASHIER) as greedy,
        open_client(stack, "li", Role.CASHIER) as neighbour,
        stack.dialer().open(address, "order") as channel,
    ):
        order_id = await neighbour.new_order()
        listing: Any = channel.stream_unary(_LIST, response_deserializer=order_pb2.ListOrdersResponse.FromString)
        metadata = (("authorization", f"Bearer {greedy.identity.token}"),)
        lists = [listing(timeout=60.0, metadata=metadata) for _ in range(_LISTS)]
        answers = [asyncio.ensure_future(_answer(call)) for call in lists]
        pending = set(answers)
        while len(pending) > at_once:
            assert (await neighbour.ask(order_pb2.GetOrderRequest(order_id=order_id))).order.order_id == order_id
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        refused = [answer.result() for answer in answers if answer.done()]
        assert len(refused) == _LISTS - at_once
        assert {type(error).__name__ for error in refused} == {"ResourceExhausted"}
        assert {error.reason for error in refused} == {"CALLER_LIMIT"}
        assert all(error.retry_after_ms for error in refused)
        for call, answer in zip(lists, answers, strict=True):
            if answer in pending:
                await call.write(order_pb2.ListOrdersRequest(page_size=1_000).SerializeToString())
                await call.done_writing()
        for page in await asyncio.gather(*pending):
            assert order_id in {order.order_id for order in page.orders}
        assert (await greedy.ask(order_pb2.ListOrdersRequest(page_size=1_000))).orders


async def _answer(call: Any) -> Any:
    """Return the answer of a call, or the error it was refused with."""
    try:
        return await call
    except grpc.aio.AioRpcError as refused:
        return status.from_rpc_error(refused)
