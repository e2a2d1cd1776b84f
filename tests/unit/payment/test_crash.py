"""Death at every call of every port, before and after its effect: one effect is left in the end, whoever finishes it.

A process dies at its n-th call and never comes back; its lease and its session end. Then somebody else comes: the
worker of another instance, the caller who asks again, or another clerk. They may die too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import Answer, RequestState
from services.order.model import OrderState
from services.payment.model import PAY, REVERSE, SETTLE, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import AMOUNT, LI, WALLET, WANG, House, Instance, payment_in

_MOST_CALLS = 40


@dataclass
class Scene:
    """A house, and the one thing that is to be done in it exactly once."""

    house: House
    ask: Callable[[Instance], Awaitable[Answer]]
    #: Another person who wants the same bill settled, or the same payment undone.
    other: Callable[[Instance], Awaitable[Answer]]
    #: What must be so in the end.
    done: Callable[[], None]


async def settling() -> Scene:
    """Li settles the bill; Wang wants to as well."""
    house = House()
    await house.bill()

    def done() -> None:
        assert len(house.journals()) == 1
        assert house.order().state is OrderState.PAID
        assert house.state("s1", SETTLE, LI) is RequestState.DONE

    return Scene(house, house.settle, lambda one: house.settle(one, "s2", clerk=WANG), done)


async def settling_from_an_empty_wallet() -> Scene:
    """Mei has too little; so have all who try to settle from her wallet."""
    scene = await settling()
    house = scene.house
    house.fund(WALLET, AMOUNT - 1)

    def done() -> None:
        assert not house.journals()
        assert house.order().state is OrderState.UNPAID
        assert house.of("s1").state is PaymentState.DECLINED

    def from_wallet(key: str) -> Callable[[Instance], Awaitable[Answer]]:
        return lambda one: house.settle(one, key, source=Source.WALLET)

    return Scene(house, from_wallet("s1"), from_wallet("s2"), done)


async def paying() -> Scene:
    """Li pays from Mei's wallet with a ticket; the only other person is li, clicking again."""
    house = House()
    ticket = await house.ticket(house.instance())

    def done() -> None:
        assert len(house.ledger.chain) == 1
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        assert house.state(ticket, PAY, LI) is RequestState.DONE

    def pay(one: Instance) -> Awaitable[Answer]:
        return house.pay(one, ticket)

    return Scene(house, pay, pay, done)


async def reversing() -> Scene:
    """Wang undoes li's settlement; so does another accountant."""
    house = House()
    await house.bill()
    payment_id = payment_in(await house.settle(house.instance())).payment_id

    def done() -> None:
        assert len(house.ledger.chain) == 2
        assert (house.order().state, house.order().round) == (OrderState.UNPAID, 2)
        assert house.state("v1", REVERSE, WANG) is RequestState.DONE

    return Scene(
        house,
        lambda one: house.reverse(one, payment_id),
        lambda one: house.reverse(one, payment_id, "v2"),
        done,
    )


SCENES = [settling, settling_from_an_empty_wallet, paying, reversing]


async def worker(scene: Scene, one: Instance) -> None:
    """The recovery of another instance looks once."""
    await one.operations.recover()


async def same(scene: Scene, one: Instance) -> None:
    """The caller asks again under the same key."""
    await scene.ask(one)


async def other(scene: Scene, one: Instance) -> None:
    """Somebody else wants the same."""
    await scene.other(one)


COMERS = [worker, same, other]


async def died(scene: Scene, coming: Callable[[Scene, Instance], Awaitable[None]], number: int, after: bool) -> bool:
    """Lets somebody come to an instance that dies at its n-th call; False: it was through before that."""
    one = scene.house.instance(dies_at=number, after=after)
    try:
        await coming(scene, one)
    except Died:
        pass
    except CountinghouseError:
        pass  # told to ask again; somebody will
    scene.house.lapse(*([one] if one.process.dead else []))
    return one.process.dead


async def ends_well(scene: Scene) -> None:
    """Whoever asked gets the one stored answer, and nothing is left over."""
    house = scene.house
    await house.recovered(by=house.instance())
    answer = await scene.ask(house.instance())
    again = await scene.ask(house.instance())
    assert (again.response, again.replayed) == (answer.response, True)
    await house.recovered(by=house.instance())
    house.check()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("coming", COMERS)
@pytest.mark.parametrize("begin", SCENES)
async def test_one_death_at_every_call(
    begin: Callable[[], Awaitable[Scene]], coming: Callable[[Scene, Instance], Awaitable[None]], after: bool
) -> None:
    """No call is left out: the number grows until the execution comes through alive."""
    number = 1
    while True:
        scene = await begin()
        alive = not await died(scene, same, number, after)
        await coming(scene, scene.house.instance())
        scene.house.lapse()
        await ends_well(scene)
        scene.done()
        if alive:
            break
        number += 1
        assert number < _MOST_CALLS
    assert number > 5, "so few calls do not make a payment"


@given(
    begin=st.sampled_from(SCENES),
    deaths=st.lists(st.tuples(st.sampled_from(COMERS), st.integers(1, 22), st.booleans()), min_size=2, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_deaths_one_after_another(
    begin: Callable[[], Awaitable[Scene]],
    deaths: list[tuple[Callable[[Scene, Instance], Awaitable[None]], int, bool]],
) -> None:
    """Those who come to finish it die as well, in any order and at any call."""

    async def play() -> None:
        scene = await begin()
        await died(scene, same, 3, after=True)
        for coming, number, after in deaths:
            await died(scene, coming, number, after)
        await ends_well(scene)
        scene.done()

    asyncio.run(play())
