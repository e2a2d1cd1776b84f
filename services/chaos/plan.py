"""Which fault strikes whom, when and for how long: all of it drawn from the seed, before anything starts.

A plan is repeated by its seed, its length and its faults. What then happens in the processes is not: two runs of one
plan are two runs. So a plan is kept small, and its run says which steps of a payment its faults really hit.

Invariants
1. Every fault named is planned at least once, or `make_plan` refuses: a run too short for its faults proves less than
   it says.
2. `may_overlap` says which faults may be there at once: never two of one `family`, which a world could not bear; none
   beside one that is `alone`, which has to find a payment at a certain step and needs the rest whole for that; and
   never more than two, for where nothing works nothing goes wrong.
3. Every fault has ended before the quiet time at the end, in which the services must come to rest by themselves.

A fault may take longer than was planned, to strike or to heal. So whoever runs a plan begins a strike at its time or
when there is room for it, whichever is later.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from services.kernel.errors import InvalidArgument

AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault, as it can be planned.

    Args:
        name: As `--faults` and the history call it, like `kill`.
        family: Faults of one family never overlap.
        targets: Whom it can strike.
        shortest_s: How long it lasts at least, from its beginning to the end of its healing.
        longest_s: And at most.
        choices: Further facts to draw, by name, like the failpoint at which to strike.
        alone: Nothing else may be wrong while it strikes.
    """

    name: str
    family: str
    targets: tuple[str, ...]
    shortest_s: float
    longest_s: float
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault of a plan. Times are in seconds since the workload began."""

    fault: str
    target: str
    at_s: float
    for_s: float
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def until_s(self) -> float:
        """When it is to be over."""
        return self.at_s + self.for_s


def may_overlap(kind: Kind, others: Sequence[Kind]) -> bool:
    """Whether a fault may be there beside these."""
    return len(others) < AT_ONCE and not any(
        kind.alone or other.alone or other.family == kind.family for other in others
    )


def draw_some(names: Sequence[str], seed: int, number: int) -> tuple[str, ...]:
    """So many of the faults, in their order; all, if there are no more."""
    drawn = random.Random(f"{seed}/faults").sample(list(names), min(number, len(names)))  # noqa: S311
    return tuple(name for name in names if name in drawn)


def make_plan(kinds: Sequence[Kind], seed: int, length_s: float, *, calm_s: float = 1.0) -> tuple[Strike, ...]:
    """A plan of `length_s` seconds, in the order of its strikes.

    Args:
        kinds: What may happen; each does at least once.
        calm_s: How long nothing is wrong at the beginning, and how long a strike waits for the one before at least.

    Raises:
        InvalidArgument: PLAN_TOO_SHORT: the faults do not find room.
    """
    rng = random.Random(f"{seed}/plan")  # noqa: S311
    shuffled = rng.sample(list(kinds), len(kinds))
    drawn = [(kind, rng.uniform(kind.shortest_s, kind.longest_s)) for kind in shuffled]
    more = ((kind, rng.uniform(kind.shortest_s, kind.longest_s)) for kind in iter(lambda: rng.choice(shuffled), None))
    placed = list(_placed(chain(drawn, more), length_s, calm_s))
    if len(placed) < len(drawn):
        shortest = [(kind, kind.shortest_s) for kind in shuffled]
        placed = list(_placed(shortest, length_s, calm_s))
        if len(placed) < len(drawn):
            raise _too_short(shortest, length_s, calm_s)
    strikes = []
    for kind, at_s, for_s in placed:
        facts = {name: rng.choice(values) for name, values in kind.choices.items()}
        strikes.append(Strike(kind.name, rng.choice(kind.targets), round(at_s, 3), round(for_s, 3), facts))
    return tuple(sorted(strikes, key=lambda strike: (strike.at_s, strike.fault, strike.target)))


def _placed(drawn: Iterable[tuple[Kind, float]], length_s: float, calm_s: float) -> Iterator[tuple[Kind, float, float]]:
    """Each as early as it may be, and none before the one drawn before it; ends with the first that finds no room."""
    there: list[tuple[Kind, float]] = []  # what is there at `at_s`, and until when
    at_s = calm_s
    for kind, for_s in drawn:
        while not may_overlap(kind, [other for other, _ in there]):
            at_s = max(at_s, min(until_s for _, until_s in there) + calm_s)
            there = [(other, until_s) for other, until_s in there if until_s + calm_s > at_s]
        if at_s + for_s > length_s:
            return
        yield kind, at_s, for_s
        there.append((kind, at_s + for_s))
        at_s += calm_s / 2


def _too_short(drawn: Sequence[tuple[Kind, float]], length_s: float, calm_s: float) -> InvalidArgument:
    needed_s = max(at_s + for_s for _, at_s, for_s in _placed(drawn, float("inf"), calm_s))
    names = ", ".join(kind.name for kind, _ in drawn)
    return InvalidArgument(
        "PLAN_TOO_SHORT",
        f"{length_s:g} s are too short for {names}; allow {needed_s + 1:.0f} s or name fewer faults",
    )
