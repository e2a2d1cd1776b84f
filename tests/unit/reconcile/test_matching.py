"""Theirs against ours: every class of difference, what is none, and that mending each leaves nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.reconcile.matching import Action, Amount, Bill, Discrepancy, Kind, Ours, Sides, Theirs, compare

MONEY = Amount(1250, "CNY")
OTHER = Amount(1300, "CNY")
CHARGE = Theirs("p1:1", "CHARGED", MONEY, "p1")
PAYMENT = Ours("p1", "o1", "SUCCEEDED", "p1:1", MONEY, "tok-mei", "")
BILL = Bill("p1", MONEY)
OPEN = ("SUBMITTED", "UNKNOWN", "REVERSING")
WITHOUT_MONEY = ("CREATED", "DECLINED", "REVERSED")


def sides(
    *theirs: Theirs, ours: tuple[Ours, ...] = (PAYMENT,), owed: int | None = 1250, bill: Bill | None = BILL
) -> Sides:
    """One payment by card that all four agree about, unless something else is said."""
    books = {("p1", "CNY"): owed} if owed else {}
    return Sides(theirs, ours, books, {"o1": bill} if bill else {})


def at_rest(state: str) -> tuple[Ours, ...]:
    """The payment in a state."""
    return (replace(PAYMENT, state=state),)


def one(found: list[Discrepancy]) -> Discrepancy:
    (discrepancy,) = found
    return discrepancy


class TestAgreed:
    """What differs in nothing."""

    def test_a_settled_bill(self) -> None:
        assert compare(sides(CHARGE)) == []

    def test_nothing_at_all(self) -> None:
        assert compare(Sides((), (), {}, {})) == []

    def test_a_direct_payment_has_no_bill(self) -> None:
        assert compare(sides(CHARGE, ours=(replace(PAYMENT, order_id=""),), bill=None)) == []

    @pytest.mark.parametrize("state", OPEN)
    def test_a_payment_under_way_of_which_they_hold_nothing(self, state: str) -> None:
        """Also one before people: neither side has money."""
        payment = replace(PAYMENT, state=state, attention="ACQUIRER_DOWN")
        assert compare(sides(ours=(payment,), owed=None, bill=None)) == []

    @pytest.mark.parametrize("state", WITHOUT_MONEY)
    @pytest.mark.parametrize("theirs", ["REFUNDED", "TOMBSTONE", "DECLINED"])
    def test_neither_side_has_money_any_more(self, state: str, theirs: str) -> None:
        amount = None if theirs == "TOMBSTONE" else MONEY
        charge = replace(CHARGE, state=theirs, amount=amount)
        assert compare(sides(charge, ours=at_rest(state), owed=None, bill=None)) == []


class TestOnlyTheirs:
    """They hold money, and we do not."""

    @pytest.mark.parametrize("state", WITHOUT_MONEY)
    def test_of_a_payment_that_ended_without_money(self, state: str) -> None:
        found = one(compare(sides(CHARGE, ours=at_rest(state), owed=None, bill=None)))
        assert found == Discrepancy(Kind.ONLY_THEIRS, Action.REFUND, "p1:1", "p1", MONEY, None)

    @pytest.mark.parametrize("reference", ["", "p9"])
    def test_of_no_payment_of_ours(self, reference: str) -> None:
        stranger = Theirs("stranger:1", "CHARGED", OTHER, reference)
        found = one(compare(sides(CHARGE, stranger)))
        assert found == Discrepancy(Kind.ONLY_THEIRS, Action.REFUND, "stranger:1", "", OTHER, None)

    def test_under_another_key_of_a_payment_that_ended_without_money(self) -> None:
        """Not a duplicate: there is nothing that it doubles."""
        second = replace(CHARGE, key="p1:2")
        found = one(compare(sides(second, ours=at_rest("DECLINED"), owed=None, bill=None)))
        assert (found.kind, found.key) == (Kind.ONLY_THEIRS, "p1:2")


class TestOnlyOurs:
    """Our payment succeeded, and they hold nothing."""

    def test_they_never_heard_of_it(self) -> None:
        found = one(compare(sides()))
        assert found == Discrepancy(Kind.ONLY_OURS, Action.ASK_AGAIN, "p1:1", "p1", None, MONEY)

    @pytest.mark.parametrize("state", ["REFUNDED", "TOMBSTONE", "DECLINED"])
    def test_they_have_given_it_back_or_never_had_it(self, state: str) -> None:
        assert one(compare(sides(replace(CHARGE, state=state)))).kind is Kind.ONLY_OURS


class TestAmountDiffers:
    """Both hold money, and not the same."""

    @pytest.mark.parametrize("state", ["SUCCEEDED", "UNKNOWN"])
    def test_theirs_is_another(self, state: str) -> None:
        """Also where our payment does not know its outcome: it could never be ours."""
        succeeded = state == "SUCCEEDED"
        found = one(
            compare(
                sides(
                    replace(CHARGE, amount=OTHER),
                    ours=at_rest(state),
                    owed=1250 if succeeded else None,
                    bill=BILL if succeeded else None,
                )
            )
        )
        assert found == Discrepancy(Kind.AMOUNT, Action.REVERSE, "p1:1", "p1", OTHER, MONEY)

    def test_theirs_is_in_another_currency(self) -> None:
        assert one(compare(sides(replace(CHARGE, amount=Amount(1250, "EUR"))))).kind is Kind.AMOUNT

    @pytest.mark.parametrize("owed", [None, 1249, 2500])
    def test_our_books_say_another(self, owed: int | None) -> None:
        """Nothing is mended from here."""
        found = one(compare(sides(CHARGE, owed=owed)))
        assert (found.kind, found.action, found.payment_id) == (Kind.AMOUNT, Action.LOOK, "p1")

    def test_our_books_owe_what_our_payment_has_not(self) -> None:
        found = one(compare(sides(ours=at_rest("DECLINED"), bill=None)))
        assert (found.kind, found.action, found.ours) == (Kind.AMOUNT, Action.LOOK, MONEY)

    def test_the_bill_is_another(self) -> None:
        found = one(compare(sides(CHARGE, bill=Bill("p1", OTHER))))
        assert (found.kind, found.action) == (Kind.AMOUNT, Action.LOOK)


class TestDuplicate:
    """They hold money for one payment under several keys."""

    @pytest.mark.parametrize("state", ["SUCCEEDED", *OPEN])
    def test_the_key_that_is_not_its_own_is_reversed(self, state: str) -> None:
        second = replace(CHARGE, key="key_9")
        found = compare(sides(CHARGE, second, ours=at_rest(state)))
        assert Discrepancy(Kind.DUPLICATE, Action.REFUND, "key_9", "p1", MONEY, MONEY) in found
        assert [each.key for each in found if each.kind is Kind.DUPLICATE] == ["key_9"]

    def test_where_none_is_its_own(self) -> None:
        """What was charged under keys of their own is given back, and its own key asked again."""
        found = compare(sides(replace(CHARGE, key="key_8"), replace(CHARGE, key="key_9")))
        assert [(each.kind, each.key) for each in found] == [
            (Kind.DUPLICATE, "key_8"),
            (Kind.DUPLICATE, "key_9"),
            (Kind.ONLY_OURS, "p1:1"),
        ]


class TestLate:
    """One side does not know yet."""

    @pytest.mark.parametrize("state", OPEN)
    def test_our_payment_does_not_know_its_outcome(self, state: str) -> None:
        found = one(compare(sides(CHARGE, ours=at_rest(state), owed=None, bill=None)))
        assert found == Discrepancy(Kind.LATE, Action.ASK_NOW, "p1:1", "p1", MONEY, MONEY)

    @pytest.mark.parametrize("bill", [None, Bill("p2", MONEY)])
    def test_the_bill_does_not_know(self, bill: Bill | None) -> None:
        found = one(compare(sides(CHARGE, bill=bill)))
        assert (found.kind, found.action, found.payment_id) == (Kind.LATE, Action.WAIT, "p1")
