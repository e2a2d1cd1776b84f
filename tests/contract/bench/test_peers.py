"""Every peer of `make bench-settle` settles each order once too, and what it gets wrong would be seen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import make_url

from coordination.grpc_channel import open_channel
from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.serving import METHOD
from tests.bench.settles.peers import PEERS, Kind, Peer, Server, problems, running
from tests.postgresql import PostgresServer

_AT_ONCE = 20


class _Client:
    """A running peer, a channel to it, and a connection to its database."""

    def __init__(self, kind: Kind, tables: Peer, channel: grpc.aio.Channel, connection: Any) -> None:
        self.kind = kind
        self.tables = tables
        self.connection = connection
        self._send: Any = channel.unary_unary(METHOD, request_serializer=payment_pb2.SettleRequest.SerializeToString)

    async def settle(self, order_id: str, request_id: str) -> bytes:
        request = payment_pb2.SettleRequest(request_id=request_id, order_id=order_id, source=payment_pb2.SOURCE_DRAWER)
        answer: bytes = await self._send(request, timeout=30.0)
        return answer


@pytest.fixture(params=PEERS, ids=lambda kind: kind.folder)
async def peer(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path: Path
) -> AsyncIterator[_Client]:
    """Each peer on a database of its own; skips one that is not installed here."""
    kind: Kind = request.param
    if lacking := kind.lacking():
        pytest.skip(lacking)
    url = await postgres_server.create()
    parts = make_url(url)
    passfile = tmp_path / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:{parts.username}:{parts.password or 'none'}\n")
    server = Server(
        parts.host or "",
        parts.port or 5432,
        parts.username or "",
        str(passfile),
        os.environ | {"PGPASSFILE": str(passfile), "GRPC_VERBOSITY": "NONE"},
    )
    database = str(parts.database)
    async with AsyncExitStack() as resources:
        resources.push_async_callback(postgres_server.drop, url)
        tables = await resources.enter_async_context(running(kind, server, database))
        channel = await resources.enter_async_context(open_channel(tables.addresses[0]))
        connection = await server.connect(database)
        resources.push_async_callback(connection.close)
        yield _Client(kind, tables, channel, connection)


async def test_orders_settled_at_once_are_settled_once_each(peer: _Client) -> None:
    orders = await peer.tables.make_orders(_AT_ONCE)

    await asyncio.gather(*(peer.settle(order, f"settle-{order}") for order in orders))

    assert await peer.tables.problems(orders) == []


async def test_one_request_sent_at_once_is_answered_alike_and_settles_once(peer: _Client) -> None:
    [order] = await peer.tables.make_orders(1)

    answers = await asyncio.gather(*(peer.settle(order, "one") for _ in range(_AT_ONCE)))

    assert len(set(answers)) == 1
    assert payment_pb2.SettleResponse.FromString(answers[0]).payment.order_id == order
    assert await peer.tables.problems([order]) == []


async def test_two_requests_for_one_order_settle_it_once(peer: _Client) -> None:
    [order] = await peer.tables.make_orders(1)

    answers = await asyncio.gather(*(peer.settle(order, f"{n}") for n in range(_AT_ONCE)), return_exceptions=True)

    refused = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert refused == [grpc.StatusCode.ALREADY_EXISTS] * (_AT_ONCE - 1)
    assert await peer.tables.problems([order]) == []


async def test_request_id_of_another_order_and_an_unknown_order_are_refused(peer: _Client) -> None:
    first, second = await peer.tables.make_orders(2)
    await peer.settle(first, "one")

    with pytest.raises(grpc.aio.AioRpcError) as mismatch:
        await peer.settle(second, "one")
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await peer.settle("none", "two")

    assert (mismatch.value.code(), unknown.value.code()) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    )
    assert await peer.tables.problems([second]) == [f"{second} is OPEN with 0 postings"]


_WRONGS = {
    "UPDATE orders SET state = 'OPEN'": "is OPEN with 2 postings",
    "UPDATE {stored} = NULL": "is PAID with 2 postings",
    "INSERT INTO postings SELECT 'again', account_id, order_id, amount FROM postings": "is PAID with 4 postings",
    "UPDATE accounts SET balance = balance + 1 WHERE account_id = 'sales'": "is not the sum of its postings",
}


async def test_order_that_was_not_settled_once_is_named(peer: _Client) -> None:
    [order] = await peer.tables.make_orders(1)
    await peer.settle(order, "one")
    # Restate and Temporal keep responses on servers of their own; with them the payment's id stands for the response.
    stored = {"dbos": "dbos.workflow_output SET output", "durable": "orders SET payment_id"}.get(
        peer.kind.tables, "requests SET response"
    )

    for statement, problem in _WRONGS.items():
        undone = peer.connection.transaction()
        await undone.start()
        await peer.connection.execute(statement.format(stored=stored))
        found = await problems(peer.connection, peer.kind, [order])
        await undone.rollback()
        assert problem in " ".join(found)
    assert await peer.tables.problems([order]) == []
