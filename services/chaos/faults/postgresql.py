"""Faults of the PostgreSQL server."""

from __future__ import annotations

from typing import Final

from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations
from services.chaos.targets.target import Target

TYPES: Final = FaultTypes("database")


def _server(target: Target) -> tuple[str, ...]:
    return ("",) if target.has_postgresql else ()


@TYPES.define("postgresql-kill", targets=_server, duration_s=(1.0, 2.0))
@TYPES.define("postgresql-restart", targets=_server, duration_s=(1.0, 2.0))
async def _stop(context: InjectionContext, injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    try:
        await context.target.stop_postgresql(fast=injection.fault == "postgresql-restart")
        yield {"in_flight": in_flight}
    finally:
        await context.target.start_postgresql()
