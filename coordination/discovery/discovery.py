"""Follow the providers of interfaces in Dubbo's registry: one directory for each, kept up to date by watches.

`directory.py` has the states of a directory and what its list guarantees.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from urllib.parse import quote

from coordination.discovery.consumer import ANY_CONSUMER, Consumer
from coordination.discovery.directory import EMPTY_LIST_GRACE_S, Directory
from coordination.discovery.provider_cache import ProviderCache
from coordination.metrics import Metrics
from coordination.registry.endpoint import Registration
from coordination.registry.registration import DEFAULT_ROOT, Registry
from coordination.registry.service_key import Service
from coordination.rules.rule_set import Rules
from coordination.rules.rule_watcher import RuleWatcher
from coordination.session.node_watcher import NodeWatcher, children
from coordination.session.session import Session

log = logging.getLogger(__name__)

RULES_WAIT_S = 0.5
CLOSE_TIMEOUT_S = 0.5


class Discovery:
    """Follows the providers of interfaces, over one session.

    Args:
        session: a started session; it may be away.
        root: Dubbo's root.
        cache_dir: where to keep the last lists for a start without ZooKeeper; None for nowhere.
        consumer: the consumer. One with a host is registered under the interfaces it subscribes to.
        empty_list_grace_s: seconds for which an empty list is not taken as true.
        metrics: the collectors; None: some that are not exported.
    """

    def __init__(
        self,
        session: Session,
        root: str = DEFAULT_ROOT,
        cache_dir: Path | None = None,
        *,
        consumer: Consumer = ANY_CONSUMER,
        empty_list_grace_s: float = EMPTY_LIST_GRACE_S,
        metrics: Metrics | None = None,
    ) -> None:
        self._session = session
        self._root = root
        self._cache_dir = cache_dir
        self._consumer = consumer
        self._empty_list_grace_s = empty_list_grace_s
        self._metrics = metrics or Metrics()
        self._registry = Registry(session, root, metrics=self._metrics)
        self._subscriptions: dict[Service, _Subscription] = {}

    async def subscribe(
        self, interface: str, *, group: str = "", version: str = "", timeout_s: float = 1.0
    ) -> Directory:
        """Follow an interface; all subscribers share one directory.

        Waits at most `timeout_s` seconds for the first list and never fails because ZooKeeper is away: see the
        directory's `state`.

        Args:
            interface: full service name.
            group: Dubbo's group, several with commas, ``*`` for any; "" for providers without one.
            version: Dubbo's version, ``*`` for any; "" for providers without one.
            timeout_s: how long to wait for the first list, seconds.

        Raises:
            BadProviderURL: it is no interface's name.
        """
        service = Service(interface, group, version)
        subscription = self._subscriptions.get(service)
        if subscription is None:
            url = self._consumer.url(service)
            if self._consumer.host:
                await self._registry.register_consumer(url, timeout_s=0)
            directory = Directory(
                interface, consumer=url, empty_list_grace_s=self._empty_list_grace_s, metrics=self._metrics
            )
            subscription = _Subscription(self._session, self._root, directory, self._cache_of(service), self._metrics)
            self._subscriptions[service] = subscription
        await subscription.directory.wait_live(timeout_s)
        return subscription.directory

    async def close(self) -> None:
        """Stop following, and unregister our consumers. The directories keep their last lists."""
        subscriptions = list(self._subscriptions.values())
        self._subscriptions.clear()
        await asyncio.gather(*(subscription.close() for subscription in subscriptions))
        await self._registry.close(timeout_s=CLOSE_TIMEOUT_S)

    def _cache_of(self, service: Service) -> ProviderCache | None:
        if self._cache_dir is None:
            return None
        return ProviderCache(self._cache_dir / f"{quote(str(service), safe='')}.json")


class _Subscription:
    """The watchers that keep one directory up to date."""

    def __init__(
        self, session: Session, root: str, directory: Directory, cache: ProviderCache | None, metrics: Metrics
    ) -> None:
        self.directory = directory
        self._cache = cache
        self._loading_cache = asyncio.get_running_loop().create_task(self._load_cache())
        self._newest_rules: Rules | None = None  # not applied yet
        self._governing: asyncio.Task[None] | None = None
        self._rules = RuleWatcher(session, root, directory.consumer, self._on_rules, metrics)
        path = f"{root}/{directory.interface}/providers"
        self._watcher = NodeWatcher(session, path, children, self._on_read, directory.on_away)

    async def close(self) -> None:
        """Stop following."""
        self._loading_cache.cancel()
        await asyncio.gather(self._watcher.close(), self._rules.close(), self._loading_cache, return_exceptions=True)
        if self._governing is not None:
            self._governing.cancel()
            await asyncio.gather(self._governing, return_exceptions=True)

    async def _load_cache(self) -> None:
        if self._cache is not None:
            names = await asyncio.to_thread(self._cache.load)
            await self._prepare(await self._parse(names))
            self.directory.load_cached(names)

    async def _parse(self, names: list[str]) -> tuple[Registration, ...]:
        await self.directory.reader.prepare(names)
        return self.directory.reader.read(names)

    async def _on_read(self, names: list[str]) -> float | None:
        found = await self._parse(names)
        self._rules.govern(one.url for one in found if one.url and not one.refusal)
        await self._rules.ready(RULES_WAIT_S)
        await self._prepare(found)
        self.directory.take(found)
        if self._cache is not None and names:  # an old list is more useful to a cold start than an empty one
            await asyncio.to_thread(self._cache.save, names)
        return self.directory.reread_after_s()

    def _on_rules(self, rules: Rules) -> None:
        self._newest_rules = rules
        if self._governing is None:
            self._governing = asyncio.get_running_loop().create_task(self._govern())

    async def _govern(self) -> None:
        while (rules := self._newest_rules) is not None:
            self._newest_rules = None
            try:
                await self.directory.govern(rules)
            except Exception:
                log.exception("the new rules of %s are not applied", self.directory.interface)
        self._governing = None

    async def _prepare(self, found: tuple[Registration, ...]) -> None:
        """Apply the newest rules to what is shown, and to what is to be shown."""
        while True:
            if self._governing is not None:
                await asyncio.wait([self._governing])
            await self.directory.prepare(found)
            if self._governing is None:
                return
