"""A plan is its seed's, holds every fault named, and never asks of a world what it cannot bear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chaos.plan import AT_ONCE, Kind, draw_some, make_plan
from services.kernel.errors import InvalidArgument

KINDS = (
    Kind("kill", "process", ("payment-1", "payment-2"), 0.5, 2.0),
    Kind("freeze", "process", ("payment-1", "order-1"), 1.0, 3.0, {"point": ("submitted", "posted")}),
    Kind("leader-kill", "zookeeper", ("zookeeper",), 2.0, 4.0),
    Kind("down", "network", ("payment-1",), 1.0, 2.0),
    Kind("kill-at", "process", ("payment-1",), 1.0, 2.0, {"point": ("submitted", "posted")}, alone=True),
)


@given(st.integers(0, 2**32), st.floats(12.0, 60.0))
def test_every_plan_keeps_its_promises(seed: int, length_s: float) -> None:
    """Each fault is in it, all of them end in time, two of one family never overlap, nor does anything with one that is
    alone, and never are there more than two."""
    plan = make_plan(KINDS, seed, length_s)
    assert {strike.fault for strike in plan} == {kind.name for kind in KINDS}
    assert all(strike.at_s >= 1.0 and strike.until_s <= length_s + 0.01 for strike in plan)
    by_name = {kind.name: kind for kind in KINDS}
    for strike in plan:
        beside = [by_name[other.fault] for other in plan if other.at_s <= strike.at_s < other.until_s]
        assert len(beside) <= AT_ONCE
        assert len({kind.family for kind in beside}) == len(beside)
        assert len(beside) == 1 or not any(kind.alone for kind in beside)
    for strike in plan:
        kind = by_name[strike.fault]
        assert strike.target in kind.targets
        assert kind.shortest_s - 0.001 <= strike.for_s <= kind.longest_s + 0.001
        assert set(strike.facts) == set(kind.choices)


def test_a_seed_repeats_its_plan() -> None:
    """The same seed plans the same, another one something else."""
    assert make_plan(KINDS, 7, 30.0) == make_plan(KINDS, 7, 30.0)
    assert make_plan(KINDS, 7, 30.0) != make_plan(KINDS, 8, 30.0)


def test_too_short_a_run_is_refused() -> None:
    """A run that has no room for one of its faults is refused, and says how much room it needs."""
    with pytest.raises(InvalidArgument, match=r"allow \d+ s") as caught:
        make_plan(KINDS, 7, 5.0)
    assert caught.value.reason == "PLAN_TOO_SHORT"


def test_some_faults_are_the_seeds() -> None:
    """So many as are asked for, in their order; the same seed draws the same, and every fault has its seed."""
    names = [f"fault-{number}" for number in range(9)]
    drawn = [draw_some(names, seed, 3) for seed in range(50)]
    assert drawn == [draw_some(names, seed, 3) for seed in range(50)]
    assert all(len(some) == 3 and list(some) == sorted(some) for some in drawn)
    assert {name for some in drawn for name in some} == set(names)
    assert draw_some(names, 1, 99) == tuple(names)
