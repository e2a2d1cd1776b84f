"""A recorded run under faults: the history, the books and the checker, put together."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.findings import Verdict
from services.checker.history import HistoryWriter, Phase, read_history
from services.checker.registry import run_checks
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.testkit.client import CallResult, RecordingClient
from services.testkit.harness import Harness
from tests.e2e.checked import QUIET_S
from tests.e2e.conftest import FreshStack

_ORDERS, _CLIENTS = 10, 6
#: Calls before, between and after the faults.
_BETWEEN_FAULTS = 120
#: Longer than a session lasts.
_FROZEN_S = 2.5
_NO_ACQUIRER = {"acquirer log whole", "charged once per key", "acquirer agrees with ledger"}
_INSTANCES = ("payment-1", "payment-2")


class Calls:
    """How many calls have ended, and which payments their answers named."""

    def __init__(self) -> None:
        self.payments: list[str] = []
        self._ended = 0
        self._changed = asyncio.Condition()

    async def add(self, result: CallResult) -> None:
        if result.answer.payment_id and result.answer.payment_id not in self.payments:
            self.payments.append(result.answer.payment_id)
        async with self._changed:
            self._ended += 1
            self._changed.notify_all()

    async def wait_more(self, times: int) -> None:
        """Wait until so many more calls have ended."""
        until = self._ended + times
        async with self._changed:
            await self._changed.wait_for(lambda: self._ended >= until)


class Client:
    """A client that calls every method about the orders, and repeats some calls."""

    def __init__(self, name: str, harness: Harness, calls: Calls, orders: list[str], seed: int) -> None:
        self._name, self._calls, self._orders = name, calls, orders
        self._cashier = harness.client("li", Role.CASHIER, name)
        self._accountant = harness.client("wang", Role.ACCOUNTANT, name)
        self._rng = random.Random(seed)
        self._earlier: list[tuple[RecordingClient, Message]] = []
        self._keys = 0
        self._stopped = False

    def stop(self) -> None:
        """The call that is under way is the last."""
        self._stopped = True

    async def work(self) -> None:
        """Make one call after the other."""
        while not self._stopped:
            client, request = self._next()
            at = "order-1" if "Order" in type(request).__name__ else self._rng.choice(_INSTANCES)
            await self._calls.add(await client.call(request, at=at, timeout_s=self._rng.choice((0.3, 2.0))))

    def _next(self) -> tuple[RecordingClient, Message]:
        order_id, known = self._rng.choice(self._orders), self._calls.payments
        client = self._rng.choice((self._cashier, self._accountant))
        self._keys += 1
        key = f"{self._name}-{self._keys}"
        match self._rng.choices(("settle", "again", "look", "payment", "reverse", "cancel"), (6, 3, 6, 2, 2, 0.1))[0]:
            case "settle":
                self._earlier.append((client, client.settle_request(order_id, key)))
                return self._earlier[-1]
            case "again" if self._earlier:
                return self._rng.choice(self._earlier[-3:])
            case "payment" if known:
                return client, payment_pb2.GetPaymentRequest(payment_id=self._rng.choice(known))
            case "reverse" if known:
                payment_id = self._rng.choice(known)
                request = payment_pb2.ReverseRequest(request_id=key, payment_id=payment_id, reason="wrong order")
                self._earlier.append((self._accountant, request))
                return self._earlier[-1]
            case "cancel":
                return client, order_pb2.CancelOrderRequest(request_id=key, order_id=order_id, reason="late")
        return client, order_pb2.GetOrderRequest(order_id=order_id)


async def nemesis(harness: Harness, calls: Calls, history: HistoryWriter, faults: Sequence[tuple[str, str]]) -> None:
    """Each fault comes when so many calls were made since the one before, and lasts until the instance serves again."""
    for fault, target in faults:
        await calls.wait_more(_BETWEEN_FAULTS)
        history.nemesis(fault, Phase.BEGUN, target)
        if fault == "freeze":
            harness.stack.kill(target, signal.SIGSTOP)
            await asyncio.sleep(_FROZEN_S)
            harness.thaw(target)
        else:
            pid = harness.pid(target)
            harness.stack.kill(target)
            await harness.wait_died(target, pid)
            await harness.stack.wait_serving(target)
        history.nemesis(fault, Phase.ENDED, target)
    await calls.wait_more(_BETWEEN_FAULTS)


@pytest.mark.long
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([("kill", "payment-1")], id="an instance is killed"),
        pytest.param(
            [("kill", "payment-1"), ("freeze", "payment-2"), ("kill", "payment-2"), ("freeze", "payment-1")] * 2,
            marks=[pytest.mark.soak, pytest.mark.timeout(240)],
            id="instances are killed and frozen",
        ),
    ],
)
async def test_run_under_faults_is_lawful(
    fresh_stack: FreshStack, tmp_path: Path, faults: Sequence[tuple[str, str]]
) -> None:
    """Six clients call every method meanwhile: every check holds, and there is none that was not examined."""
    clock, path = SystemClock(), tmp_path / "history.jsonl"
    async with fresh_stack(replicas={"payment": 2}) as stack:
        with HistoryWriter(path, clock, seed=7) as history:
            async with Harness(stack, clock, history=history, seed=7) as harness:
                calls = Calls()
                orders = [await harness.new_order() for _ in range(_ORDERS)]
                clients = [Client(f"client-{number}", harness, calls, orders, number) for number in range(_CLIENTS)]
                work = [asyncio.create_task(client.work()) for client in clients]
                await nemesis(harness, calls, history, faults)
                for client in clients:
                    client.stop()
                await asyncio.gather(*work)
        reading = await harness.settled_snapshot(QUIET_S)
    recorded = read_history(path)
    checks = run_checks(reading.snapshot, history=recorded, now_ms=reading.at_ms)
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []
    assert {check.name for check in checks if check.skipped} == _NO_ACQUIRER
    assert {check.name: check.examined for check in checks}["orders linearizable"] == _ORDERS
    assert recorded.whole
    assert [(moment.fault, moment.target) for moment in recorded.nemesis[::2]] == list(faults)
