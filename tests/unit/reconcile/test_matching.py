"""Theirs against ours: every class of difference, and what is none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from services.reconcile.matching import (
    Action,
    Amount,
    Discrepancy,
    DiscrepancyKind,
    Journal,
    Ours,
    PaidOrder,
    Sides,
    Theirs,
    compare,
)
from tests.unit.reconcile.agreeing import agreeing

MONEY = Amount(1250, "CNY")
OTHER = Amount(1300, "CNY")
CHARGE = Theirs("p1:1", "CHARGED", MONEY, "p1", 10)
PAYMENT = Ours("p1", "o1", "SUCCEEDED", True, "p1:1", MONEY, "j1", 5)
JOURNAL = Journal("j1", "p1", "o1", 1, 20, MONEY, 1250)
ORDER = PaidOrder("o1", "p1", MONEY, 30)
OPEN = ("SUBMITTED", "UNKNOWN", "REVERSING")
WITHOUT_MONEY = ("CREATED", "DECLINED", "REVERSED")


def sides(
    *theirs: Theirs,
    ours: tuple[Ours, ...] = (PAYMENT,),
    journals: tuple[Journal, ...] = (JOURNAL,),
    orders: tuple[PaidOrder, ...] = (ORDER,),
) -> Sides:
    """One payment by card that all four agree about, unless something else is said."""
    return Sides(theirs, ours, journals, orders)


def at_rest(state: str) -> tuple[Ours, ...]:
    """The payment in a state, without a journal."""
    return (replace(PAYMENT, state=state, journal_id=""),)


def found_in(compared: Sides) -> list[Discrepancy]:
    return list(compare(compared).discrepancies)


def one(compared: Sides) -> Discrepancy:
    (discrepancy,) = found_in(compared)
    return discrepancy


def booked(amount: Amount, owed: int | None = None) -> tuple[Journal, ...]:
    return (replace(JOURNAL, amount=amount, owed=amount.minor_units if owed is None else owed),)


def opposite(journal: Journal = JOURNAL) -> Journal:
    """What undoes a journal."""
    amount = Amount(-journal.amount.minor_units, journal.amount.currency)
    return replace(journal, journal_id="j2", sequence=2, amount=amount, owed=-journal.owed)


class TestAgreed:
    """What differs in nothing."""

    def test_settled_order_has_no_discrepancy(self) -> None:
        assert found_in(sides(CHARGE)) == []

    def test_empty_sides_have_no_discrepancy(self) -> None:
        assert found_in(Sides()) == []

    def test_direct_payment_has_no_order(self) -> None:
        ours = (replace(PAYMENT, order_id=""),)
        assert found_in(sides(CHARGE, ours=ours, orders=())) == []

    def test_payment_into_the_drawer_is_not_looked_for_at_the_acquirer(self) -> None:
        ours = (replace(PAYMENT, by_card=False, key=""),)
        assert found_in(sides(ours=ours, journals=booked(MONEY, owed=0))) == []

    @pytest.mark.parametrize("state", OPEN)
    def test_open_payment_of_which_the_acquirer_holds_nothing_has_no_discrepancy(self, state: str) -> None:
        """Also one that waits for people: neither side has money."""
        payment = replace(PAYMENT, state=state, attention="ACQUIRER_DOWN", journal_id="")
        assert found_in(sides(ours=(payment,), journals=(), orders=())) == []

    @pytest.mark.parametrize("state", WITHOUT_MONEY)
    @pytest.mark.parametrize("theirs", ["REFUNDED", "TOMBSTONE", "DECLINED"])
    def test_money_that_both_sides_have_given_up_is_no_discrepancy(self, state: str, theirs: str) -> None:
        amount = None if theirs == "TOMBSTONE" else MONEY
        charge = replace(CHARGE, state=theirs, amount=amount)
        assert found_in(sides(charge, ours=at_rest(state), journals=(), orders=())) == []

    def test_reversed_payment_keeps_both_its_journals(self) -> None:
        refunded = replace(CHARGE, state="REFUNDED")
        ours = (replace(PAYMENT, state="REVERSED"),)
        assert found_in(sides(refunded, ours=ours, journals=(JOURNAL, opposite()), orders=())) == []


class TestOnlyTheirs:
    """They hold money, and we do not."""

    @pytest.mark.parametrize("state", WITHOUT_MONEY)
    def test_charge_of_a_payment_that_ended_without_money_is_refunded(self, state: str) -> None:
        found = one(sides(CHARGE, ours=at_rest(state), journals=(), orders=()))
        assert found == Discrepancy(DiscrepancyKind.ONLY_THEIRS, Action.REFUND, "p1:1", "p1", MONEY, None)

    @pytest.mark.parametrize("state", WITHOUT_MONEY)
    def test_charge_that_our_books_have_is_left_for_people(self, state: str) -> None:
        """The journal stands: giving the money back would leave the ledger owed what nobody holds."""
        found = found_in(sides(CHARGE, ours=at_rest(state), orders=()))
        assert {(each.kind, each.action) for each in found} == {
            (DiscrepancyKind.ONLY_THEIRS, Action.LOOK),
            (DiscrepancyKind.AMOUNT, Action.LOOK),
        }

    @pytest.mark.parametrize("reference", ["", "p9"])
    def test_charge_whose_key_is_no_payments_is_never_refunded_by_itself(self, reference: str) -> None:
        """Others may charge for the same merchant account."""
        stranger = Theirs("stranger:1", "CHARGED", OTHER, reference, 10)
        found = one(sides(CHARGE, stranger))
        assert found == Discrepancy(DiscrepancyKind.ONLY_THEIRS, Action.NAME, "stranger:1", "", OTHER, None)

    def test_another_key_of_a_payment_that_ended_without_money_is_no_duplicate(self) -> None:
        """There is nothing that it doubles."""
        second = replace(CHARGE, key="p1:2")
        found = one(sides(second, ours=at_rest("DECLINED"), journals=(), orders=()))
        assert (found.kind, found.action, found.key) == (DiscrepancyKind.ONLY_THEIRS, Action.NAME, "p1:2")


class TestOnlyOurs:
    """Our payment succeeded, and they hold nothing."""

    def test_key_that_the_acquirer_never_saw_is_only_ours(self) -> None:
        assert one(sides()) == Discrepancy(DiscrepancyKind.ONLY_OURS, Action.UNDO, "p1:1", "p1", None, MONEY)

    @pytest.mark.parametrize("state", ["REFUNDED", "TOMBSTONE", "DECLINED"])
    def test_key_without_money_is_only_ours(self, state: str) -> None:
        assert one(sides(replace(CHARGE, state=state))).kind is DiscrepancyKind.ONLY_OURS


class TestAmountDiffers:
    """Both hold money, and not the same."""

    @pytest.mark.parametrize("state", ["SUCCEEDED", *OPEN, "PARKED"])
    @pytest.mark.parametrize("theirs", [OTHER, Amount(500, "CNY"), Amount(1250, "EUR")])
    def test_another_amount_or_currency_at_the_acquirer_is_left_for_people(self, state: str, theirs: Amount) -> None:
        """The payment service acts on no such answer: reversed, the payment would stay REVERSING."""
        succeeded = state == "SUCCEEDED"
        found = one(
            sides(
                replace(CHARGE, amount=theirs),
                ours=at_rest(state) if not succeeded else (PAYMENT,),
                journals=(JOURNAL,) if succeeded else (),
                orders=(ORDER,) if succeeded else (),
            )
        )
        ours = None if state == "PARKED" else MONEY
        assert found == Discrepancy(DiscrepancyKind.AMOUNT, Action.LOOK, "p1:1", "p1", theirs, ours)

    @pytest.mark.parametrize("owed", [0, 1249, 2500])
    def test_another_amount_in_the_ledger_is_left_for_people(self, owed: int) -> None:
        found = one(sides(CHARGE, journals=booked(MONEY, owed=owed)))
        assert (found.kind, found.action, found.payment_id) == (DiscrepancyKind.AMOUNT, Action.LOOK, "p1")

    def test_journal_of_a_payment_that_was_declined_is_left_for_people(self) -> None:
        found = one(sides(ours=at_rest("DECLINED"), orders=()))
        assert (found.kind, found.action, found.ours) == (DiscrepancyKind.AMOUNT, Action.LOOK, MONEY)

    def test_another_amount_of_the_order_is_left_for_people(self) -> None:
        found = one(sides(CHARGE, orders=(replace(ORDER, amount=OTHER),)))
        assert (found.kind, found.action) == (DiscrepancyKind.AMOUNT, Action.LOOK)


class TestAnswerDiffers:
    """The acquirer's answer contradicted what was asked."""

    @pytest.mark.parametrize("state", [*OPEN, "PARKED"])
    @pytest.mark.parametrize("charges", [(), (CHARGE,)])
    def test_payment_with_a_contradicting_answer_is_left_for_people(
        self, state: str, charges: tuple[Theirs, ...]
    ) -> None:
        """Whatever the statement says, the payment service waits for people."""
        ours = (replace(PAYMENT, state=state, journal_id="", attention="ACQUIRER_MISMATCH"),)
        found = one(sides(*charges, ours=ours, journals=(), orders=()))
        assert (found.kind, found.action, found.key) == (DiscrepancyKind.ANSWER, Action.CORRECT, "p1:1")

    @pytest.mark.parametrize("state", [*OPEN, "PARKED"])
    def test_contradicting_answer_is_left_to_the_acquirer_to_correct(self, state: str) -> None:
        """Its statement has another amount, or a refund of another amount; the words name who acts and what follows."""
        ours = (replace(PAYMENT, state=state, journal_id="", attention="ACQUIRER_MISMATCH"),)
        other = replace(CHARGE, amount=replace(MONEY, minor_units=MONEY.minor_units - 100))
        for charge, kind in (
            (other, DiscrepancyKind.AMOUNT),
            (replace(other, state="REFUNDED"), DiscrepancyKind.ANSWER),
        ):
            found = one(sides(charge, ours=ours, journals=(), orders=()))
            assert (found.kind, found.action) == (kind, Action.CORRECT)
        assert "acquirer correct" in Action.CORRECT
        assert "goes on by itself" in Action.CORRECT


class TestDuplicate:
    """They hold money for one payment under several keys."""

    @pytest.mark.parametrize("state", ["SUCCEEDED", *OPEN])
    def test_key_that_is_not_the_payments_own_is_left_for_people(self, state: str) -> None:
        second = replace(CHARGE, key="key_9")
        ours = (PAYMENT,) if state == "SUCCEEDED" else at_rest(state)
        found = found_in(sides(CHARGE, second, ours=ours))
        assert Discrepancy(DiscrepancyKind.DUPLICATE, Action.NAME, "key_9", "p1", MONEY, MONEY) in found
        assert [each.key for each in found if each.kind is DiscrepancyKind.DUPLICATE] == ["key_9"]

    def test_duplicates_without_the_payments_own_key_leave_the_payment_only_ours(self) -> None:
        found = found_in(sides(replace(CHARGE, key="key_8"), replace(CHARGE, key="key_9")))
        assert [(each.kind, each.key) for each in found] == [
            (DiscrepancyKind.DUPLICATE, "key_8"),
            (DiscrepancyKind.DUPLICATE, "key_9"),
            (DiscrepancyKind.ONLY_OURS, "p1:1"),
        ]


class TestLate:
    """One side does not know yet."""

    @pytest.mark.parametrize("state", OPEN)
    def test_charge_of_an_open_payment_is_late(self, state: str) -> None:
        found = one(sides(CHARGE, ours=at_rest(state), journals=(), orders=()))
        assert found == Discrepancy(DiscrepancyKind.LATE, Action.ASK_NOW, "p1:1", "p1", MONEY, MONEY)

    def test_order_that_is_not_paid_is_late(self) -> None:
        found = one(sides(CHARGE, orders=()))
        assert (found.kind, found.action, found.payment_id) == (DiscrepancyKind.LATE, Action.WAIT, "p1")

    def test_order_that_stays_paid_after_a_reversal_is_late(self) -> None:
        refunded = replace(CHARGE, state="REFUNDED")
        ours = (replace(PAYMENT, state="REVERSED"),)
        found = one(sides(refunded, ours=ours, journals=(JOURNAL, opposite())))
        assert (found.kind, found.action) == (DiscrepancyKind.LATE, Action.WAIT)


class TestReversalOwed:
    """A payment was parked: its key is to be reversed as soon as the acquirer answers."""

    @pytest.mark.parametrize("state", ["CHARGED", "REFUNDED", "TOMBSTONE", "DECLINED", ""])
    def test_parked_payment_is_open_whatever_the_acquirer_has(self, state: str) -> None:
        """The payment service reverses it; it is not refunded from here."""
        amount = None if state == "TOMBSTONE" else MONEY
        charges = (replace(CHARGE, state=state, amount=amount),) if state else ()
        found = one(sides(*charges, ours=at_rest("PARKED"), journals=(), orders=()))
        theirs = MONEY if state == "CHARGED" else None
        assert found == Discrepancy(DiscrepancyKind.REVERSAL_OWED, Action.ASK_NOW, "p1:1", "p1", theirs, None)

    def test_order_that_another_payment_settled_is_no_discrepancy(self) -> None:
        """Cash was taken instead of the card that did not answer."""
        cash = replace(PAYMENT, payment_id="p2", by_card=False, key="", journal_id="j2")
        journal = replace(JOURNAL, journal_id="j2", payment_id="p2", owed=0)
        order = replace(ORDER, payment_id="p2")
        found = one(sides(ours=(*at_rest("PARKED"), cash), journals=(journal,), orders=(order,)))
        assert (found.kind, found.payment_id) == (DiscrepancyKind.REVERSAL_OWED, "p1")


class TestWithoutPayment:
    """What the payment service has lost, or never had: each is named."""

    def test_lost_payment_leaves_its_charge_its_journals_and_its_order(self) -> None:
        """Nothing of it is mended by itself."""
        assert found_in(sides(CHARGE, ours=())) == [
            Discrepancy(DiscrepancyKind.ONLY_THEIRS, Action.NAME, "p1:1", "", MONEY, None),
            Discrepancy(
                DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT,
                Action.LOST,
                payment_id="p1",
                ours=MONEY,
                journal_id="j1",
                order_id="o1",
            ),
            Discrepancy(DiscrepancyKind.ORDER_WITHOUT_PAYMENT, Action.LOST, payment_id="p1", ours=MONEY, order_id="o1"),
        ]

    def test_both_journals_of_a_lost_reversal_are_named(self) -> None:
        refunded = replace(CHARGE, state="REFUNDED")
        found = found_in(sides(refunded, ours=(), journals=(JOURNAL, opposite()), orders=()))
        assert [(each.kind, each.journal_id) for each in found] == [
            (DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT, "j1"),
            (DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT, "j2"),
        ]

    def test_journal_of_the_drawer_without_payment_is_named(self) -> None:
        found = one(sides(ours=(), journals=booked(MONEY, owed=0), orders=()))
        assert (found.kind, found.journal_id) == (DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT, "j1")

    def test_order_paid_by_a_lost_payment_is_named(self) -> None:
        found = one(sides(ours=(), journals=()))
        assert (found.kind, found.order_id, found.payment_id) == (DiscrepancyKind.ORDER_WITHOUT_PAYMENT, "o1", "p1")

    @pytest.mark.parametrize("state", ["CREATED", "DECLINED"])
    def test_order_paid_by_a_payment_without_money_is_named(self, state: str) -> None:
        found = one(sides(ours=at_rest(state), journals=()))
        assert (found.kind, found.action, found.order_id) == (DiscrepancyKind.ORDER_WITHOUT_PAYMENT, Action.LOOK, "o1")


class TestPaymentWithoutJournal:
    """The ledger has lost what a payment rests on."""

    @pytest.mark.parametrize("by_card", [True, False])
    def test_payment_whose_journal_is_gone_is_named(self, by_card: bool) -> None:
        payment = PAYMENT if by_card else replace(PAYMENT, by_card=False, key="")
        found = one(sides(*((CHARGE,) if by_card else ()), ours=(payment,), journals=()))
        assert (found.kind, found.action, found.journal_id) == (
            DiscrepancyKind.PAYMENT_WITHOUT_JOURNAL,
            Action.LOOK,
            "j1",
        )


class TestTwoReadings:
    """What is under way between two readings is no discrepancy."""

    def test_only_what_differs_in_both_is_a_discrepancy(self) -> None:
        moving, standing = replace(CHARGE, key="m:1", reference=""), replace(CHARGE, key="s:1", reference="")
        compared = compare(sides(CHARGE, moving, standing), before=sides(CHARGE, standing))
        assert [each.key for each in compared.discrepancies] == ["s:1"]

    def test_payment_that_is_being_settled_is_no_discrepancy(self) -> None:
        """At the first reading it had no journal, at the second its order was not paid."""
        before = sides(CHARGE, ours=at_rest("SUBMITTED"), journals=(), orders=())
        assert compare(sides(CHARGE, orders=()), before=before).discrepancies == ()


class TestCost:
    """How the work grows: counted in instructions, not in time."""

    def test_comparing_agreeing_payments_is_linear(self) -> None:
        assert steps_of(lambda: compare(agreeing(400))) < 2.2 * steps_of(lambda: compare(agreeing(200)))

    def test_comparing_differing_payments_twice_is_linear(self) -> None:
        def twice(count: int) -> None:
            compare(replace(agreeing(count), orders=()), before=replace(agreeing(count), orders=()))

        assert steps_of(lambda: twice(400)) < 2.2 * steps_of(lambda: twice(200))


def steps_of(work: Callable[[], Any]) -> int:
    """How many bytecode instructions of Python some work runs through, in whatever function."""
    count = 0

    def note(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("state", OPEN)
def test_payment_without_an_outcome_of_which_nothing_differs_is_undecided(state: str) -> None:
    """If it had none at the reading before, either; once the acquirer holds its money, it is a discrepancy instead."""
    pending = sides(ours=at_rest(state), journals=(), orders=())
    compared = compare(pending)
    assert compared.discrepancies == ()
    assert [(each.kind, each.action, each.payment_id) for each in compared.undecided] == [
        (DiscrepancyKind.NO_OUTCOME, Action.PENDING, "p1")
    ]
    assert compare(pending, before=pending).open == compared.undecided
    assert compare(pending, before=Sides()).open == ()
    assert compare(sides(CHARGE), before=pending).open == ()
    held = compare(sides(CHARGE, ours=at_rest(state), journals=(), orders=()))
    assert (held.undecided, [each.kind for each in held.discrepancies]) == ((), [DiscrepancyKind.LATE])


@pytest.mark.parametrize("state", [*WITHOUT_MONEY, "PARKED"])
def test_payment_that_ended_or_is_listed_already_is_not_undecided(state: str) -> None:
    assert compare(sides(ours=at_rest(state), journals=(), orders=())).undecided == ()
