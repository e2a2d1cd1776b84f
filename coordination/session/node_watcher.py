"""A node of ZooKeeper, read again at every change.

    read ──▶ on_read ──▶ wait for a change ──the node changed──────────▶ read
      │                       │
      │ ZooKeeper is away     │ the connection dropped
      └────────▶ on_away ◀────┘ ──connected again, same session or not──▶ read

kazoo's own watchers (ChildrenWatch, DataWatch) end for good when their node is missing, and read in a listener's
thread; this one does neither.

Invariants
1. Always watched: the node, or its creation if it is missing.
2. Nothing ends it but `close` or the end of the session: neither a failed read nor a failing `on_read`.
3. A change that comes while `on_read` runs is not lost: the node is read again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from kazoo.exceptions import KazooException, NoNodeError

from coordination.errors import Unavailable
from coordination.session.session import Session, SessionState, Watch

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0

Found = TypeVar("Found")
Reader = Callable[[Session, str, Watch], Awaitable[Found]]


async def children(session: Session, path: str, watch: Watch) -> list[str]:
    """Return a node's children, none if it is missing; `watch` is called when that may have changed."""
    while True:
        try:
            return await session.get_children(path, watch=watch)
        except NoNodeError:
            if await session.exists(path, watch=watch) is None:
                return []


async def content(session: Session, path: str, watch: Watch) -> bytes | None:
    """Return a node's data, None if it is missing; `watch` is called when that may have changed."""
    while True:
        try:
            data, _ = await session.get(path, watch=watch)
        except NoNodeError:
            if await session.exists(path, watch=watch) is None:
                return None
        else:
            return data


class NodeWatcher(Generic[Found]):
    """The task that watches one node.

    Args:
        session: a started session; it may be away.
        path: the node; it need not exist.
        read: `children` or `content`.
        on_read: takes what was found; returns after how many seconds to read again even without a change (None:
            only at a change).
        on_away: called when what was read last may be out of date.
    """

    def __init__(
        self,
        session: Session,
        path: str,
        read: Reader[Found],
        on_read: Callable[[Found], Awaitable[float | None]],
        on_away: Callable[[], None],
    ) -> None:
        self._session = session
        self._path = path
        self._read = read
        self._on_read = on_read
        self._on_away = on_away
        self._changed = asyncio.Event()  # the node changed, or the connection dropped: look again
        self._on_watch = self._changed.set  # one object, so that a watch can be taken back
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop watching."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._session.watches.remove(self._path, self._on_watch)

    async def _run(self) -> None:
        pause_s = RETRY_FIRST_S
        while self._session.state is not SessionState.CLOSED:
            try:
                await self._session.wait_connected(None)
                self._changed.clear()
                again_s = await self._on_read(await self._read(self._session, self._path, self._on_watch))
            except (Unavailable, KazooException) as error:
                log.debug("%s: %r; reading again", self._path, error)
            except Exception:
                log.exception("%s: what was read could not be processed; reading again", self._path)
            else:
                pause_s = RETRY_FIRST_S
                await self._wait_for_change(again_s)
                if self._session.state is not SessionState.CONNECTED:
                    self._on_away()
                continue
            self._on_away()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)
        self._on_away()

    async def _wait_for_change(self, timeout_s: float | None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
