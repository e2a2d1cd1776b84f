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
from tests.spans import recorded
from tests.unit.payment.cluster import WANG, InMemoryCluster, payment_in

SILENCE = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
AWAY = Unavailable("PEER_UNAVAILABLE", "never sent")
POISON = PermissionDenied("ROLE_NOT_ALLOWED", "the service's token is no longer good")


async def left(cluster: InMemoryCluster, order_id: str, step: str, key: str = "") -> None:
    """A process dies at a step of settling an order."""
    dying = cluster.instance()
    dying.process.fails(step, Died(), after=True)
    with pytest.raises(Died):
        await cluster.settle(dying, key or f"dead-{order_id}", order_id)
    dying.process.dead = True
    cluster.locks.expire(dying.name)


async def test_recovery_without_work_does_nothing(cluster: InMemoryCluster) -> None:
    assert await cluster.instance().operations.recovery.recover() == 0


async def test_living_execution_is_left_alone(cluster: InMemoryCluster) -> None:
    """Its lease has not passed."""
    await left(cluster, "o1", "post")
    worker = cluster.instance()
    assert await worker.operations.recovery.recover() == 0
    cluster.lapse()
    assert await worker.operations.recovery.recover() == 1
    cluster.check()


async def test_recovery_finishes_payments_left_at_every_step(cluster: InMemoryCluster) -> None:
    """All of them are finished in one look, each with one journal."""
    steps = ["accept", "hold", "claim", "submit", "post", "record", "complete"]
    for step in steps:
        await left(cluster, await cluster.new_order(f"b-{step}"), step)
    cluster.lapse()
    worker = cluster.instance()
    await worker.operations.recovery.recover()
    for step in steps:
        assert cluster.order(f"b-{step}").state is OrderState.PAID
        assert len(cluster.journals(f"b-{step}")) == 1
        again = await cluster.settle(cluster.instance(), f"dead-b-{step}", f"b-{step}")
        assert again.replayed
        payment_in(again)
    cluster.check()


async def test_recovery_is_a_trace_of_its_own_for_each_payment(cluster: InMemoryCluster) -> None:
    """A look that finds nothing leaves none."""
    for n in range(2):
        await left(cluster, await cluster.new_order(f"b{n}"), "post")
    cluster.lapse()
    worker = cluster.instance()
    with recorded() as spans:
        await worker.operations.recovery.recover()
        await worker.operations.recovery.recover()
    found = spans.named("recover request")
    assert sorted(span.attributes["countinghouse.order_id"] for span in found) == ["b0", "b1"]
    assert len({span.trace_id for span in found}) == 2
    assert "recorded" in found[0].events
    assert spans.all == found


async def test_two_concurrent_workers_finish_each_payment_once(
    cluster: InMemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see the same payments; each is taken over by one of them, and nobody fails."""
    for n in range(5):
        await left(cluster, await cluster.new_order(f"b{n}"), "post")
    cluster.lapse()
    cluster.locks.patience_s = 5
    rows = await cluster.requests.overdue(now_ms=cluster.clock.now_ms(), limit=9)
    monkeypatch.setattr(cluster.requests, "overdue", AsyncMock(return_value=rows))
    workers = [cluster.instance() for _ in range(2)]
    await asyncio.gather(*(worker.operations.recovery.recover() for worker in workers))
    monkeypatch.undo()
    assert sum(worker.process.calls["hold"] for worker in workers) == 5
    assert all(len(cluster.journals(f"b{n}")) == 1 for n in range(5))
    await cluster.recovered(by=cluster.instance())
    cluster.check()


async def test_unfinishable_payment_delays_no_other(cluster: InMemoryCluster) -> None:
    """A payment the ledger keeps refusing for a passing reason, in front of others and of words to be delivered."""
    await left(cluster, "o1", "submit")
    cluster.clock.advance(1)
    await left(cluster, await cluster.new_order("o2"), "submit")
    await left(cluster, await cluster.new_order("o3"), "record")
    cluster.lapse()
    worker = cluster.instance()
    worker.process.fails("post", POISON)
    with pytest.raises(CountinghouseError) as error:
        await worker.operations.recovery.recover()
    assert error.value is POISON, "who watches the worker is told"
    assert cluster.of("dead-o1").state is PaymentState.SUBMITTED
    assert cluster.of("dead-o2").state is PaymentState.SUCCEEDED
    assert cluster.order("o3").state is OrderState.PAID
    await cluster.recovered(by=worker)
    cluster.check()


async def test_undeliverable_notification_delays_no_other(cluster: InMemoryCluster) -> None:
    """Its order is locked for the moment; the other order's word is delivered."""
    one = cluster.instance()
    one.process.fails("complete", AWAY, times=2)
    await cluster.settle(one, "s1")
    cluster.clock.advance(1)
    await cluster.settle(one, "s2", await cluster.new_order("o2"))
    cluster.lapse()
    worker = cluster.instance()
    async with cluster.locks.of("another").hold("o1", WANG, "p0", 1):
        with pytest.raises(CountinghouseError) as error:
            await worker.operations.recovery.recover()
    assert error.value.reason == "ORDER_LOCKED"
    assert cluster.order("o2").state is OrderState.PAID
    await cluster.recovered(by=worker)
    cluster.check()


async def test_recovery_counts_what_it_found_and_what_became_of_it(cluster: InMemoryCluster) -> None:
    """One notification waits for its order's lock, the other is delivered; then the first is as well."""
    one, worker = cluster.instance(), cluster.instance()
    one.process.fails("complete", AWAY, times=2)
    await cluster.settle(one, "s1")
    await cluster.settle(one, "s2", await cluster.new_order("o2"))
    cluster.lapse()
    async with cluster.locks.of("another").hold("o1", WANG, "p0", 1):
        with pytest.raises(CountinghouseError):
            await worker.operations.recovery.recover()

    def counted(kind: str, outcome: str) -> float | None:
        return worker.counted.get_sample_value("countinghouse_recoveries_total", {"kind": kind, "outcome": outcome})

    assert (counted("notification", "finished"), counted("notification", "waits")) == (1, 1)
    assert worker.counted.get_sample_value("countinghouse_outbox_overdue") == 2
    await cluster.recovered(by=worker)
    assert (counted("notification", "finished"), counted("request", "finished")) == (2, 0)
    assert worker.counted.get_sample_value("countinghouse_outbox_overdue") == 0


async def test_recovery_without_zookeeper_keeps_the_request(cluster: InMemoryCluster) -> None:
    """What was begun is not given back; it is tried again when ZooKeeper is back."""
    await left(cluster, "o1", "submit")
    cluster.lapse()
    worker = cluster.instance()
    cluster.locks.away = AWAY
    with pytest.raises(Unavailable):
        await worker.operations.recovery.recover()
    assert cluster.state("dead-o1") is RequestState.IN_PROGRESS
    cluster.locks.away = None
    assert await worker.operations.recovery.recover() == 1, "at once: nobody keeps the request"
    cluster.check()


async def test_request_given_back_by_its_clerk_is_left_alone(cluster: InMemoryCluster) -> None:
    """It is the clerk's to ask again; after a day it expires, and with it the payment."""
    one = cluster.instance()
    one.process.fails("claim", AWAY)
    with pytest.raises(Unavailable):
        await cluster.settle(one)
    await cluster.recovered(by=cluster.instance())
    assert cluster.state("s1") is RequestState.ISSUED
    assert cluster.order().state is OrderState.UNPAID
    cluster.clock.advance(24 * 3600 * 1000)
    await cluster.instance().operations.recovery.recover()
    await cluster.recovered(by=cluster.instance())
    assert cluster.state("s1") is RequestState.EXPIRED
    assert cluster.of("s1").state is PaymentState.DECLINED
    cluster.check()


async def test_worker_continues_after_a_failure(cluster: InMemoryCluster) -> None:
    """A look that fails is followed by the next."""
    await left(cluster, "o1", "submit")
    cluster.lapse()
    worker = cluster.instance()
    worker.process.fails("expire", AWAY, times=3)
    running = asyncio.create_task(RecoveryWorker(worker.operations.recovery, interval_s=0).run())
    async with asyncio.timeout(5):
        while cluster.of("dead-o1").state is not PaymentState.SUCCEEDED:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0)
    assert not running.done()
    running.cancel()
    assert worker.process.calls["expire"] >= 4


async def test_lease_renewer_renews_while_something_runs(cluster: InMemoryCluster) -> None:
    one = cluster.instance()
    renewer = asyncio.create_task(LeaseRenewer(one.operations.leases, lease_s=0.003).run())

    async def slow() -> None:
        async with asyncio.timeout(5):
            while one.process.calls["renew"] < 3:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.001)

    one.failpoints.at["posted"] = slow
    payment_in(await cluster.settle(one))
    renewer.cancel()
    cluster.check()
