"""A wall clock that is wrong by up to an hour."""

from __future__ import annotations

from typing import Final

from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations

TYPES: Final = FaultTypes("clock")


@TYPES.define("clock-jump", targets=lambda target: target.shiftable_clocks, duration_s=(1.0, 4.0))
async def _clock_jump(context: InjectionContext, injection: FaultInjection) -> Observations:
    by_s = round(context.rng.choice((-1, 1)) * context.rng.uniform(5, 3600), 1)
    try:
        await context.target.shift_clock(injection.target, by_s)
        yield {"by_s": by_s}
    finally:
        await context.target.shift_clock(injection.target, 0.0)
