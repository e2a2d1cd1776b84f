"""Each guard switched off: what it stops happens, and the checker-like look at the house says so."""

from __future__ import annotations

import pytest

from services.kernel.errors import RequestInProgress, Unavailable
from services.kernel.guards import Guards
from services.kernel.idempotency import RequestState
from services.order.model import OrderState
from services.payment.model import PAY, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import AMOUNT, WALLET, WANG, House, Instance, payment_in
from tests.unit.payment.test_settle import reason_in


async def house_without(*names: str, peers_too: bool = False) -> House:
    guards = Guards.without(names)
    house = House(guards, guards if peers_too else None)
    await house.new_order()
    return house


async def test_without_the_ticket_a_double_click_charges_twice() -> None:
    """Nothing else stands against it: a direct payment has no order."""
    house = await house_without("ticket")
    one = house.instance()
    ticket = await house.ticket(one)
    first, second = [payment_in(await house.pay(one, ticket)) for _ in range(2)]
    assert first.payment_id != second.payment_id
    assert house.ledger.open[WALLET].balance == 1000 - 2 * AMOUNT


async def test_without_the_ticket_an_order_is_still_settled_once() -> None:
    """The order's own state stands against it."""
    house = await house_without("ticket")
    one = house.instance()
    payment_in(await house.settle(one))
    assert reason_in((await house.settle(one)).response.body) == "ORDER_ALREADY_PAID"
    assert len(house.journals()) == 1


async def test_without_the_state_the_unique_index_speaks() -> None:
    """A settled order is charged again, and the one active payment an order may have refuses: `guard` says so."""
    house = await house_without("state")
    one = house.instance()
    settled = payment_in(await house.settle(one))
    answer = await house.settle(one, "s2")
    assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"
    assert b"unique" in answer.response.body
    assert settled.payment_id.encode() in answer.response.body
    assert house.of("s2").state is PaymentState.DECLINED
    assert len(house.journals()) == 1
    house.check()


async def test_without_the_state_a_half_settled_rival_is_finished_first() -> None:
    """The active payment of a dead process is brought to its end before the new one is refused."""
    house = await house_without("state")
    dying = house.instance()
    dying.process.fails("post", Died(), after=True)
    with pytest.raises(Died):
        await house.settle(dying, "dead")
    dying.process.dead = True
    house.locks.expire(dying.name)
    answer = await house.settle(house.instance(), "s2")
    assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"
    assert house.of("dead").state is PaymentState.SUCCEEDED
    assert len(house.journals()) == 1


async def test_without_state_and_unique_the_order_is_settled_twice() -> None:
    """With all the guards off that stand against it."""
    house = await house_without("state", "unique", peers_too=True)
    one = house.instance()
    payment_in(await house.settle(one))
    payment_in(await house.settle(one, "s2"))
    assert len(house.journals()) == 2
    with pytest.raises(AssertionError):
        house.check()


async def dead_after_post(house: House) -> Instance:
    dying = house.instance()
    dying.process.fails("post", Died(), after=True)
    with pytest.raises(Died):
        await house.settle(dying, "dead")
    dying.process.dead = True
    house.locks.expire(dying.name)
    house.lapse()
    return dying


async def test_without_recovery_a_half_settled_order_stays_so() -> None:
    """The next clerk does not finish it, and neither does the dead one's own retry."""
    house = await house_without("recovery")
    await dead_after_post(house)
    two = house.instance()
    with pytest.raises(Unavailable) as refusal:
        await house.settle(two, "s2", clerk=WANG)
    assert refusal.value.reason == "ORDER_HALF_SETTLED"
    assert house.state("s2", caller=WANG) is RequestState.ISSUED
    with pytest.raises(RequestInProgress):
        await house.settle(two, "dead")
    assert house.of("dead").state is PaymentState.SUBMITTED
    assert house.order().state is OrderState.PAYING
    with pytest.raises(AssertionError):
        house.check()


async def test_without_recovery_a_half_done_reversal_stays_so() -> None:
    house = await house_without("recovery")
    settled = payment_in(await house.settle(house.instance()))
    dying = house.instance()
    dying.process.fails("reverse", Died(), after=True)
    with pytest.raises(Died):
        await house.reverse(dying, settled.payment_id)
    dying.process.dead = True
    house.locks.expire(dying.name)
    two = house.instance()
    answer = await house.reverse(two, settled.payment_id, "v2")
    assert reason_in(answer.response.body) == "ILLEGAL_STATE"
    assert two.process.calls["reverse"] == 0
    assert house.of("s1").state is PaymentState.REVERSING


async def test_without_the_fence_the_woken_holder_is_stopped_by_another_guard() -> None:
    """Frozen past its session while another finished its payment: no second journal, for the business key stands."""
    house = await house_without("fence", peers_too=True)
    frozen = house.instance()

    async def meanwhile() -> None:
        house.lapse(frozen)
        await house.settle(house.instance(), "s2", clerk=WANG)

    frozen.failpoints.at["submitted"] = meanwhile
    answer = await house.settle(frozen)
    assert payment_in(answer).payment_id == house.order().payment_id
    assert len(house.journals()) == 1
    house.check()


async def test_without_the_acquirer_key_a_lost_reply_charges_twice() -> None:
    """Each try has a key of its own, so the bank takes the second for another charge. Our own books look right."""
    house = await house_without("acquirer-key")
    house.acquirer.drops_first = True
    await house.settle(house.instance(), source=Source.CARD)
    house.acquirer.drops_first = False
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.SUCCEEDED
    assert len(house.journals()) == 1
    assert house.captured() == 2
    with pytest.raises(AssertionError):
        house.check()


async def test_with_all_guards_on_nothing_of_this_happens(house: House) -> None:
    """The same presses."""
    one = house.instance()
    ticket = await house.ticket(one)
    assert payment_in(await house.pay(one, ticket)) == payment_in(await house.pay(one, ticket))
    await dead_after_post(house)
    two = house.instance()
    assert reason_in((await house.settle(two, "s2")).response.body) == "ORDER_ALREADY_PAID"
    payment_in(await house.settle(two, "dead"))
    assert house.state(ticket, PAY) is RequestState.DONE
    house.check()
