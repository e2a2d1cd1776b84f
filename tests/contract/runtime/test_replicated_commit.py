"""A COMMIT that waits for a replica, on a PostgreSQL of its own that waits for one that does not exist."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

import services.order
from services.kernel.errors import OutcomeUnknown
from services.order.schema import ENSEMBLE
from services.runtime.database.database import Database, read_generation, write_generation
from tests.postgresql import PostgresServer, server

PACKAGE = Path(services.order.__file__).parent
TIMEOUT_S = 0.5
#: Within which a COMMIT that was cancelled would have ended.
_LOOKS, _LOOK_S = 20, 0.05
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    with server() as running:
        yield running


@pytest.fixture
async def superuser(own_server: PostgresServer) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(host=own_server.url.host, port=own_server.url.port, user="postgres")
    await connection.execute("SET synchronous_commit = 'local'")
    yield connection
    await wait_for_replica(connection, "")
    await connection.close()


async def wait_for_replica(superuser: asyncpg.Connection[asyncpg.Record], name: str) -> None:
    """From now on a COMMIT waits for the replica of this name; empty: for none."""
    await superuser.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await superuser.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(30):
        while await superuser.fetchval("SHOW synchronous_standby_names") != name:  # noqa: ASYNC110  another process
            await asyncio.sleep(_LOOK_S)


async def test_commit_without_its_replica_is_neither_acknowledged_nor_shown(
    own_server: PostgresServer, superuser: asyncpg.Connection[asyncpg.Record]
) -> None:
    """It is left to wait on the server. Cancelled, it would stand there, and readers would take it for acknowledged,
    although the server that takes this one's place does not have it.
    """
    url, _ = await own_server.migrated(PACKAGE)
    async with Database(url, pool=2, statement_timeout_s=TIMEOUT_S) as database:
        await database.ping()
        await wait_for_replica(superuser, "absent")
        with pytest.raises(OutcomeUnknown):
            await write_generation(database, ENSEMBLE, 7)
        for _ in range(_LOOKS):
            assert await superuser.fetchval(_WAITING) == 1
            await asyncio.sleep(_LOOK_S)
        assert await read_generation(database, ENSEMBLE) == 0
        await wait_for_replica(superuser, "")
        async with asyncio.timeout(30):
            while await read_generation(database, ENSEMBLE) != 7:  # noqa: ASYNC110  another process
                await asyncio.sleep(_LOOK_S)
