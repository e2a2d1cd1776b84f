"""The errors that a caller may see, as types. `runtime/grpc/status.py` turns them into gRPC statuses.

CountinghouseError
├── InvalidArgument        the request can never work as it is         (nothing was done)
├── Unauthenticated        no token, or one that is not good
├── PermissionDenied       a good token of a caller who may not
├── NotFound               no such thing, or none the caller may see
├── AlreadyExists          it is there already                         (definitive)
├── FailedPrecondition     the state of things forbids it              (definitive)
├── Aborted                another caller was first; try again         (passing: nothing was done)
├── Unavailable            a dependency is away                        (passing: nothing was done)
│   └── ResourceExhausted  a limit of calls or tickets is reached      (passing: nothing was done)
└── OutcomeUnknown         asked, and not answered: it may have happened; never the same as failed

A *definitive* refusal had no effect and never will have: it is stored as the answer to its request id and replayed.
A *passing* one is not stored; the same request id may be sent again and runs anew. An unknown one is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


class CountinghouseError(Exception):
    """Root of all errors a caller may see.

    Args:
        reason: UPPER_SNAKE; stable; for programs.
        message: One sentence that says what to do; for people.
        metadata: Facts for programs, such as the holder of a lock. `guard` names the guard that refused.
        retry_after_ms: How long to wait before trying again; None: trying again does not help by itself.
        fields: What is wrong with which field of the request.
    """

    definitive: ClassVar[bool] = False

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = None,
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_ms = retry_after_ms
        self.fields = fields

    def __str__(self) -> str:
        return self.message


class InvalidArgument(CountinghouseError):
    """The request can never work as it is."""

    @classmethod
    def of_field(cls, reason: str, field: str, message: str) -> InvalidArgument:
        """Return an error that names the field at fault."""
        return cls(reason, message, fields=((field, message),))


class KeyMismatch(InvalidArgument):
    """A key that was used before, for something else."""

    def __init__(self, key: str) -> None:
        super().__init__(
            "IDEMPOTENCY_KEY_MISMATCH",
            f"{key} was used before with another payload; use a new id for a new operation",
            metadata={"key": key},
        )


class Unauthenticated(CountinghouseError):
    """No token, or one that is not good."""


class PermissionDenied(CountinghouseError):
    """A good token of a caller who may not do this."""


class NotFound(CountinghouseError):
    """No such thing, or none the caller may see."""


class AlreadyExists(CountinghouseError):
    """It is there already."""

    definitive = True


class FailedPrecondition(CountinghouseError):
    """The state of things forbids it."""

    definitive = True


class Aborted(CountinghouseError):
    """Another caller was first; the same request may be sent again."""


class RequestInProgress(Aborted):
    """The same key is running at this moment."""

    def __init__(self, key: str, retry_after_ms: int = 200) -> None:
        super().__init__(
            "REQUEST_IN_PROGRESS",
            f"{key} is being worked on; ask again with the same id in {retry_after_ms} ms",
            metadata={"key": key, "guard": "ticket"},
            retry_after_ms=retry_after_ms,
        )


#: The reason of `StaleFence`.
STALE_FENCE: Final = "STALE_FENCE"


class StaleFence(Aborted):
    """A write under an order's lock that another holder has had since."""

    def __init__(self, order_id: str, carried: object, seen: object) -> None:
        subject = f"order {order_id}"
        super().__init__(
            STALE_FENCE,
            f"{subject} was locked by another holder since: fence {carried} is behind {seen}; ask again, same id",
            metadata={"subject": subject, "carried": str(carried), "seen": str(seen), "guard": "fence"},
            retry_after_ms=50,
        )


class StaleVersion(Aborted):
    """The row has changed since the caller saw it."""

    def __init__(self, subject: str, expected: int, actual: int) -> None:
        super().__init__(
            "STALE_VERSION",
            f"{subject} is at version {actual}, not {expected}; read it again",
            metadata={"subject": subject, "expected": str(expected), "actual": str(actual)},
        )


class Unavailable(CountinghouseError):
    """A dependency is away and nothing was done."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_ms: int | None = 1_000,
        fields: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(reason, message, metadata=metadata, retry_after_ms=retry_after_ms, fields=fields)


class ResourceExhausted(Unavailable):
    """A limit is reached, of the caller or of the server, and nothing was done."""


class OutcomeUnknown(CountinghouseError):
    """Asked, and not answered: it may have happened or may yet happen."""


def may_come_right(error: CountinghouseError) -> bool:
    """Return whether the same request under the same key may yet be answered otherwise."""
    if isinstance(error, (Aborted, ResourceExhausted)):
        return error.retry_after_ms is not None
    return isinstance(error, (Unavailable, OutcomeUnknown))
