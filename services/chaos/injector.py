"""Inject a plan's faults, and heal them.

    PLANNED ──at its time, if `may_overlap` allows──▶ BEGUN (observed) ──after its duration──▶ ENDED (healed)

Whatever ends a run, every fault that has begun is healed. One that could not be injected stays PLANNED, and makes the
run's verdict unknown.
"""

from __future__ import annotations

import asyncio
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.chaos.faults.types import FaultInjection, FaultType, InjectionContext
from services.chaos.plan import may_overlap
from services.checker.history import HistoryWriter, Phase
from services.testkit.waiting import NotBroughtAbout


class Injector:
    """Injects a plan.

    Args:
        faults: The fault types of the plan.
        tell: Gets a sentence when a fault begins.

    Attributes:
        injected: How often each fault was injected.
        missed: Why planned faults were not.
    """

    def __init__(
        self,
        context: InjectionContext,
        faults: Sequence[FaultType],
        plan: Sequence[FaultInjection],
        history: HistoryWriter,
        *,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self._context = context
        self._faults = {fault.name: fault for fault in faults}
        self._plan = plan
        self._history = history
        self._seed = seed
        self._tell = tell
        self.injected: Counter[str] = Counter()
        self.missed: list[str] = []

    async def run(self) -> None:
        """Inject all of the plan; return when every fault is healed."""
        for injection in self._plan:
            self._history.nemesis(
                injection.fault, Phase.PLANNED, injection.target, at_s=injection.at_s, **injection.facts
            )
        clock = self._context.clock
        began_s = clock.monotonic_s()
        active: dict[asyncio.Task[None], FaultType] = {}
        try:
            for number, injection in enumerate(self._plan):
                fault = self._faults[injection.fault]
                await asyncio.sleep(max(0.0, began_s + injection.at_s - clock.monotonic_s()))
                while not may_overlap(fault, list(active.values())):
                    over, _ = await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
                    for task in over:
                        del active[task]
                        await task
                active[asyncio.create_task(self._inject(number, fault, injection))] = fault
            await asyncio.gather(*active)
        finally:
            for task in active:
                task.cancel()
            await asyncio.gather(*active, return_exceptions=True)

    async def _inject(self, number: int, fault: FaultType, injection: FaultInjection) -> None:
        rng = random.Random(f"{self._seed}/strike/{number}")  # noqa: S311
        named = f"{injection.fault} {injection.target}".strip()
        try:
            async with fault.inject(replace(self._context, rng=rng), injection) as observed:
                self.injected[fault.name] += 1
                facts = {**injection.facts, **observed}
                self._history.nemesis(fault.name, Phase.BEGUN, injection.target, **facts)
                self._tell(f"{named} {_in_words(facts)}".strip())
                await asyncio.sleep(injection.duration_s)
            self._history.nemesis(fault.name, Phase.ENDED, injection.target)
        except NotBroughtAbout as error:
            self.missed.append(f"{named}: {error}")
            self._tell(f"{named} was not injected: {error}")


def _in_words(facts: Mapping[str, Any]) -> str:
    words = []
    for name, value in facts.items():
        if name == "in_flight" and value:
            words.append("open: " + ", ".join(f"{count} {state}" for state, count in value.items()))
        elif value not in ("", {}, None):
            words.append(f"{name} {value}")
    return ", ".join(words)
