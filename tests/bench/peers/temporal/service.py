"""Settle orders by workflows of Temporal, one for each order: three activities.

    gRPC ▸ Temporal's server, workflow id = order ▸ a worker: claim ▸ post ▸ complete ▸ answer

One process serves gRPC and runs a worker; the workers of all instances poll the same task queue.

python -m tests.bench.peers.temporal.service postgresql://… SERVER    prints its port; ends when its input is closed
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvloop
from temporalio import activity
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError
from temporalio.worker import Worker

from countinghouse.payment.v1 import payment_pb2
from tests.bench.peers.durable.books import Books, pool
from tests.bench.peers.serving import Refused, Settle, response, serve
from tests.bench.peers.temporal.workflows import Settlement, SettleOrder

_QUEUE = "settles"
_CONNECT_TRIES, _CONNECT_PAUSE_S = 50, 0.2
_FINAL = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "INVALID_ARGUMENT", "FAILED_PRECONDITION"})

#: Charges a card: key, card, amount in minor units.
Charge = Callable[[str, str, int], Awaitable[None]]


class Activities:
    """The steps, each of which Temporal runs until it has succeeded, or failed for good."""

    def __init__(self, books: Books, charge: Charge | None) -> None:
        self._books = books
        self._charge = charge

    @activity.defn(name="claim")
    async def claim(self, settlement: Settlement) -> int:
        """Claim the order; return its amount."""
        return int(await _final(self._books.claim(settlement.order_id, settlement.payment_id)))

    @activity.defn(name="charge")
    async def charge(self, settlement: Settlement) -> int:
        """Charge the card under the payment's id."""
        if self._charge is not None:
            await _final(self._charge(settlement.payment_id, settlement.card, settlement.amount_minor))
        return 0

    @activity.defn(name="release")
    async def release(self, settlement: Settlement) -> int:
        """Undo the claim."""
        await self._books.release(settlement.order_id, settlement.payment_id)
        return 0

    @activity.defn(name="post")
    async def post(self, settlement: Settlement) -> int:
        """Write the postings."""
        await self._books.post(settlement.order_id, settlement.payment_id, settlement.amount_minor)
        return 0

    @activity.defn(name="complete")
    async def complete(self, settlement: Settlement) -> int:
        """Set the order to PAID."""
        await self._books.complete(settlement.order_id, settlement.payment_id)
        return 0

    def all(self) -> list[Callable[..., Any]]:
        """Return what a worker runs."""
        return [self.claim, self.charge, self.release, self.post, self.complete]


async def _final(step: Awaitable[Any]) -> Any:
    """Run a step; a refusal that stays one is not tried again."""
    try:
        return await step
    except Refused as refused:
        raise ApplicationError(refused.message, type=refused.code, non_retryable=refused.code in _FINAL) from refused


def settling(client: Client) -> Settle:
    """Return what settles an order by its workflow, which runs once unless it has failed."""

    async def settle(request: payment_pb2.SettleRequest) -> bytes:
        workflow_id = f"settle-{request.order_id}"
        try:
            handle = await client.start_workflow(
                SettleOrder.run,
                Settlement(request.order_id, request.request_id, request.card),
                id=workflow_id,
                task_queue=_QUEUE,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                request_eager_start=True,
            )
        except WorkflowAlreadyStartedError:
            handle = client.get_workflow_handle_for(SettleOrder.run, workflow_id)
        except RPCError as error:
            raise Refused("UNAVAILABLE", f"Temporal did not answer: {error}") from error
        try:
            settled = await handle.result()
        except WorkflowFailureError as failed:
            cause = getattr(failed.cause, "cause", None)
            code = cause.type if isinstance(cause, ApplicationError) and cause.type in _FINAL else "UNAVAILABLE"
            raise Refused(code or "", str(cause or failed)) from failed
        except RPCError as error:
            raise Refused("UNAVAILABLE", f"Temporal did not answer: {error}") from error
        if settled.payment_id != request.request_id:
            raise Refused("ALREADY_EXISTS", f"the order is paid by {settled.payment_id}")
        return response(request.order_id, request.source, settled.payment_id, settled.amount_minor)

    return settle


async def _connect(address: str) -> Client:
    """Return a client; the server listens some time before it is ready."""
    for _ in range(_CONNECT_TRIES):
        try:
            return await Client.connect(address)
        except RuntimeError:
            await asyncio.sleep(_CONNECT_PAUSE_S)
    raise RuntimeError("Temporal's server is not ready")


@asynccontextmanager
async def running(books: Books, address: str, charge: Charge | None = None) -> AsyncIterator[Settle]:
    """Run a worker; return what settles an order."""
    client = await _connect(address)
    async with Worker(client, task_queue=_QUEUE, workflows=[SettleOrder], activities=Activities(books, charge).all()):
        yield settling(client)


async def _serve(database: str, address: str) -> None:
    async with pool(database) as connections, running(Books(connections), address) as settle:
        await serve(settle)


if __name__ == "__main__":
    uvloop.run(_serve(*sys.argv[1:3]))
