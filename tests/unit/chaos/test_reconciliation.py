"""The end of a chaos run is reconciled: nothing open but what waits for people, and every total even but for that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from services.chaos import reconciliation
from services.chaos.reconciliation import NAME, balanced, reconcile
from services.checker.findings import Check, Verdict
from services.kernel.errors import Unavailable
from services.reconcile.matching import Amount, Journal, Ours, Sides, Theirs, compare
from services.reconcile.reading import Reconciliation
from services.testkit.client import RecordingClient

MONEY = Amount(1250, "CNY")
AGREED = Sides(
    (Theirs("p1:1", "CHARGED", MONEY, "p1", 10),),
    (Ours("p1", "", "SUCCEEDED", True, "p1:1", MONEY, "j1", 5),),
    (Journal("j1", "p1", "", 1, 20, MONEY, 1250),),
)
STRANGER = Theirs("x:1", "CHARGED", MONEY, "", 30)
#: The acquirer holds the money of a payment that has not heard of it.
UNHEARD = replace(AGREED, ours=(replace(AGREED.ours[0], state="UNKNOWN", journal_id=""),), journals=())


def check(sides: Sides) -> Check:
    return balanced(Reconciliation(sides, compare(sides))).check(NAME)


def test_sides_that_agree_are_ok() -> None:
    assert (check(AGREED).verdict, check(AGREED).examined) == (Verdict.OK, 3)


def test_open_discrepancy_is_violated_and_names_the_total() -> None:
    found = check(replace(AGREED, theirs=(*AGREED.theirs, STRANGER)))
    assert found.violations == (
        "only theirs: x:1: theirs 12.50 CNY, ours nothing",
        "acquirer:CNY is 1250, and the acquirer holds 2500",
    )


def test_payment_that_waits_for_people_is_no_violation() -> None:
    """It is open and listed, and explains the difference of the totals."""
    assert check(UNHEARD).verdict is Verdict.VIOLATED
    waiting = replace(UNHEARD, ours=(replace(UNHEARD.ours[0], attention="ACQUIRER_DOWN"),))
    assert check(waiting).verdict is Verdict.OK


def test_payment_that_waits_for_people_excuses_no_other_difference() -> None:
    waiting = replace(UNHEARD, ours=(replace(UNHEARD.ours[0], attention="ACQUIRER_DOWN"),))
    found = check(replace(waiting, theirs=(*waiting.theirs, STRANGER)))
    assert [words.partition(":")[0] for words in found.violations] == ["only theirs", "acquirer"]


def test_total_that_differs_without_a_reason_is_violated() -> None:
    submitted = replace(AGREED.ours[0], state="SUBMITTED")
    found = check(replace(AGREED, theirs=(), ours=(submitted,)))
    assert found.violations[-1] == "acquirer:CNY is 1250, and the acquirer holds 0"


async def test_services_that_do_not_answer_leave_the_check_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: Any) -> Reconciliation:
        raise Unavailable("SERVICE_UNAVAILABLE", "no endpoint")

    monkeypatch.setattr(reconciliation, "find", silent)
    found = await reconcile(cast(RecordingClient, None))
    assert (found.verdict, found.undecided) == (Verdict.UNKNOWN, ("SERVICE_UNAVAILABLE: no endpoint",))
