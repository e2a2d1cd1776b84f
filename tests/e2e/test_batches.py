"""Concurrent settles, which share commits and calls: one that is refused fails alone, and a lost reply is resolved."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, fence_pb2
from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.runtime.grpc import status
from services.testkit.client import CallResult, RecordingClient, new_id
from services.testkit.failpoints import DELAY, DROP_REPLY, KILL
from services.testkit.harness import Harness
from services.testkit.waiting import wait_until
from tests.e2e.as_service import open_service
from tests.e2e.checked import charges, checked_books, refusal
from tests.e2e.conftest import SETTINGS, options

_SETTLES = 200
_CLERKS = 8
_FENCE = fence_pb2.Fence(generation=1, token=1)
_LI = clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """A stack with one instance of each service, so that concurrent settles meet in it."""
    data = tmp_path_factory.mktemp("shared") / "data"
    async with Stack(options(data, settings=SETTINGS)) as stack, Harness(stack) as harness:
        yield harness


def clerks(harness: Harness) -> list[RecordingClient]:
    return [harness.client(f"clerk{number}", Role.CASHIER) for number in range(_CLERKS)]


async def settle_all(harness: Harness, order_ids: list[str], timeout_s: float = 30.0) -> dict[str, CallResult]:
    """Settle orders all at once, as several cashiers; return the answer for each."""
    people = clerks(harness)
    results = await asyncio.gather(
        *(people[number % _CLERKS].settle(order_id, timeout_s=timeout_s) for number, order_id in enumerate(order_ids))
    )
    return dict(zip(order_ids, results, strict=True))


@pytest.mark.timeout(240)
async def test_each_poisoned_settle_of_two_hundred_fails_alone(shared: Harness) -> None:
    """One is refused when it is accepted, three when they claim, one when it is posted; all others are settled."""
    order_ids = [await shared.new_order() for _ in range(_SETTLES)]
    reused, cancelled, paid = order_ids[0], order_ids[50], order_ids[100]
    missing = new_id("order")
    await shared.cashier.ask(order_pb2.CancelOrderRequest(request_id=new_id(), order_id=cancelled, reason="a mistake"))
    await shared.accountant.settle_ok(paid)
    wu, key = shared.client("wu", Role.CUSTOMER), new_id("settle")
    await shared.open_wallet(wu.name)
    poor = await shared.cashier.new_order(amount=10**12, customer=wu.name)
    await shared.cashier.settle_ok(await shared.new_order(), key)

    people = clerks(shared)

    async def settle(number: int, order_id: str) -> CallResult:
        if order_id == reused:
            return await shared.cashier.settle_once(order_id, key)  # no answer of the key for the checker
        if order_id == poor:
            return await wu.settle(order_id, source=payment_pb2.SOURCE_WALLET)
        return await people[number % _CLERKS].settle(order_id)

    everyone = [*order_ids[:150], missing, poor, *order_ids[150:]]
    results = await asyncio.gather(*(settle(number, order_id) for number, order_id in enumerate(everyone)))
    by_order = dict(zip(everyone, results, strict=True))
    refused = {order_id: by_order.pop(order_id).error for order_id in (reused, cancelled, paid, missing, poor)}
    assert {order_id: error and error.reason for order_id, error in refused.items()} == {
        reused: "IDEMPOTENCY_KEY_MISMATCH",
        cancelled: "ORDER_NOT_PAYABLE",
        paid: "ORDER_ALREADY_PAID",
        missing: "ORDER_NOT_FOUND",
        poor: "INSUFFICIENT_FUNDS",
    }
    assert {result.payment.state for result in by_order.values()} == {payment_pb2.PAYMENT_STATE_SUCCEEDED}
    books = await checked_books(shared)
    assert all(charges(books, order_id) == [result.payment.payment_id] for order_id, result in by_order.items())
    assert not any(charges(books, order_id) for order_id in (reused, cancelled, missing, poor))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("instance", "point"), [("order-1", "claimed"), ("order-1", "completed"), ("ledger-1", "posted")]
)
async def test_lost_reply_of_a_batch_is_resolved_for_each_of_its_settles(
    shared: Harness, instance: str, point: str
) -> None:
    """The batch was committed. Each of its payments is brought to its end under its own key, and charged once."""
    order_ids = [await shared.new_order() for _ in range(24)]
    await shared.failpoints.arm(instance, point, DROP_REPLY, order_ids[12])
    results = await settle_all(shared, order_ids, timeout_s=4.0)
    assert {result.payment.state for result in results.values()} == {payment_pb2.PAYMENT_STATE_SUCCEEDED}
    books = await checked_books(shared)
    assert [charges(books, order_id) for order_id in order_ids] == [
        [result.payment.payment_id] for result in results.values()
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("instance", "point"), list(itertools.product(("order-1", "ledger-1", "payment-1"), ("committing", "committed")))
)
async def test_service_killed_in_a_batch_charges_each_order_once(shared: Harness, instance: str, point: str) -> None:
    """In its transaction, or after its commit and before any of its answers has left."""
    order_ids = [await shared.new_order() for _ in range(24)]
    pid = shared.pid(instance)
    await shared.failpoints.arm(instance, point, KILL, order_ids[12])
    results = await settle_all(shared, order_ids, timeout_s=6.0)
    await shared.wait_died(instance, pid)
    assert {result.payment.state for result in results.values()} == {payment_pb2.PAYMENT_STATE_SUCCEEDED}
    books = await checked_books(shared)
    assert [charges(books, order_id) for order_id in order_ids] == [
        [result.payment.payment_id] for result in results.values()
    ]


def reasons(outcomes: Any) -> list[str]:
    """Return why each request of a batch was refused; empty where it was served."""
    return [each.error and status.from_bytes(each.error).reason for each in outcomes]


async def test_batched_methods_are_for_services_only(shared: Harness) -> None:
    for request in (
        order_pb2.ClaimOrdersRequest(),
        order_pb2.CompleteOrdersRequest(),
        ledger_pb2.PostBatchRequest(),
    ):
        code, error = await refusal(shared.cashier.ask(request))
        assert (code, error.reason) == ("PERMISSION_DENIED", "ROLE_NOT_ALLOWED")


async def test_batch_of_settles_settles_each_order_once(shared: Harness) -> None:
    """A second one under the same request ids, one order twice, a locked order: nothing is settled twice."""
    order_ids = [await shared.new_order() for _ in range(20)]
    locked = await shared.new_order()
    await shared.failpoints.arm("payment-1", "locked", DELAY, locked, delay_s=5.0)
    holder = asyncio.create_task(shared.cashier.settle_once(locked, timeout_s=15.0))
    await wait_until(lambda: lock_is_held(shared), "the lock is not held")
    requests = [shared.accountant.settle_request(order_id) for order_id in (*order_ids, order_ids[0], locked)]
    batch = payment_pb2.SettleBatchRequest(requests=requests)
    first = (await shared.accountant.ask(batch, timeout_s=30.0)).outcomes
    assert reasons(first)[-1] == "ORDER_LOCKED"
    assert sorted(reasons([first[0], first[20]]), key=str) == ["ORDER_ALREADY_PAID", b""]
    assert [each.response.payment.state for each in first[1:20]] == [payment_pb2.PAYMENT_STATE_SUCCEEDED] * 19
    again = (await shared.accountant.ask(batch, timeout_s=30.0)).outcomes
    assert [each.replayed for each in again[:21]] == [True] * 21
    assert [each.response for each in again[:21]] == [each.response for each in first[:21]]
    assert (await holder).payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    books = await checked_books(shared)
    assert all(len(charges(books, order_id)) == 1 for order_id in (*order_ids, locked))


async def lock_is_held(harness: Harness) -> bool:
    """Return whether the delayed settle has reached its failpoint."""
    return (await harness.failpoints.list("payment-1"))["locked"].fired > 0


async def test_malformed_request_in_a_batch_fails_alone(shared: Harness) -> None:
    """Asked from outside, with a service's token: each outcome in the place of its request.

    It is the last test here: the books have no payment of what it claims.
    """
    order_ids = [await shared.new_order() for _ in range(3)]

    def claim(order_id: str, fence: fence_pb2.Fence | None = _FENCE) -> order_pb2.ClaimOrderRequest:
        return order_pb2.ClaimOrderRequest(order_id=order_id, payment_id=f"p-{order_id}", fence=fence, clerk=_LI)

    async with open_service(shared.stack) as service:
        batch = [claim(order_ids[0]), claim(order_ids[1], None), claim("no-such-order"), claim(order_ids[2])]
        claimed = (await service.ask(order_pb2.ClaimOrdersRequest(requests=batch))).outcomes
        assert reasons(claimed) == [b"", "FENCE_REQUIRED", "ORDER_NOT_FOUND", b""]
        assert [each.response.order.order_id for each in claimed] == [order_ids[0], "", "", order_ids[2]]
        assert await shared.cashier.order_state(order_ids[1]) == "UNPAID"

        release = [
            order_pb2.ReleaseOrderRequest(order_id=order_id, payment_id=f"p-{order_id}", fence=_FENCE)
            for order_id in (order_ids[0], order_ids[2])
        ]
        for request in release:
            await service.ask(request)

        def post(order_id: str, amount: int) -> ledger_pb2.PostRequest:
            legs = [("cash:CNY", amount), ("sales:CNY", -1)]
            return ledger_pb2.PostRequest(
                request_id=new_id(),
                business_key=new_id("odd"),
                postings=[ledger_pb2.Posting(account_id=account_id, amount=leg) for account_id, leg in legs],
                currency_code="CNY",
                order_id=order_id,
                payment_id=new_id("pay"),
                clerk=_LI,
            )

        unbalanced = [post(order_ids[0], 2), post(order_ids[1], 1)]
        assert reasons((await service.ask(ledger_pb2.PostBatchRequest(requests=unbalanced))).outcomes) == [
            "FENCE_REQUIRED",
            "FENCE_REQUIRED",
        ]
        empty = (await service.ask(order_pb2.CompleteOrdersRequest())).outcomes
        assert list(empty) == []
        code, error = await refusal(service.ask(order_pb2.ClaimOrdersRequest(requests=[claim(order_ids[0])] * 65)))
        assert (code, error.reason) == ("INVALID_ARGUMENT", "BATCH_TOO_LARGE")
