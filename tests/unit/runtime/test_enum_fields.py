"""Enum fields of requests: a number that this release does not know is refused by every method that has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, fence_pb2
from services.acquirer.servicer import AcquirerServicer, FaultServicer
from services.kernel.clock import CallDeadline
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Principal, Role
from services.ledger.servicer import LedgerServicer
from services.order.servicer import OrderServicer
from services.payment.servicer import PaymentServicer
from services.runtime.grpc.context import Call, serving
from services.runtime.grpc.failpoints import FailpointServicer
from tests.fakes.clock import ManualClock

UNKNOWN: Any = 99
PACKAGES = (order_pb2, payment_pb2, ledger_pb2, acquirer_pb2, failpoint_pb2)
FENCE = fence_pb2.Fence(generation=1, token=1)
UNKNOWN_CLERK = clerk_pb2.Clerk(name="li", role=UNKNOWN)
ORDER: Any = {"order_id": "o1", "payment_id": "p1", "fence": FENCE}
LEGS = [ledger_pb2.Posting(account_id="a", amount=1), ledger_pb2.Posting(account_id="b", amount=-1)]

#: Field → a request that is good but for it, the reason, and whether the field may be left out.
CASES: dict[str, tuple[Any, str, bool]] = {
    "ListOrders.state": (order_pb2.ListOrdersRequest(state=UNKNOWN), "STATE_UNKNOWN", True),
    "ListPayments.state": (payment_pb2.ListPaymentsRequest(state=UNKNOWN), "STATE_UNKNOWN", True),
    "ListPayments.source": (payment_pb2.ListPaymentsRequest(source=UNKNOWN), "SOURCE_UNKNOWN", True),
    "ClaimOrder.clerk.role": (order_pb2.ClaimOrderRequest(clerk=UNKNOWN_CLERK, **ORDER), "FIELD_REQUIRED", False),
    "ReleaseOrder.clerk.role": (order_pb2.ReleaseOrderRequest(clerk=UNKNOWN_CLERK, **ORDER), "FIELD_REQUIRED", False),
    "ReopenOrder.clerk.role": (
        order_pb2.ReopenOrderRequest(clerk=UNKNOWN_CLERK, reason="why", **ORDER),
        "FIELD_REQUIRED",
        False,
    ),
    "CompleteOrder.settled_by.role": (
        order_pb2.CompleteOrderRequest(settled_by=UNKNOWN_CLERK, settled_at_ms=1, **ORDER),
        "FIELD_REQUIRED",
        False,
    ),
    "Pay.source": (payment_pb2.PayRequest(ticket_id="t1", source=UNKNOWN), "FIELD_REQUIRED", False),
    "Settle.source": (
        payment_pb2.SettleRequest(request_id="r1", order_id="o1", source=UNKNOWN),
        "FIELD_REQUIRED",
        False,
    ),
    "OpenAccount.kind": (
        ledger_pb2.OpenAccountRequest(request_id="r1", account_id="a", kind=UNKNOWN, currency_code="CNY"),
        "FIELD_REQUIRED",
        False,
    ),
    "Post.clerk.role": (
        ledger_pb2.PostRequest(
            business_key="k", postings=LEGS, currency_code="CNY", payment_id="p1", clerk=UNKNOWN_CLERK, request_id="r1"
        ),
        "FIELD_REQUIRED",
        False,
    ),
    "ReverseJournal.clerk.role": (
        ledger_pb2.ReverseJournalRequest(
            journal_id="j1", reason="why", payment_id="p1", clerk=UNKNOWN_CLERK, request_id="r1", fence=FENCE
        ),
        "FIELD_REQUIRED",
        False,
    ),
    "SetFaults.faults.kind": (
        acquirer_pb2.SetFaultsRequest(faults=[acquirer_pb2.Fault(kind=UNKNOWN)]),
        "FIELD_REQUIRED",
        False,
    ),
    "ArmFailpoint.action": (
        failpoint_pb2.ArmFailpointRequest(name="posted", action=UNKNOWN),
        "ACTION_UNKNOWN",
        True,
    ),
}
#: A notice's outcome is read by nobody, so that a newer acquirer's notice is still heard.
NOT_READ = {"NotifyAcquirer.outcome"}


class Nobody:
    """Stands behind a servicer, and must not be asked."""

    def __getattr__(self, name: str) -> Any:
        def ask(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"{name} was asked")

        return ask


def servicer_of(method: str) -> Any:
    behind: Any = Nobody()
    kinds: tuple[Any, ...] = (
        OrderServicer,
        PaymentServicer,
        LedgerServicer,
        AcquirerServicer,
        FaultServicer,
        FailpointServicer,
    )
    kind = next(kind for kind in kinds if method in vars(kind))
    return kind(behind, ManualClock()) if kind is PaymentServicer else kind(behind)


def enum_fields(message: Descriptor, path: str) -> Iterator[str]:
    for field in message.fields:
        if field.enum_type is not None:
            yield f"{path}.{field.name}"
        elif field.message_type is not None:
            yield from enum_fields(field.message_type, f"{path}.{field.name}")


def test_every_enum_field_of_a_request_is_tried_here() -> None:
    """A field added to a proto needs a row in this test. A batch is served by the method for one of its requests."""
    fields = {
        name
        for package in PACKAGES
        for service in package.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "requests" not in method.input_type.fields_by_name
        for name in enum_fields(method.input_type, method.name)
    }
    assert fields - NOT_READ == set(CASES)


@pytest.mark.parametrize("field", CASES)
async def test_unknown_enum_number_is_refused(field: str) -> None:
    """INVALID_ARGUMENT that names the field, before anything is looked up; never taken for "all" or "none"."""
    request, reason, _ = CASES[field]
    method = field.partition(".")[0]
    serving(Call("/test", Principal("payment", Role.SERVICE), CallDeadline.after(1, ManualClock())))
    with pytest.raises(InvalidArgument) as refusal:
        await getattr(servicer_of(method), method)(request, None)
    assert refusal.value.reason == reason
    assert refusal.value.fields[0][0].split(".")[-1] == field.rsplit(".", maxsplit=1)[-1]


@pytest.mark.parametrize("field", [field for field, (_, _, optional) in CASES.items() if optional])
async def test_optional_enum_field_may_be_left_out(field: str) -> None:
    """UNSPECIFIED is let through to what stands behind the servicer."""
    request, _, _ = CASES[field]
    method, _, name = field.partition(".")
    without = type(request)()
    without.CopyFrom(request)
    without.ClearField(name)
    serving(Call("/test", Principal("payment", Role.SERVICE), CallDeadline.after(1, ManualClock())))
    with pytest.raises(AssertionError, match="was asked"):
        await getattr(servicer_of(method), method)(without, None)
