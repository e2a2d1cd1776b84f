"""The outcomes of a call's attempts: whether a server can have carried it out, and how often it was sent.

    an attempt ends with    can a server have carried it out?      recognised by
    OK                      yes
    an answer               as the answer says                     the status has details of its own
    no answer               perhaps                                neither
    another program         no: it has no such method              `from_another_program`
    never sent              no                                     `never_sent`

An error that ends a call is the last attempt's that was sent. If others were sent before and not answered, what
the last one says of itself does not hold for them: see `maybe_sent_before`.
"""

from __future__ import annotations

import grpc
from grpc.aio import AioRpcError, Metadata

#: How gRPC core's pick_first begins the details of a call it had no connection to send on. Such a call was never given
#: to a transport, or was given back by one that proved it unseen (gRPC's transparent retry).
NEVER_CONNECTED = "failed to connect to all addresses"

#: Where a server puts what it has to say of an error, in every language; the transport puts nothing there.
DETAILS_KEY = "grpc-status-details-bin"

#: How gRPC core says RESOURCE_EXHAUSTED of a message over the limit: the message is to blame, not the endpoint.
TOO_LARGE = "larger than max"

_BROKEN = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})
_REFUSALS = frozenset(
    {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)


class NeverSent(AioRpcError):
    """UNAVAILABLE, and nothing of the call left this process: no endpoint is registered, or can be reached."""

    def __init__(self, details: str) -> None:
        super().__init__(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=details)


class AnotherProgram(NeverSent):
    """UNAVAILABLE: an endpoint has no such method, so the call was not carried out there and another can be asked."""

    def __init__(self, address: str) -> None:
        super().__init__(f"{address} does not provide the method: it answered UNIMPLEMENTED")


class Slow(AioRpcError):
    """UNAVAILABLE: an attempt had no answer within its share of the deadline and was cancelled for another."""

    def __init__(self, address: str, waited_s: float) -> None:
        details = f"{address} did not answer within {waited_s:.3f} s"
        super().__init__(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=details)


class SentBefore(AioRpcError):
    """The error of one attempt, of a call of which a server may have seen others.

    Attributes:
        sends: attempts that a server may have seen, with this one.
        maybe_done: those of the others that a server may have carried out: none answered that it did not.
    """

    def __init__(self, last: AioRpcError, sends: int, maybe_done: int) -> None:
        super().__init__(
            last.code(),
            last.initial_metadata(),
            last.trailing_metadata(),
            details=last.details(),
            debug_error_string=last.debug_error_string(),
        )
        self.sends = sends
        self.maybe_done = maybe_done


def never_sent(error: AioRpcError) -> bool:
    """Tell whether it is proved that no server can have carried the call out, so that repeating it is harmless."""
    if isinstance(error, (NeverSent, SentBefore)):
        return isinstance(error, NeverSent)
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(NEVER_CONNECTED)


def answered(error: AioRpcError) -> bool:
    """Tell whether the server itself gave this error, and not the transport or a server on its way out."""
    trailers = error.trailing_metadata()
    return trailers is not None and any(key == DETAILS_KEY for key, _ in trailers)


def from_another_program(error: AioRpcError) -> bool:
    """Tell whether the endpoint is another program, or an older one, that does not have the method.

    A gRPC library answers UNIMPLEMENTED for an unregistered method, before any code of the server runs; gRPC's
    clients take HTTP's 404 for the same. So the call was not carried out, whatever the method. A server that has the
    method and refuses it says why in its details.
    """
    return error.code() is grpc.StatusCode.UNIMPLEMENTED and not answered(error)


def endpoint_failed(error: AioRpcError) -> bool:
    """Tell whether an answer shows that its endpoint is faulty: the server failed, or another program listens there.

    A refusal without the server's own details comes from a transport, a proxy or another program.
    """
    if error.code() in _REFUSALS:
        return not answered(error) and TOO_LARGE not in (error.details() or "")
    return error.code() in _BROKEN or from_another_program(error)


def refused(error: AioRpcError) -> bool:
    """Tell whether the server itself refused the caller, now or at all."""
    return answered(error) and error.code() in _REFUSALS


def sends(error: AioRpcError) -> int:
    """Return how many attempts of the call that ended with this error a server may have seen."""
    if isinstance(error, SentBefore):
        return error.sends
    return 0 if never_sent(error) else 1


def maybe_sent_before(error: AioRpcError) -> bool:
    """Tell whether another attempt than this error's was sent and not answered: it may have been carried out,
    whatever this error says."""
    return isinstance(error, SentBefore) and error.maybe_done > 0
