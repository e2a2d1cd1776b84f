"""Holders paused past the end of their sessions, while others take their orders: what they may still do when woken."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from coordination.locks.lock import MAX_RESOURCES, BatchLease, ResourceLocks
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.queueing import ACCOUNTANT
from tests.integration.zookeeper import ZooKeeper, until

HOLDERS = 1000
ON_THE_WAY = 100


def prepared(directory: Path) -> sqlite3.Connection:
    """Rows for the resources, none of which has seen a fence."""
    database = sqlite3.connect(directory / "fences.db", isolation_level=None, timeout=0)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE resources (id TEXT PRIMARY KEY, fence INTEGER, writes INTEGER)")
    database.executemany(
        "INSERT INTO resources VALUES (?, 0, 0)", [(f"resource-{number}",) for number in range(HOLDERS)]
    )
    return database


@asynccontextmanager
async def holders(zookeeper: ZooKeeper, directory: Path, on_the_way: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with a thousand holders, which is killed if it does not end by itself."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.holder", zookeeper.hosts, str(directory)),
        *(str(HOLDERS), str(on_the_way)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stopped(process: asyncio.subprocess.Process) -> None:
    """Wait until the process stands still."""
    await until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 60)


async def stop_at_any_moment(process: asyncio.subprocess.Process, database: sqlite3.Connection) -> None:
    """Stop it wherever it is, but not inside a write: then SQLite would let nobody else write."""
    while True:
        await asyncio.sleep(random.Random(os.getpid()).uniform(0, 0.05))
        process.send_signal(signal.SIGSTOP)
        await stopped(process)
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
        else:
            database.execute("ROLLBACK")
            return


async def take_over(session: Session, database: sqlite3.Connection) -> list[BatchLease]:
    """Lock every resource behind its paused holder, and write with the newer fence."""
    locks = ResourceLocks(session, root=LOCKS_ROOT)
    resources = [f"resource-{number}" for number in range(HOLDERS)]
    batches = await asyncio.gather(
        *(
            locks.acquire_all(resources[start : start + MAX_RESOURCES], ACCOUNTANT, timeout_s=60)
            for start in range(0, HOLDERS, MAX_RESOURCES)
        )
    )
    for batch in batches:
        rows = [(batch.token, resource_id, batch.token) for resource_id in batch.resources]
        done = database.executemany("UPDATE resources SET fence = ? WHERE id = ? AND fence <= ?", rows)
        assert done.rowcount == len(rows)
    return batches


@pytest.mark.parametrize("on_the_way", [ON_THE_WAY, 0], ids=["at the worst moment", "at any moment"])
async def test_woken_holders_begin_nothing_and_their_writes_are_refused(
    session: Session, zookeeper: ZooKeeper, tmp_path: Path, on_the_way: int
) -> None:
    """A thousand holders are paused past the end of their sessions, the shortest that ZooKeeper grants, and others take
    their orders. Woken, not one of them is given leave to begin another side effect; and those that were already on
    their way, having been given it before they were paused, are refused by the fence when they write."""
    database = prepared(tmp_path)
    async with holders(zookeeper, tmp_path, on_the_way) as process:
        assert process.stdout is not None
        if not on_the_way:
            assert await process.stdout.readline() == b"at work\n"
            await stop_at_any_moment(process, database)
        await stopped(process)
        batches = await take_over(session, database)
        woken_at = time.monotonic()
        process.send_signal(signal.SIGCONT)
        outcome = json.loads(await asyncio.wait_for(process.stdout.read(), 90))
    effects = [line.split() for line in (tmp_path / "effects").read_text().splitlines()]
    assert len({resource_id for _, resource_id, _ in effects}) == HOLDERS
    assert [effect for effect in effects if float(effect[0]) >= woken_at] == [], "given leave after waking"
    if on_the_way:
        assert outcome == {"written": 0, "refused": on_the_way}
    expected = {resource_id: batch.token for batch in batches for resource_id in batch.resources}
    assert dict(database.execute("SELECT id, fence FROM resources")) == expected
    assert all(int(token) < expected[resource_id] for _, resource_id, token in effects)
    for batch in batches:
        batch.release()
    database.close()
