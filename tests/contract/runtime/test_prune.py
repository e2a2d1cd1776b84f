"""`python -m services.<name>.main prune`: the owner's job, as a process."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, select

import services
from services.kernel.guards import Guards
from services.kernel.idempotency import Lease, RequestKey, StoredResponse
from services.kernel.principal import Principal, Role
from services.order.schema import REQUESTS
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import Requests
from services.runtime.database.retention import DAY_MS
from services.runtime.database.transaction import Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf

LI = Principal("li", Role.CASHIER)
PACKAGE = Path(services.__path__[0]) / "order"


async def refused(database: Database, key: str, *, days_ago: int) -> None:
    """A request that was refused so many days ago, by the database's clock."""
    now_ms = await database.now_ms() - days_ago * DAY_MS
    moves, whose = Requests(REQUESTS, Guards()), RequestKey(LI, "CreateOrder", key)

    async def step(tx: Transaction) -> None:
        await moves.begin(tx, whose, "f", Lease("one", now_ms, now_ms))
        await moves.finish(tx, whose, StoredResponse(False, b"no"), now_ms=now_ms)

    await database.run(step)


async def count(database: Database) -> int:
    async def step(tx: Transaction) -> int:
        return int((await tx.execute(select(func.count()).select_from(REQUESTS))).scalar_one())

    return await database.read(step)


async def prune(url: str, **settings: str) -> tuple[int, str]:
    """Exit code, and what it says on standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "services.order.main", "prune"),
        env={**os.environ, "COUNTINGHOUSE_DATABASE_URL": url, **settings},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode()


async def test_prune_removes_what_is_older_than_the_time_to_keep(
    fresh_database: FreshDatabase, owner_of: OwnerOf
) -> None:
    """30 days, if nothing else is set, and never less."""
    database = await fresh_database(PACKAGE)
    for key, days_ago in (("r1", 100), ("r2", 31), ("r3", 29)):
        await refused(database, key, days_ago=days_ago)
    url = owner_of(database).url
    assert (await prune(url, COUNTINGHOUSE_RETENTION_DAYS="90"))[0] == 0
    assert await count(database) == 2
    assert (await prune(url))[0] == 0
    assert await count(database) == 1
    code, words = await prune(url, COUNTINGHOUSE_RETENTION_DAYS="29")
    assert code == 2
    assert "retention_days" in words
    assert await count(database) == 1


async def test_prune_under_the_role_of_a_service_is_refused(fresh_database: FreshDatabase, owner_of: OwnerOf) -> None:
    """Exit code 2 and one line; nothing is removed."""
    database = await fresh_database(PACKAGE)
    if database.is_sqlite:
        pytest.skip("SQLite has no roles")
    await refused(database, "r1", days_ago=100)
    code, words = await prune(database.url)
    assert code == 2
    assert "only the owner of the tables" in words.splitlines()[-1]
    assert await count(database) == 1
