"""The load generator: settle distinct orders with some callers, and say how long each call took.

    python -m tests.bench.settles.load      a Job as JSON on its input, a Load as JSON on its output

It is a process of its own, on uvloop, and the same for every system. Each caller settles the next order as soon as its
last one is answered. A call that fails in a way that may pass is repeated under its request id; its time goes on.
After the clock has stopped it looks at every response, and repeats some requests: each must be answered as before.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import uvloop

from coordination.grpc_channel import open_channel
from countinghouse.payment.v1 import payment_pb2

METHOD = "/countinghouse.payment.v1.PaymentService/Settle"
_TIMEOUT_S = 20.0
_READY_TIMEOUT_S = 10.0
_PAUSE_S = 0.05
_TRIES = 50
_REPEATED = 20
_MAY_PASS = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    )
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to settle.

    Args:
        address: Of the service.
        tokens: One for each caller who settles, all at once; an empty one is not sent.
    """

    address: str
    tokens: list[str]
    orders: list[str]


@dataclass(frozen=True, slots=True)
class Load:
    """What was measured.

    Args:
        elapsed_s: From the first request to the last answer.
        lasted_s: Of each settle.
        retries: How often a request was sent again.
        responses: By request id, in Base64.
        problems: What was answered wrongly, in sentences.
    """

    elapsed_s: float
    lasted_s: list[float]
    retries: int
    responses: dict[str, str]
    problems: list[str]


async def run(job: Job) -> Load:
    """Settle every order of the job once."""
    async with open_channel(job.address) as channel:
        await asyncio.wait_for(channel.channel_ready(), _READY_TIMEOUT_S)
        return await _Generator(channel, job).run()


def request_id(order_id: str) -> str:
    """Return the request id under which an order is settled."""
    return f"settle-{order_id}"


class _Generator:
    def __init__(self, channel: grpc.aio.Channel, job: Job) -> None:
        self._job = job
        self._send: Any = channel.unary_unary(METHOD, request_serializer=payment_pb2.SettleRequest.SerializeToString)
        self._retries = 0
        self._lasted_s: list[float] = []
        self._bodies: dict[str, bytes] = {}
        self._tokens: dict[str, str] = {}

    async def run(self) -> Load:
        remaining = iter(self._job.orders)

        async def caller(token: str) -> None:
            for order_id in remaining:
                self._tokens[order_id] = token
                began_s = time.perf_counter()
                self._bodies[order_id] = await self._settle(order_id)
                self._lasted_s.append(time.perf_counter() - began_s)

        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for token in self._job.tokens:
                callers.create_task(caller(token))
        elapsed_s = time.perf_counter() - began_s
        problems = [*self._unpaid(), *await self._answered_otherwise()]
        responses = {request_id(order): base64.b64encode(body).decode() for order, body in self._bodies.items()}
        return Load(elapsed_s, self._lasted_s, self._retries, responses, problems)

    async def _settle(self, order_id: str) -> bytes:
        request = payment_pb2.SettleRequest(
            request_id=request_id(order_id), order_id=order_id, source=payment_pb2.SOURCE_DRAWER
        )
        token = self._tokens[order_id]
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        for _ in range(_TRIES):
            try:
                body: bytes = await self._send(request, timeout=_TIMEOUT_S, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _MAY_PASS:
                    raise
                self._retries += 1
                await asyncio.sleep(_PAUSE_S)
            else:
                return body
        raise TimeoutError(f"{order_id} was not settled in {_TRIES} tries")

    def _unpaid(self) -> list[str]:
        problems = []
        for order_id, body in self._bodies.items():
            payment = payment_pb2.SettleResponse.FromString(body).payment
            state = payment_pb2.PaymentState.Name(payment.state)
            if payment.order_id != order_id or state != "PAYMENT_STATE_SUCCEEDED":
                problems.append(f"{order_id} was answered with {payment.order_id} {state}")
        return problems

    async def _answered_otherwise(self) -> list[str]:
        again = self._job.orders[:_REPEATED]
        bodies = [await self._settle(order_id) for order_id in again]
        return [
            f"the repeated request of {order_id} was answered otherwise"
            for order_id, body in zip(again, bodies, strict=True)
            if body != self._bodies[order_id]
        ]


if __name__ == "__main__":
    json.dump(asdict(uvloop.run(run(Job(**json.load(sys.stdin))))), sys.stdout)
