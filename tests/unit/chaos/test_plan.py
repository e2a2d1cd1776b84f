"""A plan is repeated by its seed, holds every fault named, and never asks of a target what it cannot bear."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chaos import faults
from services.chaos.faults.types import FaultInjection, FaultType
from services.chaos.plan import MAX_ACTIVE, draw_sample, make_plan
from services.chaos.targets.target import Target
from services.kernel.errors import InvalidArgument

TARGET = cast(Target, None)


def fault(
    name: str,
    family: str,
    targets: tuple[str, ...],
    duration_s: tuple[float, float],
    choices: Mapping[str, tuple[str, ...]] | None = None,
    *,
    exclusive: bool = False,
) -> FaultType:
    def inject(*_: Any) -> AbstractAsyncContextManager[dict[str, Any]]:
        raise NotImplementedError

    return FaultType(name, family, lambda _: targets, duration_s, inject, choices or {}, exclusive)


FAULTS = (
    fault("kill", "process", ("payment-1", "payment-2"), (0.5, 2.0)),
    fault("freeze", "process", ("payment-1", "order-1"), (1.0, 3.0), {"point": ("submitted", "posted")}),
    fault("leader-kill", "zookeeper", ("zookeeper",), (2.0, 4.0)),
    fault("down", "network", ("payment-1",), (1.0, 2.0)),
    fault("kill-at", "process", ("payment-1",), (1.0, 2.0), {"point": ("submitted", "posted")}, exclusive=True),
)


def plan_of(seed: int, length_s: float) -> tuple[FaultInjection, ...]:
    return make_plan(FAULTS, TARGET, seed, length_s)


@given(st.integers(0, 2**32), st.floats(12.0, 60.0))
def test_plan_of_any_seed_keeps_its_invariants(seed: int, length_s: float) -> None:
    """Each fault is in it, all of them end in time, two of one family never overlap, nor does anything with one that is
    exclusive, and never are more than two active."""
    plan = plan_of(seed, length_s)
    assert {injection.fault for injection in plan} == {each.name for each in FAULTS}
    assert all(injection.at_s >= 1.0 and injection.ends_s <= length_s + 0.01 for injection in plan)
    by_name = {each.name: each for each in FAULTS}
    for injection in plan:
        beside = [by_name[other.fault] for other in plan if other.at_s <= injection.at_s < other.ends_s]
        assert len(beside) <= MAX_ACTIVE
        assert len({each.family for each in beside}) == len(beside)
        assert len(beside) == 1 or not any(each.exclusive for each in beside)
    for injection in plan:
        planned = by_name[injection.fault]
        shortest_s, longest_s = planned.duration_s
        assert injection.target in planned.targets(TARGET)
        assert shortest_s - 0.001 <= injection.duration_s <= longest_s + 0.001
        assert set(injection.facts) == set(planned.choices)


def test_plan_of_the_same_seed_is_the_same() -> None:
    assert plan_of(7, 30.0) == plan_of(7, 30.0)
    assert plan_of(7, 30.0) != plan_of(8, 30.0)


def test_plan_of_a_seed_of_before_is_still_the_same() -> None:
    """FOUND.md's seeds mean something only as long as the order and the durations of the fault types stay."""

    class Local:
        instances = ("order-1", "order-2", "payment-1", "payment-2", "ledger-1", "ledger-2", "acquirer-1")
        links = instances
        has_postgresql = True
        replicas = None
        has_gateway = False  # as then
        shiftable_clocks = ("payment-2", "order-2")

    target = cast(Target, Local())
    chosen = draw_sample([each.name for each in faults.available(target)], 7, 3)
    plan = make_plan([each for each in faults.available(target) if each.name in chosen], target, 7, 15.0)
    assert [(each.fault, each.target, each.at_s, each.duration_s) for each in plan] == [
        ("rolling-restart", "", 1.0, 8.0),
        ("down", "payment-2", 1.5, 1.469),
        ("postgresql-restart", "", 3.969, 1.465),
        ("postgresql-restart", "", 6.434, 1.381),
        ("down", "payment-1", 8.815, 2.565),
    ]


def test_plan_that_is_too_short_for_a_fault_is_refused() -> None:
    """And the refusal says how much room is needed."""
    with pytest.raises(InvalidArgument, match=r"allow \d+ s") as caught:
        plan_of(7, 5.0)
    assert caught.value.reason == "PLAN_TOO_SHORT"


def test_sample_of_faults_is_drawn_by_the_seed() -> None:
    """So many as are asked for, in their order; the same seed draws the same, and every fault is drawn by some seed."""
    names = [f"fault-{number}" for number in range(9)]
    drawn = [draw_sample(names, seed, 3) for seed in range(50)]
    assert drawn == [draw_sample(names, seed, 3) for seed in range(50)]
    assert all(len(sample) == 3 and list(sample) == sorted(sample) for sample in drawn)
    assert {name for sample in drawn for name in sample} == set(names)
    assert draw_sample(names, 1, 99) == tuple(names)
