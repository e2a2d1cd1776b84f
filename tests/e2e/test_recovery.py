"""Holders that freeze, die, are stopped or lose ZooKeeper: what others do meanwhile, and what is left in the end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from kazoo.exceptions import NoNodeError

from coordination.locks.lock import Holder, ResourceLocks
from coordination.session import Session
from countinghouse.payment.v1 import payment_pb2 as pb
from services.checker.evidence import Answered
from services.devstack.stack import Stack
from services.devstack.state import InstanceState
from services.kernel.clock import SystemClock
from services.kernel.errors import AlreadyExists, OutcomeUnknown, Unavailable
from services.runtime.zookeeper_paths import LOCKS_ROOT
from services.testkit.client import CallResult, new_id
from services.testkit.failpoints import DROP_REPLY, KILL, STOP
from services.testkit.harness import Harness
from tests.e2e.checked import charges, checked_books, states
from tests.e2e.conftest import SETTINGS, options

ONE, TWO = "payment-1", "payment-2"
AT_ONCE = 24
_LOCKS = "/countinghouse/locks"
#: Releasing a lock delays nobody's reply; so long may the last one take.
_RELEASED_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alone(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack whose workers and leases are too slow for these tests: what is finished, a clerk has finished."""
    slow = {"lease_s": 300, "recovery_interval_s": 300, "drain_s": 5}
    data = tmp_path_factory.mktemp("alone") / "data"
    async with Stack(options(data, replicas={"payment": 2}, settings=slow)) as stack, Harness(stack) as harness:
        yield harness


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def busy(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack under load, with its workers at work."""
    data = tmp_path_factory.mktemp("busy") / "data"
    settings = SETTINGS | {"drain_s": 6}
    async with Stack(options(data, replicas={"payment": 2}, settings=settings)) as stack, Harness(stack) as harness:
        yield harness


class TestClerks:
    """What one clerk does with an order that another has left behind."""

    async def test_frozen_holder_is_refused_by_its_stale_fence(self, alone: Harness) -> None:
        """Frozen past its session, about to move money: the other clerk's order is settled; the woken one's fence is
        stale, its retry gets the stored answer, and there is one journal.
        """
        order_id, key = await alone.new_order(), new_id("settle")
        await alone.failpoints.arm(ONE, "submitted", STOP, order_id)
        frozen = asyncio.create_task(alone.cashier.settle_once(order_id, key, at=ONE, timeout_s=30))
        try:
            await alone.wait_frozen(ONE)
            other = await alone.accountant.settle(order_id, at=TWO)
            assert isinstance(other.error, AlreadyExists)
            assert other.error.metadata["clerk"] == alone.cashier.name
            assert not frozen.done()
        finally:
            alone.thaw(ONE)
        woken = await frozen
        assert isinstance(woken.error, OutcomeUnknown)
        assert (woken.error.reason, woken.error.metadata["guard"]) == ("STALE_FENCE", "fence")
        again = await alone.cashier.settle(order_id, key, at=TWO)
        assert again.replayed
        books = await checked_books(alone)
        assert charges(books, order_id) == [again.payment.payment_id] == [other.error.metadata["payment_id"]]

    @pytest.mark.parametrize("point", ["claimed", "submitted", "posted", "recorded"])
    async def test_accountant_finishes_a_half_settled_order(self, alone: Harness, point: str) -> None:
        """They finish the dead cashier's payment; their own is declined, and moved nothing."""
        await alone.stack.wait_serving(ONE, TWO)
        order_id, key = await alone.new_order(), new_id("settle")
        pid = alone.stack.instance(ONE).pid
        await alone.failpoints.arm(ONE, point, KILL, order_id)
        died = await alone.cashier.settle_once(order_id, key, at=ONE, timeout_s=8)
        assert died.open
        await alone.wait_died(ONE, pid)
        (left,) = [str(row["payment_id"]) for row in (await alone.snapshot()).payments if row["order_id"] == order_id]
        found = await alone.accountant.settle(order_id, at=TWO)
        assert isinstance(found.error, AlreadyExists)
        assert (found.error.metadata["payment_id"], found.error.metadata["clerk"]) == (left, alone.cashier.name)
        books = await checked_books(alone)
        assert charges(books, order_id) == [left]
        assert states(books, [left]) == ["SUCCEEDED"]
        (journal,) = [row for row in books.journals if row["payment_id"] == left]
        (order,) = [row for row in books.orders if row["order_id"] == order_id]
        assert [journal["clerk_name"], order["settled_by_name"]] == [alone.cashier.name] * 2
        again = await alone.cashier.settle(order_id, key, at=TWO)
        assert again.replayed
        assert again.payment.payment_id == left

    async def test_retry_after_a_lost_reply_gets_the_stored_response(self, alone: Harness) -> None:
        """The retry, at the other instance, gets the stored bytes, marked; and so does every one after it."""
        await alone.stack.wait_serving(ONE, TWO)
        order_id, key = await alone.new_order(), new_id("settle")
        await alone.failpoints.arm(ONE, "recorded", DROP_REPLY, order_id)
        lost = await alone.cashier.settle_once(order_id, key, at=ONE, timeout_s=1.0)
        assert lost.open
        again = [await alone.cashier.settle(order_id, key, at=instance) for instance in (TWO, ONE, TWO)]
        assert all(seen.replayed for seen in again)
        assert len({seen.body for seen in again}) == 1
        books = await checked_books(alone)
        assert charges(books, order_id) == [again[0].payment.payment_id]


class TestLoad:
    """Many orders at once, while instances and ZooKeeper come and go."""

    @pytest.mark.timeout(240)
    @pytest.mark.parametrize("count", [200, pytest.param(1_000, marks=pytest.mark.long)])
    async def test_many_orders_leave_no_node_behind(
        self, busy: Harness, capsys: pytest.CaptureFixture[str], count: int
    ) -> None:
        """Cashier and accountant at two instances; the books are right, and ZooKeeper holds nothing of any order."""
        clock = SystemClock()
        counter = asyncio.Semaphore(AT_ONCE)

        async def made() -> str:
            async with counter:
                return await busy.new_order(100)

        async def settled(number: int, order_id: str) -> CallResult:
            async with counter:
                clerk = (busy.cashier, busy.accountant)[number % 2]
                return await clerk.settle(order_id, at=(ONE, TWO)[number // 2 % 2])

        order_ids = await asyncio.gather(*(made() for _ in range(count)))
        began_s = clock.monotonic_s()
        answers = await asyncio.gather(*(settled(number, order_id) for number, order_id in enumerate(order_ids)))
        took_s = clock.monotonic_s() - began_s
        with capsys.disabled():
            print(f"\n{count} orders settled by {AT_ONCE} at once in {took_s:.1f} s: {count / took_s:.0f} a second")  # noqa: T201  a measurement, not a check
        assert {seen.payment.state for seen in answers} == {pb.PAYMENT_STATE_SUCCEEDED}
        books = await checked_books(busy)
        assert all(len(charges(books, order_id)) == 1 for order_id in order_ids)
        async with Session(busy.stack.zookeeper, name="test", security=busy.stack.zookeeper_security()) as session:
            await until_no_lock(session)
            named = [path async for path in paths(session, "/") if any(order_id in path for order_id in order_ids)]
        assert named == []

    async def test_stopped_instance_finishes_what_it_has_begun(self, busy: Harness) -> None:
        """SIGTERM while twenty settles stand in line for their locks: new calls are refused, none of these fails."""
        before = (await busy.failpoints.list(ONE)).get("accepted")
        assert before is not None
        orders = [(await busy.new_order(), new_id("settle")) for _ in range(20)]
        pid = busy.stack.instance(ONE).pid
        async with Session(busy.stack.zookeeper, name="test", security=busy.stack.zookeeper_security()) as session:
            locks = ResourceLocks(session, root=LOCKS_ROOT)
            me = Holder("test", {"role": "operator", "instance": "test"}, SystemClock().now_ms())
            leases = [await locks.acquire(order_id, me, timeout_s=5) for order_id, _ in orders]
            running = [
                asyncio.create_task(busy.cashier.settle_once(order_id, key, at=ONE, timeout_s=10))
                for order_id, key in orders
            ]
            await busy.failpoints.wait_passed(ONE, "accepted", before.passed + len(orders))
            busy.stack.kill(ONE, signal.SIGTERM)
            await busy.failpoints.wait_closed(ONE)
            assert not any(task.done() for task in running)
            for lease in leases:
                await lease.aclose()
        seen = await asyncio.gather(*running)
        assert [answer.error for answer in seen] == [None] * len(orders)
        assert {answer.payment.state for answer in seen} == {pb.PAYMENT_STATE_SUCCEEDED}
        await busy.wait_died(ONE, pid)
        await busy.stack.wait_serving(ONE)
        for (order_id, key), answer in zip(orders, seen, strict=True):
            busy.connections.answers.append(Answered(key, True, answer.body))
            again = await busy.cashier.settle(order_id, key, at=ONE)
            assert (again.body, again.replayed) == (answer.body, True)
        await checked_books(busy)

    async def test_zookeeper_is_killed_and_comes_back(self, busy: Harness) -> None:
        """While it is away every settle is answered UNAVAILABLE within its deadline; then all goes on unaided."""
        await busy.stack.wait_serving(ONE, TWO)
        orders = [(await busy.new_order(), new_id("settle")) for _ in range(60)]
        under_way = orders[:20]
        pid = busy.stack.zookeeper_pid
        load = [
            asyncio.create_task(busy.cashier.settle(order_id, key, at=(ONE, TWO)[number % 2]))
            for number, (order_id, key) in enumerate(under_way)
        ]
        await asyncio.wait(load, return_when=asyncio.FIRST_COMPLETED)
        busy.stack.restarts = False
        try:
            busy.stack.kill("zookeeper")
            await busy.stack.wait_until(lambda: busy.stack.zookeeper_pid != pid, 10)
            for timeout_s in (2.0, 1.0):
                away = orders[20:40] if timeout_s == 2.0 else orders[40:]
                seen = await asyncio.gather(
                    *(
                        busy.cashier.settle_once(order_id, key, at=(ONE, TWO)[number % 2], timeout_s=timeout_s)
                        for number, (order_id, key) in enumerate(away)
                    )
                )
                assert {type(answer.error) for answer in seen} == {Unavailable}
                assert {answer.error.reason for answer in seen if answer.error} == {"ZOOKEEPER_UNAVAILABLE"}
            for instance in (ONE, TWO):
                assert busy.stack.instance(instance).state is InstanceState.SERVING
        finally:
            busy.stack.restarts = True
        later = await asyncio.gather(
            *(busy.cashier.settle(*order, at=(ONE, TWO)[number % 2]) for number, order in enumerate(orders[20:]))
        )
        earlier = await asyncio.gather(*load)
        assert {answer.payment.state for answer in (*earlier, *later)} == {pb.PAYMENT_STATE_SUCCEEDED}
        books = await checked_books(busy)
        assert all(len(charges(books, order_id)) == 1 for order_id, _ in orders)


async def paths(session: Session, root: str) -> AsyncIterator[str]:
    """Every node below `root`, the service's own housekeeping nodes included."""
    waiting = [root]
    while waiting:
        batch, waiting = waiting[:64], waiting[64:]
        for path, children in zip(
            batch, await asyncio.gather(*(_children(session, path) for path in batch)), strict=True
        ):
            yield path
            waiting += [f"{path.rstrip('/')}/{name}" for name in children]


async def _children(session: Session, path: str) -> list[str]:
    try:
        return await session.get_children(path, timeout_s=10)
    except NoNodeError:
        return []  # it has gone since its parent was listed


async def until_no_lock(session: Session) -> None:
    """Waits until every shard of the lock directory is empty."""
    async with asyncio.timeout(_RELEASED_S):
        while [path async for path in paths(session, _LOCKS) if path.count("/") > _LOCKS.count("/") + 1]:  # noqa: ASYNC110  the nodes go one by one
            await asyncio.sleep(0.1)
