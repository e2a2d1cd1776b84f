"""Whoever finishes a card payment of somebody else's request asks what became of its key, and causes no charge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import Charge, ChargeState, Payload
from services.kernel.errors import Aborted, FailedPrecondition, OutcomeUnknown
from services.kernel.idempotency import RequestState
from services.ledger.model import Account, AccountKind, Closing
from services.order.model import OrderState
from services.payment.model import Payment, PaymentState, Source
from services.payment.ports import ChargeStatus
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import CARD, WANG, InMemoryCluster, payment_in
from tests.unit.payment.test_card import SILENCE, at_bank, by_card, kept_silent, unheard
from tests.unit.payment.test_settle import reason_in, refusal_in


def decided(cluster: InMemoryCluster, payment: Payment, state: ChargeState) -> None:
    """The acquirer has decided on the payment's key."""
    assert payment.amount is not None
    payload = None if state is ChargeState.TOMBSTONE else Payload(CARD, payment.amount, payment.payment_id)
    reason = "CARD_DECLINED" if state is ChargeState.DECLINED else ""
    cluster.acquirer.charges[payment.acquirer_key] = Charge(payment.acquirer_key, state, payload, reason, 1)


@pytest.mark.parametrize("attention", [False, True])
async def test_cash_for_an_order_with_an_unanswered_card_charges_no_card(
    cluster: InMemoryCluster, attention: bool
) -> None:
    """The cashier is told which payment is in the way, and since when; the acquirer was only asked."""
    left = kept_silent if attention else unheard
    payment = await left(cluster, charged=False)
    two = cluster.instance()
    with pytest.raises(Aborted) as refusal:
        await cluster.settle(two, "cash")
    assert refusal.value.reason == "ORDER_HALF_SETTLED"
    assert refusal.value.retry_after_ms
    assert refusal.value.metadata == {
        "order_id": "o1",
        "payment_id": payment.payment_id,
        "source": "CARD",
        "clerk": "li",
        "role": "cashier",
        "state": "UNKNOWN",
        "since_ms": str(payment.updated_at_ms),
    }
    assert (two.process.calls["charge"], two.process.calls["query"]) == (0, 1)
    assert not cluster.acquirer.charges
    assert cluster.state("cash") is RequestState.ISSUED
    assert cluster.of("s1").state is PaymentState.UNKNOWN


async def test_cash_for_an_order_whose_card_was_charged_completes_the_card_payment(cluster: InMemoryCluster) -> None:
    """The customer has paid by card already: the cashier is told so, with the source."""
    await kept_silent(cluster, charged=True)
    two = cluster.instance()
    refusal = refusal_in((await cluster.settle(two, "cash")).response.body)
    assert (refusal.reason, refusal.metadata["source"]) == ("ORDER_ALREADY_PAID", "CARD")
    assert two.process.calls["charge"] == 0
    assert cluster.captured() == 1
    cluster.check()


@pytest.mark.parametrize("state", [ChargeState.DECLINED, ChargeState.TOMBSTONE, ChargeState.REFUNDED])
async def test_cash_for_an_order_whose_card_was_not_charged_settles_it(
    cluster: InMemoryCluster, state: ChargeState
) -> None:
    """The card payment is declined on the acquirer's word, and the drawer pays."""
    payment = await unheard(cluster, charged=False)
    decided(cluster, payment, state)
    two = cluster.instance()
    settled = payment_in(await cluster.settle(two, "cash"))
    assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
    assert cluster.of("s1").state is PaymentState.DECLINED
    assert two.process.calls["charge"] == 0
    cluster.check()


async def test_adopting_a_submitted_card_payment_charges_no_card(cluster: InMemoryCluster) -> None:
    """Its process died before it charged; nobody but its own request may."""
    dying = cluster.instance()
    dying.process.fails("submit", Died(), after=True)
    with pytest.raises(Died):
        await by_card(cluster, dying)
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    two = cluster.instance()
    with pytest.raises(Aborted) as refusal:
        await cluster.settle(two, "cash", clerk=WANG)
    assert refusal.value.metadata["state"] == "SUBMITTED"
    assert not cluster.acquirer.charges
    await cluster.recovered(by=cluster.instance())
    assert cluster.of("s1").state is PaymentState.SUCCEEDED, "the worker goes on with the request that wants the card"
    cluster.check()


async def test_adopting_a_claimed_card_payment_charges_no_card(cluster: InMemoryCluster) -> None:
    """It died before anything was sent: to finish it would be to charge it."""
    dying = cluster.instance()
    dying.process.fails("claim", Died(), after=True)
    with pytest.raises(Died):
        await by_card(cluster, dying)
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    two = cluster.instance()
    with pytest.raises(Aborted) as refusal:
        await cluster.settle(two, "cash", clerk=WANG)
    assert (refusal.value.reason, refusal.value.metadata["state"]) == ("ORDER_HALF_SETTLED", "CREATED")
    assert two.process.calls["submit"] == 0
    assert not cluster.acquirer.charges
    await cluster.recovered(by=cluster.instance())
    cluster.check()


async def test_card_settle_of_another_request_does_not_charge_the_first_card(cluster: InMemoryCluster) -> None:
    """Also one that wants a card: the one it wants is another payment's."""
    await kept_silent(cluster, charged=False)
    two = cluster.instance()
    with pytest.raises(Aborted):
        await cluster.settle(two, "s2", clerk=WANG, source=Source.CARD, card="tok-wang")
    assert two.process.calls["charge"] == 0
    assert not cluster.acquirer.charges


async def test_own_caller_charges_after_attention(cluster: InMemoryCluster) -> None:
    """The same request again wants the card, and its caller waits for it."""
    payment = await kept_silent(cluster, charged=False)
    assert (await by_card(cluster, cluster.instance())).state == pb.PAYMENT_STATE_SUCCEEDED
    assert list(cluster.acquirer.charges) == [payment.acquirer_key]
    cluster.check()


class TestConflictingPayment:
    """The order service knows nothing of the payment that is active: it was restored from a backup."""

    async def test_unanswered_payment_of_another_request_is_not_charged(self, cluster: InMemoryCluster) -> None:
        await unheard(cluster, charged=False)
        cluster.forget_order()
        two = cluster.instance()
        with pytest.raises(OutcomeUnknown) as refusal:
            await cluster.settle(two, "cash")
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        assert two.process.calls["charge"] == 0
        assert not cluster.acquirer.charges

    async def test_declined_payment_of_another_request_leaves_the_order_to_be_settled(
        self, cluster: InMemoryCluster
    ) -> None:
        """Nobody is told that a declined payment has settled the order."""
        payment = await unheard(cluster, charged=False)
        decided(cluster, payment, ChargeState.DECLINED)
        cluster.forget_order()
        settled = payment_in(await cluster.settle(cluster.instance(), "cash"))
        assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
        assert cluster.of("s1").state is PaymentState.DECLINED
        assert cluster.order().state is OrderState.PAID

    async def test_already_paid_by_another_payment_names_its_source(self, cluster: InMemoryCluster) -> None:
        settled = await by_card(cluster, cluster.instance())
        cluster.forget_order()
        refusal = refusal_in((await cluster.settle(cluster.instance(), "cash")).response.body)
        assert (refusal.metadata["payment_id"], refusal.metadata["source"]) == (settled.payment_id, "CARD")


async def test_already_paid_found_by_the_ledger_names_source_clerk_and_time(cluster: InMemoryCluster) -> None:
    """The ledger knows the payment only; what it was is looked up here."""
    settled = payment_in(await cluster.settle(cluster.instance(), clerk=WANG))
    cluster.forget_settled()
    refusal = refusal_in((await cluster.settle(cluster.instance(), "s2")).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    told = {name: refusal.metadata[name] for name in ("payment_id", "source", "clerk", "role")}
    assert told == {"payment_id": settled.payment_id, "source": "BANK", "clerk": "wang", "role": "accountant"}


async def test_already_paid_by_an_unknown_payment_uses_the_order_services_answer(
    cluster: InMemoryCluster,
) -> None:
    """This database is older than the order's."""
    settled = payment_in(await cluster.settle(cluster.instance()))
    del cluster.store.payments[settled.payment_id]
    refusal = refusal_in((await cluster.settle(cluster.instance(), "s2", clerk=WANG)).response.body)
    assert (refusal.metadata["payment_id"], refusal.metadata["clerk"]) == (settled.payment_id, "li")
    assert refusal.metadata["source"] == ""


class TestAccountsFirst:
    """The accounts of the journal are known to be good before a card is charged."""

    @pytest.mark.parametrize("missing", ["acquirer:CNY", "sales:CNY"])
    async def test_currency_without_house_accounts_charges_no_card(
        self, cluster: InMemoryCluster, missing: str
    ) -> None:
        """Definitively refused from CREATED, the acquirer was not asked, and the order is free."""
        del cluster.ledger.open[missing]
        one = cluster.instance()
        answer = await cluster.settle(one, source=Source.CARD)
        refusal = refusal_in(answer.response.body)
        assert (type(refusal), refusal.reason) == (FailedPrecondition, "ACCOUNT_NOT_FOUND")
        assert refusal.metadata["account_id"] == missing
        assert one.process.calls["submit"] == one.process.calls["charge"] == 0
        assert not cluster.acquirer.charges
        assert cluster.order().state is OrderState.UNPAID
        again = await cluster.settle(one, source=Source.CARD)
        assert (again.response, again.replayed) == (answer.response, True)
        cluster.check()

    @pytest.mark.parametrize(
        ("payee", "reason"), [("wallet:mistyped:CNY", "ACCOUNT_NOT_FOUND"), ("wallet:yen:JPY", "CURRENCY_MISMATCH")]
    )
    async def test_payee_that_cannot_be_credited_charges_no_card(
        self, cluster: InMemoryCluster, payee: str, reason: str
    ) -> None:
        cluster.ledger.open["wallet:yen:JPY"] = Account("wallet:yen:JPY", AccountKind.LIABILITY, "JPY")
        one = cluster.instance()
        answer = await cluster.pay(one, await cluster.ticket(one), source=Source.CARD, payee=payee)
        assert reason_in(answer.response.body) == reason
        assert one.process.calls["submit"] == 0
        assert not cluster.acquirer.charges
        cluster.check()

    async def test_other_sources_leave_the_accounts_to_the_ledger(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        payment_in(await cluster.settle(one))
        assert one.process.calls["account"] == 0

    async def test_house_accounts_are_asked_for_once(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        for number in range(3):
            await cluster.settle(one, f"s{number}", await cluster.new_order(f"b{number}"), source=Source.CARD)
        assert one.process.calls["account"] == 2
        cluster.check()

    async def test_house_account_that_was_closed_charges_no_card(self, cluster: InMemoryCluster) -> None:
        """Its currency was taken out of the settings; this instance has asked about the account before."""
        one = cluster.instance()
        await by_card(cluster, one)
        standing = cluster.ledger.open["sales:CNY"]
        cluster.ledger.open["sales:CNY"] = replace(standing, closing=Closing(WANG, "not used any more", 1))
        cluster.clock.advance(10_000)
        charged = len(cluster.acquirer.charges)
        answer = await cluster.settle(one, "s2", await cluster.new_order("b2"), source=Source.CARD)
        assert reason_in(answer.response.body) == "ACCOUNT_CLOSED"
        assert len(cluster.acquirer.charges) == charged

    async def test_ledger_that_does_not_answer_leaves_the_card_uncharged(self, cluster: InMemoryCluster) -> None:
        """Nothing is charged on a guess; the worker goes on when the ledger answers."""
        one = cluster.instance()
        one.process.fails("account", SILENCE)
        assert (await by_card(cluster, one)).state == pb.PAYMENT_STATE_CREATED
        assert not cluster.acquirer.charges
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_direct_payment_is_given_back_while_the_ledger_does_not_answer(
        self, cluster: InMemoryCluster
    ) -> None:
        one = cluster.instance()
        ticket = await cluster.ticket(one)
        one.process.fails("account", SILENCE)
        with pytest.raises(Exception, match="did not answer about"):
            await cluster.pay(one, ticket, source=Source.CARD)
        assert payment_in(await cluster.pay(one, ticket, source=Source.CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
        cluster.check()


class TestWholeAnswer:
    """An answer that contradicts what was asked is no answer."""

    @staticmethod
    def contradict(cluster: InMemoryCluster, change: str) -> None:
        """The acquirer tells of something else than its charge, whatever it is asked."""
        says = cluster.acquirer.says

        def other(charge: Charge) -> ChargeStatus:
            said = says(charge)
            if change == "key":
                return replace(said, key="another:1")
            terms = said.terms
            if terms is None:
                return said
            wrong = {
                "amount": replace(terms, minor_units=100),
                "currency": replace(terms, currency="JPY"),
                "reference": replace(terms, reference="pay_other"),
            }
            return replace(said, terms=wrong[change])

        cluster.acquirer.says = other

    @pytest.mark.parametrize("change", ["amount", "currency", "key", "reference"])
    async def test_charge_of_something_else_is_no_success(self, cluster: InMemoryCluster, change: str) -> None:
        """UNKNOWN, before people at once, nothing posted; the order stays claimed."""
        self.contradict(cluster, change)
        assert (await by_card(cluster, cluster.instance())).state == pb.PAYMENT_STATE_UNKNOWN
        payment = cluster.of("s1")
        assert (payment.state, payment.attention) == (PaymentState.UNKNOWN, "ACQUIRER_MISMATCH")
        assert not cluster.ledger.chain
        assert cluster.order().state is OrderState.PAYING

    @pytest.mark.parametrize("change", ["amount", "currency", "key", "reference"])
    async def test_worker_and_next_clerk_ignore_a_contradicting_answer(
        self, cluster: InMemoryCluster, change: str
    ) -> None:
        """Neither charges, posts or declines on that word; once the acquirer tells the truth, it is a success."""
        says = cluster.acquirer.says
        self.contradict(cluster, change)
        await by_card(cluster, cluster.instance())
        cluster.lapse()
        two = cluster.instance()
        with pytest.raises(Aborted) as refusal:
            await cluster.settle(two, "cash")
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        cluster.clock.advance(60_000)
        await two.operations.recovery.recover()
        assert two.process.calls["charge"] == 0
        assert (cluster.of("s1").state, cluster.of("s1").attention) == (PaymentState.UNKNOWN, "ACQUIRER_MISMATCH")
        assert not cluster.ledger.chain
        cluster.acquirer.says = says
        await cluster.recovered(by=two)
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_attention_for_a_contradiction_stays_after_a_timeout(self, cluster: InMemoryCluster) -> None:
        self.contradict(cluster, "amount")
        await by_card(cluster, cluster.instance())
        two = cluster.instance()
        two.process.fails("query", SILENCE)
        cluster.clock.advance(60_000)
        await two.operations.recovery.recover()
        assert cluster.of("s1").attention == "ACQUIRER_MISMATCH"
        assert two.process.calls["charge"] == 0

    async def test_refund_of_something_else_ends_no_reversal(self, cluster: InMemoryCluster) -> None:
        settled = await by_card(cluster, cluster.instance())
        says = cluster.acquirer.says
        self.contradict(cluster, "amount")
        answer = payment_in(await cluster.reverse(cluster.instance(), settled.payment_id))
        assert answer.state == pb.PAYMENT_STATE_REVERSING
        assert cluster.of("s1").attention == "ACQUIRER_MISMATCH"
        cluster.acquirer.says = says
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.REVERSED
        cluster.check()

    async def test_reversal_answered_with_a_standing_charge_ends_nothing(self, cluster: InMemoryCluster) -> None:
        """CHARGED is no answer to ReverseByKey: the money is still there."""
        settled = await by_card(cluster, cluster.instance())
        one = cluster.instance()

        async def standing(name: str) -> None:
            if name == "reverse_by_key":
                cluster.acquirer.refuses_to_reverse = True

        one.process.gate = standing
        answer = payment_in(await cluster.reverse(one, settled.payment_id))
        assert answer.state == pb.PAYMENT_STATE_REVERSING
        assert cluster.of("s1").attention == "ACQUIRER_MISMATCH"
        assert at_bank(cluster, cluster.of("s1")) is ChargeState.CHARGED

    async def test_charge_answered_with_unseen_is_not_declined(self, cluster: InMemoryCluster) -> None:
        """That a key is not known is no answer to the order to charge it."""
        cluster.acquirer.knows_nothing = True
        assert (await by_card(cluster, cluster.instance())).state == pb.PAYMENT_STATE_UNKNOWN
        assert cluster.of("s1").attention == "ACQUIRER_MISMATCH"
