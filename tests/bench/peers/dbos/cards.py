"""`service.py` with a card: a fourth step charges it, under the workflow's id as the key. `make bench-faults`.

    workflow id = request id:   claim ▸ charge, tried again ▸ post ▸ complete ▸ answer

Of a process that died, its next start under the same executor id goes on with the workflows.

    python -m tests.bench.peers.dbos.cards postgresql://… ACQUIRER EXECUTOR      prints its port
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from dbos import DBOS

from tests.bench.peers.charging import charger
from tests.bench.peers.dbos.service import running
from tests.bench.peers.serving import serve

#: DBOS's own defaults are 3 attempts, 1 s, doubled; a payment is worth more.
_TRIES, _INTERVAL_S, _BACKOFF = 6, 0.5, 2.0


async def _serve(database: str, address: str, executor: str) -> None:
    async with charger(address) as acquirer:
        step = DBOS.step(
            name="charge",
            retries_allowed=True,
            max_attempts=_TRIES,
            interval_seconds=_INTERVAL_S,
            backoff_rate=_BACKOFF,
        )

        loop = asyncio.get_running_loop()

        def charge(key: str, card: str, amount_minor: int) -> None:
            asyncio.run_coroutine_threadsafe(acquirer.charge(key, card, amount_minor), loop).result()

        async with running(database, executor=executor, charge=step(charge)) as settle:
            await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:4]))
