"""Simulations: legal ones are accepted at any fault rates, and one change to them is found."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.checker.checks.orders import orders_linearizable
from services.checker.findings import Check, Verdict, verdict_of
from services.checker.history import History, Outcome
from services.checker.linearizability.order_calls import order_calls
from services.checker.linearizability.order_model import Move, OrderModel, State
from services.checker.linearizability.search import Budget, Operation, is_linearizable
from services.checker.registry import run_checks
from services.kernel.clock import SystemClock
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.mutations import MUTATIONS
from tests.unit.checker.simulated_services import HIGH, NONE, FaultRates
from tests.unit.checker.simulation import Simulation

_LIMIT_S = 5.0
#: Simulations that are changed, for each way of changing one.
_CHANGED = 12
_simulations = st.builds(
    Simulation,
    seed=st.integers(0, 2**32),
    orders=st.integers(1, 3),
    calls=st.integers(1, 16),
    at_once=st.integers(1, 6),
    rates=st.sampled_from((NONE, FaultRates(), HIGH)),
)
_slow = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def examined(dataset: DatasetBuilder) -> list[Check]:
    """By every check there is evidence for."""
    return run_checks(dataset.snapshot(), dataset.answers, history=dataset.history(), now_ms=dataset.now_ms())


def alone(history: History) -> tuple[list[str], list[str]]:
    """What the calls by themselves say: violations, and what is undecided."""
    found = orders_linearizable(history, None, SystemClock(), limit_s=_LIMIT_S, on_progress=lambda _done, _of: None)
    return list(found.violations), list(found.undecided)


@_slow
@given(_simulations)
def test_legal_dataset_is_accepted(simulation: Simulation) -> None:
    """With all witnesses: whoever timed out, died, froze or came late."""
    checks = examined(simulation.run())
    said = [(check.name, check.violations, check.undecided) for check in checks if check.verdict is not Verdict.OK]
    assert said == []


@_slow
@given(_simulations)
def test_calls_alone_are_accepted(simulation: Simulation) -> None:
    """Also if nobody knows which payment belongs to which request."""
    assert alone(simulation.run().history())[0] == []


@_slow
@given(_simulations, st.randoms(use_true_random=False))
def test_outcomes_may_be_forgotten(simulation: Simulation, rng: random.Random) -> None:
    """A caller who is told nothing contradicts nobody."""
    dataset = simulation.run()
    for call in dataset.calls:
        if rng.random() < 0.3:
            call.answer, call.outcome = replace(call.answer, code="", reason="", state=""), Outcome.INFO
    assert alone(dataset.history())[0] == []


@_slow
@given(_simulations, st.floats(0, 1))
@example(Simulation(seed=5, orders=2, calls=9, at_once=5, rates=NONE), 0.90625)  # a customer settles no order, twice
def test_recording_may_break_off_at_any_moment(simulation: Simulation, part: float) -> None:
    """What holds for the whole history holds for its beginning."""
    dataset = simulation.run()
    calls = dataset.history().calls
    moment_ns = int(part * max(call.answered_ns or 0 for call in calls))
    kept = [call for call in calls if call.invoked_ns <= moment_ns]
    for call in kept:
        if (call.answered_ns or 0) > moment_ns:
            call.answered_ns, call.outcome = None, Outcome.INFO
    dataset.calls = kept
    checks = run_checks(dataset.snapshot(), history=replace(dataset.history(), whole=False))
    assert [(check.name, check.violations) for check in checks if check.violations] == []


@pytest.mark.parametrize("name", MUTATIONS)
def test_single_contradiction_is_found(name: str) -> None:
    """No simulation is accepted in which one witness says something else."""
    found: Counter[Verdict] = Counter()
    for seed in range(10 * _CHANGED):
        rng = random.Random(seed)
        dataset = Simulation(seed, orders=2, calls=10, rates=(NONE, FaultRates())[seed % 2]).run()
        if MUTATIONS[name](dataset, rng):
            found[verdict_of(examined(dataset))] += 1
        if found.total() == _CHANGED:
            break
    assert found.total() == _CHANGED
    assert found[Verdict.OK] == 0, found


# The search itself, held against one that tries everything


def brute(operations: Sequence[Operation[Move]], model: OrderModel) -> bool:
    """Every order there is, tried one after the other."""
    seen: set[tuple[State, frozenset[tuple[int, int]]]] = set()

    def is_possible(state: State, done: frozenset[tuple[int, int]]) -> bool:
        if (state, done) in seen:
            return False
        seen.add((state, done))
        waiting = [
            (number, operation)
            for number, operation in enumerate(operations)
            if operation.answered_ns is not None
            and any((number, part) not in done for part in range(len(operation.moves)))
        ]
        if not waiting:
            return True
        soonest_ns = min(operation.answered_ns or 0 for _, operation in waiting)
        by_itself = model.internal_step(state)
        if by_itself is not None and is_possible(by_itself, done):
            return True
        for number, operation in enumerate(operations):
            if operation.invoked_ns > soonest_ns:
                continue
            for part, move in enumerate(operation.moves):
                after = model.step(state, move) if (number, part) not in done else None
                if after is not None and is_possible(after, done | {(number, part)}):
                    return True
        return False

    return is_possible(model.initial, frozenset())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_search_finds_what_trying_everything_finds(seed: int, changed: bool, with_books: bool) -> None:
    """Neither more nor less: what it leaves out makes no difference."""
    rng = random.Random(seed)
    rates = rng.choice((NONE, FaultRates(), HIGH))
    dataset = Simulation(seed, orders=1, calls=rng.randrange(1, 8), at_once=3, rates=rates).run()
    if changed:
        MUTATIONS[rng.choice(("another state", "another version", "another payment", "done but refused"))](dataset, rng)
    for order in order_calls(dataset.history(), dataset.snapshot() if with_books else None):
        model = OrderModel(order.names)
        assert is_linearizable(order.operations, model, Budget.of(_LIMIT_S, SystemClock())) is brute(
            order.operations, model
        )
