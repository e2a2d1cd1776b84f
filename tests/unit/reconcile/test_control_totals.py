"""Control totals: what the acquirer holds against the account that says so, for all time and for periods."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.reconcile.matching import (
    Action,
    Amount,
    Comparison,
    ControlAccount,
    ControlTotal,
    DiscrepancyKind,
    Journal,
    Ours,
    PaidOrder,
    Period,
    Sides,
    Theirs,
    compare,
)


def settled(name: str, minor_units: int, *, at_ms: int = 0, currency: str = "CNY", sequence: int = 1) -> Sides:
    """A payment by card that all sides agree about; the journal is 10 ms and the order 20 ms after the charge."""
    amount = Amount(minor_units, currency)
    return Sides(
        (Theirs(f"{name}:1", "CHARGED", amount, name, at_ms),),
        (Ours(name, f"o-{name}", "SUCCEEDED", True, f"{name}:1", amount, f"j-{name}", at_ms - 10),),
        (Journal(f"j-{name}", name, f"o-{name}", sequence, at_ms + 10, amount, minor_units),),
        (PaidOrder(f"o-{name}", name, amount, at_ms + 20),),
    )


def together(*parts: Sides) -> Sides:
    return Sides(
        tuple(row for part in parts for row in part.theirs),
        tuple(row for part in parts for row in part.ours),
        tuple(row for part in parts for row in part.journals),
        tuple(row for part in parts for row in part.orders),
        tuple(row for part in parts for row in part.accounts),
    )


def reversed_at_both(sides: Sides, *, sequence: int = 2, at_ms: int = 0) -> Sides:
    """The same payment, undone."""
    (charge,), (payment,), (journal,) = sides.theirs, sides.ours, sides.journals
    amount = Amount(-journal.amount.minor_units, journal.amount.currency)
    undoing = replace(
        journal,
        journal_id=f"r-{journal.journal_id}",
        sequence=sequence,
        posted_at_ms=at_ms,
        amount=amount,
        owed=-journal.owed,
    )
    return Sides((replace(charge, state="REFUNDED"),), (replace(payment, state="REVERSED"),), (journal, undoing), ())


def one(compared: Comparison) -> ControlTotal:
    (total,) = compared.totals
    return total


def unexplained_in(compared: Comparison) -> list[str]:
    return [each.account_id for each in compared.discrepancies if each.kind is DiscrepancyKind.CONTROL_TOTAL]


class TestTotals:
    """Captured less refunded is what the ledger says that the acquirer owes."""

    def test_each_currency_has_a_total(self) -> None:
        compared = compare(together(settled("p1", 1250), settled("p2", 700, currency="JPY", sequence=2)))
        assert compared.totals == (
            ControlTotal("CNY", 1250, 0, 1250, 0, 0),
            ControlTotal("JPY", 700, 0, 700, 0, 0),
        )
        assert compared.discrepancies == ()

    def test_refunded_charge_is_captured_and_refunded(self) -> None:
        total = one(compare(reversed_at_both(settled("p1", 1250))))
        assert (total.captured, total.refunded, total.held, total.booked, total.difference) == (1250, 1250, 0, 0, 0)

    def test_account_without_any_charge_has_a_total_of_zero(self) -> None:
        compared = compare(Sides(accounts=(ControlAccount("acquirer:CNY", "CNY", 0, 0),)))
        assert compared.totals == (ControlTotal("CNY", 0, 0, 0, 0, 0),)

    def test_charge_declined_or_never_made_is_not_captured(self) -> None:
        (charge,) = settled("p1", 1250).theirs
        declined = replace(charge, state="DECLINED")
        tombstone = replace(charge, key="p2:1", state="TOMBSTONE", amount=None)
        assert compare(Sides((declined, tombstone))).totals == ()

    def test_older_payment_database_leaves_the_difference_named_and_explained(self) -> None:
        """One payment was lost while it stood, and one was reversed at the acquirer alone."""
        lost = settled("p2", 700, sequence=2)
        refunded = settled("p3", 1250, sequence=3)
        refunded = replace(refunded, theirs=(replace(refunded.theirs[0], state="REFUNDED"),), ours=())
        compared = compare(together(settled("p1", 500), replace(lost, ours=()), refunded))
        total = one(compared)
        assert (total.held, total.booked, total.difference) == (1200, 2450, -1250)
        assert (total.explained, total.unexplained) == (-1250, 0)
        assert {(each.kind, each.journal_id or each.order_id or each.key) for each in compared.discrepancies} == {
            (DiscrepancyKind.ONLY_THEIRS, "p2:1"),
            (DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT, "j-p2"),
            (DiscrepancyKind.ORDER_WITHOUT_PAYMENT, "o-p2"),
            (DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT, "j-p3"),
            (DiscrepancyKind.ORDER_WITHOUT_PAYMENT, "o-p3"),
        }

    def test_difference_that_nothing_explains_is_a_discrepancy(self) -> None:
        """A journal of a payment that is open: no class by itself names it."""
        sides = settled("p1", 1250)
        open_ = replace(sides, theirs=(), ours=(replace(sides.ours[0], state="SUBMITTED"),), orders=())
        (found,) = compare(open_).discrepancies
        assert (found.kind, found.action, found.account_id) == (
            DiscrepancyKind.CONTROL_TOTAL,
            Action.LOOK,
            "acquirer:CNY",
        )
        assert (found.theirs, found.ours) == (Amount(0, "CNY"), Amount(1250, "CNY"))

    def test_item_that_changed_between_the_readings_is_no_discrepancy(self) -> None:
        """The charge came between the two readings, and the journal is still to come."""
        sides = settled("p1", 1250)
        submitted = (replace(sides.ours[0], state="SUBMITTED", journal_id=""),)
        before = Sides(ours=submitted)
        compared = compare(Sides(sides.theirs, submitted), before=before)
        assert compared.discrepancies == ()
        assert (one(compared).difference, one(compared).moving, one(compared).unexplained) == (1250, 1250, 0)


class TestStoredBalance:
    """The stored balance of an account is the sum of the postings that it counts."""

    @pytest.mark.parametrize(("balance", "postings"), [(1950, 2), (1250, 1)])
    def test_balance_of_its_postings_is_no_discrepancy(self, balance: int, postings: int) -> None:
        """Journals posted after the balance was read do not matter."""
        sides = together(settled("p1", 1250), settled("p2", 700, sequence=2))
        account = ControlAccount("acquirer:CNY", "CNY", balance, postings)
        assert unexplained_in(compare(replace(sides, accounts=(account,)))) == []

    @pytest.mark.parametrize(("balance", "postings"), [(700, 2), (1950, 1), (1950, 3)])
    def test_balance_that_is_not_the_sum_of_its_postings_is_a_discrepancy(self, balance: int, postings: int) -> None:
        sides = together(settled("p1", 1250), settled("p2", 700, sequence=2))
        account = ControlAccount("acquirer:CNY", "CNY", balance, postings)
        assert unexplained_in(compare(replace(sides, accounts=(account,)))) == ["acquirer:CNY"]


class TestPeriods:
    """A payment lies in one period as a whole, by the time at which the acquirer decided on its charge."""

    def test_end_of_a_period_is_not_in_it(self) -> None:
        period = Period(100, 200)
        assert [at_ms in period for at_ms in (99, 100, 199, 200)] == [False, True, True, False]

    def test_charge_before_and_its_journal_after_midnight_are_in_one_total(self) -> None:
        sides = settled("p1", 1250, at_ms=995)
        assert one(compare(sides, Period(None, 1000))).difference == 0
        assert compare(sides, Period(1000, None)).totals == ()

    def test_refund_counts_in_the_period_of_its_charge(self) -> None:
        sides = reversed_at_both(settled("p1", 1250, at_ms=500), at_ms=5_000)
        total = one(compare(sides, Period(0, 1000)))
        assert (total.captured, total.refunded, total.booked) == (1250, 1250, 0)
        assert compare(sides, Period(1000, None)).totals == ()

    def test_totals_of_adjacent_periods_add_up(self) -> None:
        parts = [settled(f"p{number}", 100 + number, at_ms=number * 300, sequence=number) for number in range(1, 10)]
        stranger = Sides((Theirs("x:1", "CHARGED", Amount(77, "CNY"), "", 1_500),))
        sides = together(*parts, reversed_at_both(settled("p10", 50, at_ms=900), at_ms=2_900), stranger)
        whole = one(compare(sides))
        halves = [one(compare(sides, period)) for period in (Period(None, 1_500), Period(1_500, None))]
        for name in ("captured", "refunded", "booked", "difference", "explained"):
            assert getattr(whole, name) == sum(getattr(half, name) for half in halves), name
        assert halves[0].difference == 0
        assert halves[1].difference == halves[1].explained == 77

    @pytest.mark.parametrize(("period", "named"), [(Period(None, 1_000), True), (Period(1_000, None), False)])
    def test_payment_that_the_acquirer_does_not_know_is_in_the_period_it_was_accepted_in(
        self, period: Period, named: bool
    ) -> None:
        sides = replace(settled("p1", 1250, at_ms=1_005), theirs=())
        assert (DiscrepancyKind.ONLY_OURS in {each.kind for each in compare(sides, period).discrepancies}) is named

    def test_item_without_a_payment_is_in_the_period_of_its_journal_or_order(self) -> None:
        sides = replace(settled("p1", 1250, at_ms=995), theirs=(), ours=())
        assert {each.kind for each in compare(sides, Period(1_000, None)).discrepancies} == {
            DiscrepancyKind.JOURNAL_WITHOUT_PAYMENT,
            DiscrepancyKind.ORDER_WITHOUT_PAYMENT,
        }
        assert compare(sides, Period(None, 1_000)).discrepancies == ()
        order = replace(sides, journals=())
        kinds = [each.kind for each in compare(order, Period(1_015, 1_016)).discrepancies]
        assert kinds == [DiscrepancyKind.ORDER_WITHOUT_PAYMENT]

    def test_stored_balance_is_of_all_time(self) -> None:
        sides = replace(settled("p1", 1250), accounts=(ControlAccount("acquirer:CNY", "CNY", 9, 1),))
        assert unexplained_in(compare(sides, Period(0, 100))) == []
        assert unexplained_in(compare(sides)) == ["acquirer:CNY"]
