"""The rules of a key that may be used once: the ticket (method 1) and the request id (method 2). No I/O.

                 issue                consume                    store
    (nothing) ──────────▶ ISSUED ──────────────▶ IN_PROGRESS ──────────▶ DONE ⟲ replay
                            │  ▲                    │      ▲│
                     expire │  └────────────────────┘      ││ take over (lease has passed)
                            ▼        give back             └┘
                         EXPIRED ⟲ refuse

Invariants
1. A key belongs to (caller, method, key), the caller being a role and a name: two callers' keys never meet.
2. Only one execution holds the key: each consume or take-over raises `attempt`, and nothing lowers it, so that one that
   was paused never holds what another has begun since. A response is stored in the transaction of its effect, whose own
   conditional update decides which of two executions that is.
3. DONE and EXPIRED never change; the response of DONE is replayed byte for byte for as long as the row is kept
   (`runtime/database/retention.py`: for ever, if an order was made, cancelled or paid by it).
4. A key is given back (IN_PROGRESS → ISSUED) only by the execution that holds it, and only if nothing was done.
   The execution that starts an ISSUED key is therefore its first, whatever the attempt.
5. EXPIRED is refused, never run. Only ISSUED expires: an execution once begun is brought to its end.
   A payment that was given back and is then finished by another clerk goes from ISSUED to DONE.
6. A consumed key has a fingerprint; another payload under it is refused, in every state.

`decide` returns what a caller may do; the stores make each move by one conditional UPDATE, `idempotency_table.py`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum

from services.kernel.errors import FailedPrecondition, KeyMismatch, RequestInProgress
from services.kernel.principal import Principal


class RequestState(StrEnum):
    """Where a ticket or request stands."""

    ISSUED = "ISSUED"
    IN_PROGRESS = "IN_PROGRESS"
    DONE = "DONE"
    EXPIRED = "EXPIRED"


#: The machine as a table: from → to.
MOVES: dict[RequestState, frozenset[RequestState]] = {
    RequestState.ISSUED: frozenset({RequestState.IN_PROGRESS, RequestState.EXPIRED, RequestState.DONE}),
    RequestState.IN_PROGRESS: frozenset({RequestState.IN_PROGRESS, RequestState.ISSUED, RequestState.DONE}),
    RequestState.DONE: frozenset(),
    RequestState.EXPIRED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class RequestKey:
    """Whose key, for which method."""

    caller: Principal
    method: str
    key: str


@dataclass(frozen=True, slots=True)
class KeyedRequest:
    """A caller's request that is executed in one transaction.

    Args:
        fingerprint: Of the payload, as `fingerprint` computes it.
        at_ms: When it was received, in Unix milliseconds.
    """

    key: RequestKey
    fingerprint: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """What a finished request was answered with.

    Args:
        ok: Whether `body` is the response message; otherwise it is a google.rpc.Status.
        body: Serialized protobuf; replayed as it is.
    """

    ok: bool
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call is answered with.

    Args:
        response: As it is stored; sent as it is.
        replayed: It had been stored by an earlier call.
    """

    response: StoredResponse
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class RequestRow:
    """A ticket or request as stored. Times are Unix milliseconds."""

    key: RequestKey
    state: RequestState
    fingerprint: str
    attempt: int
    lease_until_ms: int
    expires_at_ms: int
    response: StoredResponse | None


@dataclass(frozen=True, slots=True)
class Execution:
    """The caller now executes this key.

    Args:
        attempt: Must be carried by `give_back` and `renew`.
        first: Whether no other execution can have done anything under this key.
        fresh: Whether the key was not known before.
    """

    key: RequestKey
    attempt: int
    first: bool
    fresh: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Lease:
    """The instance that executes, and until when others keep out. Times are Unix milliseconds."""

    owner: str
    now_ms: int
    until_ms: int


class Decision(StrEnum):
    """What the caller of a key may do."""

    RUN = "RUN"
    REPLAY = "REPLAY"


def fingerprint(payload: bytes) -> str:
    """Return the fingerprint of a payload: SHA-256 of the deterministically serialized request, without its key."""
    return hashlib.sha256(payload).hexdigest()


def decide(row: RequestRow, payload_fingerprint: str, now_ms: int, *, take_over: bool = True) -> Decision:
    """Return what may be done with a key that is there already.

    Args:
        take_over: Whether an execution whose lease has passed may be carried on by the caller.

    Raises:
        KeyMismatch: The key was used with another payload.
        RequestInProgress: Another execution holds it.
        FailedPrecondition: TICKET_EXPIRED.
    """
    if row.fingerprint and row.fingerprint != payload_fingerprint:
        raise KeyMismatch(row.key.key)
    match row.state:
        case RequestState.DONE:
            return Decision.REPLAY
        case RequestState.EXPIRED:
            raise expired(row.key.key)
        case RequestState.ISSUED:
            if row.expires_at_ms <= now_ms:
                raise expired(row.key.key)
            return Decision.RUN
        case RequestState.IN_PROGRESS:
            if not take_over or row.lease_until_ms > now_ms:
                raise RequestInProgress(row.key.key)
            return Decision.RUN


def expired(key: str) -> FailedPrecondition:
    """Return the refusal of an expired ticket."""
    return FailedPrecondition(
        "TICKET_EXPIRED", f"{key} has expired and was not used; fetch a new one", metadata={"key": key}
    )
