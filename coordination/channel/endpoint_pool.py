"""The endpoints behind one channel: which may get a call, the connections to them, and how their calls ended.

    directory's candidates ─▶ with a weight ─▶ not out ─▶ not down ─▶ not tried ─▶ picker ─▶ connect ─▶ connection
      (rules and tags)          │ if none has:    │          │ if that leaves none: those with a      │ no
                                ▼ all             ▼          ▼ weight that were not tried              ▼
                                       see `outlier_detection`                              tried; pick another

Invariants
1. An endpoint that cannot be reached fails no call as long as another can. One that is late to connect delays the
   calls that were made until then, and none after.
2. If no endpoint can be called the error is NeverSent and says so, within the deadline; nothing was done.
3. An endpoint that is out comes back by a health check of the pool, not by a user's call.
4. An endpoint that left the directory gets no new call. Its connection is kept REMOVED_ENDPOINT_TTL_S, and the calls
   on it then CLOSE_GRACE_S. With the connection go the metrics of the endpoint.
5. After the credentials have been renewed every new call goes over a connection that was made with the new ones. Calls
   on the connection before have RENEWAL_GRACE_S to end.

Which function makes each move
    connect     picks, and proves reachable            failed, answered   IN -> OUT, any -> IN
    _bring_back OUT -> PROBED -> ON PROBATION | OUT    _close_after_ttl   closes what has long been gone
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import grpc

from coordination.channel.call_metrics import CallMetrics
from coordination.channel.connection import EndpointConnection
from coordination.channel.invocation import Invocation
from coordination.channel.load_balancing import Candidate, Explanation, Picker, Standing
from coordination.channel.outcomes import NeverSent
from coordination.channel.outlier_detection import Outlier, Outliers
from coordination.deadline import Deadline
from coordination.discovery.directory import Directory, DirectoryState
from coordination.errors import NoProviders
from coordination.grpc_channel import Credentials, Option
from coordination.metrics import Metrics
from coordination.registry.endpoint import Endpoint

WAIT_FOR_PROVIDER_S = 1.0  # how long a call waits for a provider to register (at most 4/5 of its deadline)
CONNECT_SLICE_S = 1.0  # how long one endpoint may take to connect before the next is tried
ROUND_PAUSE_S = 0.1  # between two rounds through all endpoints, for a call that waits for one to be ready
PROBE_TIMEOUT_S = 1.0  # how long a health check may take, connecting included
REMOVED_ENDPOINT_TTL_S = 30.0  # an endpoint that left the directory may come back: its connection is kept so long
CLOSE_GRACE_S = 5.0  # how long its calls may then still take
RENEWAL_GRACE_S = 300.0  # how long the calls of a connection with older credentials may still take

log = logging.getLogger(__name__)


class EndpointPool:
    """What a channel knows of its endpoints.

    Args:
        directory: the endpoints.
        picker: chooses among them.
        rng: for the jitter of ejections.
        options: gRPC channel options, over those of `grpc_channel`.
        address_of: where an endpoint is connected to.
        credentials: for TLS; None for plain text.
        metrics: the collectors.
        now_ms: the wall clock, Unix milliseconds; endpoints warm up by it.
        on_attempt: called with the endpoint and the code of each attempt; see `CallMetrics`.

    Attributes:
        watchers: are set when connections or endpoints come or go, and when the pool closes.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        picker: Picker,
        rng: random.Random,
        options: Sequence[Option],
        address_of: Callable[[Endpoint], str],
        credentials: Credentials | None,
        metrics: Metrics,
        now_ms: Callable[[], int],
        on_attempt: Callable[[str, str], None] | None = None,
    ) -> None:
        self.directory = directory
        self.picker = picker
        self.connections: dict[str, EndpointConnection] = {}
        self.outliers = Outliers(rng)
        self.closed = False
        self._options = options
        self._address_of = address_of
        self._credentials = credentials
        self.metrics = CallMetrics(metrics, directory.interface, on_attempt)
        self._now_ms = now_ms
        self._removed: dict[str, asyncio.Task[None]] = {}
        self._probing: dict[str, asyncio.Task[None]] = {}
        self._replaced: dict[asyncio.Task[None], EndpointConnection] = {}
        self.watchers: set[asyncio.Event] = set()
        self._unsubscribe = directory.subscribe(self._directory_changed)

    def states(self) -> dict[EndpointConnection, grpc.ChannelConnectivity]:
        """Return the state of every connection that may get a call, each read once."""
        return {
            connection: connection.channel.get_state()
            for key, connection in self.connections.items()
            if key not in self._removed
        }

    def connection_to(self, endpoint: Endpoint) -> EndpointConnection:
        """Return the connection to an endpoint; a new one connects at its first call."""
        credentials = None if self._credentials is None else self._credentials()
        dialled = self._address_of(endpoint)
        connection = self.connections.get(endpoint.key)
        if connection is not None and (connection.credentials, connection.dialled) != (credentials, dialled):
            self._replace(connection)
            connection = None
        if connection is None:
            connection = EndpointConnection(endpoint, dialled, self._options, credentials)
            self.connections[endpoint.key] = connection
            _set_all(self.watchers)
        connection.endpoint = endpoint
        return connection

    async def close(self, grace_s: float | None) -> None:
        """Take no new call; cancel those under way after `grace_s` seconds (None: at once)."""
        self.closed = True
        self._unsubscribe()
        tasks = [*self._removed.values(), *self._probing.values(), *self._replaced]
        self.metrics.ejected.dec(len(self._probing))
        self._removed.clear()
        self._probing.clear()
        for task in tasks:
            task.cancel()
        connections = [*self.connections.values(), *self._replaced.values()]
        self.connections.clear()
        self._replaced.clear()
        self.metrics.remove_all()
        _set_all(self.watchers)
        await asyncio.gather(
            *tasks, *(connection.channel.close(grace_s) for connection in connections), return_exceptions=True
        )

    # ---- choosing ------------------------------------------------------------------------------------

    async def connect(
        self, invocation: Invocation, tried: set[str], others: Collection[str] = ()
    ) -> tuple[EndpointConnection, int]:
        """Return a connection that is ready, and how many others there may still be.

        Args:
            invocation: the call. With `wait_for_ready` all endpoints are tried again until its deadline.
            tried: keys of endpoints to skip; the one returned and those that cannot be reached are added.
            others: those of them that do not have the method, and are not asked again in this call.

        Raises:
            NeverSent: no endpoint is registered, may serve the call, or can be reached.
        """
        deadline = invocation.deadline
        while not self.closed:
            endpoints = await self._providers(invocation)
            usable = self._usable(self._candidates(endpoints), tried)
            hopeful = any(endpoint.key not in others for endpoint in endpoints)
            if not usable and hopeful and invocation.wait_for_ready and not deadline.expired():
                await asyncio.sleep(ROUND_PAUSE_S)
                tried.intersection_update(others)
                continue
            if not usable and await self._successor(deadline):
                tried.intersection_update(others)  # nothing was sent to the rest, or it may be sent again
                continue
            if not usable:
                raise NeverSent(self._why_none(invocation, tried, others))
            connection = self.connections[self.picker.pick(usable, invocation.key).key]
            tried.add(connection.key)
            if connection.ready() or await connection.reachable(_slice(deadline, len(usable))):
                return connection, len(usable) - 1
            self.unreachable(connection)
        raise NeverSent("the channel is closed")

    def _why_none(self, invocation: Invocation, tried: Collection[str], others: Collection[str]) -> str:
        """Return why no endpoint is left."""
        unreachable = sorted(set(tried) - set(others))
        reasons = []
        if unreachable or not others:
            reasons.append(f"no provider of {self.directory.interface} can be reached (tried {', '.join(unreachable)})")
        if others:
            reasons.append(
                f"{', '.join(sorted(others))} answered UNIMPLEMENTED: another program listens there, "
                f"or one without {invocation.method.bare_name}"
            )
        return "; ".join(reasons)

    async def _successor(self, deadline: Deadline) -> bool:
        """Wait for a provider to register after the only ones have gone: they may be restarting.

        Returns:
            False at once if the list is not emptying, or if none registered for as long as a call waits.
        """
        return self.directory.state is DirectoryState.EMPTYING and await self.directory._wait_until(
            lambda: self.directory.state is not DirectoryState.EMPTYING and bool(self.directory.endpoints),
            _patience_s(deadline),
        )

    async def all_connections(self, invocation: Invocation) -> list[EndpointConnection]:
        """Return links to all endpoints that may serve a call, connected or not, out or not.

        Raises:
            NeverSent: rules and providers are so many that the call's deadline passed.
        """
        return [self.connection_to(endpoint) for endpoint in await _route(self.directory, invocation)]

    async def _providers(self, invocation: Invocation) -> tuple[Endpoint, ...]:
        method, tag = invocation.method.bare_name, invocation.tag
        candidates = await _route(self.directory, invocation)
        if candidates:
            return candidates
        if not self.directory.endpoints:
            try:
                await self.directory.wait_any(_patience_s(invocation.deadline))
            except NoProviders as error:
                raise NeverSent(str(error)) from error
            candidates = await _route(self.directory, invocation)
        if not candidates:
            tagged = f" with tag {tag!r}" if tag else ""
            raise NeverSent(f"no provider of {self.directory.interface} may serve {method}{tagged}: rules forbid all")
        return candidates

    def _candidates(self, endpoints: Sequence[Endpoint]) -> list[Candidate]:
        now_ms = self._now_ms()
        return [
            Candidate(endpoint, endpoint.weight_at(now_ms), self.connection_to(endpoint).load) for endpoint in endpoints
        ]

    def _usable(self, candidates: Sequence[Candidate], tried: Collection[str] = ()) -> Sequence[Candidate]:
        """Return the candidates that may be picked: the best tier, in the module's picture, with one not tried."""
        for tier in self._tiers(candidates):
            usable = [candidate for candidate in tier if candidate.endpoint.key not in tried] if tried else tier
            if usable:
                return usable
        return ()

    def _tiers(self, candidates: Sequence[Candidate]) -> Iterator[Sequence[Candidate]]:
        weighted = [candidate for candidate in candidates if candidate.weight > 0] or candidates
        yield [candidate for candidate in self.outliers.inside(weighted) if not self.connections[candidate.key].down()]
        yield [candidate for candidate in weighted if not self.connections[candidate.key].down()]
        yield weighted

    # ---- what became of calls ------------------------------------------------------------------------

    def answered(self, connection: EndpointConnection, code: grpc.StatusCode) -> None:
        """Clear an endpoint of its failures: its answer shows it at work."""
        self._count(connection, code.name)
        if self.outliers.cleared(connection.key):
            log.info("%s: %s gets calls again: it answered one", self.directory.interface, connection.key)
            self._stop_probing(connection.key)

    def failed(
        self, connection: EndpointConnection, code: grpc.StatusCode, why: str, *, another_program: bool = False
    ) -> None:
        """Count a failure against an endpoint, and eject it if that was one too many."""
        self._count(connection, code.name)
        now_s = time.monotonic()
        if self.connections.get(connection.key) is not connection:  # it has gone
            return
        if not self.outliers.failed(connection.key, why, now_s, another_program=another_program):
            return
        log.warning("%s: %s gets no calls for a while: %s", self.directory.interface, connection.key, why)
        self.metrics.endpoint_ejected(connection.key)
        self._probing[connection.key] = asyncio.get_running_loop().create_task(self._bring_back(connection))

    def unreachable(self, connection: EndpointConnection) -> None:
        """Count an attempt that could not be sent. It is no failure: gRPC keeps the endpoint down until it connects."""
        self._count(connection, "NEVER_SENT")

    def given_up(self, connection: EndpointConnection, code: grpc.StatusCode) -> None:
        """Count an attempt that ended by no fault of its endpoint."""
        self._count(connection, code.name)

    def _count(self, connection: EndpointConnection, code: str) -> None:
        if self.connections.get(connection.key) is connection:  # if it has gone, its series have gone too
            self.metrics.attempt_ended(connection.key, code)

    async def _bring_back(self, connection: EndpointConnection) -> None:
        """Probe an endpoint that is out, at growing intervals, until it may come back."""
        key = connection.key
        while self.outliers[key].out:
            await asyncio.sleep(self.outliers[key].until_s - time.monotonic())
            if self.outliers.due(key, time.monotonic()):
                answered = await self._healthy(self.connections.get(key, connection))
                self.outliers.probed(key, time.monotonic(), answered=answered)
        log.info("%s: %s may have calls again: it answers its health check", self.directory.interface, key)
        del self._probing[key]
        self.metrics.ejected.dec()

    async def _healthy(self, connection: EndpointConnection) -> bool:
        try:
            interface = self.directory.interface if self.outliers[connection.key].another_program else ""
            return await connection.healthy(Deadline.after(PROBE_TIMEOUT_S), interface)
        except Exception:  # the endpoint must not stay out for ever because of an error of ours
            log.exception("%s: the health of %s cannot be asked for", self.directory.interface, connection.key)
            return False

    def _stop_probing(self, key: str) -> None:
        task = self._probing.pop(key, None)
        if task is not None:  # None: the channel is closed
            task.cancel()
            self.metrics.ejected.dec()

    # ---- explaining ----------------------------------------------------------------------------------

    def explain(self, invocation: Invocation) -> list[Explanation]:
        """Return what a call made now would do with every registered provider. Nothing is sent or counted."""
        method, tag = invocation.method.bare_name, invocation.tag
        candidates = self._candidates(self.directory.candidates(method, tag))
        usable = self._usable(candidates)
        picked = self.picker.explain(usable, invocation.key) if usable else []
        explanations = {explanation.address: explanation for explanation in picked}
        for candidate in candidates:
            explanations[candidate.key] = _explanation(
                candidate, explanations.get(candidate.key), self.outliers[candidate.key]
            )
        return [
            Explanation(known.key or known.registration.name, Standing.RULED_OUT, known.why_not)
            if known.why_not
            else explanations[known.key]
            for known in self.directory.eligibility(method, tag)
        ]

    # ---- endpoints that left the directory -----------------------------------------------------------

    def _directory_changed(self) -> None:
        present = {endpoint.key for endpoint in self.directory.endpoints}
        for key in present & self._removed.keys():
            self._removed.pop(key).cancel()
        for key in self.connections.keys() - present - self._removed.keys():
            self._removed[key] = asyncio.get_running_loop().create_task(self._close_after_ttl(key))
        _set_all(self.watchers)

    def _replace(self, connection: EndpointConnection) -> None:
        """Take no new call on a connection; its calls may end."""
        closing = asyncio.get_running_loop().create_task(self._close_replaced(connection))
        self._replaced[closing] = connection
        closing.add_done_callback(lambda ended: self._replaced.pop(ended, None))

    async def _close_replaced(self, connection: EndpointConnection) -> None:
        await asyncio.sleep(REMOVED_ENDPOINT_TTL_S)  # a call that has picked it is yet to be sent
        await connection.channel.close(RENEWAL_GRACE_S)

    async def _close_after_ttl(self, key: str) -> None:
        await asyncio.sleep(REMOVED_ENDPOINT_TTL_S)
        self._removed.pop(key, None)
        if self.outliers.cleared(key):
            self._stop_probing(key)
        self.metrics.remove(key)
        connection = self.connections.pop(key, None)
        _set_all(self.watchers)
        if connection is not None:
            await connection.channel.close(CLOSE_GRACE_S)


def _set_all(watchers: Iterable[asyncio.Event]) -> None:
    for watcher in watchers:
        watcher.set()


def _explanation(candidate: Candidate, picked: Explanation | None, outlier: Outlier) -> Explanation:
    """Return the picker's explanation, or the reason why the picker was not offered the candidate (None)."""
    key, full = candidate.key, candidate.endpoint.weight
    if picked is not None and picked.standing is not Standing.CHOSEN and candidate.weight < full:
        why = f"weight {candidate.weight} of {full} by now; {picked.standing}: {picked.why}"
        return Explanation(key, Standing.WARMING_UP, why)
    if picked is not None:
        return picked
    if candidate.weight <= 0:
        return Explanation(key, Standing.WEIGHT_ZERO, "others have a weight")
    if outlier.out:
        left_s = max(0.0, outlier.until_s - time.monotonic())
        return Explanation(key, Standing.EJECTED, f"for another {left_s:.1f} s at least, because: {outlier.why}")
    return Explanation(key, Standing.UNREACHABLE, "the last attempt to connect to it failed or is late")


def _patience_s(deadline: Deadline) -> float:
    """Return for how many seconds a call waits for a provider to register: some time is left to make it."""
    left_s = deadline.remaining_s()
    return WAIT_FOR_PROVIDER_S if left_s is None else min(WAIT_FOR_PROVIDER_S, left_s * 0.8)


async def _route(directory: Directory, invocation: Invocation) -> tuple[Endpoint, ...]:
    try:
        return await directory.route(invocation.method.bare_name, invocation.tag, invocation.deadline)
    except TimeoutError as error:
        raise NeverSent(str(error)) from error


def _slice(deadline: Deadline, candidates: int) -> Deadline:
    """Return the part of a deadline that one endpoint may take to connect: a fair share, so that one that
    swallows packets leaves time for the others and for the call itself."""
    left_s = deadline.remaining_s()
    return deadline.at_most(CONNECT_SLICE_S if left_s is None else min(CONNECT_SLICE_S, left_s / (candidates + 1)))
