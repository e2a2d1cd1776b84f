"""The data of a running stack's ZooKeeper are lost, or replaced by an older backup; its services go on as they are."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path

import pytest

from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import ZOOKEEPER, Stack
from services.kernel.principal import Role
from services.testkit.client import RecordingClient
from services.testkit.harness import open_client
from tests.e2e.command import command_line
from tests.e2e.conftest import FreshStack


@pytest.mark.long
@pytest.mark.parametrize("backup", [False, True], ids=["lost", "older backup"])
async def test_stack_whose_zookeeper_lost_its_data_settles_again_after_the_remedy_without_a_restart(
    fresh_stack: FreshStack, backup: bool
) -> None:
    async with fresh_stack() as stack, open_client(stack, "li", Role.CASHIER) as client:
        data = stack.data / ZOOKEEPER / "data"
        await client.settle_ok(await client.new_order())
        if backup:
            await replace(stack, data, keep=True)
            await until_settled(client, await client.new_order())
            for _ in range(30):
                await client.settle_ok(await client.new_order())
        pids = {instance.name: instance.pid for instance in stack.instances}
        await replace(stack, data, keep=False)

        order = await client.new_order()
        message = await until_refused(client, order)
        assert "countinghouse doctor --new-generation 2" in message
        looked = await command_line("doctor", "--data", str(stack.data))
        assert looked.returncode == 1
        assert "--new-generation" in looked.stdout
        mended = await command_line("doctor", "--data", str(stack.data), "--new-generation", "2")
        assert mended.returncode == 0, mended.stdout
        await until_settled(client, order)
        assert await client.order_state(order) == "PAID"
        assert {instance.name: instance.pid for instance in stack.instances} == pids


async def replace(stack: Stack, data: Path, *, keep: bool) -> None:
    """With the server down: take a copy of its data, or put the copy in their place, or nothing if there is none."""
    copy = data.with_name("backup")
    stack.restarts = False
    stack.kill(ZOOKEEPER, signal.SIGKILL)
    await stack.wait_until(lambda: stack.zookeeper_pid == 0, 10)
    if keep:
        shutil.copytree(data, copy)
    else:
        shutil.rmtree(data)
        if copy.exists():
            shutil.copytree(copy, data)
    stack.restarts = True
    await stack.wait_server(ZOOKEEPER)


async def until_refused(client: RecordingClient, order: str) -> str:
    """Settle in vain, until it is refused because of the ensemble; return the sentence."""
    async with asyncio.timeout(40):
        while True:
            result = await client.settle_once(order)
            assert result.error is not None, "settled under a fence that is worth nothing"
            if (result.answer.code, result.answer.reason) == ("UNAVAILABLE", "ENSEMBLE_BEHIND"):
                return result.error.message
            await asyncio.sleep(0.1)


async def until_settled(client: RecordingClient, order: str) -> None:
    async with asyncio.timeout(40):
        while (result := await client.settle_once(order)).error is not None:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.1)
    assert result.payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
