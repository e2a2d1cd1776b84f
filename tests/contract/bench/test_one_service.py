"""The peer of `make bench-settle` settles each order once too, and what it gets wrong would be seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import asyncpg
import grpc
import pytest
from sqlalchemy import make_url

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.one_service.service import SettleService
from tests.bench.settles.systems import PEER_FOLDER, OneService, Server
from tests.postgresql import PostgresServer

_AT_ONCE = 20


class _Aborted(Exception):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


class _Context:
    async def abort(self, code: grpc.StatusCode, _message: str) -> NoReturn:
        raise _Aborted(code)


class _Peer:
    """The service in this process, and its tables."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.tables = OneService(Server("", 0, "", {}), pool, "", Path())
        self._service = SettleService(pool)

    async def settle(self, order_id: str, request_id: str) -> bytes:
        request = payment_pb2.SettleRequest(request_id=request_id, order_id=order_id, source=payment_pb2.SOURCE_DRAWER)
        return await self._service.settle(request, _Context())


@pytest.fixture
async def peer(postgres_server: PostgresServer) -> AsyncIterator[_Peer]:
    """The peer on a database of its own."""
    url = await postgres_server.create()
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    async with asyncpg.create_pool(plain, min_size=1, max_size=4) as pool:
        await pool.execute((PEER_FOLDER / "schema.sql").read_text())
        yield _Peer(pool)
    await postgres_server.drop(url)


async def test_orders_settled_at_once_are_settled_once_each(peer: _Peer) -> None:
    orders = await peer.tables.make_orders(_AT_ONCE)

    await asyncio.gather(*(peer.settle(order, f"settle-{order}") for order in orders))

    assert await peer.tables.problems(orders) == []


async def test_one_request_sent_at_once_is_answered_alike_and_settles_once(peer: _Peer) -> None:
    [order] = await peer.tables.make_orders(1)

    answers = await asyncio.gather(*(peer.settle(order, "one") for _ in range(_AT_ONCE)))

    assert len(set(answers)) == 1
    assert payment_pb2.SettleResponse.FromString(answers[0]).payment.order_id == order
    assert await peer.tables.problems([order]) == []


async def test_two_requests_for_one_order_settle_it_once(peer: _Peer) -> None:
    [order] = await peer.tables.make_orders(1)

    answers = await asyncio.gather(*(peer.settle(order, f"{n}") for n in range(_AT_ONCE)), return_exceptions=True)

    refused = [answer.code for answer in answers if isinstance(answer, _Aborted)]
    assert refused == [grpc.StatusCode.ALREADY_EXISTS] * (_AT_ONCE - 1)
    assert await peer.tables.problems([order]) == []


async def test_request_id_of_another_order_and_an_unknown_order_are_refused(peer: _Peer) -> None:
    first, second = await peer.tables.make_orders(2)
    await peer.settle(first, "one")

    with pytest.raises(_Aborted) as mismatch:
        await peer.settle(second, "one")
    with pytest.raises(_Aborted) as unknown:
        await peer.settle("none", "two")

    assert (mismatch.value.code, unknown.value.code) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    )
    assert await peer.tables.problems([second]) == [f"{second} is OPEN with 0 postings"]


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE orders SET state = 'OPEN'", "is OPEN with 2 postings"),
        ("UPDATE requests SET response = NULL", "is PAID with 2 postings"),
        ("INSERT INTO postings SELECT 'again', account_id, order_id, amount FROM postings", "is PAID with 4 postings"),
        ("UPDATE accounts SET balance = balance + 1 WHERE account_id = 'sales'", "is not the sum of its postings"),
    ],
)
async def test_order_that_was_not_settled_once_is_named(peer: _Peer, statement: str, problem: str) -> None:
    [order] = await peer.tables.make_orders(1)
    await peer.settle(order, "one")
    await peer.pool.execute(statement)

    found = await peer.tables.problems([order])

    assert problem in " ".join(found)
