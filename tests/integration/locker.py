"""Locks batches in one shard until it is killed: ``python -m tests.integration.locker <hosts> <root> <resources>``."""

from __future__ import annotations

import asyncio
import sys

from coordination.locks import ResourceLocks
from coordination.session import Session
from tests.integration.queueing import CASHIER


async def main(hosts: str, root: str, count: str) -> None:
    async with Session(hosts, timeout_s=1.0) as session:
        locks = ResourceLocks(session, root=root, shards=1)
        while True:
            batch = await locks.acquire_all([f"b-{number}" for number in range(int(count))], CASHIER, timeout_s=10)
            batch.release()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
