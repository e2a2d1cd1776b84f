"""A run of the demonstration: a fresh stack, the acts one after the other, and the checker's verdict on the books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.checker.findings import Check, Verdict
from services.checker.registry import run_checks
from services.checker.snapshot import Snapshot
from services.demo.acts import ACTS, ActResult, run_act
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import SystemClock
from services.testkit.client import CURRENCY
from services.testkit.harness import Harness

#: Short, so that the acts in which an instance dies or freezes need not wait long for the end of a session.
SESSION_TIMEOUT_S = 2.0
_SETTINGS = {
    "lease_s": 2.0,
    "recovery_interval_s": 0.3,
    "currencies": CURRENCY,
    "acquirer_timeout_s": 1.0,
}
#: What is left between two commits has to be finished in this time; several sessions and leases.
_RECOVERY_BOUND_S = 6.0


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run of the acts showed. The verdict is `unknown` if no check is broken and an act proved nothing."""

    verdict: Verdict
    acts: tuple[ActResult, ...]
    checks: tuple[Check, ...]
    seconds: float
    seed: int
    books: Snapshot


async def run(
    data: Path,
    guards_off: tuple[str, ...],
    seed: int,
    *,
    on_ready: Callable[[float], None],
    on_act: Callable[[ActResult], None],
    only: Sequence[str] = (),
) -> RunResult:
    """Run the acts on a fresh stack in `data` and check the books.

    Args:
        on_ready: Called with the seconds until the stack was ready.
        on_act: Called with each act as it ends.
        only: Names of acts to run; empty: all.
    """
    clock = SystemClock()
    began_s = clock.monotonic_s()
    options = StackOptions(
        data=data,
        replicas={"payment": 2},
        guards_off=guards_off,
        failpoints=True,
        session_timeout_s=SESSION_TIMEOUT_S,
        settings=_SETTINGS,
    )
    async with Stack(options, clock=clock) as stack, Harness(stack, clock, seed=seed, accountant="wu") as harness:
        on_ready(clock.monotonic_s() - began_s)
        acts = []
        for name in only or ACTS:
            act = await run_act(name, harness)
            acts.append(act)
            on_act(act)
        books = (await harness.settled_snapshot(within_s=_RECOVERY_BOUND_S)).snapshot
        # There is no history here: a check that reads one is left out.
        checks = [check for check in run_checks(books, harness.connections.answers) if not check.skipped]
    return RunResult(
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
