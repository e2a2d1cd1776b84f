"""Errors travel as statuses and arrive as what they were."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from services.kernel import errors
from services.kernel.fence import Fence
from services.runtime.database.database import DatabaseRefused
from services.runtime.grpc import status

EVERY_ERROR: list[tuple[errors.CountinghouseError, grpc.StatusCode]] = [
    (errors.InvalidArgument.of_field("FIELD_REQUIRED", "order_id", "required"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.KeyMismatch("r1"), grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unauthenticated("TOKEN_INVALID", "m"), grpc.StatusCode.UNAUTHENTICATED),
    (errors.PermissionDenied("ROLE_NOT_ALLOWED", "m", metadata={"role": "x"}), grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotFound("ORDER_NOT_FOUND", "m"), grpc.StatusCode.NOT_FOUND),
    (
        errors.AlreadyExists("ORDER_ALREADY_PAID", "m", metadata={"payment_id": "p", "clerk": "李"}),
        grpc.StatusCode.ALREADY_EXISTS,
    ),
    (errors.FailedPrecondition("ILLEGAL_STATE", "m"), grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Aborted("ORDER_LOCKED", "m", retry_after_ms=70), grpc.StatusCode.ABORTED),
    (errors.RequestInProgress("r1"), grpc.StatusCode.ABORTED),
    (errors.StaleFence("o1", Fence(1, 1), Fence(1, 2)), grpc.StatusCode.ABORTED),
    (errors.StaleVersion("order o1", 1, 2), grpc.StatusCode.ABORTED),
    (errors.Unavailable("DATABASE_UNAVAILABLE", "m"), grpc.StatusCode.UNAVAILABLE),
    (
        errors.ResourceExhausted("CALLER_LIMIT", "m", metadata={"cost": "32"}, retry_after_ms=250),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ),
    (errors.OutcomeUnknown("OUTCOME_UNKNOWN", "m"), grpc.StatusCode.DEADLINE_EXCEEDED),
]


def test_every_error_class_is_tried_here() -> None:
    """A class added to the kernel needs a code, and a row in this test."""
    kinds = {errors.CountinghouseError}
    while more := {sub for kind in kinds for sub in kind.__subclasses__() if sub.__module__ == errors.__name__} - kinds:
        kinds |= more
    assert kinds - {errors.CountinghouseError} == {type(error) for error, _ in EVERY_ERROR}


@pytest.mark.parametrize(("error", "code"), EVERY_ERROR, ids=lambda value: type(value).__name__)
def test_error_arrives_as_it_was_sent(error: errors.CountinghouseError, code: grpc.StatusCode) -> None:
    """Reason, message, metadata, retry and fields; of the kind that belongs to its code."""
    sent = status.to_status(error)
    assert status.code_of(error) is status.code_of_status(sent) is code
    arrived = status.from_status(status_pb2.Status.FromString(sent.SerializeToString()))
    assert isinstance(error, type(arrived))
    assert type(arrived) is not errors.CountinghouseError
    assert (arrived.reason, arrived.message, arrived.metadata) == (error.reason, error.message, error.metadata)
    assert (arrived.retry_after_ms, arrived.fields) == (error.retry_after_ms, error.fields)
    assert arrived.definitive is error.definitive


def test_error_with_text_that_no_encoding_takes_arrives_escaped() -> None:
    """Lone surrogates, from JSON of others, reach the caller by their numbers, with the reason of the error."""
    error = errors.Aborted("LOCKED", "by a\ud800", metadata={"\udc00": "b\udfff"}, fields=(("c\ud801", "d\ud802"),))
    arrived = status.from_status(status.to_status(error))
    assert (type(arrived), arrived.reason, arrived.message) == (errors.Aborted, "LOCKED", "by a\\ud800")
    assert arrived.metadata == {"\\udc00": "b\\udfff"}
    assert arrived.fields == (("c\\ud801", "d\\ud802"),)


def rpc_error(code: grpc.StatusCode, trailers: Metadata, details: str = "socket closed") -> AioRpcError:
    return AioRpcError(code, Metadata(), trailers, details=details)


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL]
)
def test_foreign_status_leaves_the_outcome_unknown(code: grpc.StatusCode) -> None:
    """The transport's own words, and an opaque INTERNAL: the outcome is unknown."""
    assert isinstance(status.from_rpc_error(rpc_error(code, Metadata())), errors.OutcomeUnknown)
    opaque = Metadata((status.DETAILS_KEY, status.internal().SerializeToString()))
    assert isinstance(status.from_rpc_error(rpc_error(code, opaque)), errors.OutcomeUnknown)


def test_another_domains_error_is_not_taken_for_ours() -> None:
    """A proxy's FAILED_PRECONDITION must not be stored as a decline."""
    foreign = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message="m")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="ILLEGAL_STATE", domain="elsewhere"))
    assert isinstance(status.from_status(foreign), errors.OutcomeUnknown)


def test_rpc_error_with_our_details_is_our_error() -> None:
    """Read from the trailers."""
    sent = status.to_status(errors.StaleFence("o1", Fence(1, 1), Fence(1, 2)))
    trailers = Metadata((status.DETAILS_KEY, sent.SerializeToString()))
    arrived = status.from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, trailers))
    assert isinstance(arrived, errors.Aborted)
    assert (arrived.reason, arrived.metadata["guard"]) == ("STALE_FENCE", "fence")


@pytest.mark.parametrize("details", [b"\x0f", b"\x1a\x40short"], ids=["wire type", "truncated"])
def test_malformed_details_of_a_peer_leave_the_outcome_unknown(details: bytes) -> None:
    """Whatever stands at the address may send anything; it is no exception of ours."""
    arrived = status.from_rpc_error(rpc_error(grpc.StatusCode.ABORTED, Metadata((status.DETAILS_KEY, details))))
    assert isinstance(arrived, errors.OutcomeUnknown)


def test_malformed_detail_of_a_peer_leaves_the_outcome_unknown() -> None:
    """Also where the status can be parsed and a detail in it cannot."""
    spoiled = status.to_status(errors.Aborted("ORDER_LOCKED", "m", retry_after_ms=70))
    spoiled.details[1].value = b"\x0f"
    arrived = status.from_rpc_error(
        rpc_error(grpc.StatusCode.ABORTED, Metadata((status.DETAILS_KEY, spoiled.SerializeToString())))
    )
    assert isinstance(arrived, errors.OutcomeUnknown)


def test_error_without_a_code_of_its_own_is_internal() -> None:
    """One that only a start-up can meet never becomes a promise about a call."""
    assert status.code_of(DatabaseRefused("DATABASE_CORRUPT", "m")) is grpc.StatusCode.INTERNAL


def test_internal_error_hides_its_exception() -> None:
    """No details, no text of the exception."""
    assert status.code_of_status(status.internal()) is grpc.StatusCode.INTERNAL
    assert not status.internal().details


def test_unknown_number_is_unknown() -> None:
    """Codes of the future are not guessed."""
    assert status.code_of_status(status_pb2.Status(code=99)) is grpc.StatusCode.UNKNOWN
