"""Cards: charged outside, by somebody who cannot see our locks and may keep silent about it."""

from __future__ import annotations

import asyncio

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import Charge, ChargeState, Payload
from services.kernel.errors import Aborted, FailedPrecondition, OutcomeUnknown
from services.kernel.idempotency import RequestState
from services.kernel.money import MAX_BALANCE, Money
from services.kernel.principal import Principal, Role
from services.order.model import OrderState
from services.payment.model import REVERSE, Payment, PaymentState, Source
from services.payment.ports import Filter
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import (
    AMOUNT,
    CARD,
    LI,
    MAX_ASKS,
    MEI,
    MERCHANT,
    OWED_FOR_CARDS,
    WANG,
    House,
    Instance,
    payment_in,
)
from tests.unit.payment.test_settle import reason_in, refusal_in

SILENCE = OutcomeUnknown("ACQUIRER_SILENT", "no answer")
FAILPOINTS = [
    *("accepted", "locked", "claimed", "submitted", "charged", "posted"),
    *("recorded", "completed", "released"),
]
UNDOING = ["accepted", "locked", "submitted", "posted", "refunded", "recorded", "completed", "released"]


async def by_card(house: House, one: Instance, key: str = "s1", *, card: str = CARD) -> pb.Payment:
    """Li settles `o1` by card; the payment as li is told of it."""
    return payment_in(await house.settle(one, key, source=Source.CARD, card=card))


async def unheard(house: House, *, charged: bool, key: str = "s1") -> Payment:
    """Li settles `o1` by card, and the acquirer does not answer, whether it has charged or not."""
    one = house.instance()
    one.process.fails("charge", SILENCE, after=charged)
    assert (await by_card(house, one, key)).state == pb.PAYMENT_STATE_UNKNOWN
    return house.of(key)


async def kept_silent(house: House, *, charged: bool) -> Payment:
    """The same, until people have to look."""
    payment = await unheard(house, charged=charged)
    worker = house.instance()
    worker.process.fails("charge", SILENCE, times=99)
    while not payment.attention:
        house.clock.advance(60_000)
        await worker.operations.recover()
        payment = house.of("s1")
    return payment


def at_bank(house: House, payment: Payment) -> ChargeState:
    return house.acquirer.charges[payment.acquirer_key].state


class TestWell:
    """Nothing goes wrong."""

    async def test_an_order_is_settled_by_card(self, house: House) -> None:
        """Charged once under its own key, owed by the acquirer in the books, PAID; every failpoint in its order."""
        one = house.instance()
        payment = await by_card(house, one)
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        assert (payment.card, payment.attempt, payment.acquirer_key) == (CARD, 1, f"{payment.payment_id}:1")
        charge = house.acquirer.charges[payment.acquirer_key]
        assert charge.payload == Payload(CARD, Money(AMOUNT, "CNY"), payment.payment_id)
        assert house.ledger.open[OWED_FOR_CARDS].balance == AMOUNT
        assert house.order().state is OrderState.PAID
        assert one.failpoints.passed == FAILPOINTS
        house.check()

    async def test_it_is_charged_after_the_key_is_committed_and_posted_after_it_is_charged(self, house: House) -> None:
        """Invariant 1 of the model, seen at `submitted`; and at `charged` the books know nothing of it yet."""
        one = house.instance()

        async def before() -> None:
            payment = house.of("s1")
            assert (payment.state, bool(payment.acquirer_key)) == (PaymentState.SUBMITTED, True)
            assert not house.acquirer.charges

        async def between() -> None:
            assert at_bank(house, house.of("s1")) is ChargeState.CHARGED
            assert not house.ledger.chain

        one.failpoints.at |= {"submitted": before, "charged": between}
        await by_card(house, one)
        assert not one.failpoints.at

    async def test_a_direct_payment(self, house: House) -> None:
        """A merchant is paid by card, with a ticket."""
        one = house.instance()
        payment = payment_in(await house.pay(one, await house.ticket(one), source=Source.CARD))
        assert payment.payer_account_id == OWED_FOR_CARDS
        assert payment.acquirer_key == f"{payment.payment_id}:1"
        assert house.ledger.open[MERCHANT].balance == 1000 + AMOUNT
        house.check()

    async def test_a_customer_pays_by_card(self, house: House) -> None:
        payment = payment_in(await house.settle(house.instance(), clerk=MEI, source=Source.CARD))
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        house.check()

    async def test_settle_by_another_customers_card_is_declined_before_the_acquirer_is_asked(
        self, house: House
    ) -> None:
        """By whichever clerk; the order is free again, and the card still its owner's."""
        one = house.instance()
        await by_card(house, one)
        await house.new_order("of-tom", "tom")
        asked = len(house.acquirer.charges)
        answer = await house.settle(one, "s2", "of-tom", source=Source.CARD)
        assert reason_in(answer.response.body) == "CARD_NOT_YOURS"
        assert house.order("of-tom").state is OrderState.UNPAID
        assert len(house.acquirer.charges) == asked
        await house.recovered(by=one)
        payment_in(await house.settle(one, "s3", "of-tom", source=Source.CARD, card="tok-tom"))
        house.check()

    async def test_pay_with_another_customers_card_is_declined(self, house: House) -> None:
        """Of a customer who has seen the token, and of a clerk who names somebody else."""
        one = house.instance()
        await by_card(house, one)
        tom = Principal("tom", Role.CUSTOMER)
        for principal in (tom, LI):
            ticket = await house.ticket(one, clerk=principal)
            answer = await house.pay(one, ticket, clerk=principal, source=Source.CARD, customer="tom")
            assert reason_in(answer.response.body) == "CARD_NOT_YOURS"
            assert house.of(ticket).state is PaymentState.DECLINED
        house.check()

    async def test_without_an_acquirer_no_cards_are_taken(self, house: House) -> None:
        """Refused before anything is written down."""
        house.acquirer.present = False
        one = house.instance()
        with pytest.raises(FailedPrecondition) as refusal:
            await by_card(house, one)
        assert refusal.value.reason == "CARDS_NOT_TAKEN"
        assert not house.store.payments


class TestDeclined:
    """A definitive no."""

    async def test_the_card_is_declined(self, house: House) -> None:
        """DECLINED with the acquirer's reason, nothing in the books, the order free, and the answer replayed."""
        one = house.instance()
        answer = await house.settle(one, source=Source.CARD, card="tok-declined")
        refusal = refusal_in(answer.response.body)
        assert (type(refusal), refusal.reason) == (FailedPrecondition, "CARD_DECLINED")
        assert house.of("s1").state is PaymentState.DECLINED
        assert house.order().state is OrderState.UNPAID
        assert not house.ledger.chain
        assert (await house.settle(one, source=Source.CARD, card="tok-declined")).response == answer.response
        house.check()

    async def test_the_next_attempt_has_the_next_key(self, house: House) -> None:
        """Only a definitive decline changes the key; another card may be good."""
        one = house.instance()
        for number in (1, 2):
            await house.settle(one, f"s{number}", source=Source.CARD, card="tok-short")
            assert house.of(f"s{number}").acquirer_key.endswith(f":{number}")
        payment = await by_card(house, one, "s3")
        assert (payment.attempt, payment.acquirer_key) == (3, f"{payment.payment_id}:3")
        assert house.captured() == 1
        house.check()

    async def test_what_the_ledger_refuses_is_given_back(self, house: House) -> None:
        """Charged, and it can never be in the books: refunded before it is DECLINED."""
        house.fund(OWED_FOR_CARDS, MAX_BALANCE)
        answer = await house.settle(house.instance(), source=Source.CARD)
        assert reason_in(answer.response.body) == "BALANCE_OUT_OF_RANGE"
        assert at_bank(house, house.of("s1")) is ChargeState.REFUNDED
        assert house.order().state is OrderState.UNPAID
        house.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_a_refund_that_is_not_heard_of(self, house: House, after: bool) -> None:
        """It is not DECLINED until the money is back for certain."""
        house.fund(OWED_FOR_CARDS, MAX_BALANCE)
        one = house.instance()
        one.process.fails("reverse_by_key", SILENCE, after=after)
        assert (await by_card(house, one)).state == pb.PAYMENT_STATE_UNKNOWN
        await house.recovered(by=house.instance())
        assert house.of("s1").state is PaymentState.DECLINED
        assert at_bank(house, house.of("s1")) is ChargeState.REFUNDED
        house.check()

    async def test_a_charge_reversed_at_the_bank_is_a_decline(self, house: House) -> None:
        """Somebody reversed the key before it was charged: the late charge is refused for ever."""
        one = house.instance()

        async def meanwhile() -> None:
            key = house.of("s1").acquirer_key
            house.acquirer.charges[key] = Charge(key, ChargeState.TOMBSTONE, None, "", 1)

        one.failpoints.at["submitted"] = meanwhile
        answer = await house.settle(one, source=Source.CARD)
        assert reason_in(answer.response.body) == "CHARGE_REVERSED"
        house.check()


class TestSilence:
    """Charged or not, nobody has told us."""

    @pytest.mark.parametrize("charged", [False, True])
    async def test_it_is_unknown_and_then_known(self, house: House, charged: bool) -> None:
        """OK with UNKNOWN, nothing stored; the worker asks under the same key, and it is charged once."""
        payment = await unheard(house, charged=charged)
        assert house.state("s1") is RequestState.IN_PROGRESS
        assert house.order().state is OrderState.PAYING
        assert not house.ledger.chain
        await house.recovered(by=house.instance())
        assert house.of("s1").state is PaymentState.SUCCEEDED
        assert list(house.acquirer.charges) == [payment.acquirer_key]
        assert house.captured() == 1
        assert (await house.settle(house.instance(), source=Source.CARD)).replayed
        house.check()

    async def test_silence_about_a_decline(self, house: House) -> None:
        """It ends DECLINED, and the order is free again."""
        one = house.instance()
        one.process.fails("charge", SILENCE, after=True)
        assert (await by_card(house, one, card="tok-expired")).state == pb.PAYMENT_STATE_UNKNOWN
        await house.recovered(by=house.instance())
        assert house.of("s1").decline_reason == "CARD_EXPIRED"
        assert house.order().state is OrderState.UNPAID
        house.check()

    async def test_the_caller_may_ask_again_at_once(self, house: House) -> None:
        """Under the same request id, whatever the worker's pause."""
        await unheard(house, charged=True)
        assert payment_in(await house.settle(house.instance(), source=Source.CARD)).state == (
            pb.PAYMENT_STATE_SUCCEEDED
        )
        assert house.captured() == 1
        house.check()

    async def test_the_next_clerk_finishes_it_first(self, house: House) -> None:
        """And is told that it is settled, by whom; their own card is not charged."""
        await unheard(house, charged=True)
        answer = await house.settle(house.instance(), "s2", clerk=WANG, source=Source.CARD, card="tok-wang")
        refusal = refusal_in(answer.response.body)
        assert (refusal.reason, refusal.metadata["clerk"]) == ("ORDER_ALREADY_PAID", "li")
        assert house.captured() == 1
        house.check()

    async def test_the_next_clerk_meets_silence_too(self, house: House) -> None:
        """ABORTED, nothing done; nobody charges the order a second time while its outcome is open."""
        await unheard(house, charged=False)
        two = house.instance()
        two.process.fails("query", SILENCE)
        with pytest.raises(Aborted) as refusal:
            await house.settle(two, "s2", clerk=WANG)
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        assert (two.process.calls["submit"], two.process.calls["charge"]) == (0, 0)
        assert house.of("s1").state is PaymentState.UNKNOWN

    async def test_pauses_double(self, house: House) -> None:
        """The worker asks after 0.5 s, 1 s, 2 s …, and not before; a closed bank is not hammered."""
        payment = await unheard(house, charged=False)
        worker = house.instance()
        worker.process.fails("charge", SILENCE, times=2)
        for asks, pause_ms in ((1, 500), (2, 1_000), (3, 2_000)):
            payment = house.of("s1")
            assert (payment.silence.asks, payment.silence.ask_at_ms) == (asks, house.clock.now_ms() + pause_ms)
            house.clock.advance(pause_ms - 1)
            assert await worker.operations.recover() == 0
            house.clock.advance(1)
            assert await worker.operations.recover() == 1
        assert house.of("s1").state is PaymentState.SUCCEEDED
        house.check()

    async def test_news_ends_the_pause(self, house: House) -> None:
        """The acquirer's notice lets the worker ask at once; late, repeated and foreign ones do nothing."""
        payment = await unheard(house, charged=True)
        worker = house.instance()
        assert await worker.operations.recover() == 0
        await worker.operations.notified("pay_nothing:1")
        assert await worker.operations.recover() == 0
        for _ in range(2):
            await worker.operations.notified(payment.acquirer_key)
        assert await worker.operations.recover() == 1
        ended = house.of("s1")
        assert ended.state is PaymentState.SUCCEEDED
        await worker.operations.notified(payment.acquirer_key)
        assert house.of("s1") == ended
        house.check()

    async def test_ten_clicks_during_the_silence_charge_once(self, house: House) -> None:
        """The same request id at two instances, each of which finds the bank silent at first."""
        await unheard(house, charged=True)
        house.locks.patience_s = 5
        two = [house.instance(), house.instance()]
        for one in two:
            one.process.fails("charge", SILENCE, after=True)
        outcomes = await asyncio.gather(
            *(house.settle(two[n % 2], source=Source.CARD) for n in range(10)), return_exceptions=True
        )
        assert all(isinstance(outcome, Aborted) for outcome in outcomes if isinstance(outcome, BaseException))
        await house.recovered(by=house.instance())
        assert house.captured() == 1
        house.check()

    async def test_the_ledger_is_silent_after_the_charge(self, house: House) -> None:
        """UNKNOWN as for any source; asked again, both answer with what stands."""
        one = house.instance()
        one.process.fails("post", SILENCE, after=True)
        assert (await by_card(house, one)).state == pb.PAYMENT_STATE_UNKNOWN
        await house.recovered(by=house.instance())
        assert (house.captured(), len(house.journals())) == (1, 1)
        house.check()


class TestAttention:
    """Nobody answers for too long: people have to look, and the payment stays as it is."""

    async def test_it_is_put_before_people(self, house: House) -> None:
        """After so many asks, still UNKNOWN, in the queue that can be listed; time alone ends nothing."""
        payment = await kept_silent(house, charged=False)
        assert (payment.state, payment.attention) == (PaymentState.UNKNOWN, "ACQUIRER_SILENT")
        assert payment.silence.asks == MAX_ASKS
        assert house.state("s1") is RequestState.IN_PROGRESS
        house.clock.advance(365 * 24 * 3600 * 1000)
        one = house.instance()
        await one.operations.recover()
        page = await one.operations.page(house.call(WANG), Filter(needs_attention=True), limit=9, after=None)
        assert [(found.payment_id, found.state) for found in page] == [(payment.payment_id, PaymentState.UNKNOWN)]

    async def test_the_worker_charges_no_more_by_itself(self, house: House) -> None:
        """It asks what became of the key, less and less often, and a charge it finds ends the payment."""
        payment = await kept_silent(house, charged=False)
        worker = house.instance()
        for _ in range(5):
            house.clock.advance(60_000)
            assert await worker.operations.recover() == 1
        assert (worker.process.calls["query"], worker.process.calls["charge"]) == (5, 0)
        assert house.of("s1").attention == "ACQUIRER_SILENT"
        assert payment.amount is not None
        key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)
        house.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)
        house.clock.advance(60_000)
        await worker.operations.recover()
        assert (house.of("s1").state, house.of("s1").attention) == (PaymentState.SUCCEEDED, "")
        assert worker.process.calls["charge"] == 0
        house.check()

    async def test_somebody_who_presses_settle_charges(self, house: House) -> None:
        """Under the same key: a person stands at the counter."""
        payment = await kept_silent(house, charged=True)
        assert (await by_card(house, house.instance())).state == pb.PAYMENT_STATE_SUCCEEDED
        assert list(house.acquirer.charges) == [payment.acquirer_key]
        house.check()

    async def test_a_key_that_stands_for_something_else(self, house: House) -> None:
        """No answer about our charge, so neither a success nor a decline: people are told why."""
        one = house.instance()

        async def meanwhile() -> None:
            key = house.of("s1").acquirer_key
            payload = Payload(CARD, Money(AMOUNT + 1, "CNY"), "other")
            house.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)

        one.failpoints.at["submitted"] = meanwhile
        assert (await by_card(house, one)).state == pb.PAYMENT_STATE_UNKNOWN
        worker = house.instance()
        for _ in range(MAX_ASKS - 1):
            house.clock.advance(60_000)
            await worker.operations.recover()
        assert house.of("s1").attention == "IDEMPOTENCY_KEY_MISMATCH"
        assert not house.ledger.chain


class TestReverse:
    """Undoing a card payment."""

    async def test_a_success_is_undone_in_the_books_and_at_the_bank(self, house: House) -> None:
        """An opposite journal, then the refund; the order opens its next round; every failpoint in its order."""
        settled = await by_card(house, house.instance())
        one = house.instance()

        async def between() -> None:
            assert len(house.ledger.chain) == 2
            assert at_bank(house, house.of("s1")) is ChargeState.CHARGED

        one.failpoints.at["posted"] = between
        undone = payment_in(await house.reverse(one, settled.payment_id))
        assert undone.state == pb.PAYMENT_STATE_REVERSED
        assert at_bank(house, house.of("s1")) is ChargeState.REFUNDED
        assert (house.order().state, house.order().round) == (OrderState.UNPAID, 2)
        assert one.failpoints.passed == UNDOING
        assert not one.failpoints.at
        house.check()

    async def test_what_the_ledger_will_not_undo_is_not_refunded(self, house: House) -> None:
        """What the acquirer owed has been paid out since: SUCCEEDED again, and the bank was not asked."""
        settled = await by_card(house, house.instance())
        house.fund(OWED_FOR_CARDS, 0)
        one = house.instance()
        answer = await house.reverse(one, settled.payment_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert at_bank(house, house.of("s1")) is ChargeState.CHARGED
        assert house.of("s1").state is PaymentState.SUCCEEDED
        house.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_a_refund_that_is_not_heard_of(self, house: House, after: bool) -> None:
        """REVERSING until the bank has answered; the worker asks again, and it is refunded once."""
        settled = await by_card(house, house.instance())
        one = house.instance()
        one.process.fails("reverse_by_key", SILENCE, after=after)
        assert payment_in(await house.reverse(one, settled.payment_id)).state == pb.PAYMENT_STATE_REVERSING
        await house.recovered(by=house.instance())
        assert house.of("s1").state is PaymentState.REVERSED
        assert at_bank(house, house.of("s1")) is ChargeState.REFUNDED
        assert len(house.ledger.chain) == 2
        house.check()

    async def test_silence_at_a_refund_is_put_before_people(self, house: House) -> None:
        """Still REVERSING; and since giving back surprises nobody, the worker goes on trying."""
        settled = await by_card(house, house.instance())
        one = house.instance()
        one.process.fails("reverse_by_key", SILENCE, times=MAX_ASKS)
        await house.reverse(one, settled.payment_id)
        for _ in range(MAX_ASKS - 1):
            house.clock.advance(60_000)
            await one.operations.recover()
        assert house.of("s1").state is PaymentState.REVERSING
        assert house.of("s1").attention == "ACQUIRER_SILENT"
        house.clock.advance(60_000)
        await one.operations.recover()
        assert house.of("s1").state is PaymentState.REVERSED
        house.check()


class TestReverseUnseen:
    """Undoing a card payment of which nobody knows whether it was charged."""

    async def test_never_charged(self, house: House) -> None:
        """A tombstone, no journal, the order free in the same round; who settled is told that it was reversed."""
        payment = await unheard(house, charged=False)
        undone = payment_in(await house.reverse(house.instance(), payment.payment_id))
        assert (undone.state, undone.journal_id) == (pb.PAYMENT_STATE_REVERSED, "")
        assert at_bank(house, payment) is ChargeState.TOMBSTONE
        assert not house.ledger.chain
        assert (house.order().state, house.order().round) == (OrderState.UNPAID, 1)
        answer = await house.settle(house.instance(), source=Source.CARD)
        assert (reason_in(answer.response.body), answer.replayed) == ("PAYMENT_REVERSED", True)
        house.check()
        again = await by_card(house, house.instance(), "s2")
        assert (again.state, again.round, again.attempt) == (pb.PAYMENT_STATE_SUCCEEDED, 1, 2)
        house.check()

    async def test_charged_after_all(self, house: House) -> None:
        """Refunded; the books have both journals, the order was paid and opens its next round."""
        payment = await unheard(house, charged=True)
        undone = payment_in(await house.reverse(house.instance(), payment.payment_id))
        assert undone.state == pb.PAYMENT_STATE_REVERSED
        assert (bool(undone.journal_id), bool(undone.reversal_journal_id)) == (True, True)
        assert at_bank(house, payment) is ChargeState.REFUNDED
        assert (house.order().state, house.order().round) == (OrderState.UNPAID, 2)
        told = payment_in(await house.settle(house.instance(), source=Source.CARD))
        assert told.state == pb.PAYMENT_STATE_REVERSED
        house.check()
        assert (await by_card(house, house.instance(), "s2")).round == 2
        house.check()

    async def test_charged_between_the_two_questions(self, house: House) -> None:
        """The bank had not decided when it was asked, and had when it was told to reverse: all of it is undone."""
        payment = await unheard(house, charged=False)
        one = house.instance()
        assert payment.amount is not None
        key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)

        async def meanwhile(name: str) -> None:
            if name == "reverse_by_key":
                house.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)

        one.process.gate = meanwhile
        assert payment_in(await house.reverse(one, payment.payment_id)).journal_id
        assert at_bank(house, payment) is ChargeState.REFUNDED
        house.check()

    async def test_a_late_charge_meets_the_tombstone(self, house: House) -> None:
        """The old holder slept through it all, about to charge: it is refused, and its fence is stale."""
        sleeper = house.instance()

        async def meanwhile() -> None:
            house.locks.expire(sleeper.name)
            two = house.instance()
            two.process.fails("query", SILENCE)
            with pytest.raises(Aborted):  # the next clerk loses sight of it
                await house.settle(two, "s2", clerk=WANG)
            await house.reverse(two, house.of("s1").payment_id)

        sleeper.failpoints.at["submitted"] = meanwhile
        with pytest.raises(Aborted) as stale:
            await house.settle(sleeper, source=Source.CARD)
        assert stale.value.reason == "STALE_FENCE"
        assert house.captured() == 0
        assert house.of("s1").state is PaymentState.REVERSED
        await house.recovered(by=house.instance())
        house.check()

    async def test_the_bank_is_still_silent(self, house: House) -> None:
        """REVERSING is committed: the worker goes on, and nobody charges it any more."""
        payment = await unheard(house, charged=False)
        one = house.instance()
        one.process.fails("query", SILENCE)
        assert payment_in(await house.reverse(one, payment.payment_id)).state == pb.PAYMENT_STATE_REVERSING
        two = house.instance()
        await house.recovered(by=two)
        assert house.of("s1").state is PaymentState.REVERSED
        assert two.process.calls["charge"] == 0
        house.check()

    async def test_out_of_the_queue_for_people(self, house: House) -> None:
        """That is what people do with it; the worker then begins anew to ask."""
        payment = await kept_silent(house, charged=True)
        one = house.instance()
        one.process.fails("query", SILENCE)
        await house.reverse(one, payment.payment_id)
        assert (house.of("s1").attention, house.of("s1").silence.asks) == ("", 1)
        await house.recovered(by=one)
        assert house.of("s1").state is PaymentState.REVERSED
        house.check()

    async def test_the_ledger_refuses_the_journal(self, house: House) -> None:
        """Charged, and it cannot be in the books: refunded, without a journal."""
        payment = await unheard(house, charged=True)
        del house.ledger.open[OWED_FOR_CARDS]
        undone = payment_in(await house.reverse(house.instance(), payment.payment_id))
        assert (undone.state, undone.journal_id) == (pb.PAYMENT_STATE_REVERSED, "")
        assert at_bank(house, payment) is ChargeState.REFUNDED
        house.check()

    async def test_the_ledger_refuses_to_undo_it(self, house: House) -> None:
        """It was charged and posted, and its payee has spent it: it has succeeded, and the bank keeps it charged."""
        one = house.instance()
        one.process.fails("post", SILENCE, after=True)
        ticket = await house.ticket(one)
        payment = payment_in(await house.pay(one, ticket, source=Source.CARD))
        assert payment.state == pb.PAYMENT_STATE_UNKNOWN
        house.fund(MERCHANT, 0)
        answer = await house.reverse(one, payment.payment_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert house.of(ticket).state is PaymentState.SUCCEEDED
        assert payment_in(await house.pay(one, ticket, source=Source.CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
        assert house.captured() == 1
        house.check()

    async def test_only_a_card_can_be_undone_unseen(self, house: House) -> None:
        """What the ledger has not said about cash is not undone: ILLEGAL_STATE."""
        one = house.instance()
        one.process.fails("post", SILENCE, after=True)
        payment = payment_in(await house.settle(one))
        answer = await house.reverse(one, payment.payment_id)
        assert reason_in(answer.response.body) == "ILLEGAL_STATE"
        await house.recovered(by=house.instance())
        house.check()

    async def test_two_accountants(self, house: House) -> None:
        """One undoes it, the other is told that there is nothing left to undo."""
        payment = await unheard(house, charged=True)
        house.locks.patience_s = 5
        answers = await asyncio.gather(
            *(house.reverse(house.instance(), payment.payment_id, f"v{n}") for n in range(2))
        )
        assert sorted(answer.response.ok for answer in answers) == [False, True]
        assert house.state("v0", REVERSE, WANG) is house.state("v1", REVERSE, WANG) is RequestState.DONE
        house.check()

    async def test_the_reverser_dies_and_a_clerk_comes(self, house: House) -> None:
        """Whoever finds the order half settled finishes the reversal first, and then settles the order."""
        payment = await unheard(house, charged=False)
        dying = house.instance()
        dying.process.fails("begin_reversal", Died(), after=True)
        with pytest.raises(Died):
            await house.reverse(dying, payment.payment_id)
        dying.process.dead = True
        house.locks.expire(dying.name)
        settled = payment_in(await house.settle(house.instance(), "s2", clerk=WANG))
        assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
        assert house.of("s1").state is PaymentState.REVERSED
        await house.recovered(by=house.instance())
        house.check()
