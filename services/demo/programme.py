"""The evening: the stage is set, the acts are played, the books are checked, the verdict is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from services.checker.findings import Check
from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot
from services.demo.acts import ACTS, ActResult, play
from services.demo.stage import set_stage
from services.kernel.clock import SystemClock

#: What is left between two commits has to be finished in this time; several sessions and leases.
_RECOVERY_BOUND_S = 6.0


class Verdict(StrEnum):
    """`unknown`: no invariant is broken, but an act proved nothing."""

    OK = "ok"
    VIOLATED = "violated"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The whole evening."""

    verdict: Verdict
    acts: tuple[ActResult, ...]
    checks: tuple[Check, ...]
    seconds: float
    seed: int
    books: Snapshot


async def perform(
    data: Path,
    guards_off: tuple[str, ...],
    seed: int,
    *,
    on_ready: Callable[[float], None],
    on_act: Callable[[ActResult], None],
    only: Sequence[str] = (),
) -> Outcome:
    """Plays the acts on a fresh stack in `data` and checks the books.

    Args:
        on_ready: Told the seconds until the stack was ready.
        on_act: Told of each act as it ends.
        only: Names of acts to play; empty: all.
    """
    clock = SystemClock()
    began_s = clock.monotonic_s()
    async with set_stage(data, guards_off, seed) as stage:
        on_ready(clock.monotonic_s() - began_s)
        acts = []
        for name in only or ACTS:
            act = await play(name, stage)
            acts.append(act)
            on_act(act)
        books = await stage.quiet_books(within_s=_RECOVERY_BOUND_S)
        # Nobody keeps a history here: what would be examined in one is not spoken of.
        checks = [check for check in run_checks(books, stage.telephone.answers) if not check.skipped]
    return Outcome(
        verdict=_verdict(acts, checks),
        acts=tuple(acts),
        checks=tuple(checks),
        seconds=round(clock.monotonic_s() - began_s, 2),
        seed=seed,
        books=books,
    )


def _verdict(acts: Sequence[ActResult], checks: Sequence[Check]) -> Verdict:
    if any(act.ok is False for act in acts) or not all(check.ok for check in checks):
        return Verdict.VIOLATED
    return Verdict.UNKNOWN if any(act.ok is None for act in acts) else Verdict.OK
