"""The gRPC channel to one endpoint, with its load."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
from grpc.aio import AioRpcError

from coordination.channel.invocation import Invocation, Method
from coordination.channel.load import Load
from coordination.deadline import Deadline
from coordination.grpc_channel import Option, open_channel
from coordination.registry.endpoint import GROUP_KEY, VERSION_KEY, Endpoint

HEALTH_CHECK = "/grpc.health.v1.Health/Check"
#: A HealthCheckResponse with status SERVING.
SERVING = b"\x08\x01"
#: How a server answers that has no health service, or none for us.
ALIVE_ALL_THE_SAME = frozenset(
    {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)

_ON_ITS_WAY = frozenset({grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING})


class EndpointConnection:
    """The connection to one endpoint, and the callables made on it.

    Args:
        dialled: the address to connect to.
        options: of the channel.
        credentials: for TLS; None for plain text.

    Attributes:
        endpoint: as the directory has it now.
        channel: gRPC's.
        load: the calls given to it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        dialled: str,
        options: Sequence[Option],
        credentials: grpc.ChannelCredentials | None,
    ) -> None:
        self.endpoint = endpoint
        self.load = Load()
        self.dialled = dialled
        self.credentials = credentials
        self.channel = open_channel(dialled, options, credentials=credentials)
        self._callables: dict[tuple[str, str], Any] = {}
        self._late = False

    @property
    def key(self) -> str:
        """The endpoint's key."""
        return self.endpoint.key

    @property
    def address(self) -> str:
        """The endpoint's address."""
        return self.endpoint.address

    def open(self, invocation: Invocation) -> Any:
        """Send a call here, for the endpoint's own group and version; return grpc.aio's call."""
        return self._callable(invocation.method)(
            invocation.request,
            timeout=invocation.deadline.remaining_s(),
            metadata=self._metadata(invocation.metadata),
            credentials=invocation.credentials,
            wait_for_ready=invocation.wait_for_ready,
            compression=invocation.compression,
        )

    def ready(self) -> bool:
        """Tell whether it is connected; if not, it begins to connect."""
        ready = self.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        self._late = self._late and not ready
        return ready

    def down(self) -> bool:
        """Tell whether the last attempt to connect failed or is late; gRPC goes on trying by itself."""
        state = self.channel.get_state()
        late = self._late and state is grpc.ChannelConnectivity.CONNECTING
        return late or state is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    async def reachable(self, deadline: Deadline, *, patient: bool = False) -> bool:
        """Connect if need be; False if that fails or takes too long. Nothing of any call is sent.

        Args:
            patient: let gRPC try again and again until the deadline, not once.
        """
        state = self.channel.get_state(try_to_connect=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline.remaining_s()):
                while state in _ON_ITS_WAY or (patient and state is grpc.ChannelConnectivity.TRANSIENT_FAILURE):
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
        self._late = state is grpc.ChannelConnectivity.CONNECTING
        return state is grpc.ChannelConnectivity.READY

    async def healthy(self, deadline: Deadline, interface: str = "") -> bool:
        """Ask the server for its health (grpc.health.v1): True if it serves, or has no health service but answers.

        Args:
            interface: what it must serve; empty: anything.
        """
        if not await self.reachable(deadline, patient=True):
            return False
        check = self._callable(Method("unary_unary", HEALTH_CHECK, None, None))
        try:
            answer: bytes = await check(_health_request(interface), timeout=deadline.remaining_s())
        except AioRpcError as error:
            return error.code() in ALIVE_ALL_THE_SAME
        return answer == SERVING

    def _metadata(self, given: Any) -> Any:
        said = self.endpoint.metadata
        return (*(pair for pair in given or () if pair[0] not in (GROUP_KEY, VERSION_KEY)), *said) if said else given

    def _callable(self, method: Method) -> Any:
        key = (method.kind, method.name)
        if key not in self._callables:
            make = getattr(self.channel, method.kind)
            self._callables[key] = make(
                method.name,
                request_serializer=method.request_serializer,
                response_deserializer=method.response_deserializer,
            )
        return self._callables[key]


def _health_request(interface: str) -> bytes:
    """Return a HealthCheckRequest, whose only field is the service's name; empty for the server as a whole."""
    name, length = interface.encode(), bytearray()
    if not name:
        return b""
    rest = len(name)
    while rest > 0x7F:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    return b"\x0a" + bytes(length) + name
