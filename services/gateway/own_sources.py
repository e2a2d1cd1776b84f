"""What the gateway sees by itself in ZooKeeper: who waits for which order, and which instances there are.

Only staff see it: each reader's token is tried at a service that only staff may read, when the watch begins and every
ten seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from coordination.discovery.directory import Directory
from coordination.locks import Place, QueueWatch
from coordination.session import Session
from services.gateway.watching import Piece
from services.kernel.printable import escape
from services.runtime.change_feed import ChangeFeed
from services.runtime.zookeeper_paths import LOCKS_ROOT

#: In place of an address: they are told by the gateway.
_HERE: Final = "gateway"
#: Texts of others, from nodes that they write.
_MAX_CHARS: Final = 100


class _OwnSource:
    """See `watching.Source`.

    Args:
        check: Raises unless a reader may see it, given their header `Bearer …`.
    """

    topic = ""

    def __init__(self, check: Callable[[str], Awaitable[None]]) -> None:
        self._check = check
        self.feed: ChangeFeed[dict[str, Any]] = ChangeFeed()

    def addresses(self) -> frozenset[str]:
        return frozenset({_HERE})

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002  there is one always
        return lambda: None

    async def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:  # noqa: ARG002
        await self._check(authorization)
        begins = not position
        watched = self.feed.watch(position, lambda change: order_id in ("", change.get("orderId", order_id)))
        async with aclosing(watched):
            async for seen in watched:
                if not seen.changes and not begins:
                    await self._check(authorization)
                changes = [*(self.now(order_id) if begins or seen.lost else ()), *seen.changes]
                begins = False
                yield Piece(changes, seen.position, lost=False)

    def now(self, order_id: str) -> Iterable[dict[str, Any]]:
        """Return how things stand, as changes: for a reader who begins."""
        raise NotImplementedError


class LockQueues(_OwnSource):
    """The queue of each order that is being settled.

    Args:
        queues: Of the operator's session.
    """

    topic = "locks"

    def __init__(self, queues: QueueWatch, check: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(check)
        self._queues = queues

    async def run(self) -> None:
        """Follow the queues until cancelled."""
        async for changes in self._queues.changes():
            self.feed.publish([_queue_out(change.resource_id, change.queue) for change in changes])

    def now(self, order_id: str) -> Iterable[dict[str, Any]]:
        queues = self._queues.queues().items()
        return [_queue_out(resource, queue) for resource, queue in queues if order_id in ("", resource)]


class Instances(_OwnSource):
    """The registered instances of each service.

    Args:
        directories: By service.
    """

    topic = "registry"

    def __init__(self, directories: Mapping[str, Directory], check: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(check)
        self._directories = directories
        for service, directory in directories.items():
            directory.subscribe(partial(self._changed, service))

    def now(self, order_id: str) -> Iterable[dict[str, Any]]:  # noqa: ARG002  they are about no order
        return map(self._service_out, self._directories)

    def _changed(self, service: str) -> None:
        self.feed.publish([self._service_out(service)])

    def _service_out(self, service: str) -> dict[str, Any]:
        directory = self._directories[service]
        found = [
            {
                "instance": _shown(endpoint.url.parameters.get("instance", "")),
                "address": endpoint.address,
                "weight": endpoint.weight,
                "online": endpoint in directory.endpoints,
                "since": str(endpoint.url.timestamp_ms),
            }
            for endpoint in directory.registered
        ]
        return {
            "service": service,
            "state": directory.state.value,
            "instances": sorted(found, key=lambda each: str(each["instance"])),
        }


class Faults(_OwnSource):
    """What was done to the processes of the stack (`breaking.py`)."""

    topic = "faults"

    def tell(self, name: str, action: str) -> None:
        """Tell the readers."""
        self.feed.publish([{"process": name, "action": action}])

    def now(self, order_id: str) -> Iterable[dict[str, Any]]:  # noqa: ARG002  they are about no order
        return ()


def open_queues(session: Session) -> QueueWatch:
    """Return the watch of all orders' lock queues."""
    return QueueWatch(session, root=LOCKS_ROOT)


def _queue_out(order_id: str, queue: Iterable[Place]) -> dict[str, Any]:
    return {
        "orderId": _shown(order_id),
        "queue": [
            {
                "position": place.position,
                "token": str(place.token),
                "clerk": _shown(place.holder.owner),
                "role": _shown(place.holder.details.get("role", "")),
                "instance": _shown(place.holder.details.get("instance", "")),
                "paymentId": _shown(place.holder.details.get("payment", "")),
                "sinceMs": str(place.holder.since_ms),
            }
            for place in queue
        ],
    }


def _shown(text: str) -> str:
    return escape(str(text))[:_MAX_CHARS]
