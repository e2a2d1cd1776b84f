"""Faults of connections: slow, reset, dropped or refused, and the loss of one instance's ZooKeeper session."""

from __future__ import annotations

from contextlib import AsyncExitStack
from itertools import count
from typing import Final

from services.chaos.faults.trigger import TriggerOrder
from services.chaos.faults.types import (
    INJECT_WITHIN_S,
    FaultInjection,
    FaultTypes,
    InjectionContext,
    Observations,
    instances,
)
from services.testkit.waiting import NotBroughtAbout

TYPES: Final = FaultTypes("network")
#: For each fault its toxic: type, stream and attributes; and how long it lasts.
_TOXICS: Final[dict[str, tuple[str, str, dict[str, int], tuple[float, float]]]] = {
    "latency": ("latency", "downstream", {"latency": 150, "jitter": 100}, (1.0, 3.0)),
    "reset": ("reset_peer", "downstream", {"timeout": 30}, (0.5, 2.0)),
    "replies-lost": ("timeout", "downstream", {}, (1.0, 3.0)),
    "requests-lost": ("timeout", "upstream", {}, (1.0, 3.0)),
}


@TYPES.define("session-expiry", family="zookeeper", targets=instances("payment"), links=True, duration_s=(3.0, 4.0))
@TYPES.define(
    "session-expiry",
    family="process",
    targets=instances("payment"),
    links=False,
    duration_s=(1.0, 2.0),
    exclusive=True,  # as for disconnect
)
async def _session_expiry(context: InjectionContext, injection: FaultInjection) -> Observations:
    """Cut one instance off from ZooKeeper until its session has expired: its registration goes with it."""
    link = f"zookeeper/{injection.target}"
    try:
        await context.target.cut(link)
        try:
            await context.connections.wait_unregistered(injection.target, INJECT_WITHIN_S)
        except TimeoutError:
            raise NotBroughtAbout(f"the session of {injection.target} does not expire") from None
        yield {}
    finally:
        await context.target.heal(link)


async def _add_toxic(context: InjectionContext, injection: FaultInjection) -> Observations:
    kind, stream, attributes, _ = _TOXICS[injection.fault]
    in_flight = dict(await context.in_flight())
    await context.target.heal(injection.target)
    try:
        await context.target.add_toxic(injection.target, kind, stream, attributes)
        await _until_used(context, injection)
        yield {"in_flight": in_flight}
    finally:
        await context.target.heal(injection.target)


for _name, (*_, _duration_s) in _TOXICS.items():
    TYPES.define(_name, targets=lambda target: target.links, duration_s=_duration_s)(_add_toxic)


@TYPES.define("down", targets=lambda target: target.links, duration_s=(1.0, 3.0))
@TYPES.define(
    "disconnect",
    family="process",
    targets=instances(),
    links=False,
    duration_s=(1.0, 4.0),
    exclusive=True,  # a container that starts meanwhile could be given the address of the one that is cut off
)
async def _cut(context: InjectionContext, injection: FaultInjection) -> Observations:
    in_flight = dict(await context.in_flight())
    try:
        await context.target.cut(injection.target)
        yield {"in_flight": in_flight}
    finally:
        await context.target.heal(injection.target)


async def _until_used(context: InjectionContext, injection: FaultInjection) -> None:
    """Wait until the fault has affected a connection. If no call uses the link, settle orders until one does.

    No call reaches an instance that another fault has killed. That time does not count.
    """

    async def used() -> bool:
        return await context.target.affected_connections(injection.target) > 0

    waited_s = 0.0
    async with AsyncExitStack() as orders:
        for number in count():
            await context.target.wait_serving(injection.target)
            began_s = context.clock.monotonic_s()
            if await used():
                return
            if waited_s >= INJECT_WITHIN_S:
                raise NotBroughtAbout(f"no call used the link {injection.target}")
            order = await TriggerOrder.create(context, injection, number)
            orders.push_async_callback(order.close)
            order.settle_anywhere()
            await order.hit(used)
            waited_s += context.clock.monotonic_s() - began_s
