"""Parking: a clerk gives up waiting for the acquirer, the order is free at once, and the key's reversal is owed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import Charge, ChargeState, Payload
from services.kernel.clock import rfc3339
from services.kernel.errors import Aborted, CountinghouseError, FailedPrecondition, OutcomeUnknown, Unavailable
from services.kernel.idempotency import RequestState
from services.kernel.money import Money
from services.kernel.principal import Principal
from services.order.model import OrderState
from services.payment.model import PARK, Payment, PaymentState, Source
from services.payment.ports import ChargeStatus, Filter, KeyState
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import CARD, LI, MAX_ASKS, MERCHANT, WANG, InMemoryCluster, payment_in
from tests.unit.payment.test_card import SILENCE, at_bank, by_card, kept_silent, unheard
from tests.unit.payment.test_settle import reason_in, refusal_in

PARKING = ["accepted", "locked", "voided", "parked", "completed", "released"]


async def parked(cluster: InMemoryCluster, *, charged: bool = False) -> Payment:
    """Li's card payment, which wang has parked while the acquirer is away; it is back by now."""
    payment = await unheard(cluster, charged=charged)
    cluster.acquirer.tells_nothing = True
    await cluster.park(cluster.instance(), payment.payment_id)
    cluster.acquirer.tells_nothing = False
    return cluster.of("s1")


async def test_parking_frees_the_order_and_refuses_the_own_request(cluster: InMemoryCluster) -> None:
    """PARKED, every failpoint in its order; whoever asks again under the card's request is refused for good."""
    payment = await kept_silent(cluster, charged=False)
    one = cluster.instance()
    answer = await cluster.park(one, payment.payment_id)
    assert (payment_in(answer).state, payment_in(answer).attention) == (pb.PAYMENT_STATE_PARKED, "")
    assert one.failpoints.passed == PARKING
    assert cluster.order().state is OrderState.UNPAID
    own = await cluster.settle(cluster.instance(), source=Source.CARD)
    refusal = refusal_in(own.response.body)
    assert (type(refusal), refusal.reason, own.replayed) == (FailedPrecondition, "PAYMENT_PARKED", True)
    assert refusal.metadata["parked_by"] == "wang"
    assert rfc3339(cluster.of("s1").updated_at_ms) in refusal.message
    again = await cluster.park(cluster.instance(), payment.payment_id)
    assert (again.response, again.replayed) == (answer.response, True)
    assert not cluster.acquirer.charges


@pytest.mark.parametrize("charged", [False, True])
async def test_cash_settles_a_parked_order_at_once_and_the_key_is_reversed_later(
    cluster: InMemoryCluster, charged: bool
) -> None:
    """Paid once, by the drawer. The acquirer refunds or refuses the key when it is back, however long that takes."""
    payment = await parked(cluster, charged=charged)
    settled = payment_in(await cluster.settle(cluster.instance(), "cash"))
    assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
    worker = cluster.instance()
    worker.process.fails("reverse_by_key", SILENCE, times=20)
    for _ in range(20):
        cluster.clock.advance(60_000)
        with pytest.raises(Exception, match="no answer"):
            await worker.operations.recovery.recover()
    assert cluster.of("s1").state is PaymentState.PARKED
    cluster.clock.advance(365 * 24 * 3600 * 1000)
    await worker.operations.recovery.recover()
    assert cluster.of("s1").state is PaymentState.REVERSED
    assert at_bank(cluster, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert [journal.draft.payment_id for journal in cluster.journals()] == [settled.payment_id]
    assert worker.failpoints.passed == ["refunded", "recorded"]
    assert worker.process.calls["hold"] == 0, "no lock is needed"
    cluster.check()


async def test_late_charge_of_a_parked_payment_is_refused_by_the_acquirer(cluster: InMemoryCluster) -> None:
    """The tombstone stands for ever."""
    payment = await parked(cluster)
    await cluster.recovered(by=cluster.instance())
    assert payment.amount is not None
    said = await cluster.acquirer.charge(payment.acquirer_key, payment, payment.amount, cluster.call(LI).deadline)
    assert said.state is KeyState.TOMBSTONE
    await cluster.settle(cluster.instance(), "cash")
    cluster.check()


async def test_parked_order_can_be_paid_by_another_card(cluster: InMemoryCluster) -> None:
    """Under a key of its own; the parked one's is reversed beside it."""
    await parked(cluster)
    payment = await by_card(cluster, cluster.instance(), "s2", card="tok-other")
    assert (payment.state, payment.attempt) == (pb.PAYMENT_STATE_SUCCEEDED, 2)
    await cluster.recovered(by=cluster.instance())
    assert cluster.captured() == 1
    cluster.check()


async def test_parking_a_charge_that_the_acquirer_confirms_completes_it(cluster: InMemoryCluster) -> None:
    """The truth is preferred: the order is paid, and the clerk is told by which payment."""
    payment = await unheard(cluster, charged=True)
    refusal = refusal_in((await cluster.park(cluster.instance(), payment.payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["source"]) == ("ORDER_ALREADY_PAID", "CARD")
    assert cluster.of("s1").state is PaymentState.SUCCEEDED
    assert cluster.order().state is OrderState.PAID
    assert cluster.state("k1", PARK, WANG) is RequestState.DONE
    cluster.check()


async def test_parking_a_charge_the_acquirer_declined_frees_the_order(cluster: InMemoryCluster) -> None:
    """Nothing is left to park."""
    payment = await unheard(cluster, charged=False)
    assert payment.amount is not None
    key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)
    cluster.acquirer.charges[key] = Charge(key, ChargeState.DECLINED, payload, "CARD_DECLINED", 1)
    refusal = refusal_in((await cluster.park(cluster.instance(), payment.payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["state"]) == ("ILLEGAL_STATE", "DECLINED")
    assert cluster.order().state is OrderState.UNPAID
    cluster.check()


async def test_parking_what_the_ledger_has_posted_completes_it(cluster: InMemoryCluster) -> None:
    """Its process died between posting and recording, and the acquirer is away: the journal tells the outcome."""
    one = cluster.instance()
    one.process.fails("post", SILENCE, after=True)
    payment = await by_card(cluster, one)
    cluster.acquirer.tells_nothing = True
    refusal = refusal_in((await cluster.park(cluster.instance(), payment.payment_id)).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    assert cluster.of("s1").state is PaymentState.SUCCEEDED
    assert cluster.captured() == len(cluster.journals()) == 1
    cluster.check()


async def test_contradicting_acquirer_does_not_hinder_parking(cluster: InMemoryCluster) -> None:
    """The order is free; the reversal is not believed either, so that people still have to look."""
    payment = await unheard(cluster, charged=True)
    key = payment.acquirer_key
    cluster.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, Payload(CARD, _less(payment), "other"), "", 1)
    answer = payment_in(await cluster.park(cluster.instance(), payment.payment_id))
    assert answer.state == pb.PAYMENT_STATE_PARKED
    payment_in(await cluster.settle(cluster.instance(), "cash"))
    worker = cluster.instance()
    with pytest.raises(Exception, match="than asked"):
        await worker.operations.recovery.recover()
    assert (cluster.of("s1").state, cluster.of("s1").attention) == (PaymentState.PARKED, "ACQUIRER_MISMATCH")


@pytest.mark.parametrize("parks", [False, True])
async def test_refund_of_another_amount_ends_once_the_acquirer_corrects_it(
    cluster: InMemoryCluster, parks: bool
) -> None:
    """Before people until then, REVERSING or PARKED; nobody has to do anything here afterwards."""
    payment = await unheard(cluster, charged=True)
    right = cluster.acquirer.says

    def wrong(charge: Charge) -> ChargeStatus:
        said = right(charge)
        assert said.terms is not None
        return replace(said, terms=replace(said.terms, minor_units=said.terms.minor_units - 10))

    cluster.acquirer.says = wrong
    await cluster.reverse(cluster.instance(), payment.payment_id)
    if parks:
        assert payment_in(await cluster.park(cluster.instance(), payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
        payment_in(await cluster.settle(cluster.instance(), "cash"))
    for _ in range(MAX_ASKS):
        cluster.lapse()
        with suppress(CountinghouseError):
            await cluster.instance().operations.recovery.recover()
    expected = PaymentState.PARKED if parks else PaymentState.REVERSING
    assert (cluster.of("s1").state, cluster.of("s1").attention) == (expected, "ACQUIRER_MISMATCH")
    cluster.acquirer.says = right
    await cluster.recovered(by=cluster.instance())
    assert (cluster.of("s1").state, cluster.of("s1").attention) == (PaymentState.REVERSED, "")
    assert at_bank(cluster, payment) is ChargeState.REFUNDED
    cluster.check()


def _less(payment: Payment) -> Money:
    assert payment.amount is not None
    return Money(payment.amount.minor_units - 100, payment.amount.currency)


async def test_parking_needs_the_ledger(cluster: InMemoryCluster) -> None:
    """Whether a journal stands must be known: nothing is parked on a guess, and the same id parks it later."""
    payment = await unheard(cluster, charged=False)
    one = cluster.instance()
    one.process.fails("void", Unavailable("PEER_UNAVAILABLE", "never sent"))
    with pytest.raises(Unavailable):
        await cluster.park(one, payment.payment_id)
    assert cluster.of("s1").state is PaymentState.UNKNOWN
    assert cluster.state("k1", PARK, WANG) is RequestState.ISSUED
    assert payment_in(await cluster.park(one, payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
    await cluster.recovered(by=cluster.instance())
    cluster.check()


@pytest.mark.parametrize("charged", [False, True])
async def test_holder_that_wakes_after_the_parking_posts_nothing(cluster: InMemoryCluster, charged: bool) -> None:
    """Paused before it charges, or before it posts: its journal is refused, and what it charges is given back."""
    sleeper = cluster.instance()

    async def meanwhile() -> None:
        cluster.locks.expire(sleeper.name)
        cluster.acquirer.tells_nothing = True
        await cluster.park(cluster.instance(), cluster.of("s1").payment_id)
        cluster.acquirer.tells_nothing = False
        payment_in(await cluster.settle(cluster.instance(), "cash", clerk=LI))

    sleeper.failpoints.at["charged" if charged else "submitted"] = meanwhile
    with pytest.raises(OutcomeUnknown) as refusal:
        await cluster.settle(sleeper, source=Source.CARD)
    assert refusal.value.reason == "STALE_FENCE"
    assert cluster.captured() == 1
    assert len(cluster.journals()) == 1
    assert cluster.of("s1").state is PaymentState.PARKED
    await cluster.recovered(by=cluster.instance())
    assert at_bank(cluster, cluster.of("s1")) is ChargeState.REFUNDED
    cluster.check()


@pytest.mark.parametrize("clerk", [LI, WANG])
async def test_cashier_and_an_accountant_may_park(cluster: InMemoryCluster, clerk: Principal) -> None:
    payment = await unheard(cluster, charged=False)
    answer = await cluster.park(cluster.instance(), payment.payment_id, clerk=clerk)
    assert payment_in(answer).state == pb.PAYMENT_STATE_PARKED


async def reversing(cluster: InMemoryCluster, *, charged: bool) -> Payment:
    """Li's unanswered card payment, which wang has begun to reverse while the acquirer is away."""
    payment = await unheard(cluster, charged=charged)
    cluster.acquirer.tells_nothing = True
    pending = payment_in(await cluster.reverse(cluster.instance(), payment.payment_id))
    assert pending.state == pb.PAYMENT_STATE_REVERSING
    return cluster.of("s1")


@pytest.mark.parametrize("charged", [False, True])
async def test_parking_an_unanswered_reversal_frees_the_order_and_refuses_both_requests(
    cluster: InMemoryCluster, charged: bool
) -> None:
    """The cashier is told to park it and takes cash; the reversal's request gets the same refusal, for good."""
    payment = await reversing(cluster, charged=charged)
    with pytest.raises(Aborted) as blocked:
        await cluster.settle(cluster.instance(), "cash")
    assert (blocked.value.reason, "park" in blocked.value.message.lower()) == ("ORDER_HALF_SETTLED", True)
    one = cluster.instance()
    answer = payment_in(await cluster.park(one, payment.payment_id, clerk=LI))
    assert (answer.state, answer.journal_id, one.failpoints.passed) == (pb.PAYMENT_STATE_PARKED, "", PARKING)
    refused = await cluster.reverse(cluster.instance(), payment.payment_id)
    refusal = refusal_in(refused.response.body)
    assert (refusal.reason, refusal.metadata["parked_by"], refused.replayed) == ("PAYMENT_PARKED", "li", True)
    assert cluster.stored("s1") == refused.response
    settled = payment_in(await cluster.settle(cluster.instance(), "cash"))
    cluster.acquirer.tells_nothing = False
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.REVERSED
    assert at_bank(cluster, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert [journal.draft.payment_id for journal in cluster.journals()] == [settled.payment_id]
    assert (await cluster.reverse(cluster.instance(), payment.payment_id)).response == refused.response
    cluster.check()


async def test_parking_a_reversal_asks_no_acquirer(cluster: InMemoryCluster) -> None:
    """Whatever it would say, the key is to be reversed: a slow acquirer takes nothing from the deadline."""
    payment = await reversing(cluster, charged=True)
    cluster.acquirer.tells_nothing = False
    one = cluster.instance()
    assert payment_in(await cluster.park(one, payment.payment_id)).state == pb.PAYMENT_STATE_PARKED
    asked = [one.process.calls[name] for name in ("charge", "query", "reverse_by_key")]
    assert asked == [0, 0, 0]
    await cluster.recovered(by=cluster.instance())
    cluster.check()


@pytest.mark.parametrize("known", [False, True])
async def test_reversal_whose_journal_stands_is_not_parked(cluster: InMemoryCluster, known: bool) -> None:
    """Known to have succeeded before, or found charged by the reversal: the books have both journals, and the order
    waits for the refund. The refusal changes nothing; the reversal ends when the acquirer answers.
    """
    if known:
        payment_id = (await by_card(cluster, cluster.instance())).payment_id
    else:
        payment_id = (await unheard(cluster, charged=True)).payment_id
    one = cluster.instance()
    one.process.fails("reverse_by_key", SILENCE)
    assert payment_in(await cluster.reverse(one, payment_id)).state == pb.PAYMENT_STATE_REVERSING
    before, order = cluster.of("s1"), cluster.order()
    refusal = refusal_in((await cluster.park(one, payment_id)).response.body)
    assert (refusal.reason, refusal.metadata["state"]) == ("ILLEGAL_STATE", "REVERSING")
    assert "the ledger has a journal of it; its order is free when the acquirer confirms the refund" in refusal.message
    after = cluster.of("s1")
    assert (after.state, after.version, after.parking) == (PaymentState.REVERSING, before.version, None)
    assert cluster.order() == order, "it is not told that it was paid"
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.REVERSED
    assert payment_in(await cluster.reverse(cluster.instance(), payment_id)).state == pb.PAYMENT_STATE_REVERSED
    assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
    cluster.check()


@pytest.mark.parametrize("charged", [False, True])
async def test_reversal_after_a_park_that_died_ends_without_a_journal(cluster: InMemoryCluster, charged: bool) -> None:
    """The ledger has voided the journal, and nothing was parked: what was charged is refunded, the order is free."""
    payment = await reversing(cluster, charged=charged)
    dying = cluster.instance()
    dying.process.fails("park", Unavailable("DATABASE_FULL", "no space"))
    with pytest.raises(OutcomeUnknown):
        await cluster.park(dying, payment.payment_id)
    cluster.acquirer.tells_nothing = False
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.REVERSED
    assert at_bank(cluster, payment) is (ChargeState.REFUNDED if charged else ChargeState.TOMBSTONE)
    assert (cluster.order().state, cluster.order().round, cluster.ledger.chain) == (OrderState.UNPAID, 1, [])
    own = refusal_in((await cluster.settle(cluster.instance(), source=Source.CARD)).response.body)
    assert (own.reason, "whatever was charged is given back" in own.message) == ("PAYMENT_REVERSED", True)
    assert payment_in(await cluster.reverse(cluster.instance(), payment.payment_id)).state == pb.PAYMENT_STATE_REVERSED
    cluster.check()


@pytest.mark.parametrize("number", range(1, 9))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_park_that_died_after_voiding_is_at_worst_a_charge_and_its_refund(
    cluster: InMemoryCluster, number: int, after: bool
) -> None:
    """The own request goes on first and dies at each of its calls; no charge is kept, and cash pays."""
    payment = await unheard(cluster, charged=False)
    cluster.acquirer.tells_nothing = True
    dying = cluster.instance()
    dying.process.fails("park", Unavailable("DATABASE_FULL", "no space"))
    with pytest.raises(OutcomeUnknown):
        await cluster.park(dying, payment.payment_id)
    cluster.acquirer.tells_nothing = False
    own = cluster.instance(dies_at=number, after=after)
    with suppress(Died, CountinghouseError):
        await cluster.settle(own, source=Source.CARD)
    cluster.lapse(own)
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.DECLINED
    assert (at_bank(cluster, payment), cluster.captured()) == (ChargeState.REFUNDED, 1)
    refusal = refusal_in((await cluster.settle(cluster.instance(), source=Source.CARD)).response.body)
    assert refusal.reason in ("POST_VOIDED", "CHARGE_REVERSED")
    settled = payment_in(await cluster.settle(cluster.instance(), "cash"))
    assert [journal.draft.payment_id for journal in cluster.journals()] == [settled.payment_id]
    cluster.check()


async def test_only_an_open_card_payment_of_an_order_can_be_parked(cluster: InMemoryCluster) -> None:
    """Not cash, not what has ended, not a direct payment: a definitive refusal."""
    one = cluster.instance()
    cash = payment_in(await cluster.settle(one, "cash"))
    refusal = refusal_in((await cluster.park(one, cash.payment_id, "k1")).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    await cluster.reverse(one, cash.payment_id)
    assert reason_in((await cluster.park(one, cash.payment_id, "k2")).response.body) == "ILLEGAL_STATE"
    one.process.fails("charge", SILENCE)
    direct = payment_in(await cluster.pay(one, await cluster.ticket(one), source=Source.CARD, payee=MERCHANT))
    assert reason_in((await cluster.park(one, direct.payment_id, "k3")).response.body) == "ILLEGAL_STATE"
    await cluster.recovered(by=cluster.instance())
    cluster.check()


async def test_parked_payment_is_neither_reversed_nor_parked_again(cluster: InMemoryCluster) -> None:
    payment = await parked(cluster)
    one = cluster.instance()
    assert reason_in((await cluster.reverse(one, payment.payment_id)).response.body) == "ILLEGAL_STATE"
    assert reason_in((await cluster.park(one, payment.payment_id, "k2")).response.body) == "ILLEGAL_STATE"
    await cluster.recovered(by=one)
    cluster.check()


async def test_parked_payment_is_listed_and_put_before_people_while_the_acquirer_is_away(
    cluster: InMemoryCluster,
) -> None:
    payment = await parked(cluster)
    worker = cluster.instance()
    worker.process.fails("reverse_by_key", SILENCE, times=MAX_ASKS)
    for _ in range(MAX_ASKS):
        cluster.clock.advance(60_000)
        with pytest.raises(Exception, match="no answer"):
            await worker.operations.recovery.recover()
    for which in (Filter(state=PaymentState.PARKED), Filter(needs_attention=True)):
        page = await worker.operations.page(cluster.call(WANG), which, limit=9, after=None)
        assert [found.payment_id for found in page] == [payment.payment_id]


async def test_notice_lets_the_reversal_of_a_parked_payment_be_tried_at_once(cluster: InMemoryCluster) -> None:
    payment = await parked(cluster)
    worker = cluster.instance()
    worker.process.fails("reverse_by_key", SILENCE)
    with pytest.raises(Exception, match="no answer"):
        await worker.operations.recovery.recover()
    assert await worker.operations.recovery.recover() == 0
    await worker.operations.notified(payment.acquirer_key)
    await worker.operations.recovery.recover()
    assert cluster.of("s1").state is PaymentState.REVERSED


async def test_many_parked_payments_delay_no_other_recovery_by_more_than_a_few_asks(cluster: InMemoryCluster) -> None:
    """An acquirer that is away is asked about a few of them in each look."""
    for number in range(20):
        order = await cluster.new_order(f"b{number}")
        one = cluster.instance()
        one.process.fails("charge", SILENCE)
        payment = payment_in(await cluster.settle(one, f"c{number}", order, source=Source.CARD))
        await cluster.park(one, payment.payment_id, f"k{number}")
    worker = cluster.instance()
    await worker.operations.recovery.recover()
    assert worker.process.calls["reverse_by_key"] <= 8
    await cluster.recovered(by=worker)
    assert all(charge.state is ChargeState.TOMBSTONE for charge in cluster.acquirer.charges.values())
    cluster.check()
