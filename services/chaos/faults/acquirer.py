"""Faults that the acquirer has by itself: it loses replies, is slow or down, or notifies twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from coordination.grpc_channel import open_channel
from countinghouse.acquirer.v1 import acquirer_pb2, acquirer_pb2_grpc
from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations, instances

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
    async with open_channel(context.target.address(instance)) as channel:
        stub: Any = acquirer_pb2_grpc.FaultServiceStub(channel)
        request = acquirer_pb2.SetFaultsRequest(faults=faults)
        await context.call_until_ok(stub.SetFaults, request, f"{instance} takes no faults")
