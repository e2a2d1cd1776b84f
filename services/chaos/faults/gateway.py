"""Faults of the gateway, through which some callers call. It keeps nothing, so nothing is lost with it but answers."""

from __future__ import annotations

from typing import Final

from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations
from services.chaos.targets.target import Target
from services.devstack.options import GATEWAY

TYPES: Final = FaultTypes("gateway")


def _gateway(target: Target) -> tuple[str, ...]:
    return (GATEWAY,) if target.has_gateway else ()


@TYPES.define("gateway-kill", targets=_gateway, duration_s=(1.0, 2.0))
async def _kill(context: InjectionContext, injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    await context.target.kill(injection.target)
    yield {"in_flight": in_flight}
    await context.target.wait_serving(injection.target)
