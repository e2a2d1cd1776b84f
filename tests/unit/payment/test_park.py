"""Parking: a clerk gives up waiting for the acquirer, the order is free at once, and the key's reversal is owed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import Charge, ChargeState, Payload
from services.kernel.clock import rfc3339
from services.kernel.errors import Aborted, CountinghouseError, FailedPrecondition, Unavailable
from services.kernel.idempotency import RequestState
from services.kernel.money import Money
from services.kernel.principal import Principal
from services.order.model import OrderState
from services.payment.model import PARK, AcquirerSays, KeyState, Payment, PaymentState, Source
from services.payment.ports import Filter
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import CARD, LI, MAX_ASKS, MERCHANT, WANG, House, payment_in
from tests.unit.payment.test_card import SILENCE, at_bank, by_card, kept_silent, unheard
from tests.unit.payment.test_settle import reason_in, refusal_in

PARKING = ["accepted", "locked", "voided", "parked", "completed", "released"]


async def parked(house: House, *, charged: bool = False) -> Payment:
    """Li's card payment, which wang has parked while the acquirer is away; it is back by now."""
    payment = await unheard(house, charged=charged)
    house.acquirer.tells_nothing = True
    await house.park(house.instance(), payment.payment_id)
    house.acquirer.tells_nothing = False
    return house.of("s1")


async def test_parking_frees_the_order_and_refuses_the_own_request(house: House) -> None:
    """PARKED, every failpoint in its order; whoever asks again under the card's request is refused for good."""
    payment = await kept_silent(house, charged=False)
    one = house.instance()
    answer = await house.park(one, payment.payment_id)
    assert (payment_in(answer).state, payment_in(answer).attention) == (pb.PAYMENT_STATE_PARKED, "")
    assert one.failpoints.passed == PARKING
    assert house.order().state is OrderState.UNPAID
    own = await house.settle(house.instance(), source=Source.CARD)
    refusal = refusal_in(own.response.body)
    assert (type(refusal), refusal.reason, own.replayed) == (FailedPrecondition, "PAYMENT_PARKED", True)
    assert refusal.metadata["parked_by"] == "wang"
    assert rfc3339(house.of("s1").updated_at_ms) in refusal.message
    again = await house.park(house.instance(), payment.payment_id)
    assert (again.response, again.replayed) == (answer.response, True)
    assert not house.acquirer.charges


@pytest.mark.parametrize("charged", [False, True])
async def test_cash_settles_a_parked_order_at_once_and_the_key_is_reversed_later(house: House, charged: bool) -> None:
    """Paid once, by the drawer. The acquirer refunds or refuses the key when it is back, however long that takes."""
    payment = await parked(house, charged=charged)
    settled = payment_in(await house.settle(house.instance(), "cash"))
    assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
    worker = house.instance()
    worker.process.fails("reverse_by_key", SILENCE, times=20)
    for _ in range(20):
        house.clock.advance(60_000)
        with pytest.raises(Exception, match="no answer"):
            await worker.operations.recover()
    assert house.of("s1").state is PaymentState.PARKED
    house.clock.advance(365 * 24 * 3600 * 1000)
    await worker.operations.recover()
    assert house.of("s1").state is PaymentState.REVERSED
    assert at_bank(house, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert [journal.draft.payment_id for journal in house.journals()] == [settled.payment_id]
    assert worker.failpoints.passed == ["refunded", "recorded"]
    assert worker.process.calls["hold"] == 0, "no lock is needed"
    house.check()


async def test_a_late_charge_of_a_parked_payment_is_refused_by_the_acquirer(house: House) -> None:
    """The tombstone stands for ever."""
    payment = await parked(house)
    await house.recovered(by=house.instance())
    assert payment.amount is not None
    said = await house.acquirer.charge(payment.acquirer_key, payment, payment.amount, house.call(LI).deadline)
    assert said.state is KeyState.TOMBSTONE
    await house.settle(house.instance(), "cash")
    house.check()


async def test_a_parked_order_can_be_paid_by_another_card(house: House) -> None:
    """Under a key of its own; the parked one's is reversed beside it."""
    await parked(house)
    payment = await by_card(house, house.instance(), "s2", card="tok-other")
    assert (payment.state, payment.attempt) == (pb.PAYMENT_STATE_SUCCEEDED, 2)
    await house.recovered(by=house.instance())
    assert house.captured() == 1
    house.check()


async def test_parking_a_charge_the_acquirer_tells_of_completes_it(house: House) -> None:
    """The truth is preferred: the order is paid, and the clerk is told by which payment."""
    payment = await unheard(house, charged=True)
    refusal = refusal_in((await house.park(house.instance(), payment.payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["source"]) == ("ORDER_ALREADY_PAID", "CARD")
    assert house.of("s1").state is PaymentState.SUCCEEDED
    assert house.order().state is OrderState.PAID
    assert house.state("k1", PARK, WANG) is RequestState.DONE
    house.check()


async def test_parking_a_charge_the_acquirer_declined_frees_the_order(house: House) -> None:
    """Nothing is left to park."""
    payment = await unheard(house, charged=False)
    assert payment.amount is not None
    key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)
    house.acquirer.charges[key] = Charge(key, ChargeState.DECLINED, payload, "CARD_DECLINED", 1)
    refusal = refusal_in((await house.park(house.instance(), payment.payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["state"]) == ("ILLEGAL_STATE", "DECLINED")
    assert house.order().state is OrderState.UNPAID
    house.check()


async def test_parking_what_the_ledger_has_posted_completes_it(house: House) -> None:
    """Its process died between posting and recording, and the acquirer is away: the journal tells the outcome."""
    one = house.instance()
    one.process.fails("post", SILENCE, after=True)
    payment = await by_card(house, one)
    house.acquirer.tells_nothing = True
    refusal = refusal_in((await house.park(house.instance(), payment.payment_id)).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    assert house.of("s1").state is PaymentState.SUCCEEDED
    assert house.captured() == len(house.journals()) == 1
    house.check()


async def test_a_contradicting_acquirer_does_not_hinder_parking(house: House) -> None:
    """The order is free; the reversal is not believed either, so that people still have to look."""
    payment = await unheard(house, charged=True)
    key = payment.acquirer_key
    house.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, Payload(CARD, _less(payment), "other"), "", 1)
    answer = payment_in(await house.park(house.instance(), payment.payment_id))
    assert answer.state == pb.PAYMENT_STATE_PARKED
    payment_in(await house.settle(house.instance(), "cash"))
    worker = house.instance()
    with pytest.raises(Exception, match="than asked"):
        await worker.operations.recover()
    assert (house.of("s1").state, house.of("s1").attention) == (PaymentState.PARKED, "ACQUIRER_MISMATCH")


@pytest.mark.parametrize("parks", [False, True])
async def test_a_refund_of_another_amount_ends_once_the_acquirer_corrects_it(house: House, parks: bool) -> None:
    """Before people until then, REVERSING or PARKED; nobody has to do anything here afterwards."""
    payment = await unheard(house, charged=True)
    right = house.acquirer.says

    def wrong(charge: Charge) -> AcquirerSays:
        said = right(charge)
        assert said.terms is not None
        return replace(said, terms=replace(said.terms, minor_units=said.terms.minor_units - 10))

    house.acquirer.says = wrong
    await house.reverse(house.instance(), payment.payment_id)
    if parks:
        assert payment_in(await house.park(house.instance(), payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
        payment_in(await house.settle(house.instance(), "cash"))
    for _ in range(MAX_ASKS):
        house.lapse()
        with suppress(CountinghouseError):
            await house.instance().operations.recover()
    expected = PaymentState.PARKED if parks else PaymentState.REVERSING
    assert (house.of("s1").state, house.of("s1").attention) == (expected, "ACQUIRER_MISMATCH")
    house.acquirer.says = right
    await house.recovered(by=house.instance())
    assert (house.of("s1").state, house.of("s1").attention) == (PaymentState.REVERSED, "")
    assert at_bank(house, payment) is ChargeState.REFUNDED
    house.check()


def _less(payment: Payment) -> Money:
    assert payment.amount is not None
    return Money(payment.amount.minor_units - 100, payment.amount.currency)


async def test_parking_needs_the_ledger(house: House) -> None:
    """Whether a journal stands must be known: nothing is parked on a guess, and the same id parks it later."""
    payment = await unheard(house, charged=False)
    one = house.instance()
    one.process.fails("void", Unavailable("PEER_UNAVAILABLE", "never sent"))
    with pytest.raises(Unavailable):
        await house.park(one, payment.payment_id)
    assert house.of("s1").state is PaymentState.UNKNOWN
    assert house.state("k1", PARK, WANG) is RequestState.ISSUED
    assert payment_in(await house.park(one, payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
    await house.recovered(by=house.instance())
    house.check()


@pytest.mark.parametrize("charged", [False, True])
async def test_a_holder_that_wakes_after_the_parking_posts_nothing(house: House, charged: bool) -> None:
    """Paused before it charges, or before it posts: its journal is refused, and what it charges is given back."""
    sleeper = house.instance()

    async def meanwhile() -> None:
        house.locks.expire(sleeper.name)
        house.acquirer.tells_nothing = True
        await house.park(house.instance(), house.of("s1").payment_id)
        house.acquirer.tells_nothing = False
        payment_in(await house.settle(house.instance(), "cash", clerk=LI))

    sleeper.failpoints.at["charged" if charged else "submitted"] = meanwhile
    with pytest.raises(Aborted) as refusal:
        await house.settle(sleeper, source=Source.CARD)
    assert refusal.value.reason == "STALE_FENCE"
    assert house.captured() == 1
    assert len(house.journals()) == 1
    assert house.of("s1").state is PaymentState.PARKED
    await house.recovered(by=house.instance())
    assert at_bank(house, house.of("s1")) is ChargeState.REFUNDED
    house.check()


@pytest.mark.parametrize("clerk", [LI, WANG])
async def test_a_cashier_and_an_accountant_may_park(house: House, clerk: Principal) -> None:
    payment = await unheard(house, charged=False)
    answer = await house.park(house.instance(), payment.payment_id, clerk=clerk)
    assert payment_in(answer).state == pb.PAYMENT_STATE_PARKED


async def reversing(house: House, *, charged: bool) -> Payment:
    """Li's unanswered card payment, which wang has begun to reverse while the acquirer is away."""
    payment = await unheard(house, charged=charged)
    house.acquirer.tells_nothing = True
    pending = payment_in(await house.reverse(house.instance(), payment.payment_id))
    assert pending.state == pb.PAYMENT_STATE_REVERSING
    return house.of("s1")


@pytest.mark.parametrize("charged", [False, True])
async def test_parking_an_unanswered_reversal_frees_the_order_and_refuses_both_requests(
    house: House, charged: bool
) -> None:
    """The cashier is told to park it and takes cash; the reversal's request gets the same refusal, for good."""
    payment = await reversing(house, charged=charged)
    with pytest.raises(Aborted) as blocked:
        await house.settle(house.instance(), "cash")
    assert (blocked.value.reason, "park" in blocked.value.message.lower()) == ("ORDER_HALF_SETTLED", True)
    one = house.instance()
    answer = payment_in(await house.park(one, payment.payment_id, clerk=LI))
    assert (answer.state, answer.journal_id, one.failpoints.passed) == (pb.PAYMENT_STATE_PARKED, "", PARKING)
    refused = await house.reverse(house.instance(), payment.payment_id)
    refusal = refusal_in(refused.response.body)
    assert (refusal.reason, refusal.metadata["parked_by"], refused.replayed) == ("PAYMENT_PARKED", "li", True)
    assert house.stored("s1") == refused.response
    settled = payment_in(await house.settle(house.instance(), "cash"))
    house.acquirer.tells_nothing = False
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.REVERSED
    assert at_bank(house, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert [journal.draft.payment_id for journal in house.journals()] == [settled.payment_id]
    assert (await house.reverse(house.instance(), payment.payment_id)).response == refused.response
    house.check()


async def test_parking_a_reversal_asks_no_acquirer(house: House) -> None:
    """Whatever it would say, the key is to be reversed: a slow acquirer takes nothing from the deadline."""
    payment = await reversing(house, charged=True)
    house.acquirer.tells_nothing = False
    one = house.instance()
    assert payment_in(await house.park(one, payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
    asked = [one.process.calls[name] for name in ("charge", "query", "reverse_by_key")]
    assert asked == [0, 0, 0]
    await house.recovered(by=house.instance())
    house.check()


@pytest.mark.parametrize("known", [False, True])
async def test_a_reversal_whose_journal_stands_is_not_parked(house: House, known: bool) -> None:
    """Known to have succeeded before, or found charged by the reversal: the books have both journals, and the order
    waits for the refund. The refusal changes nothing; the reversal ends when the acquirer answers.
    """
    if known:
        payment_id = (await by_card(house, house.instance())).payment_id
    else:
        payment_id = (await unheard(house, charged=True)).payment_id
    one = house.instance()
    one.process.fails("reverse_by_key", SILENCE)
    assert payment_in(await house.reverse(one, payment_id)).state == pb.PAYMENT_STATE_REVERSING
    before, order = house.of("s1"), house.order()
    refusal = refusal_in((await house.park(one, payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["state"]) == ("ILLEGAL_STATE", "REVERSING")
    assert "the ledger has a journal of it; its order is free when the acquirer confirms the refund" in refusal.message
    after = house.of("s1")
    assert (after.state, after.version, after.parking) == (PaymentState.REVERSING, before.version, None)
    assert house.order() == order, "it is not told that it was paid"
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.REVERSED
    assert payment_in(await house.reverse(house.instance(), payment_id)).state == pb.PAYMENT_STATE_REVERSED
    assert (house.order().state, house.order().round) == (OrderState.UNPAID, 2)
    house.check()


@pytest.mark.parametrize("charged", [False, True])
async def test_a_reversal_after_a_park_that_died_ends_without_a_journal(house: House, charged: bool) -> None:
    """The ledger has voided the journal, and nothing was parked: what was charged is refunded, the order is free."""
    payment = await reversing(house, charged=charged)
    dying = house.instance()
    dying.process.fails("park", Unavailable("DATABASE_FULL", "no space"))
    with pytest.raises(Unavailable):
        await house.park(dying, payment.payment_id)
    house.acquirer.tells_nothing = False
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.REVERSED
    assert at_bank(house, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert (house.order().state, house.order().round, house.ledger.chain) == (OrderState.UNPAID, 1, [])
    own = refusal_in((await house.settle(house.instance(), source=Source.CARD)).response.body)
    assert (own.reason, "whatever was charged is given back" in own.message) == ("PAYMENT_REVERSED", True)
    assert payment_in(await house.reverse(house.instance(), payment.payment_id)).state == pb.PAYMENT_STATE_REVERSED
    house.check()


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_park_that_died_after_voiding_is_at_worst_a_charge_and_its_refund(
    house: House, number: int, after: bool
) -> None:
    """The own request goes on first and dies at each of its calls; no charge is kept, and cash pays."""
    payment = await unheard(house, charged=False)
    house.acquirer.tells_nothing = True
    dying = house.instance()
    dying.process.fails("park", Unavailable("DATABASE_FULL", "no space"))
    with pytest.raises(Unavailable):
        await house.park(dying, payment.payment_id)
    house.acquirer.tells_nothing = False
    own = house.instance(dies_at=number, after=after)
    with suppress(Died, CountinghouseError):
        await house.settle(own, source=Source.CARD)
    house.lapse(own)
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.DECLINED
    assert (at_bank(house, payment), house.captured()) == (ChargeState.REFUNDED, 1)
    refusal = refusal_in((await house.settle(house.instance(), source=Source.CARD)).response.body)
    assert refusal.reason in ("POST_VOIDED", "CHARGE_REVERSED")
    settled = payment_in(await house.settle(house.instance(), "cash"))
    assert [journal.draft.payment_id for journal in house.journals()] == [settled.payment_id]
    house.check()


async def test_only_an_open_card_payment_of_an_order_can_be_parked(house: House) -> None:
    """Not cash, not what has ended, not a direct payment: a definitive refusal."""
    one = house.instance()
    cash = payment_in(await house.settle(one, "cash"))
    refusal = refusal_in((await house.park(one, cash.payment_id, "k1")).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    await house.reverse(one, cash.payment_id)
    assert reason_in((await house.park(one, cash.payment_id, "k2")).response.body) == "ILLEGAL_STATE"
    one.process.fails("charge", SILENCE)
    direct = payment_in(await house.pay(one, await house.ticket(one), source=Source.CARD, payee=MERCHANT))
    assert reason_in((await house.park(one, direct.payment_id, "k3")).response.body) == "ILLEGAL_STATE"
    await house.recovered(by=house.instance())
    house.check()


async def test_a_parked_payment_is_neither_reversed_nor_parked_again(house: House) -> None:
    payment = await parked(house)
    one = house.instance()
    assert reason_in((await house.reverse(one, payment.payment_id)).response.body) == "ILLEGAL_STATE"
    assert reason_in((await house.park(one, payment.payment_id, "k2")).response.body) == "ILLEGAL_STATE"
    await house.recovered(by=one)
    house.check()


async def test_a_parked_payment_is_listed_and_put_before_people_while_the_acquirer_is_away(house: House) -> None:
    payment = await parked(house)
    worker = house.instance()
    worker.process.fails("reverse_by_key", SILENCE, times=MAX_ASKS)
    for _ in range(MAX_ASKS):
        house.clock.advance(60_000)
        with pytest.raises(Exception, match="no answer"):
            await worker.operations.recover()
    for which in (Filter(state=PaymentState.PARKED), Filter(needs_attention=True)):
        page = await worker.operations.page(house.call(WANG), which, limit=9, after=None)
        assert [found.payment_id for found in page] == [payment.payment_id]


async def test_a_notice_lets_the_reversal_of_a_parked_payment_be_tried_at_once(house: House) -> None:
    payment = await parked(house)
    worker = house.instance()
    worker.process.fails("reverse_by_key", SILENCE)
    with pytest.raises(Exception, match="no answer"):
        await worker.operations.recover()
    assert await worker.operations.recover() == 0
    await worker.operations.notified(payment.acquirer_key)
    await worker.operations.recover()
    assert house.of("s1").state is PaymentState.REVERSED


async def test_many_parked_payments_delay_no_other_recovery_by_more_than_a_few_asks(house: House) -> None:
    """An acquirer that is away is asked about a few of them in each look."""
    for number in range(20):
        order = await house.new_order(f"b{number}")
        one = house.instance()
        one.process.fails("charge", SILENCE)
        payment = payment_in(await house.settle(one, f"c{number}", order, source=Source.CARD))
        await house.park(one, payment.payment_id, f"k{number}")
    worker = house.instance()
    await worker.operations.recover()
    assert worker.process.calls["reverse_by_key"] <= 8
    await house.recovered(by=worker)
    assert all(charge.state is ChargeState.TOMBSTONE for charge in house.acquirer.charges.values())
    house.check()
