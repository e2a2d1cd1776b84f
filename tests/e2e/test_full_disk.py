"""The disk of a stack is full: what writes is refused, what reads goes on, and with space everything comes back."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from countinghouse.order.v1 import order_pb2
from services.devstack.options import SQLITE
from services.devstack.readiness import SERVING, health
from services.devstack.stack import ACQUIRER_INSTANCE, ZOOKEEPER, Stack
from services.devstack.state import INTERFACES
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Role
from services.testkit.client import RecordingClient, money, new_id
from services.testkit.harness import open_client
from tests.e2e.checked import refusal
from tests.e2e.conftest import FreshStack
from tests.full_disk import fill, small_disk

ACQUIRER_INTERFACE = "countinghouse.acquirer.v1.AcquirerService"


@pytest.mark.long
async def test_stack_reports_a_full_disk_and_recovers_with_space(tmp_path: Path, fresh_stack: FreshStack) -> None:
    """Also ZooKeeper, which was killed meanwhile: nothing that supervises ends by what it supervises."""
    said: list[str] = []
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        async with (
            fresh_stack(tell=said.append, data=disk / "data", database=SQLITE) as stack,
            open_client(stack, "li", Role.CASHIER) as client,
        ):
            order = await client.new_order()
            fill(disk / "filler")
            refused = await first_refused(client)
            code, error = await refusal(client.call(refused))
            assert (code, error.reason, error.retry_after_ms) == ("UNAVAILABLE", "DATABASE_FULL", 1000)
            await until_health(stack, "order-1", "NOT_SERVING", INTERFACES["order"])
            await until_health(stack, ACQUIRER_INSTANCE, "NOT_SERVING", ACQUIRER_INTERFACE)
            await until_health(stack, ACQUIRER_INSTANCE, SERVING, "")
            assert await client.order_state(order) == "UNPAID"  # reading goes on

            stack.kill(ZOOKEEPER, signal.SIGKILL)
            async with asyncio.timeout(30):
                while not any(sentence.startswith(ZOOKEEPER) for sentence in said):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            (disk / "filler").unlink()
            await stack.wait_server(ZOOKEEPER)
            for instance in stack.instances:
                await until_health(stack, instance.name, SERVING, INTERFACES[instance.service])
            await until_health(stack, ACQUIRER_INSTANCE, SERVING, ACQUIRER_INTERFACE)
            assert (await client.ask(refused)).order.order_id
            await client.settle_ok(order)
            assert await client.order_state(order) == "PAID"


async def first_refused(client: RecordingClient) -> order_pb2.CreateOrderRequest:
    """Make orders until one is refused: SQLite has taken some space in advance."""
    async with asyncio.timeout(60):
        while True:
            request = order_pb2.CreateOrderRequest(request_id=new_id(), customer_id="mei", amount=money(1250))
            try:
                await client.ask(request)
            except CountinghouseError:
                return request


async def until_health(stack: Stack, name: str, wanted: str, interface: str) -> None:
    instance, dialer = stack.instance(name), stack.dialer(outside=name == ACQUIRER_INSTANCE)
    async with asyncio.timeout(30):
        while await health(dialer, instance.address, instance.service, interface=interface) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
