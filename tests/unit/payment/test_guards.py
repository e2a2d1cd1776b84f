"""Each guard switched off: what it stops happens, and the checker-like look at the cluster says so."""

from __future__ import annotations

import pytest

from services.kernel.errors import RequestInProgress, Unavailable
from services.kernel.guards import Guards
from services.kernel.idempotency import RequestState
from services.order.model import OrderState
from services.payment.model import PAY, REVERSE, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import AMOUNT, WALLET, WANG, InMemoryCluster, Instance, payment_in
from tests.unit.payment.test_settle import reason_in


async def cluster_without(*names: str, peers_too: bool = False) -> InMemoryCluster:
    guards = Guards.without(names)
    cluster = InMemoryCluster(guards, guards if peers_too else None)
    await cluster.new_order()
    return cluster


async def test_ticket_guard_off_double_click_charges_twice() -> None:
    """Nothing else stands against it: a direct payment has no order."""
    cluster = await cluster_without("ticket")
    one = cluster.instance()
    ticket = await cluster.ticket(one)
    first, second = [payment_in(await cluster.pay(one, ticket)) for _ in range(2)]
    assert first.payment_id != second.payment_id
    assert cluster.ledger.open[WALLET].balance == 1000 - 2 * AMOUNT


async def test_ticket_guard_off_order_is_settled_once() -> None:
    """The order's own state stands against it."""
    cluster = await cluster_without("ticket")
    one = cluster.instance()
    payment_in(await cluster.settle(one))
    assert reason_in((await cluster.settle(one)).response.body) == "ORDER_ALREADY_PAID"
    assert len(cluster.journals()) == 1


async def test_ticket_guard_off_repeated_reversal_leaves_no_request_in_progress() -> None:
    """It runs anew when everything is done, and ends all the same."""
    cluster = await cluster_without("ticket")
    one = cluster.instance()
    payment = payment_in(await cluster.settle(one))
    answers = [await cluster.reverse(one, payment.payment_id) for _ in range(2)]
    assert answers[0].response == answers[1].response
    assert cluster.state("v1", REVERSE, WANG) is RequestState.DONE
    assert len(cluster.journals()) == 1


async def test_state_guard_off_unique_index_refuses() -> None:
    """A settled order is charged again, and the one active payment an order may have refuses: `guard` says so."""
    cluster = await cluster_without("state")
    one = cluster.instance()
    settled = payment_in(await cluster.settle(one))
    answer = await cluster.settle(one, "s2")
    assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"
    assert b"unique" in answer.response.body
    assert settled.payment_id.encode() in answer.response.body
    assert cluster.of("s2").state is PaymentState.DECLINED
    assert len(cluster.journals()) == 1
    cluster.check()


async def test_state_guard_off_half_settled_payment_is_finished_first() -> None:
    """The active payment of a dead process is brought to its end before the new one is refused."""
    cluster = await cluster_without("state")
    dying = cluster.instance()
    dying.process.fails("post", Died(), after=True)
    with pytest.raises(Died):
        await cluster.settle(dying, "dead")
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    answer = await cluster.settle(cluster.instance(), "s2")
    assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"
    assert cluster.of("dead").state is PaymentState.SUCCEEDED
    assert len(cluster.journals()) == 1


async def test_state_and_unique_guards_off_order_is_settled_twice() -> None:
    """With all the guards off that stand against it."""
    cluster = await cluster_without("state", "unique", peers_too=True)
    one = cluster.instance()
    payment_in(await cluster.settle(one))
    payment_in(await cluster.settle(one, "s2"))
    assert len(cluster.journals()) == 2
    with pytest.raises(AssertionError):
        cluster.check()


async def dead_after_post(cluster: InMemoryCluster) -> Instance:
    dying = cluster.instance()
    dying.process.fails("post", Died(), after=True)
    with pytest.raises(Died):
        await cluster.settle(dying, "dead")
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    cluster.lapse()
    return dying


async def test_recovery_guard_off_half_settled_order_stays() -> None:
    """The next clerk does not finish it, and neither does the dead one's own retry."""
    cluster = await cluster_without("recovery")
    await dead_after_post(cluster)
    two = cluster.instance()
    with pytest.raises(Unavailable) as refusal:
        await cluster.settle(two, "s2", clerk=WANG)
    assert refusal.value.reason == "ORDER_HALF_SETTLED"
    assert cluster.state("s2", caller=WANG) is RequestState.ISSUED
    with pytest.raises(RequestInProgress):
        await cluster.settle(two, "dead")
    assert cluster.of("dead").state is PaymentState.SUBMITTED
    assert cluster.order().state is OrderState.PAYING
    with pytest.raises(AssertionError):
        cluster.check()


async def test_recovery_guard_off_half_done_reversal_stays() -> None:
    cluster = await cluster_without("recovery")
    settled = payment_in(await cluster.settle(cluster.instance()))
    dying = cluster.instance()
    dying.process.fails("reverse", Died(), after=True)
    with pytest.raises(Died):
        await cluster.reverse(dying, settled.payment_id)
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    two = cluster.instance()
    answer = await cluster.reverse(two, settled.payment_id, "v2")
    assert reason_in(answer.response.body) == "ILLEGAL_STATE"
    assert two.process.calls["reverse"] == 0
    assert cluster.of("s1").state is PaymentState.REVERSING


async def test_fence_guard_off_woken_holder_is_stopped_by_another_guard() -> None:
    """Frozen past its session while another finished its payment: no second journal, for the business key stands."""
    cluster = await cluster_without("fence", peers_too=True)
    frozen = cluster.instance()

    async def meanwhile() -> None:
        cluster.lapse(frozen)
        await cluster.settle(cluster.instance(), "s2", clerk=WANG)

    frozen.failpoints.at["submitted"] = meanwhile
    answer = await cluster.settle(frozen)
    assert payment_in(answer).payment_id == cluster.order().payment_id
    assert len(cluster.journals()) == 1
    cluster.check()


async def test_acquirer_key_guard_off_lost_reply_charges_twice() -> None:
    """Each try has a key of its own, so the bank takes the second for another charge. Our own books look right."""
    cluster = await cluster_without("acquirer-key")
    cluster.acquirer.drops_first = True
    await cluster.settle(cluster.instance(), source=Source.CARD)
    cluster.acquirer.drops_first = False
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.SUCCEEDED
    assert len(cluster.journals()) == 1
    assert cluster.captured() == 2
    with pytest.raises(AssertionError):
        cluster.check()


async def test_all_guards_on_order_is_settled_once(cluster: InMemoryCluster) -> None:
    """The same presses."""
    one = cluster.instance()
    ticket = await cluster.ticket(one)
    assert payment_in(await cluster.pay(one, ticket)) == payment_in(await cluster.pay(one, ticket))
    await dead_after_post(cluster)
    two = cluster.instance()
    assert reason_in((await cluster.settle(two, "s2")).response.body) == "ORDER_ALREADY_PAID"
    payment_in(await cluster.settle(two, "dead"))
    assert cluster.state(ticket, PAY) is RequestState.DONE
    cluster.check()
