"""The order lock: clerks queue for a bill in ZooKeeper, and each holder gets a token that grows.

    /countinghouse/locks/<shard>/<order>-<nonce>-<sequence>       ephemeral, data: who (JSON)

    acquire():   create + list ──first──▶ held ──release()──▶ deleting ──▶ gone
                 (one round trip)           ▲
                      └─not first─▶ waiting ┘ watches its predecessor only; looks again when that goes

Invariants
1. Of an order's living nodes the one with the lowest sequence number holds. Numbers are signed 32-bit
   counters that wrap, so they are compared by their wrapped difference.
2. Tokens grow in holding order: a token is the node's czxid, and ZooKeeper gives numbers and zxids in
   the same order. Tokens compare within one generation of the ensemble (`coordination.generation`).
3. Whatever happens to a call (error, deadline, cancellation), its node ends: returned in a lease, or
   deleted in the background, or gone with its session. A create whose reply was lost is found by its nonce.
4. No call outlives its deadline, whoever leaves the queue meanwhile and whether or not ZooKeeper answers.
5. A lease is valid only while its own session is connected and surely not expired. That is a local
   promise; a process paused *after* asking is stopped by its fence, not by the lock.

Which function makes each move
    _join         nothing -> in the queue            _find        reply lost -> in the queue, or unknown
    _wait_turn    in the queue -> first              _discard     any -> deleting (background)
    OrderLease.release  held -> deleting             _delete_for_good, _sweep   deleting -> gone

What it does not do: a holder whose process was replaced keeps the order until its session expires;
nobody's node is ever deleted by somebody else.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
import zlib
from collections.abc import Coroutine, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from kazoo.exceptions import NoNodeError
from kazoo.protocol.states import ZnodeStat

from coordination import operations
from coordination.deadline import Deadline
from coordination.errors import LockLost, LockTimeout, Unavailable
from coordination.session import MAX_BATCH, Reply, Session, SessionState

log = logging.getLogger(__name__)

DEFAULT_ROOT = "/countinghouse/locks"
DEFAULT_SHARDS = 1024
SHARDS_PER_TRANSACTION = 128  # 128 creates are about 10 kB, well under ZooKeeper's 1 MB a request

LAST_LOOK_S = 0.05  # kept back from the deadline to learn who holds the order now (at most a tenth of it)
DELETE_TIMEOUT_S = 2.0  # one attempt of a background delete; it is repeated until the node is gone
DELETE_PAUSE_S = 0.2
SWEEP_PAUSES_S = (0.0, 0.5, 2.0)
"""When to look for a node whose create was never answered. ZooKeeper closes a session's old connection
before it opens the new one, so the first look should settle it; the others are for a request that was
already being read at that moment."""

_ORDER_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
# Java prints the number with %010d: ten characters, the sign included, so nine or ten digits after a sign.
_NODE = re.compile(r"([A-Za-z0-9_.:-]{1,64})-([0-9a-f]{16})-(\d{10}|-\d{9,10})")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who stands in a queue, as shown to the others.

    Attributes:
        clerk: the person's id.
        role: cashier or accountant.
        instance: the service process that acts for them.
        payment: the payment they are settling.
        since_ms: when they asked, Unix milliseconds by their own clock; for display only.
    """

    clerk: str
    role: str
    instance: str
    payment: str
    since_ms: int

    def to_json(self) -> bytes:
        """Return the node's data."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Holder:
        """Read a node's data; what is missing or malformed reads as "?" (or 0), for it is only shown."""
        try:
            fields = json.loads(data)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            fields = {}
        since_ms = fields.get("since_ms")
        return cls(
            clerk=str(fields.get("clerk", "?")),
            role=str(fields.get("role", "?")),
            instance=str(fields.get("instance", "?")),
            payment=str(fields.get("payment", "?")),
            since_ms=since_ms if isinstance(since_ms, int) else 0,
        )


@dataclass(frozen=True, slots=True)
class Place:
    """One node of an order's queue: position 0 holds; token is its czxid."""

    position: int
    token: int
    holder: Holder


@dataclass(frozen=True, slots=True)
class NodeName:
    """A lock node's name, taken apart."""

    order_id: str
    nonce: str
    sequence: int

    @classmethod
    def parse(cls, name: str) -> NodeName | None:
        """Take a name apart from the right, since order ids may hold '-'; None if it is not a lock's."""
        match = _NODE.fullmatch(name)
        return cls(match[1], match[2], int(match[3])) if match else None


def ahead_by(sequence: int, other: int) -> int:
    """Return how far `sequence` stands ahead of `other` in the queue; negative if behind it.

    ZooKeeper's counter is a signed 32-bit one that wraps, so 2147483647 stands one ahead of -2147483648.
    """
    return (other - sequence + 2**31) % 2**32 - 2**31


class OrderLocks:
    """The locks of all orders, over one session.

    Args:
        session: a started session; it may be away.
        root: directory of the shards.
        shards: how many directories the orders are spread over. Every process must use the same number.
    """

    def __init__(self, session: Session, *, root: str = DEFAULT_ROOT, shards: int = DEFAULT_SHARDS) -> None:
        self._session = session
        self._root = root
        self._shards = shards
        self._background: set[asyncio.Task[None]] = set()

    async def prepare(self, timeout_s: float) -> None:
        """Make the missing shard directories: some 0.2 s for all of them, 10 ms if none is missing. Idempotent.

        Several processes may do it at once. Without it `acquire` makes each shard when it is first needed.

        Raises:
            Unavailable: ZooKeeper is away, or not finished in time.
        """
        deadline = Deadline.after(timeout_s)
        await self._session.ensure_path(self._root, timeout_s=timeout_s)
        while True:
            present = set(await self._ask(operations.get_children(self._root), deadline))
            missing = [name for name in map(_shard_name, range(self._shards)) if name not in present]
            if not missing:
                return
            for start in range(0, len(missing), SHARDS_PER_TRANSACTION):
                batch = [f"{self._root}/{name}" for name in missing[start : start + SHARDS_PER_TRANSACTION]]
                if not await self._session.create_all(batch, timeout_s=_left(deadline)):
                    break  # somebody else is at it: see what is still missing

    async def acquire(self, order_id: str, holder: Holder, *, timeout_s: float) -> OrderLease:
        """Take an order's lock, waiting in line (first come, first served) for at most `timeout_s` seconds.

        Returns:
            The lease. Check `ensure()` before each side effect; `release()` it when done.

        Raises:
            LockTimeout: somebody else still held it, with who that was.
            Unavailable: ZooKeeper is away. Either error comes within `timeout_s` + 100 ms.
            ValueError: not an order id: 1–64 of A–Z a–z 0–9 _ . : -
        """
        return await self._acquire(order_id, holder, timeout_s, wait=True)

    async def enter(self, order_id: str, holder: Holder, *, timeout_s: float) -> OrderLease:
        """Take a place in line and its token, and go on WITHOUT waiting for one's turn.

        It excludes nobody. It exists to show what the other guards stop when the lock guard is switched off.

        Raises: as `acquire`, but never LockTimeout.
        """
        return await self._acquire(order_id, holder, timeout_s, wait=False)

    async def queue(self, order_id: str, *, timeout_s: float = 5.0) -> list[Place]:
        """Return an order's queue, the holder first; empty if nobody is there.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        _check_order_id(order_id)
        deadline = Deadline.after(timeout_s)
        shard = self._shard_of(order_id)
        return await self._places(shard, _line(await self._list(shard, deadline), order_id), deadline)

    async def queues(self, *, timeout_s: float = 5.0) -> dict[str, list[Place]]:
        """Return the queue of every order that has one, by order id. It reads all shards: for people.

        Raises:
            Unavailable: ZooKeeper is away.
        """
        deadline = Deadline.after(timeout_s)
        try:
            shards = sorted(await self._ask(operations.get_children(self._root), deadline))
        except NoNodeError:
            return {}
        paths = [f"{self._root}/{shard}" for shard in shards]
        listings = await self._ask_all([operations.get_children(path) for path in paths], deadline)
        queues: dict[str, list[Place]] = {}
        for path, names in zip(paths, listings, strict=True):
            for order_id in sorted({node.order_id for name in names or () if (node := NodeName.parse(name))}):
                if places := await self._places(path, _line(names, order_id), deadline):
                    queues[order_id] = places
        return queues

    async def drained(self, timeout_s: float | None = None) -> bool:
        """Wait until every background delete is done; False if that took longer than `timeout_s` seconds."""
        deadline = Deadline.after(timeout_s)
        while self._background and not deadline.expired():
            await asyncio.wait(set(self._background), timeout=deadline.remaining_s())
        return not self._background

    # ---- taking a place ------------------------------------------------------------------------------

    async def _acquire(self, order_id: str, holder: Holder, timeout_s: float, *, wait: bool) -> OrderLease:
        _check_order_id(order_id)
        started = time.monotonic()
        attempt = _Attempt(order_id, self._shard_of(order_id), holder, started, Deadline.after(timeout_s))
        while True:
            place, names = await self._join(attempt)
            try:
                first = not wait or await self._wait_turn(attempt, place, names)
            except BaseException:
                self._discard(place.path, place.session_id)
                raise
            if first:
                waited_s = time.monotonic() - started if attempt.waited_for else 0.0
                return OrderLease(self, order_id, place, waited_s, attempt.waited_for)
            # The session was lost while waiting, and the place with it: take another.

    async def _join(self, attempt: _Attempt) -> tuple[_Place, list[str]]:
        """Create our node and list the shard, in one round trip; returns our place and the names listed."""
        shard, deadline = attempt.shard, attempt.deadline
        while True:
            nonce = secrets.token_hex(8)
            create, listing = await self._session.send(
                operations.create(
                    f"{shard}/{attempt.order_id}-{nonce}-",
                    attempt.holder.to_json(),
                    ephemeral=True,
                    sequence=True,
                ),
                operations.get_children(shard),
                deadline=deadline,
            )
            try:
                path, stat = await self._session.receive(create, deadline)
            except NoNodeError:  # not prepared
                await self._session.ensure_path(shard, timeout_s=_left(deadline))
                continue
            except Unavailable:
                found = await self._find(attempt, nonce, create)
                if found is not None:
                    return found
                continue
            except BaseException:
                create.add_done_callback(partial(self._clear_up, shard, nonce))
                raise
            place = _Place(path, stat.czxid, stat.ephemeralOwner)
            try:
                return place, await self._session.receive(listing, deadline)
            except BaseException:
                self._discard(place.path, place.session_id)
                raise

    async def _find(self, attempt: _Attempt, nonce: str, create: Reply) -> tuple[_Place, list[str]] | None:
        """The create's reply was lost: look for the node by its nonce, in the time that is left.

        Returns the place, or None if there is no such node (yet: a sweep goes on looking).
        """
        session, deadline, shard = self._session, attempt.deadline, attempt.shard
        if not create.done():
            create.add_done_callback(partial(self._clear_up, shard, nonce))
            raise Unavailable("ZooKeeper did not reply in time", maybe_done=True)
        found: tuple[_Place, list[str]] | None = None
        try:
            synced, listing = await session.send(
                operations.sync(shard), operations.get_children(shard), deadline=deadline
            )
            await session.receive(synced, deadline)
            names = await session.receive(listing, deadline)
            mine = next((name for name in names if _has_nonce(name, nonce)), None)
            stat = await self._ask(operations.exists(f"{shard}/{mine}"), deadline) if mine else None
            if stat is not None and stat.ephemeralOwner == session.session_id:
                found = _Place(f"{shard}/{mine}", stat.czxid, stat.ephemeralOwner), names
            return found
        finally:
            if found is None:
                self._start(self._sweep(shard, nonce))

    def _clear_up(self, shard: str, nonce: str, create: Reply) -> None:
        """A create nobody waits for has ended: remove what it made."""
        if create.cancelled():
            return
        if (error := create.exception()) is None:
            path, stat = create.result()
            self._discard(path, stat.ephemeralOwner)
        elif not isinstance(error, NoNodeError):
            self._start(self._sweep(shard, nonce))

    # ---- waiting -------------------------------------------------------------------------------------

    async def _wait_turn(self, attempt: _Attempt, place: _Place, names: list[str]) -> bool:
        """Wait until `place` is first of its order: True. False if the place is gone, or will go with a
        session of before.

        Raises:
            LockTimeout, Unavailable: by the attempt's deadline.
        """
        try:
            return await self._stand_in_line(attempt, place, names)
        except Unavailable:
            if self._session.state is SessionState.CONNECTED and attempt.waited_for is not None:
                # Too slow for the last look, but not away: we do stand in line, and were told behind whom.
                raise attempt.timed_out() from None
            raise

    async def _stand_in_line(self, attempt: _Attempt, place: _Place, names: list[str]) -> bool:
        last_look = attempt.last_look()
        while True:
            line = _line(names, attempt.order_id)
            if place.name not in line or place.session_id != self._session.session_id:
                return False
            position = line.index(place.name)
            if position == 0:
                return True
            if last_look.expired():
                await self._note_holder(attempt, line[0])
                raise attempt.timed_out()
            gone = asyncio.Event()
            predecessor = f"{attempt.shard}/{line[position - 1]}"
            self._session.watch(predecessor, gone.set)
            try:
                # `get`, not `exists`: on a node that has just gone `exists` would leave a watch for ever.
                (watched,) = await self._session.send(
                    operations.get(predecessor, self._session.on_news), deadline=attempt.deadline
                )
                if await self._is_there(attempt, watched):
                    await self._note_holder(attempt, line[0])
                    await _wait_for(gone, last_look)
            except Unavailable:
                if attempt.deadline.expired():
                    raise
                # The connection dropped: the listing below waits for it to come back.
            finally:
                self._session.unwatch(predecessor, gone.set)
            names = await self._list(attempt.shard, attempt.deadline)

    async def _note_holder(self, attempt: _Attempt, name: str) -> None:
        """Read whose node this is, for the error or the lease to tell."""
        if attempt.holder_node == name:
            return
        try:
            data, _ = await self._ask(operations.get(f"{attempt.shard}/{name}"), attempt.deadline)
        except NoNodeError:
            return  # it has just released
        attempt.holder_node, attempt.waited_for = name, Holder.from_json(data)

    async def _is_there(self, attempt: _Attempt, watched: Reply) -> bool:
        try:
            await self._session.receive(watched, attempt.deadline)
        except NoNodeError:
            return False
        return True

    # ---- going away ----------------------------------------------------------------------------------

    def _discard(self, path: str, session_id: int) -> None:
        """Delete a node of ours in the background."""
        self._start(self._delete_for_good(path, session_id))

    async def _delete_for_good(self, path: str, session_id: int) -> None:
        """Delete until the node is gone, or its session is, which takes the node along."""
        while self._session.session_id == session_id:
            try:
                await self._session.delete(path, timeout_s=DELETE_TIMEOUT_S)
            except NoNodeError:
                return
            except Unavailable:
                await asyncio.sleep(DELETE_PAUSE_S)
            else:
                return

    async def _sweep(self, shard: str, nonce: str) -> None:
        """Find and delete the node of a create whose reply was lost, or become sure that there is none."""
        session_id = self._session.session_id
        for pause_s in SWEEP_PAUSES_S:
            await asyncio.sleep(pause_s)
            while self._session.session_id == session_id and session_id is not None:
                try:
                    names = await self._list(shard, Deadline.after(DELETE_TIMEOUT_S), sync=True)
                except NoNodeError:
                    return
                except Unavailable:
                    await asyncio.sleep(DELETE_PAUSE_S)
                    continue
                if mine := next((name for name in names if _has_nonce(name, nonce)), None):
                    await self._delete_for_good(f"{shard}/{mine}", session_id)
                    return
                break

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a lock node could not be removed", exc_info=error)

    # ---- reading -------------------------------------------------------------------------------------

    def _shard_of(self, order_id: str) -> str:
        return f"{self._root}/{_shard_name(zlib.crc32(order_id.encode()) % self._shards)}"

    async def _list(self, shard: str, deadline: Deadline, *, sync: bool = False) -> list[str]:
        if sync:
            await self._ask(operations.sync(shard), deadline)
        try:
            names: list[str] = await self._ask(operations.get_children(shard), deadline)
        except NoNodeError:
            return []
        return names

    async def _places(self, shard: str, line: list[str], deadline: Deadline) -> list[Place]:
        found = await self._ask_all([operations.get(f"{shard}/{name}") for name in line], deadline)
        alive: list[tuple[bytes, ZnodeStat]] = [node for node in found if node is not None]
        return [Place(position, stat.czxid, Holder.from_json(data)) for position, (data, stat) in enumerate(alive)]

    async def _ask(self, operation: operations.Operation, deadline: Deadline) -> Any:
        (reply,) = await self._session.send(operation, deadline=deadline)
        return await self._session.receive(reply, deadline)

    async def _ask_all(self, requests: list[operations.Operation], deadline: Deadline) -> list[Any]:
        """Ask many things, pipelined; None stands for a node that is not there."""
        replies: list[Reply] = []
        for start in range(0, len(requests), MAX_BATCH):
            replies += await self._session.send(*requests[start : start + MAX_BATCH], deadline=deadline)
        answers: list[Any] = []
        for reply in replies:
            try:
                answers.append(await self._session.receive(reply, deadline))
            except NoNodeError:
                answers.append(None)
        return answers


class OrderLease:
    """The right to act on one order, for as long as it is valid. Made by `OrderLocks.acquire`.

    Attributes:
        order_id: the order.
        token: grows with every holder of the order; with the generation it is the fence.
        waited_s: seconds spent in line; 0.0 if there was nobody.
        waited_for: who held the order when last looked before our turn; None if nobody did.
    """

    def __init__(
        self,
        locks: OrderLocks,
        order_id: str,
        place: _Place,
        waited_s: float,
        waited_for: Holder | None,
    ) -> None:
        self.order_id = order_id
        self.token = place.token
        self.waited_s = waited_s
        self.waited_for = waited_for
        self._locks = locks
        self._place = place
        self._released = False

    def valid(self) -> bool:
        """Tell whether a side effect may begin now: not released, connected, session surely not expired."""
        return not self._released and self._locks._session.believes_in(self._place.session_id)

    def ensure(self) -> None:
        """Do nothing if `valid()`.

        Raises:
            LockLost: it is not.
        """
        if not self.valid():
            raise LockLost(self.order_id)

    def release(self) -> None:
        """Give the order up. Returns at once; the node is deleted in the background, tried again until it is
        gone or its session has ended. Idempotent. Must be called on the event loop."""
        if not self._released:
            self._released = True
            self._locks._discard(self._place.path, self._place.session_id)

    async def aclose(self) -> None:
        """Same as `release`, for ``contextlib.aclosing``."""
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<OrderLease {self.order_id} token={self.token} valid={self.valid()}>"


@dataclass(frozen=True, slots=True)
class _Place:
    """A node of ours: its path, its czxid, and the session it lives and dies with."""

    path: str
    token: int
    session_id: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass(slots=True)
class _Attempt:
    """One call of `acquire`, and what it has learned so far."""

    order_id: str
    shard: str
    holder: Holder
    started: float
    deadline: Deadline
    holder_node: str = ""
    waited_for: Holder | None = None

    def timed_out(self) -> LockTimeout:
        return LockTimeout(self.order_id, self.waited_for, time.monotonic() - self.started)

    def last_look(self) -> Deadline:
        """When to stop waiting: early enough to look once more who holds the order."""
        return Deadline(self.deadline.at - min(LAST_LOOK_S, (self.deadline.at - self.started) / 10))


def _check_order_id(order_id: str) -> None:
    if not _ORDER_ID.fullmatch(order_id):
        raise ValueError(f"not an order id (1-64 of A-Z a-z 0-9 _ . : -): {order_id!r}")


def _shard_name(number: int) -> str:
    return f"{number:04d}"


def _line(names: Iterable[str], order_id: str) -> list[str]:
    """Return the names of one order's nodes in queue order."""
    nodes = [(name, node.sequence) for name in names if (node := NodeName.parse(name)) and node.order_id == order_id]
    if not nodes:
        return []
    some = nodes[0][1]
    return [name for name, _ in sorted(nodes, key=lambda node: ahead_by(some, node[1]))]


def _has_nonce(name: str, nonce: str) -> bool:
    node = NodeName.parse(name)
    return node is not None and node.nonce == nonce


def _left(deadline: Deadline) -> float:
    """Return the seconds left of a deadline that every call here has."""
    return deadline.remaining_s() or 0.0


async def _wait_for(event: asyncio.Event, deadline: Deadline) -> None:
    """Wait for the event, or until the deadline: which of them, the caller sees by looking."""
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            await event.wait()
    except TimeoutError:
        return
