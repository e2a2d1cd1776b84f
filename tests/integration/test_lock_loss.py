"""Leases that end before they are released: who is told, when, and what is left behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from coordination.errors import Unavailable
from coordination.locks import LockLost, LockTimeout, ResourceLocks
from coordination.locks.lease import LockLease
from coordination.metrics import Metrics
from coordination.session import Session, SessionChange, SessionState
from services.runtime.zookeeper_paths import LOCKS_ROOT
from services.testkit.fair_clock import late_s
from tests.integration.queueing import CASHIER, SLACK_S
from tests.integration.relay import relayed
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, expire, until


@pytest.fixture
def metrics() -> Metrics:
    """Counted, and collected by nobody."""
    return Metrics()


@pytest.fixture
async def locks(session: Session, metrics: Metrics) -> ResourceLocks:
    """Prepared locks."""
    locks = ResourceLocks(session, metrics=metrics, root=LOCKS_ROOT)
    await locks.prepare(5)
    return locks


class Notified:
    """Notes when each of many leases was said to be lost, by callback and by awaiting."""

    def __init__(self, leases: list[LockLease]) -> None:
        self.called_at: list[float] = []
        for lease in leases:
            lease.on_lost(lambda: self.called_at.append(time.monotonic()))
        self._waiting = [asyncio.create_task(self._await(lease)) for lease in leases]

    async def _await(self, lease: LockLease) -> float:
        assert await lease.lost()
        return time.monotonic()

    async def all_at(self) -> list[float]:
        """Wait until all are told; returns when each was."""
        awaited_at = await asyncio.wait_for(asyncio.gather(*self._waiting), 10)
        assert len(self.called_at) == len(awaited_at)
        return self.called_at + awaited_at


def machinery(session: Session, locks: ResourceLocks) -> tuple[int, int, bool]:
    """Return how many tasks run, how many subscribe to the session, and whether a timer waits to look at leases."""
    return len(asyncio.all_tasks()), len(session._subscribers), locks._leases._timer is not None


async def test_holders_are_notified_of_expiry_within_100_ms(
    session: Session, locks: ResourceLocks, metrics: Metrics
) -> None:
    """A hundred holders and a batch learn of their session's end when the client learns of it."""
    learnt_at: list[float] = []

    def learn(change: SessionChange) -> None:
        if change.state is SessionState.LOST:
            learnt_at.append(time.monotonic())

    session.subscribe(learn)
    leases: list[LockLease] = [
        *await asyncio.gather(*(locks.acquire(f"o-{number}", CASHIER, timeout_s=5) for number in range(100))),
        await locks.acquire_all(["b-1", "b-2"], CASHIER, timeout_s=5),
    ]
    told = Notified(leases)
    await asyncio.sleep(0.05)
    assert told.called_at == []
    late_before_s = late_s()
    await expire(session)
    told_at = await told.all_at()
    assert len(learnt_at) == 1
    assert max(told_at) - learnt_at[0] < SLACK_S + late_s() - late_before_s
    assert not any(lease.valid() for lease in leases)
    assert (metrics.locks_lost._value.get(), metrics.locks_held._value.get()) == (102, 0)


async def test_holders_are_notified_when_zookeeper_is_silent(
    session: Session, locks: ResourceLocks, zookeeper: ZooKeeper
) -> None:
    """ZooKeeper falls silent: a holder is told at the moment its session may have expired, not before, although no
    event says so; and however often that moment has moved on before."""
    lease = await locks.acquire("o-1", CASHIER, timeout_s=5)
    first = session.valid_until()
    told = Notified([lease])
    await until(lambda: session.valid_until() > first + 0.5)
    assert told.called_at == []
    zookeeper.pause()
    last, late_before_s = session.valid_until(), late_s()
    told_at = await told.all_at()
    zookeeper.resume()
    assert session.state is not SessionState.LOST
    slack_s = SLACK_S + late_s() - late_before_s
    assert all(last <= at < last + slack_s for at in told_at)
    lease.release()
    assert await locks.drained(10)


async def test_dropped_connection_alone_is_no_loss(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """While the connection is away nothing may begin, but nobody is told of a loss; when it is back all is well."""
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        clerks = ResourceLocks(session, root=LOCKS_ROOT)
        lease = await clerks.acquire("o-2", CASHIER, timeout_s=5)
        lost: list[bool] = []
        lease.on_lost(lambda: lost.append(True))
        dropped, back = asyncio.Event(), asyncio.Event()
        events = {SessionState.SUSPENDED: dropped, SessionState.CONNECTED: back}
        session.subscribe(lambda change: events[change.state].set())
        relay.cut()
        await asyncio.wait_for(dropped.wait(), 5)
        with pytest.raises(LockLost):
            lease.ensure()
        await asyncio.wait_for(back.wait(), 5)
        lease.ensure()
        assert lost == []
        lease.release()
        assert await clerks.drained(5)


async def test_notified_lease_is_lost_for_good(session: Session, locks: ResourceLocks) -> None:
    """Who was told finds the lease invalid ever after, even if it turns out that the session has survived."""
    batch = await locks.acquire_all(["o-3", "o-4"], CASHIER, timeout_s=5)
    told = Notified([batch])
    patched: Any = session
    patched.valid_until = lambda: time.monotonic() - 1
    batch.on_lost(lambda: None)  # makes it look
    await told.all_at()
    del patched.valid_until
    assert session.session_id is not None
    assert session.is_valid(session.session_id)
    for lease in (batch, batch["o-3"], batch["o-4"]):
        with pytest.raises(LockLost):
            lease.ensure()
    assert await batch["o-4"].lost()
    batch.release()
    assert await locks.drained(5)
    assert await locks.queues() == {}


async def test_released_lease_is_not_lost(session: Session, locks: ResourceLocks, metrics: Metrics) -> None:
    """Release ends the waiting for a loss, and calls nobody."""
    lease = await locks.acquire("o-5", CASHIER, timeout_s=5)
    called: list[bool] = []
    lease.on_lost(lambda: called.append(True))
    waiting = asyncio.create_task(lease.lost())
    await asyncio.sleep(0)
    assert metrics.locks_held._value.get() == 1
    lease.release()
    assert await waiting is False
    assert await lease.lost() is False
    await expire(session)
    await session.wait_connected(5)
    lease.on_lost(lambda: called.append(True))
    await asyncio.sleep(0.01)
    assert called == []
    assert (metrics.locks_lost._value.get(), metrics.locks_held._value.get()) == (0, 0)
    assert await locks.drained(5)


async def test_failing_callback_does_not_stop_the_others(session: Session, locks: ResourceLocks) -> None:
    """A callback that raises is logged, and the others are called."""

    def fail() -> None:
        raise RuntimeError("not our fault")

    lease = await locks.acquire("o-6", CASHIER, timeout_s=5)
    lease.on_lost(fail)
    told = Notified([lease])
    await asyncio.sleep(0)
    await expire(session)
    await told.all_at()


async def test_lease_without_callbacks_runs_no_timer(session: Session, locks: ResourceLocks) -> None:
    """No task, timer or subscription for a lease nobody watches; one timer for all that are watched, and none after."""
    leases = [await locks.acquire(f"o-7-{number}", CASHIER, timeout_s=5) for number in range(10)]
    await asyncio.sleep(0)
    before = machinery(session, locks)
    assert before[2] is False
    forget = [lease.on_lost(lambda: None) for lease in leases]
    waiting = asyncio.create_task(leases[0].lost())
    await asyncio.sleep(0)
    assert machinery(session, locks) == (before[0] + 1, before[1] + 1, True)
    waiting.cancel()
    for index, forget_it in enumerate(forget):
        leases[5].release()
        if index != 5:
            forget_it()
            forget_it()
    await asyncio.wait([waiting])
    assert locks._leases._listeners == {}
    assert machinery(session, locks) == before
    for lease in leases:
        lease.release()
    assert await locks.drained(5)


def count_of(metrics: Metrics, outcome: str) -> float | None:
    """Return how many calls of acquire had this outcome; None: none so far."""
    (family,) = metrics.lock_acquire_seconds.collect()
    counts = [s.value for s in family.samples if s.name.endswith("_count") and s.labels["outcome"] == outcome]
    return counts[0] if counts else None


async def test_calls_are_counted_by_their_outcome(locks: ResourceLocks, metrics: Metrics, zookeeper: ZooKeeper) -> None:
    """Who stands in line is counted while they do, and how long each call took by what came of it."""
    holder = await locks.acquire("o-11", CASHIER, timeout_s=5)
    cancelled = asyncio.create_task(locks.acquire("o-11", CASHIER, timeout_s=60))
    in_time = asyncio.create_task(locks.acquire_all(["o-12", "o-11"], CASHIER, timeout_s=60))
    await until(lambda: metrics.locks_waiting._value.get() == 2)
    with pytest.raises(LockTimeout):  # a shorter time may pass before a busy ZooKeeper has said who holds it
        await locks.acquire("o-11", CASHIER, timeout_s=2)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert metrics.locks_waiting._value.get() == 1
    holder.release()
    (await in_time).release()
    zookeeper.pause()
    with pytest.raises(Unavailable):
        await locks.acquire("o-13", CASHIER, timeout_s=0.1)
    zookeeper.resume()
    assert metrics.locks_waiting._value.get() == 0
    outcomes = ("held", "timeout", "cancelled", "unavailable")
    assert [count_of(metrics, outcome) for outcome in outcomes] == [2, 1, 1, 1]
    assert await locks.drained(10)


async def test_loss_without_callbacks_is_counted_at_release(
    session: Session, locks: ResourceLocks, metrics: Metrics
) -> None:
    """The counter of lost leases counts each once, whether or not anybody wanted to be told."""
    batch = await locks.acquire_all(["o-8", "o-9", "o-10"], CASHIER, timeout_s=5)
    batch["o-8"].release()
    assert metrics.locks_held._value.get() == 2
    await expire(session)
    await session.wait_connected(5)
    assert metrics.locks_held._value.get() == 2
    batch.release()
    batch.release()
    assert (metrics.locks_lost._value.get(), metrics.locks_held._value.get()) == (2, 0)
    assert await locks.drained(5)
    assert metrics.lock_nodes_to_delete._value.get() == 0
