"""Faults of processes: killed, paused or restarted, at any time or at a chosen step of a payment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from services.chaos.faults.trigger import trigger_at
from services.chaos.faults.types import (
    FaultInjection,
    FaultType,
    InjectionContext,
    Observation,
    everything,
    fault_type,
    if_links,
    instances,
    instances_of,
    unless_links,
)

TYPES: Final[list[FaultType]] = []
#: Where a process of each service is killed.
_KILL_POINTS: Final = {
    "order": ("claimed", "completed"),
    "ledger": ("accepted", "posted"),
    "acquirer": ("charged",),
}
_PAYMENT_POINTS: Final = (
    *("accepted", "locked", "claimed", "submitted", "charged", "posted"),
    *("recorded", "completed", "released"),
)
#: Before these steps the payment has done nothing under its fence that a rival could overtake.
_FREEZE_POINTS: Final = ("submitted", "charged")
_CONTENTION: Final = ("alone", "contended")


@fault_type(TYPES, "kill", family="process", targets=instances, duration_s=(1.0, 2.0))
async def _kill(context: InjectionContext, injection: FaultInjection) -> AsyncIterator[Observation]:
    in_flight = dict(await context.in_flight())
    await context.target.kill(injection.target)
    yield {"in_flight": in_flight}
    await context.target.wait_serving(injection.target)


@fault_type(TYPES, "pause", family="process", targets=instances, duration_s=(1.0, 4.0))
async def _pause(context: InjectionContext, injection: FaultInjection) -> AsyncIterator[Observation]:
    in_flight = dict(await context.in_flight())
    try:
        await context.target.pause(injection.target)
        yield {"in_flight": in_flight}
    finally:
        await context.target.resume(injection.target)


@fault_type(TYPES, "rolling-restart", family="process", targets=if_links(everything), duration_s=(8.0, 8.0))
@fault_type(TYPES, "rolling-restart", family="process", targets=unless_links(everything), duration_s=(20.0, 20.0))
async def _rolling_restart(context: InjectionContext, _injection: FaultInjection) -> AsyncIterator[Observation]:
    in_flight = dict(await context.in_flight())
    first, *others = context.target.instances
    await context.target.terminate(first)
    yield {"in_flight": in_flight}
    await context.target.wait_serving(first)
    for instance in others:
        await context.target.terminate(instance)
        await context.target.wait_serving(instance)


@fault_type(
    TYPES,
    "kill-at",
    family="process",
    targets=instances_of("payment"),
    duration_s=(1.0, 2.0),
    choices={"point": _PAYMENT_POINTS, "contention": _CONTENTION},
    exclusive=True,
)
async def _kill_at(context: InjectionContext, injection: FaultInjection) -> AsyncIterator[Observation]:
    async with trigger_at(context, injection) as (order, victim):
        await context.target.kill(victim)
        yield {"order_id": order.order_id, "victim": victim}
        await order.end()
    await context.target.wait_serving(victim)


@fault_type(
    TYPES,
    "freeze-at",
    family="process",
    targets=instances_of("payment"),
    duration_s=(1.0, 1.5),
    choices={"point": _FREEZE_POINTS, "contention": ("contended",)},
    exclusive=True,
)
async def _freeze_at(context: InjectionContext, injection: FaultInjection) -> AsyncIterator[Observation]:
    async with trigger_at(context, injection) as (order, victim):
        if context.target.holds_at_failpoints:
            await context.target.pause(victim)
        yield {"order_id": order.order_id}
        await order.overtaken()
        await context.target.resume(victim)
        await order.end()


for _service, _points in _KILL_POINTS.items():
    fault_type(
        TYPES,
        f"kill-{_service}-at",
        family="process",
        targets=instances_of(_service),
        duration_s=(1.0, 2.0),
        choices={"point": _points, "contention": _CONTENTION},
        exclusive=True,
    )(_kill_at)
