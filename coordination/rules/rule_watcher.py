"""The rule nodes of one interface in ZooKeeper, followed, and combined into one `Rules`.

    /dubbo/<interface>/configurators/<override://…>               2.6: a rule is a node's name
    /dubbo/<interface>/routers/<condition://…>
    /dubbo/config/dubbo/<interface>:<version>:<group>.configurators    2.7 and 3.x: a rule is a node's YAML
    /dubbo/config/dubbo/<interface>:<version>:<group>.condition-router
    /dubbo/config/dubbo/<application>.configurators               the consumer's application, and the providers'
    /dubbo/config/dubbo/<application>.condition-router
    /dubbo/config/dubbo/<application>.tag-router                  the providers'

Invariants
1. A rule that cannot be parsed is logged, counted and left out; all others apply. A YAML node keeps its last good rule
   until it has a good one again, or goes.
2. While ZooKeeper is away the rules stay as they were.
3. Nothing here raises: whatever a node holds, calls go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from coordination.errors import BadRule
from coordination.metrics import Metrics
from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL
from coordination.rules import configurators, routers
from coordination.rules.rule_set import Rules
from coordination.session.node_watcher import Found, NodeWatcher, Reader, children, content
from coordination.session.session import Session

log = logging.getLogger(__name__)

#: Kinds of 2.6's rules, for the metric; the others are those of `configurators` and `routes`.
OVERRIDE, ROUTE = "override", "route"

#: How many rules of 2.6 an interface may have of a kind.
MAX_NAMES = 1_000
#: How many of them are parsed in one turn of the event loop.
NAMES_A_TURN = 50

Rule = TypeVar("Rule")
Parse = Callable[[str, str], tuple[Rule, ...]]


class OnRuleRead(Protocol):
    """Called when rules of one node changed."""

    def __call__(self, readable: bool, changes: int = 1, /) -> None:
        """Take note of it.

        Args:
            readable: whether they could be parsed.
            changes: how many rules changed.
        """


def config_path(root: str, key: str, kind: str) -> str:
    """Return the node of a 2.7 or 3.x rule.

    Args:
        root: Dubbo's root.
        key: `Service.rule_key`, or an application.
        kind: ``configurators``, ``condition-router`` or ``tag-router``.
    """
    return f"{root}/config/dubbo/{key}.{kind}"


class RuleWatcher:
    """Follows the rules that govern an interface's providers, for one consumer.

    Args:
        session: a started session; it may be away.
        root: Dubbo's root.
        consumer: the consumer and the service it consumes.
        on_change: called on the loop whenever the rules have changed, with them.
        metrics: the collectors.
    """

    def __init__(
        self, session: Session, root: str, consumer: ProviderURL, on_change: Callable[[Rules], None], metrics: Metrics
    ) -> None:
        self._consumer = consumer
        self._on_change = on_change
        self._metrics = metrics
        self._rules = Rules()
        interface = f"{root}/{consumer.interface}"
        self._overrides = _Names(
            session, f"{interface}/configurators", configurators.parse_override, self._on_rule_read(OVERRIDE)
        )
        self._routers = _Names(session, f"{interface}/routers", routers.parse_router, self._on_rule_read(ROUTE))

        def nodes(kind: str, parse: Parse[Rule]) -> _Nodes[Rule]:
            return _Nodes(session, partial(config_path, root, kind=kind), parse, self._on_rule_read(kind))

        self._configurators = nodes(configurators.KIND, configurators.parse_configurators)
        self._conditions = nodes(routers.CONDITIONS, routers.parse_conditions)
        self._tags = nodes(routers.TAGS, routers.parse_tags)
        self.govern(())

    def govern(self, providers: Iterable[ProviderURL]) -> None:
        """Follow the rules of these providers' services and applications, besides the consumer's own, and no others."""
        providers = list(providers)
        services = [Service.of(self._consumer), *sorted({Service.of(provider) for provider in providers}, key=str)]
        keys = [service.rule_key for service in services]
        theirs = sorted({provider.application for provider in providers})
        ours = self._consumer.application
        self._configurators.follow([ours, *theirs, *keys])
        self._conditions.follow([*keys, *(name for name in theirs if name != ours), ours])
        self._tags.follow(theirs)
        self._changed()

    async def ready(self, timeout_s: float) -> bool:
        """Wait until every node has been read once; False if not within `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                for source in self._sources():
                    await source.read_once.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop following. The rules stay as they are."""
        nodes = (self._configurators, self._conditions, self._tags)
        await asyncio.gather(self._overrides.close(), self._routers.close(), *(kind.close() for kind in nodes))

    def _sources(self) -> Iterator[_Source[Any, Any]]:
        yield from (self._overrides, self._routers)
        for nodes in (self._configurators, self._conditions, self._tags):
            yield from nodes.by_key.values()

    def _on_rule_read(self, kind: str) -> OnRuleRead:
        def on_rule_read(readable: bool, changes: int = 1) -> None:
            self._metrics.rule_changes.labels(kind, "yes" if readable else "no").inc(changes)
            if readable:
                self._changed()

        return on_rule_read

    def _changed(self) -> None:
        of_26 = sorted(self._routers.rules, key=lambda route: -route.priority)
        rules = Rules(
            configurators=(*configurators.in_order(self._overrides.rules), *self._configurators.rules),
            tags={key: route for key, node in self._tags.by_key.items() for route in node.rules},
            conditions=(*self._conditions.rules, *of_26),
        )
        if rules != self._rules:
            self._rules = rules
            self._on_change(rules)


class _Source(Generic[Found, Rule]):
    """One node with rules in it, followed.

    Attributes:
        rules: as last parsed.
        looked: set once the node has been read, or could not be.
    """

    def __init__(self, session: Session, path: str, read: Reader[Found], on_rule_read: OnRuleRead) -> None:
        self.rules: tuple[Rule, ...] = ()
        self.read_once = asyncio.Event()
        self._path = path
        self._on_rule_read = on_rule_read
        self._watcher = NodeWatcher(session, path, read, self._on_read, self.read_once.set)

    async def close(self) -> None:
        """Stop following."""
        await self._watcher.close()

    async def _on_read(self, found: Found) -> None:
        await self._take(found)
        self.read_once.set()

    async def _take(self, found: Found) -> None:
        raise NotImplementedError

    def _refused(self, error: BadRule) -> None:
        log.warning("a rule under %s is not applied: %s", self._path, error)
        self._on_rule_read(False)

    def _failed(self) -> None:
        """Count a rule that an error of ours kept from being read; call within an except clause."""
        log.exception("a rule under %s is not applied", self._path)
        self._on_rule_read(False)


class _Names(_Source[list[str], Rule]):
    """A node whose children's names are rules (2.6)."""

    def __init__(
        self, session: Session, path: str, parse: Callable[[str], tuple[Rule, ...]], on_rule_read: OnRuleRead
    ) -> None:
        self._parse = parse
        self._known: dict[str, tuple[Rule, ...] | None] = {}
        super().__init__(session, path, children, on_rule_read)

    async def _take(self, found: list[str]) -> None:
        if len(found) > MAX_NAMES:
            log.warning("%s has %s rules; the first %s by name are applied", self._path, len(found), MAX_NAMES)
        before, known = self._known, {}
        for number, name in enumerate(sorted(found)[:MAX_NAMES], 1):
            known[name] = before[name] if name in before else self._parsed(name)
            if number % NAMES_A_TURN == 0:
                await asyncio.sleep(0)
        self._known = known
        self.rules = tuple(rule for rules in self._known.values() for rule in rules or ())
        both = before | known
        changes = sum(both[name] is not None for name in before.keys() ^ known.keys())
        if changes:
            self._on_rule_read(True, changes)

    def _parsed(self, name: str) -> tuple[Rule, ...] | None:
        try:
            return self._parse(name)
        except BadRule as error:
            self._refused(error)
        except Exception:
            self._failed()
        return None


class _Node(_Source[bytes | None, Rule]):
    """A node whose data is a rule in YAML (2.7, 3.x). Missing or blank is no rule."""

    def __init__(self, session: Session, path: str, key: str, parse: Parse[Rule], on_rule_read: OnRuleRead) -> None:
        self._key = key
        self._parse = parse
        self._data = b""
        super().__init__(session, path, content, on_rule_read)

    async def _take(self, found: bytes | None) -> None:
        data = (found or b"").strip()
        if data == self._data:
            return
        self._data = data
        try:
            self.rules = self._parse(data.decode(), self._key) if data else ()
        except UnicodeDecodeError as error:
            self._refused(BadRule(f"not UTF-8: {error}"))
        except BadRule as error:
            self._refused(error)  # the last good one is kept
        except Exception:  # the same data is not parsed again: it must not pass for a rule that is applied
            self._failed()
        else:
            self._on_rule_read(True)


class _Nodes(Generic[Rule]):
    """The nodes of one kind, by the service or application they are of, in the order in which their rules count."""

    def __init__(
        self, session: Session, path_of: Callable[[str], str], parse: Parse[Rule], on_rule_read: OnRuleRead
    ) -> None:
        self.by_key: dict[str, _Node[Rule]] = {}

        def make(key: str) -> _Node[Rule]:
            return _Node(session, path_of(key), key, parse, on_rule_read)

        self._make = make
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules of all of them."""
        return tuple(rule for node in self.by_key.values() for rule in node.rules)

    async def close(self) -> None:
        """Stop following."""
        await asyncio.gather(*(node.close() for node in self.by_key.values()), *self._closing)

    def follow(self, keys: Iterable[str]) -> None:
        """Follow these and no others. Names that cannot be a node's are left out."""
        known = self.by_key
        self.by_key = {key: known.get(key) or self._make(key) for key in dict.fromkeys(keys) if key and "/" not in key}
        for key in known.keys() - self.by_key.keys():
            closing = asyncio.get_running_loop().create_task(known[key].close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
