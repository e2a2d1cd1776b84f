"""Errors as problem details (RFC 9457), with the reasons that gRPC has.

    {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "…", "code": "ALREADY_EXISTS",
     "reason": "ORDER_ALREADY_PAID", "metadata": {…}, "fields": [{"field": "…", "description": "…"}]}

The status follows google.rpc.Code's own mapping to HTTP, but for the three that the draft of the header
`Idempotency-Key` names (draft-ietf-httpapi-idempotency-key-header-07): 400 without the header, 422 for another payload
under it, 409 while its request is under way.
"""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

import grpc

from services.kernel.errors import CountinghouseError
from services.runtime.grpc import status

CONTENT_TYPE: Final = "application/problem+json"
_STATUSES: Final[dict[grpc.StatusCode, HTTPStatus]] = {
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.OUT_OF_RANGE: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    grpc.StatusCode.ABORTED: HTTPStatus.CONFLICT,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
}
_BY_REASON: Final = {"IDEMPOTENCY_KEY_MISMATCH": HTTPStatus.UNPROCESSABLE_ENTITY}
#: Every status of an answer, for the document.
ALL_STATUSES: Final = tuple(
    sorted({*_STATUSES.values(), *_BY_REASON.values(), HTTPStatus.INTERNAL_SERVER_ERROR}, key=int)
)


class HttpRefusal(Exception):
    """A refusal that gRPC has no code for.

    Args:
        headers: Of the answer.
    """

    def __init__(self, code: HTTPStatus, reason: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.headers = headers or {}


def status_of(error: CountinghouseError) -> HTTPStatus:
    """Return the status under which an error is answered."""
    found = _BY_REASON.get(error.reason) or _STATUSES.get(status.code_of(error))
    return found or HTTPStatus.INTERNAL_SERVER_ERROR


def problem_of(error: CountinghouseError) -> tuple[HTTPStatus, dict[str, Any], dict[str, str]]:
    """Return an error's status, its document and its headers."""
    code = status_of(error)
    document = _document(code, error.reason, error.message)
    document |= {
        "code": status.code_of(error).name,
        "metadata": dict(error.metadata),
        "fields": [{"field": field, "description": description} for field, description in error.fields],
    }
    headers = {}
    if error.retry_after_ms is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
        document["retryAfterMs"] = error.retry_after_ms
    if code is HTTPStatus.UNAUTHORIZED:
        headers["www-authenticate"] = "Bearer"
    return code, document, headers


def problem_of_refusal(refusal: HttpRefusal) -> tuple[HTTPStatus, dict[str, Any], dict[str, str]]:
    """Return the same of a refusal of HTTP's own."""
    return refusal.code, _document(refusal.code, refusal.reason, str(refusal)), refusal.headers


def _document(code: HTTPStatus, reason: str, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": code.phrase, "status": int(code), "detail": detail, "reason": reason}
