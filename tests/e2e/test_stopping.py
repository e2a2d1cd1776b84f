"""A service that is told to stop: what it still does, what it no longer takes, and how long that may last."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from countinghouse.payment.v1 import payment_pb2
from services.devstack.stack import ZOOKEEPER, Stack
from services.kernel.errors import Aborted
from services.testkit.client import CallResult, new_id
from services.testkit.failpoints import DELAY
from services.testkit.harness import Harness
from tests.e2e.checked import checked_books
from tests.e2e.clients import clients_of
from tests.e2e.conftest import SETTINGS, FreshStack, options
from tests.e2e.endings import Endings
from tests.e2e.load import Load

ONE, TWO = "payment-1", "payment-2"
#: A drain is long, so that what is to happen in one does on a busy machine too.
DRAIN_S, LEASE_S = 8.0, 1.5
#: Besides `drain_s`: to unregister, to close, and for a machine that others use too.
MARGIN_S = 7.0


@dataclass(slots=True)
class RunningStack:
    """A running stack, and how its processes ended."""

    harness: Harness
    endings: Endings = field(default_factory=Endings)

    @property
    def stack(self) -> Stack:
        return self.harness.stack

    async def told_to_stop(self, instance: str) -> float:
        """SIGTERM; the seconds until the process is gone. Fails unless its exit code is 0."""
        pid, told_s = self.stack.instance(instance).pid, time.monotonic()
        self.stack.kill(instance, signal.SIGTERM)
        return await self.gone(instance, pid, told_s)

    async def gone(self, instance: str, pid: int, told_s: float) -> float:
        """Waits until a process that was told to stop at `told_s` has ended with exit code 0; how long that took."""
        assert await self.endings.of(self.stack, instance, pid, DRAIN_S + 10) == "exit code 0"
        return time.monotonic() - told_s

    async def held_up(self, point: str, delay_s: float) -> tuple[str, str, asyncio.Task[CallResult]]:
        """A settle under way at the first payment instance, waiting at a failpoint: its order, its key, its answer."""
        harness = self.harness
        await self.stack.wait_serving()
        order_id, key = await harness.new_order(), new_id("settle")
        await harness.failpoints.arm(ONE, point, DELAY, order_id, delay_s=delay_s)
        fired = await harness.failpoints.fired(ONE, point)
        asking = asyncio.create_task(harness.cashier.settle_once(order_id, key, at=ONE, timeout_s=20))
        await harness.failpoints.wait_fired(ONE, point, more_than=fired)
        return order_id, key, asking


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def running(
    tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None
) -> AsyncIterator[RunningStack]:
    """A stack with two payment instances."""
    endings = Endings()
    data: Path = tmp_path_factory.mktemp("stopping") / "data"
    settings = SETTINGS | {"drain_s": DRAIN_S, "lease_s": LEASE_S}
    async with (
        Stack(options(data, replicas={"payment": 2}, settings=settings), tell=endings.hear) as stack,
        Harness(stack) as harness,
    ):
        yield RunningStack(harness, endings)


async def test_running_call_is_finished_and_the_process_waits_no_longer(running: RunningStack) -> None:
    """Its caller gets their answer; the process is gone as soon as it is given, well before the drain is over."""
    _, _, asking = await running.held_up("submitted", delay_s=1)
    took_s = await running.told_to_stop(ONE)
    assert (await asking).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    assert took_s < DRAIN_S
    await checked_books(running.harness)


async def test_running_call_keeps_its_request_while_it_is_drained(running: RunningStack) -> None:
    """Longer than its lease: who asks again under its key meanwhile is told that it is being worked on, and no
    worker takes it over.
    """
    order_id, key, asking = await running.held_up("submitted", delay_s=4 * LEASE_S)
    pid, told_s = running.stack.instance(ONE).pid, time.monotonic()
    running.stack.kill(ONE, signal.SIGTERM)
    await asyncio.sleep(1.3 * LEASE_S)
    harness = running.harness
    again = await harness.cashier.settle_once(order_id, key, at=TWO)
    assert isinstance(again.error, Aborted)
    assert again.error.reason == "REQUEST_IN_PROGRESS"
    assert (await asking).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    await running.gone(ONE, pid, told_s)
    books = await checked_books(harness)
    assert [row["attempt"] for row in books.requests if row["key"] == key] == [1]


async def test_call_that_outlasts_the_drain_is_left_to_others(running: RunningStack) -> None:
    """The process is gone when the drain is over, and not twice as late; somebody else finishes the payment."""
    order_id, key, asking = await running.held_up("submitted", delay_s=60)
    took_s = await running.told_to_stop(ONE)
    assert DRAIN_S <= took_s < DRAIN_S + MARGIN_S
    assert (await asking).open
    again = await running.harness.cashier.settle(order_id, key, at=TWO)
    assert again.payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    await checked_books(running.harness)


async def test_new_calls_go_elsewhere_during_the_drain(running: RunningStack) -> None:
    """Its port refuses connections, and whoever finds the services through ZooKeeper does not meet it."""
    load = Load()
    async with clients_of(running.stack, load) as clients:
        _, _, asking = await running.held_up("submitted", delay_s=6)
        address, pid, told_s = running.harness.address(ONE), running.stack.instance(ONE).pid, time.monotonic()
        running.stack.kill(ONE, signal.SIGTERM)
        await running.harness.failpoints.wait_closed(ONE)
        assert address not in {endpoint.address for known in clients.directories for endpoint in known.endpoints}
        host, _, port = address.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
        for _ in range(20):
            await clients.settle(await clients.new_order())
        assert not asking.done(), "it was to be draining all that time"
        assert (await asking).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
        await running.gone(ONE, pid, told_s)
    assert load.failed() == []


async def test_second_sigterm_changes_nothing(running: RunningStack) -> None:
    """A drain is bounded; who cannot wait for it has SIGKILL."""
    _, _, asking = await running.held_up("submitted", delay_s=1.5)
    pid, told_s = running.stack.instance(ONE).pid, time.monotonic()
    running.stack.kill(ONE, signal.SIGTERM)
    await running.harness.failpoints.wait_closed(ONE)
    running.stack.kill(ONE, signal.SIGTERM)
    running.stack.kill(ONE, signal.SIGINT)
    assert (await asking).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    assert await running.gone(ONE, pid, told_s) < DRAIN_S


@pytest.mark.parametrize(
    "how",
    [pytest.param(signal.SIGKILL, id="killed", marks=pytest.mark.long), pytest.param(signal.SIGSTOP, id="frozen")],
)
async def test_service_without_zookeeper_stops_in_time(running: RunningStack, how: signal.Signals) -> None:
    """Nobody can be told that it goes; it goes all the same."""
    stack = running.stack
    await stack.wait_serving()
    zookeeper = stack.zookeeper_pid
    stack.restarts = False
    try:
        stack.kill(ZOOKEEPER, how)
        if how is signal.SIGKILL:
            await stack.wait_until(lambda: stack.zookeeper_pid != zookeeper, 10)
        took_s = await asyncio.gather(*(running.told_to_stop(name) for name in (ONE, "order-1")))
        assert max(took_s) < MARGIN_S
    finally:
        stack.kill(ZOOKEEPER, signal.SIGCONT)
        stack.restarts = True
    await stack.wait_serving()


async def test_sigterm_before_ready_stops_at_once(running: RunningStack) -> None:
    """While it still waits for ZooKeeper to register."""
    stack = running.stack
    await stack.wait_serving()
    stack.kill(ZOOKEEPER, signal.SIGSTOP)
    try:
        await running.told_to_stop("order-1")
        await stack.wait_until(lambda: stack.instance("order-1").pid != 0, 30)
        log = stack.data / "logs" / "order-1.log"
        pid = stack.instance("order-1").pid
        async with asyncio.timeout(30):
            while f'"pid": {pid}' not in log.read_text():  # noqa: ASYNC110  another process
                await asyncio.sleep(0.02)
        assert await running.told_to_stop("order-1") < MARGIN_S
    finally:
        stack.kill(ZOOKEEPER, signal.SIGCONT)
    await stack.wait_serving()


@pytest.mark.soak
async def test_stack_that_is_stopped_waits_for_a_drain_of_any_length(fresh_stack: FreshStack) -> None:
    """However long calls may take to come to their end, the supervisor does not kill who is still at it."""
    async with fresh_stack(settings=SETTINGS | {"drain_s": 14}) as stack, Harness(stack) as harness:
        _, _, asking = await RunningStack(harness).held_up("submitted", delay_s=10)
        await stack.stop()
        assert (await asking).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
