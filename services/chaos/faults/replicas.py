"""Faults of PostgreSQL servers under Patroni.

Each is over when every server follows the primary again. Of a lost primary it is observed which server took its place,
and after how long.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations
from services.chaos.targets.target import Replicas, Target

TYPES: Final = FaultTypes("database")
_HOW: Final[dict[str, Callable[[Replicas, str], Awaitable[None]]]] = {
    "primary-kill": lambda replicas, name: replicas.kill(name),
    "primary-freeze": lambda replicas, name: replicas.freeze(name),
    "primary-cut-off": lambda replicas, name: replicas.cut_off(name),
    "switchover": lambda replicas, name: replicas.switch_over(name),
}


def _servers(target: Target) -> tuple[str, ...]:
    return ("",) if target.replicas else ()


@TYPES.define("primary-kill", targets=_servers, duration_s=(20.0, 24.0))
@TYPES.define("primary-freeze", targets=_servers, duration_s=(20.0, 24.0))
@TYPES.define("primary-cut-off", targets=_servers, duration_s=(20.0, 24.0))
@TYPES.define("switchover", targets=_servers, duration_s=(12.0, 16.0))
async def _lose_primary(context: InjectionContext, injection: FaultInjection) -> Observations:
    replicas, in_flight = _replicas_of(context), dict(await context.in_flight())
    primary = await replicas.replaceable_primary()  # a fault that is just over may have left it without a successor
    try:
        began_s = context.clock.monotonic_s()
        await _HOW[injection.fault](replicas, primary)
        successor = await replicas.primary(besides=primary)
        took_s = round(context.clock.monotonic_s() - began_s, 1)
        yield {"in_flight": in_flight, "primary": primary, "successor": successor, "taken_over_after_s": took_s}
    finally:
        await replicas.recover(primary)


@TYPES.define("replica-freeze", targets=_servers, duration_s=(4.0, 8.0))
async def _freeze_replica(context: InjectionContext, _injection: FaultInjection) -> Observations:
    """Freeze the replica that the primary waits for."""
    replicas, in_flight = _replicas_of(context), dict(await context.in_flight())
    replica = await replicas.replica()
    try:
        await replicas.freeze(replica)
        yield {"in_flight": in_flight, "replica": replica}
    finally:
        await replicas.recover(replica)


def _replicas_of(context: InjectionContext) -> Replicas:
    replicas = context.target.replicas
    if replicas is None:
        raise AssertionError("the target has one PostgreSQL server at most")
    return replicas
