"""How one service calls another: found through ZooKeeper, known by its certificate, with a token that is good there
alone, within what is left of the deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from coordination.channel import PickerName, by_name
from coordination.channel.channel import DiscoveredChannel, never_sent
from coordination.discovery import Consumer, Discovery
from coordination.metrics import Metrics
from coordination.session import Session
from services.kernel.clock import CallDeadline
from services.kernel.errors import CountinghouseError, Unavailable
from services.kernel.ids import new_rng
from services.runtime import tracing
from services.runtime.grpc import status
from services.runtime.grpc.methods import idempotency
from services.runtime.grpc.tls import Dialer, internal_address
from services.runtime.grpc.tokens import TokenFile

#: Kept back at each hop, so that the answer of the next one still finds us waiting.
_HOP_MARGIN_S = 0.03
_MAX_CALL_S = 10.0


class Peer:
    """Another service, as this one calls it.

    Args:
        channel: To its instances, for a generated stub.
        token: That is good there, and nowhere else.
    """

    def __init__(self, channel: DiscoveredChannel, token: TokenFile) -> None:
        self.channel = channel
        self._token = token

    async def call(self, method: Callable[..., Any], request: Any, deadline: CallDeadline) -> Any:
        """Call a method of a stub on `channel`.

        Raises:
            Unavailable: PEER_UNAVAILABLE: the request was never sent. Or DEADLINE_TOO_SHORT,
                PEER_REFUSED_US or PEER_BUSY.
            OutcomeUnknown: It was sent, and no answer came; or a first instance did not answer, and another one
                answered that nothing was done.
            CountinghouseError: What the peer answered.
        """
        remaining_s = deadline.shaved(_HOP_MARGIN_S).remaining_s()
        if remaining_s <= 0:
            raise Unavailable("DEADLINE_TOO_SHORT", "too little was left of the deadline to ask on; allow more time")
        with tracing.called(method) as span:
            try:
                response = await method(
                    request,
                    timeout=min(remaining_s, _MAX_CALL_S),
                    metadata=(("authorization", f"Bearer {self._token.token()}"), *tracing.outgoing()),
                )
            except grpc.aio.AioRpcError as error:
                answer = _answer_of(error)
                span.answered(error.code().name, answer.reason)
                raise answer from error
            span.answered("OK")
            return response


class Peers:
    """The other services, found through ZooKeeper.

    Args:
        tokens: Folder with a token for each of them, `<name>.token`.
        dialer: Connects to them, on the ports where a certificate is demanded.
    """

    def __init__(
        self,
        session: Session,
        tokens: Path,
        *,
        dialer: Dialer,
        consumer: Consumer,
        picker: PickerName,
        cache: Path | None,
        metrics: Metrics,
    ) -> None:
        self._discovery = Discovery(session, cache_dir=cache, consumer=consumer, metrics=metrics)
        self._metrics = metrics
        self._picker = picker
        self._tokens = tokens
        self._dialer = dialer
        self._channels: list[DiscoveredChannel] = []

    async def find(self, interface: str) -> Peer:
        """Return the service that provides `interface`, like `countinghouse.order.v1.OrderService`."""
        directory = await self._discovery.subscribe(interface)
        service = service_of(interface)
        channel = DiscoveredChannel(
            directory,
            idempotency=idempotency,
            picker=by_name(self._picker, new_rng()),
            rng=new_rng(),
            hash_key=_order_id_of,
            default_timeout_s=_MAX_CALL_S,
            address_of=internal_address,
            credentials=self._dialer.credentials,
            options=self._dialer.options(service),
            metrics=self._metrics,
            on_attempt=tracing.attempt_observer(),
        )
        self._channels.append(channel)
        return Peer(channel, TokenFile(self._tokens / f"{service}.token"))

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            await channel.close()
        await self._discovery.close()


def service_of(interface: str) -> str:
    """Return the name of the service that provides an interface of ours: `countinghouse.<name>.v1.…`."""
    return interface.split(".")[1]


def _answer_of(error: grpc.aio.AioRpcError) -> CountinghouseError:
    """Return what an error of a peer means to the caller of this service."""
    if never_sent(error):
        return Unavailable("PEER_UNAVAILABLE", f"a service this needs cannot be reached ({error.details()}); try again")
    return status.of_peer(status.from_rpc_error(error))


def _order_id_of(_method: str, request: Any) -> str:
    """Return the order of a request, so that its calls hash to one endpoint; empty if it names none."""
    order_id = getattr(request, "order_id", "")
    return order_id if isinstance(order_id, str) else ""
