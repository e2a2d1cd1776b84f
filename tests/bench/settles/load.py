"""The load generator: settle distinct orders with some callers, and say how long each call took.

    python -m tests.bench.settles.load      a Job as JSON on its input, a Load as JSON on its output

It is a process of its own, on uvloop, and the same for every system. Each caller settles the next order as soon as its
last one is answered, or at a fixed pace. A call that fails in a way that may pass is repeated under its request id; its
time goes on. A caller of SettleBatch settles 64 orders in a call; the time of each order is that of its call.
After the clock has stopped it looks at every response, and repeats some requests: each must be answered as before.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import grpc
import uvloop

from countinghouse.payment.v1 import payment_pb2
from services.runtime.grpc.tls import Dialer, TlsFiles

METHOD = "/countinghouse.payment.v1.PaymentService/Settle"
BATCH_METHOD = "/countinghouse.payment.v1.PaymentService/SettleBatch"
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
        addresses: Of the service's instances, which the callers take in turn.
        tokens: One for each caller who settles, all at once; an empty one is not sent.
        orders_a_call: More than 1: each call is a SettleBatch of so many.
        ca_file: Of the authority of the instances' certificates; empty: they are called in plain text.
        every_s: Each caller begins a call so long after its last one began, or when that one is answered, if later.
    """

    addresses: list[str]
    tokens: list[str]
    orders: list[str]
    orders_a_call: int = 1
    every_s: float = 0.0
    ca_file: str = ""


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
    async with AsyncExitStack() as resources:
        dialer = Dialer(TlsFiles(Path(job.ca_file)) if job.ca_file else None)
        channels = [await resources.enter_async_context(dialer.open(each, "payment")) for each in job.addresses]
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), _READY_TIMEOUT_S)
        return await _Generator(channels, job).run()


def request_id(order_id: str) -> str:
    """Return the request id under which an order is settled."""
    return f"settle-{order_id}"


class _Caller:
    """One who settles: a channel and a token."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._one: Any = channel.unary_unary(METHOD, request_serializer=payment_pb2.SettleRequest.SerializeToString)
        self._batch: Any = channel.unary_unary(
            BATCH_METHOD,
            request_serializer=payment_pb2.SettleBatchRequest.SerializeToString,
            response_deserializer=payment_pb2.SettleBatchResponse.FromString,
        )

    async def settle(self, orders: Sequence[str], *, in_a_batch: bool) -> dict[str, bytes]:
        """Send the orders in one call; return the responses of those that were settled, by order.

        Raises:
            grpc.aio.AioRpcError: None was.
        """
        # An accountant has no drawer.
        source = payment_pb2.SOURCE_BANK if in_a_batch else payment_pb2.SOURCE_DRAWER
        requests = [
            payment_pb2.SettleRequest(request_id=request_id(order_id), order_id=order_id, source=source)
            for order_id in orders
        ]
        if not in_a_batch:
            return {orders[0]: await self._one(requests[0], timeout=_TIMEOUT_S, metadata=self._metadata)}
        batch = payment_pb2.SettleBatchRequest(requests=requests)
        answer = await self._batch(batch, timeout=_TIMEOUT_S, metadata=self._metadata)
        return {
            order_id: outcome.response.SerializeToString(deterministic=True)
            for order_id, outcome in zip(orders, answer.outcomes, strict=True)
            if outcome.HasField("response")
        }


class _Generator:
    def __init__(self, channels: Sequence[grpc.aio.Channel], job: Job) -> None:
        self._job = job
        self._callers = [_Caller(channel, token) for channel, token in zip(cycle(channels), job.tokens)]
        self._retries = 0
        self._lasted_s: list[float] = []
        self._bodies: dict[str, bytes] = {}
        self._settled_by: dict[str, _Caller] = {}

    async def run(self) -> Load:
        remaining = iter(self._job.orders)

        async def settle_all(caller: _Caller, wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            while orders := list(islice(remaining, self._job.orders_a_call)):
                began_s = time.perf_counter()
                self._bodies |= await self._settle(caller, orders)
                lasted_s = time.perf_counter() - began_s
                self._lasted_s += [lasted_s] * len(orders)
                self._settled_by |= dict.fromkeys(orders, caller)
                if self._job.every_s:
                    await asyncio.sleep(max(self._job.every_s - lasted_s, 0.0))

        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as callers:
            for number, caller in enumerate(self._callers):
                callers.create_task(settle_all(caller, self._job.every_s * number / len(self._callers)))
        elapsed_s = time.perf_counter() - began_s
        problems = [*self._unpaid(), *await self._answered_otherwise()]
        responses = {request_id(order): base64.b64encode(body).decode() for order, body in self._bodies.items()}
        return Load(elapsed_s, self._lasted_s, self._retries, responses, problems)

    async def _settle(self, caller: _Caller, orders: Sequence[str]) -> dict[str, bytes]:
        """Return the response of each order, which may take several calls."""
        bodies: dict[str, bytes] = {}
        for _ in range(_TRIES):
            left = [order_id for order_id in orders if order_id not in bodies]
            try:
                bodies |= await caller.settle(left, in_a_batch=self._job.orders_a_call > 1)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _MAY_PASS:
                    raise
            if len(bodies) == len(orders):
                return bodies
            self._retries += 1
            await asyncio.sleep(_PAUSE_S)
        raise TimeoutError(f"{len(orders) - len(bodies)} of {orders[0]} … were not settled in {_TRIES} tries")

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
        bodies = [(await self._settle(self._settled_by[order_id], [order_id]))[order_id] for order_id in again]
        return [
            f"the repeated request of {order_id} was answered otherwise"
            for order_id, body in zip(again, bodies, strict=True)
            if body != self._bodies[order_id]
        ]


if __name__ == "__main__":
    json.dump(asdict(uvloop.run(run(Job(**json.load(sys.stdin))))), sys.stdout)
