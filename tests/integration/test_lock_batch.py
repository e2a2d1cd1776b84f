"""Batches: many resources locked in one step, all or none, and never against each other."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import defaultdict

import pytest

from coordination.locks import LockLost, LockTimeout
from coordination.locks.lock import MAX_RESOURCES, Holder, ResourceLocks
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.queueing import ACCOUNTANT, CASHIER, nodes_left, queued
from tests.integration.relay import DELETE, MULTI, MULTI_READ, relayed
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, connected, until


@pytest.fixture
async def locks(session: Session) -> ResourceLocks:
    """Prepared locks."""
    locks = ResourceLocks(session, root=LOCKS_ROOT)
    await locks.prepare(5)
    return locks


def new_resources(count: int, name: str = "b") -> list[str]:
    """Order ids, which fall into shards of all kinds."""
    return [f"{name}-{number}" for number in range(count)]


@pytest.mark.parametrize("count", [2, 50, MAX_RESOURCES])
async def test_free_batch_is_one_round_trip(locks: ResourceLocks, zookeeper: ZooKeeper, count: int) -> None:
    """On the wire: one transaction and one list of all shards, both sent before either is answered; and one transaction
    to release them."""
    resources = new_resources(count)
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        relay.hold()
        acquiring = asyncio.create_task(clerks.acquire_all(resources, CASHIER, timeout_s=5))
        await until(lambda: len(relay.requests()) == 2)
        assert relay.replies() == []
        assert max(len(frame.body) for frame in relay.frames) < 0xFFFFF
        relay.let_go()
        batch = await acquiring
        assert relay.requests() == [MULTI, MULTI_READ]
        assert batch.valid()
        assert list(batch.resources) == resources
        assert batch.waited_s == 0.0
        relay.forget()
        batch.release()
        assert await clerks.drained(5)
        assert relay.requests() == [MULTI]
        assert await locks.queues() == {}


async def test_all_resources_of_a_batch_have_one_token(locks: ResourceLocks) -> None:
    """The token of every resource is the czxid of its node, which all of them share; the next holder's is greater."""
    resources = new_resources(5)
    async with await locks.acquire_all(resources, CASHIER, timeout_s=5) as batch:
        queues = await locks.queues()
        assert {resource_id: [place.token for place in queue] for resource_id, queue in queues.items()} == {
            resource_id: [batch.token] for resource_id in resources
        }
        assert {batch[resource_id].token for resource_id in resources} == {batch.token}
    async with await locks.acquire(resources[3], CASHIER, timeout_s=5) as lease:
        assert lease.token > batch.token
    async with await locks.acquire_all(resources[:2], CASHIER, timeout_s=5) as later:
        assert later.token > lease.token
    assert await locks.drained(5)


async def test_unprepared_shards_are_made_when_needed(session: Session) -> None:
    """Without prepare() the first batch makes the directories it needs."""
    locks = ResourceLocks(session, root="/lazy/batch")
    async with await locks.acquire_all(new_resources(20), CASHIER, timeout_s=5) as batch:
        assert batch.valid()
    assert await locks.drained(5)


async def test_batch_waits_its_turn_among_single_clerks(locks: ResourceLocks, session: Session) -> None:
    """First come, first served, in every queue: behind who was there, before who comes later."""
    resource = "o-1"
    holder = await locks.acquire(resource, CASHIER, timeout_s=5)
    batch = asyncio.create_task(locks.acquire_all(["o-0", resource, "o-2"], ACCOUNTANT, timeout_s=20))
    await queued(locks, resource, 2)
    later = [asyncio.create_task(locks.acquire(each, CASHIER, timeout_s=20)) for each in ("o-0", resource, "o-2")]
    await queued(locks, "o-0", 2)
    await queued(locks, resource, 3)
    await queued(locks, "o-2", 2)
    assert not any(task.done() for task in (batch, *later))
    holder.release()
    leases = await batch
    assert leases.token > holder.token
    assert leases[resource].waited_for == CASHIER
    assert leases["o-0"].waited_for is None
    assert leases.waited_s > 0
    assert not any(task.done() for task in later)
    leases["o-2"].release()
    assert (await later[2]).token > leases.token
    assert not any(task.done() for task in later[:2])
    leases.release()
    for task in later:
        (await task).release()
    assert await locks.drained(5)
    assert await nodes_left(session) == []


async def test_batch_that_does_not_get_one_resource_gets_none(locks: ResourceLocks, session: Session) -> None:
    """At the deadline the error names the resource that was not had and who holds it, and every place is given up."""
    holder = await locks.acquire("b-7", CASHIER, timeout_s=5)
    with pytest.raises(LockTimeout) as caught:
        await locks.acquire_all(new_resources(20), ACCOUNTANT, timeout_s=2)
    assert caught.value.resource_id == "b-7"
    assert caught.value.holder == CASHIER
    assert await locks.drained(5)
    assert set(await locks.queues()) == {"b-7"}
    holder.release()
    assert await locks.drained(5)
    assert await nodes_left(session) == []


async def test_overlapping_batches_all_finish(zookeeper: ZooKeeper, session: Session) -> None:
    """Batches that meet in many queues, asked for in whatever order of resources by four sessions: none waits for ever,
    and of each resource there is one holder at a time, with growing tokens."""
    rng = random.Random(7)
    resources = new_resources(12, "shared")
    inside: set[str] = set()
    tokens: dict[str, list[int]] = defaultdict(list)

    async def settle(locks: ResourceLocks) -> None:
        for _ in range(10):
            wanted = rng.sample(resources, rng.randint(2, 8))
            async with await locks.acquire_all(wanted, CASHIER, timeout_s=60) as batch:
                assert inside.isdisjoint(wanted)
                inside.update(wanted)
                for resource_id in wanted:
                    tokens[resource_id].append(batch[resource_id].token)
                await asyncio.sleep(0)
                batch.ensure()
                inside.difference_update(wanted)

    async with connected(zookeeper) as two, connected(zookeeper) as three, connected(zookeeper) as four:
        everybody = [ResourceLocks(each, root=LOCKS_ROOT) for each in (session, two, three, four)]
        await asyncio.gather(*(settle(locks) for locks in everybody for _ in range(5)))
        for locks in everybody:
            assert await locks.drained(5)
    assert sum(map(len, tokens.values())) > 4 * 5 * 10 * 2
    assert all(seen == sorted(set(seen)) for seen in tokens.values())
    assert await nodes_left(session) == []


async def test_killed_process_leaves_no_part_of_a_batch(zookeeper: ZooKeeper, session: Session) -> None:
    """A process that locks batches of 50 in a loop is killed at whatever moment: what others see of them is all or
    nothing, and after its session's end nothing. (One shard, so that one list shows one moment.)"""
    await session.ensure_path("/one/batch/0000")

    async def seen() -> int:
        return len(await session.get_children("/one/batch/0000"))

    for looks in (1, 20, 77):
        command = [sys.executable, "-m", "tests.integration.locker", zookeeper.hosts, "/one/batch", "50"]
        process = await asyncio.create_subprocess_exec(*command)
        try:
            counts: list[int] = []
            while sum(map(bool, counts)) < looks:
                counts.append(await seen())
        finally:
            process.kill()
            await process.wait()
        counts.append(await seen())
        assert set(counts) <= {0, 50}

        async def gone() -> bool:
            return await seen() == 0

        await until(gone)


async def test_resources_of_a_batch_are_given_up_singly_or_together(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """What is written for one resource takes one of a batch; the batch's release is one transaction for the rest, and
    resources given up before are no concern of it any more."""
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        batch = await clerks.acquire_all(new_resources(6), CASHIER, timeout_s=5)
        relay.forget()
        async with batch["b-2"] as lease:
            lease.ensure()
            assert lease.resource_id == "b-2"
        batch["b-4"].release()
        batch["b-4"].release()
        assert await clerks.drained(5)
        assert relay.requests() == [DELETE, DELETE]
        assert set(await locks.queues()) == {"b-0", "b-1", "b-3", "b-5"}
        with pytest.raises(LockLost):
            batch["b-2"].ensure()
        batch.ensure()
        batch["b-0"].ensure()
        batch.release()
        batch.release()
        assert await clerks.drained(5)
        assert relay.requests() == [DELETE, DELETE, MULTI]
        for lost in (batch, batch["b-0"]):
            with pytest.raises(LockLost):
                lost.ensure()
        with pytest.raises(KeyError):
            batch["b-9"]
        assert await locks.queues() == {}


async def test_node_that_has_gone_does_not_keep_the_others(locks: ResourceLocks, session: Session) -> None:
    """If somebody has deleted a node by hand, the transaction is refused and the others are deleted singly."""
    batch = await locks.acquire_all(new_resources(5), CASHIER, timeout_s=5)
    shard = locks._shard_of("b-3")
    (name,) = await session.get_children(shard)
    await session.delete(f"{shard}/{name}")
    batch.release()
    assert await locks.drained(5)
    assert await nodes_left(session) == []


@pytest.mark.parametrize("turns", [1, 2, 3, 4, 6, 10, 20])
async def test_batch_cancelled_anywhere_leaves_no_node(
    session: Session, locks: ResourceLocks, zookeeper: ZooKeeper, turns: int
) -> None:
    """Wherever in its course a batch is cancelled, also while it stands in line, its nodes and its watch end."""
    holder = await locks.acquire("b-9", CASHIER, timeout_s=5)
    in_line = asyncio.create_task(locks.acquire_all(new_resources(12), ACCOUNTANT, timeout_s=30))
    await queued(locks, "b-9", 2)
    await until(lambda: len(session.watches.by_path) == 1)
    acquiring = asyncio.create_task(locks.acquire_all(new_resources(100, "other"), ACCOUNTANT, timeout_s=5))
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in (in_line, acquiring):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await task).release()
    await session.exists("/")  # replies come in order: that of the transaction has been seen now
    await asyncio.sleep(0)
    assert await locks.drained(5)
    assert session.watches.by_path == {}
    assert set(await locks.queues()) == {"b-9"}
    holder.release()
    assert await locks.drained(5)
    assert await nodes_left(session) == []
    assert zookeeper.metric("zk_watch_count") == 0


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ([], "1 to 500"),
        (new_resources(MAX_RESOURCES + 1), "1 to 500"),
        (["a", "b", "a"], "a is in the batch twice"),
        (["a", "b/c"], "not a resource id"),
    ],
)
async def test_bad_batches_are_refused(locks: ResourceLocks, session: Session, resources: list[str], says: str) -> None:
    """Nothing is sent for a batch that is empty, too large, or names a resource twice or wrongly."""
    with pytest.raises(ValueError, match=says):
        await locks.acquire_all(resources, CASHIER, timeout_s=1)
    assert await nodes_left(session) == []


async def test_holder_too_long_for_a_batch_is_refused(locks: ResourceLocks) -> None:
    """The nodes of the largest batch, with the longest description of their holder, stay under ZooKeeper's 1 MB."""
    long = Holder("x" * 1400, {"role": "cashier", "instance": "payment-1"})
    ids = [f"{'y' * 60}-{number:03d}" for number in range(MAX_RESOURCES)]
    async with await locks.acquire_all(ids, long, timeout_s=10) as batch:
        assert batch.valid()
    assert await locks.drained(10)
    with pytest.raises(ValueError, match="1500 bytes"):
        await locks.acquire("a", Holder("x" * 1500), timeout_s=1)
