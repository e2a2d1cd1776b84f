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
from countinghouse.type.v1 import money_pb2
from services.checker.findings import Verdict
from services.checker.history import HistoryWriter, Phase, read_history
from services.checker.registry import run_checks
from services.checker.snapshot import SERVICES, settled_snapshot
from services.demo.people import Person
from services.devstack.files import database_url
from services.kernel.clock import SystemClock
from tests.e2e.conftest import FreshStack
from tests.e2e.recorder import Recorder
from tests.e2e.teller import QUIET_S, Teller, settle_request, teller_at

_ORDERS, _CLIENTS = 10, 6
#: Calls before, between and after the faults.
_BETWEEN_FAULTS = 120
#: Longer than a session lasts.
_FROZEN_S = 2.5
_NO_ACQUIRER = {"acquirer log whole", "charged once per key", "acquirer agrees with ledger"}
_INSTANCES = ("payment-1", "payment-2")


class Client:
    """Somebody who does this and that with the orders, and now and then the same again."""

    def __init__(self, name: str, teller: Teller, recorder: Recorder, orders: list[str], seed: int) -> None:
        self._name, self._teller, self._recorder = name, teller, recorder
        self._orders = orders
        self._rng = random.Random(seed)
        self._earlier: list[tuple[Person, Message]] = []
        self._keys = 0
        self._stopped = False

    def stop(self) -> None:
        """The call that is under way is the last."""
        self._stopped = True

    async def work(self) -> None:
        """Makes one call after the other."""
        while not self._stopped:
            person, request = self._next()
            instance = "order-1" if "Order" in type(request).__name__ else self._rng.choice(_INSTANCES)
            timeout_s = self._rng.choice((0.3, 2.0))
            address = self._teller.address(instance)
            await self._recorder.ask(self._name, person, address, request, timeout_s=timeout_s)

    def _next(self) -> tuple[Person, Message]:
        teller, order_id = self._teller, self._rng.choice(self._orders)
        person = self._rng.choice((teller.cashier, teller.accountant))
        self._keys += 1
        key = f"{self._name}-{self._keys}"
        match self._rng.choices(("settle", "again", "look", "payment", "reverse", "cancel"), (6, 3, 6, 2, 2, 0.1))[0]:
            case "settle":
                self._earlier.append((person, settle_request(person, order_id, key)))
                return self._earlier[-1]
            case "again" if self._earlier:
                return self._rng.choice(self._earlier[-3:])
            case "payment" if self._known:
                return person, payment_pb2.GetPaymentRequest(payment_id=self._rng.choice(self._known))
            case "reverse" if self._known:
                payment_id = self._rng.choice(self._known)
                request = payment_pb2.ReverseRequest(request_id=key, payment_id=payment_id, reason="wrong order")
                self._earlier.append((teller.accountant, request))
                return self._earlier[-1]
            case "cancel":
                return person, order_pb2.CancelOrderRequest(request_id=key, order_id=order_id, reason="late")
        return person, order_pb2.GetOrderRequest(order_id=order_id)

    @property
    def _known(self) -> list[str]:
        """The payments that anybody has heard of."""
        return self._recorder.payments


async def nemesis(
    teller: Teller, recorder: Recorder, history: HistoryWriter, faults: Sequence[tuple[str, str]]
) -> None:
    """Each fault comes when so many calls were made since the one before, and lasts until the instance serves again."""
    for fault, target in faults:
        await recorder.until_asked(_BETWEEN_FAULTS)
        history.nemesis(fault, Phase.BEGUN, target)
        if fault == "freeze":
            teller.stack.kill(target, signal.SIGSTOP)
            await asyncio.sleep(_FROZEN_S)
            teller.stack.kill(target, signal.SIGCONT)
        else:
            pid = teller.stack.instance(target).pid
            teller.stack.kill(target)
            await teller.wait_died(target, pid)
            await teller.stack.wait_serving(target, timeout_s=30)
        history.nemesis(fault, Phase.ENDED, target)
    await recorder.until_asked(_BETWEEN_FAULTS)


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
async def test_a_run_under_faults_is_lawful(
    fresh_stack: FreshStack, tmp_path: Path, faults: Sequence[tuple[str, str]]
) -> None:
    """Six people press every button meanwhile: every check holds, and there is none that was not examined."""
    clock, path = SystemClock(), tmp_path / "history.jsonl"
    async with fresh_stack(replicas={"payment": 2}) as stack, teller_at(stack) as teller:
        with HistoryWriter(path, clock, seed=7) as history:
            recorder = Recorder(history)
            orders = [f"order-{number}" for number in range(_ORDERS)]
            for order_id in orders:
                await recorder.ask("setter", teller.cashier, teller.address("order-1"), new_order(order_id))
            clients = [Client(f"client-{number}", teller, recorder, orders, number) for number in range(_CLIENTS)]
            work = [asyncio.create_task(client.work()) for client in clients]
            await nemesis(teller, recorder, history, faults)
            for client in clients:
                client.stop()
            await asyncio.gather(*work)
        urls = {service: database_url(stack.data, service) for service in SERVICES}
        reading = await settled_snapshot(urls, QUIET_S, clock)
    recorded = read_history(path)
    checks = run_checks(reading.snapshot, history=recorded, now_ms=reading.at_ms)
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []
    assert {check.name for check in checks if check.skipped} == _NO_ACQUIRER
    assert {check.name: check.examined for check in checks}["orders linearizable"] == _ORDERS
    assert recorded.whole
    assert [(moment.fault, moment.target) for moment in recorded.nemesis[::2]] == list(faults)


def new_order(order_id: str) -> order_pb2.CreateOrderRequest:
    """Mei's, over 12.50."""
    amount = money_pb2.Money(minor_units=1250, currency_code="CNY")
    return order_pb2.CreateOrderRequest(
        request_id=f"make-{order_id}", order_id=order_id, customer_id="mei", amount=amount
    )
