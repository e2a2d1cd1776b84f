"""What the workers of a chaos run ask for."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from countinghouse.payment.v1 import payment_pb2
from services.chaos.workload import Order, SharedState, Worker
from services.checker.history import NO_ANSWER
from services.kernel.principal import Role
from services.testkit.client import CallResult, Connections, RecordingClient
from services.testkit.identities import Identity
from tests.fakes.clock import ManualClock


class SilentClient(RecordingClient):
    """Keeps the requests, and answers none."""

    def __init__(self) -> None:
        super().__init__(Connections(str, ManualClock()), Identity("li", Role.CASHIER, ""))
        self.sent: list[Message] = []

    async def call(self, request: Message, **_: Any) -> CallResult:
        self.sent.append(request)
        return CallResult(0, 0, answer=NO_ANSWER)

    def settles(self) -> list[payment_pb2.SettleRequest]:
        return [request for request in self.sent if isinstance(request, payment_pb2.SettleRequest)]


@pytest.mark.parametrize("seed", range(20))
async def test_reused_request_id_is_for_another_order(seed: int) -> None:
    """A history does not say which card: another card for the same order would look like the same payload."""
    client, shared = SilentClient(), SharedState()
    shared.orders.extend(Order(f"o{number}", "mei") for number in range(2))
    worker = Worker(client, shared, seed=seed, rate_per_s=1000.0)
    for _ in range(2):
        await worker.settle()
    used = {request.request_id: request.order_id for request in client.settles()}
    client.sent.clear()
    for _ in range(6):
        await worker.reuse_request_id()
    assert all(used[request.request_id] != request.order_id for request in client.settles())
