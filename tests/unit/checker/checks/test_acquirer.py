"""The checks of the acquirer's own log, and of it and the ledger together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.checker.evidence import Evidence
from services.checker.registry import run_checks
from tests.unit.checker.cases import Cases, Illegal, Lawful, by_all, payment
from tests.unit.checker.dataset import DatasetBuilder, with_cards

CASES = Cases(by_all, build=with_cards)
_CARDED = "settle-carded-1"


def card(dataset: DatasetBuilder) -> str:
    """The payment that was made by card and stands."""
    return str(payment(dataset, _CARDED)["payment_id"])


def stranger(dataset: DatasetBuilder, decision: str, key: str, *, amount: int = 5) -> None:
    """The acquirer decides on a key that is none of ours, and names no payment."""
    dataset.at_acquirer({"payment_id": "", "amount_minor": amount}, decision)
    dataset.charges[-2:] = [replace(record, key=key) for record in dataset.charges[-2:]]


@CASES.illegal("entry 3 of the acquirer's log has sequence 4", "acquirer log whole")
def an_entry_that_is_missing(dataset: DatasetBuilder) -> None:
    del dataset.charges[2]


@CASES.illegal("key pay_06:1 was CHARGED, and then CHARGED", "charged once per key", "acquirer agrees with ledger")
def a_key_charged_twice(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer(payment(dataset, _CARDED), "CHARGED")


@CASES.illegal("key pay_07:1 was REFUNDED, and then REFUNDED", "charged once per key", "acquirer agrees with ledger")
def a_key_refunded_twice(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer(payment(dataset, "settle-returned-1"), "REFUNDED")


@CASES.illegal("key pay_06:2 was TOMBSTONE, and then CHARGED", "charged once per key", "acquirer agrees with ledger")
def a_late_charge_under_a_closed_key(dataset: DatasetBuilder) -> None:
    for decision in ("TOMBSTONE", "CHARGED"):
        dataset.at_acquirer(payment(dataset, _CARDED), decision, attempt=2)


@CASES.illegal("key pay_06:2 was unseen, and then REFUNDED", "charged once per key", "acquirer agrees with ledger")
def a_refund_of_nothing(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer(payment(dataset, _CARDED), "REFUNDED", attempt=2)


@CASES.illegal("key pay_07:1 moved 4.80 CNY in and 4.79 CNY out", "charged once per key", "acquirer agrees with ledger")
def a_refund_of_a_part(dataset: DatasetBuilder) -> None:
    dataset.charges[-1] = replace(dataset.charges[-1], amount_minor=479)


@CASES.illegal("the acquirer took 6.40 CNY for pay_06; in the ledger: 3.20 CNY", "acquirer agrees with ledger")
def a_double_charge(dataset: DatasetBuilder) -> None:
    """A retry after a failure made a new key, and the old one had been charged."""
    dataset.at_acquirer(payment(dataset, _CARDED), "CHARGED", attempt=2)


@CASES.illegal("the acquirer took nothing for pay_06; in the ledger: 3.20 CNY", "acquirer agrees with ledger")
def a_card_that_was_never_charged(dataset: DatasetBuilder) -> None:
    del dataset.charges[:2]
    dataset.charges = [replace(record, sequence=record.sequence - 2) for record in dataset.charges]


@CASES.illegal("the acquirer took 3.20 USD for pay_06; in the ledger: 3.20 CNY", "acquirer agrees with ledger")
def a_charge_in_another_currency(dataset: DatasetBuilder) -> None:
    dataset.charges[1] = replace(dataset.charges[1], currency="USD")


@CASES.illegal("the acquirer was asked under pay_99:1 for pay_99, which is no payment", "acquirer agrees with ledger")
def a_charge_for_nobody(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer({"payment_id": "pay_99", "amount_minor": 5}, "CHARGED")


@CASES.lawful("charged once per key", "acquirer agrees with ledger")
def a_charge_for_nobody_that_is_refunded(dataset: DatasetBuilder) -> None:
    """Another system charged it in the same merchant account, and people refunded it by its key."""
    for decision in ("CHARGED", "REFUNDED"):
        stranger(dataset, decision, "stranger_1")
        dataset.at_acquirer({"payment_id": "pay_99", "amount_minor": 5}, decision)


@CASES.illegal(
    "the acquirer was asked under stranger_3 for nothing, which is no payment", "acquirer agrees with ledger"
)
def a_charge_for_nobody_beside_one_that_is_refunded(dataset: DatasetBuilder) -> None:
    """Each key counts by itself, though none of them names a payment."""
    for key in ("stranger_2", "stranger_3"):
        stranger(dataset, "CHARGED", key)
    stranger(dataset, "REFUNDED", "stranger_2")


@CASES.illegal(
    "the acquirer was asked under stranger_1 for nothing, which is no payment",
    "charged once per key",
    "acquirer agrees with ledger",
)
def a_charge_for_nobody_that_is_refunded_in_part(dataset: DatasetBuilder) -> None:
    stranger(dataset, "CHARGED", "stranger_1")
    stranger(dataset, "REFUNDED", "stranger_1", amount=4)


@CASES.illegal(
    "the acquirer was asked under stranger_1 for nothing, which is no payment",
    "charged once per key",
    "acquirer agrees with ledger",
)
def a_charge_for_nobody_that_is_refunded_and_charged_again(dataset: DatasetBuilder) -> None:
    for decision in ("CHARGED", "REFUNDED", "CHARGED"):
        stranger(dataset, decision, "stranger_1")


@CASES.illegal(
    "the acquirer was asked under pay_06:1 for pay_06, which is no payment",
    "acquirer agrees with ledger",
    "paid means charged",
    "payments match journals",
    "answers are true",
    "acknowledged is kept",
)
def a_refunded_charge_of_a_lost_payment_that_the_ledger_has(dataset: DatasetBuilder) -> None:
    """The payment database has lost it; the ledger still says that the acquirer owes it."""
    made = payment(dataset, _CARDED)
    dataset.at_acquirer(made, "REFUNDED")
    dataset.payments.remove(made)


@CASES.illegal("the acquirer took nothing for pay_06; in the ledger: 3.20 CNY", "acquirer agrees with ledger")
def a_charge_of_a_succeeded_payment_that_is_refunded(dataset: DatasetBuilder) -> None:
    """It is given back at the acquirer, and not in our books."""
    dataset.at_acquirer(payment(dataset, _CARDED), "REFUNDED")


@CASES.illegal("the acquirer took 12.50 CNY for pay_02; in the ledger: nothing", "acquirer agrees with ledger")
def a_declined_payment_that_was_charged(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer(payment(dataset, "too-late"), "CHARGED", amount=1250)


@CASES.lawful("charged once per key", "acquirer agrees with ledger", "acquirer log whole")
def a_card_that_declined_first(dataset: DatasetBuilder) -> None:
    """A new attempt has a new key, for the first was definitively declined."""
    dataset.new_order("twice", 90)
    made = dataset.settle("twice", source="acquirer")
    dataset.at_acquirer(made, "DECLINED")
    dataset.at_acquirer(made, "CHARGED", attempt=2)


@CASES.lawful("charged once per key", "acquirer agrees with ledger")
def a_key_closed_before_it_was_charged(dataset: DatasetBuilder) -> None:
    """Nobody knew the outcome, so it was reversed by its key; the payment was declined."""
    dataset.at_acquirer(payment(dataset, "too-late"), "TOMBSTONE", amount=1250)


@CASES.lawful("charged once per key", "acquirer agrees with ledger")
def a_charge_asked_for_again(dataset: DatasetBuilder) -> None:
    """The reply was lost; asked again, the acquirer answers as it stands."""
    for decision in ("RECEIVED", "REPEATED"):
        dataset.charges.append(replace(dataset.charges[1], sequence=len(dataset.charges) + 1, decision=decision))


@CASES.lawful("acquirer agrees with ledger")
def a_difference_that_is_listed(dataset: DatasetBuilder) -> None:
    """People have it before them."""
    payment(dataset, "too-late")["attention"] = "ACQUIRER_SILENT"
    dataset.at_acquirer(payment(dataset, "too-late"), "CHARGED", amount=1250)


@pytest.mark.parametrize("state", ["SUBMITTED", "UNKNOWN", "REVERSING"])
def test_charge_of_a_payment_that_has_not_ended_is_open(state: str) -> None:
    """The acquirer took the money, and its answer was lost; `nothing left over` lists the payment."""
    dataset = with_cards()
    made = dataset.accept("", "Pay", "ticket-2", "li")
    made.update(amount_minor=70, currency="CNY", payer_account_id="acquirer:CNY")
    dataset.move_payment(made, state, 0)
    dataset.at_acquirer(made, "CHARGED", amount=70)
    checks = run_checks(dataset.snapshot(), acquirer=dataset.acquirer_log(), now_ms=dataset.now_ms())
    (agreement,) = [check for check in checks if check.name == "acquirer agrees with ledger"]
    assert (agreement.violations, agreement.undecided) == ((), ())


@CASES.illegal("key pay_06:2 was DECLINED, and then CHARGED", "charged once per key", "acquirer agrees with ledger")
def a_declined_key_that_is_charged(dataset: DatasetBuilder) -> None:
    for decision in ("DECLINED", "CHARGED"):
        dataset.at_acquirer(payment(dataset, _CARDED), decision, attempt=2)


@CASES.illegal("the acquirer was asked under pay_99:1 for pay_99, which is no payment", "acquirer agrees with ledger")
def a_key_closed_for_nobody(dataset: DatasetBuilder) -> None:
    """No money moved, and yet nobody can have asked for it."""
    dataset.at_acquirer({"payment_id": "pay_99", "amount_minor": 5}, "TOMBSTONE")


def test_restored_books_may_not_know_every_payment() -> None:
    """The acquirer was asked for it after the backup was taken. What the books do know must agree as ever."""
    dataset = with_cards()
    dataset.at_acquirer({"payment_id": "pay_99", "amount_minor": 5}, "CHARGED")

    def agreement(*, restored: bool) -> tuple[str, ...]:
        checks = run_checks(
            dataset.snapshot(), acquirer=dataset.acquirer_log(), now_ms=dataset.now_ms(), restored=restored
        )
        (check,) = [check for check in checks if check.name == "acquirer agrees with ledger"]
        return check.violations

    assert agreement(restored=False) == ("the acquirer was asked under pay_99:1 for pay_99, which is no payment",)
    assert agreement(restored=True) == ()
    del dataset.charges[:2]
    dataset.charges = [replace(record, sequence=record.sequence - 2) for record in dataset.charges]
    assert agreement(restored=True) == ("the acquirer took nothing for pay_06; in the ledger: 3.20 CNY",)


def test_books_are_not_taken_for_restored_ones_unless_that_is_said() -> None:
    dataset = with_cards()
    evidence = Evidence(dataset.snapshot(), (), None, None, dataset.now_ms(), ended=True)
    assert not evidence.restored


@CASES.illegal(
    "the acquirer took 3.20 CNY, 0.07 USD for pay_06; in the ledger: 3.20 CNY", "acquirer agrees with ledger"
)
def a_charge_in_two_currencies(dataset: DatasetBuilder) -> None:
    dataset.at_acquirer(payment(dataset, _CARDED), "CHARGED", attempt=2, amount=7)
    dataset.charges[-1] = replace(dataset.charges[-1], currency="USD")


@pytest.mark.parametrize("case", CASES.illegal_ones, ids=str)
def test_illegal_history_is_named(case: Illegal) -> None:
    """By the checks it breaks, in words, and by no other."""
    CASES.is_named(case)


@pytest.mark.parametrize("case", CASES.lawful_ones, ids=str)
def test_lawful_oddity_passes(case: Lawful) -> None:
    CASES.passes(case)


@pytest.mark.parametrize(("state", "found"), [("PARKED", []), ("REVERSED", ["the acquirer took 0.70 CNY for {}"])])
def test_late_charge_of_a_parked_payment_is_open_until_its_key_is_reversed(state: str, found: list[str]) -> None:
    """The acquirer is owed the reversal; a payment that says REVERSED while the acquirer has the money is wrong."""
    dataset = with_cards()
    parked = dataset.park("open", 70)
    if state == "REVERSED":
        dataset.move_payment(parked, "REVERSED", parked["fence_token"])
    dataset.at_acquirer(parked, "CHARGED", amount=70)
    checks = run_checks(dataset.snapshot(), acquirer=dataset.acquirer_log(), now_ms=dataset.now_ms())
    (agreement,) = [check for check in checks if check.name == "acquirer agrees with ledger"]
    assert [said.partition(";")[0] for said in agreement.violations] == [
        sentence.format(parked["payment_id"]) for sentence in found
    ]
