"""Faults of processes: killed, paused or restarted, at any time or at a chosen step of a payment."""

from __future__ import annotations

from typing import Final

from services.chaos.faults.trigger import trigger_at
from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations, instances
from services.testkit.waiting import NotBroughtAbout

TYPES: Final = FaultTypes("process")
#: Where a process of each service is killed.
_KILL_POINTS: Final = {
    "order": ("claimed", "completed", "committing", "committed"),
    "ledger": ("accepted", "posted", "committing", "committed"),
    "acquirer": ("charged",),
}
_PAYMENT_POINTS: Final = (
    *("accepted", "locked", "claimed", "submitted", "charged", "posted"),
    *("recorded", "completed", "released", "committing", "committed"),
)
#: Before these steps the payment has done nothing under its fence that a rival could overtake.
_FREEZE_POINTS: Final = ("submitted", "charged")
_CONTENTION: Final = ("alone", "contended")
#: How often a holder is frozen until a rival has overtaken it; and by how much the numbers of the orders differ.
_FREEZES_MOST: Final = 3
_ORDERS_A_FREEZE: Final = 100


@TYPES.define("kill", targets=instances(), duration_s=(1.0, 2.0))
async def _kill(context: InjectionContext, injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    await context.target.kill(injection.target)
    yield {"in_flight": in_flight}
    await context.target.wait_serving(injection.target)


@TYPES.define("pause", targets=instances(), duration_s=(1.0, 4.0))
async def _pause(context: InjectionContext, injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    try:
        await context.target.pause(injection.target)
        yield {"in_flight": in_flight}
    finally:
        await context.target.resume(injection.target)


@TYPES.define("rolling-restart", links=True, duration_s=(8.0, 8.0))
@TYPES.define("rolling-restart", links=False, duration_s=(20.0, 20.0))
async def _rolling_restart(context: InjectionContext, _injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    first, *others = context.target.instances
    await context.target.terminate(first)
    yield {"in_flight": in_flight}
    await context.target.wait_serving(first)
    for instance in others:
        await context.target.terminate(instance)
        await context.target.wait_serving(instance)


@TYPES.define(
    "kill-at",
    targets=instances("payment"),
    duration_s=(1.0, 2.0),
    choices={"point": _PAYMENT_POINTS, "contention": _CONTENTION},
    exclusive=True,
)
async def _kill_at(context: InjectionContext, injection: FaultInjection) -> Observations:
    async with trigger_at(context, injection) as (order, victim):
        await context.target.kill(victim)
        yield {"order_id": order.order_id, "victim": victim}
        await order.end()
    await context.target.wait_serving(victim)


@TYPES.define(
    "freeze-at",
    targets=instances("payment"),
    duration_s=(1.0, 1.5),
    choices={"point": _FREEZE_POINTS, "contention": ("contended",)},
    exclusive=True,
)
async def _freeze_at(context: InjectionContext, injection: FaultInjection) -> Observations:
    """Freeze the holder until its rival has overtaken it.

    It is frozen again with another order if no rival could. On SQLite a process that is frozen while another of its
    calls writes keeps every other process from writing to that file.
    """
    for freeze in range(_FREEZES_MOST):
        async with trigger_at(context, injection, first=freeze * _ORDERS_A_FREEZE) as (order, victim):
            if context.target.holds_at_failpoints:
                await context.target.pause(victim)
            if freeze == 0:
                yield {"order_id": order.order_id}
            await order.overtaken()
            await context.target.resume(victim)
            await order.end()
        if order.was_overtaken:
            return
    raise NotBroughtAbout(f"{injection.target} was frozen {_FREEZES_MOST} times, and never overtaken")


for _service, _points in _KILL_POINTS.items():
    TYPES.define(
        f"kill-{_service}-at",
        targets=instances(_service),
        duration_s=(1.0, 2.0),
        choices={"point": _points, "contention": _CONTENTION},
        exclusive=True,
    )(_kill_at)
