"""The queues, live: every change is told, in order, at the price of one watch; also by `countinghouse locks watch`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from coordination.locks import QueueChange, QueueWatch, ResourceLocks, queue_watch
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.queueing import ACCOUNTANT, CASHIER, queued
from tests.integration.relay import relayed
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, connected, until

#: Starting an interpreter takes its time on a machine that others use too.
_PATIENCE_S = 60.0


@pytest.fixture
async def locks(session: Session) -> ResourceLocks:
    """Prepared locks."""
    locks = ResourceLocks(session, root=LOCKS_ROOT)
    await locks.prepare(5)
    return locks


class Onlooker:
    """Somebody who watches, and remembers what was told."""

    def __init__(self, watch: QueueWatch) -> None:
        self.watch = watch
        self.told: list[QueueChange] = []
        self.turns: list[bool] = []  # what `live` was each time something was told
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        async for changes in self.watch.changes():
            self.told += changes
            self.turns.append(self.watch.live)

    def of(self, resource_id: str) -> list[list[str]]:
        """Return the clerks in a resource's queue after each of its changes."""
        return [
            [place.holder.owner for place in change.queue] for change in self.told if change.resource_id == resource_id
        ]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def looking_on(session: Session) -> AsyncIterator[Onlooker]:
    """An onlooker who has seen what was there."""
    async with QueueWatch(session, root=LOCKS_ROOT) as watch:
        onlooker = Onlooker(watch)
        await until(lambda: watch.live)
        yield onlooker
        await onlooker.close()


async def test_every_change_is_yielded(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """What was there, who joins, who leaves, who moves up; and the watch shows at any time what is there."""
    holder = await locks.acquire("o-1", CASHIER, timeout_s=5)
    async with connected(zookeeper) as session, looking_on(session) as onlooker:
        assert onlooker.of("o-1") == [["alice"]]
        waiting = asyncio.create_task(locks.acquire("o-1", ACCOUNTANT, timeout_s=_PATIENCE_S))
        await queued(locks, "o-1", 2)
        await until(lambda: len(onlooker.of("o-1")) == 2)
        assert onlooker.watch.queues() == {resource: tuple(queue) for resource, queue in (await locks.queues()).items()}
        holder.release()
        (await waiting).release()
        batch = await locks.acquire_all(["o-2", "o-3"], CASHIER, timeout_s=5)
        await until(lambda: set(onlooker.watch.queues()) == {"o-2", "o-3"})
        batch.release()
        assert await locks.drained(5)
        await until(lambda: onlooker.of("o-3")[-1:] == [[]])
        assert onlooker.of("o-1") == [["alice"], ["alice", "bob"], ["bob"], []]
        assert onlooker.of("o-2") == [["alice"], []]
        assert onlooker.watch.queues() == {}


async def test_watching_costs_one_watch(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """A thousand shards are followed with one watch, which the server keeps in two tables, and which goes with the
    onlooker."""
    async with connected(zookeeper) as session:
        async with looking_on(session) as onlooker:
            assert zookeeper.metric("zk_watch_count") == 2
            lease = await locks.acquire("o-4", CASHIER, timeout_s=5)
            await until(lambda: onlooker.of("o-4") == [["alice"]])
            lease.release()
            await until(lambda: onlooker.of("o-4") == [["alice"], []])
            assert zookeeper.metric("zk_watch_count") == 2
        await session.exists("/")
        assert zookeeper.metric("zk_watch_count") == 0
        assert session.watches._subscribers == []


async def test_changes_during_an_outage_are_yielded_afterwards(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """While the connection is away the onlooker knows it; back again, what differs is told, and events come again."""
    leases = {resource: await locks.acquire(resource, CASHIER, timeout_s=5) for resource in ("o-5", "o-6")}
    async with relayed(zookeeper.hosts) as relay, Session(relay.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        await session.wait_connected(5)
        async with looking_on(session) as onlooker:
            relay.hold()
            relay.cut()
            await until(lambda: not onlooker.watch.live)
            leases["o-5"].release()
            leases["o-7"] = await locks.acquire("o-7", ACCOUNTANT, timeout_s=5)
            assert await locks.drained(5)
            relay.let_go()
            await until(lambda: onlooker.of("o-7") == [["bob"]])
            assert onlooker.watch.live
            assert onlooker.turns == [True, False, True]
            assert onlooker.of("o-5") == [["alice"], []]
            assert onlooker.of("o-6") == [["alice"]]
            leases["o-6"].release()
            await until(lambda: onlooker.of("o-6") == [["alice"], []])
    leases["o-7"].release()
    assert await locks.drained(5)


async def test_events_that_pile_up_are_replaced_by_a_list(
    locks: ResourceLocks, zookeeper: ZooKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onlooker too slow for what happens catches up with a list, and then knows what is there."""
    monkeypatch.setattr(queue_watch, "MAX_EVENTS", 10)
    async with connected(zookeeper) as session, looking_on(session) as onlooker:
        batch = await locks.acquire_all([f"b-{number}" for number in range(50)], CASHIER, timeout_s=5)
        await until(lambda: len(onlooker.watch.queues()) == 50)
        batch.release()
        await until(lambda: onlooker.watch.queues() == {})
        assert onlooker.watch.live
    assert await locks.drained(5)


async def test_busy_queues_are_followed_to_the_end(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """Many clerks on few resources: each resource's queue changes by one place at a time, and ends empty."""
    rng = random.Random(3)

    async def clerk() -> None:
        for _ in range(10):
            async with await locks.acquire(f"o-{rng.randint(10, 13)}", CASHIER, timeout_s=30):
                await asyncio.sleep(0.002)

    async with connected(zookeeper) as session, looking_on(session) as onlooker:
        await asyncio.gather(*(clerk() for _ in range(8)))
        assert await locks.drained(5)
        await until(lambda: onlooker.watch.queues() == {})
        for resource_id in {change.resource_id for change in onlooker.told}:
            queues = [
                [place.token for place in change.queue] for change in onlooker.told if change.resource_id == resource_id
            ]
            for before, after in zip([[], *queues], queues, strict=False):
                assert len(set(before) ^ set(after)) == 1
                assert after == sorted(after)
            assert queues[-1] == []


async def start_watching(zookeeper: ZooKeeper, *options: str, **streams: Any) -> asyncio.subprocess.Process:
    """Start the command as a user would: what it prints is buffered unless it sees to it."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.cli.main", "locks", "watch", "--zookeeper", zookeeper.hosts, *options),
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        | {"COLUMNS": "120", "COUNTINGHOUSE_PLAINTEXT": "true"},
        **streams,
    )


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["lines", "json"])
async def test_command_prints_a_line_for_each_change(
    locks: ResourceLocks, zookeeper: ZooKeeper, options: tuple[str, ...]
) -> None:
    """On a pipe there is one line for each change, in words or as JSON, and Ctrl-C ends it with 130."""
    holder = await locks.acquire("o-20", CASHIER, timeout_s=5)
    process = await start_watching(zookeeper, *options, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None

    async def line() -> str:
        assert process.stdout is not None
        return (await asyncio.wait_for(process.stdout.readline(), _PATIENCE_S)).decode().rstrip("\n")

    lines = [await line()]
    waiting = asyncio.create_task(locks.acquire("o-20", ACCOUNTANT, timeout_s=_PATIENCE_S))
    lines.append(await line())
    holder.release()
    lines.append(await line())
    lease = await waiting
    lease.release()
    lines.append(await line())
    if options:
        documents = [json.loads(each) for each in lines]
        assert {document["order_id"] for document in documents} == {"o-20"}
        queues = [[(place["position"], place["clerk"]) for place in document["queue"]] for document in documents]
        assert queues == [[(0, "alice")], [(0, "alice"), (1, "bob")], [(0, "bob")], []]
        assert documents[2]["queue"][0]["token"] == lease.token
    else:
        assert lines == [
            "o-20: alice (cashier, payment-1) holds",
            "o-20: alice (cashier, payment-1) holds; bob (accountant, payment-2) waits",
            "o-20: bob (accountant, payment-2) holds",
            "o-20: free",
        ]
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), _PATIENCE_S) == 130
    assert await process.stderr.read() == b""
    assert await locks.drained(5)


async def test_command_draws_a_table_on_a_terminal(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """On a terminal there is a table that changes; Ctrl-C on the keyboard ends it with 130 and the cursor is back."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    seen = bytearray()

    def shown(text: bytes) -> bool:
        with suppress(BlockingIOError):
            seen.extend(os.read(ours, 65536))
        return text in seen

    process = await start_watching(zookeeper, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    try:
        await until(lambda: shown(b"no order is being settled"), _PATIENCE_S)
        holder = await locks.acquire("o-21", CASHIER, timeout_s=5)
        await until(lambda: shown(b"holds"), _PATIENCE_S)
        waiting = asyncio.create_task(locks.acquire("o-21", ACCOUNTANT, timeout_s=_PATIENCE_S))
        await until(lambda: shown(b"waits, 1 ahead"), _PATIENCE_S)
        holder.release()
        (await waiting).release()
        seen.clear()
        await until(lambda: shown(b"no order is being settled"), _PATIENCE_S)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), _PATIENCE_S) == 130
        assert shown(b"\x1b[?25h")
    finally:
        if process.returncode is None:
            process.kill()
        os.close(ours)
        os.close(theirs)
    assert await locks.drained(5)


async def test_reader_that_has_seen_enough_is_no_error(locks: ResourceLocks, zookeeper: ZooKeeper) -> None:
    """`countinghouse locks watch | head -1` prints one line and no complaint."""
    lease = await locks.acquire("o-22", CASHIER, timeout_s=5)
    process = await start_watching(zookeeper, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.wait_for(process.stdout.readline(), _PATIENCE_S)
    transport: Any = process
    transport._transport.get_pipe_transport(1).close()
    lease.release()
    assert await asyncio.wait_for(process.wait(), _PATIENCE_S) == 0
    assert await process.stderr.read() == b""
    assert await locks.drained(5)
