"""The line to the acquirer: it dies without a word, and a proxy of the environment is none of its business."""

from __future__ import annotations

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from tests.e2e.conftest import FreshStack
from tests.e2e.desk import new_id
from tests.e2e.teller import Teller, at_bank, payment_in, settle_by_card, states, teller_at
from tests.integration.echo import Cable, dead_port

INSTANCE = "payment-1"


async def settled_once(teller: Teller) -> pb.Payment:
    """Li settles a new order by card, and does not ask again."""
    request = settle_by_card(await teller.new_order(), new_id("settle"))
    return payment_in(await teller.cashier.ask(teller.address(INSTANCE), "Settle", request, timeout_s=8.0))


@pytest.mark.timeout(150)
async def test_a_payment_on_a_dead_line_is_resolved_over_a_second_connection(fresh_stack: FreshStack) -> None:
    """Nothing passes any more on the connection that was open. The card payment is UNKNOWN, the worker asks, and within
    15 s it has succeeded, charged once: long before TCP gives the line up."""
    cable = Cable(0)
    async with cable.laid() as port:
        settings = {INSTANCE: {"acquirer_address": f"127.0.0.1:{port}", "acquirer_timeout_s": 1.0}}
        async with fresh_stack(settings_of=settings) as stack, teller_at(stack) as teller:
            cable.port = int(stack.acquirer.rpartition(":")[2])
            assert (await settled_once(teller)).state == pb.PAYMENT_STATE_SUCCEEDED
            assert cable.connections >= 1
            cable.lose_open_connections()
            unheard = await settled_once(teller)
            assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
            books = await teller.checked_books()
            assert states(books, [unheard.payment_id]) == ["SUCCEEDED"]
            assert at_bank(books, unheard.payment_id) == ["CHARGED"]
            assert cable.connections >= 2


async def test_the_acquirer_is_reached_past_the_proxy_of_the_environment(fresh_stack: FreshStack) -> None:
    """Nobody listens where http_proxy points; cards are charged all the same."""
    proxy = f"http://127.0.0.1:{dead_port()}"
    environment = {INSTANCE: dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), proxy)}
    async with fresh_stack(environment_of=environment) as stack, teller_at(stack) as teller:
        assert (await settled_once(teller)).state == pb.PAYMENT_STATE_SUCCEEDED
