"""What the workers of a chaos run ask for."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from countinghouse.payment.v1 import payment_pb2
from services.chaos.workload import Order, SharedState, Worker
from services.checker.history import NO_ANSWER, Answer, Outcome
from services.kernel.principal import Role
from services.testkit.client import CallResult, Connections, RecordingClient
from services.testkit.identities import Identity
from tests.fakes.clock import ManualClock


class SilentClient(RecordingClient):
    """Keeps the requests, and answers none, or each with the same answer."""

    def __init__(self, answer: Answer = NO_ANSWER) -> None:
        super().__init__(Connections(str, ManualClock()), Identity("li", Role.CASHIER, ""))
        self.sent: list[Message] = []
        self._answer = answer

    async def call(self, request: Message, **_: Any) -> CallResult:
        self.sent.append(request)
        outcome = Outcome.INFO if self._answer is NO_ANSWER else Outcome.OK
        return CallResult(0, 0, answer=self._answer, outcome=outcome)

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


async def settle_once(client: SilentClient) -> None:
    """Have a worker settle one order, during which the run ends."""
    shared = SharedState()
    shared.orders.append(Order("o1", "mei"))
    worker = Worker(client, shared, seed=1, rate_per_s=1000.0)

    async def settle_for_the_last_time() -> None:
        shared.over.set()
        await worker.settle()

    await worker.run([(1.0, settle_for_the_last_time)])


async def test_request_with_a_final_answer_is_repeated_at_the_end() -> None:
    """A short run in which no operation was `repeat` has an answer that was given again all the same."""
    client = SilentClient(Answer(state="SUCCEEDED"))
    await settle_once(client)
    first, again = client.settles()
    assert first == again


async def test_request_that_was_given_up_is_not_repeated_at_the_end() -> None:
    """What is left of it is for the services to finish by themselves."""
    client = SilentClient()
    await settle_once(client)
    assert len(client.settles()) == 1
