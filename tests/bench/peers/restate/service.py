"""Settle orders by a handler of Restate: a virtual object for each order, three durable steps.

    gRPC ▸ Restate's ingress, idempotency key = request id ▸ order's object: claim ▸ post ▸ complete ▸ answer

One process serves gRPC and the handler, which Restate calls; every instance serves the handler on the same port.

python -m tests.bench.peers.restate.service postgresql://… INGRESS ADMIN HANDLER_PORT    prints its port
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import restate
import uvloop
from hypercorn.asyncio import serve as serve_asgi
from hypercorn.config import Config
from restate.client_types import HttpError
from restate.exceptions import TerminalError

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.durable.books import Books, pool
from tests.bench.peers.serving import Refused, Settle, response, serve

_HOST = "127.0.0.1"
_STATUSES = {"NOT_FOUND": 404, "ALREADY_EXISTS": 409, "INVALID_ARGUMENT": 422, "FAILED_PRECONDITION": 412}
_CODES = {status: code for code, status in _STATUSES.items()}
#: A charge may take five seconds; a handler that is silent for longer is asked to suspend, and then run elsewhere.
_INACTIVE, _ABORT = timedelta(seconds=3), timedelta(seconds=3)
#: httpx waits for five seconds by default; ours is the deadline of the load generator.
_CALL_TIMEOUT_S = 20.0
_REGISTER_TRIES, _REGISTER_PAUSE_S = 50, 0.2

#: Charges a card: key, card, amount in minor units.
Charge = Callable[[str, str, int], Awaitable[None]]


def order_object(books: Books, charge: Charge | None) -> restate.VirtualObject:
    """Return the virtual object, whose handler runs for one caller of an order at a time.

    Args:
        charge: A further step, after the claim; None: no card is charged.
    """
    order: Any = restate.VirtualObject("order", inactivity_timeout=_INACTIVE, abort_timeout=_ABORT)

    async def step(context: Any, name: str, action: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        async def run() -> Any:
            try:
                return await action(*arguments)
            except Refused as refused:
                if refused.code in _STATUSES:
                    raise TerminalError(refused.message, _STATUSES[refused.code]) from refused
                raise

        return await context.run_typed(name, run)

    @order.handler("settle")  # type: ignore[untyped-decorator]
    async def settle(context: restate.ObjectContext, request: dict[str, Any]) -> str:
        order_id, payment_id = context.key(), request["request_id"]
        amount_minor = await step(context, "claim", books.claim, order_id, payment_id)
        if charge is not None:
            try:
                await step(context, "charge", charge, payment_id, request["card"], amount_minor)
            except TerminalError:
                await step(context, "release", books.release, order_id, payment_id)
                raise
        await step(context, "post", books.post, order_id, payment_id, amount_minor)
        await step(context, "complete", books.complete, order_id, payment_id)
        return base64.b64encode(response(order_id, request["source"], payment_id, amount_minor)).decode()

    handled: restate.VirtualObject = order
    return handled


def settling(client: Any) -> Settle:
    """Return what calls the order's handler through Restate."""

    async def settle(request: payment_pb2.SettleRequest) -> bytes:
        argument = {"request_id": request.request_id, "source": request.source, "card": request.card}
        try:
            answer = await client.post(
                "order",
                "settle",
                send=False,
                content=json.dumps(argument).encode(),
                headers=[("content-type", "application/json")],
                key=request.order_id,
                idempotency_key=request.request_id,
            )
        except HttpError as error:
            message = json.loads(error.body or "{}").get("message", "")
            raise Refused(_CODES.get(error.status_code, "UNAVAILABLE"), message) from error
        except httpx.HTTPError as error:
            raise Refused("UNAVAILABLE", f"Restate did not answer: {error!r}") from error
        return base64.b64decode(json.loads(answer))

    return settle


@asynccontextmanager
async def running(
    books: Books, ingress: str, admin: str, port: int, charge: Charge | None = None
) -> AsyncIterator[Settle]:
    """Serve the handler and register it with Restate; return what settles an order."""
    listener = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    listener.bind((_HOST, port))
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.loglevel = "ERROR"
    stop = asyncio.Event()
    app: Any = restate.app([order_object(books, charge)])
    handler = asyncio.create_task(serve_asgi(app, config, shutdown_trigger=stop.wait))
    try:
        await _register(admin, f"http://{_HOST}:{port}")
        async with restate.create_client(ingress) as client:
            http: Any = client
            http.client.timeout = _CALL_TIMEOUT_S
            yield settling(client)
    finally:
        stop.set()
        await handler


async def _register(admin: str, uri: str) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(_REGISTER_TRIES):
            try:
                answer = await client.post(f"{admin}/deployments", json={"uri": uri, "force": False})
            except httpx.HTTPError:
                await asyncio.sleep(_REGISTER_PAUSE_S)
                continue
            if answer.status_code in (200, 201, 409):  # 409: another instance has registered it
                return
            await asyncio.sleep(_REGISTER_PAUSE_S)
    raise RuntimeError("Restate did not take the handler")


async def _serve(database: str, ingress: str, admin: str, port: str) -> None:
    async with pool(database) as connections, running(Books(connections), ingress, admin, int(port)) as settle:
        await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:5]))
