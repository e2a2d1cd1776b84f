"""A process that holds many resources, to be paused past the end of its sessions.

    python -m tests.integration.holder <hosts> <directory> <resources> <on the way>

Each resource has a holder of its own that goes round: `ensure()`, begin a side effect, write with the fence. In the
directory are `fences.db` (the rows) and `effects` (a line for each side effect that began: the monotonic time at which
leave was asked for it, resource, token).

Once every resource is held and used it stops itself (SIGSTOP) while "on the way" of the holders have begun and not yet
written. With 0 of them it prints "at work" and goes round until it is stopped. Woken, it ends when no holder may go on,
and prints how many writes were let through and refused; with holders on the way, those since then.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
from pathlib import Path

from coordination.locks import LockLost
from coordination.locks.lock import ResourceLease, ResourceLocks
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.queueing import CASHIER
from tests.integration.zookeeper import TICK_S, until

SESSIONS = 4
SHORTEST_S = 2 * TICK_S  # what ZooKeeper grants at least
ROUNDS_TO_SHOW = 2


class FencedRows:
    """Rows that only the newest fence may change, and the record of what was begun."""

    def __init__(self, directory: Path) -> None:
        self._database = sqlite3.connect(directory / "fences.db", isolation_level=None, timeout=10)
        self._effects = (directory / "effects").open("a", buffering=1)

    def begin_effect(self, asked_at_s: float, resource_id: str, token: int) -> None:
        """What an outside bank would see, and no fence can stop."""
        self._effects.write(f"{asked_at_s} {resource_id} {token}\n")

    def write(self, resource_id: str, token: int) -> bool:
        """Write with a fence; False if a newer one was there."""
        changed = self._database.execute(
            "UPDATE resources SET fence = :t, writes = writes + 1 WHERE id = :id AND fence <= :t",
            {"id": resource_id, "t": token},
        )
        return changed.rowcount == 1


class Workload:
    """All the resources of this process, and what became of their writes."""

    def __init__(self, books: FencedRows, locks: list[ResourceLocks]) -> None:
        self._books = books
        self._locks = locks
        self._leases: dict[str, ResourceLease] = {}
        self.written = self.refused = 0

    async def all_at_work(self, resources: list[str]) -> list[asyncio.Task[None]]:
        """Have every resource held and used, all at one moment, however often a busy machine costs us a session."""

        def all_valid() -> bool:
            return all(lease.valid() for lease in self._leases.values())

        while True:
            leases = await self._take(resources)
            holders = [asyncio.create_task(self.go_round(lease)) for lease in leases]
            self.written = 0
            await until(lambda: self.written >= ROUNDS_TO_SHOW * len(resources) or not all_valid(), 60)
            if all_valid():
                return holders
            for holder in holders:
                holder.cancel()
            await asyncio.wait(holders)

    async def _take(self, resources: list[str]) -> list[ResourceLease]:
        while missing := [
            resource for resource in resources if resource not in self._leases or not self._leases[resource].valid()
        ]:
            desks = [self._locks[number % SESSIONS] for number in range(len(missing))]
            leases = await asyncio.gather(
                *(desk.acquire(resource, CASHIER, timeout_s=30) for desk, resource in zip(desks, missing, strict=True))
            )
            self._leases.update(zip(missing, leases, strict=True))
        return list(self._leases.values())

    async def go_round(self, lease: ResourceLease) -> None:
        """One holder, until it may not go on."""
        while True:
            asked_at_s = time.monotonic()
            try:
                lease.ensure()
            except LockLost:
                return
            self._books.begin_effect(asked_at_s, lease.resource_id, lease.token)
            self._write(lease)
            await asyncio.sleep(0)

    def stop_on_the_way(self, resources: list[str]) -> None:
        """Begin for each of these resources, be stopped, and write when woken, without looking again."""
        on_the_way = [self._leases[resource] for resource in resources]
        for lease in on_the_way:
            asked_at_s = time.monotonic()
            lease.ensure()
            self._books.begin_effect(asked_at_s, lease.resource_id, lease.token)
        self.written = self.refused = 0
        os.kill(os.getpid(), signal.SIGSTOP)
        for lease in on_the_way:
            self._write(lease)

    def _write(self, lease: ResourceLease) -> None:
        if self._books.write(lease.resource_id, lease.token):
            self.written += 1
        else:
            self.refused += 1


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(hosts: str, directory: str, count: str, on_the_way: str) -> None:
    sessions = [Session(hosts, timeout_s=SHORTEST_S, name=f"holder-{number}") for number in range(SESSIONS)]
    for session in sessions:
        await session.start()
    workload = Workload(FencedRows(Path(directory)), [ResourceLocks(session, root=LOCKS_ROOT) for session in sessions])
    resources = [f"resource-{number}" for number in range(int(count))]
    holders = await workload.all_at_work(resources)
    if int(on_the_way):
        workload.stop_on_the_way(resources[: int(on_the_way)])
    else:
        tell("at work")
    await asyncio.gather(*holders)
    tell(json.dumps({"written": workload.written, "refused": workload.refused}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
