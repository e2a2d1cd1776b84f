"""`countinghouse top` beside a running stack: what it shows is true, and it goes on while parts are away."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.devstack.stack import Stack
from services.testkit.failpoints import DELAY
from services.testkit.harness import ONE, Harness
from tests.e2e.command import start_command_line
from tests.e2e.conftest import FreshStack

#: Of a busy machine, for one thing to be shown.
_WITHIN_S = 60.0

pytestmark = pytest.mark.timeout(300)
Shown = dict[str, Any]


class Top:
    """The command, as a process whose documents are read."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, condition: Callable[[Shown], bool]) -> Shown:
        """Return the next look of which this is true."""
        shown: Shown = {}
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(_WITHIN_S):
                while True:
                    line = await self.process.stdout.readline()
                    assert line, await self._errors()
                    shown = json.loads(line)
                    if condition(shown):
                        return shown
        except TimeoutError:
            raise AssertionError(f"this was never shown; the last look: {shown}") from None

    async def _errors(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def top(stack: Stack, *arguments: str) -> AsyncIterator[Top]:
    command = ("top", "--json", "--interval", "1", "--data", str(stack.data), *arguments)
    process = await start_command_line(*command)
    try:
        yield Top(process)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(_WITHIN_S):
            await process.communicate()
    assert process.returncode == 130


def health(shown: Shown) -> dict[str, str]:
    """By instance."""
    return {each["instance"]: each["health"] for each in shown["instances"]}


def instance(shown: Shown, name: str) -> Shown:
    return next(each for each in shown["instances"] if each["instance"] == name)


async def test_every_instance_is_shown_and_an_idle_one_has_no_calls_in_flight(stack: Stack) -> None:
    """The watches of the command itself are no calls."""
    async with top(stack) as running:
        shown = await running.until(lambda look: look["since_s"] and look["payments"]["open"] is not None)
        assert health(shown) == {each.name: "SERVING" for each in stack.instances}
        shown = await running.until(lambda look: not any(each["in_flight"] for each in look["instances"]))
        assert shown["zookeeper"] == "live"
        assert shown["notes"] == []


async def test_settled_order_is_counted_where_it_happened(stack: Stack) -> None:
    async with top(stack) as running, Harness(stack) as harness:
        await running.until(lambda look: look["since_s"] is not None)
        order_id = await harness.new_order()
        await harness.cashier.settle_ok(order_id, at=ONE)
        shown = await running.until(lambda look: (look["payments"]["per_s"] or {}).get("SUCCEEDED", 0) > 0)
        assert shown["orders"]["per_s"] is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(harness.cashier.settle_once(order_id, at=ONE))
            seen = group.create_task(running.until(lambda look: "ALREADY_EXISTS" in instance(look, ONE)["not_ok"]))
        one = instance(seen.result(), ONE)
        assert one["calls_per_s"] > 0
        assert one["p99_ms"] > 0


def submitted(look: Shown) -> int:
    """How many payments are in that state: also those that other tests on this stack have left there."""
    return int(look["payments"]["open"].get("SUBMITTED", 0))


async def test_lock_open_payment_and_call_in_flight_are_shown_while_they_last(stack: Stack) -> None:
    async with top(stack) as running, Harness(stack) as harness:
        order_id = await harness.new_order()
        before = submitted(await running.until(lambda look: look["payments"]["open"] is not None))
        await harness.failpoints.arm(ONE, "submitted", DELAY, order_id, delay_s=5)
        settling = asyncio.create_task(harness.cashier.settle_once(order_id, at=ONE, timeout_s=20.0))
        shown = await running.until(lambda look: any(each["order_id"] == order_id for each in look["locks"]))
        queue = next(each["queue"] for each in shown["locks"] if each["order_id"] == order_id)
        assert (queue[0]["clerk"], queue[0]["instance"]) == (harness.cashier.name, ONE)
        shown = await running.until(lambda look: submitted(look) == before + 1)
        assert instance(shown, ONE)["in_flight"] > 0
        assert (await settling).error is None
        await running.until(
            lambda look: submitted(look) == before and all(each["order_id"] != order_id for each in look["locks"])
        )


async def test_refused_caller_is_counted(stack: Stack) -> None:
    """The command line's own token is another one's: it is refused, and nothing else is shown as a fault."""
    async with top(stack) as running, Harness(stack) as harness:
        await running.until(lambda look: look["since_s"] is not None)
        channel = harness.connections.channel("order", "order-1")
        call: Any = channel.unary_unary("/countinghouse.order.v1.OrderService/GetOrder")
        with pytest.raises(Exception, match="authorization"):
            await call(b"", timeout=20.0)
        await running.until(lambda look: instance(look, "order-1")["refused"] == {"TOKEN_REQUIRED": 1})


async def test_it_goes_on_while_an_instance_is_away_and_says_so(fresh_stack: FreshStack) -> None:
    async with fresh_stack(replicas={"payment": 2}) as stack, top(stack) as running:
        await running.until(lambda look: look["payments"]["open"] is not None)
        stack.restarts = False
        stack.kill(ONE)
        shown = await running.until(lambda look: health(look)[ONE] != "SERVING")
        assert any(ONE in note for note in shown["notes"])
        shown = await running.until(lambda look: health(look)[ONE] == "NOT_REGISTERED")
        assert f"{ONE} is not registered any more" in shown["notes"]
        assert health(shown)["payment-2"] == "SERVING"
        stack.restarts = True
        await running.until(lambda look: set(health(look).values()) == {"SERVING"} and not look["notes"])


async def test_it_goes_on_while_zookeeper_is_away_and_says_so(fresh_stack: FreshStack) -> None:
    """Orders and payments are watched all the same."""
    async with fresh_stack() as stack, top(stack) as running:
        before = await running.until(lambda look: look["payments"]["open"] is not None)
        stack.restarts = False
        stack.kill("zookeeper")
        shown = await running.until(lambda look: look["zookeeper"] == "away")
        assert "ZooKeeper is away" in shown["notes"][0]
        assert health(shown).keys() == health(before).keys()
        stack.restarts = True
        await running.until(lambda look: look["zookeeper"] == "live" and not look["notes"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_blocks_of_text_end_with_a_signal(stack: Stack, number: signal.Signals) -> None:
    """Without a traceback."""
    process = await start_command_line("top", "--interval", "1", "--data", str(stack.data))
    assert process.stdout is not None
    async with asyncio.timeout(_WITHIN_S):
        while b"payment-2" not in await process.stdout.readline():
            pass
        process.send_signal(number)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (130, b"")


async def test_reader_that_has_gone_ends_it(stack: Stack) -> None:
    """As with `| head`."""
    process = await start_command_line("top", "--json", "--interval", "1", "--data", str(stack.data))
    assert process.stdout is not None
    async with asyncio.timeout(_WITHIN_S):
        await process.stdout.readline()
        transport: Any = process.stdout._transport  # type: ignore[attr-defined]
        transport.close()
        assert await process.wait() == 0
