"""Who provides an interface now: Dubbo's registry in ZooKeeper, the consumers' side.

                 file from last time
    UNKNOWN ───────────────────────▶ CACHED
       │ read                          │ read
       ▼                               ▼
      LIVE ◀── read again ── AWAY ◀── connection dropped

Invariants
1. `endpoints` is the last list read, whatever happened since: ZooKeeper going away takes no endpoint out.
2. An empty list means "really nobody" only if the state is LIVE.
3. A directory is never given up: a providers node that is missing, deleted and made again, an expired
   session, a failed read all lead back to reading, with a watch on whatever is there to be watched.
4. One child that cannot be read costs that child and no other.

Which function makes each move
    _Follower._run  reads again at every piece of news, for ever
    Directory._read UNKNOWN | CACHED | AWAY -> LIVE       _away  LIVE -> AWAY        _recall  UNKNOWN ->
    CACHED
"""

from __future__ import annotations

import asyncio
import enum
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

from kazoo.exceptions import KazooException, NoNodeError

from coordination.deadline import Deadline
from coordination.endpoint import Endpoint, endpoints_from
from coordination.errors import NoProviders, Unavailable
from coordination.registry import DEFAULT_ROOT, RETRY_FIRST_S, RETRY_MAX_S
from coordination.session import Session, SessionState

log = logging.getLogger(__name__)


class DirectoryState(enum.Enum):
    """What a directory's list is worth."""

    UNKNOWN = "unknown"
    """Never read. The list is empty and says nothing."""

    CACHED = "cached"
    """From a file of an earlier run; ZooKeeper has not been asked yet, or is away."""

    LIVE = "live"
    """As ZooKeeper has it, watched. An empty list is the truth."""

    AWAY = "away"
    """As ZooKeeper had it when last reached."""


class Directory:
    """The endpoints of one interface, kept up to date. Made by `Discovery.subscribe`.

    Attributes:
        interface: full service name.
        endpoints: by address; replaced as a whole, never changed in place.
        state: what that list is worth.
        changed: an event set at every change of the list or the state; whoever waits clears it first. With
            more than one who waits use `subscribe`.
    """

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self.endpoints: tuple[Endpoint, ...] = ()
        self.state = DirectoryState.UNKNOWN
        self.changed = asyncio.Event()
        self._subscribers: list[Callable[[], None]] = []

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called on the loop after every change; returns what ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    def candidates(self, method: str, tag: str = "") -> tuple[Endpoint, ...]:
        """Return the endpoints that may serve a call.

        Args:
            method: the bare name of the method called.
            tag: the call's tag (metadata ``dubbo.tag``); empty if it has none.
        """
        return self.endpoints

    async def wait_any(self, timeout_s: float | None) -> tuple[Endpoint, ...]:
        """Return the endpoints as soon as there is one.

        Raises:
            NoProviders: none within `timeout_s` seconds; its `away` tells whether ZooKeeper could be asked.
        """
        await self._wait_until(lambda: bool(self.endpoints), timeout_s)
        if not self.endpoints:
            raise NoProviders(self.interface, away=self.state is not DirectoryState.LIVE)
        return self.endpoints

    async def wait_live(self, timeout_s: float | None) -> bool:
        """Wait until the list is ZooKeeper's own; False if not within `timeout_s` seconds."""
        return await self._wait_until(lambda: self.state is DirectoryState.LIVE, timeout_s)

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        deadline = Deadline.after(timeout_s)
        news = asyncio.Event()
        unsubscribe = self.subscribe(news.set)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                while not condition():
                    news.clear()
                    await news.wait()
        except TimeoutError:
            return condition()
        finally:
            unsubscribe()
        return True

    def _recall(self, node_names: Iterable[str]) -> None:
        remembered = endpoints_from(node_names)
        if remembered and self.state is DirectoryState.UNKNOWN:
            self._become(DirectoryState.CACHED, remembered)

    def _read(self, node_names: Iterable[str]) -> None:
        self._become(DirectoryState.LIVE, endpoints_from(node_names))

    def _away(self) -> None:
        if self.state is DirectoryState.LIVE:
            self._become(DirectoryState.AWAY, self.endpoints)

    def _become(self, state: DirectoryState, endpoints: tuple[Endpoint, ...]) -> None:
        if (state, endpoints) == (self.state, self.endpoints):
            return
        if endpoints != self.endpoints:
            log.info("%s: %s (%s)", self.interface, [e.address for e in endpoints] or "nobody", state.value)
        self.state, self.endpoints = state, endpoints
        self.changed.set()
        for callback in list(self._subscribers):
            try:
                callback()
            except Exception:
                log.exception("a subscriber of %s failed", self.interface)


class Discovery:
    """Follows the providers of interfaces, over one session.

    Args:
        session: a started session; it may be away.
        root: Dubbo's root.
        cache_dir: where to keep the last lists for a start without ZooKeeper; None for nowhere.
    """

    def __init__(self, session: Session, root: str = DEFAULT_ROOT, cache_dir: Path | None = None) -> None:
        self._session = session
        self._root = root
        self._cache_dir = cache_dir
        self._followers: dict[str, _Follower] = {}

    async def subscribe(self, interface: str, *, timeout_s: float = 1.0) -> Directory:
        """Follow an interface from now on; the same directory for everybody who asks.

        Waits at most `timeout_s` seconds for the first list and never fails: see the directory's `state`.
        """
        follower = self._followers.get(interface)
        if follower is None:
            cache = _CacheFile(self._cache_dir / f"{quote(interface, safe='')}.json") if self._cache_dir else None
            follower = _Follower(self._session, self._root, Directory(interface), cache)
            self._followers[interface] = follower
        await follower.directory.wait_live(timeout_s)
        return follower.directory

    async def close(self) -> None:
        """Stop following. The directories keep their last lists."""
        tasks = [follower.task for follower in self._followers.values()]
        self._followers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Follower:
    """The task that keeps one directory up to date."""

    def __init__(self, session: Session, root: str, directory: Directory, cache: _CacheFile | None) -> None:
        self.directory = directory
        self._session = session
        self._path = f"{root}/{directory.interface}/providers"
        self._cache = cache
        self._news = asyncio.Event()  # the children changed, or the connection dropped: look again
        self.task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        if self._cache is not None:
            self.directory._recall(await asyncio.to_thread(self._cache.load))
        pause_s = RETRY_FIRST_S
        while self._session.state is not SessionState.CLOSED:
            try:
                await self._session.wait_connected(None)
                self._news.clear()
                names = await self._list()
            except (Unavailable, KazooException) as error:
                self.directory._away()
                log.debug("%s: %r; reading again", self._path, error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            pause_s = RETRY_FIRST_S
            self.directory._read(names)
            if self._cache is not None and names:  # an old list is of more use to a cold start than none
                await asyncio.to_thread(self._cache.save, names)
            await self._news.wait()
            if self._session.state is not SessionState.CONNECTED:
                self.directory._away()
        self.directory._away()

    async def _list(self) -> list[str]:
        """Return the providers' node names and watch for change, even of a directory not there yet."""
        while True:
            try:
                return await self._session.get_children(self._path, watch=self._news.set)
            except NoNodeError:
                if await self._session.exists(self._path, watch=self._news.set) is None:
                    return []


class _CacheFile:
    """The last list read, as a JSON array of node names. Losing it costs a cold start and nothing else."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[str]:
        """Return what was saved; empty if there is nothing that can be read."""
        try:
            names = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("the remembered providers in %s cannot be read: %s", self._path, error)
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def save(self, node_names: list[str]) -> None:
        """Replace the file, whole or not at all."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft = self._path.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps(sorted(node_names), indent=0), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            log.warning("the providers cannot be remembered in %s: %s", self._path, error)
