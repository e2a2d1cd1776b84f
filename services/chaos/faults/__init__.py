"""The fault types, one module for each component of a target; `types` shows how to add one."""

from __future__ import annotations

from typing import Final

from services.chaos.faults import acquirer, clock, gateway, network, postgresql, process, replicas, zookeeper
from services.chaos.faults.types import FaultType
from services.chaos.targets.target import Target

#: Every fault type. A seed repeats its plan only while their order stays.
ALL: Final[tuple[FaultType, ...]] = (
    *process.TYPES,
    *zookeeper.TYPES,
    *acquirer.TYPES,
    *network.TYPES,
    *postgresql.TYPES,
    *clock.TYPES,
    *replicas.TYPES,
    *gateway.TYPES,
)


def available(target: Target) -> tuple[FaultType, ...]:
    """Return the fault types that can be injected into a target."""
    return tuple(each for each in ALL if each.targets(target))
