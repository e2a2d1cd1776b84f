"""The queues of all resources, live: one watch on ZooKeeper, whatever the number of shards.

    AWAY ──connected: add_watch, then list──▶ LIVE ──an event for each node that comes or goes──▶ LIVE
      ▲                                        │
      └──────── connection dropped ────────────┘

One *persistent recursive* watch (ZooKeeper 3.6 and newer) covers all 1,024 shards, and each event carries its node's
path, so following costs one read for each node that comes, and nothing while no lock changes. The alternatives cost
more: a watch on each shard is 1,024 of them, and a list and a new watch after every event; polling twice a second is
2,000 reads a second for every watcher, and misses what happens in between.

Invariants
1. The watch is asked for before the shards are listed, on the same connection: nothing falls in between.
2. A node is shown from the moment its data was read until the event that it went. One that came and went before
   its data could be read was never shown.
3. After a gap (connection dropped, or more than MAX_EVENTS unread) all is listed anew, and the differences from what
   was shown are returned as changes.

Which function makes each move
    _catch_up   AWAY -> LIVE            _session_changed   LIVE -> AWAY
    _on_event, _apply   an event -> a change from `changes`
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cmp_to_key
from types import TracebackType
from typing import Self

from kazoo.exceptions import NoNodeError, UnimplementedError

from coordination.deadline import Deadline
from coordination.errors import CoordinationError, Refused, Unavailable
from coordination.locks.lock_node import Holder, NodeName, Place, ahead_by
from coordination.session import requests
from coordination.session.session import Session, SessionChange, SessionState

REFUSED_PAUSE_S = 0.5  # before reading again what ZooKeeper refused to show
READ_TIMEOUT_S = 5.0  # for one step of catching up
MAX_EVENTS = 20_000  # unread; beyond them a new list is cheaper


@dataclass(frozen=True, slots=True)
class QueueChange:
    """A resource's queue after one change, the holder first; empty: it is not locked any more."""

    resource_id: str
    queue: tuple[Place, ...]


class QueueWatch:
    """Follows the queues of all resources, over one session: ``async with QueueWatch(session, root=root) as watch``.

    Args:
        root: directory of the shards, as `ResourceLocks` has it.
    """

    def __init__(self, session: Session, *, root: str) -> None:
        self._session = session
        self._root = root
        self._live = False
        self._nodes: dict[str, dict[NodeName, _Node]] = {}  # by resource id
        self._events: list[tuple[int, str]] = []
        self._gap = False
        self._changed = asyncio.Event()
        self._undo: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        self._undo = [
            self._session.subscribe(self._session_changed),
            self._session.watches.subscribe(self._root, self._on_event),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for undo in self._undo:
            undo()
        self._session.post(requests.remove_watches(self._root))

    @property
    def live(self) -> bool:
        """Whether the queues are up to date; False: ZooKeeper is away, and they may be out of date."""
        return self._live

    def queues(self) -> dict[str, tuple[Place, ...]]:
        """Return the queue of every resource that has one, by resource id in alphabetical order."""
        return {resource_id: self._queue(resource_id) for resource_id in sorted(self._nodes)}

    async def changes(self) -> AsyncIterator[list[QueueChange]]:
        """Yield every change, those together that came together; first all that is there. Ends with the session.

        An empty list says that `live` has changed and nothing else.

        Raises:
            CoordinationError: ZooKeeper is older than 3.6.
        """
        while self._session.state is not SessionState.CLOSED:
            try:
                await self._session.wait_connected(None)
                yield await self._catch_up()
                while not self._gap:
                    await self._changed.wait()
                    self._changed.clear()
                    if changes := await self._apply():
                        yield changes
            except Refused:
                await asyncio.sleep(REFUSED_PAUSE_S)
            except Unavailable:
                pass  # the connection dropped
            if self._session.state is not SessionState.CONNECTED and self._live:
                self._live = False
                yield []

    # ---- events --------------------------------------------------------------------------------------

    def _session_changed(self, change: SessionChange) -> None:
        if change.state is not SessionState.CONNECTED:
            self._gap = True
            self._changed.set()

    def _on_event(self, kind: int, path: str) -> None:
        self._events.append((kind, path))
        if len(self._events) > MAX_EVENTS:
            self._gap = True
        self._changed.set()

    async def _catch_up(self) -> list[QueueChange]:
        """Ask for the watch, read everything, and return what differs from what was shown."""
        self._gap = False
        self._events.clear()
        try:
            await self._session.ask(requests.add_watch(self._root), _soon())
        except UnimplementedError:
            raise CoordinationError("queues can be followed on ZooKeeper 3.6 or newer only") from None
        found = await self._read(await self._list())
        before, self._nodes = self.queues(), {}
        for node in found.values():
            self._add(node)
        self._live = True
        after = self.queues()
        return [
            QueueChange(resource_id, after.get(resource_id, ()))
            for resource_id in sorted(before.keys() | after.keys())
            if before.get(resource_id) != after.get(resource_id)
        ]

    async def _apply(self) -> list[QueueChange]:
        events, self._events = self._events, []
        came = await self._read([path for kind, path in events if kind == requests.CREATED])
        changes: list[QueueChange] = []
        for kind, path in events:
            node = NodeName.parse(path.rpartition("/")[2])
            if node is None:
                continue
            if (kind == requests.CREATED and path in came and self._add(came[path])) or (
                kind == requests.DELETED and self._remove(node)
            ):
                changes.append(QueueChange(node.resource_id, self._queue(node.resource_id)))
        return changes

    def _add(self, node: _Node) -> bool:
        """Show a node; False if it is shown already."""
        nodes = self._nodes.setdefault(node.name.resource_id, {})
        return nodes.setdefault(node.name, node) is node

    def _remove(self, name: NodeName) -> bool:
        """Show a node no more; False if it was not shown."""
        nodes = self._nodes.get(name.resource_id, {})
        shown = nodes.pop(name, None) is not None
        if shown and not nodes:
            del self._nodes[name.resource_id]
        return shown

    # ---- reading -------------------------------------------------------------------------------------

    async def _list(self) -> list[str]:
        try:
            shards = await self._session.ask(requests.get_children(self._root), _soon())
        except NoNodeError:  # no resource was ever locked
            return []
        paths = [f"{self._root}/{shard}" for shard in shards]
        reply = await self._session.ask(requests.get_children_of(paths), _soon()) if paths else []
        return [f"{path}/{name}" for path, names in requests.names_of(paths, reply).items() for name in names]

    async def _read(self, paths: list[str]) -> dict[str, _Node]:
        """Read the lock nodes among the paths, as far as they are still there; return them by path."""
        named = [(path, name) for path in paths if (name := NodeName.parse(path.rpartition("/")[2])) is not None]
        found = await self._session.ask_all([requests.get(path) for path, _ in named], _soon())
        return {
            path: _Node(name, node[1].czxid, Holder.from_json(node[0]))
            for (path, name), node in zip(named, found, strict=True)
            if node is not None
        }

    def _queue(self, resource_id: str) -> tuple[Place, ...]:
        nodes = list(self._nodes.get(resource_id, {}).values())
        nodes.sort(key=cmp_to_key(lambda one, other: -ahead_by(one.name.sequence, other.name.sequence)))
        return tuple(Place(position, node.token, node.holder) for position, node in enumerate(nodes))


@dataclass(frozen=True, slots=True)
class _Node:
    """A lock node that is there."""

    name: NodeName
    token: int
    holder: Holder


def _soon() -> Deadline:
    return Deadline.after(READ_TIMEOUT_S)
