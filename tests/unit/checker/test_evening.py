"""Made-up evenings: lawful ones are accepted whatever the weather, and one change to them is found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.checker.checks import run_checks
from services.checker.history import History, Outcome
from services.checker.linearizability import Budget, Deed, has_order
from services.checker.order_calls import order_calls
from services.checker.order_check import orders_linearizable
from services.checker.order_model import State, before_all, own_step
from services.checker.verdict import Check, Verdict, verdict_of
from services.kernel.clock import SystemClock
from tests.unit.checker.evening import CALM, STORM, Evening, Weather
from tests.unit.checker.mutations import MUTATIONS
from tests.unit.checker.scribe import Scribe

_LIMIT_S = 5.0
#: Evenings of which one witness is changed, for each way of changing one.
_CHANGED = 12
_evenings = st.builds(
    Evening,
    seed=st.integers(0, 2**32),
    orders=st.integers(1, 3),
    calls=st.integers(1, 16),
    at_once=st.integers(1, 6),
    weather=st.sampled_from((CALM, Weather(), STORM)),
)
_slow = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def examined(scribe: Scribe) -> list[Check]:
    """By every check there is evidence for."""
    return run_checks(scribe.books(), scribe.answers, history=scribe.history(), now_ms=scribe.now_ms())


def alone(history: History) -> tuple[list[str], list[str]]:
    """What the calls by themselves say: violations, and what is undecided."""
    found = orders_linearizable(history, None, SystemClock(), limit_s=_LIMIT_S, on_progress=lambda _done, _of: None)
    return list(found.violations), list(found.undecided)


@_slow
@given(_evenings)
def test_a_lawful_evening_is_accepted(evening: Evening) -> None:
    """With all witnesses: whoever timed out, died, froze or came late."""
    checks = examined(evening.pass_by())
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []


@_slow
@given(_evenings)
def test_the_calls_alone_are_accepted(evening: Evening) -> None:
    """Also if nobody knows which payment belongs to which request."""
    assert alone(evening.pass_by().history())[0] == []


@_slow
@given(_evenings, st.randoms(use_true_random=False))
def test_outcomes_may_be_forgotten(evening: Evening, rng: random.Random) -> None:
    """A caller who is told nothing contradicts nobody."""
    scribe = evening.pass_by()
    for call in scribe.calls:
        if rng.random() < 0.3:
            call.answer, call.outcome = replace(call.answer, code="", reason="", state=""), Outcome.INFO
    assert alone(scribe.history())[0] == []


@_slow
@given(_evenings, st.floats(0, 1))
def test_a_recording_may_break_off_at_any_moment(evening: Evening, part: float) -> None:
    """What holds for the whole history holds for its beginning."""
    scribe = evening.pass_by()
    calls = scribe.history().operations
    moment_ns = int(part * max(call.answered_ns or 0 for call in calls))
    kept = [call for call in calls if call.invoked_ns <= moment_ns]
    for call in kept:
        if (call.answered_ns or 0) > moment_ns:
            call.answered_ns, call.outcome = None, Outcome.INFO
    scribe.calls = kept
    checks = run_checks(scribe.books(), history=replace(scribe.history(), whole=False))
    assert [(check.name, check.violations) for check in checks if check.violations] == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_change_is_found(name: str) -> None:
    """Of evenings in which one witness says something else none is accepted."""
    found: Counter[Verdict] = Counter()
    for seed in range(10 * _CHANGED):
        rng = random.Random(seed)
        scribe = Evening(seed, orders=2, calls=10, weather=(CALM, Weather())[seed % 2]).pass_by()
        if MUTATIONS[name](scribe, rng):
            found[verdict_of(examined(scribe))] += 1
        if found.total() == _CHANGED:
            break
    assert found.total() == _CHANGED
    assert found[Verdict.OK] == 0, found


# The search itself, held against one that tries everything


def brute(deeds: Sequence[Deed], start: State) -> bool:
    """Every order there is, tried one after the other."""
    seen: set[tuple[State, frozenset[tuple[int, int]]]] = set()

    def is_possible(state: State, done: frozenset[tuple[int, int]]) -> bool:
        if (state, done) in seen:
            return False
        seen.add((state, done))
        waiting = [
            (number, deed)
            for number, deed in enumerate(deeds)
            if deed.answered_ns is not None and any((number, part) not in done for part in range(len(deed.moves)))
        ]
        if not waiting:
            return True
        soonest_ns = min(deed.answered_ns or 0 for _, deed in waiting)
        by_itself = own_step(state)
        if by_itself is not None and is_possible(by_itself, done):
            return True
        for number, deed in enumerate(deeds):
            if deed.invoked_ns > soonest_ns:
                continue
            for part, move in enumerate(deed.moves):
                after = move.apply(state) if (number, part) not in done else None
                if after is not None and is_possible(after, done | {(number, part)}):
                    return True
        return False

    return is_possible(start, frozenset())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_the_search_finds_what_trying_everything_finds(seed: int, changed: bool, with_books: bool) -> None:
    """Neither more nor less: what it leaves out makes no difference."""
    rng = random.Random(seed)
    weather = rng.choice((CALM, Weather(), STORM))
    scribe = Evening(seed, orders=1, calls=rng.randrange(1, 8), at_once=3, weather=weather).pass_by()
    if changed:
        MUTATIONS[rng.choice(("another state", "another version", "another payment", "done but refused"))](scribe, rng)
    for order in order_calls(scribe.history(), scribe.books() if with_books else None):
        start = before_all(order.names)
        assert has_order(order.deeds, start, Budget.of(_LIMIT_S, SystemClock())) is brute(order.deeds, start)
