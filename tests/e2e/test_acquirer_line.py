"""The line to the acquirer: it dies without a word, and a proxy of the environment is none of its business."""

from __future__ import annotations

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.testkit.harness import Harness
from tests.e2e.checked import at_acquirer, checked_books, states
from tests.e2e.conftest import FreshStack
from tests.integration.echo import Cable, dead_port

INSTANCE = "payment-1"


async def settled_once(harness: Harness) -> pb.Payment:
    """Li settles a new order by card, and does not ask again."""
    order_id = await harness.new_order()
    return (await harness.cashier.settle_once(order_id, card="tok-mei", at=INSTANCE, timeout_s=8.0)).payment


@pytest.mark.long
@pytest.mark.timeout(150)
async def test_payment_on_a_dead_line_is_resolved_over_a_second_connection(fresh_stack: FreshStack) -> None:
    """Nothing passes any more on the connection that was open. The card payment is UNKNOWN, the worker asks, and within
    15 s it has succeeded, charged once: long before TCP gives the line up.

    Nobody listens where http_proxy points; that first payment is made all the same.
    """
    cable, proxy = Cable(0), f"http://127.0.0.1:{dead_port()}"
    environment = {INSTANCE: dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), proxy)}
    async with cable.laid() as port:
        settings = {INSTANCE: {"acquirer_address": f"127.0.0.1:{port}", "acquirer_timeout_s": 1.0}}
        async with fresh_stack(settings_of=settings, environment_of=environment) as stack, Harness(stack) as harness:
            cable.port = int(stack.acquirer.rpartition(":")[2])
            assert (await settled_once(harness)).state == pb.PAYMENT_STATE_SUCCEEDED
            assert cable.connections >= 1
            cable.lose_open_connections()
            unheard = await settled_once(harness)
            assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
            books = await checked_books(harness)
            assert states(books, [unheard.payment_id]) == ["SUCCEEDED"]
            assert at_acquirer(books, unheard.payment_id) == ["CHARGED"]
            assert cable.connections >= 2
