"""AcquirerService and FaultService on the wire: proto in, proto out. Checks form, translates, decides nothing."""

from __future__ import annotations

from typing import Any

from grpc import aio

from countinghouse.acquirer.v1 import acquirer_pb2 as pb
from countinghouse.acquirer.v1 import acquirer_pb2_grpc
from services.acquirer.faults import Fault, FaultKind, Faults
from services.acquirer.model import Charge, ChargeState, LogEntry, Payload
from services.acquirer.operations import AcquirerOperations
from services.kernel.ids import check_name, check_text
from services.runtime.grpc import pagination, translate
from services.runtime.grpc.context import current_call

_Context = aio.ServicerContext[Any, Any]

_STATES: dict[ChargeState, pb.ChargeState.ValueType] = {
    ChargeState.CHARGED: pb.CHARGE_STATE_CHARGED,
    ChargeState.DECLINED: pb.CHARGE_STATE_DECLINED,
    ChargeState.REFUNDED: pb.CHARGE_STATE_REFUNDED,
    ChargeState.TOMBSTONE: pb.CHARGE_STATE_TOMBSTONE,
}
_KINDS: dict[FaultKind, pb.FaultKind.ValueType] = {
    FaultKind.DROP_REPLY: pb.FAULT_KIND_DROP_REPLY,
    FaultKind.DELAY_BEFORE: pb.FAULT_KIND_DELAY_BEFORE,
    FaultKind.DELAY_AFTER: pb.FAULT_KIND_DELAY_AFTER,
    FaultKind.DOWN: pb.FAULT_KIND_DOWN,
    FaultKind.NOTICE_TWICE: pb.FAULT_KIND_NOTICE_TWICE,
    FaultKind.NOTICE_LOST: pb.FAULT_KIND_NOTICE_LOST,
}
_KIND_BY_NUMBER: dict[int, FaultKind] = {int(number): kind for kind, number in _KINDS.items()}
_MAX_ADDRESS = 261  # a host name of 255 characters, a colon and a port


class AcquirerServicer(acquirer_pb2_grpc.AcquirerServiceServicer):
    """See `acquirer.proto`."""

    def __init__(self, operations: AcquirerOperations) -> None:
        self._operations = operations

    async def Charge(self, request: pb.ChargeRequest, _context: _Context) -> pb.ChargeResponse:
        payload = Payload(
            card=check_name(request.card, "card"),
            amount=translate.money_of(request.amount),
            reference=request.reference and check_name(request.reference, "reference"),
        )
        key = check_name(request.key, "key")
        address = check_text(request.notify_address, "notify_address", limit=_MAX_ADDRESS)
        return pb.ChargeResponse(
            charge=_charge_out(await self._operations.charge(current_call(), key, payload, address))
        )

    async def GetCharge(self, request: pb.GetChargeRequest, _context: _Context) -> pb.GetChargeResponse:
        found = await self._operations.find(current_call(), check_name(request.key, "key"))
        return pb.GetChargeResponse(charge=_charge_out(found))

    async def ReverseByKey(self, request: pb.ReverseByKeyRequest, _context: _Context) -> pb.ReverseByKeyResponse:
        reversed_ = await self._operations.reverse(current_call(), check_name(request.key, "key"))
        return pb.ReverseByKeyResponse(charge=_charge_out(reversed_))

    async def ListCharges(self, request: pb.ListChargesRequest, _context: _Context) -> pb.ListChargesResponse:
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.statement(after=key[0] if key else 0, limit=limit),
            key_of=lambda charge: (charge.number,),
            out=_charge_out,
        )
        return pb.ListChargesResponse(charges=page.rows, next_page_token=page.next_page_token)

    async def ListLog(self, request: pb.ListLogRequest, _context: _Context) -> pb.ListLogResponse:
        wanted = request.key and check_name(request.key, "key")
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.log(
                after=key[0] if key else None, limit=limit, key=wanted, newest_first=request.newest_first
            ),
            key_of=lambda entry: (entry.number,),
            out=_entry_out,
        )
        return pb.ListLogResponse(entries=page.rows, next_page_token=page.next_page_token)


class FaultServicer(acquirer_pb2_grpc.FaultServiceServicer):
    """Sets the faults of this process from outside."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def SetFaults(self, request: pb.SetFaultsRequest, _context: _Context) -> pb.SetFaultsResponse:
        self._faults.set([_fault_in(fault) for fault in request.faults])
        return pb.SetFaultsResponse(faults=map(_fault_out, self._faults.all))

    async def GetFaults(self, _request: pb.GetFaultsRequest, _context: _Context) -> pb.GetFaultsResponse:
        return pb.GetFaultsResponse(faults=map(_fault_out, self._faults.all))


def _charge_out(charge: Charge) -> pb.Charge:
    payload = charge.payload
    return pb.Charge(
        key=charge.key,
        state=_STATES[charge.state],
        amount=translate.money_out(payload.amount) if payload else None,
        card=payload.card if payload else "",
        reference=payload.reference if payload else "",
        decline_reason=charge.decline_reason,
        number=charge.number,
        decided_at_ms=charge.decided_at_ms,
        refunded_at_ms=charge.refunded_at_ms,
    )


def _entry_out(entry: LogEntry) -> pb.LogEntry:
    request = entry.request
    payload = request.payload
    return pb.LogEntry(
        number=entry.number,
        at_ms=request.at_ms,
        method=request.method,
        caller=request.caller,
        key=request.key,
        word=entry.word,
        amount=translate.money_out(payload.amount) if payload else None,
        card=payload.card if payload else "",
        reference=payload.reference if payload else "",
    )


def _fault_in(message: pb.Fault) -> Fault:
    return Fault(
        kind=translate.enum_in(_KIND_BY_NUMBER, message.kind, "kind"),
        method=message.method,
        times=message.times,
        delay_ms=message.delay_ms,
        subject=message.subject,
    )


def _fault_out(fault: Fault) -> pb.Fault:
    return pb.Fault(
        kind=_KINDS[fault.kind],
        method=fault.method,
        times=fault.times,
        delay_ms=fault.delay_ms,
        subject=fault.subject,
    )
