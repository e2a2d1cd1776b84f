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
from tests.unit.payment.cluster import (
    AMOUNT,
    CARD,
    LI,
    MAX_ASKS,
    MEI,
    MERCHANT,
    OWED_FOR_CARDS,
    WANG,
    InMemoryCluster,
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


async def by_card(cluster: InMemoryCluster, one: Instance, key: str = "s1", *, card: str = CARD) -> pb.Payment:
    """Li settles `o1` by card; the payment as li is told of it."""
    return payment_in(await cluster.settle(one, key, source=Source.CARD, card=card))


async def unheard(cluster: InMemoryCluster, *, charged: bool, key: str = "s1") -> Payment:
    """Li settles `o1` by card, and the acquirer does not answer, whether it has charged or not."""
    one = cluster.instance()
    one.process.fails("charge", SILENCE, after=charged)
    assert (await by_card(cluster, one, key)).state == pb.PAYMENT_STATE_UNKNOWN
    return cluster.of(key)


async def kept_silent(cluster: InMemoryCluster, *, charged: bool) -> Payment:
    """The same, until people have to look."""
    payment = await unheard(cluster, charged=charged)
    worker = cluster.instance()
    worker.process.fails("charge", SILENCE, times=99)
    while not payment.attention:
        cluster.clock.advance(60_000)
        await worker.operations.recovery.recover()
        payment = cluster.of("s1")
    return payment


def at_bank(cluster: InMemoryCluster, payment: Payment) -> ChargeState:
    return cluster.acquirer.charges[payment.acquirer_key].state


class TestSucceeded:
    """Nothing goes wrong."""

    async def test_order_is_settled_by_card(self, cluster: InMemoryCluster) -> None:
        """Charged once under its own key, owed by the acquirer in the books, PAID; every failpoint in its order."""
        one = cluster.instance()
        payment = await by_card(cluster, one)
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        assert (payment.card, payment.attempt, payment.acquirer_key) == (CARD, 1, f"{payment.payment_id}:1")
        charge = cluster.acquirer.charges[payment.acquirer_key]
        assert charge.payload == Payload(CARD, Money(AMOUNT, "CNY"), payment.payment_id)
        assert cluster.ledger.open[OWED_FOR_CARDS].balance == AMOUNT
        assert cluster.order().state is OrderState.PAID
        assert one.failpoints.passed == FAILPOINTS
        cluster.check()

    async def test_card_is_charged_after_its_key_is_committed_and_before_the_post(
        self, cluster: InMemoryCluster
    ) -> None:
        """Invariant 1 of the model, seen at `submitted`; and at `charged` the books know nothing of it yet."""
        one = cluster.instance()

        async def before() -> None:
            payment = cluster.of("s1")
            assert (payment.state, bool(payment.acquirer_key)) == (PaymentState.SUBMITTED, True)
            assert not cluster.acquirer.charges

        async def between() -> None:
            assert at_bank(cluster, cluster.of("s1")) is ChargeState.CHARGED
            assert not cluster.ledger.chain

        one.failpoints.at |= {"submitted": before, "charged": between}
        await by_card(cluster, one)
        assert not one.failpoints.at

    async def test_direct_payment_is_paid_by_card(self, cluster: InMemoryCluster) -> None:
        """A customer pays a merchant, with a ticket."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=MEI)
        payment = payment_in(await cluster.pay(one, ticket, clerk=MEI, source=Source.CARD))
        assert payment.payer_account_id == OWED_FOR_CARDS
        assert payment.acquirer_key == f"{payment.payment_id}:1"
        assert cluster.ledger.open[MERCHANT].balance == 1000 + AMOUNT
        cluster.check()

    async def test_customer_pays_by_card(self, cluster: InMemoryCluster) -> None:
        payment = payment_in(await cluster.settle(cluster.instance(), clerk=MEI, source=Source.CARD))
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        cluster.check()

    async def test_settle_by_another_customers_card_is_declined_before_the_acquirer_is_asked(
        self, cluster: InMemoryCluster
    ) -> None:
        """By whichever clerk; the order is free again, and the card still its owner's."""
        one = cluster.instance()
        await by_card(cluster, one)
        await cluster.new_order("of-tom", "tom")
        asked = len(cluster.acquirer.charges)
        answer = await cluster.settle(one, "s2", "of-tom", source=Source.CARD)
        assert reason_in(answer.response.body) == "CARD_NOT_YOURS"
        assert cluster.order("of-tom").state is OrderState.UNPAID
        assert len(cluster.acquirer.charges) == asked
        await cluster.recovered(by=one)
        payment_in(await cluster.settle(one, "s3", "of-tom", source=Source.CARD, card="tok-tom"))
        cluster.check()

    async def test_pay_with_another_customers_card_is_declined(self, cluster: InMemoryCluster) -> None:
        """Of a customer who has seen the token, and of a clerk who names somebody else."""
        one = cluster.instance()
        await by_card(cluster, one)
        tom = Principal("tom", Role.CUSTOMER)
        for principal in (tom, LI):
            ticket = await cluster.ticket(one, clerk=principal)
            payee = "sales:CNY" if principal is LI else MERCHANT
            answer = await cluster.pay(one, ticket, clerk=principal, source=Source.CARD, customer="tom", payee=payee)
            assert reason_in(answer.response.body) == "CARD_NOT_YOURS"
            assert cluster.of(ticket).state is PaymentState.DECLINED
        cluster.check()

    async def test_card_payment_without_an_acquirer_is_refused(self, cluster: InMemoryCluster) -> None:
        """Refused before anything is written down."""
        cluster.acquirer.present = False
        one = cluster.instance()
        with pytest.raises(FailedPrecondition) as refusal:
            await by_card(cluster, one)
        assert refusal.value.reason == "CARDS_NOT_TAKEN"
        assert not cluster.store.payments


class TestDeclined:
    """A definitive no."""

    async def test_declined_card_ends_the_payment_declined(self, cluster: InMemoryCluster) -> None:
        """DECLINED with the acquirer's reason, nothing in the books, the order free, and the answer replayed."""
        one = cluster.instance()
        answer = await cluster.settle(one, source=Source.CARD, card="tok-declined")
        refusal = refusal_in(answer.response.body)
        assert (type(refusal), refusal.reason) == (FailedPrecondition, "CARD_DECLINED")
        assert cluster.of("s1").state is PaymentState.DECLINED
        assert cluster.order().state is OrderState.UNPAID
        assert not cluster.ledger.chain
        assert (await cluster.settle(one, source=Source.CARD, card="tok-declined")).response == answer.response
        cluster.check()

    async def test_next_attempt_has_the_next_key(self, cluster: InMemoryCluster) -> None:
        """Only a definitive decline changes the key; another card may be good."""
        one = cluster.instance()
        for number in (1, 2):
            await cluster.settle(one, f"s{number}", source=Source.CARD, card="tok-short")
            assert cluster.of(f"s{number}").acquirer_key.endswith(f":{number}")
        payment = await by_card(cluster, one, "s3")
        assert (payment.attempt, payment.acquirer_key) == (3, f"{payment.payment_id}:3")
        assert cluster.captured() == 1
        cluster.check()

    async def test_charge_that_the_ledger_refuses_is_refunded(self, cluster: InMemoryCluster) -> None:
        """Charged, and it can never be in the books: refunded before it is DECLINED."""
        cluster.fund(OWED_FOR_CARDS, MAX_BALANCE)
        answer = await cluster.settle(cluster.instance(), source=Source.CARD)
        assert reason_in(answer.response.body) == "BALANCE_OUT_OF_RANGE"
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.REFUNDED
        assert cluster.order().state is OrderState.UNPAID
        cluster.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_unanswered_refund_keeps_the_payment_open(self, cluster: InMemoryCluster, after: bool) -> None:
        """It is not DECLINED until the money is back for certain."""
        cluster.fund(OWED_FOR_CARDS, MAX_BALANCE)
        one = cluster.instance()
        one.process.fails("reverse_by_key", SILENCE, after=after)
        assert (await by_card(cluster, one)).state == pb.PAYMENT_STATE_UNKNOWN
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.DECLINED
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.REFUNDED
        cluster.check()

    async def test_charge_reversed_at_the_acquirer_is_a_decline(self, cluster: InMemoryCluster) -> None:
        """Somebody reversed the key before it was charged: the late charge is refused for ever."""
        one = cluster.instance()

        async def meanwhile() -> None:
            key = cluster.of("s1").acquirer_key
            cluster.acquirer.charges[key] = Charge(key, ChargeState.TOMBSTONE, None, "", 1)

        one.failpoints.at["submitted"] = meanwhile
        answer = await cluster.settle(one, source=Source.CARD)
        assert reason_in(answer.response.body) == "CHARGE_REVERSED"
        cluster.check()


class TestNoAnswer:
    """Charged or not, nobody has told us."""

    @pytest.mark.parametrize("charged", [False, True])
    async def test_unanswered_charge_is_unknown_until_the_worker_asks(
        self, cluster: InMemoryCluster, charged: bool
    ) -> None:
        """OK with UNKNOWN, nothing stored; the worker asks under the same key, and it is charged once."""
        payment = await unheard(cluster, charged=charged)
        assert cluster.state("s1") is RequestState.IN_PROGRESS
        assert cluster.order().state is OrderState.PAYING
        assert not cluster.ledger.chain
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        assert list(cluster.acquirer.charges) == [payment.acquirer_key]
        assert cluster.captured() == 1
        assert (await cluster.settle(cluster.instance(), source=Source.CARD)).replayed
        cluster.check()

    async def test_unanswered_decline_ends_declined(self, cluster: InMemoryCluster) -> None:
        """It ends DECLINED, and the order is free again."""
        one = cluster.instance()
        one.process.fails("charge", SILENCE, after=True)
        assert (await by_card(cluster, one, card="tok-expired")).state == pb.PAYMENT_STATE_UNKNOWN
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").decline_reason == "CARD_EXPIRED"
        assert cluster.order().state is OrderState.UNPAID
        cluster.check()

    async def test_caller_may_ask_again_at_once(self, cluster: InMemoryCluster) -> None:
        """Under the same request id, whatever the worker's pause."""
        await unheard(cluster, charged=True)
        assert payment_in(await cluster.settle(cluster.instance(), source=Source.CARD)).state == (
            pb.PAYMENT_STATE_SUCCEEDED
        )
        assert cluster.captured() == 1
        cluster.check()

    async def test_next_clerk_finishes_an_unknown_payment_first(self, cluster: InMemoryCluster) -> None:
        """And is told that it is settled, by whom; their own card is not charged."""
        await unheard(cluster, charged=True)
        answer = await cluster.settle(cluster.instance(), "s2", clerk=WANG, source=Source.CARD, card="tok-wang")
        refusal = refusal_in(answer.response.body)
        assert (refusal.reason, refusal.metadata["clerk"]) == ("ORDER_ALREADY_PAID", "li")
        assert cluster.captured() == 1
        cluster.check()

    async def test_next_clerk_is_refused_while_the_outcome_is_unknown(self, cluster: InMemoryCluster) -> None:
        """ABORTED, nothing done; nobody charges the order a second time while its outcome is open."""
        await unheard(cluster, charged=False)
        two = cluster.instance()
        two.process.fails("query", SILENCE)
        with pytest.raises(Aborted) as refusal:
            await cluster.settle(two, "s2", clerk=WANG)
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        assert (two.process.calls["submit"], two.process.calls["charge"]) == (0, 0)
        assert cluster.of("s1").state is PaymentState.UNKNOWN

    async def test_pauses_of_the_worker_double(self, cluster: InMemoryCluster) -> None:
        """The worker asks after 0.5 s, 1 s, 2 s …, and not before; a closed bank is not hammered."""
        payment = await unheard(cluster, charged=False)
        worker = cluster.instance()
        worker.process.fails("charge", SILENCE, times=2)
        for asks, pause_ms in ((1, 500), (2, 1_000), (3, 2_000)):
            payment = cluster.of("s1")
            assert (payment.retry.asks, payment.retry.ask_at_ms) == (asks, cluster.clock.now_ms() + pause_ms)
            cluster.clock.advance(pause_ms - 1)
            assert await worker.operations.recovery.recover() == 0
            cluster.clock.advance(1)
            assert await worker.operations.recovery.recover() == 1
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_notice_ends_the_pause(self, cluster: InMemoryCluster) -> None:
        """The acquirer's notice lets the worker ask at once; late, repeated and foreign ones do nothing."""
        payment = await unheard(cluster, charged=True)
        worker = cluster.instance()
        assert await worker.operations.recovery.recover() == 0
        await worker.operations.notified("pay_nothing:1")
        assert await worker.operations.recovery.recover() == 0
        for _ in range(2):
            await worker.operations.notified(payment.acquirer_key)
        assert await worker.operations.recovery.recover() == 1
        ended = cluster.of("s1")
        assert ended.state is PaymentState.SUCCEEDED
        await worker.operations.notified(payment.acquirer_key)
        assert cluster.of("s1") == ended
        cluster.check()

    async def test_ten_clicks_during_an_outage_charge_once(self, cluster: InMemoryCluster) -> None:
        """The same request id at two instances, each of which finds the bank silent at first."""
        await unheard(cluster, charged=True)
        cluster.locks.patience_s = 5
        two = [cluster.instance(), cluster.instance()]
        for one in two:
            one.process.fails("charge", SILENCE, after=True)
        outcomes = await asyncio.gather(
            *(cluster.settle(two[n % 2], source=Source.CARD) for n in range(10)), return_exceptions=True
        )
        assert all(isinstance(outcome, Aborted) for outcome in outcomes if isinstance(outcome, BaseException))
        await cluster.recovered(by=cluster.instance())
        assert cluster.captured() == 1
        cluster.check()

    async def test_silent_ledger_after_the_charge_leaves_the_payment_unknown(self, cluster: InMemoryCluster) -> None:
        """UNKNOWN as for any source; asked again, both answer with what stands."""
        one = cluster.instance()
        one.process.fails("post", SILENCE, after=True)
        assert (await by_card(cluster, one)).state == pb.PAYMENT_STATE_UNKNOWN
        await cluster.recovered(by=cluster.instance())
        assert (cluster.captured(), len(cluster.journals())) == (1, 1)
        cluster.check()


class TestAttention:
    """Nobody answers for too long: people have to look, and the payment stays as it is."""

    async def test_unanswered_payment_needs_attention(self, cluster: InMemoryCluster) -> None:
        """After so many asks, still UNKNOWN, in the queue that can be listed; time alone ends nothing."""
        payment = await kept_silent(cluster, charged=False)
        assert (payment.state, payment.attention) == (PaymentState.UNKNOWN, "ACQUIRER_SILENT")
        assert payment.retry.asks == MAX_ASKS
        assert cluster.state("s1") is RequestState.IN_PROGRESS
        cluster.clock.advance(365 * 24 * 3600 * 1000)
        one = cluster.instance()
        await one.operations.recovery.recover()
        page = await one.operations.page(cluster.call(WANG), Filter(needs_attention=True), limit=9, after=None)
        assert [(found.payment_id, found.state) for found in page] == [(payment.payment_id, PaymentState.UNKNOWN)]

    async def test_callers_that_try_again_at_once_do_not_use_up_the_asks(self, cluster: InMemoryCluster) -> None:
        """Only a question after the pause counts, of another caller or of the same one; then the worker charges."""
        payment = await unheard(cluster, charged=False)
        for _ in range(MAX_ASKS):
            caller, other = cluster.instance(), cluster.instance()
            caller.process.fails("charge", SILENCE)
            other.process.fails("query", SILENCE)
            await by_card(cluster, caller)
            with pytest.raises(Aborted, match="UNKNOWN"):
                await cluster.settle(other, "s2", clerk=WANG)
            assert (caller.process.calls["charge"], other.process.calls["query"]) == (1, 1)
        assert cluster.of("s1").retry == payment.retry
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_worker_charges_no_more_by_itself(self, cluster: InMemoryCluster) -> None:
        """It asks what became of the key, less and less often, and a charge it finds ends the payment."""
        payment = await kept_silent(cluster, charged=False)
        worker = cluster.instance()
        for _ in range(5):
            cluster.clock.advance(60_000)
            assert await worker.operations.recovery.recover() == 1
        assert (worker.process.calls["query"], worker.process.calls["charge"]) == (5, 0)
        assert cluster.of("s1").attention == "ACQUIRER_SILENT"
        assert payment.amount is not None
        key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)
        cluster.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)
        cluster.clock.advance(60_000)
        await worker.operations.recovery.recover()
        assert (cluster.of("s1").state, cluster.of("s1").attention) == (PaymentState.SUCCEEDED, "")
        assert worker.process.calls["charge"] == 0
        cluster.check()

    async def test_caller_charges_after_attention(self, cluster: InMemoryCluster) -> None:
        """Under the same key: a person stands at the counter."""
        payment = await kept_silent(cluster, charged=True)
        assert (await by_card(cluster, cluster.instance())).state == pb.PAYMENT_STATE_SUCCEEDED
        assert list(cluster.acquirer.charges) == [payment.acquirer_key]
        cluster.check()

    async def test_key_with_another_payload_needs_attention(self, cluster: InMemoryCluster) -> None:
        """No answer about our charge, so neither a success nor a decline: people are told why."""
        one = cluster.instance()

        async def meanwhile() -> None:
            key = cluster.of("s1").acquirer_key
            payload = Payload(CARD, Money(AMOUNT + 1, "CNY"), "other")
            cluster.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)

        one.failpoints.at["submitted"] = meanwhile
        assert (await by_card(cluster, one)).state == pb.PAYMENT_STATE_UNKNOWN
        worker = cluster.instance()
        for _ in range(MAX_ASKS - 1):
            cluster.clock.advance(60_000)
            await worker.operations.recovery.recover()
        assert cluster.of("s1").attention == "IDEMPOTENCY_KEY_MISMATCH"
        assert not cluster.ledger.chain


class TestReverse:
    """Undoing a card payment."""

    async def test_reversal_undoes_journal_and_charge(self, cluster: InMemoryCluster) -> None:
        """An opposite journal, then the refund; the order opens its next round; every failpoint in its order."""
        settled = await by_card(cluster, cluster.instance())
        one = cluster.instance()

        async def between() -> None:
            assert len(cluster.ledger.chain) == 2
            assert at_bank(cluster, cluster.of("s1")) is ChargeState.CHARGED

        one.failpoints.at["posted"] = between
        undone = payment_in(await cluster.reverse(one, settled.payment_id))
        assert undone.state == pb.PAYMENT_STATE_REVERSED
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.REFUNDED
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        assert one.failpoints.passed == UNDOING
        assert not one.failpoints.at
        cluster.check()

    async def test_reversal_refused_by_the_ledger_is_not_refunded(self, cluster: InMemoryCluster) -> None:
        """What the acquirer owed has been paid out since: SUCCEEDED again, and the bank was not asked."""
        settled = await by_card(cluster, cluster.instance())
        cluster.fund(OWED_FOR_CARDS, 0)
        one = cluster.instance()
        answer = await cluster.reverse(one, settled.payment_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.CHARGED
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_unanswered_refund_is_retried_by_the_worker(self, cluster: InMemoryCluster, after: bool) -> None:
        """REVERSING until the bank has answered; the worker asks again, and it is refunded once."""
        settled = await by_card(cluster, cluster.instance())
        one = cluster.instance()
        one.process.fails("reverse_by_key", SILENCE, after=after)
        assert payment_in(await cluster.reverse(one, settled.payment_id)).state == pb.PAYMENT_STATE_REVERSING
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.REVERSED
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.REFUNDED
        assert len(cluster.ledger.chain) == 2
        cluster.check()

    async def test_unanswered_refund_needs_attention(self, cluster: InMemoryCluster) -> None:
        """Still REVERSING; and since giving back surprises nobody, the worker goes on trying."""
        settled = await by_card(cluster, cluster.instance())
        one = cluster.instance()
        one.process.fails("reverse_by_key", SILENCE, times=MAX_ASKS)
        await cluster.reverse(one, settled.payment_id)
        for _ in range(MAX_ASKS - 1):
            cluster.clock.advance(60_000)
            await one.operations.recovery.recover()
        assert cluster.of("s1").state is PaymentState.REVERSING
        assert cluster.of("s1").attention == "ACQUIRER_SILENT"
        cluster.clock.advance(60_000)
        await one.operations.recovery.recover()
        assert cluster.of("s1").state is PaymentState.REVERSED
        cluster.check()


class TestReverseUnknown:
    """Undoing a card payment of which nobody knows whether it was charged."""

    async def test_reversal_of_an_uncharged_payment_leaves_a_tombstone(self, cluster: InMemoryCluster) -> None:
        """A tombstone, no journal, the order free in the same round; who settled is told that it was reversed."""
        payment = await unheard(cluster, charged=False)
        undone = payment_in(await cluster.reverse(cluster.instance(), payment.payment_id))
        assert (undone.state, undone.journal_id) == (pb.PAYMENT_STATE_REVERSED, "")
        assert at_bank(cluster, payment) is ChargeState.TOMBSTONE
        assert not cluster.ledger.chain
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 1)
        answer = await cluster.settle(cluster.instance(), source=Source.CARD)
        assert (reason_in(answer.response.body), answer.replayed) == ("PAYMENT_REVERSED", True)
        cluster.check()
        again = await by_card(cluster, cluster.instance(), "s2")
        assert (again.state, again.round, again.attempt) == (pb.PAYMENT_STATE_SUCCEEDED, 1, 2)
        cluster.check()

    async def test_reversal_of_a_charged_payment_refunds_it(self, cluster: InMemoryCluster) -> None:
        """Refunded; the books have both journals, the order was paid and opens its next round."""
        payment = await unheard(cluster, charged=True)
        undone = payment_in(await cluster.reverse(cluster.instance(), payment.payment_id))
        assert undone.state == pb.PAYMENT_STATE_REVERSED
        assert (bool(undone.journal_id), bool(undone.reversal_journal_id)) == (True, True)
        assert at_bank(cluster, payment) is ChargeState.REFUNDED
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        told = payment_in(await cluster.settle(cluster.instance(), source=Source.CARD))
        assert told.state == pb.PAYMENT_STATE_REVERSED
        cluster.check()
        assert (await by_card(cluster, cluster.instance(), "s2")).round == 2
        cluster.check()

    async def test_reversal_of_a_payment_charged_meanwhile_refunds_it(self, cluster: InMemoryCluster) -> None:
        """The bank had not decided when it was asked, and had when it was told to reverse: all of it is undone."""
        payment = await unheard(cluster, charged=False)
        one = cluster.instance()
        assert payment.amount is not None
        key, payload = payment.acquirer_key, Payload(CARD, payment.amount, payment.payment_id)

        async def meanwhile(name: str) -> None:
            if name == "reverse_by_key":
                cluster.acquirer.charges[key] = Charge(key, ChargeState.CHARGED, payload, "", 1)

        one.process.gate = meanwhile
        assert payment_in(await cluster.reverse(one, payment.payment_id)).journal_id
        assert at_bank(cluster, payment) is ChargeState.REFUNDED
        cluster.check()

    async def test_late_charge_is_refused_by_the_tombstone(self, cluster: InMemoryCluster) -> None:
        """The old holder slept through it all, about to charge: it is refused, and its fence is stale."""
        sleeper = cluster.instance()

        async def meanwhile() -> None:
            cluster.locks.expire(sleeper.name)
            two = cluster.instance()
            two.process.fails("query", SILENCE)
            with pytest.raises(Aborted):  # the next clerk loses sight of it
                await cluster.settle(two, "s2", clerk=WANG)
            await cluster.reverse(two, cluster.of("s1").payment_id)

        sleeper.failpoints.at["submitted"] = meanwhile
        with pytest.raises(OutcomeUnknown) as stale:
            await cluster.settle(sleeper, source=Source.CARD)
        assert stale.value.reason == "STALE_FENCE"
        assert cluster.captured() == 0
        assert cluster.of("s1").state is PaymentState.REVERSED
        await cluster.recovered(by=cluster.instance())
        cluster.check()

    async def test_reversal_with_a_silent_acquirer_is_finished_by_the_worker(self, cluster: InMemoryCluster) -> None:
        """REVERSING is committed: the worker goes on, and nobody charges it any more."""
        payment = await unheard(cluster, charged=False)
        one = cluster.instance()
        one.process.fails("query", SILENCE)
        assert payment_in(await cluster.reverse(one, payment.payment_id)).state == pb.PAYMENT_STATE_REVERSING
        two = cluster.instance()
        await cluster.recovered(by=two)
        assert cluster.of("s1").state is PaymentState.REVERSED
        assert two.process.calls["charge"] == 0
        cluster.check()

    async def test_reversal_ends_the_attention(self, cluster: InMemoryCluster) -> None:
        """That is what people do with it; the worker then begins anew to ask."""
        payment = await kept_silent(cluster, charged=True)
        one = cluster.instance()
        one.process.fails("query", SILENCE)
        await cluster.reverse(one, payment.payment_id)
        assert (cluster.of("s1").attention, cluster.of("s1").retry.asks) == ("", 1)
        await cluster.recovered(by=one)
        assert cluster.of("s1").state is PaymentState.REVERSED
        cluster.check()

    async def test_reversal_of_a_charge_that_the_ledger_refuses_refunds_it(self, cluster: InMemoryCluster) -> None:
        """Charged, and it cannot be in the books: refunded, without a journal."""
        payment = await unheard(cluster, charged=True)
        del cluster.ledger.open[OWED_FOR_CARDS]
        undone = payment_in(await cluster.reverse(cluster.instance(), payment.payment_id))
        assert (undone.state, undone.journal_id) == (pb.PAYMENT_STATE_REVERSED, "")
        assert at_bank(cluster, payment) is ChargeState.REFUNDED
        cluster.check()

    async def test_reversal_refused_by_the_ledger_leaves_the_payment_succeeded(self, cluster: InMemoryCluster) -> None:
        """It was charged and posted, and its payee has spent it: it has succeeded, and the bank keeps it charged."""
        one = cluster.instance()
        one.process.fails("post", SILENCE, after=True)
        ticket = await cluster.ticket(one)
        payment = payment_in(await cluster.pay(one, ticket, source=Source.CARD))
        assert payment.state == pb.PAYMENT_STATE_UNKNOWN
        cluster.fund(MERCHANT, 0)
        answer = await cluster.reverse(one, payment.payment_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert cluster.of(ticket).state is PaymentState.SUCCEEDED
        assert payment_in(await cluster.pay(one, ticket, source=Source.CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
        assert cluster.captured() == 1
        cluster.check()

    async def test_unknown_payment_from_another_source_is_not_reversed(self, cluster: InMemoryCluster) -> None:
        """What the ledger has not said about cash is not undone: ILLEGAL_STATE."""
        one = cluster.instance()
        one.process.fails("post", SILENCE, after=True)
        payment = payment_in(await cluster.settle(one))
        answer = await cluster.reverse(one, payment.payment_id)
        assert reason_in(answer.response.body) == "ILLEGAL_STATE"
        await cluster.recovered(by=cluster.instance())
        cluster.check()

    async def test_second_accountant_is_refused(self, cluster: InMemoryCluster) -> None:
        """One undoes it, the other is told that there is nothing left to undo."""
        payment = await unheard(cluster, charged=True)
        cluster.locks.patience_s = 5
        answers = await asyncio.gather(
            *(cluster.reverse(cluster.instance(), payment.payment_id, f"v{n}") for n in range(2))
        )
        assert sorted(answer.response.ok for answer in answers) == [False, True]
        assert cluster.state("v0", REVERSE, WANG) is cluster.state("v1", REVERSE, WANG) is RequestState.DONE
        cluster.check()

    async def test_next_clerk_finishes_the_reversal_of_a_dead_process(self, cluster: InMemoryCluster) -> None:
        """Whoever finds the order half settled finishes the reversal first, and then settles the order."""
        payment = await unheard(cluster, charged=False)
        dying = cluster.instance()
        dying.process.fails("begin_reversal", Died(), after=True)
        with pytest.raises(Died):
            await cluster.reverse(dying, payment.payment_id)
        dying.process.dead = True
        cluster.locks.expire(dying.name)
        settled = payment_in(await cluster.settle(cluster.instance(), "s2", clerk=WANG))
        assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
        assert cluster.of("s1").state is PaymentState.REVERSED
        await cluster.recovered(by=cluster.instance())
        cluster.check()
