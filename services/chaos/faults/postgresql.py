"""Faults of the PostgreSQL server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from services.chaos.faults.types import FaultInjection, FaultType, InjectionContext, Observation, fault_type
from services.chaos.targets.target import Target

TYPES: Final[list[FaultType]] = []


def _server(target: Target) -> tuple[str, ...]:
    return ("",) if target.has_postgresql else ()


@fault_type(TYPES, "postgresql-kill", family="database", targets=_server, duration_s=(1.0, 2.0))
@fault_type(TYPES, "postgresql-restart", family="database", targets=_server, duration_s=(1.0, 2.0))
async def _stop(context: InjectionContext, injection: FaultInjection) -> AsyncIterator[Observation]:
    in_flight = dict(await context.in_flight())
    try:
        await context.target.stop_postgresql(fast=injection.fault == "postgresql-restart")
        yield {"in_flight": in_flight}
    finally:
        await context.target.start_postgresql()
