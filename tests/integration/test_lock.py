"""The resource lock: one holder at a time, in order, within the deadline, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from coordination.errors import Unavailable
from coordination.locks import LockLost, LockTimeout, ResourceLocks
from coordination.locks.lease import LockLease
from coordination.session import Session, SessionState
from services.runtime.zookeeper_paths import LOCKS_ROOT
from services.testkit.fair_clock import fair_s
from tests.integration.queueing import ACCOUNTANT, CASHIER, SLACK_S, nodes_left, queued
from tests.integration.relay import CREATE2, DELETE, GET_CHILDREN, MULTI, relayed
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, bridge_of, connected, expire, until


@pytest.fixture
async def locks(session: Session) -> ResourceLocks:
    """Prepared locks."""
    locks = ResourceLocks(session, root=LOCKS_ROOT)
    await locks.prepare(5)
    return locks


async def test_preparing_takes_few_requests_and_can_be_done_by_many(zookeeper: ZooKeeper) -> None:
    """All 1,024 shards are made in a few dozen requests, by several processes at once, and again for nothing."""
    async with connected(zookeeper) as one, connected(zookeeper) as two, connected(zookeeper) as three:
        root = "/elsewhere/locks"
        many = [ResourceLocks(session, root=root) for session in (one, two, three)]
        before = zookeeper.metric("zk_packets_received")
        await many[0].prepare(5)
        assert zookeeper.metric("zk_packets_received") - before < 50
        assert len(await one.get_children(root)) == 1024
        more = [ResourceLocks(session, root="/more/locks") for session in (one, two, three)]
        await asyncio.gather(*(locks.prepare(5) for locks in more))
        await more[0].prepare(5)
        assert len(await one.get_children("/more/locks")) == 1024


async def test_unprepared_shards_are_made_when_needed(session: Session) -> None:
    """Without prepare() the first lock of a shard makes its directory."""
    locks = ResourceLocks(session, root="/lazy/locks")
    async with await locks.acquire("o-1", CASHIER, timeout_s=5) as lease:
        assert lease.valid()


async def test_uncontended_acquire_is_one_round_trip(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """On the wire: exactly two requests, both sent before either is answered, and the token comes with them.

    A relay keeps both from ZooKeeper until both are seen, so neither can have been answered.
    """
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        relay.hold()
        acquiring = asyncio.create_task(clerks.acquire("o-1", CASHIER, timeout_s=5))
        await until(lambda: len(relay.requests()) == 2)
        assert relay.requests() == [CREATE2, GET_CHILDREN]
        assert relay.replies() == []
        assert not acquiring.done()
        relay.let_go()
        lease = await acquiring
        assert relay.requests() == relay.replies() == [CREATE2, GET_CHILDREN]
        assert lease.valid()
        assert [place.token for place in await locks.queue("o-1")] == [lease.token]
        assert (lease.waited_for, lease.waited_s) == (None, 0.0)
        lease.release()
        assert await clerks.drained(5)
        assert relay.requests() == [CREATE2, GET_CHILDREN, DELETE]


async def test_release_delays_no_other_request(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """On the wire: a clerk's next request leaves before the delete of the last resource is answered, every time."""
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        for number in range(20):
            async with await clerks.acquire(f"o-{number}", CASHIER, timeout_s=5):
                pass
        assert await clerks.drained(5)
        sent = [frame for frame in relay.frames if not frame.reply]
        answered = {frame.xid: place for place, frame in enumerate(relay.frames) if frame.reply}
        deletes = [frame for frame in sent if frame.type == DELETE]
        following = [sent[sent.index(frame) + 1] for frame in deletes[:-1]]
        assert [frame.type for frame in following] == [CREATE2] * 19
        for delete, create in zip(deletes, following, strict=False):
            assert relay.frames.index(create) < answered[delete.xid]


async def test_second_holder_waits_and_learns_the_first_ones_name(zookeeper: ZooKeeper, locks: ResourceLocks) -> None:
    """The second of two gets the lock when the first releases, a greater token, and the first one's name."""
    async with connected(zookeeper) as session:
        others = ResourceLocks(session, root=LOCKS_ROOT)
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


async def test_resources_are_independent(locks: ResourceLocks) -> None:
    """Resources of one shard, and resources whose ids begin alike, have queues of their own."""
    one = ResourceLocks(locks._session, root="/one/shard", shards=1)
    leases = [await one.acquire(resource, CASHIER, timeout_s=10) for resource in ("a", "a-1", "a-1-2", "b:c.d_e")]
    assert all(lease.valid() for lease in leases)
    assert sorted(await one.queues()) == ["a", "a-1", "a-1-2", "b:c.d_e"]
    for lease in leases:
        lease.release()
    assert await one.drained(5)
    assert await one.queues() == {}


async def test_waiters_are_served_in_order_of_arrival(zookeeper: ZooKeeper, session: Session) -> None:
    """Many waiters from three sessions are served in the order of their tokens, one at a time."""
    async with connected(zookeeper) as two, connected(zookeeper) as three:
        everybody = [ResourceLocks(each, root=LOCKS_ROOT) for each in (session, two, three)]
        served: list[int] = []
        inside = 0

        async def settle(locks: ResourceLocks) -> None:
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


async def test_fifty_waiters_are_served_in_order_of_arrival_and_woken_one_at_a_time(
    locks: ResourceLocks, session: Session, zookeeper: ZooKeeper
) -> None:
    """Fifty clerks of five sessions wait for one resource: they are served as they came, and each hand-over costs one
    watch event on the wire, in all."""
    holder = await locks.acquire("o-50", CASHIER, timeout_s=5)
    served: list[int] = []

    async def settle(clerks: ResourceLocks, number: int) -> None:
        async with await clerks.acquire("o-50", ACCOUNTANT, timeout_s=60):
            served.append(number)

    async with relayed(zookeeper.hosts) as relay, AsyncExitStack() as sessions:
        everybody = [
            ResourceLocks(
                await sessions.enter_async_context(Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S)), root=LOCKS_ROOT
            )
            for _ in range(5)
        ]
        waiting: list[asyncio.Task[None]] = []
        for number in range(50):
            waiting.append(asyncio.create_task(settle(everybody[number % 5], number)))
            await queued(locks, "o-50", number + 2)
        await until(lambda: sum(len(clerks._session.watches.by_path) for clerks in everybody) == 50)
        assert relay.events() == 0
        assert served == []
        holder.release()
        await asyncio.gather(*waiting)
        for clerks in everybody:
            assert await clerks.drained(5)
        assert served == list(range(50))
        assert relay.events() == 50
    assert await nodes_left(session) == []
    assert zookeeper.metric("zk_watch_count") == 0


async def test_deadline_covers_changing_predecessors(locks: ResourceLocks) -> None:
    """A waiter whose predecessors give up one after the other still leaves at its own deadline, told the holder."""
    holder = await locks.acquire("o-4", CASHIER, timeout_s=5)
    impatient = [  # long enough for all of them to be seen in the queue before the first gives up
        asyncio.create_task(locks.acquire("o-4", ACCOUNTANT, timeout_s=3.4 + 0.1 * number)) for number in range(6)
    ]
    await queued(locks, "o-4", 7)
    began = fair_s()
    with pytest.raises(LockTimeout) as caught:
        await locks.acquire("o-4", ACCOUNTANT, timeout_s=4.2)
    assert fair_s() - began < 4.2 + SLACK_S
    assert caught.value.holder == CASHIER
    assert caught.value.resource_id == "o-4"
    assert caught.value.waited_s > 4.0
    results = await asyncio.gather(*impatient, return_exceptions=True)
    assert all(isinstance(result, LockTimeout) for result in results)
    holder.release()
    assert await locks.drained(5)
    assert await locks.queues() == {}


async def take(locks: ResourceLocks, resources: list[str], *, timeout_s: float) -> LockLease:
    """Take one resource, or a batch."""
    if len(resources) == 1:
        return await locks.acquire(resources[0], CASHIER, timeout_s=timeout_s)
    return await locks.acquire_all(resources, CASHIER, timeout_s=timeout_s)


class Stopwatch:
    """How long something took, whatever its outcome."""

    def __init__(self, work: Awaitable[Any]) -> None:
        self._work = work
        self.seconds = 0.0

    async def run(self) -> object:
        began = fair_s()
        try:
            return await self._work
        except (Exception, asyncio.CancelledError) as error:
            return error
        finally:
            self.seconds = fair_s() - began


async def test_deadlines_with_zookeeper_frozen(session: Session, locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """ZooKeeper stands still: nobody comes later than 100 ms after their deadline, alone, in line or in a batch;
    a cancelled one comes at once, release() takes no time, and what all of them began is cleared up afterwards."""
    held = await locks.acquire("o-5", CASHIER, timeout_s=5)
    in_line = Stopwatch(locks.acquire("o-5", ACCOUNTANT, timeout_s=0.9))
    batch_in_line = Stopwatch(locks.acquire_all(["o-51", "o-5", "o-52"], ACCOUNTANT, timeout_s=1.0))
    cancelled = Stopwatch(locks.acquire("o-5", ACCOUNTANT, timeout_s=30))
    waiting = [asyncio.create_task(clerk.run()) for clerk in (in_line, batch_in_line, cancelled)]
    await queued(locks, "o-5", 4)
    zookeeper.pause()
    alone = Stopwatch(locks.acquire("o-6", CASHIER, timeout_s=0.3))
    batch = Stopwatch(locks.acquire_all([f"o-6-{number}" for number in range(100)], CASHIER, timeout_s=0.4))
    late = Stopwatch(locks.acquire("o-6", CASHIER, timeout_s=30))
    frozen = [asyncio.create_task(clerk.run()) for clerk in (alone, batch, late)]
    began = fair_s()
    held.release()
    assert fair_s() - began < 0.01
    with pytest.raises(LockLost):
        held.ensure()
    await asyncio.sleep(0.1)
    began = fair_s()
    for task in (waiting[2], frozen[2]):
        task.cancel()
    await asyncio.wait([waiting[2], frozen[2]])
    assert fair_s() - began < SLACK_S
    outcomes = await asyncio.gather(*waiting, *frozen)
    assert [type(outcome) for outcome in outcomes] == [
        *(LockTimeout, LockTimeout, asyncio.CancelledError),
        *(Unavailable, Unavailable, asyncio.CancelledError),
    ]
    assert alone.seconds < 0.3 + SLACK_S
    assert batch.seconds < 0.4 + SLACK_S
    assert in_line.seconds < 0.9 + SLACK_S
    assert batch_in_line.seconds < 1.0 + SLACK_S
    assert not await locks.drained(0.1)
    zookeeper.resume()
    assert await locks.drained(15)
    await session.wait_connected(10)
    assert await nodes_left(session) == []


ONE_OR_MANY = pytest.mark.parametrize(
    ("resources", "creating"),
    [(["o-7"], CREATE2), ([f"o-7-{number}" for number in range(70)], MULTI)],
    ids=["one resource", "a batch"],
)


@ONE_OR_MANY
async def test_lost_create_reply_is_found_by_its_nonce(
    locks: ResourceLocks, zookeeper: ZooKeeper, resources: list[str], creating: int
) -> None:
    """The connection drops after the create was done: the nodes made are adopted, no second ones are made."""
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        relay.lose_reply(creating, stay_away=False)
        lease = await take(clerks, resources, timeout_s=5)
        assert relay.requests().count(creating) == 1
        assert relay.replies().count(creating) == 0
        assert lease.valid()
        assert {resource: [place.token for place in queue] for resource, queue in (await locks.queues()).items()} == {
            resource: [lease.token] for resource in resources
        }
        lease.release()
        assert await clerks.drained(10)
        assert await nodes_left(session) == []


@ONE_OR_MANY
async def test_lost_create_reply_is_cleared_up(
    locks: ResourceLocks, zookeeper: ZooKeeper, resources: list[str], creating: int
) -> None:
    """As above, but ZooKeeper stays away past the deadline: the nodes made are removed when it is back, although their
    session lives on."""
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=10) as session:
        await session.wait_connected(5)
        before, clerks = session.session_id, ResourceLocks(session, root=LOCKS_ROOT)
        relay.lose_reply(creating, stay_away=True)
        with pytest.raises(Unavailable):
            await take(clerks, resources, timeout_s=0.5)
        assert len(await locks.queues()) == len(resources)
        relay.let_go()
        await session.wait_connected(10)
        assert await clerks.drained(15)
        assert session.session_id == before
        assert await locks.queues() == {}


async def test_dropped_connection_keeps_a_waiters_place(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """The connection drops while a waiter watches, and again while it lists: it is served in its old place."""
    holder = await locks.acquire("o-16", CASHIER, timeout_s=5)
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=10) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        waiting = asyncio.create_task(clerks.acquire("o-16", ACCOUNTANT, timeout_s=20))
        await queued(locks, "o-16", 2)
        second = (await locks.queue("o-16"))[1].token
        await until(lambda: len(session.watches.by_path) == 1)
        relay.forget()
        relay.lose_reply(GET_CHILDREN, stay_away=False)
        relay.cut()
        await until(lambda: relay.requests().count(GET_CHILDREN) >= 2 and len(session.watches.by_path) == 1)
        holder.release()
        async with await waiting as lease:
            assert lease.token == second
        assert await clerks.drained(5)
    assert await locks.queues() == {}


async def test_cancelled_waiter_leaves_nothing(session: Session, locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """A cancelled waiter's node goes, its watch is forgotten, and whoever stood behind it moves up."""
    holder = await locks.acquire("o-8", CASHIER, timeout_s=5)
    waiter = asyncio.create_task(locks.acquire("o-8", ACCOUNTANT, timeout_s=30))
    await queued(locks, "o-8", 2)
    last = asyncio.create_task(locks.acquire("o-8", ACCOUNTANT, timeout_s=30))
    await queued(locks, "o-8", 3)
    await until(lambda: len(session.watches.by_path) == 2)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await locks.drained(5)
    assert len(await locks.queue("o-8")) == 2
    await until(lambda: sum(map(len, session.watches.by_path.values())) == 1)
    holder.release()
    lease = await last
    lease.release()
    assert await locks.drained(5)
    assert session.watches.by_path == {}
    assert await nodes_left(session) == []
    assert zookeeper.metric("zk_watch_count") == 0


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 6, 10, 20])
async def test_acquire_cancelled_anywhere_leaves_no_node(session: Session, locks: ResourceLocks, turns: int) -> None:
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


async def settle_new_resources(locks: ResourceLocks, numbers: range) -> None:
    """Lock and release resources never seen before, twenty at a time."""
    pile = iter(numbers)

    async def clerk() -> None:
        for number in pile:
            async with await locks.acquire(f"resource-{number}", CASHIER, timeout_s=10) as lease:
                lease.ensure()

    await asyncio.gather(*(clerk() for _ in range(20)))
    assert await locks.drained(10)


@pytest.mark.parametrize(
    "resources",
    [3_000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])],
)
async def test_released_resources_leave_no_node(
    session: Session, locks: ResourceLocks, zookeeper: ZooKeeper, resources: int
) -> None:
    """However many new resources are locked and released, no node, watch or bookkeeping stays, and the memory in use
    after all of them is that after a tenth of them, give or take 128 kB: less than two bytes a resource in the end.

    Half of it is the buffer that the connection's thread holds while it reads, at either measurement or at both."""
    nodes_before = zookeeper.metric("zk_znode_count")
    tracemalloc.start()
    try:
        await settle_new_resources(locks, range(resources // 10))
        gc.collect()
        early, _ = tracemalloc.get_traced_memory()
        await settle_new_resources(locks, range(resources // 10, resources))
        gc.collect()
        late, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert late - early < 131_072

    async def nothing_left() -> bool:
        try:
            return await nodes_left(session) == []
        except Unavailable:  # tracing memory held up the loop for longer than the session
            return False

    await until(nothing_left)
    assert zookeeper.metric("zk_znode_count") == nodes_before
    assert zookeeper.metric("zk_ephemerals_count") == 0
    assert zookeeper.metric("zk_watch_count") == 0
    assert session._queue.in_flight == set()
    assert session.watches.by_path == {}


async def test_lease_ends_with_its_session(session: Session, zookeeper: ZooKeeper, locks: ResourceLocks) -> None:
    """After expiry a lease is invalid for ever, also under the new session, and others may hold the resource."""
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
        others = ResourceLocks(other, root=LOCKS_ROOT)
        async with await others.acquire("o-10", ACCOUNTANT, timeout_s=5) as taken:
            assert taken.token > lease.token
            lease.release()
            assert await locks.drained(5)
            assert taken.valid()
            assert len(await others.queue("o-10")) == 1
        assert await others.drained(5)


async def test_waiter_whose_session_is_lost_queues_again(zookeeper: ZooKeeper, locks: ResourceLocks) -> None:
    """A waiter that lost its place with its session takes another, within the same deadline."""
    holder = await locks.acquire("o-11", CASHIER, timeout_s=5)
    async with connected(zookeeper) as other:
        others = ResourceLocks(other, root=LOCKS_ROOT)
        waiting = asyncio.create_task(others.acquire("o-11", ACCOUNTANT, timeout_s=10))
        await queued(locks, "o-11", 2)
        await expire(other)
        await queued(locks, "o-11", 2)
        holder.release()
        lease = await waiting
        assert lease.valid()
        lease.release()
        assert await others.drained(5)


async def test_dead_holder_is_waited_out(zookeeper: ZooKeeper, locks: ResourceLocks) -> None:
    """A holder that died keeps the resource until its session expires; then the next in line has it."""
    dying = Session(zookeeper.hosts, timeout_s=1.0, name="dying")
    await dying.start()
    await dying.wait_connected(5)
    await ResourceLocks(dying, root=LOCKS_ROOT).acquire("o-12", CASHIER, timeout_s=5)
    began = time.monotonic()
    bridge_of(dying).client._stopped.set()  # no close request, no reconnection: as a killed process
    bridge_of(dying).connection.abort()
    lease = await locks.acquire("o-12", ACCOUNTANT, timeout_s=10)
    assert time.monotonic() - began > 0.4
    assert lease.waited_for == CASHIER
    lease.release()
    await locks.drained(5)
    await dying.close(timeout_s=0.1)


async def test_valid_lapses_without_a_notification(
    session: Session, locks: ResourceLocks, zookeeper: ZooKeeper
) -> None:
    """A holder that could hear nothing for a session's length, as when paused, knows it at its first look."""
    lease = await locks.acquire("o-13", CASHIER, timeout_s=5)
    zookeeper.pause()
    time.sleep(SESSION_TIMEOUT_S)  # noqa: ASYNC251 (the loop is to hear of nothing)
    assert session.state is SessionState.CONNECTED
    assert not lease.valid()
    lease.release()
    zookeeper.resume()
    assert await locks.drained(10)


async def test_enter_excludes_no_other_holder(locks: ResourceLocks) -> None:
    """With the guard switched off several hold the resource at once, each with a token of its own."""
    first = await locks.acquire("o-14", CASHIER, timeout_s=5)
    second = await locks.enter("o-14", ACCOUNTANT, timeout_s=5)
    assert first.valid()
    assert second.valid()
    assert second.token > first.token
    first.release()
    second.release()
    assert await locks.drained(5)


async def test_forked_child_is_refused_at_once(locks: ResourceLocks) -> None:
    """In a forked child, whose threads are gone, every call says so instead of hanging or writing on the parent's
    connection; and the parent's locks are as they were."""
    lease = await locks.acquire("o-17", CASHIER, timeout_s=5)
    batch = await locks.acquire_all(["o-18", "o-19"], CASHIER, timeout_s=5)
    calls: dict[str, Callable[[], Any]] = {
        "prepare": lambda: locks.prepare(5),
        "acquire": lambda: locks.acquire("o-20", CASHIER, timeout_s=5),
        "acquire_all": lambda: locks.acquire_all(["o-20", "o-21"], CASHIER, timeout_s=5),
        "enter": lambda: locks.enter("o-20", CASHIER, timeout_s=5),
        "queue": lambda: locks.queue("o-17"),
        "queues": locks.queues,
        "drained": lambda: locks.drained(5),
    }
    for name, held in {"lease": lease, "batch": batch, "resource of a batch": batch["o-18"]}.items():
        calls |= {
            f"{name}.ensure": held.ensure,
            f"{name}.lost": held.lost,
            f"{name}.on_lost": partial(held.on_lost, lambda: None),
            f"{name}.aclose": held.aclose,
            f"{name}.release": held.release,
        }
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            verdicts = {name: verdict(call) for name, call in calls.items()}
            verdicts["valid"] = str(lease.valid() or batch.valid())
            os.write(tell, json.dumps(verdicts).encode())
        finally:
            os._exit(0)
    os.close(tell)
    answer = await asyncio.wait_for(asyncio.to_thread(os.read, told, 65_536), 10)
    os.waitpid(child, 0)  # noqa: ASYNC222 (it ends right after writing)
    os.close(told)
    assert json.loads(answer) == dict.fromkeys(calls, "WrongProcess") | {"valid": "False"}
    for held in (lease, batch):
        held.ensure()
        held.release()
    assert await locks.drained(5)
    assert await locks.queues() == {}


def verdict(call: Callable[[], Any]) -> str:
    """Make a call, and the first step of it if it is a coroutine's; return the error's name."""
    try:
        made = call()
        if isinstance(made, Coroutine):
            made.send(None)
    except Exception as error:
        return type(error).__name__
    return "no error"


@pytest.mark.parametrize("resource_id", ["", "a b", "a/b", "ä", "x" * 65, "a\n"])
async def test_bad_resource_ids_are_refused(locks: ResourceLocks, resource_id: str) -> None:
    """Only 1 to 64 of A-Z a-z 0-9 _ . : - make a resource id; nothing is sent for another."""
    with pytest.raises(ValueError, match="resource id"):
        await locks.acquire(resource_id, CASHIER, timeout_s=1)
    with pytest.raises(ValueError, match="resource id"):
        await locks.queue(resource_id)
