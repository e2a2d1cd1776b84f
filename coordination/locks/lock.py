"""Locks in ZooKeeper: holders queue for a resource, and each of them gets a token that grows.

    acquire():   create + list ──first──▶ held ──release()──▶ deleting ──▶ gone
                 (one round trip)           ▲                  (coordination.locks.cleanup)
                      └─not first─▶ waiting ┘ watches its predecessor only; lists again when that goes

    acquire_all() is the same for many resources: one transaction creates all their nodes, one request lists all
    their shards in the same round trip, and then it waits in one queue after the other.

Invariants
1. Of a resource's nodes the one with the lowest sequence number holds. Numbers are signed 32-bit
   counters that wrap, so they are compared by their wrapped difference.
2. Tokens grow in holding order: a token is the node's czxid, and ZooKeeper gives numbers and zxids in
   the same order. All nodes of one batch share a czxid. Tokens compare within one generation of the ensemble
   (`coordination.locks.generation`).
3. A batch takes its places in all its queues at one zxid, all or none. So of two that meet in several queues
   the same one is ahead in each of them: waiting goes from greater zxids to smaller ones only, and no circle
   can form. (A caller that takes a second lock while holding a first one takes places at two zxids, and is not
   covered: take them together.)
4. Whatever happens to a call (error, deadline, cancellation), its nodes end: returned in a lease, or
   deleted in the background, or gone with their session. A create whose reply was lost is found by its nonce.
5. No call outlives its deadline, also if predecessors leave the queues meanwhile or ZooKeeper does not answer.
6. In a forked child every call raises WrongProcess at once.

Which function makes each move
    _join         nothing -> in the queues           _find        reply lost -> in the queues, or unknown
    _wait_turns   in the queues -> first             Removal.delete  any -> deleting (background)
    LockLease.release  held -> deleting              Removal         deleting -> gone

What it does not do: a holder whose process was replaced keeps the resource until its session expires; no process
deletes another's node.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from kazoo.exceptions import KazooException, NoNodeError
from kazoo.protocol.states import ZnodeStat

from coordination.deadline import Deadline
from coordination.errors import Refused, Unavailable, WrongProcess
from coordination.locks.cleanup import Nodes, Removal, sync_and_list
from coordination.locks.errors import LockTimeout
from coordination.locks.lease import BatchLease, LockLeases, ResourceLease
from coordination.locks.lock_node import (
    MAX_HOLDER_BYTES,
    Holder,
    NodeName,
    Place,
    check_resource_id,
    made_by,
    queue_of,
    shard_name,
    shard_of,
)
from coordination.metrics import Metrics
from coordination.session import requests
from coordination.session.error_codes import outcome
from coordination.session.in_flight import Reply
from coordination.session.session import Session, SessionState

__all__ = ["BatchLease", "Holder", "Place", "ResourceLease", "ResourceLocks"]

_T = TypeVar("_T")

DEFAULT_SHARDS = 1024
SHARDS_PER_TRANSACTION = 128  # 128 creates are about 10 kB, well under ZooKeeper's 1 MB a request
#: Resources in one batch: a transaction of some 150 kB, which occupies ZooKeeper for some 10 ms.
MAX_RESOURCES = 500

#: Between reads that ZooKeeper refuses: it throttles, or a right is missing for now. A waiter keeps its place.
REFUSED_PAUSE_S = 0.1
LAST_LOOK_S = 0.05  # reserved of the timeout for reading the present holder (at most a tenth of it)


class ResourceLocks:
    """The locks of all resources, over one session.

    Args:
        session: a started session; it may be away.
        root: directory of the shards.
        shards: how many directories the resources are spread over. Every process must use the same number.
        metrics: counts what happens to locks.
    """

    def __init__(
        self,
        session: Session,
        *,
        root: str,
        shards: int = DEFAULT_SHARDS,
        metrics: Metrics | None = None,
    ) -> None:
        self._session = session
        self._root = root
        self._shards = shards
        self._metrics = metrics or Metrics()
        self._nonces = random.Random()  # a child that would repeat them is refused; the system's cost 15 µs each
        self._removal = Removal(session, self._metrics)
        self._leases = LockLeases(session, self._removal, self._metrics)

    async def prepare(self, timeout_s: float) -> None:
        """Create the missing shard directories: some 0.2 s for all of them, 10 ms if none is missing. Idempotent.

        Several processes may do it at once. Without it `acquire` creates each shard when it is first needed.

        Raises:
            Unavailable: ZooKeeper is away, or not finished in time.
        """
        deadline = Deadline.after(timeout_s)
        await self._session.ensure_path(self._root, timeout_s=timeout_s)
        while True:
            present = set(await self._session.ask(requests.get_children(self._root), deadline))
            missing = [name for name in map(shard_name, range(self._shards)) if name not in present]
            if not missing:
                return
            for start in range(0, len(missing), SHARDS_PER_TRANSACTION):
                batch = [f"{self._root}/{name}" for name in missing[start : start + SHARDS_PER_TRANSACTION]]
                if not await self._session.create_all(batch, timeout_s=_left(deadline)):
                    break  # another process is creating them: list again

    async def acquire(self, resource_id: str, holder: Holder, *, timeout_s: float) -> ResourceLease:
        """Take a resource's lock, waiting in the queue (first come, first served) for at most `timeout_s` seconds.

        Returns:
            The lease. Call `ensure()` before each side effect; `release()` it when done.

        Raises:
            LockTimeout: another holder still had it; the error names it.
            Unavailable: ZooKeeper is away, or refused. Either error comes within `timeout_s` + 100 ms.
            ValueError: not a resource id: 1–64 of A–Z a–z 0–9 _ . : -
        """
        (lease,) = await self._acquire((resource_id,), holder, timeout_s, wait=True)
        return lease

    async def acquire_all(self, resource_ids: Sequence[str], holder: Holder, *, timeout_s: float) -> BatchLease:
        """Take the locks of many resources at once: all of them, or none.

        The places in all queues are taken in one step, so that overlapping batches never deadlock; then each
        resource's turn is waited for.

        Args:
            resource_ids: 1 to `MAX_RESOURCES` different ones, of any shards.

        Returns:
            One lease for all of them, which has the lease of each.

        Raises:
            LockTimeout: another holder still had one of them; the error names the first such resource and its holder.
            Unavailable: ZooKeeper is away, or refused. Either error comes within `timeout_s` + 100 ms.
            ValueError: not resource ids, one of them twice, none, or too many.
        """
        if not 1 <= len(resource_ids) <= MAX_RESOURCES:
            raise ValueError(f"a batch is 1 to {MAX_RESOURCES} resources, not {len(resource_ids)}")
        if len(set(resource_ids)) < len(resource_ids):
            twice = next(resource_id for resource_id in resource_ids if resource_ids.count(resource_id) > 1)
            raise ValueError(f"{twice} is in the batch twice")
        return self._leases.bind(await self._acquire(tuple(resource_ids), holder, timeout_s, wait=True))

    async def enter(self, resource_id: str, holder: Holder, *, timeout_s: float) -> ResourceLease:
        """Take a place in the queue and its token, WITHOUT waiting for the turn.

        It excludes no other holder. It is for experiments that switch the lock off to show what other safeguards stop.

        Raises: as `acquire`, but never LockTimeout.
        """
        (lease,) = await self._acquire((resource_id,), holder, timeout_s, wait=False)
        return lease

    async def queue(self, resource_id: str, *, timeout_s: float = 5.0) -> list[Place]:
        """Return a resource's queue, the holder first; empty if it is not locked.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        check_resource_id(resource_id)
        deadline = Deadline.after(timeout_s)
        shard = self._shard_of(resource_id)
        return await self._places(shard, queue_of(resource_id, await self._list(shard, deadline)), deadline)

    async def queues(self, *, timeout_s: float = 5.0) -> dict[str, list[Place]]:
        """Return the queue of every resource that has one, by resource id. It reads all shards.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        deadline = Deadline.after(timeout_s)
        try:
            shards = sorted(await self._session.ask(requests.get_children(self._root), deadline))
        except NoNodeError:
            return {}
        paths = [f"{self._root}/{shard}" for shard in shards]
        reply = await self._session.ask(requests.get_children_of(paths), deadline) if paths else []
        queues: dict[str, list[Place]] = {}
        for path, names in requests.names_of(paths, reply).items():
            for resource_id in sorted({node.resource_id for name in names if (node := NodeName.parse(name))}):
                if places := await self._places(path, queue_of(resource_id, names), deadline):
                    queues[resource_id] = places
        return queues

    async def drained(self, timeout_s: float | None = None) -> bool:
        """Wait until every background delete is done; False if that took longer than `timeout_s` seconds."""
        self._session.check_process()
        return await self._removal.drained(Deadline.after(timeout_s))

    # ---- taking places -------------------------------------------------------------------------------

    async def _acquire(
        self, resource_ids: tuple[str, ...], holder: Holder, timeout_s: float, *, wait: bool
    ) -> list[ResourceLease]:
        attempt = self._attempt(resource_ids, holder, timeout_s)
        outcome = "unavailable"
        try:
            leases = await self._take(attempt, wait=wait)
            outcome = "held"
            return leases
        except LockTimeout:
            outcome = "timeout"
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self._metrics.lock_acquire_seconds.labels(outcome).observe(time.monotonic() - attempt.started)
            if attempt.queued:
                self._metrics.locks_waiting.dec()

    def _attempt(self, resource_ids: tuple[str, ...], holder: Holder, timeout_s: float) -> _Attempt:
        for resource_id in resource_ids:
            check_resource_id(resource_id)
        data = holder.to_json()
        if len(data) > MAX_HOLDER_BYTES:
            raise ValueError(f"a holder is described in {MAX_HOLDER_BYTES} bytes at most, not {len(data)}")
        shards = {resource_id: self._shard_of(resource_id) for resource_id in resource_ids}
        return _Attempt(shards, data, time.monotonic(), Deadline.after(timeout_s))

    async def _take(self, attempt: _Attempt, *, wait: bool) -> list[ResourceLease]:
        while True:
            taken, listings = await self._join(attempt)
            try:
                first = not wait or await self._wait_turns(attempt, taken, listings)
            except BaseException:
                self._removal.delete(taken.nodes)
                raise
            if first:
                waited_s = time.monotonic() - attempt.started if attempt.queued else 0.0
                return self._leases.issue(tuple(attempt.shards), taken.nodes, taken.token, waited_s, attempt.waited_for)
            # The session was lost while waiting, and the places with it: take others.

    async def _join(self, attempt: _Attempt) -> tuple[_Taken, _Listings]:
        """Create our nodes and list their shards, in one round trip; return both."""
        deadline, shards = attempt.deadline, attempt.distinct_shards()
        while True:
            nonce = f"{self._nonces.getrandbits(64):016x}"
            made, listing = await self._session.send(
                self._creation(attempt, nonce), requests.get_children_of(shards), deadline=deadline
            )
            session_id = self._session.session_id or 0  # of `made`, if it is answered: a loss would have failed it
            try:
                taken = _taken(await self._session.receive(made, deadline), session_id)
            except NoNodeError:  # not prepared
                await self._make(shards, deadline)
                continue
            except Refused:
                raise
            except Unavailable:
                found = await self._find(attempt, nonce, made, session_id)
                if found is not None:
                    return found
                continue
            except BaseException:
                made.add_done_callback(partial(self._clear_up, shards, nonce, session_id))
                raise
            try:
                return taken, await self._listed(shards, listing, deadline)
            except BaseException:
                self._removal.delete(taken.nodes)
                raise

    def _creation(self, attempt: _Attempt, nonce: str) -> requests.Operation:
        prefixes = [f"{shard}/{resource_id}-{nonce}-" for resource_id, shard in attempt.shards.items()]
        if len(prefixes) == 1:
            return requests.create(prefixes[0], attempt.data, ephemeral=True, sequence=True)
        creates = [requests.Create(prefix, attempt.data, ephemeral=True, sequence=True) for prefix in prefixes]
        # A transaction does not return the czxid of what it created. It returns the zxid of a write, which is the same.
        return requests.transaction([*creates, requests.Replace(self._root, b"")])

    async def _make(self, shards: Sequence[str], deadline: Deadline) -> None:
        for shard in shards:
            await self._session.ensure_path(shard, timeout_s=_left(deadline))

    async def _find(
        self, attempt: _Attempt, nonce: str, made: Reply, session_id: int
    ) -> tuple[_Taken, _Listings] | None:
        """Look for the nodes of a create whose reply was lost, by their nonce, in the time that is left.

        Returns:
            The places, or None if there are no such nodes (yet: a sweep goes on looking).
        """
        session, deadline, shards = self._session, attempt.deadline, attempt.distinct_shards()
        if not made.done():
            made.add_done_callback(partial(self._clear_up, shards, nonce, session_id))
            raise Unavailable("ZooKeeper did not reply in time", maybe_done=True)
        found: tuple[_Taken, _Listings] | None = None
        try:
            listings = await self._trying(lambda: sync_and_list(session, shards, deadline), deadline)
            paths = made_by(nonce, listings)
            ours = tuple(paths[resource_id] for resource_id in attempt.shards if resource_id in paths)
            stat = await session.ask(requests.exists(ours[0]), deadline) if ours else None
            if stat is not None and stat.ephemeralOwner == session.session_id:
                found = _Taken(Nodes(ours, stat.ephemeralOwner), stat.czxid), listings
            return found
        finally:
            if found is None:
                self._removal.sweep(shards, nonce)

    def _clear_up(self, shards: Sequence[str], nonce: str, session_id: int, made: Reply) -> None:
        """Delete the nodes of a create whose caller has gone."""
        error = made.exception()
        if error is None:
            with contextlib.suppress(KazooException, Unavailable):  # it was refused
                self._removal.delete(_taken(made.result(), session_id).nodes)
        elif isinstance(error, Exception) and isinstance(away := outcome(error), Unavailable) and away.maybe_done:
            self._removal.sweep(shards, nonce)

    # ---- waiting -------------------------------------------------------------------------------------

    async def _wait_turns(self, attempt: _Attempt, taken: _Taken, listings: _Listings) -> bool:
        """Wait until we are first in every queue.

        Returns:
            True; or False if the places are gone, or will go with an earlier session.

        One queue after the other: a place that is first stays first, and those in the other queues move up meanwhile.

        Raises:
            LockTimeout, Unavailable: by the attempt's deadline.
        """
        for (resource_id, shard), path in zip(attempt.shards.items(), taken.nodes.paths, strict=True):
            turn = _Turn(resource_id, shard, path.rpartition("/")[2], taken.nodes.session_id)
            try:
                if not await self._wait_turn(attempt, turn, listings[shard]):
                    return False
            except Unavailable:
                if self._session.state is SessionState.CONNECTED and resource_id in attempt.waited_for:
                    # Too slow for the last read, but not away: we are queued, and know behind which holder.
                    raise attempt.timed_out(resource_id) from None
                raise
        return True

    async def _wait_turn(self, attempt: _Attempt, turn: _Turn, names: list[str]) -> bool:
        last_look = attempt.last_look()
        while True:
            line = queue_of(turn.resource_id, names)
            if turn.name not in line or turn.session_id != self._session.session_id:
                return False
            position = line.index(turn.name)
            if position == 0:
                return True
            if not attempt.queued:
                attempt.queued = True
                self._metrics.locks_waiting.inc()
            if last_look.expired():
                await self._note_holder(attempt, turn, line[0])
                raise attempt.timed_out(turn.resource_id)
            await self._watch(attempt, turn, line[position - 1], line[0], last_look)
            names = await self._list(turn.shard, attempt.deadline)

    async def _watch(self, attempt: _Attempt, turn: _Turn, predecessor: str, holder: str, last_look: Deadline) -> None:
        """Return when the predecessor may have gone, or when it is time for the last read."""
        gone = asyncio.Event()
        path = f"{turn.shard}/{predecessor}"
        self._session.watches.add(path, gone.set)
        try:
            # `get`, not `exists`: on a node that has just gone `exists` would leave a watch for ever.
            data, _ = await self._session.ask(requests.get(path, watch=True), attempt.deadline)
            if predecessor == holder:
                attempt.waited_for[turn.resource_id] = Holder.from_json(data)
            else:
                await self._note_holder(attempt, turn, holder)
            await _wait_for(gone, last_look)
        except NoNodeError:
            return
        except Unavailable:  # the connection dropped: the listing that follows waits for it to come back
            if attempt.deadline.expired():
                raise
        finally:
            self._session.watches.remove(path, gone.set)

    async def _note_holder(self, attempt: _Attempt, turn: _Turn, name: str) -> None:
        """Read the holder of a node, for the error or the lease."""
        if turn.holder == name:
            return
        try:
            data, _ = await self._session.ask(requests.get(f"{turn.shard}/{name}"), attempt.deadline)
        except NoNodeError:
            return  # it has just released
        turn.holder = name
        attempt.waited_for[turn.resource_id] = Holder.from_json(data)

    # ---- reading -------------------------------------------------------------------------------------

    def _shard_of(self, resource_id: str) -> str:
        return f"{self._root}/{shard_of(resource_id, self._shards)}"

    async def _list(self, shard: str, deadline: Deadline) -> list[str]:
        try:
            names: list[str] = await self._trying(
                lambda: self._session.ask(requests.get_children(shard), deadline), deadline
            )
        except NoNodeError:
            return []
        return names

    async def _listed(self, shards: Sequence[str], listing: Reply, deadline: Deadline) -> _Listings:
        """Return the reply of a listing; if it was lost, list again."""
        try:
            reply = await self._session.receive(listing, deadline)
        except Unavailable:
            again = requests.get_children_of(shards)
            reply = await self._trying(lambda: self._session.ask(again, deadline), deadline)
        return requests.names_of(shards, reply)

    async def _trying(self, read: Callable[[], Awaitable[_T]], deadline: Deadline) -> _T:
        """Read again when the connection drops, or ZooKeeper refuses for now, until the deadline."""
        while True:
            try:
                return await read()
            except WrongProcess:
                raise
            except Unavailable as error:
                if deadline.expired() or self._session.state is SessionState.CLOSED:
                    raise
                if isinstance(error, Refused):
                    await asyncio.sleep(min(REFUSED_PAUSE_S, _left(deadline)))

    async def _places(self, shard: str, line: list[str], deadline: Deadline) -> list[Place]:
        found = await self._session.ask_all([requests.get(f"{shard}/{name}") for name in line], deadline)
        alive: list[tuple[bytes, ZnodeStat]] = [node for node in found if node is not None]
        return [Place(position, stat.czxid, Holder.from_json(data)) for position, (data, stat) in enumerate(alive)]


#: The names in each shard, by its path.
_Listings = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Taken:
    """Places of ours, one in each queue, and the zxid at which all were taken."""

    nodes: Nodes
    token: int


@dataclass(slots=True)
class _Attempt:
    """One call of `acquire` or `acquire_all`, and what it has learned so far.

    Attributes:
        shards: the path of each resource's shard.
        data: the holder, as it is written into the nodes.
        queued: whether it had to wait.
        waited_for: the holder of each resource when last read.
    """

    shards: dict[str, str]
    data: bytes
    started: float
    deadline: Deadline
    queued: bool = False
    waited_for: dict[str, Holder] = field(default_factory=dict)

    def distinct_shards(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.shards.values()))

    def timed_out(self, resource_id: str) -> LockTimeout:
        return LockTimeout(resource_id, self.waited_for.get(resource_id), time.monotonic() - self.started)

    def last_look(self) -> Deadline:
        """Return when to stop waiting: early enough to read the present holder."""
        return Deadline(self.deadline.at - min(LAST_LOOK_S, (self.deadline.at - self.started) / 10))


@dataclass(slots=True)
class _Turn:
    """Our place in one queue; `holder` is the node last known to be first."""

    resource_id: str
    shard: str
    name: str
    session_id: int
    holder: str = ""


def _taken(made: Any, session_id: int) -> _Taken:
    """Read the reply to `ResourceLocks._creation`.

    Raises:
        NoNodeError: a shard is missing, so nothing was made.
        Refused: ZooKeeper did not make them.
    """
    if isinstance(made, tuple):
        path, stat = made
        return _Taken(Nodes((path,), stat.ephemeralOwner), stat.czxid)
    if (refusal := requests.refusal(made)) is not None:
        raise outcome(refusal)
    *paths, written = made
    return _Taken(Nodes(tuple(paths), session_id), written.mzxid)


def _left(deadline: Deadline) -> float:
    """Return the seconds left; every deadline here is finite."""
    return deadline.remaining_s() or 0.0


async def _wait_for(event: asyncio.Event, deadline: Deadline) -> None:
    """Wait for the event, or until the deadline; the caller checks which came."""
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await event.wait()
    except TimeoutError:
        return
