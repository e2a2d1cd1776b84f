"""How the peers charge a card at our acquirer: an outside system that charges a key once at most."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from coordination.grpc_channel import open_channel
from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.acquirer.v1.acquirer_pb2_grpc import AcquirerServiceStub
from countinghouse.type.v1 import money_pb2
from tests.bench.peers.serving import Refused

#: The environment variable with the token of a merchant.
TOKEN = "COUNTINGHOUSE_BENCH_TOKEN"
#: The environment variable with the file in which a process that charges puts its id, so that the right one is killed.
CHARGING = "COUNTINGHOUSE_BENCH_CHARGING"
_TIMEOUT_S = 5.0


class Charger:
    """Charges cards."""

    def __init__(self, stub: AcquirerServiceStub) -> None:
        self._stub = stub

    async def charge(self, key: str, card: str, amount_minor: int) -> None:
        """Charge a card under a key, or find it charged.

        Raises:
            Refused: FAILED_PRECONDITION: it was declined. UNAVAILABLE: no answer, and the outcome is not known.
        """
        amount = money_pb2.Money(minor_units=amount_minor, currency_code="CNY")
        request = acquirer_pb2.ChargeRequest(key=key, card=card, amount=amount, reference=key)
        metadata = (("authorization", f"Bearer {os.environ[TOKEN]}"),)
        Path(os.environ[CHARGING]).write_text(str(os.getpid()))  # noqa: ASYNC240  a few bytes
        try:
            answer = await self._stub.Charge(request, timeout=_TIMEOUT_S, metadata=metadata)  # type: ignore[misc]
        except grpc.aio.AioRpcError as error:
            raise Refused("UNAVAILABLE", f"the acquirer did not answer: {error.code().name}") from error
        if answer.charge.state != acquirer_pb2.CHARGE_STATE_CHARGED:
            raise Refused("FAILED_PRECONDITION", "the card was not charged")


@asynccontextmanager
async def charger(address: str) -> AsyncIterator[Charger]:
    """Return the acquirer at an address."""
    async with open_channel(address) as channel:
        yield Charger(AcquirerServiceStub(channel))
