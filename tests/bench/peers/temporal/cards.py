"""`service.py` with a card: a fourth activity charges it, under the request id as the key. `make bench-faults`.

    order's workflow: claim ▸ charge, tried again until it is answered ▸ post ▸ complete ▸ answer

Of a worker that died or froze, Temporal gives the activity to another when its time is over.

    python -m tests.bench.peers.temporal.cards postgresql://… ACQUIRER SERVER      prints its port
"""

from __future__ import annotations

import sys

import uvloop

from tests.bench.peers.charging import charger
from tests.bench.peers.durable.books import Books, pool
from tests.bench.peers.serving import serve
from tests.bench.peers.temporal.service import running


async def _serve(database: str, address: str, server: str) -> None:
    async with (
        pool(database) as connections,
        charger(address) as acquirer,
        running(Books(connections), server, acquirer.charge) as settle,
    ):
        await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:4]))
