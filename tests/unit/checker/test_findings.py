"""What a check found, and what is said of all of them."""

from __future__ import annotations

import pytest

from services.checker.findings import Check, Findings, Verdict, shortened, verdict_of

_OK = Check("a", 1)
_VIOLATED = Check("b", 1, ("wrong",))
_UNKNOWN = Check("c", 1, (), ("not decided",))
_SKIPPED = Check("d", 0, skipped="nobody asked")


@pytest.mark.parametrize(
    ("check", "ok", "verdict"),
    [
        (_OK, True, "ok"),
        (_VIOLATED, False, "violated"),
        (_UNKNOWN, True, "unknown"),
        (_SKIPPED, True, "ok"),
        (Check("e", 1, ("wrong",), ("not decided",)), False, "violated"),
    ],
)
def test_check_has_one_verdict(check: Check, ok: bool, verdict: str) -> None:
    """What is wrong outweighs what is not decided; what nobody asked for weighs nothing."""
    assert (check.ok, check.verdict) == (ok, verdict)


@pytest.mark.parametrize(
    ("checks", "verdict"),
    [
        ([], Verdict.OK),
        ([_OK, _SKIPPED], Verdict.OK),
        ([_OK, _UNKNOWN], Verdict.UNKNOWN),
        ([_UNKNOWN, _VIOLATED, _OK], Verdict.VIOLATED),
    ],
)
def test_worst_verdict_decides(checks: list[Check], verdict: Verdict) -> None:
    assert verdict_of(checks) is verdict


def test_finding_gets_its_name() -> None:
    assert Findings(3, iter(["wrong"]), iter(["not decided"])).check("a") == Check(
        "a", 3, ("wrong",), ("not decided",), ""
    )
    assert Findings(3).check("a") == Check("a", 3, (), (), "") == Check("a", 3)


@pytest.mark.parametrize(
    ("there_are", "told", "last"), [(20, 20, "19"), (21, 20, "and 2 more"), (40, 20, "and 21 more")]
)
def test_twenty_violations_are_listed_and_the_rest_counted(there_are: int, told: int, last: str) -> None:
    """A reader does not read a thousand lines that say the same."""
    words = [str(number) for number in range(there_are)]
    check = Findings(1, words, words).check("a")
    assert len(check.violations) == len(check.undecided) == told
    assert check.violations[-1] == check.undecided[-1] == last


@pytest.mark.parametrize(
    ("there_are", "told", "last"),
    [(0, 0, ""), (3, 3, "2"), (4, 4, "and 1 more"), (20, 4, "and 17 more"), (40, 4, "and 37 more")],
)
def test_shortened_sentences_count_all_that_are_left_out(there_are: int, told: int, last: str) -> None:
    """Also those that the check itself has counted."""
    check = Findings(there_are, (str(number) for number in range(there_are))).check("a check")
    few = shortened(check.violations, 3)
    assert len(few) == told
    assert "".join(few[-1:]) == last
