"""Settle orders in one service with one database transaction, as a team without ZooKeeper would write it.

    BEGIN ▸ request id ▸ order OPEN → PAID ▸ two postings ▸ stored response ▸ two balances ▸ COMMIT ▸ answer

It speaks `PaymentService/Settle` of this repository, so that one load generator measures both. README.md says what was
chosen and what it lacks.

    python -m tests.bench.peers.one_service.service postgresql://…      prints its port; ends when its input is closed
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from typing import Any

import asyncpg
import grpc
import uvloop

from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, money_pb2

METHOD = "/countinghouse.payment.v1.PaymentService/Settle"
#: Of 4, 8, 16 and 32 on two cores: more connections only wait for the same two balances.
_POOL = 8
_DRAWER, _SALES = "drawer", "sales"

_INSERT_REQUEST = "INSERT INTO requests (request_id, order_id) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING 1"
_SELECT_REQUEST = "SELECT order_id, response FROM requests WHERE request_id = $1"
_PAY_ORDER = """
    UPDATE orders SET state = 'PAID', payment_id = $2, paid_at_ms = $3 WHERE order_id = $1 AND state = 'OPEN'
    RETURNING amount_minor, currency_code
"""
_SELECT_ORDER = "SELECT payment_id FROM orders WHERE order_id = $1"
_INSERT_POSTINGS = f"""
    INSERT INTO postings (payment_id, account_id, order_id, amount)
    VALUES ($1, '{_DRAWER}', $2, $3), ($1, '{_SALES}', $2, -$3::bigint)
"""  # noqa: S608  constants
_STORE_RESPONSE = "UPDATE requests SET response = $2 WHERE request_id = $1"
#: Every settle updates these two in this order, so that none deadlocks with another.
_ADD_TO_DRAWER = f"UPDATE accounts SET balance = balance + $1 WHERE account_id = '{_DRAWER}'"  # noqa: S608  a constant
_ADD_TO_SALES = f"UPDATE accounts SET balance = balance - $1 WHERE account_id = '{_SALES}'"  # noqa: S608  a constant


class _Refused(Exception):
    """The request is refused, and nothing of it is kept."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class SettleService:
    """Settle orders on a pool of connections."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def settle(self, request: payment_pb2.SettleRequest, context: Any) -> bytes:
        """Return the response, which is durable; of a repeated request the stored one."""
        if not (request.request_id and request.order_id):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id and order_id are required")
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                return await _settle(connection, request)
        except _Refused as refused:
            await context.abort(refused.code, str(refused))
            raise


async def _settle(connection: Any, request: payment_pb2.SettleRequest) -> bytes:
    """Run the transaction. asyncpg prepares each statement once a connection."""
    if await connection.fetchval(_INSERT_REQUEST, request.request_id, request.order_id) is None:
        stored = await connection.fetchrow(_SELECT_REQUEST, request.request_id)
        if stored["order_id"] != request.order_id:
            raise _Refused(grpc.StatusCode.INVALID_ARGUMENT, "this request_id was used for another order")
        return bytes(stored["response"])
    payment_id, now_ms = f"pay-{uuid.uuid4().hex}", time.time_ns() // 1_000_000
    order = await connection.fetchrow(_PAY_ORDER, request.order_id, payment_id, now_ms)
    if order is None:
        found = await connection.fetchrow(_SELECT_ORDER, request.order_id)
        if found is None:
            raise _Refused(grpc.StatusCode.NOT_FOUND, "there is no such order")
        raise _Refused(grpc.StatusCode.ALREADY_EXISTS, f"the order is paid by {found['payment_id']}")
    amount_minor = order["amount_minor"]
    await connection.execute(_INSERT_POSTINGS, payment_id, request.order_id, amount_minor)
    response = _response(request, payment_id, money_pb2.Money(minor_units=amount_minor, currency_code="CNY"))
    await connection.execute(_STORE_RESPONSE, request.request_id, response)
    # Last: every settle waits for these two rows.
    await connection.execute(_ADD_TO_DRAWER, amount_minor)
    await connection.execute(_ADD_TO_SALES, amount_minor)
    return response


def _response(request: payment_pb2.SettleRequest, payment_id: str, amount: money_pb2.Money) -> bytes:
    return payment_pb2.SettleResponse(
        payment=payment_pb2.Payment(
            payment_id=payment_id,
            order_id=request.order_id,
            round=1,
            state=payment_pb2.PAYMENT_STATE_SUCCEEDED,
            source=request.source,
            amount=amount,
            payer_account_id=_DRAWER,
            payee_account_id=_SALES,
            clerk=clerk_pb2.Clerk(name="li"),
            journal_id=payment_id,
        )
    ).SerializeToString()


async def _keep_session(_connection: Any) -> None:
    """Spare the round trip with which asyncpg resets a session: no settle changes one."""


async def _serve(database: str) -> None:
    async with asyncpg.create_pool(database, min_size=_POOL, max_size=_POOL, reset=_keep_session) as pool:
        server = grpc.aio.server()
        handler: Any = grpc.unary_unary_rpc_method_handler(
            SettleService(pool).settle, request_deserializer=payment_pb2.SettleRequest.FromString
        )
        service, method = METHOD.strip("/").split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        sys.stdout.write(f"{port}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)
        await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))
