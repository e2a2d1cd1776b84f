"""Errors to gRPC statuses and back; no other module translates them.

Details follow google.rpc (AIP-193): ErrorInfo with the reason and the domain `countinghouse`, BadRequest with the
fields, RetryInfo where trying again helps.
"""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from coordination.channel import maybe_sent_before
from coordination.quoting import well_formed
from services.kernel import errors
from services.kernel.idempotency import StoredResponse

DOMAIN = "countinghouse"
#: Where gRPC carries a serialized google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"
#: The reason once more, for clients that keep no details: Java Dubbo parses them and drops all but the message.
REASON_KEY = "x-reason"

_CODES: dict[type[errors.CountinghouseError], grpc.StatusCode] = {
    errors.InvalidArgument: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.FailedPrecondition: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Aborted: grpc.StatusCode.ABORTED,
    errors.ResourceExhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.OutcomeUnknown: grpc.StatusCode.DEADLINE_EXCEEDED,
}
#: Answers that hold for the attempt they answer, and for no other. A definitive refusal holds for all: it would have
#: met the earlier attempt, too, or is what that one led to.
_OF_ONE_ATTEMPT = (errors.Aborted, errors.Unavailable, errors.Unauthenticated, errors.PermissionDenied)
_TYPES = {code: kind for kind, code in _CODES.items()}
_CODES_BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def code_of(error: errors.CountinghouseError) -> grpc.StatusCode:
    """Return the status code under which `error` travels."""
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    return grpc.StatusCode.INTERNAL


def code_of_status(status: status_pb2.Status) -> grpc.StatusCode:
    """Return the grpcio code of a google.rpc.Status."""
    return _CODES_BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)


def to_status(error: errors.CountinghouseError) -> status_pb2.Status:
    """Return `error` as a google.rpc.Status with its details; what no protobuf may hold of its texts is escaped."""
    metadata = {well_formed(key): well_formed(value) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=well_formed(error.reason), domain=DOMAIN, metadata=metadata)
    details = [_packed(info)]
    if error.fields:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=well_formed(field), description=well_formed(description))
            for field, description in error.fields
        ]
        details.append(_packed(error_details_pb2.BadRequest(field_violations=violations)))
    if error.retry_after_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(error.retry_after_ms)
        details.append(_packed(retry))
    return status_pb2.Status(code=code_of(error).value[0], message=well_formed(error.message), details=details)


def stored_refusal(error: errors.CountinghouseError) -> StoredResponse:
    """Return a definitive refusal as it is stored and sent."""
    return StoredResponse(ok=False, body=to_status(error).SerializeToString(deterministic=True))


def internal() -> status_pb2.Status:
    """Return what a caller is told of an unexpected error: nothing."""
    return status_pb2.Status(
        code=code_pb2.INTERNAL, message="something went wrong here that should not have; it has been logged"
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.CountinghouseError:
    """Return a peer's answer as the error it stands for.

    A status without our ErrorInfo comes from the transport, or from a server that broke: it says nothing about what
    was done, hence OutcomeUnknown. So is an answer that says "nothing was done" when another instance had been sent
    the same call before and had not answered: it says so of itself only.
    """
    status = _status_in(error)
    if status is not None:
        answer = from_status(status)
        return after_silence(answer) if maybe_sent_before(error) else answer
    return errors.OutcomeUnknown(
        "OUTCOME_UNKNOWN",
        f"no answer: {error.code().name.lower().replace('_', ' ')}: {error.details() or 'no details'}",
    )


def after_silence(answer: errors.CountinghouseError) -> errors.CountinghouseError:
    """Return an answer that came after the same call had been sent before, without an answer."""
    if isinstance(answer, _OF_ONE_ATTEMPT):
        return errors.OutcomeUnknown("OUTCOME_UNKNOWN", f"asked before without an answer, and then: {answer.message}")
    return answer


def of_peer(answer: errors.CountinghouseError) -> errors.CountinghouseError:
    """Return what a peer's refusal of this service means to the caller of this service."""
    if isinstance(answer, (errors.Unauthenticated, errors.PermissionDenied)):
        return errors.Unavailable("PEER_REFUSED_US", f"this service was turned away: {answer.message}")
    if isinstance(answer, errors.ResourceExhausted):  # the caller did not reach a limit; this service did
        return errors.Unavailable(
            "PEER_BUSY",
            "a service this needs has too much to do; try again",
            retry_after_ms=answer.retry_after_ms,
        )
    return answer


def from_bytes(details: bytes) -> errors.CountinghouseError:
    """Return the error that the bytes of a google.rpc.Status stand for."""
    try:
        return from_status(status_pb2.Status.FromString(details))
    except DecodeError:  # not from one of ours
        return errors.OutcomeUnknown("OUTCOME_UNKNOWN", "no answer: its status cannot be read")


def reason_in(status: status_pb2.Status) -> str:
    """Return the reason in a google.rpc.Status; empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")


def from_status(status: status_pb2.Status) -> errors.CountinghouseError:
    """Return the error that a google.rpc.Status stands for."""
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    try:
        found = {
            part.DESCRIPTOR.full_name for detail in status.details for part in (info, bad, retry) if detail.Unpack(part)
        }
    except DecodeError:  # not from one of ours
        found = set()
    if info.domain != DOMAIN or info.DESCRIPTOR.full_name not in found:
        return errors.OutcomeUnknown("OUTCOME_UNKNOWN", f"no answer: {status.message}")
    kind = _TYPES.get(code_of_status(status), errors.CountinghouseError)
    rebuilt = kind.__new__(kind)
    errors.CountinghouseError.__init__(
        rebuilt,
        info.reason,
        status.message,
        metadata=dict(info.metadata),
        retry_after_ms=retry.retry_delay.ToMilliseconds() if retry.DESCRIPTOR.full_name in found else None,
        fields=tuple((violation.field, violation.description) for violation in bad.field_violations),
    )
    return rebuilt


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], answer: status_pb2.Status, details: bytes, *, replayed: bool = False
) -> NoReturn:
    """Answer with a status; `details` are its bytes, which go on the wire as they are."""
    trailers: tuple[tuple[str, str | bytes], ...] = ((DETAILS_KEY, details),)
    if reason := reason_in(answer):
        trailers += ((REASON_KEY, reason),)
    if replayed:
        trailers += (("x-replayed", "true"),)
    await context.abort(code_of_status(answer), answer.message, trailers)


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)  # the same refusal has the same bytes
    return packed


def _status_in(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:  # not from one of ours: it says nothing
                return None
    return None
