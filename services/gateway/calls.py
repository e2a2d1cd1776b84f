"""Calls to the services: found through ZooKeeper, in the name of the gateway's caller.

The gateway has no token of its own for them: what it may do is what its caller may do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from google.protobuf.message import Message

from coordination.channel.channel import never_sent
from services.gateway.routes import Route
from services.kernel.errors import CountinghouseError, Unauthenticated, Unavailable
from services.runtime import tracing
from services.runtime.grpc import status

_REPLAYED = ("x-replayed", "true")


@dataclass(frozen=True, slots=True)
class Answered:
    """A response, and whether it is a stored one."""

    message: Message
    replayed: bool


class Calls(Protocol):
    """What the gateway needs of the services."""

    async def call(self, route: Route, request: Message, authorization: str, timeout_s: float) -> Answered:
        """Call a method.

        Args:
            authorization: The caller's header, `Bearer …`; empty: they sent none.

        Raises:
            CountinghouseError: What the service answered, or that it did not. Its metadata has `replayed` if it is a
                stored refusal.
        """


class ChannelCalls:
    """See `Calls`.

    Args:
        channels: By service, `package.Service`.
    """

    def __init__(self, channels: dict[str, Any]) -> None:
        self._channels = channels

    async def call(self, route: Route, request: Message, authorization: str, timeout_s: float) -> Answered:
        if not authorization:
            raise Unauthenticated("TOKEN_REQUIRED", "send a token: Authorization: Bearer …")
        method = self._channels[route.service].unary_unary(
            route.full_method,
            request_serializer=route.request_type.SerializeToString,
            response_deserializer=route.response_type.FromString,
        )
        with tracing.called(route.full_method) as span:
            call = method(request, timeout=timeout_s, metadata=(("authorization", authorization), *tracing.outgoing()))
            try:
                message = await call
            except grpc.aio.AioRpcError as error:
                refusal = _refusal(route, error)
                span.answered(error.code().name, refusal.reason)
                raise refusal from error
            span.answered("OK")
            return Answered(message, _REPLAYED in tuple(await call.trailing_metadata() or ()))


def _refusal(route: Route, error: grpc.aio.AioRpcError) -> CountinghouseError:
    """Return what a service answered, or that it cannot be reached."""
    if never_sent(error):
        return Unavailable("SERVICE_UNAVAILABLE", f"{route.service.rpartition('.')[2]} cannot be reached; try again")
    refusal = status.from_rpc_error(error)
    if _REPLAYED in tuple(error.trailing_metadata() or ()):
        refusal.metadata["replayed"] = "true"
    return refusal
