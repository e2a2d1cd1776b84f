"""`service.py` with a card: a fourth step charges it, under the request id as the key. `make bench-faults`.

    order's object: claim ▸ charge, tried again until it is answered ▸ post ▸ complete ▸ answer

Of an instance that died, Restate runs the handler again, at the same URL, after the last step that it has recorded.

    python -m tests.bench.peers.restate.cards postgresql://… ACQUIRER INGRESS ADMIN HANDLER_PORT     prints its port
"""

from __future__ import annotations

import sys

import uvloop

from tests.bench.peers.charging import charger
from tests.bench.peers.durable.books import Books, pool
from tests.bench.peers.restate.service import running
from tests.bench.peers.serving import serve


async def _serve(database: str, address: str, ingress: str, admin: str, port: str) -> None:
    async with (
        pool(database) as connections,
        charger(address) as acquirer,
        running(Books(connections), ingress, admin, int(port), acquirer.charge) as settle,
    ):
        await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:6]))
