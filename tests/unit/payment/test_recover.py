"""The worker: it finishes what nobody works on any more, and one thing it cannot finish holds up no other."""

from __future__ import annotations

import asyncio
from unittest.mock import AsyncMock

import pytest

from services.kernel.errors import CountinghouseError, OutcomeUnknown, PermissionDenied, Unavailable
from services.kernel.idempotency import RequestState
from services.order.model import OrderState
from services.payment.model import PaymentState
from services.payment.worker import LeaseRenewer, RecoveryWorker
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import WANG, House, payment_in

SILENCE = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
AWAY = Unavailable("PEER_UNAVAILABLE", "never sent")
POISON = PermissionDenied("ROLE_NOT_ALLOWED", "the service's token is no longer good")


async def left(house: House, order_id: str, step: str, key: str = "") -> None:
    """A process dies at a step of settling an order."""
    dying = house.instance()
    dying.process.fails(step, Died(), after=True)
    with pytest.raises(Died):
        await house.settle(dying, key or f"dead-{order_id}", order_id)
    dying.process.dead = True
    house.locks.expire(dying.name)


async def test_nothing_to_do(house: House) -> None:
    assert await house.instance().operations.recover() == 0


async def test_a_living_execution_is_left_alone(house: House) -> None:
    """Its lease has not passed."""
    await left(house, "o1", "post")
    worker = house.instance()
    assert await worker.operations.recover() == 0
    house.lapse()
    assert await worker.operations.recover() == 1
    house.check()


async def test_many_left_at_every_step(house: House) -> None:
    """All of them are finished in one look, each with one journal."""
    steps = ["accept", "hold", "claim", "submit", "post", "record", "complete"]
    for step in steps:
        await left(house, await house.new_order(f"b-{step}"), step)
    house.lapse()
    worker = house.instance()
    await worker.operations.recover()
    for step in steps:
        assert house.order(f"b-{step}").state is OrderState.PAID
        assert len(house.journals(f"b-{step}")) == 1
        again = await house.settle(house.instance(), f"dead-b-{step}", f"b-{step}")
        assert again.replayed
        payment_in(again)
    house.check()


async def test_two_workers_at_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the same payments; each is taken over by one of them, and nobody fails."""
    for n in range(5):
        await left(house, await house.new_order(f"b{n}"), "post")
    house.lapse()
    house.locks.patience_s = 5
    rows = await house.store.overdue(now_ms=house.clock.now_ms(), limit=9)
    monkeypatch.setattr(house.store, "overdue", AsyncMock(return_value=rows))
    workers = [house.instance() for _ in range(2)]
    await asyncio.gather(*(worker.operations.recover() for worker in workers))
    monkeypatch.undo()
    assert sum(worker.process.calls["hold"] for worker in workers) == 5
    assert all(len(house.journals(f"b{n}")) == 1 for n in range(5))
    await house.recovered(by=house.instance())
    house.check()


async def test_one_that_cannot_be_finished_holds_up_no_other(house: House) -> None:
    """A payment the ledger keeps refusing for a passing reason, in front of others and of words to be delivered."""
    await left(house, "o1", "submit")
    house.clock.advance(1)
    await left(house, await house.new_order("o2"), "submit")
    await left(house, await house.new_order("o3"), "record")
    house.lapse()
    worker = house.instance()
    worker.process.fails("post", POISON)
    with pytest.raises(CountinghouseError) as error:
        await worker.operations.recover()
    assert error.value is POISON, "who watches the worker is told"
    assert house.of("dead-o1").state is PaymentState.SUBMITTED
    assert house.of("dead-o2").state is PaymentState.SUCCEEDED
    assert house.order("o3").state is OrderState.PAID
    await house.recovered(by=worker)
    house.check()


async def test_a_word_that_cannot_be_delivered_holds_up_no_other(house: House) -> None:
    """Its order is locked for the moment; the other order's word is delivered."""
    one = house.instance()
    one.process.fails("complete", AWAY, times=2)
    await house.settle(one, "s1")
    house.clock.advance(1)
    await house.settle(one, "s2", await house.new_order("o2"))
    house.lapse()
    worker = house.instance()
    async with house.locks.of("another").hold("o1", WANG, "p0", 1):
        with pytest.raises(CountinghouseError) as error:
            await worker.operations.recover()
    assert error.value.reason == "ORDER_LOCKED"
    assert house.order("o2").state is OrderState.PAID
    await house.recovered(by=worker)
    house.check()


async def test_zookeeper_is_away(house: House) -> None:
    """What was begun is not given back; it is tried again when ZooKeeper is back."""
    await left(house, "o1", "submit")
    house.lapse()
    worker = house.instance()
    house.locks.away = AWAY
    with pytest.raises(Unavailable):
        await worker.operations.recover()
    assert house.state("dead-o1") is RequestState.IN_PROGRESS
    house.locks.away = None
    assert await worker.operations.recover() == 1, "at once: nobody keeps the request"
    house.check()


async def test_a_request_given_back_by_its_clerk_is_left_alone(house: House) -> None:
    """It is the clerk's to ask again; after a day it expires, and with it the payment."""
    one = house.instance()
    one.process.fails("claim", AWAY)
    with pytest.raises(Unavailable):
        await house.settle(one)
    await house.recovered(by=house.instance())
    assert house.state("s1") is RequestState.ISSUED
    assert house.order().state is OrderState.UNPAID
    house.clock.advance(24 * 3600 * 1000)
    await house.instance().operations.recover()
    await house.recovered(by=house.instance())
    assert house.state("s1") is RequestState.EXPIRED
    assert house.of("s1").state is PaymentState.DECLINED
    house.check()


async def test_the_worker_goes_on_after_a_failure(house: House) -> None:
    """A look that fails is followed by the next."""
    await left(house, "o1", "submit")
    house.lapse()
    worker = house.instance()
    worker.process.fails("expire", AWAY, times=3)
    running = asyncio.create_task(RecoveryWorker(worker.operations, interval_s=0).run())
    async with asyncio.timeout(5):
        while house.of("dead-o1").state is not PaymentState.SUCCEEDED:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    assert worker.process.calls["expire"] >= 4


async def test_the_lease_renewer_renews_while_something_runs(house: House) -> None:
    one = house.instance()
    renewer = asyncio.create_task(LeaseRenewer(one.operations, lease_s=0.003).run())

    async def slow() -> None:
        async with asyncio.timeout(5):
            while one.process.calls["renew"] < 3:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.001)

    one.failpoints.at["posted"] = slow
    payment_in(await house.settle(one))
    renewer.cancel()
    house.check()
