"""Faults that the acquirer has by itself: it loses replies, is slow or down, or notifies twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from countinghouse.acquirer.v1 import acquirer_pb2
from services.chaos.faults.types import (
    INJECT_WITHIN_S,
    FaultInjection,
    FaultTypes,
    InjectionContext,
    Observations,
    instances,
)
from services.kernel.errors import CountinghouseError
from services.testkit.waiting import NotBroughtAbout

TYPES: Final = FaultTypes("acquirer")
_FAULTS: Final[dict[str, tuple[acquirer_pb2.Fault, ...]]] = {
    "acquirer-silent": (acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DROP_REPLY, times=2),),
    "acquirer-slow": (
        acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DELAY_BEFORE, times=1, delay_ms=800),
        acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DELAY_AFTER, times=1, delay_ms=800),
    ),
    "acquirer-down": (acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DOWN),),
    "acquirer-notifies-twice": (acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_NOTICE_TWICE),),
}


async def _misbehave(context: InjectionContext, injection: FaultInjection) -> Observations:
    try:
        await _set_faults(context, injection.target, _FAULTS[injection.fault])
        yield {}
    finally:
        await _set_faults(context, injection.target, ())


for _name in _FAULTS:
    TYPES.define(_name, targets=instances("acquirer"), duration_s=(1.0, 3.0))(_misbehave)


async def _set_faults(context: InjectionContext, instance: str, faults: Sequence[acquirer_pb2.Fault]) -> None:
    await context.target.wait_serving(instance)  # another fault may have killed it
    try:
        await context.operator.ask_until_ok(
            acquirer_pb2.SetFaultsRequest(faults=faults), at=instance, timeout_s=2.0, within_s=INJECT_WITHIN_S
        )
    except CountinghouseError as error:
        raise NotBroughtAbout(f"{instance} takes no faults: {error}") from error
