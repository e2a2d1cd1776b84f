"""The peer that charges cards in one service, at the moments at which one request meets itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.charging import Charger
from tests.bench.peers.one_service import service
from tests.bench.peers.one_service.cards import CardService
from tests.postgresql import PostgresServer

_SCHEMA = Path(service.__file__).with_name("schema.sql")
_REQUEST = payment_pb2.SettleRequest(
    request_id="one", order_id="order-1", source=payment_pb2.SOURCE_CARD, card="tok-visa"
)
_BLOCKED = """
    SELECT 1 FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE datname = current_database() AND NOT granted
"""


class _Acquirer(Charger):
    """Charges every card and counts."""

    def __init__(self) -> None:  # it has no stub
        self.charges: list[str] = []

    async def charge(self, key: str, _card: str, _amount_minor: int) -> None:
        self.charges.append(key)


@pytest.fixture
async def database(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """An empty database with the peer's tables and one open order."""
    url = await postgres_server.create()
    plain = url.replace("postgresql+asyncpg", "postgresql")
    connection = await asyncpg.connect(plain)
    await connection.execute(_SCHEMA.read_text())
    await connection.execute("INSERT INTO orders VALUES ('order-1', 500, 'CNY')")
    await connection.close()
    yield plain
    await postgres_server.drop(url)


async def _order(pool: Any) -> tuple[str, int]:
    state = await pool.fetchval("SELECT state FROM orders")
    return state, await pool.fetchval("SELECT count(*) FROM postings")


async def test_request_that_meets_its_own_end_is_answered_from_the_stored_response(database: str) -> None:
    """It found no response, and the order is paid by itself before it claims: the order stays PAID."""
    acquirer = _Acquirer()
    async with service.pool(database) as pool, pool.acquire() as other:
        await pool.execute("INSERT INTO requests VALUES ('one', 'order-1', NULL)")
        await pool.execute("UPDATE orders SET state = 'PAYING', payment_id = 'one'")
        ending = other.transaction()
        await ending.start()
        await other.execute("UPDATE orders SET state = 'PAID'")

        repeated = asyncio.create_task(CardService(pool, acquirer).settle(_REQUEST))
        async with asyncio.timeout(20):
            while await pool.fetchval(_BLOCKED) is None:
                assert not repeated.done(), repeated
        stored = await service.record(other, _REQUEST, "one", 500)
        await ending.commit()

        assert await repeated == stored
        assert await _order(pool) == ("PAID", 2)
    assert acquirer.charges == []


async def test_request_that_was_left_between_claim_and_end_goes_on(database: str) -> None:
    acquirer = _Acquirer()
    async with service.pool(database) as pool:
        await pool.execute("INSERT INTO requests VALUES ('one', 'order-1', NULL)")
        await pool.execute("UPDATE orders SET state = 'PAYING', payment_id = 'one'")

        answer = await CardService(pool, acquirer).settle(_REQUEST)

        assert payment_pb2.SettleResponse.FromString(answer).payment.order_id == "order-1"
        assert await _order(pool) == ("PAID", 2)
    assert acquirer.charges == ["one"]
