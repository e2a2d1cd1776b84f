"""What the peers share: the method they serve, how a process serves it, how a settle is answered or refused."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from coordination.grpc_channel import SERVER_PING_OPTIONS
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, money_pb2

METHOD = "/countinghouse.payment.v1.PaymentService/Settle"
DRAWER, SALES = "drawer", "sales"
_CURRENCY = "CNY"

#: Settles one order; returns the serialized response.
Settle = Callable[[payment_pb2.SettleRequest], Coroutine[Any, Any, bytes]]


class Refused(Exception):
    """The request is refused, and nothing of it is kept.

    Args:
        code: The name of a `grpc.StatusCode`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


async def serve(settle: Settle) -> None:
    """Serve the method on a free port, which is printed; return when the input is closed.

    A settle runs in a task of its own, so that it goes on if the caller hangs up.
    """
    running: set[asyncio.Task[bytes]] = set()

    def forget(task: asyncio.Task[bytes]) -> None:
        running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as taken: the caller may have hung up

    async def answer(request: payment_pb2.SettleRequest, context: Any) -> bytes:
        if not (request.request_id and request.order_id):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "request_id and order_id are required")
        task = asyncio.create_task(settle(request))
        running.add(task)
        task.add_done_callback(forget)
        try:
            return await asyncio.shield(task)
        except Refused as refused:
            await context.abort(grpc.StatusCode[refused.code], refused.message)
            raise

    server = grpc.aio.server(options=SERVER_PING_OPTIONS)
    handler: Any = grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=payment_pb2.SettleRequest.FromString
    )
    service, method = METHOD.strip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1.0)


def response(order_id: str, source: payment_pb2.Source.ValueType, payment_id: str, amount_minor: int) -> bytes:
    """Return the response to a settle, serialized."""
    return payment_pb2.SettleResponse(
        payment=payment_pb2.Payment(
            payment_id=payment_id,
            order_id=order_id,
            round=1,
            state=payment_pb2.PAYMENT_STATE_SUCCEEDED,
            source=source,
            amount=money_pb2.Money(minor_units=amount_minor, currency_code=_CURRENCY),
            payer_account_id=DRAWER,
            payee_account_id=SALES,
            clerk=clerk_pb2.Clerk(name="li"),
            journal_id=payment_id,
        )
    ).SerializeToString()
