"""Lists through the real servers: pages that fit a message, and requests that are no message at all."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from countinghouse.order.v1 import order_pb2
from services.devstack.stack import Stack
from services.runtime.grpc import status
from services.testkit.client import RecordingClient, money, new_id
from tests.e2e.command import command_line, document

#: The largest order that is taken: 84 KB, so that twenty are more than a message holds.
LINES = [order_pb2.OrderLine(description="𠮷" * 200, quantity=1, unit_price=money(1))] * 100


async def test_large_orders_are_listed_in_pages_that_fit_a_message(stack: Stack, cashier: RecordingClient) -> None:
    """Each one once, by the stubs and by the command; and each one can be read alone."""
    customer = new_id("customer")
    made = []
    for _ in range(20):
        request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id=customer, lines=LINES)
        made.append((await cashier.ask(request)).order.order_id)
    read = await cashier.ask(order_pb2.GetOrderRequest(order_id=made[0]))
    assert len(read.order.lines) == 100

    listed: list[str] = []
    wanted = order_pb2.ListOrdersRequest(customer_id=customer, page_size=1_000)
    while True:
        page = await cashier.ask(wanted)
        listed += [order.order_id for order in page.orders]
        wanted.page_token = page.next_page_token
        if not page.next_page_token:
            break
    assert listed == made[::-1]

    arguments = ("order", "list", "--customer", customer, "--limit", "15", "--json", "--data", str(stack.data))
    shown: dict[str, Any] = document(await command_line(*arguments))
    assert [order["order_id"] for order in shown["orders"]] == listed[:15]
    assert shown["next_page_token"]


@pytest.mark.parametrize(
    ("instance", "method"),
    [
        ("order-1", "order.v1.OrderService/CreateOrder"),
        ("payment-1", "payment.v1.PaymentService/Settle"),
        ("ledger-1", "ledger.v1.LedgerService/GetAccount"),
        ("acquirer-1", "acquirer.v1.AcquirerService/Charge"),
    ],
)
async def test_malformed_request_is_refused_by_every_server(
    stack: Stack, accountant: RecordingClient, instance: str, method: str
) -> None:
    """With a good token it is INVALID_ARGUMENT, without one UNAUTHENTICATED."""
    dialer = stack.dialer(outside=instance.startswith("acquirer"))
    async with dialer.open(stack.instance(instance).address, instance.rpartition("-")[0]) as channel:
        send: Any = channel.unary_unary(f"/countinghouse.{method}")
        who = accountant.identity
        token = who.outside if instance.startswith("acquirer") else who.token
        metadata = (("authorization", f"Bearer {token}"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await send(b"\x0f", timeout=5.0, metadata=metadata)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert status.from_rpc_error(refused.value).reason == "MALFORMED_REQUEST"
        with pytest.raises(grpc.aio.AioRpcError) as nobody:
            await send(b"\x0f", timeout=5.0)
        assert status.from_rpc_error(nobody.value).reason == "TOKEN_REQUIRED"
