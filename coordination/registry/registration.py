"""Registration of providers and consumers in Dubbo's registry, renewed in every session.

    /dubbo/<interface>/{providers,consumers,configurators,routers}/<URL, encoded>

Each registration has a task that makes ZooKeeper agree with what is wanted:

    wanted ──create──▶ registered ──connection dropped, same session──▶ read again ──▶ registered
       ▲                   │ new session, or the node went
       └───────────────────┘ (a node of another session is deleted first: it would vanish with that one)
    unwanted ──delete──▶ gone

Invariants
1. A registered URL has an ephemeral node owned by the *present* session, or its task is at work on it.
2. No error ends the task: every failure is retried, with pauses growing to RETRY_MAX_S.
3. Parents are persistent and never deleted; Dubbo's consumers watch them before any provider exists.

Which function makes each move
    register, unregister  set what is wanted        _establish   wanted -> registered
    _Registration._keep   repeats until it is so    _withdraw    unwanted -> gone
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kazoo.exceptions import KazooException, NodeExistsError, NoNodeError

from coordination.deadline import Deadline
from coordination.errors import BadProviderURL, Unavailable
from coordination.metrics import Metrics
from coordination.registry.url import ProviderURL
from coordination.session.node_watcher import RETRY_FIRST_S, RETRY_MAX_S
from coordination.session.session import Session, SessionState

log = logging.getLogger(__name__)

DEFAULT_ROOT = "/dubbo"
CATEGORIES = ("providers", "consumers", "configurators", "routers")
#: Dubbo's other directories under the root: governance rules, metadata, application names.
NOT_INTERFACES = frozenset({"config", "metadata", "mapping"})


@dataclass(frozen=True, slots=True)
class InterfaceListing:
    """What is registered for one interface. Names that cannot be read are in `malformed`."""

    interface: str
    providers: tuple[ProviderURL, ...]
    consumers: tuple[ProviderURL, ...]
    malformed: tuple[str, ...] = ()


class Registry:
    """Registers the URLs of one process, over one session.

    Args:
        session: a started session; it may be away.
        root: Dubbo's root.
        metrics: the collectors; None: some that are not exported.
    """

    def __init__(self, session: Session, root: str = DEFAULT_ROOT, *, metrics: Metrics | None = None) -> None:
        self._session = session
        self._root = root
        self._metrics = metrics or Metrics()
        self._registrations: dict[str, _Registration] = {}

    async def register(self, url: ProviderURL, *, timeout_s: float = 5.0) -> bool:
        """Register a provider, now and after every new session, until `unregister`.

        Returns:
            True once it is registered; False if that is not so after `timeout_s` seconds, because ZooKeeper
            is away: the attempts go on, and `wait_registered` waits for them.

        Raises:
            BadProviderURL: it names no interface.
        """
        return await self._want(url, "providers", timeout_s)

    async def register_consumer(self, url: ProviderURL, *, timeout_s: float = 5.0) -> bool:
        """Register a consumer, for operators to see. As `register` otherwise."""
        return await self._want(url, "consumers", timeout_s)

    async def unregister(self, url: ProviderURL, *, timeout_s: float = 2.0) -> bool:
        """Unregister a provider or consumer.

        Returns:
            True once its node is gone (or was never made); False if ZooKeeper has not confirmed that within
            `timeout_s` seconds: the attempts go on for as long as the session is open.
        """
        gone = True
        for category in ("providers", "consumers"):
            registration = self._registrations.get(self._path_of(url, category))
            if registration is not None:
                registration.unwant()
                gone = await registration.settled(timeout_s) and gone
        return gone

    def registered(self, url: ProviderURL) -> bool:
        """Tell whether the provider's node is there, as far as is known now."""
        registration = self._registrations.get(self._path_of(url, "providers"))
        return registration is not None and registration.established

    async def wait_registered(self, url: ProviderURL, timeout_s: float | None) -> bool:
        """Wait until `registered(url)`; False if not within `timeout_s` seconds, or if it was not asked for."""
        registration = self._registrations.get(self._path_of(url, "providers"))
        return registration is not None and await registration.settled(timeout_s)

    async def ls(self, *, timeout_s: float = 5.0) -> list[InterfaceListing]:
        """Return every interface with its providers and consumers, by name.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        deadline = Deadline.after(timeout_s)
        listings = []
        for name in sorted(await self._children(self._root, deadline)):
            if name in NOT_INTERFACES:
                continue
            providers, bad = _readable(await self._children(f"{self._root}/{name}/providers", deadline))
            consumers, worse = _readable(await self._children(f"{self._root}/{name}/consumers", deadline))
            listings.append(InterfaceListing(name, providers, consumers, bad + worse))
        return listings

    async def close(self, timeout_s: float = 2.0) -> None:
        """Unregister all URLs and stop, within about `timeout_s` seconds even if ZooKeeper is silent."""
        registrations = list(self._registrations.values())
        for registration in registrations:
            registration.unwant()
        await asyncio.gather(*(registration.settled(timeout_s) for registration in registrations))
        for registration in registrations:
            registration.abandon()
        await asyncio.gather(*(registration.task for registration in registrations), return_exceptions=True)

    async def _want(self, url: ProviderURL, category: str, timeout_s: float) -> bool:
        if not url.interface or "/" in url.interface:
            raise BadProviderURL(f"a URL to register must name its interface: {url}")
        path = self._path_of(url, category)
        registration = self._registrations.get(path)
        if registration is None or not registration.wanted:
            if registration is not None:
                registration.abandon()  # its delete, if sent, reaches ZooKeeper before our create
            registration = _Registration(self._session, path, self._forget, self._metrics)
            self._registrations[path] = registration
        return await registration.settled(timeout_s)

    def _forget(self, registration: _Registration) -> None:
        if self._registrations.get(registration.path) is registration:
            del self._registrations[registration.path]

    def _path_of(self, url: ProviderURL, category: str) -> str:
        return f"{self._root}/{url.interface}/{category}/{url.node_name()}"

    async def _children(self, path: str, deadline: Deadline) -> list[str]:
        try:
            return await self._session.get_children(path, timeout_s=deadline.remaining_s() or 0.0)
        except NoNodeError:
            return []


class _Registration:
    """One node that should, or should no longer, exist, and the task that creates or deletes it."""

    def __init__(self, session: Session, path: str, on_gone: Callable[[_Registration], None], metrics: Metrics) -> None:
        self.path = path
        self.wanted = True
        self.established = False
        self._gauge = metrics.registrations
        self._counted = ""
        self._count("no")
        self._session = session
        self._on_gone = on_gone
        self._made_in: int | None = None  # the session in which we made the node
        self._changed = asyncio.Event()  # the node, the session or what is wanted changed: check again
        self._settled = asyncio.Event()  # ZooKeeper agrees with what is wanted
        self.task = asyncio.get_running_loop().create_task(self._keep())

    def unwant(self) -> None:
        """Have the node deleted."""
        if self.wanted:
            self.wanted = False
            self._count("")
            self._settled.clear()
            self._changed.set()

    def abandon(self) -> None:
        """Stop the task, whatever the node's state."""
        self.task.cancel()
        self._on_gone(self)

    async def settled(self, timeout_s: float | None) -> bool:
        """Wait until ZooKeeper agrees with what is wanted; False if not within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._settled.wait()
        except TimeoutError:
            return False
        return True

    async def _keep(self) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            self._changed.clear()
            try:
                await self._session.wait_connected(None)
                await (self._establish() if self.wanted else self._withdraw())
            except (Unavailable, KazooException) as error:
                if self._session.state is SessionState.CLOSED:
                    break  # the node goes with the session
                log.warning("%s %s: %r; trying again", "registering" if self.wanted else "removing", self.path, error)
                await self._wait_for_change(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                continue
            pause_s = RETRY_FIRST_S
            if self._changed.is_set():
                continue
            if not self.wanted:
                break
            self._settled.set()
            self.established = True
            self._count("yes")
            await self._changed.wait()
            self.established = False
            self._settled.clear()
            self._count("no" if self.wanted else "")
        if not self.wanted:
            self._settled.set()
        self._on_gone(self)

    async def _establish(self) -> None:
        if self._made_in == self._session.session_id and await self._is_ours():
            return  # the same session reconnected: reading again was enough
        while True:
            try:
                await self._session.create(self.path, ephemeral=True)
            except NoNodeError:
                await self._make_directories()
                continue
            except NodeExistsError:
                pass
            if await self._is_ours():
                self._made_in = self._session.session_id
                log.info("registered %s", self.path)
                return
            log.info("deleting a registration left by an earlier session: %s", self.path)
            await self._delete()

    async def _withdraw(self) -> None:
        await self._delete()
        log.info("unregistered %s", self.path)

    async def _is_ours(self) -> bool:
        """Tell whether the node belongs to our session, and watch it."""
        stat = await self._session.exists(self.path, watch=self._changed.set)
        return stat is not None and stat.ephemeralOwner == self._session.session_id

    async def _make_directories(self) -> None:
        interface = self.path.rpartition("/")[0].rpartition("/")[0]
        for category in CATEGORIES:
            await self._session.ensure_path(f"{interface}/{category}")

    async def _delete(self) -> None:
        try:
            await self._session.delete(self.path)
        except NoNodeError:
            return

    def _count(self, established: str) -> None:
        """Count this registration as established ("yes", "no") or, "", not at all."""
        if self._counted:
            self._gauge.labels(self._counted).dec()
        if established:
            self._gauge.labels(established).inc()
        self._counted = established

    async def _wait_for_change(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return


def _readable(names: Iterable[str]) -> tuple[tuple[ProviderURL, ...], tuple[str, ...]]:
    urls, malformed = [], []
    for name in sorted(names):
        try:
            urls.append(ProviderURL.parse(name))
        except BadProviderURL:
            malformed.append(name)
    return tuple(urls), tuple(malformed)
