"""The table of who may call what."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor

from coordination.channel import Idempotency
from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.kernel.errors import PermissionDenied
from services.kernel.principal import Principal, Role
from services.runtime.grpc import access, methods

FILES: list[FileDescriptor] = [
    order_pb2.DESCRIPTOR,
    payment_pb2.DESCRIPTOR,
    ledger_pb2.DESCRIPTOR,
    failpoint_pb2.DESCRIPTOR,
    acquirer_pb2.DESCRIPTOR,
]
#: They bring faults about, and have to do with no money.
DEBUGGING = ("FailpointService", "FaultService")
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in file.services_by_name.values()
    for method in service.methods
}
#: The methods that take a batch of requests, and those that take one of these requests.
BATCHES = {
    name: f"{name.rpartition('/')[0]}/{field.message_type.name.removesuffix('Request')}"
    for name, method in METHODS.items()
    for field in method.input_type.fields
    if field.name == "requests" and field.message_type is not None
}


READS = ("Get", "List", "Trial", "Verify", "Watch")


def test_table_has_every_method_of_the_protos_and_no_other() -> None:
    """A method that is added to a proto is closed until somebody says who may call it."""
    assert set(access.MAY_CALL) == set(METHODS)


def test_every_method_has_an_idempotency_level() -> None:
    """Clients retry by it; everything here may be."""
    unknown = descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
    assert {name for name, method in METHODS.items() if method.GetOptions().idempotency_level == unknown} == set(
        BATCHES
    )
    assert {name for name in METHODS if methods.idempotency(name) is Idempotency.UNKNOWN} == set(BATCHES)


def test_batch_is_not_sent_again_as_a_whole() -> None:
    """Which of its answers hold for one attempt only is seen by a client that sends each request again by itself."""
    assert len(BATCHES) == 4
    assert all(methods.idempotency(name) is Idempotency.UNKNOWN for name in BATCHES)
    assert all(methods.idempotency(one) is Idempotency.IDEMPOTENT for one in BATCHES.values())
    assert all(access.MAY_CALL[name] <= access.MAY_CALL[one] for name, one in BATCHES.items())


def test_reads_are_marked_as_reads() -> None:
    """What begins with Get, List, Trial, Verify or Watch changes nothing, and everything else does."""
    for name in METHODS:
        assert methods.is_read(name) == name.rpartition("/")[2].startswith(READS)


def test_every_mutation_of_a_person_has_a_key() -> None:
    """A request id or a ticket; services' calls have the payment's id or a business key, the acquirer's a key."""
    keys = {"request_id", "ticket_id", "payment_id", "business_key", "key"}
    mutations = [name for name in METHODS if not methods.is_read(name) and not any(part in name for part in DEBUGGING)]
    keyless = {name for name in mutations if not keys & set(METHODS[name].input_type.fields_by_name)}
    assert keyless == set(BATCHES)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_role_outside_the_table_is_refused(method: str) -> None:
    """Each role on each method; the refusal says who may. Which service may is another table's matter."""
    for role in Role:
        if role is Role.SERVICE:
            continue
        if role in access.MAY_CALL[method]:
            access.check(method, Principal("x", role))
            continue
        with pytest.raises(PermissionDenied) as refusal:
            access.check(method, Principal("x", role))
        assert refusal.value.reason == "ROLE_NOT_ALLOWED"
        assert refusal.value.metadata == {"role": role}
        assert all(allowed in refusal.value.message for allowed in access.MAY_CALL[method])


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("service", ["order", "payment", "ledger", "acquirer", "x"])
def test_service_outside_the_table_is_refused(method: str, service: str) -> None:
    """Each service on each method."""
    name = f"{service}-service"
    if method in access.SERVICES_CALL.get(name, frozenset()):
        access.check(method, Principal(name, Role.SERVICE))
        return
    with pytest.raises(PermissionDenied) as refusal:
        access.check(method, Principal(name, Role.SERVICE))
    assert refusal.value.reason == "SERVICE_NOT_ALLOWED"
    assert refusal.value.metadata == {"role": Role.SERVICE, "service": name}
    assert name in refusal.value.message


def test_services_call_what_their_role_may_call_and_only_the_payment_service_calls_others() -> None:
    assert set(access.SERVICES_CALL) == {"payment-service"}
    for methods_called in access.SERVICES_CALL.values():
        assert methods_called <= set(METHODS)
        assert all(Role.SERVICE in access.MAY_CALL[method] for method in methods_called)


def test_every_method_for_services_alone_is_called_by_one() -> None:
    """What none calls is open to none."""
    inner = {method for method, roles in access.MAY_CALL.items() if roles == {Role.SERVICE}}
    assert inner <= frozenset().union(*access.SERVICES_CALL.values())


def test_auditors_change_nothing() -> None:
    """They read everything."""
    for name in METHODS:
        if not any(part in name for part in DEBUGGING):
            assert (Role.AUDITOR in access.MAY_CALL[name]) == methods.is_read(name)


def test_acquirer_may_call_only_notify_acquirer() -> None:
    """It is none of our services, and sees nothing of ours."""
    open_to_it = [name for name, roles in access.MAY_CALL.items() if Role.ACQUIRER in roles]
    assert open_to_it == ["/countinghouse.payment.v1.PaymentService/NotifyAcquirer"]


def test_unknown_method_is_refused() -> None:
    """Also a service's call of it."""
    with pytest.raises(PermissionDenied, match="no role"):
        access.check("/countinghouse.order.v1.OrderService/DropAll", Principal("x", Role.OPERATOR))
    with pytest.raises(PermissionDenied, match="payment-service may not"):
        access.check("/countinghouse.order.v1.OrderService/DropAll", Principal("payment-service", Role.SERVICE))


def test_methods_that_are_not_ours_are_not_repeatable() -> None:
    """What is not known is not sent twice."""
    assert methods.idempotency("/other.v1.Service/Do") is Idempotency.UNKNOWN
    assert not methods.is_read("/other.v1.Service/Do")


def test_registry_lists_methods_in_order() -> None:
    """As the proto has them."""
    names = methods.method_names("countinghouse.order.v1.OrderService")
    assert names[:3] == ("CreateOrder", "GetOrder", "ListOrders")
