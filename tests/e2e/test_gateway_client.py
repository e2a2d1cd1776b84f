"""The client of chaos runs that calls through the gateway: what it gets is what a client of gRPC gets."""

from __future__ import annotations

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.testkit.client import RecordingClient, new_id
from services.testkit.gateway_client import GatewayClient
from services.testkit.harness import Harness
from tests.e2e.conftest import FreshStack


def both(stack: Stack, harness: Harness, name: str) -> tuple[RecordingClient, GatewayClient]:
    """Two clients of the same cashier."""
    direct = harness.client(name, Role.CASHIER)
    address = stack.describe().gateway
    return direct, GatewayClient(harness.connections, direct.identity, name, address=lambda: address)


async def test_answers_through_the_gateway_are_those_of_the_services_byte_by_byte(fresh_stack: FreshStack) -> None:
    async with fresh_stack(gateway=True) as stack, Harness(stack) as harness:
        direct, web = both(stack, harness, "li")
        order_id = await web.new_order()
        request = web.settle_request(order_id, new_id())
        first, again, directly = await web.call(request), await web.call(request), await direct.call(request)
        assert first.payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        assert (first.replayed, again.replayed, directly.replayed) == (False, True, True)
        assert first.body == again.body == directly.body

        rival = web.settle_request(order_id, new_id())
        refusals = [await web.call(rival), await web.call(rival), await direct.call(rival)]
        assert [each.error and each.error.reason for each in refusals] == ["ORDER_ALREADY_PAID"] * 3
        assert [each.replayed for each in refusals] == [False, True, True]
        assert refusals[0].body == refusals[1].body == refusals[2].body

        reading = order_pb2.GetOrderRequest(order_id=order_id)
        assert (await web.call(reading)).body == (await direct.call(reading)).body
        missing = order_pb2.GetOrderRequest(order_id="missing")
        assert (await web.call(missing)).body == (await direct.call(missing)).body
        wrong = web.settle_request(order_id, "")
        assert [(await each.call(wrong)).error.reason for each in (web, direct)]  # type: ignore[union-attr]


async def test_answer_that_the_gateway_does_not_give_is_none(fresh_stack: FreshStack) -> None:
    """It is not known what became of the request, so it is sent again."""
    async with fresh_stack(gateway=True) as stack, Harness(stack) as harness:
        _, web = both(stack, harness, "li")
        order_id = await web.new_order()
        stack.restarts = False
        stack.kill("gateway")
        result = await web.call(web.settle_request(order_id, new_id()))
        assert result.open
        stack.restarts = True
        await stack.wait_serving("gateway")
        assert (await web.settle(order_id)).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
