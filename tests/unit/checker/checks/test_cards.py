"""The acquirer's keys against the books: each disagreement is found, and named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.acquirer_log import AcquirerLog
from services.checker.findings import Check, Verdict
from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.rows import Row

AMOUNT = 1250


def charge(payment: Row, *, key: str = "", state: str = "CHARGED", amount: int = AMOUNT, reference: str = "") -> Row:
    """A key at the acquirer."""
    return {
        "key": key or payment["acquirer_key"],
        "state": state,
        "reference": reference or payment["payment_id"],
        "amount_minor": amount,
        "currency": "CNY",
    }


def by_card() -> tuple[DatasetBuilder, Row]:
    """An order that was settled by card, and one from the drawer; the card payment."""
    dataset = DatasetBuilder()
    dataset.account("acquirer:CNY", "ASSET")
    dataset.new_order("cash")
    dataset.settle("cash")
    dataset.new_order("card", AMOUNT)
    payment = dataset.settle("card", source="acquirer")
    payment.update(source="CARD", acquirer_key=f"{payment['payment_id']}:1")
    return dataset, payment


def found(snapshot: Snapshot, *, restored: bool = False) -> tuple[str, ...]:
    """What the check says."""
    (check,) = [check for check in run_checks(snapshot, restored=restored) if check.name == "cards agree"]
    assert check.examined == 1
    return check.violations


def agreement(snapshot: Snapshot, acquirer: AcquirerLog | None = None) -> Check:
    """The check itself."""
    (check,) = [check for check in run_checks(snapshot, acquirer=acquirer) if check.name == "cards agree"]
    return check


def test_card_payment_charged_under_its_key_is_ok() -> None:
    """That and the drawer's, which the acquirer has nothing to do with."""
    dataset, payment = by_card()
    assert found(replace(dataset.snapshot(), charges=(charge(payment),))) == ()


@pytest.mark.parametrize("state", ["DECLINED", "REFUNDED", "TOMBSTONE", ""])
def test_succeeded_payment_without_a_charge_is_a_violation(state: str) -> None:
    """The ledger says that it owes; nothing was charged, or it was given back."""
    dataset, payment = by_card()
    charges = (charge(payment, state=state),) if state else ()
    (said,) = found(replace(dataset.snapshot(), charges=charges))
    assert said == f"payment {payment['payment_id']}: the acquirer holds 0, and the ledger says {AMOUNT}"


def test_parked_payment_is_compared_only_once_its_key_is_reversed() -> None:
    """The acquirer may hold a late charge until then."""
    dataset, payment = by_card()
    payment.update(state="PARKED")
    assert found(replace(dataset.snapshot(), charges=(charge(payment, amount=AMOUNT + 1),))) == ()


def test_charge_of_another_amount_is_a_violation() -> None:
    dataset, payment = by_card()
    (said,) = found(replace(dataset.snapshot(), charges=(charge(payment, amount=AMOUNT + 1),)))
    assert f"holds {AMOUNT + 1}" in said


def test_second_charge_of_a_payment_is_a_violation() -> None:
    """Under other keys: what happens without the guard `acquirer-key`."""
    dataset, payment = by_card()
    charges = (charge(payment), charge(payment, key="key_9"), charge(payment, key="key_10"))
    said = found(replace(dataset.snapshot(), charges=charges))
    assert f"payment {payment['payment_id']} was charged under key_9, key_10; its key is " in said[0]
    assert f"holds {3 * AMOUNT}" in said[1]


def test_charge_of_an_unknown_payment_is_a_violation() -> None:
    dataset, payment = by_card()
    charges = (charge(payment), *(charge(payment, key=key, reference="pay_77") for key in ("key_9", "key_10")))
    (said,) = found(replace(dataset.snapshot(), charges=charges))
    assert said == "the acquirer holds money under key_9, key_10 for pay_77, which is no payment by card"


def test_charge_of_a_payment_that_a_backup_does_not_hold_is_no_violation() -> None:
    """One of a payment that the books do hold, and not by card, still is."""
    dataset, payment = by_card()
    (cash,) = [
        str(row["payment_id"]) for row in dataset.snapshot().payments if row is not payment and row["source"] != "CARD"
    ]
    unknown = charge(payment, key="key_9", reference="pay_77")
    assert found(replace(dataset.snapshot(), charges=(charge(payment), unknown)), restored=True) == ()
    known = charge(payment, key="key_10", reference=cash)
    (said,) = found(replace(dataset.snapshot(), charges=(charge(payment), unknown, known)), restored=True)
    assert said == f"the acquirer holds money under key_10 for {cash}, which is no payment by card"


def test_charge_without_a_reference_is_a_violation() -> None:
    dataset, payment = by_card()
    charges = (charge(payment), charge(payment, key="key_9") | {"reference": ""})
    (said,) = found(replace(dataset.snapshot(), charges=charges))
    assert said == "the acquirer holds money under key_9 for nothing, which is no payment by card"


def test_charge_without_a_payment_is_no_violation_once_it_is_refunded() -> None:
    """People refunded it by its key, as `reconcile --refund` does: the acquirer holds nothing."""
    dataset, payment = by_card()
    unknown = charge(payment, key="key_9", reference="pay_77", state="REFUNDED")
    unnamed = charge(payment, key="key_10", state="REFUNDED") | {"reference": ""}
    assert found(replace(dataset.snapshot(), charges=(charge(payment), unknown, unnamed))) == ()


def test_reversal_not_sent_to_the_acquirer_is_a_violation() -> None:
    """The books have given it back, and the acquirer holds it."""
    dataset, payment = by_card()
    dataset.reverse(payment)
    assert found(replace(dataset.snapshot(), charges=(charge(payment, state="REFUNDED"),))) == ()
    (said,) = found(replace(dataset.snapshot(), charges=(charge(payment),)))
    assert f"holds {AMOUNT}, and the ledger says 0" in said


def test_payment_that_has_not_ended_is_open() -> None:
    """And is listed by another check, charged or not."""
    dataset, payment = by_card()
    payment["state"] = "UNKNOWN"
    assert found(replace(dataset.snapshot(), charges=())) == ()
    assert found(replace(dataset.snapshot(), charges=(charge(payment),))) == ()


def test_card_payments_without_the_acquirer_are_undecided() -> None:
    """Without its database nothing is proved, and nothing is wrong either."""
    dataset, _ = by_card()
    check = agreement(dataset.snapshot())
    said = ("there are card payments, and the acquirer was not read",)
    assert (check.examined, check.violations, check.undecided, check.skipped) == (0, (), said, "")
    assert check.verdict is Verdict.UNKNOWN


def test_card_payments_with_the_acquirers_log_alone_are_left_to_the_checks_of_the_log() -> None:
    dataset, _ = by_card()
    check = agreement(dataset.snapshot(), acquirer=())
    assert (check.examined, check.violations, check.undecided) == (0, (), ())
    assert check.skipped == "the acquirer's database was not read; its log was"


def test_books_without_card_payments_need_no_acquirer() -> None:
    dataset = DatasetBuilder()
    check = agreement(dataset.snapshot())
    assert (check.examined, check.verdict, check.skipped) == (0, Verdict.OK, "")


class TestReversedWithoutJournal:
    """A card payment that was undone before anybody knew whether it was charged, and was not."""

    def lawful(self) -> tuple[DatasetBuilder, Row]:
        dataset = DatasetBuilder()
        dataset.new_order("card", AMOUNT)
        payment = dataset.accept("card", "Settle", "s1", "li")
        dataset.move_order("card", "PAYING", 1, payment["payment_id"])
        payment.update(source="CARD", acquirer_key="k:1", amount_minor=AMOUNT, currency="CNY")
        for state in ("SUBMITTED", "UNKNOWN", "REVERSING", "REVERSED"):
            dataset.move_payment(payment, state, 2)
        dataset.request("wu", "Reverse", "v1")
        payment.update(reversal_caller="wu", reversal_role="accountant", reversal_key="v1")
        dataset.answer("wu", "Reverse", "v1")
        dataset.answer("li", "Settle", "s1", ok=False)
        dataset.move_order("card", "UNPAID", 2, payment["payment_id"])
        dataset.deliver(payment, "RELEASE")
        return dataset, payment

    def test_reversal_without_a_charge_is_ok(self) -> None:
        """No journal, an acknowledged reversal, a refused request, and an order that is free."""
        dataset, payment = self.lawful()
        snapshot = replace(dataset.snapshot(), charges=(charge(payment, state="TOMBSTONE"),))
        assert [check for check in run_checks(snapshot, dataset.answers) if not check.ok] == []

    def test_reversal_without_a_journal_but_with_a_charge_is_a_violation(self) -> None:
        """Captured, and reversed as never charged."""
        dataset, payment = self.lawful()
        snapshot = replace(dataset.snapshot(), charges=(charge(payment),))
        assert [check.name for check in run_checks(snapshot, dataset.answers) if not check.ok] == ["cards agree"]
