"""The resource lock on an ensemble of three: clerks sit on different members, and the leader may die."""

from __future__ import annotations

import asyncio
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest

from coordination.locks import ResourceLocks
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.queueing import ACCOUNTANT, CASHIER, nodes_left, queued
from tests.integration.zookeeper import Ensemble, ZooKeeper

SESSION_TIMEOUT_S = 8.0  # longer than an election takes


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """Three servers for this module's tests."""
    if shutil.which("java") is None:
        pytest.skip("no java: ZooKeeper cannot be started")
    ensemble = Ensemble(tmp_path_factory.mktemp("ensemble"))
    ensemble.start()
    yield ensemble
    ensemble.stop()


@pytest.fixture
async def desks(ensemble: Ensemble) -> AsyncIterator[list[ResourceLocks]]:
    """Locks over three sessions, each of which begins at another member and knows the others."""
    hosts = [member.hosts for member in ensemble.members]
    async with AsyncExitStack() as sessions:
        desks = []
        for number in range(len(hosts)):
            where = ",".join(hosts[number:] + hosts[:number])
            session = await sessions.enter_async_context(Session(where, timeout_s=SESSION_TIMEOUT_S))
            await session.wait_connected(10)
            desks.append(ResourceLocks(session, root=LOCKS_ROOT))
        await desks[0].prepare(10)
        yield desks
        for locks in desks:
            assert await locks.drained(20)
        assert await nodes_left(desks[0]._session) == []


async def test_clerks_of_all_members_are_served_in_order_of_their_tokens(desks: list[ResourceLocks]) -> None:
    """One holder of each resource at a time, with growing tokens, for single resources and batches; a batch's token is
    the czxid of each of its nodes, whichever member it was taken through."""
    inside: set[str] = set()
    tokens: dict[str, list[int]] = defaultdict(list)

    async def settle(locks: ResourceLocks, wanted: list[str]) -> None:
        async with await locks.acquire_all(wanted, CASHIER, timeout_s=60) as batch:
            assert inside.isdisjoint(wanted)
            inside.update(wanted)
            for resource_id in wanted:
                assert (await locks.queue(resource_id))[0].token == batch.token
                tokens[resource_id].append(batch.token)
            batch.ensure()
            inside.difference_update(wanted)

    wanted = [["a"], ["a", "b"], ["b", "c"], ["c", "a"], ["c", "b", "a"]]
    await asyncio.gather(*(settle(desks[number % 3], wanted[number % 5]) for number in range(60)))
    assert all(seen == sorted(set(seen)) for seen in tokens.values())
    assert sum(map(len, tokens.values())) == 12 * sum(map(len, wanted))


async def test_dead_leader_costs_no_waiter_its_place(ensemble: Ensemble, desks: list[ResourceLocks]) -> None:
    """The leader is killed while a resource is held and waited for, through every member: after the election all
    waiters are served in the old order, and a caller that asks for another resource gets it."""
    holder = await desks[0].acquire("o-1", CASHIER, timeout_s=10)
    waiting = []
    for number in range(6):
        waiting.append(asyncio.create_task(desks[number % 3].acquire("o-1", ACCOUNTANT, timeout_s=60)))
        await queued(desks[0], "o-1", number + 2)
    places = [place.token for place in await desks[0].queue("o-1")]
    leader = _leader(ensemble)
    leader.stop()
    await asyncio.gather(*(pass_through(locks, ["o-2", f"o-3-{number}"]) for number, locks in enumerate(desks)))
    holder.release()
    served = []
    for task in waiting:
        async with await task as lease:
            served.append(lease.token)
    assert [holder.token, *served] == places
    await asyncio.to_thread(leader.start)


async def pass_through(locks: ResourceLocks, resources: list[str]) -> None:
    """Hold a batch for a moment."""
    async with await locks.acquire_all(resources, CASHIER, timeout_s=60):
        await asyncio.sleep(0)


def _leader(ensemble: Ensemble) -> ZooKeeper:
    return next(member for member in ensemble.members if "Mode: leader" in member.four_letters("srvr"))
