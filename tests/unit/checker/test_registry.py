"""All checks together: what they examine, what is told, what is named as not examined; and that each can fail."""

from __future__ import annotations

import pytest

from services.checker.findings import Verdict, verdict_of
from services.checker.registry import Options, run_checks
from services.kernel.clock import SystemClock
from tests.unit.checker.cases import by_all
from tests.unit.checker.checks import test_acquirer, test_answers, test_ledger, test_orders, test_settlement, test_trail
from tests.unit.checker.dataset import DatasetBuilder, legal, with_cards

_ALL_CASES = [
    module.CASES for module in (test_acquirer, test_answers, test_ledger, test_orders, test_settlement, test_trail)
]
_ASKED_FOR = {
    "acquirer log whole": "the acquirer's log was not read",
    "charged once per key": "the acquirer's log was not read",
    "acquirer agrees with ledger": "the acquirer's log was not read",
    "acknowledged is kept": "no history was given",
    "refused without effect": "no history was given",
    "mismatches refused": "no history was given",
    "reads were written": "no history was given",
    "reads go forward": "no history was given",
    "leases are kept": "the time of reading was not given",
    "orders linearizable": "no history was given",
}


def test_legal_dataset_passes_and_everything_was_examined() -> None:
    """The counts are of what there was to look at, so that a check that looks at nothing is seen."""
    found = by_all(with_cards())
    assert {name for name, check in found.items() if check.verdict is not Verdict.OK or check.skipped} == set()
    assert {name: check.examined for name, check in found.items()} == {
        "postings balance": 18,
        "journals unaltered": 9,
        "business keys unique": 9,
        "settled at most once": 5,
        "reversed at most once": 2,
        "paid means charged": 5,
        "payments match journals": 8,
        "one charge per key": 8,
        "acquirer log whole": 6,
        "charged once per key": 2,
        "acquirer agrees with ledger": 2,
        "cards agree": 0,  # see test_cards.py
        "answers are true": 10,
        "acknowledged is kept": 16,
        "refused without effect": 1,
        "refusals kept": 0,
        "replays identical": 17,
        "mismatches refused": 17,
        "fences never fall": 46,
        "moves are legal": 46,
        "changes are signed": 46,
        "reads were written": 17,
        "reads go forward": 3,
        "requests are whole": 19,
        "leases are kept": 19,
        "nothing left over": 34,
        "outbox delivered once": 8,
        "balances true": 5,
        "orders linearizable": 5,
    }


def test_empty_books_pass() -> None:
    assert all(check.ok for check in run_checks(DatasetBuilder().snapshot()))


def test_check_without_evidence_is_skipped_and_ok() -> None:
    """A check without its evidence is listed as not examined, and does not change the verdict."""
    checks = run_checks(legal().snapshot())
    assert {check.name: check.skipped for check in checks if check.skipped} == _ASKED_FOR
    assert {check.examined for check in checks if check.skipped} == {0}
    assert verdict_of(checks) is Verdict.OK


@pytest.mark.parametrize("name", [name for name in by_all(legal()) if name != "cards agree"])
def test_every_check_has_a_history_that_breaks_it_and_one_that_nearly_does(name: str) -> None:
    """A check that can never fail proves nothing, nor does one that fails for what is lawful.

    Those of cards are in `test_cards.py`.
    """
    assert any(name in case.broken for cases in _ALL_CASES for case in cases.illegal_ones)
    assert any(name in case.near for cases in _ALL_CASES for case in cases.lawful_ones)


def test_order_limit_is_ten_seconds_by_default() -> None:
    assert Options(SystemClock()).order_limit_s == 10.0
