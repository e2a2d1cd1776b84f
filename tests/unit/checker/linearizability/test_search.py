"""The search with the smallest model there is, a register: it knows nothing of orders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.checker.linearizability.search import Budget, Model, Operation, Undecided, is_linearizable, known_by
from services.kernel.clock import SystemClock
from tests.fakes.clock import ManualClock

#: A value that is written, or one that was read.
Move = tuple[str, int]


class Register(Model[int, Move]):
    """Holds one number."""

    initial = 0

    def step(self, state: int, move: Move) -> int | None:
        kind, value = move
        if kind == "write":
            return value
        return state if state == value else None


class PrunedRegister(Register):
    """The same, and says which moves may be made at once."""

    def is_observation(self, state: int, move: Move) -> bool:
        return move == ("read", state)


def call(kind: str, value: int, invoked_ns: int, answered_ns: int | None) -> Operation[Move]:
    return Operation(((kind, value),), invoked_ns, answered_ns)


def searched(calls: Sequence[Operation[Move]]) -> bool:
    """Return what the search says, with pruning and without."""
    whole, pruned = (
        is_linearizable(calls, model(), Budget.of(5.0, SystemClock())) for model in (Register, PrunedRegister)
    )
    assert whole is pruned
    return whole


def tried(calls: Sequence[Operation[Move]]) -> bool:
    """Return what trying every sequence says: a call that was not answered is in it or not."""
    answered = [each for each in calls if each.answered_ns is not None]
    return any(
        _is_sequence(order) and set(map(id, answered)) <= set(map(id, order))
        for length in range(len(answered), len(calls) + 1)
        for order in permutations(calls, length)
    )


def _is_sequence(order: Iterable[Operation[Move]]) -> bool:
    state, begun_ns = Register.initial, 0
    for each in order:
        begun_ns = max(begun_ns, each.invoked_ns)
        after = Register().step(state, each.moves[0])
        if after is None or (each.answered_ns is not None and each.answered_ns < begun_ns):
            return False
        state = after
    return True


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([], True),
        ([call("read", 0, 1, 2)], True),
        ([call("read", 1, 1, 2)], False),
        ([call("write", 1, 1, 2), call("read", 1, 3, 4)], True),
        ([call("write", 1, 1, 2), call("read", 0, 3, 4)], False),
        # While a write is under way, it was done or not, but not both in turn.
        ([call("write", 1, 1, 9), call("read", 0, 2, 3), call("read", 1, 4, 5)], True),
        ([call("write", 1, 1, 9), call("read", 1, 2, 3), call("read", 0, 4, 5)], False),
        # Without an answer it was done at any time since, or never.
        ([call("write", 1, 1, None), call("read", 0, 8, 9), call("read", 1, 10, 11)], True),
        ([call("write", 1, 5, None), call("read", 1, 2, 3)], False),
        # What happens in the same nanosecond overlaps.
        ([call("write", 1, 1, 4), call("read", 0, 4, 5)], True),
    ],
)
def test_register_history_is_linearizable_or_not(calls: list[Operation[Move]], expected: bool) -> None:
    assert searched(calls) is expected
    assert tried(calls) is expected


_calls = st.builds(
    lambda kind, value, begin, length: call(kind, value, begin, begin + length if length else None),
    st.sampled_from(("read", "write")),
    st.integers(0, 2),
    st.integers(1, 6),
    st.integers(0, 4),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_calls, max_size=5))
def test_search_finds_what_trying_every_sequence_finds(calls: list[Operation[Move]]) -> None:
    assert searched(calls) is tried(calls)


def test_operations_known_at_a_moment_are_without_later_ones_and_open_if_unanswered() -> None:
    ended, open_, later = (call("read", 0, *times) for times in ((1, 5), (5, 6), (6, 7)))
    assert known_by([ended, open_, later], 5) == [ended, call("read", 0, 5, None)]


class CountedClock(ManualClock):
    """Counts how often it is read."""

    readings = 0

    def monotonic_s(self) -> float:
        self.readings += 1
        return super().monotonic_s()


def test_budget_of_many_steps_reads_the_clock_at_every_256th() -> None:
    """Reading it costs as much as some steps do."""
    clock = CountedClock()
    budget = Budget.of(1.0, clock)
    for steps, readings in ((255, 1), (1, 2), (255, 2), (1, 3)):
        for _ in range(steps):
            budget.take()
        assert clock.readings == readings
    clock.advance(1_000)
    for _ in range(255):
        budget.take()
    with pytest.raises(Undecided):
        budget.take()
