"""The file of a running service's database is removed: nothing is acknowledged that is lost, and no start hides it."""

from __future__ import annotations

from countinghouse.order.v1 import order_pb2
from services.devstack.options import SQLITE
from services.devstack.readiness import SERVING
from services.devstack.state import INTERFACES
from services.kernel.principal import Role
from services.testkit.client import money, new_id
from services.testkit.harness import open_client
from tests.e2e.checked import refusal
from tests.e2e.command import command_line
from tests.e2e.conftest import FreshStack
from tests.e2e.test_full_disk import until_health


async def test_removed_database_is_reported_and_not_made_anew(
    fresh_stack: FreshStack,
) -> None:
    async with (
        fresh_stack(services=("order",), database=SQLITE) as stack,
        open_client(stack, "li", Role.CASHIER) as client,
    ):
        order = await client.new_order()
        file = stack.data / "order.db"
        away = stack.data / "away.db"
        file.rename(away)
        create = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei", amount=money(1250))
        code, error = await refusal(client.call(create))
        assert (code, error.reason, error.retry_after_ms) == ("UNAVAILABLE", "DATABASE_LOST", 1000)
        await until_health(stack, "order-1", "NOT_SERVING", INTERFACES["order"])
        await until_health(stack, "order-1", SERVING, "")  # to start it again would not help
        looked = await command_line("doctor", "--data", str(stack.data))
        assert looked.returncode == 1
        assert "order.db was made before" in " ".join(looked.stdout.split())

        away.rename(file)
        await until_health(stack, "order-1", SERVING, INTERFACES["order"])
        assert await client.order_state(order) == "UNPAID"
        data = stack.data
    file.rename(away)
    refused = await command_line("up", "--data", str(data))
    assert refused.returncode == 2
    assert "order.db was made before" in refused.stderr
    assert not file.exists()
    away.rename(file)
    async with (
        fresh_stack(services=("order",), data=data, database=SQLITE) as again,
        open_client(again, "li", Role.CASHIER) as client,
    ):
        assert await client.order_state(order) == "UNPAID"
