"""The endpoints of one interface: the last list read from ZooKeeper, with rules applied, and how far to rely on it.

                 file from last time
    UNKNOWN ───────────────────────▶ CACHED
       │ read                          │ read
       ▼                               ▼
      LIVE ◀── read again ── AWAY ◀── connection dropped (from any of the others that were read)
       │ ▲
       │ └─ read: a provider, or still none after EMPTY_LIST_GRACE_S
       ▼
    EMPTYING   read: no provider, where there was one

Invariants
1. `endpoints` comes from the last list read, whatever happened since: ZooKeeper going away takes no endpoint out.
2. An empty list is taken as true once it has lasted for EMPTY_LIST_GRACE_S; then the state is LIVE. One endpoint that
   leaves others behind is gone at once, and so is one that a rule disables, be it the last.
3. A directory is never given up: a providers node that is missing, deleted and made again, an expired session, a
   failed read all lead back to reading, with a watch on whatever is there to be watched.
4. One child that cannot be read costs that child and no other; so does one rule.
5. A list is shown only when the rules that govern it have been looked at, or RULES_WAIT_S later.
6. However many rules and providers there are, applying rules leaves the event loop to others every few milliseconds.

Why the grace period. A list is empty for a moment whenever the only instance restarts, and whenever ZooKeeper was away
for longer than sessions last: consumers read again sooner than providers register again. Dubbo 2.7 took an empty list
as true at once and refused such calls; 3.0 never did and went on calling dead instances; 3.2 does again. Here it takes
EMPTY_LIST_GRACE_S: an instance called meanwhile either answers or refuses the connection, and then nothing was sent.

Which function makes each move
    take         UNKNOWN | CACHED | AWAY | EMPTYING -> LIVE, and LIVE | CACHED | AWAY -> EMPTYING
    on_away      LIVE | EMPTYING -> AWAY
    load_cached  UNKNOWN -> CACHED
    govern       no state; applies rules to the list
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from coordination.deadline import Deadline
from coordination.discovery.consumer import ANY_CONSUMER
from coordination.errors import NoProviders
from coordination.metrics import Metrics
from coordination.registry.endpoint import Endpoint, ProviderReader, Registration
from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL
from coordination.rules.rule_set import Rules
from coordination.turns import Work, at_once, in_turns

log = logging.getLogger(__name__)

#: How long an empty list is not taken as true: the pause of a restart, or until providers have registered again.
EMPTY_LIST_GRACE_S = 5.0

LOGGED = 10  # endpoints named in one log line
MAX_ROUTED = 1024  # cached results by (method, tag): callers choose tags, so their number needs a limit


class DirectoryState(enum.Enum):
    """How far a directory's list can be relied on."""

    #: Never read. The list is empty and means nothing.
    UNKNOWN = "unknown"

    #: From a file of an earlier run; ZooKeeper has not been asked yet, or is away. Rules are not remembered.
    CACHED = "cached"

    #: As ZooKeeper has it, watched. An empty list is true.
    LIVE = "live"

    #: ZooKeeper has no provider; these were there a moment ago. They are taken as gone after EMPTY_LIST_GRACE_S.
    EMPTYING = "emptying"

    #: As ZooKeeper had it when last reached.
    AWAY = "away"


#: The states in which ZooKeeper has answered and is watched.
READ = frozenset({DirectoryState.LIVE, DirectoryState.EMPTYING})


@dataclass(frozen=True, slots=True)
class Eligibility:
    """Whether a registered provider may get a call, and why not.

    Attributes:
        registration: the provider's node.
        endpoint: the provider with rules applied; None if it is no endpoint.
        why_not: empty if it is a candidate.
    """

    registration: Registration
    endpoint: Endpoint | None
    why_not: str = ""

    @property
    def address(self) -> str:
        """``host:port``; empty if the node cannot be read."""
        return self.registration.address

    @property
    def key(self) -> str:
        """The endpoint's key; empty if the node cannot be read."""
        return self.registration.key


class Directory:
    """The endpoints of one interface, kept up to date. Made by `Discovery.subscribe`.

    Args:
        interface: full service name.
        consumer: the consumer, with the group and version it asks for; None: ANY_CONSUMER, without either.
        empty_list_grace_s: seconds for which an empty list is not taken as true.
        metrics: the collectors; None: some that are not exported.

    Attributes:
        interface: full service name.
        service: the same with group and version.
        consumer: the consumer.
        endpoints: those not disabled, by address; replaced as a whole, never changed in place.
        state: how far that list can be relied on.
        reader: parses the names of nodes, and remembers the parsed.
        changed: an event set at every change of the list, the state or the rules; the one task that waits for it
            clears it first. Several tasks use `subscribe`.
    """

    def __init__(
        self,
        interface: str,
        *,
        consumer: ProviderURL | None = None,
        empty_list_grace_s: float = EMPTY_LIST_GRACE_S,
        metrics: Metrics | None = None,
    ) -> None:
        self.interface = interface
        self.consumer = consumer or ANY_CONSUMER.url(Service(interface))
        self.service = Service.of(self.consumer)
        self.endpoints: tuple[Endpoint, ...] = ()
        self.state = DirectoryState.UNKNOWN
        self.changed = asyncio.Event()
        self._empty_list_grace_s = empty_list_grace_s
        self._grace: Deadline | None = None  # until when an empty list is not taken as true, while EMPTYING
        self.reader = ProviderReader(self.service)
        self._registrations: tuple[Registration, ...] = ()
        self._by_node: dict[str, Endpoint] = {}  # with rules applied, by node's name
        self._governed: tuple[Endpoint, ...] = ()  # the disabled among them
        self._rules = Rules()
        # By method and tag: of calls to come, and of those that wait for it. Replaced at every change, never cleared.
        self._routed: dict[tuple[str, str], tuple[Endpoint, ...]] = {}
        self._routing: dict[tuple[str, str], asyncio.Task[tuple[Endpoint, ...]]] = {}
        self._subscribers: list[Callable[[], None]] = []
        metrics = metrics or Metrics()
        self._endpoints_gauge = metrics.endpoints.labels(interface)
        self._live_gauge = metrics.directory_live.labels(interface)

    @property
    def registered(self) -> tuple[Endpoint, ...]:
        """All endpoints with rules applied, including the disabled."""
        return self._governed

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called on the loop after every change; return what ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    async def route(self, method: str, tag: str, deadline: Deadline) -> tuple[Endpoint, ...]:
        """Return the endpoints that may serve a call.

        Cached until the list or the rules change: every call asks for it. Calls that ask for the same at once wait for
        one answer.

        Args:
            method: the bare name of the method called.
            tag: the call's tag (metadata ``dubbo.tag``); empty if it has none.
            deadline: the call's.

        Raises:
            TimeoutError: rules and providers are so many that it takes longer; the work goes on for the next call.
        """
        call = method, tag
        while (found := self._routed.get(call)) is None:
            routed, routing = self._routed, self._routing.get(call)
            if routing is None:
                routing = asyncio.get_running_loop().create_task(in_turns(self._route(method, tag)))
                self._routing[call] = routing
            await asyncio.wait([routing], timeout=deadline.remaining_s())
            if not routing.done():
                raise TimeoutError(f"the rules of {self.interface} take longer to apply than the call may take")
            found = routing.result()
            if routed is self._routed:  # otherwise the list or the rules have changed meanwhile
                return found
        return found

    def candidates(self, method: str, tag: str = "") -> tuple[Endpoint, ...]:
        """Return what `route` returns, computed in this turn of the loop: for tools, not for calls."""
        found = self._routed.get((method, tag))
        return at_once(self._route(method, tag)) if found is None else found

    def _route(self, method: str, tag: str) -> Work[tuple[Endpoint, ...]]:
        routed, routing = self._routed, self._routing  # of this list and these rules: others have others
        try:
            left, _ = yield from self._rules.route(self.endpoints, self.consumer, method, tag)
        finally:
            routing.pop((method, tag), None)
        if len(routed) >= MAX_ROUTED:
            routed.clear()
        found = routed[method, tag] = tuple(left)
        return found

    def eligibility(self, method: str, tag: str = "") -> tuple[Eligibility, ...]:
        """Return whether each registered provider may serve a call, and why not. As `candidates`."""
        governed = {endpoint.key: endpoint for endpoint in self._governed}
        _, reasons = at_once(self._rules.route(self.endpoints, self.consumer, method, tag))
        eligibility = []
        for registration in self._registrations:
            if registration.refusal:
                eligibility.append(Eligibility(registration, None, registration.refusal))
                continue
            endpoint = governed[registration.key]
            why_not = _why_disabled(endpoint) or reasons.get(endpoint.key, "")
            eligibility.append(Eligibility(registration, endpoint, why_not))
        return tuple(eligibility)

    async def wait_any(self, timeout_s: float | None) -> tuple[Endpoint, ...]:
        """Return the endpoints as soon as there is one.

        Raises:
            NoProviders: none within `timeout_s` seconds; its `away` tells whether ZooKeeper could be asked.
        """
        await self._wait_until(lambda: bool(self.endpoints), timeout_s)
        if not self.endpoints:
            raise NoProviders(self.interface, away=self.state not in READ, disabled=len(self._governed))
        return self.endpoints

    async def wait_live(self, timeout_s: float | None) -> bool:
        """Wait until ZooKeeper has answered and is watched; False if not within `timeout_s` seconds."""
        return await self._wait_until(lambda: self.state in READ, timeout_s)

    async def _wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> bool:
        deadline = Deadline.after(timeout_s)
        changed = asyncio.Event()
        unsubscribe = self.subscribe(changed.set)
        try:
            async with asyncio.timeout(deadline.remaining_s()):
                while not condition():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            return condition()
        finally:
            unsubscribe()
        return True

    # ---- what Discovery feeds in ---------------------------------------------------------------------

    def load_cached(self, node_names: Iterable[str]) -> None:
        """Show the list of an earlier run, if ZooKeeper has not been read yet."""
        cached = self.reader.read(node_names)
        if self.state is DirectoryState.UNKNOWN and any(not one.refusal for one in cached):
            self._set(DirectoryState.CACHED, cached)

    def take(self, found: tuple[Registration, ...]) -> None:
        """Show a list read from ZooKeeper, parsed by `reader`."""
        self._warn_of_unreadable(found)
        kept = tuple(one for one in self._registrations if not one.refusal)
        confirmed = self._empty_list_grace_s <= 0 or (self._grace is not None and self._grace.expired())
        if confirmed or not kept or any(not one.refusal for one in found):
            self._grace = None
            self._set(DirectoryState.LIVE, found)
            return
        if self._grace is None:
            self._grace = Deadline.after(self._empty_list_grace_s)
        self._set(DirectoryState.EMPTYING, (*found, *kept))

    def on_away(self) -> None:
        """Keep the list; ZooKeeper cannot be read now."""
        self._grace = None
        if self.state in READ:
            self._set(DirectoryState.AWAY, self._registrations)

    def reread_after_s(self) -> float | None:
        """Return the seconds after which to read an empty list again; None: only at a change."""
        return None if self._grace is None else self._grace.remaining_s()

    async def govern(self, rules: Rules) -> None:
        """Apply other rules to the list. Until that is done, the list stays as it was."""
        by_node: dict[str, Endpoint] = {}
        await in_turns(self._govern(self._registrations, rules, by_node))
        self._rules, self._by_node = rules, by_node
        self._set(self.state, self._registrations, force=True)

    async def prepare(self, found: Iterable[Registration]) -> None:
        """Apply the rules to the new ones of a list, so that `take` finds that done unless the rules change."""
        by_node = None
        while by_node is not self._by_node:  # the list or the rules have changed meanwhile
            by_node = self._by_node
            await in_turns(self._govern(found, self._rules, by_node))

    def _govern(self, found: Iterable[Registration], rules: Rules, by_node: dict[str, Endpoint]) -> Work[None]:
        for one in found:
            if one.endpoint is not None and one.name not in by_node:
                by_node[one.name] = yield from rules.govern(one.endpoint, self.consumer)
                yield

    def _set(self, state: DirectoryState, registrations: tuple[Registration, ...], *, force: bool = False) -> None:
        if not force and (state, registrations) == (self.state, self._registrations):
            return
        known = self._by_node
        self._by_node = {
            one.name: known.get(one.name) or at_once(self._rules.govern(one.endpoint, self.consumer))
            for one in registrations
            if one.endpoint is not None
        }
        self._governed = tuple(self._by_node.values())
        endpoints = tuple(endpoint for endpoint in self._governed if not endpoint.url.disabled)
        if endpoints != self.endpoints:
            self._log(endpoints, state)
        self._endpoints_gauge.inc(len(endpoints) - len(self.endpoints))
        self._live_gauge.set(state is DirectoryState.LIVE)
        self.state, self._registrations, self.endpoints = state, registrations, endpoints
        self._routed, self._routing = {}, {}
        self.changed.set()
        for callback in list(self._subscribers):
            try:
                callback()
            except Exception:
                log.exception("a subscriber of %s failed", self.interface)

    def _log(self, endpoints: tuple[Endpoint, ...], state: DirectoryState) -> None:
        before, after = {one.key for one in self.endpoints}, {one.key for one in endpoints}
        log.info(
            "%s: %d endpoints (%s); new: %s; gone: %s",
            self.interface,
            len(endpoints),
            state.value,
            _some(after - before),
            _some(before - after),
        )

    def _warn_of_unreadable(self, found: Iterable[Registration]) -> None:
        known = {one.name for one in self._registrations}
        for one in found:
            if one.url is None and one.name not in known:
                log.warning("skipping a provider of %s: %s", self.interface, one.refusal)


def _some(keys: set[str]) -> str:
    shown = sorted(keys)[:LOGGED]
    return ", ".join(shown) + (f" and {len(keys) - LOGGED} more" if len(keys) > LOGGED else "") or "none"


def _why_disabled(endpoint: Endpoint) -> str:
    if not endpoint.url.disabled:
        return ""
    origin = endpoint.changed_by.get("disabled") or endpoint.changed_by.get("enabled")
    return f"disabled by {origin}" if origin else "registered as disabled"
