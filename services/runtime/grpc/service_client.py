"""How one service calls another: found through ZooKeeper, with its own token, within what is left of the deadline."""

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
from services.kernel.errors import Unavailable
from services.kernel.ids import new_rng
from services.runtime.grpc import status
from services.runtime.grpc.methods import idempotency
from services.runtime.grpc.tokens import TokenFile

#: Kept back at each hop, so that the answer of the next one still finds us waiting.
_HOP_MARGIN_S = 0.03
_MAX_CALL_S = 10.0


class Peers:
    """The other services, as this one sees them."""

    def __init__(
        self,
        session: Session,
        token: TokenFile,
        *,
        consumer: Consumer,
        picker: PickerName,
        cache: Path | None,
        metrics: Metrics,
    ) -> None:
        self._discovery = Discovery(session, cache_dir=cache, consumer=consumer, metrics=metrics)
        self._metrics = metrics
        self._picker = picker
        self._token = token
        self._channels: list[DiscoveredChannel] = []

    async def channel(self, interface: str) -> DiscoveredChannel:
        """Return a channel to the providers of `interface`, for a generated stub."""
        directory = await self._discovery.subscribe(interface)
        channel = DiscoveredChannel(
            directory,
            idempotency=idempotency,
            picker=by_name(self._picker, new_rng()),
            rng=new_rng(),
            hash_key=_order_id_of,
            default_timeout_s=_MAX_CALL_S,
            metrics=self._metrics,
        )
        self._channels.append(channel)
        return channel

    async def call(self, method: Callable[..., Any], request: Any, deadline: CallDeadline) -> Any:
        """Call a stub's method.

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
        try:
            return await method(
                request,
                timeout=min(remaining_s, _MAX_CALL_S),
                metadata=(("authorization", f"Bearer {self._token.token()}"),),
            )
        except grpc.aio.AioRpcError as error:
            if never_sent(error):
                raise Unavailable(
                    "PEER_UNAVAILABLE",
                    f"a service this needs cannot be reached ({error.details()}); try again",
                ) from error
            raise status.of_peer(status.from_rpc_error(error)) from error

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            await channel.close()
        await self._discovery.close()


def _order_id_of(_method: str, request: Any) -> str:
    """Return the order of a request, so that its calls hash to one endpoint; empty if it names none."""
    order_id = getattr(request, "order_id", "")
    return order_id if isinstance(order_id, str) else ""
