"""What a payment is, who may pay from where, and who may be paid."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import pytest

from services.kernel.errors import FailedPrecondition, InvalidArgument, PermissionDenied, may_come_right
from services.kernel.fence import NO_FENCE
from services.kernel.idempotency import RequestKey
from services.kernel.ids import check_name
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.ledger import model as ledger_model
from services.ledger.model import Account, AccountKind
from services.payment.execution import half_settled
from services.payment.model import (
    ACTIVE,
    MOVES,
    PAY,
    REVERSE,
    SETTLE,
    TRANSITIONS,
    UNANSWERED,
    AcquirerRetry,
    Charge,
    Ends,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    Source,
    Step,
    already_paid,
    check_payee,
    check_source,
    filled_in,
    payer_account,
    plan,
)
from services.payment.ports import AccountTerms, ChargeStatus, ChargeTerms, KeyState, Order, OrderState
from services.payment.saga import charge_for, check_account_terms, names_creditable

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
PAYMENT = replace(Payment.created("p1", RequestKey(LI, SETTLE, "s1"), "o1", Source.WALLET, LI, "", 1), round=2)
ORDER = Order("o1", "mei", OrderState.UNPAID, Money(300, "CNY"), 2, "", None, 0)


class TestTransitions:
    """The machine."""

    def test_every_state_has_its_row(self) -> None:
        assert set(MOVES) == set(PaymentState)

    @pytest.mark.parametrize("end", [PaymentState.DECLINED, PaymentState.REVERSED])
    def test_final_states_have_no_transition(self, end: PaymentState) -> None:
        assert not MOVES[end]

    def test_money_may_only_move_from_a_committed_submission(self) -> None:
        """Invariant 1: nothing but SUBMITTED, and UNKNOWN after it, becomes SUCCEEDED for the first time."""
        sources = {state for state in PaymentState if PaymentState.SUCCEEDED in MOVES[state]}
        assert sources - {PaymentState.REVERSING} == {PaymentState.SUBMITTED, PaymentState.UNKNOWN}

    def test_state_in_which_money_may_have_moved_is_active(self) -> None:
        """Invariant 2: every state but those in which certainly no money is away."""
        assert set(PaymentState) - set(ACTIVE) == {
            PaymentState.CREATED,
            PaymentState.DECLINED,
            PaymentState.REVERSED,
            PaymentState.PARKED,
        }

    @pytest.mark.parametrize("step", Step)
    def test_transition_that_moves_money_or_ends_a_payment_answers_its_request(self, step: Step) -> None:
        """Invariant 4; of an expired ticket it is refused by its own state."""
        row = TRANSITIONS[step]
        opens = {PaymentState.CREATED, PaymentState.SUBMITTED, PaymentState.UNKNOWN}
        ends = {PaymentState.SUCCEEDED, PaymentState.DECLINED, PaymentState.PARKED}
        if step is not Step.EXPIRE:
            assert (Ends.OWN in row.ends) >= (bool(opens & set(row.only_from)) and row.to in ends)
        assert (Ends.REVERSAL in row.ends) >= (PaymentState.REVERSING in row.only_from)

    @pytest.mark.parametrize("step", Step)
    def test_transition_to_a_state_that_does_not_wait_clears_the_attention(self, step: Step) -> None:
        payment = replace(PAYMENT, retry=AcquirerRetry(9, 5, "ACQUIRER_SILENT"))
        for state in TRANSITIONS[step].only_from:
            for journal_id in ("", "j"):
                change = plan(step, replace(payment, source=Source.CARD, state=state, journal_id=journal_id), 7)
                if change is not None:
                    waits = change.after.state in UNANSWERED
                    assert change.after.retry == replace(payment.retry, attention="ACQUIRER_SILENT" if waits else "")
                    assert (change.after.version, change.after.updated_at_ms) == (payment.version + 1, 7)


ALLOWED = {
    (Source.WALLET, Role.CUSTOMER),
    (Source.WALLET, Role.CASHIER),
    (Source.WALLET, Role.ACCOUNTANT),
    (Source.DRAWER, Role.CASHIER),
    (Source.BANK, Role.ACCOUNTANT),
    (Source.CARD, Role.CUSTOMER),
    (Source.CARD, Role.CASHIER),
    (Source.CARD, Role.ACCOUNTANT),
}


@pytest.mark.parametrize(("source", "role"), list(product(Source, Role)))
def test_each_role_has_its_sources(source: Source, role: Role) -> None:
    """Cash goes through the cashier, transfers through the accountant; nobody else touches either."""
    principal = Principal("somebody", role)
    if (source, role) in ALLOWED:
        check_source(source, principal)
        return
    with pytest.raises(PermissionDenied) as refusal:
        check_source(source, principal)
    assert refusal.value.reason == "SOURCE_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("source", "account"),
    [
        (Source.WALLET, "wallet:mei:CNY"),
        (Source.DRAWER, "drawer:CNY"),
        (Source.BANK, "bank:CNY"),
        (Source.CARD, "acquirer:CNY"),
    ],
)
def test_each_source_has_its_account(source: Source, account: str) -> None:
    """Of the customer, or of the house; in the order's currency."""
    assert payer_account(source, "mei", "CNY") == account
    charge = charge_for(ORDER, replace(PAYMENT, source=source))
    assert (charge.payer_account_id, charge.payee_account_id) == (account, "sales:CNY")
    assert (charge.round, charge.customer_id, charge.amount) == (2, "mei", ORDER.amount)


@pytest.mark.parametrize("payee", ["drawer:CNY", "bank:CNY", "acquirer:CNY", "drawer", "wallet:mei:CNY"])
def test_payee_that_receives_no_payments_is_refused(payee: str) -> None:
    """What has to be receivable is a wallet, a merchant or sales."""
    with pytest.raises(InvalidArgument) as refusal:
        check_payee(payee, "wallet:mei:CNY")
    assert refusal.value.reason == "PAYEE_INVALID"
    assert refusal.value.fields[0][0] == "payee_account_id"


@pytest.mark.parametrize("payee", ["wallet:merchant:CNY", "sales:CNY", "drawers:CNY"])
def test_wallet_merchant_and_sales_can_be_paid(payee: str) -> None:
    check_payee(payee, "wallet:mei:CNY")


def test_journal_stands_for_one_round_or_one_payment() -> None:
    """The key under which the ledger refuses a second one."""
    assert PAYMENT.business_key == "settle:o1:2"
    assert replace(PAYMENT, order_id="", round=0).business_key == "pay:p1"


def test_only_a_payment_by_ticket_has_one() -> None:
    assert PAYMENT.ticket_id == ""
    assert replace(PAYMENT, key=RequestKey(LI, PAY, "t1")).ticket_id == "t1"


def test_reversal_has_an_attempt_of_its_own_at_the_ledger() -> None:
    """A legal request id, the same for a repeat; two callers' equal request ids do not meet."""
    wang, zhao = [
        Reversal(RequestKey(clerk, REVERSE, "r" * 64), clerk, "why")
        for clerk in (Principal("wang" * 16, Role.ACCOUNTANT), Principal("zhao" * 16, Role.ACCOUNTANT))
    ]
    assert check_name(wang.attempt, "request_id") == replace(wang, reason="other words").attempt
    assert wang.attempt != zhao.attempt


def test_payment_is_undone_for_one_request() -> None:
    """Whoever asks under the same key, whatever the reason they give."""
    wang = Reversal(RequestKey(WANG, REVERSE, "v1"), WANG, "why")
    undone = replace(PAYMENT, reversal=wang)
    assert undone.is_undone_for(replace(wang, reason="another"))
    assert not undone.is_undone_for(replace(wang, key=RequestKey(WANG, REVERSE, "v2")))
    assert not PAYMENT.is_undone_for(wang)


def test_claim_is_of_one_payment() -> None:
    """PAYING by another, or PAID by this one, is no claim of this one."""
    claimed = replace(ORDER, state=OrderState.PAYING, payment_id="p1")
    assert claimed.is_being_paid_by(PAYMENT)
    assert not replace(claimed, payment_id="p2").is_being_paid_by(PAYMENT)
    assert not replace(claimed, state=OrderState.PAID).is_being_paid_by(PAYMENT)


def test_already_paid_names_payment_source_clerk_and_absolute_time() -> None:
    """In words and in metadata. The refusal is stored and replayed, so it holds no time relative to now."""
    error = already_paid(
        "o1", payment_id="p1", source=Source.DRAWER, clerk=LI, settled_at_ms=1_700_000_000_123, guard="state"
    )
    assert error.message == (
        "o1 was already settled by li (cashier) from the drawer at 2023-11-14T22:13:20.123Z with payment p1"
    )
    assert error.metadata == {
        "order_id": "o1",
        "payment_id": "p1",
        "source": "DRAWER",
        "clerk": "li",
        "role": "cashier",
        "settled_at_ms": "1700000000123",
        "guard": "state",
    }


def test_already_paid_leaves_out_what_is_not_known() -> None:
    error = already_paid("o1", payment_id="", source=None, clerk=None, settled_at_ms=0, guard="x")
    assert error.message == "o1 was already settled by another clerk"


def test_half_settled_refusal_names_the_payment_in_the_way_and_the_way_out() -> None:
    """A passing refusal: payment, source, clerk, state, since when, and when to ask again."""
    card = replace(PAYMENT, state=PaymentState.UNKNOWN, source=Source.CARD, updated_at_ms=1_700_000_000_123)
    error = half_settled(card)
    assert may_come_right(error)
    assert error.metadata == {
        "order_id": card.order_id,
        "payment_id": card.payment_id,
        "source": "CARD",
        "clerk": card.clerk.name,
        "role": str(card.clerk.role),
        "state": "UNKNOWN",
        "since_ms": "1700000000123",
    }
    assert "since 2023-11-14T22:13:20.123Z" in error.message
    happened, by, state, way_out = error.message.removesuffix(".").split(". ")
    assert happened == "o1 was not settled"
    assert f"{card.clerk.name} ({card.clerk.role}) is paying it from the card with payment {card.payment_id}" == by
    assert state.startswith("That payment is UNKNOWN since ")
    assert way_out == f"Park payment {card.payment_id} to free the order, or wait for its outcome"
    assert half_settled(replace(card, source=Source.BANK)).message.endswith(". Try again.")


def test_half_settled_refusal_for_a_reversing_payment_offers_park_or_refund() -> None:
    """The ledger may have a journal that is not recorded, and then only the refund frees the order."""
    card = replace(PAYMENT, state=PaymentState.REVERSING, source=Source.CARD, journal_id="")
    assert half_settled(card).message.endswith(" Park payment p1 to free the order, or wait for the refund.")


TERMS = ChargeTerms(1250, "CNY", "tok-mei", "p1")


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (ChargeStatus(KeyState.CHARGED, "", "p1:1", TERMS), ()),
        (ChargeStatus(KeyState.CHARGED, "", "p1:2", TERMS), ("key",)),
        (ChargeStatus(KeyState.CHARGED, "", "p1:1", replace(TERMS, minor_units=500)), ("amount",)),
        (ChargeStatus(KeyState.CHARGED, "", "p1:1", replace(TERMS, currency="JPY")), ("currency",)),
        (ChargeStatus(KeyState.CHARGED, "", "p1:1", replace(TERMS, card="tok-li")), ("card",)),
        (ChargeStatus(KeyState.REFUNDED, "", "p1:1", replace(TERMS, reference="p2")), ("reference",)),
        (ChargeStatus(KeyState.DECLINED, "CARD_DECLINED", "p1:1", replace(TERMS, minor_units=0)), ("amount",)),
        (ChargeStatus(KeyState.CHARGED, "", "p1:1", None), ("amount",)),
        (ChargeStatus(KeyState.TOMBSTONE, "", "p1:1", None), ()),
        (ChargeStatus(KeyState.TOMBSTONE, "", "p2:1", None), ("key",)),
        (ChargeStatus(KeyState.UNSEEN), ()),
    ],
)
def test_acquirer_answer_names_every_part_that_differs_from_the_question(
    said: ChargeStatus, wrong: tuple[str, ...]
) -> None:
    assert said.contradictions("p1:1", TERMS) == wrong


CNY_SALES = AccountTerms("sales:CNY", "CNY")


@pytest.mark.parametrize(
    ("payer", "payee", "reason"),
    [
        (None, CNY_SALES, "ACCOUNT_NOT_FOUND"),
        (AccountTerms("acquirer:CNY", "CNY"), None, "ACCOUNT_NOT_FOUND"),
        (AccountTerms("acquirer:CNY", "CNY"), replace(CNY_SALES, closed=True), "ACCOUNT_CLOSED"),
        (AccountTerms("acquirer:CNY", "CNY"), replace(CNY_SALES, currency="JPY"), "CURRENCY_MISMATCH"),
        (AccountTerms("acquirer:CNY", "CNY"), replace(CNY_SALES, grows_by_debits=True), "PAYEE_NOT_CREDITABLE"),
    ],
)
def test_accounts_that_cannot_be_posted_to_are_refused(
    payer: AccountTerms | None, payee: AccountTerms | None, reason: str
) -> None:
    charge = Charge(1, "mei", Money(1250, "CNY"), "acquirer:CNY", "sales:CNY")
    with pytest.raises(FailedPrecondition) as refusal:
        check_account_terms(charge, payer, payee)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("account_id", "kind"),
    [
        ("wallet:mei:CNY", AccountKind.LIABILITY),
        ("wallet:a:b:CNY", AccountKind.LIABILITY),
        ("sales:CNY", AccountKind.REVENUE),
        ("wallet", None),
        ("wallet:mei", None),
        ("merchant:tea:CNY", None),
        ("safe3", None),
    ],
)
def test_name_tells_a_payees_kind_only_where_the_ledger_opens_no_other(
    account_id: str, kind: AccountKind | None
) -> None:
    assert names_creditable(account_id) is (kind is not None)
    for other in set(AccountKind) - {kind}:
        account = Account(account_id, other, "CNY")
        with pytest.raises(InvalidArgument) if kind else nullcontext():
            ledger_model.check_account_terms(account)


def test_event_of_the_first_release_is_filled_in_with_what_is_certain() -> None:
    """It recorded neither who nor why; the payment tells of its making, its decline and its last reversal."""
    undone = Reversal(RequestKey(WANG, REVERSE, "v1"), WANG, "wrong order")
    reversed_ = replace(PAYMENT, state=PaymentState.REVERSED, version=5, reversal=undone)
    declined = replace(PAYMENT, state=PaymentState.DECLINED, version=2, decline_reason="CARD_DECLINED")

    def event(version: int, state: PaymentState) -> PaymentEvent:
        return PaymentEvent("p1", version, state, NO_FENCE, 1, None, "")

    filled = [
        filled_in(event(1, PaymentState.CREATED), reversed_),
        filled_in(event(3, PaymentState.SUCCEEDED), reversed_),
        filled_in(event(4, PaymentState.REVERSING), reversed_),  # perhaps an earlier one, which the ledger refused
        filled_in(event(5, PaymentState.REVERSED), reversed_),
        filled_in(event(2, PaymentState.DECLINED), declined),
    ]
    assert [(each.actor, each.reason) for each in filled] == [
        (LI, ""),
        (None, ""),
        (None, ""),
        (WANG, "wrong order"),
        (LI, "CARD_DECLINED"),
    ]
    recorded = replace(event(1, PaymentState.CREATED), actor=WANG, reason="said so")
    assert filled_in(recorded, reversed_) == recorded
