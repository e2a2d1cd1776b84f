"""Plan which fault is injected where, when and for how long; everything is drawn from the seed before anything starts.

A seed, a length and a list of faults repeat a plan. They do not repeat what the processes do meanwhile.

Invariants
1. Every fault named is planned at least once, or `make_plan` refuses: a run too short for its faults proves less than
   it claims.
2. `may_overlap` says which faults may be active at once: never two of one family, which a target could not bear; none
   beside an exclusive one, which has to find a payment at a certain step; and at most two, for with everything down no
   interesting interleaving happens.
3. Every fault has ended before the quiet period at the end, in which the services must come to rest by themselves.

A fault may take longer than was planned, to be injected or to heal. So the injector begins an injection at its time or
when the faults before it make room, whichever is later.
"""

from __future__ import annotations

import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from services.chaos.faults.types import FaultInjection, FaultType
from services.chaos.targets.target import Target
from services.kernel.errors import InvalidArgument

MAX_ACTIVE: Final = 2


def may_overlap(fault: FaultType, others: Sequence[FaultType]) -> bool:
    """Return whether a fault may be active beside these."""
    return len(others) < MAX_ACTIVE and not any(
        fault.exclusive or other.exclusive or other.family == fault.family for other in others
    )


def draw_sample(names: Sequence[str], seed: int, number: int) -> tuple[str, ...]:
    """Return that many of the faults, in their order; all, if there are no more."""
    drawn = random.Random(f"{seed}/faults").sample(list(names), min(number, len(names)))  # noqa: S311
    return tuple(name for name in names if name in drawn)


def make_plan(
    faults: Sequence[FaultType], target: Target, seed: int, length_s: float, *, quiet_period_s: float = 1.0
) -> tuple[FaultInjection, ...]:
    """Return a plan of `length_s` seconds, in the order of its injections.

    Args:
        faults: Each is planned at least once.
        quiet_period_s: How long no fault is active at the beginning, and how long an injection waits at least for the
            end of the one that it must not overlap.

    Raises:
        InvalidArgument: PLAN_TOO_SHORT: the faults do not find room.
    """
    rng = random.Random(f"{seed}/plan")  # noqa: S311
    shuffled = rng.sample(list(faults), len(faults))
    drawn = [(fault, rng.uniform(*fault.duration_s)) for fault in shuffled]
    more = ((fault, rng.uniform(*fault.duration_s)) for fault in iter(lambda: rng.choice(shuffled), None))
    placed = list(_placed(chain(drawn, more), length_s, quiet_period_s))
    if len(placed) < len(drawn):
        shortest = [(fault, fault.duration_s[0]) for fault in shuffled]
        placed = list(_placed(shortest, length_s, quiet_period_s))
        if len(placed) < len(drawn):
            raise _too_short(shortest, length_s, quiet_period_s)
    injections = []
    for fault, at_s, duration_s in placed:
        facts = {name: rng.choice(values) for name, values in fault.choices.items()}
        where = rng.choice(fault.targets(target))
        injections.append(FaultInjection(fault.name, where, round(at_s, 3), round(duration_s, 3), facts))
    return tuple(sorted(injections, key=lambda injection: (injection.at_s, injection.fault, injection.target)))


def _placed(
    drawn: Iterable[tuple[FaultType, float]], length_s: float, quiet_period_s: float
) -> Iterator[tuple[FaultType, float, float]]:
    """Yield each as early as it may be, and none before the one drawn before it; end with the first without room."""
    active: list[tuple[FaultType, float]] = []  # at `at_s`, and until when
    at_s = quiet_period_s
    for fault, duration_s in drawn:
        while not may_overlap(fault, [other for other, _ in active]):
            at_s = max(at_s, min(ends_s for _, ends_s in active) + quiet_period_s)
            active = [(other, ends_s) for other, ends_s in active if ends_s + quiet_period_s > at_s]
        if at_s + duration_s > length_s:
            return
        yield fault, at_s, duration_s
        active.append((fault, at_s + duration_s))
        at_s += quiet_period_s / 2


def _too_short(drawn: Sequence[tuple[FaultType, float]], length_s: float, quiet_period_s: float) -> InvalidArgument:
    needed_s = max(at_s + duration_s for _, at_s, duration_s in _placed(drawn, float("inf"), quiet_period_s))
    names = ", ".join(fault.name for fault, _ in drawn)
    return InvalidArgument(
        "PLAN_TOO_SHORT",
        f"{length_s:g} s are too short for {names}; allow {needed_s + 1:.0f} s or name fewer faults",
    )
