"""Which fault strikes whom, when and for how long: all of it drawn from the seed, before anything starts.

A plan is repeated by its seed, its length and its faults. What then happens in the processes is not: two runs of one
plan are two runs. So a plan is kept small, and its run says which steps of a payment its faults really hit.

Invariants
1. Every fault named is planned at least once, or `make_plan` refuses: a run too short for its faults proves less than
   it says.
2. Two faults that a world cannot bear at once (of one `family`) never overlap; others may.
3. Every fault has ended before the quiet time at the end, in which the services must come to rest by themselves.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.kernel.errors import InvalidArgument


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
    """

    name: str
    family: str
    targets: tuple[str, ...]
    shortest_s: float
    longest_s: float
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


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


def make_plan(kinds: Sequence[Kind], seed: int, length_s: float, *, calm_s: float = 1.0) -> tuple[Strike, ...]:
    """A plan of `length_s` seconds, in the order of its strikes.

    Args:
        kinds: What may happen; each does at least once.
        calm_s: How long nothing is wrong at the beginning and between two faults of a family.

    Raises:
        InvalidArgument: PLAN_TOO_SHORT: the faults do not find room.
    """
    dice = random.Random(f"{seed}/plan")  # noqa: S311
    families = sorted({kind.family for kind in kinds})
    strikes: list[Strike] = []
    for family in families:
        members = [kind for kind in kinds if kind.family == family]
        strikes += _fill(members, dice, length_s, calm_s)
    return tuple(sorted(strikes, key=lambda strike: (strike.at_s, strike.fault, strike.target)))


def _fill(members: Sequence[Kind], dice: random.Random, length_s: float, calm_s: float) -> list[Strike]:
    """One family's strikes, one after the other: each member once, then any of them while there is time."""
    drawn: list[tuple[Kind, float]] = []
    left_s = length_s - calm_s
    for number, kind in enumerate(shuffled := dice.sample(list(members), len(members))):
        room_s = left_s - calm_s - sum(later.shortest_s + calm_s for later in shuffled[number + 1 :])
        if room_s < kind.shortest_s:
            raise _too_short(members, length_s, calm_s)
        for_s = dice.uniform(kind.shortest_s, min(kind.longest_s, room_s))
        drawn.append((kind, for_s))
        left_s -= for_s + calm_s
    while True:
        kind = dice.choice(list(members))
        for_s = dice.uniform(kind.shortest_s, kind.longest_s)
        if for_s + calm_s > left_s:
            break
        drawn.append((kind, for_s))
        left_s -= for_s + calm_s
    waits_s = sorted(dice.uniform(0, left_s) for _ in drawn)
    strikes, at_s = [], calm_s
    for (kind, for_s), wait_s in zip(drawn, waits_s, strict=True):
        facts = {name: dice.choice(values) for name, values in kind.choices.items()}
        strikes.append(Strike(kind.name, dice.choice(kind.targets), round(at_s + wait_s, 3), round(for_s, 3), facts))
        at_s += for_s + calm_s
    return strikes


def _too_short(members: Sequence[Kind], length_s: float, calm_s: float) -> InvalidArgument:
    needed_s = calm_s + sum(member.shortest_s + calm_s for member in members)
    names = ", ".join(member.name for member in members)
    return InvalidArgument(
        "PLAN_TOO_SHORT",
        f"{length_s:g} s are too short for {names}, which cannot overlap; allow {needed_s:.0f} s or name fewer faults",
    )
