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
from tests.unit.payment.cluster import (
    AMOUNT,
    CARD,
    LI,
    MERCHANT,
    OWED_FOR_CARDS,
    WALLET,
    WANG,
    InMemoryCluster,
    Instance,
    payment_in,
)

_MOST_CALLS = 40


@dataclass
class Scenario:
    """A cluster, and the one thing that is to be done in it exactly once."""

    cluster: InMemoryCluster
    ask: Callable[[Instance], Awaitable[Answer]]
    #: Another person who wants the same order settled, or the same payment undone.
    other: Callable[[Instance], Awaitable[Answer]]
    #: What must be so in the end.
    done: Callable[[], None]


async def settling() -> Scenario:
    """Li settles the order; Wang wants to as well."""
    cluster = InMemoryCluster()
    await cluster.new_order()

    def done() -> None:
        assert len(cluster.journals()) == 1
        assert cluster.order().state is OrderState.PAID
        assert cluster.state("s1", SETTLE, LI) is RequestState.DONE

    return Scenario(cluster, cluster.settle, lambda one: cluster.settle(one, "s2", clerk=WANG), done)


async def settling_from_an_empty_wallet() -> Scenario:
    """Mei has too little; so have all who try to settle from her wallet."""
    scenario = await settling()
    cluster = scenario.cluster
    cluster.fund(WALLET, AMOUNT - 1)

    def done() -> None:
        assert not cluster.journals()
        assert cluster.order().state is OrderState.UNPAID
        assert cluster.of("s1").state is PaymentState.DECLINED

    def from_wallet(key: str) -> Callable[[Instance], Awaitable[Answer]]:
        return lambda one: cluster.settle(one, key, source=Source.WALLET)

    return Scenario(cluster, from_wallet("s1"), from_wallet("s2"), done)


async def paying() -> Scenario:
    """Li pays from Mei's wallet with a ticket; the only other person is li, clicking again."""
    cluster = InMemoryCluster()
    ticket = await cluster.ticket(cluster.instance())

    def done() -> None:
        assert len(cluster.ledger.chain) == 1
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        assert cluster.state(ticket, PAY) is RequestState.DONE

    def pay(one: Instance) -> Awaitable[Answer]:
        return cluster.pay(one, ticket)

    return Scenario(cluster, pay, pay, done)


async def reversing() -> Scenario:
    """Wang undoes li's settlement; so does another accountant."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    payment_id = payment_in(await cluster.settle(cluster.instance())).payment_id

    def done() -> None:
        assert len(cluster.ledger.chain) == 2
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        assert cluster.state("v1", REVERSE, WANG) is RequestState.DONE

    return Scenario(
        cluster,
        lambda one: cluster.reverse(one, payment_id),
        lambda one: cluster.reverse(one, payment_id, "v2"),
        done,
    )


async def settling_by_card() -> Scenario:
    """Li settles the order by card; Wang wants to as well, by another one."""
    scenario = await settling()
    cluster = scenario.cluster

    def done() -> None:
        scenario.done()
        assert cluster.captured() == 1

    return Scenario(cluster, by_card(cluster, "s1"), by_card(cluster, "s2", card="tok-wang"), done)


async def settling_by_card_unheard() -> Scenario:
    """The same, and the bank does not answer when a key is new to it."""
    scenario = await settling_by_card()
    scenario.cluster.acquirer.drops_first = True
    return scenario


async def settling_by_a_card_that_declines() -> Scenario:
    """So do all others."""
    scenario = await settling_from_an_empty_wallet()
    cluster = scenario.cluster

    def done() -> None:
        scenario.done()
        assert cluster.captured() == 0

    return Scenario(cluster, by_card(cluster, "s1", card="tok-short"), by_card(cluster, "s2", card="tok-short"), done)


async def settling_by_card_without_an_account() -> Scenario:
    """The ledger cannot post what was charged, so it is given back, of which the bank does not say so at first."""
    scenario = await settling_from_an_empty_wallet()
    cluster = scenario.cluster
    cluster.acquirer.drops_first = True
    cluster.fund(OWED_FOR_CARDS, MAX_BALANCE)

    def done() -> None:
        scenario.done()
        assert {charge.state for charge in cluster.acquirer.charges.values()} <= {ChargeState.REFUNDED}

    return Scenario(cluster, by_card(cluster, "s1"), by_card(cluster, "s2"), done)


async def paying_by_card() -> Scenario:
    """Li pays a merchant by card, with a ticket and without a lock."""
    cluster = InMemoryCluster()
    cluster.acquirer.drops_first = True
    ticket = await cluster.ticket(cluster.instance())

    def done() -> None:
        assert len(cluster.ledger.chain) == cluster.captured() == 1
        assert cluster.ledger.open[MERCHANT].balance == 1000 + AMOUNT

    def pay(one: Instance) -> Awaitable[Answer]:
        return cluster.pay(one, ticket, source=Source.CARD)

    return Scenario(cluster, pay, pay, done)


async def reversing_a_card() -> Scenario:
    """Wang undoes li's settlement by card; the bank refunds, and does not say so at first."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    payment_id = payment_in(await by_card(cluster, "s1")(cluster.instance())).payment_id
    cluster.acquirer.drops_first = True
    return Scenario(
        cluster,
        lambda one: cluster.reverse(one, payment_id),
        lambda one: cluster.reverse(one, payment_id, "v2"),
        lambda: undone(cluster, journals=2),
    )


async def reversing_unseen(charged: bool) -> Scenario:
    """Wang undoes a card payment of which nobody knows; somebody else wants to undo it as well."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    one = cluster.instance()
    one.process.fails("charge", OutcomeUnknown("ACQUIRER_SILENT", "no answer"), after=charged)
    payment_id = payment_in(await by_card(cluster, "s1")(one)).payment_id
    cluster.acquirer.drops_first = True
    return Scenario(
        cluster,
        lambda one: cluster.reverse(one, payment_id),
        lambda one: cluster.reverse(one, payment_id, "v2"),
        lambda: undone(cluster, journals=2 if charged else 0),
    )


async def reversing_what_was_charged_unseen() -> Scenario:
    """It was charged."""
    return await reversing_unseen(True)


async def reversing_what_was_never_charged() -> Scenario:
    """It was not; or the worker charges it before the reversal has begun, and then it was."""
    return await reversing_unseen(False)


async def parking(charged: bool) -> Scenario:
    """Wang parks a card payment of which nobody knows while the acquirer is away; li takes cash for the order."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    one = cluster.instance()
    one.process.fails("charge", OutcomeUnknown("ACQUIRER_SILENT", "no answer"), after=charged)
    payment_id = payment_in(await by_card(cluster, "s1")(one)).payment_id
    cluster.acquirer.drops_first = True

    async def park(one: Instance) -> Answer:
        cluster.acquirer.tells_nothing = True
        try:
            return await cluster.park(one, payment_id)
        finally:
            cluster.acquirer.tells_nothing = False

    def done() -> None:
        card = cluster.of("s1")
        assert cluster.state("k1", PARK, WANG) is RequestState.DONE
        paid = [journal.draft.payment_id for journal in cluster.journals()]
        assert len(paid) == (cluster.order().state is OrderState.PAID)
        if card.state is PaymentState.SUCCEEDED:  # the worker found it charged before it was parked
            assert paid == [card.payment_id]
        else:
            assert card.payment_id not in paid
            assert {charge.state for charge in cluster.acquirer.charges.values()} <= {
                *(ChargeState.REFUNDED, ChargeState.TOMBSTONE),
            }

    return Scenario(cluster, park, lambda one: cluster.settle(one, "s2", source=Source.DRAWER), done)


async def parking_what_was_charged_unseen() -> Scenario:
    """It was charged."""
    return await parking(True)


async def parking_what_was_never_charged() -> Scenario:
    """It was not, unless the worker charges it before it is parked."""
    return await parking(False)


async def parking_a_reversal(charged: bool) -> Scenario:
    """Wang has begun to reverse a card payment of which nobody knows, and parks it; li takes cash for the order."""
    scenario = await parking(charged)
    cluster, payment_id = scenario.cluster, scenario.cluster.of("s1").payment_id
    cluster.acquirer.tells_nothing = True
    pending = payment_in(await cluster.reverse(cluster.instance(), payment_id))
    assert pending.state == pb.PAYMENT_STATE_REVERSING
    cluster.acquirer.tells_nothing = False

    def done() -> None:
        card = cluster.of("s1")
        assert card.state is PaymentState.REVERSED
        assert not (card.parking and card.journal_id)
        for key, method in (("s1", SETTLE), ("v1", REVERSE), ("k1", PARK)):
            assert cluster.state(key, method) is RequestState.DONE
        paid = [journal.draft.payment_id for journal in cluster.journals()]
        assert len(paid) - bool(card.journal_id) == (cluster.order().state is OrderState.PAID)
        assert {charge.state for charge in cluster.acquirer.charges.values()} <= {
            *(ChargeState.REFUNDED, ChargeState.TOMBSTONE),
        }

    return Scenario(cluster, scenario.ask, scenario.other, done)


async def parking_a_reversal_of_what_was_charged_unseen() -> Scenario:
    """It was charged; the reversal may end first, with its journals, and then there is nothing to park."""
    return await parking_a_reversal(True)


async def parking_a_reversal_of_what_was_never_charged() -> Scenario:
    """It was not, and never will be."""
    return await parking_a_reversal(False)


def by_card(cluster: InMemoryCluster, key: str, *, card: str = CARD) -> Callable[[Instance], Awaitable[Answer]]:
    """Somebody settles `o1` by card."""
    return lambda one: cluster.settle(one, key, source=Source.CARD, card=card)


def undone(cluster: InMemoryCluster, *, journals: int) -> None:
    """The payment is undone, in the books and at the bank; nothing, if it was never charged."""
    assert cluster.of("s1").state is PaymentState.REVERSED
    charged = cluster.captured()
    assert len(cluster.ledger.chain) == 2 * charged
    assert charged == journals // 2 or (charged, journals) == (1, 0)
    assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 1 + charged)
    assert cluster.state("v1", REVERSE, WANG) is RequestState.DONE


SCENARIOS = [
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


async def worker(scenario: Scenario, one: Instance) -> None:
    """The recovery of another instance looks once."""
    await one.operations.recovery.recover()


async def same(scenario: Scenario, one: Instance) -> None:
    """The caller asks again under the same key."""
    await scenario.ask(one)


async def other(scenario: Scenario, one: Instance) -> None:
    """Somebody else wants the same."""
    await scenario.other(one)


COMERS = [worker, same, other]


async def came(scenario: Scenario, coming: Callable[[Scenario, Instance], Awaitable[None]], one: Instance) -> None:
    """Somebody comes; who is told to ask again leaves that to others."""
    try:
        await coming(scenario, one)
    except CountinghouseError as error:
        if not may_come_right(error):
            raise


async def died(
    scenario: Scenario, coming: Callable[[Scenario, Instance], Awaitable[None]], number: int, after: bool
) -> bool:
    """Lets somebody come to an instance that dies at its n-th call; False: it was through before that."""
    one = scenario.cluster.instance(dies_at=number, after=after)
    with suppress(Died):
        await came(scenario, coming, one)
    scenario.cluster.lapse(*([one] if one.process.dead else []))
    return one.process.dead


async def ends_well(scenario: Scenario) -> None:
    """Whoever asked gets the one stored answer, and nothing is left over."""
    cluster = scenario.cluster
    if waits_for_people(cluster):
        await came(scenario, same, cluster.instance())
        cluster.lapse()
    await cluster.recovered(by=cluster.instance())
    answer = await answered(scenario)
    again = await scenario.ask(cluster.instance())
    assert (again.response, again.replayed) == (answer.response, True)
    await cluster.recovered(by=cluster.instance())
    cluster.check()


def waits_for_people(cluster: InMemoryCluster) -> bool:
    """Whether the acquirer kept silent so often that no worker charges any more: a park that died is its clerk's."""
    return any(
        payment.attention and payment.state is PaymentState.UNKNOWN and payment.source is Source.CARD
        for payment in cluster.store.payments.values()
    )


async def answered(scenario: Scenario) -> Answer:
    """Asks until the answer is stored: a bank that drops its first replies leaves the outcome open for a while."""
    cluster = scenario.cluster
    for _ in range(4):
        answer = await scenario.ask(cluster.instance())
        if answer.response in [row.response for row in cluster.store.requests.rows.values()]:
            return answer
        await cluster.recovered(by=cluster.instance())
    raise AssertionError("it is never answered for good")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("coming", COMERS)
@pytest.mark.parametrize("begin", SCENARIOS)
async def test_death_at_every_call_settles_once(
    begin: Callable[[], Awaitable[Scenario]], coming: Callable[[Scenario, Instance], Awaitable[None]], after: bool
) -> None:
    """No call is left out: the number grows until the execution comes through alive."""
    number = 1
    while True:
        scenario = await begin()
        alive = not await died(scenario, same, number, after)
        await came(scenario, coming, scenario.cluster.instance())
        scenario.cluster.lapse()
        await ends_well(scenario)
        scenario.done()
        if alive:
            break
        number += 1
        assert number < _MOST_CALLS
    assert number > 5, "so few calls do not make a payment"


@given(
    begin=st.sampled_from(SCENARIOS),
    deaths=st.lists(st.tuples(st.sampled_from(COMERS), st.integers(1, 22), st.booleans()), min_size=2, max_size=6),
)
@settings(max_examples=300, deadline=None)
def test_repeated_deaths_settle_once(
    begin: Callable[[], Awaitable[Scenario]],
    deaths: list[tuple[Callable[[Scenario, Instance], Awaitable[None]], int, bool]],
) -> None:
    """Those who come to finish it die as well, in any order and at any call."""

    async def play() -> None:
        scenario = await begin()
        await died(scenario, same, 3, after=True)
        for coming, number, after in deaths:
            await died(scenario, coming, number, after)
        await ends_well(scenario)
        scenario.done()

    asyncio.run(play())
