"""The order lock: one holder at a time, in order, within the deadline, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from coordination.errors import LockLost, LockTimeout, Unavailable
from coordination.lock import Holder, OrderLocks
from coordination.session import Session, SessionState
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, connected, expire, until

SLACK_S = 0.25
CASHIER = Holder("alice", "cashier", "payment-1", "pay-1", 1_700_000_000_000)
ACCOUNTANT = Holder("bob", "accountant", "payment-2", "pay-2", 1_700_000_000_500)


@pytest.fixture
async def locks(session: Session) -> OrderLocks:
    """Prepared locks."""
    locks = OrderLocks(session)
    await locks.prepare(5)
    return locks


async def nodes_left(session: Session) -> list[str]:
    """Return every lock node there is."""
    names: list[str] = []
    for shard in await session.get_children("/countinghouse/locks"):
        names += await session.get_children(f"/countinghouse/locks/{shard}")
    return names


async def queued(locks: OrderLocks, order_id: str, places: int) -> None:
    """Wait until an order's queue has so many places."""

    async def so() -> bool:
        return len(await locks.queue(order_id)) == places

    await until(so)


class Wire:
    """Notes the requests that leave a session's connection, pings aside."""

    def __init__(self, session: Session) -> None:
        self.sent: list[str] = []
        connection: Any = session._connection
        submit = connection._submit

        def noting(request: Any, *args: Any) -> None:
            if type(request).__name__ != "Ping":
                self.sent.append(type(request).__name__)
            submit(request, *args)

        connection._submit = noting


async def test_preparing_is_quick_and_can_be_done_by_many(zookeeper: ZooKeeper) -> None:
    """All shards are made in under half a second, by several processes at once, and again for nothing."""
    async with connected(zookeeper) as one, connected(zookeeper) as two, connected(zookeeper) as three:
        root = "/elsewhere/locks"
        many = [OrderLocks(session, root=root) for session in (one, two, three)]
        began = time.monotonic()
        await many[0].prepare(5)
        assert time.monotonic() - began < 0.5
        assert len(await one.get_children(root)) == 1024
        more = [OrderLocks(session, root="/more/locks") for session in (one, two, three)]
        await asyncio.gather(*(locks.prepare(5) for locks in more))
        await more[0].prepare(5)
        assert len(await one.get_children("/more/locks")) == 1024


async def test_unprepared_shards_are_made_when_needed(session: Session) -> None:
    """Without prepare() the first lock of a shard makes its directory."""
    locks = OrderLocks(session, root="/lazy/locks")
    async with await locks.acquire("o-1", CASHIER, timeout_s=5) as lease:
        assert lease.valid()


async def test_uncontended_acquire_is_one_round_trip(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """Both its requests leave before any reply can come: here ZooKeeper is frozen until they have."""
    wire = Wire(session)
    zookeeper.pause()
    acquiring = asyncio.create_task(locks.acquire("o-1", CASHIER, timeout_s=5))
    await until(lambda: len(wire.sent) >= 2)
    assert not acquiring.done()
    zookeeper.resume()
    lease = await acquiring
    assert wire.sent == ["Create2", "GetChildren"]
    assert lease.valid()
    assert lease.waited_for is None
    assert lease.waited_s == 0.0
    lease.release()
    assert await locks.drained(5)
    assert wire.sent == ["Create2", "GetChildren", "Delete"]


async def test_second_clerk_waits_and_is_told_for_whom(zookeeper: ZooKeeper, locks: OrderLocks) -> None:
    """The second of two gets the lock when the first releases, a greater token, and the first one's name."""
    async with connected(zookeeper) as session:
        others = OrderLocks(session)
        first = await locks.acquire("o-2", CASHIER, timeout_s=5)
        waiting = asyncio.create_task(others.acquire("o-2", ACCOUNTANT, timeout_s=5))
        await queued(locks, "o-2", 2)
        assert [(place.position, place.holder) for place in await locks.queue("o-2")] == [
            (0, CASHIER),
            (1, ACCOUNTANT),
        ]
        assert set(await others.queues()) == {"o-2"}
        assert not waiting.done()
        first.release()
        assert not first.valid()
        second = await waiting
        assert second.token > first.token
        assert second.waited_for == CASHIER
        assert second.waited_s > 0
        second.release()
        assert await others.drained(5)


async def test_orders_do_not_wait_for_each_other(locks: OrderLocks) -> None:
    """Orders of one shard, and orders whose ids begin alike, have queues of their own."""
    one = OrderLocks(locks._session, root="/one/shard", shards=1)
    leases = [await one.acquire(order, CASHIER, timeout_s=1) for order in ("a", "a-1", "a-1-2", "b:c.d_e")]
    assert all(lease.valid() for lease in leases)
    assert sorted(await one.queues()) == ["a", "a-1", "a-1-2", "b:c.d_e"]
    for lease in leases:
        lease.release()
    assert await one.drained(5)
    assert await one.queues() == {}


async def test_first_come_first_served(zookeeper: ZooKeeper, session: Session) -> None:
    """Many waiters from three sessions are served in the order of their tokens, one at a time."""
    async with connected(zookeeper) as two, connected(zookeeper) as three:
        everybody = [OrderLocks(each) for each in (session, two, three)]
        served: list[int] = []
        inside = 0

        async def settle(locks: OrderLocks) -> None:
            nonlocal inside
            lease = await locks.acquire("o-3", CASHIER, timeout_s=20)
            inside += 1
            assert inside == 1
            lease.ensure()
            served.append(lease.token)
            await asyncio.sleep(0)
            inside -= 1
            lease.release()

        await asyncio.gather(*(settle(everybody[number % 3]) for number in range(60)))
        assert len(served) == 60
        assert served == sorted(served)
        for locks in everybody:
            assert await locks.drained(5)
        assert await nodes_left(session) == []


async def test_deadline_covers_changing_predecessors(locks: OrderLocks) -> None:
    """A waiter whose predecessors give up one after the other still leaves at its own deadline, told the holder."""
    holder = await locks.acquire("o-4", CASHIER, timeout_s=5)
    impatient = [
        asyncio.create_task(locks.acquire("o-4", ACCOUNTANT, timeout_s=0.1 * number)) for number in range(2, 8)
    ]
    await queued(locks, "o-4", 7)
    began = time.monotonic()
    with pytest.raises(LockTimeout) as caught:
        await locks.acquire("o-4", ACCOUNTANT, timeout_s=1.0)
    assert time.monotonic() - began < 1.0 + SLACK_S
    assert caught.value.holder == CASHIER
    assert caught.value.order_id == "o-4"
    assert 0.8 < caught.value.waited_s < 1.0 + SLACK_S
    results = await asyncio.gather(*impatient, return_exceptions=True)
    assert all(isinstance(result, LockTimeout) for result in results)
    holder.release()
    assert await locks.drained(5)
    assert await locks.queues() == {}


async def test_deadlines_with_zookeeper_frozen(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """Acquire keeps its deadline, release returns at once, and what they began is cleared up afterwards."""
    held = await locks.acquire("o-5", CASHIER, timeout_s=5)
    waiting = asyncio.create_task(locks.acquire("o-5", ACCOUNTANT, timeout_s=0.7))
    await queued(locks, "o-5", 2)
    zookeeper.pause()
    began = time.monotonic()
    with pytest.raises(Unavailable):
        await locks.acquire("o-6", CASHIER, timeout_s=0.3)
    assert time.monotonic() - began < 0.3 + SLACK_S
    with pytest.raises((Unavailable, LockTimeout)):
        await waiting
    assert time.monotonic() - began < 0.7 + SLACK_S
    began = time.monotonic()
    held.release()
    assert time.monotonic() - began < 0.05
    with pytest.raises(LockLost):
        held.ensure()
    assert not await locks.drained(0.1)
    zookeeper.resume()
    assert await locks.drained(15)
    await session.wait_connected(10)
    assert await nodes_left(session) == []


async def test_lost_create_reply_is_found_by_its_nonce(session: Session, locks: OrderLocks) -> None:
    """The connection drops after the create was sent: the node made is adopted, no second one stays."""
    connection: Any = session._connection
    read = connection._read_header
    dropped = False

    def dropping(timeout: float) -> Any:
        nonlocal dropped
        header, buffer, offset = read(timeout)
        if not dropped and header.xid > 0:  # the create's reply: done over there, unheard of here
            dropped = True
            raise OSError("the cable was pulled")
        return header, buffer, offset

    connection._read_header = dropping
    wire = Wire(session)
    lease = await locks.acquire("o-7", CASHIER, timeout_s=5)
    assert dropped
    assert wire.sent.count("Create2") == 1
    assert lease.valid()
    assert [place.token for place in await locks.queue("o-7")] == [lease.token]
    lease.release()
    assert await locks.drained(10)
    assert await nodes_left(session) == []


async def test_lost_create_reply_is_cleared_up(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """As above, but ZooKeeper stays away past the deadline: the node made is removed when it is back."""
    connection: Any = session._connection
    read = connection._read_header

    def dropping(timeout: float) -> Any:
        header, buffer, offset = read(timeout)
        if header.xid > 0:
            connection._read_header = read
            zookeeper.pause()
            raise OSError("the cable was pulled")
        return header, buffer, offset

    connection._read_header = dropping
    with pytest.raises(Unavailable):
        await locks.acquire("o-15", CASHIER, timeout_s=0.5)
    zookeeper.resume()
    await session.wait_connected(10)
    assert len(await nodes_left(session)) <= 1
    assert await locks.drained(15)
    assert await nodes_left(session) == []


async def test_cancelled_waiter_leaves_nothing(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """A cancelled waiter's node goes, its watch is forgotten, and whoever stood behind it moves up."""
    holder = await locks.acquire("o-8", CASHIER, timeout_s=5)
    waiter = asyncio.create_task(locks.acquire("o-8", ACCOUNTANT, timeout_s=30))
    await queued(locks, "o-8", 2)
    last = asyncio.create_task(locks.acquire("o-8", ACCOUNTANT, timeout_s=30))
    await queued(locks, "o-8", 3)
    await until(lambda: len(session._watches) == 2)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await locks.drained(5)
    assert len(await locks.queue("o-8")) == 2
    await until(lambda: sum(map(len, session._watches.values())) == 1)
    holder.release()
    lease = await last
    lease.release()
    assert await locks.drained(5)
    assert session._watches == {}
    assert await nodes_left(session) == []
    assert zookeeper.metric("zk_watch_count") == 0


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 6, 10, 20])
async def test_cancelled_anywhere_leaves_nothing(session: Session, locks: OrderLocks, turns: int) -> None:
    """Wherever in its course an acquire is cancelled, its node ends."""
    acquiring = asyncio.create_task(locks.acquire(f"o-9-{turns}", CASHIER, timeout_s=5))
    for _ in range(turns):
        await asyncio.sleep(0)
    acquiring.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        (await acquiring).release()
    await session.exists("/")  # replies come in order: that of the create has been seen now
    await asyncio.sleep(0)
    assert await locks.drained(5)
    assert await nodes_left(session) == []


async def test_nothing_left_after_a_thousand_orders(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """A thousand new orders leave no node, no watch and no bookkeeping."""
    nodes_before = zookeeper.metric("zk_znode_count")

    async def clerk(number: int) -> None:
        for turn in range(50):
            async with await locks.acquire(f"bill-{number}-{turn}", CASHIER, timeout_s=10) as lease:
                lease.ensure()

    await asyncio.gather(*(clerk(number) for number in range(20)))
    assert await locks.drained(10)
    assert await nodes_left(session) == []
    assert zookeeper.metric("zk_znode_count") == nodes_before
    assert zookeeper.metric("zk_ephemerals_count") == 0
    assert zookeeper.metric("zk_watch_count") == 0
    assert session._in_flight == set()
    assert session._watches == {}


async def test_lease_ends_with_its_session(session: Session, zookeeper: ZooKeeper, locks: OrderLocks) -> None:
    """After expiry a lease is invalid for ever, also under the new session, and others may hold the order."""
    lease = await locks.acquire("o-10", CASHIER, timeout_s=5)
    assert lease.valid()
    changes: list[SessionState] = []
    session.subscribe(lambda change: changes.append(change.state))
    await expire(session)
    await until(lambda: SessionState.CONNECTED in changes)
    assert not lease.valid()
    with pytest.raises(LockLost):
        lease.ensure()
    async with connected(zookeeper) as other:
        others = OrderLocks(other)
        async with await others.acquire("o-10", ACCOUNTANT, timeout_s=5) as taken:
            assert taken.token > lease.token
            lease.release()
            assert await locks.drained(5)
            assert taken.valid()
            assert len(await others.queue("o-10")) == 1
        assert await others.drained(5)


async def test_waiter_whose_session_is_lost_queues_again(zookeeper: ZooKeeper, locks: OrderLocks) -> None:
    """A waiter that lost its place with its session takes another, within the same deadline."""
    holder = await locks.acquire("o-11", CASHIER, timeout_s=5)
    async with connected(zookeeper) as other:
        others = OrderLocks(other)
        waiting = asyncio.create_task(others.acquire("o-11", ACCOUNTANT, timeout_s=10))
        await queued(locks, "o-11", 2)
        await expire(other)
        await queued(locks, "o-11", 2)
        holder.release()
        lease = await waiting
        assert lease.valid()
        lease.release()
        assert await others.drained(5)


async def test_dead_holder_is_waited_out(zookeeper: ZooKeeper, locks: OrderLocks) -> None:
    """A holder that died keeps the order until its session expires; then the next in line has it."""
    dying = Session(zookeeper.hosts, timeout_s=1.0, name="dying")
    await dying.start()
    await dying.wait_connected(5)
    await OrderLocks(dying).acquire("o-12", CASHIER, timeout_s=5)
    began = time.monotonic()
    assert dying._connection is not None
    assert dying._client is not None
    dying._client._stopped.set()  # no close request, no reconnection: as a killed process
    dying._connection.abort()
    lease = await locks.acquire("o-12", ACCOUNTANT, timeout_s=10)
    assert 0.4 < time.monotonic() - began < 5
    assert lease.waited_for == CASHIER
    lease.release()
    await locks.drained(5)
    await dying.close(timeout_s=0.1)


async def test_valid_lapses_though_nobody_was_told(session: Session, locks: OrderLocks, zookeeper: ZooKeeper) -> None:
    """A holder that could hear nothing for a session's length, as when paused, knows it at its first look."""
    lease = await locks.acquire("o-13", CASHIER, timeout_s=5)
    zookeeper.pause()
    time.sleep(SESSION_TIMEOUT_S)  # noqa: ASYNC251 (the loop is to hear of nothing)
    assert session.state is SessionState.CONNECTED
    assert not lease.valid()
    lease.release()
    zookeeper.resume()
    assert await locks.drained(10)


async def test_enter_excludes_nobody(locks: OrderLocks) -> None:
    """With the guard switched off several hold the order at once, each with a token of its own."""
    first = await locks.acquire("o-14", CASHIER, timeout_s=5)
    second = await locks.enter("o-14", ACCOUNTANT, timeout_s=5)
    assert first.valid()
    assert second.valid()
    assert second.token > first.token
    first.release()
    second.release()
    assert await locks.drained(5)


@pytest.mark.parametrize("order_id", ["", "a b", "a/b", "ä", "x" * 65, "a\n"])
async def test_bad_order_ids_are_refused(locks: OrderLocks, order_id: str) -> None:
    """Only 1 to 64 of A-Z a-z 0-9 _ . : - make an order id; nothing is sent for another."""
    with pytest.raises(ValueError, match="order id"):
        await locks.acquire(order_id, CASHIER, timeout_s=1)
    with pytest.raises(ValueError, match="order id"):
        await locks.queue(order_id)
