"""Death at every call of every port, before and after its effect: one effect is left in the end, whoever finishes it.

A process dies at its n-th call and never comes back; its lease and its session end. Then somebody else comes: the
worker of another instance, the caller who asks again, or another clerk. They may die too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import ChargeState
from services.kernel.errors import CountinghouseError, OutcomeUnknown, may_come_right
from services.kernel.idempotency import Answer, RequestState
from services.kernel.money import MAX_BALANCE
from services.order.model import OrderState
from services.payment.model import PARK, PAY, REVERSE, SETTLE, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import (
    AMOUNT,
    CARD,
    LI,
    MERCHANT,
    OWED_FOR_CARDS,
    WALLET,
    WANG,
    House,
    Instance,
    payment_in,
)

_MOST_CALLS = 40


@dataclass
class Scene:
    """A house, and the one thing that is to be done in it exactly once."""

    house: House
    ask: Callable[[Instance], Awaitable[Answer]]
    #: Another person who wants the same order settled, or the same payment undone.
    other: Callable[[Instance], Awaitable[Answer]]
    #: What must be so in the end.
    done: Callable[[], None]


async def settling() -> Scene:
    """Li settles the order; Wang wants to as well."""
    house = House()
    await house.new_order()

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
        assert house.state(ticket, PAY) is RequestState.DONE

    def pay(one: Instance) -> Awaitable[Answer]:
        return house.pay(one, ticket)

    return Scene(house, pay, pay, done)


async def reversing() -> Scene:
    """Wang undoes li's settlement; so does another accountant."""
    house = House()
    await house.new_order()
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


async def settling_by_card() -> Scene:
    """Li settles the order by card; Wang wants to as well, by another one."""
    scene = await settling()
    house = scene.house

    def done() -> None:
        scene.done()
        assert house.captured() == 1

    return Scene(house, by_card(house, "s1"), by_card(house, "s2", card="tok-wang"), done)


async def settling_by_card_unheard() -> Scene:
    """The same, and the bank does not answer when a key is new to it."""
    scene = await settling_by_card()
    scene.house.acquirer.drops_first = True
    return scene


async def settling_by_a_card_that_declines() -> Scene:
    """So do all others."""
    scene = await settling_from_an_empty_wallet()
    house = scene.house

    def done() -> None:
        scene.done()
        assert house.captured() == 0

    return Scene(house, by_card(house, "s1", card="tok-short"), by_card(house, "s2", card="tok-short"), done)


async def settling_by_card_without_an_account() -> Scene:
    """The ledger cannot post what was charged, so it is given back, of which the bank does not say so at first."""
    scene = await settling_from_an_empty_wallet()
    house = scene.house
    house.acquirer.drops_first = True
    house.fund(OWED_FOR_CARDS, MAX_BALANCE)

    def done() -> None:
        scene.done()
        assert {charge.state for charge in house.acquirer.charges.values()} <= {ChargeState.REFUNDED}

    return Scene(house, by_card(house, "s1"), by_card(house, "s2"), done)


async def paying_by_card() -> Scene:
    """Li pays a merchant by card, with a ticket and without a lock."""
    house = House()
    house.acquirer.drops_first = True
    ticket = await house.ticket(house.instance())

    def done() -> None:
        assert len(house.ledger.chain) == house.captured() == 1
        assert house.ledger.open[MERCHANT].balance == 1000 + AMOUNT

    def pay(one: Instance) -> Awaitable[Answer]:
        return house.pay(one, ticket, source=Source.CARD)

    return Scene(house, pay, pay, done)


async def reversing_a_card() -> Scene:
    """Wang undoes li's settlement by card; the bank refunds, and does not say so at first."""
    house = House()
    await house.new_order()
    payment_id = payment_in(await by_card(house, "s1")(house.instance())).payment_id
    house.acquirer.drops_first = True
    return Scene(
        house,
        lambda one: house.reverse(one, payment_id),
        lambda one: house.reverse(one, payment_id, "v2"),
        lambda: undone(house, journals=2),
    )


async def reversing_unseen(charged: bool) -> Scene:
    """Wang undoes a card payment of which nobody knows; somebody else wants to undo it as well."""
    house = House()
    await house.new_order()
    one = house.instance()
    one.process.fails("charge", OutcomeUnknown("ACQUIRER_SILENT", "no answer"), after=charged)
    payment_id = payment_in(await by_card(house, "s1")(one)).payment_id
    house.acquirer.drops_first = True
    return Scene(
        house,
        lambda one: house.reverse(one, payment_id),
        lambda one: house.reverse(one, payment_id, "v2"),
        lambda: undone(house, journals=2 if charged else 0),
    )


async def reversing_what_was_charged_unseen() -> Scene:
    """It was charged."""
    return await reversing_unseen(True)


async def reversing_what_was_never_charged() -> Scene:
    """It was not; or the worker charges it before the reversal has begun, and then it was."""
    return await reversing_unseen(False)


async def parking(charged: bool) -> Scene:
    """Wang parks a card payment of which nobody knows while the acquirer is away; li takes cash for the order."""
    house = House()
    await house.new_order()
    one = house.instance()
    one.process.fails("charge", OutcomeUnknown("ACQUIRER_SILENT", "no answer"), after=charged)
    payment_id = payment_in(await by_card(house, "s1")(one)).payment_id
    house.acquirer.drops_first = True

    async def park(one: Instance) -> Answer:
        house.acquirer.tells_nothing = True
        try:
            return await house.park(one, payment_id)
        finally:
            house.acquirer.tells_nothing = False

    def done() -> None:
        card = house.of("s1")
        assert house.state("k1", PARK, WANG) is RequestState.DONE
        paid = [journal.draft.payment_id for journal in house.journals()]
        assert len(paid) == (house.order().state is OrderState.PAID)
        if card.state is PaymentState.SUCCEEDED:  # the worker found it charged before it was parked
            assert paid == [card.payment_id]
        else:
            assert card.payment_id not in paid
            assert {charge.state for charge in house.acquirer.charges.values()} <= {
                *(ChargeState.REFUNDED, ChargeState.TOMBSTONE),
            }

    return Scene(house, park, lambda one: house.settle(one, "s2", source=Source.DRAWER), done)


async def parking_what_was_charged_unseen() -> Scene:
    """It was charged."""
    return await parking(True)


async def parking_what_was_never_charged() -> Scene:
    """It was not, unless the worker charges it before it is parked."""
    return await parking(False)


async def parking_a_reversal(charged: bool) -> Scene:
    """Wang has begun to reverse a card payment of which nobody knows, and parks it; li takes cash for the order."""
    scene = await parking(charged)
    house, payment_id = scene.house, scene.house.of("s1").payment_id
    house.acquirer.tells_nothing = True
    pending = payment_in(await house.reverse(house.instance(), payment_id))
    assert pending.state == pb.PAYMENT_STATE_REVERSING
    house.acquirer.tells_nothing = False

    def done() -> None:
        card = house.of("s1")
        assert card.state is PaymentState.REVERSED
        assert not (card.parking and card.journal_id)
        for key, method in (("s1", SETTLE), ("v1", REVERSE), ("k1", PARK)):
            assert house.state(key, method) is RequestState.DONE
        paid = [journal.draft.payment_id for journal in house.journals()]
        assert len(paid) - bool(card.journal_id) == (house.order().state is OrderState.PAID)
        assert {charge.state for charge in house.acquirer.charges.values()} <= {
            *(ChargeState.REFUNDED, ChargeState.TOMBSTONE),
        }

    return Scene(house, scene.ask, scene.other, done)


async def parking_a_reversal_of_what_was_charged_unseen() -> Scene:
    """It was charged; the reversal may end first, with its journals, and then there is nothing to park."""
    return await parking_a_reversal(True)


async def parking_a_reversal_of_what_was_never_charged() -> Scene:
    """It was not, and never will be."""
    return await parking_a_reversal(False)


def by_card(house: House, key: str, *, card: str = CARD) -> Callable[[Instance], Awaitable[Answer]]:
    """Somebody settles `o1` by card."""
    return lambda one: house.settle(one, key, source=Source.CARD, card=card)


def undone(house: House, *, journals: int) -> None:
    """The payment is undone, in the books and at the bank; nothing, if it was never charged."""
    assert house.of("s1").state is PaymentState.REVERSED
    charged = house.captured()
    assert len(house.ledger.chain) == 2 * charged
    assert charged == journals // 2 or (charged, journals) == (1, 0)
    assert (house.order().state, house.order().round) == (OrderState.UNPAID, 1 + charged)
    assert house.state("v1", REVERSE, WANG) is RequestState.DONE


SCENES = [
    settling,
    settling_from_an_empty_wallet,
    paying,
    reversing,
    settling_by_card,
    settling_by_card_unheard,
    settling_by_a_card_that_declines,
    settling_by_card_without_an_account,
    paying_by_card,
    reversing_a_card,
    reversing_what_was_charged_unseen,
    reversing_what_was_never_charged,
    parking_what_was_charged_unseen,
    parking_what_was_never_charged,
    parking_a_reversal_of_what_was_charged_unseen,
    parking_a_reversal_of_what_was_never_charged,
]


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


async def came(scene: Scene, coming: Callable[[Scene, Instance], Awaitable[None]], one: Instance) -> None:
    """Somebody comes; who is told to ask again leaves that to others."""
    try:
        await coming(scene, one)
    except CountinghouseError as error:
        if not may_come_right(error):
            raise


async def died(scene: Scene, coming: Callable[[Scene, Instance], Awaitable[None]], number: int, after: bool) -> bool:
    """Lets somebody come to an instance that dies at its n-th call; False: it was through before that."""
    one = scene.house.instance(dies_at=number, after=after)
    with suppress(Died):
        await came(scene, coming, one)
    scene.house.lapse(*([one] if one.process.dead else []))
    return one.process.dead


async def ends_well(scene: Scene) -> None:
    """Whoever asked gets the one stored answer, and nothing is left over."""
    house = scene.house
    if waits_for_people(house):
        await came(scene, same, house.instance())
        house.lapse()
    await house.recovered(by=house.instance())
    answer = await answered(scene)
    again = await scene.ask(house.instance())
    assert (again.response, again.replayed) == (answer.response, True)
    await house.recovered(by=house.instance())
    house.check()


def waits_for_people(house: House) -> bool:
    """Whether the acquirer kept silent so often that no worker charges any more: a park that died is its clerk's."""
    return any(
        payment.attention and payment.state is PaymentState.UNKNOWN and payment.source is Source.CARD
        for payment in house.store.payments.values()
    )


async def answered(scene: Scene) -> Answer:
    """Asks until the answer is stored: a bank that drops its first replies leaves the outcome open for a while."""
    house = scene.house
    for _ in range(4):
        answer = await scene.ask(house.instance())
        if answer.response in [row.response for row in house.store.requests.rows.values()]:
            return answer
        await house.recovered(by=house.instance())
    raise AssertionError("it is never answered for good")


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
        await came(scene, coming, scene.house.instance())
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
