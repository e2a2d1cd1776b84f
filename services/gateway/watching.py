"""What changes, of every instance of some services, for one reader.

    instance ──WatchOrders───▶ task ─┐
    instance ──WatchOrders───▶ task ─┼──▶ room for one piece ──▶ the reader
    instance ──WatchPayments─▶ task ─┘

The reader's token goes to the services as it is. Nothing is kept here: a slow reader slows down the tasks, and what a
service keeps for them is bounded there.

Rules
1. Every registered instance is watched. A watch that ends is begun again after `_AGAIN_S`, from where it was.
2. The reader is told that changes were lost whenever some may not have been told: a service says so; an instance that
   was watched is registered no more; or one is watched without a position, unless the reader has just begun.
3. The id of an event has the position at every instance, so that a reader can go on after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, urlencode

from services.kernel.errors import (
    CountinghouseError,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

_AGAIN_S: Final = 1.0
#: How long the watches may take to begin.
_BEGIN_S: Final = 5.0
_MAX_INSTANCES: Final = 64
#: Refusals that another try does not change, or that the reader has to know of.
_FINAL: Final = (InvalidArgument, PermissionDenied, ResourceExhausted, Unauthenticated)


@dataclass(frozen=True, slots=True)
class Piece:
    """What an instance has told.

    Args:
        changes: As JSON has them; none: the watch begins, nothing has changed for a while, or changes were lost.
    """

    changes: list[dict[str, Any]]
    position: str
    lost: bool


@dataclass(frozen=True, slots=True)
class Event:
    """What the reader is told.

    Args:
        name: `begun`, `idle`, `lost` (`data` has the topic; empty: any), or the topic of what has changed.
        event_id: Where to go on after it.
    """

    name: str
    data: dict[str, Any]
    event_id: str


class Source(Protocol):
    """The instances of one service, and what they tell."""

    topic: str

    def addresses(self) -> frozenset[str]:
        """Return where the registered instances are."""

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Have `changed` called when other instances are registered; return what ends that."""

    def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:
        """Yield what changes at one instance.

        Raises:
            CountinghouseError: What the service answered, or that it did not.
        """


def positions_in(event_id: str) -> dict[str, str]:
    """Return the positions that the id of an event has; of one that is none of ours, a position of no instance."""
    try:
        return dict(parse_qsl(event_id, strict_parsing=True, max_num_fields=_MAX_INSTANCES))
    except ValueError:
        return {"": ""}


@dataclass(frozen=True, slots=True)
class _Told:
    """A piece of one instance; None: it is registered no more."""

    topic: str
    address: str
    piece: Piece | None
    lost: bool


def _key(topic: str, address: str) -> str:
    """Return the name of an instance in the id of an event."""
    return f"{topic}@{address}"


class Watch:
    """One reader's watch.

    Args:
        sources: What is watched.
        order_id: Only changes about this order; empty: all that the reader may see.
        authorization: The reader's header, `Bearer …`.
        positions: Of an earlier watch; None: the reader begins.
    """

    def __init__(
        self, sources: Sequence[Source], order_id: str, authorization: str, positions: Mapping[str, str] | None
    ) -> None:
        self._sources = {source.topic: source for source in sources}
        self._order_id = order_id
        self._authorization = authorization
        self._goes_on = positions is not None
        self._positions = dict(positions or {})
        self._told: asyncio.Queue[_Told | CountinghouseError] = asyncio.Queue(maxsize=1)
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield what changes; first `begun`, once every instance is watched. It ends with the reader.

        Raises:
            Unavailable: SERVICE_UNAVAILABLE: no instance could be watched within a time.
            CountinghouseError: The reader may not watch, or no longer.
        """
        unsubscribe = [source.subscribe(self._refresh) for source in self._sources.values()]
        try:
            for event in await self._begin():
                yield event
            while True:
                for event in self._events_of(await self._next()):
                    yield event
        finally:
            for each in unsubscribe:
                each()
            tasks = [*self._following.values(), *self._telling]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> list[Event]:
        """Watch every instance; return what the reader is told first."""
        self._refresh()
        known = {_key(topic, address) for topic, address in self._following}
        lost = {key.partition("@")[0] for key in self._positions.keys() - known}
        self._positions = {key: position for key, position in self._positions.items() if key in known}
        begun: set[str] = set()
        later: list[Event] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEGIN_S):
                while begun < known:
                    told = await self._next()
                    begun.add(_key(told.topic, told.address))
                    later += self._events_of(told)
        if not begun:
            raise Unavailable("SERVICE_UNAVAILABLE", "no service can be watched now; try again")
        self._goes_on = True
        topics = sorted(topic if topic in self._sources else "" for topic in lost)
        return [self._event("begun", {}), *(self._event("lost", {"topic": topic}) for topic in topics), *later]

    def _refresh(self) -> None:
        """Watch the instances that are registered, and no others."""
        wanted = {(topic, address) for topic, source in self._sources.items() for address in source.addresses()}
        for gone in self._following.keys() - wanted:
            self._following.pop(gone).cancel()
            telling = asyncio.create_task(self._told.put(_Told(*gone, None, lost=True)))
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
        for topic, address in wanted - self._following.keys():
            following = self._follow(self._sources[topic], address)
            self._following[topic, address] = asyncio.create_task(following)

    async def _follow(self, source: Source, address: str) -> None:
        """Pass on what one instance tells, for as long as it is registered."""
        key = _key(source.topic, address)
        unknown = self._goes_on and key not in self._positions
        while True:
            try:
                position = self._positions.get(key, "")
                async for piece in source.watch(address, position, self._order_id, self._authorization):
                    await self._told.put(_Told(source.topic, address, piece, piece.lost or unknown))
                    unknown = False
            except _FINAL as error:
                await self._told.put(error)
                return
            except CountinghouseError:
                pass  # it is watched again
            await asyncio.sleep(_AGAIN_S)

    async def _next(self) -> _Told:
        told = await self._told.get()
        if isinstance(told, CountinghouseError):
            raise told
        return told

    def _events_of(self, told: _Told) -> list[Event]:
        key = _key(told.topic, told.address)
        if told.piece is None:
            self._positions.pop(key, None)
        else:
            self._positions[key] = told.piece.position
        events = [self._event("lost", {"topic": told.topic})] if told.lost else []
        if told.piece and told.piece.changes:
            events.append(self._event(told.topic, {told.topic: told.piece.changes}))
        return events or [self._event("idle", {})]

    def _event(self, name: str, data: dict[str, Any]) -> Event:
        return Event(name, data, urlencode(self._positions))
