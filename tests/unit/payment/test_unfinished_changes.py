"""A Reverse or Park that is refused has done nothing and will do nothing; any other error says that this is unknown."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from services.kernel.errors import Aborted, CountinghouseError, OutcomeUnknown, StaleFence, Unavailable
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, RequestState
from services.order.model import OrderState
from services.payment.model import REVERSE, PaymentState
from tests.unit.payment.cluster import LEASE_MS, WANG, InMemoryCluster, Instance, payment_in
from tests.unit.payment.test_card import SILENCE, unheard

FULL = Unavailable("DATABASE_FULL", "no space left")

Ask = Callable[[Instance], Awaitable[Answer]]


async def reversal(cluster: InMemoryCluster) -> Ask:
    payment_id = payment_in(await cluster.settle(cluster.instance())).payment_id
    return lambda instance: cluster.reverse(instance, payment_id)


async def parking(cluster: InMemoryCluster) -> Ask:
    payment_id = (await unheard(cluster, charged=False)).payment_id
    cluster.acquirer.tells_nothing = True
    return lambda instance: cluster.park(instance, payment_id)


async def begun_and_left_to_the_worker(cluster: InMemoryCluster, reverse: Ask, instance: Instance) -> None:
    """Lose the answer to the commit that begins the reversal, and see the worker finish it."""
    instance.process.fails("begin_reversal", SILENCE, after=True)
    with pytest.raises(OutcomeUnknown):
        await reverse(instance)
    assert cluster.of("s1").state is PaymentState.REVERSING
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.REVERSED
    assert cluster.order().state is OrderState.UNPAID
    assert cluster.state("v1", REVERSE, WANG) is RequestState.DONE


async def test_reversal_whose_beginning_is_unknown_is_finished_by_the_worker(cluster: InMemoryCluster) -> None:
    """Its commit was made, and its answer lost. It was given back, and stayed REVERSING until its clerk came back."""
    reverse = await reversal(cluster)
    await begun_and_left_to_the_worker(cluster, reverse, cluster.instance())


async def test_reversal_begun_after_it_was_given_back_is_finished_by_the_worker(cluster: InMemoryCluster) -> None:
    """Its execution was paused, the worker gave the request back, and it began the reversal and died."""
    reverse = await reversal(cluster)
    paused = cluster.instance()

    async def meanwhile() -> None:
        cluster.clock.advance(LEASE_MS + 1)
        await cluster.instance().operations.recovery.recover()
        assert cluster.state("v1", REVERSE, WANG) is RequestState.ISSUED

    paused.failpoints.at["locked"] = meanwhile
    await begun_and_left_to_the_worker(cluster, reverse, paused)


async def test_reversal_that_may_have_begun_is_not_refused_when_it_is_asked_for_again(cluster: InMemoryCluster) -> None:
    reverse = await reversal(cluster)
    one, two = cluster.instance(), cluster.instance()
    one.process.fails("begin_reversal", SILENCE, after=True)
    two.process.fails("hold", Unavailable("ZOOKEEPER_UNAVAILABLE", "away"))
    for instance in (one, two):
        with pytest.raises(OutcomeUnknown):
            await reverse(instance)
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.REVERSED


@pytest.mark.parametrize("error", [FULL, Aborted("STALE_VERSION", "again"), StaleFence("o1", Fence(1, 1), Fence(1, 2))])
async def test_parking_that_the_ledger_has_voided_is_not_refused(
    cluster: InMemoryCluster, error: CountinghouseError
) -> None:
    """No journal of the payment will ever be posted: something was done, although it is not PARKED."""
    park = await parking(cluster)
    one = cluster.instance()
    one.process.fails("park", error)
    with pytest.raises(OutcomeUnknown) as refusal:
        await park(one)
    assert refusal.value.reason == error.reason
    payment_in(await park(cluster.instance()))
    assert cluster.of("s1").state is PaymentState.PARKED


async def test_parking_that_has_not_reached_the_ledger_is_refused(cluster: InMemoryCluster) -> None:
    park = await parking(cluster)
    one = cluster.instance()
    one.process.fails("void", Unavailable("PEER_UNAVAILABLE", "the ledger is away"))
    with pytest.raises(Unavailable):
        await park(one)
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.SUCCEEDED


@pytest.mark.parametrize("begun", [reversal, parking])
async def test_change_is_not_refused_while_an_earlier_execution_may_only_be_paused(
    cluster: InMemoryCluster, begun: Callable[[InMemoryCluster], Awaitable[Ask]]
) -> None:
    """The worker has given the request back, for it had not begun; the execution that was paused goes on."""
    ask = await begun(cluster)
    paused = cluster.instance()

    async def meanwhile() -> None:
        cluster.clock.advance(LEASE_MS + 1)
        with suppress(CountinghouseError):  # the order is locked
            await cluster.instance().operations.recovery.recover()
        with pytest.raises(OutcomeUnknown) as refusal:
            await ask(cluster.instance())
        assert refusal.value.reason == "ORDER_LOCKED"

    paused.failpoints.at["locked"] = meanwhile
    payment_in(await ask(paused))
    assert cluster.of("s1").state in (PaymentState.REVERSED, PaymentState.PARKED)
