"""Whoever finishes a card payment of somebody else's request asks what became of its key, and causes no charge."""

from __future__ import annotations

from dataclasses import replace

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.acquirer.model import Charge, ChargeState, Payload
from services.kernel.errors import Aborted, FailedPrecondition
from services.kernel.idempotency import RequestState
from services.ledger.model import Account, AccountKind
from services.order.model import OrderState
from services.payment.model import AcquirerSays, Payment, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import CARD, WANG, House, payment_in
from tests.unit.payment.test_card import SILENCE, at_bank, by_card, kept_silent, unheard
from tests.unit.payment.test_settle import reason_in, refusal_in


def decided(house: House, payment: Payment, state: ChargeState) -> None:
    """The acquirer has decided on the payment's key."""
    assert payment.amount is not None
    payload = None if state is ChargeState.TOMBSTONE else Payload(CARD, payment.amount, payment.payment_id)
    reason = "CARD_DECLINED" if state is ChargeState.DECLINED else ""
    house.acquirer.charges[payment.acquirer_key] = Charge(payment.acquirer_key, state, payload, reason, 1)


@pytest.mark.parametrize("attention", [False, True])
async def test_cash_for_an_order_with_an_unanswered_card_charges_no_card(house: House, attention: bool) -> None:
    """The cashier is told which payment is in the way, and since when; the acquirer was only asked."""
    left = kept_silent if attention else unheard
    payment = await left(house, charged=False)
    two = house.instance()
    with pytest.raises(Aborted) as refusal:
        await house.settle(two, "cash")
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
    assert not house.acquirer.charges
    assert house.state("cash") is RequestState.ISSUED
    assert house.of("s1").state is PaymentState.UNKNOWN


async def test_cash_for_an_order_whose_card_was_charged_completes_the_card_payment(house: House) -> None:
    """The customer has paid by card already: the cashier is told so, with the source."""
    await kept_silent(house, charged=True)
    two = house.instance()
    refusal = refusal_in((await house.settle(two, "cash")).response.body)
    assert (refusal.reason, refusal.metadata["source"]) == ("ORDER_ALREADY_PAID", "CARD")
    assert two.process.calls["charge"] == 0
    assert house.captured() == 1
    house.check()


@pytest.mark.parametrize("state", [ChargeState.DECLINED, ChargeState.TOMBSTONE, ChargeState.REFUNDED])
async def test_cash_for_an_order_whose_card_was_not_charged_settles_it(house: House, state: ChargeState) -> None:
    """The card payment is declined on the acquirer's word, and the drawer pays."""
    payment = await unheard(house, charged=False)
    decided(house, payment, state)
    two = house.instance()
    settled = payment_in(await house.settle(two, "cash"))
    assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
    assert house.of("s1").state is PaymentState.DECLINED
    assert two.process.calls["charge"] == 0
    house.check()


async def test_adopting_a_submitted_card_payment_charges_no_card(house: House) -> None:
    """Its process died before it charged; nobody but its own request may."""
    dying = house.instance()
    dying.process.fails("submit", Died(), after=True)
    with pytest.raises(Died):
        await by_card(house, dying)
    dying.process.dead = True
    house.locks.expire(dying.name)
    two = house.instance()
    with pytest.raises(Aborted) as refusal:
        await house.settle(two, "cash", clerk=WANG)
    assert refusal.value.metadata["state"] == "SUBMITTED"
    assert not house.acquirer.charges
    await house.recovered(by=house.instance())
    assert house.of("s1").state is PaymentState.SUCCEEDED, "the worker goes on with the request that wants the card"
    house.check()


async def test_adopting_a_claimed_card_payment_charges_no_card(house: House) -> None:
    """It died before anything was sent: to finish it would be to charge it."""
    dying = house.instance()
    dying.process.fails("claim", Died(), after=True)
    with pytest.raises(Died):
        await by_card(house, dying)
    dying.process.dead = True
    house.locks.expire(dying.name)
    two = house.instance()
    with pytest.raises(Aborted) as refusal:
        await house.settle(two, "cash", clerk=WANG)
    assert (refusal.value.reason, refusal.value.metadata["state"]) == ("ORDER_HALF_SETTLED", "CREATED")
    assert two.process.calls["submit"] == 0
    assert not house.acquirer.charges
    await house.recovered(by=house.instance())
    house.check()


async def test_a_card_settle_of_another_request_does_not_charge_the_first_card(house: House) -> None:
    """Also one that wants a card: the one it wants is another payment's."""
    await kept_silent(house, charged=False)
    two = house.instance()
    with pytest.raises(Aborted):
        await house.settle(two, "s2", clerk=WANG, source=Source.CARD, card="tok-wang")
    assert two.process.calls["charge"] == 0
    assert not house.acquirer.charges


async def test_the_own_caller_charges_after_attention(house: House) -> None:
    """The same request again wants the card, and its caller waits for it."""
    payment = await kept_silent(house, charged=False)
    assert (await by_card(house, house.instance())).state == pb.PAYMENT_STATE_SUCCEEDED
    assert list(house.acquirer.charges) == [payment.acquirer_key]
    house.check()


class TestRival:
    """The order service knows nothing of the payment that is active: it was restored from a backup."""

    async def test_an_unanswered_rival_is_not_charged(self, house: House) -> None:
        await unheard(house, charged=False)
        house.forget_order()
        two = house.instance()
        with pytest.raises(Aborted) as refusal:
            await house.settle(two, "cash")
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        assert two.process.calls["charge"] == 0
        assert not house.acquirer.charges

    async def test_a_rival_that_ends_declined_leaves_the_order_to_be_settled(self, house: House) -> None:
        """Nobody is told that a declined payment has settled the order."""
        payment = await unheard(house, charged=False)
        decided(house, payment, ChargeState.DECLINED)
        house.forget_order()
        settled = payment_in(await house.settle(house.instance(), "cash"))
        assert settled.state == pb.PAYMENT_STATE_SUCCEEDED
        assert house.of("s1").state is PaymentState.DECLINED
        assert house.order().state is OrderState.PAID

    async def test_already_paid_by_a_rival_names_its_source(self, house: House) -> None:
        settled = await by_card(house, house.instance())
        house.forget_order()
        refusal = refusal_in((await house.settle(house.instance(), "cash")).response.body)
        assert (refusal.metadata["payment_id"], refusal.metadata["source"]) == (settled.payment_id, "CARD")


async def test_already_paid_found_by_the_ledger_names_source_clerk_and_time(house: House) -> None:
    """The ledger knows the payment only; what it was is looked up here."""
    settled = payment_in(await house.settle(house.instance(), clerk=WANG))
    house.forget_settled()
    refusal = refusal_in((await house.settle(house.instance(), "s2")).response.body)
    assert refusal.reason == "ORDER_ALREADY_PAID"
    told = {name: refusal.metadata[name] for name in ("payment_id", "source", "clerk", "role")}
    assert told == {"payment_id": settled.payment_id, "source": "BANK", "clerk": "wang", "role": "accountant"}


async def test_already_paid_by_a_payment_that_is_not_known_here_names_what_the_order_service_told(house: House) -> None:
    """This database is older than the order's."""
    settled = payment_in(await house.settle(house.instance()))
    del house.store.payments[settled.payment_id]
    refusal = refusal_in((await house.settle(house.instance(), "s2", clerk=WANG)).response.body)
    assert (refusal.metadata["payment_id"], refusal.metadata["clerk"]) == (settled.payment_id, "li")
    assert refusal.metadata["source"] == ""


class TestAccountsFirst:
    """The accounts of the journal are known to be good before a card is charged."""

    @pytest.mark.parametrize("missing", ["acquirer:CNY", "sales:CNY"])
    async def test_a_currency_without_house_accounts_charges_no_card(self, house: House, missing: str) -> None:
        """Definitively refused from CREATED, the acquirer was not asked, and the order is free."""
        del house.ledger.open[missing]
        one = house.instance()
        answer = await house.settle(one, source=Source.CARD)
        refusal = refusal_in(answer.response.body)
        assert (type(refusal), refusal.reason) == (FailedPrecondition, "ACCOUNT_NOT_FOUND")
        assert refusal.metadata["account_id"] == missing
        assert one.process.calls["submit"] == one.process.calls["charge"] == 0
        assert not house.acquirer.charges
        assert house.order().state is OrderState.UNPAID
        again = await house.settle(one, source=Source.CARD)
        assert (again.response, again.replayed) == (answer.response, True)
        house.check()

    @pytest.mark.parametrize(
        ("payee", "reason"), [("wallet:mistyped:CNY", "ACCOUNT_NOT_FOUND"), ("wallet:yen:JPY", "CURRENCY_MISMATCH")]
    )
    async def test_a_payee_that_cannot_be_credited_charges_no_card(self, house: House, payee: str, reason: str) -> None:
        house.ledger.open["wallet:yen:JPY"] = Account("wallet:yen:JPY", AccountKind.LIABILITY, "JPY")
        one = house.instance()
        answer = await house.pay(one, await house.ticket(one), source=Source.CARD, payee=payee)
        assert reason_in(answer.response.body) == reason
        assert one.process.calls["submit"] == 0
        assert not house.acquirer.charges
        house.check()

    async def test_other_sources_leave_the_accounts_to_the_ledger(self, house: House) -> None:
        one = house.instance()
        payment_in(await house.settle(one))
        assert one.process.calls["account"] == 0

    async def test_house_accounts_are_asked_for_once(self, house: House) -> None:
        one = house.instance()
        for number in range(3):
            await house.settle(one, f"s{number}", await house.new_order(f"b{number}"), source=Source.CARD)
        assert one.process.calls["account"] == 2
        house.check()

    async def test_a_ledger_that_does_not_answer_leaves_the_card_uncharged(self, house: House) -> None:
        """Nothing is charged on a guess; the worker goes on when the ledger answers."""
        one = house.instance()
        one.process.fails("account", SILENCE)
        assert (await by_card(house, one)).state == pb.PAYMENT_STATE_CREATED
        assert not house.acquirer.charges
        await house.recovered(by=house.instance())
        assert house.of("s1").state is PaymentState.SUCCEEDED
        house.check()

    async def test_a_direct_payment_is_given_back_while_the_ledger_does_not_answer(self, house: House) -> None:
        one = house.instance()
        ticket = await house.ticket(one)
        one.process.fails("account", SILENCE)
        with pytest.raises(Exception, match="did not tell"):
            await house.pay(one, ticket, source=Source.CARD)
        assert payment_in(await house.pay(one, ticket, source=Source.CARD)).state == pb.PAYMENT_STATE_SUCCEEDED
        house.check()


class TestWholeAnswer:
    """An answer that contradicts what was asked is no answer."""

    @staticmethod
    def contradict(house: House, change: str) -> None:
        """The acquirer tells of something else than its charge, whatever it is asked."""
        says = house.acquirer.says

        def other(charge: Charge) -> AcquirerSays:
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

        house.acquirer.says = other

    @pytest.mark.parametrize("change", ["amount", "currency", "key", "reference"])
    async def test_a_charge_of_something_else_is_no_success(self, house: House, change: str) -> None:
        """UNKNOWN, before people at once, nothing posted; the order stays claimed."""
        self.contradict(house, change)
        assert (await by_card(house, house.instance())).state == pb.PAYMENT_STATE_UNKNOWN
        payment = house.of("s1")
        assert (payment.state, payment.attention) == (PaymentState.UNKNOWN, "ACQUIRER_MISMATCH")
        assert not house.ledger.chain
        assert house.order().state is OrderState.PAYING

    @pytest.mark.parametrize("change", ["amount", "currency", "key", "reference"])
    async def test_worker_and_next_clerk_do_not_believe_a_contradiction(self, house: House, change: str) -> None:
        """Neither charges, posts or declines on that word; once the acquirer tells the truth, it is a success."""
        says = house.acquirer.says
        self.contradict(house, change)
        await by_card(house, house.instance())
        house.lapse()
        two = house.instance()
        with pytest.raises(Aborted) as refusal:
            await house.settle(two, "cash")
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        house.clock.advance(60_000)
        await two.operations.recover()
        assert two.process.calls["charge"] == 0
        assert (house.of("s1").state, house.of("s1").attention) == (PaymentState.UNKNOWN, "ACQUIRER_MISMATCH")
        assert not house.ledger.chain
        house.acquirer.says = says
        await house.recovered(by=two)
        assert house.of("s1").state is PaymentState.SUCCEEDED
        house.check()

    async def test_attention_for_a_contradiction_outlasts_a_silence(self, house: House) -> None:
        self.contradict(house, "amount")
        await by_card(house, house.instance())
        two = house.instance()
        two.process.fails("query", SILENCE)
        house.clock.advance(60_000)
        await two.operations.recover()
        assert house.of("s1").attention == "ACQUIRER_MISMATCH"
        assert two.process.calls["charge"] == 0

    async def test_a_refund_of_something_else_ends_no_reversal(self, house: House) -> None:
        settled = await by_card(house, house.instance())
        says = house.acquirer.says
        self.contradict(house, "amount")
        answer = payment_in(await house.reverse(house.instance(), settled.payment_id))
        assert answer.state == pb.PAYMENT_STATE_REVERSING
        assert house.of("s1").attention == "ACQUIRER_MISMATCH"
        house.acquirer.says = says
        await house.recovered(by=house.instance())
        assert house.of("s1").state is PaymentState.REVERSED
        house.check()

    async def test_a_reversal_answered_with_a_standing_charge_ends_nothing(self, house: House) -> None:
        """CHARGED is no answer to ReverseByKey: the money is still there."""
        settled = await by_card(house, house.instance())
        one = house.instance()

        async def standing(name: str) -> None:
            if name == "reverse_by_key":
                house.acquirer.refuses_to_reverse = True

        one.process.gate = standing
        answer = payment_in(await house.reverse(one, settled.payment_id))
        assert answer.state == pb.PAYMENT_STATE_REVERSING
        assert house.of("s1").attention == "ACQUIRER_MISMATCH"
        assert at_bank(house, house.of("s1")) is ChargeState.CHARGED

    async def test_a_charge_that_was_answered_with_unseen_is_not_declined(self, house: House) -> None:
        """That a key is not known is no answer to the order to charge it."""
        house.acquirer.knows_nothing = True
        assert (await by_card(house, house.instance())).state == pb.PAYMENT_STATE_UNKNOWN
        assert house.of("s1").attention == "ACQUIRER_MISMATCH"
