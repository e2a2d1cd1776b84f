"""A ZooKeeper session for asyncio: kazoo inside, awaitables with deadlines outside.

                     start()
                        │
                        ▼   connected, new session
                   CONNECTING ──────────────────▶ CONNECTED ◀──────────┐
                                                   │   ▲               │
                                  connection drops │   │ same session  │ new session
                                                   ▼   │               │
                                                  SUSPENDED ────────▶ LOST
                                                        session expired
                   any state ── close() ──▶ CLOSED

Invariants
1. No call blocks the event loop, and no call outlives its deadline by more than scheduling: a reply that
   comes too late finds a future nobody waits for. Who must act on late replies takes the future itself
   (`send`).
2. kazoo's threads touch nothing here but the mailbox (in_flight.py) and the loop's wake-up; state, watches
   and replies change on the loop only, in the order in which they came.
3. Requests of one `send` reach ZooKeeper in order and in one piece: two of them cost one round trip. What is
   sent in one turn of the loop leaves in one piece, whoever sent it.
4. A connection that drops fails every request in flight (its effect is then unknown:
   `Unavailable.maybe_done`) and fires every watch, in the same turn as the state changes. A watch callback
   means "look again", never "this has happened".
5. Requests are handed over only while CONNECTED, and at most SLOTS * MAX_BATCH of `send` at a time, so that a
   deadline is kept by waiting here and not in a queue nobody can leave. `post` passes by: it is for undoing.
6. The session is sought for ever, until close().

Which function makes each move
    _connected    CONNECTING | SUSPENDED | LOST -> CONNECTED
    _suspended    CONNECTED -> SUSPENDED
    _lost         CONNECTED | SUSPENDED -> LOST
    close         any -> CLOSED
    _client_ended a kazoo client that gave up (authentication, a server that is no ZooKeeper) is built anew
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

from kazoo.client import KazooClient
from kazoo.exceptions import ConnectionLoss, KazooException, NoAuthError, NodeExistsError, NoNodeError
from kazoo.protocol.states import KazooState, ZnodeStat

from coordination.deadline import Deadline
from coordination.errors import Forbidden, Refused, Unavailable, WrongProcess
from coordination.metrics import Metrics
from coordination.session import requests
from coordination.session.address import EnsembleAddress
from coordination.session.error_codes import outcome
from coordination.session.in_flight import Mailbox, PendingReply, Reply, Slot, done_by
from coordination.session.liveness import AcknowledgedConnection, Backoff
from coordination.session.pipeline import PollingHandler
from coordination.session.requests import Create, Operation, Request

log = logging.getLogger(__name__)

SLOTS = 64
MAX_BATCH = 64
FIRST_RETRY_S = 0.05
MAX_RETRY_S = 0.7  # kazoo adds up to 40 % jitter: about a second
REBUILD_AFTER_S = 1.0
DEFAULT_TIMEOUT_S = 5.0

Watch = Callable[[], object]
"""Called once, on the loop, when what was read may have changed or the connection dropped: look again."""


class SessionState(enum.Enum):
    """Where the session is, and what a caller may still assume."""

    CONNECTING = "connecting"
    """No session yet. Nothing of ours is in ZooKeeper."""

    CONNECTED = "connected"
    """The session lives and ZooKeeper answers, as far as is known. Until `valid_until()` our nodes are
    surely there; past it assume nothing, even though the state still says CONNECTED (the process may have
    been paused)."""

    SUSPENDED = "suspended"
    """The connection dropped; the session may live or expire without our hearing of it. Our nodes are there
    until `valid_until()`. Begin no new side effect that relies on a lock. Lists read before may be out
    of date."""

    LOST = "lost"
    """ZooKeeper ended the session: every ephemeral node of ours is gone, others may hold our locks. A new
    session is being sought."""

    CLOSED = "closed"
    """`close()` was called. Nothing comes back; ephemeral nodes go at once, or when the session expires if
    ZooKeeper could not be told."""


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change of state, as told to subscribers.

    Attributes:
        state: the state entered.
        session_id: the session it is about; None if there is none.
        new_session: on CONNECTED, True if this is not the session we had before (register and subscribe
            again), False for the same one reconnected (read again). False for every other state.
    """

    state: SessionState
    session_id: int | None
    new_session: bool = False


class Session:
    """One ZooKeeper session at a time, kept for as long as this object is open.

    Args:
        hosts: the ensemble's address, in any spelling of `coordination.session.address`.
        timeout_s: session timeout to ask for, seconds; ZooKeeper bounds it to 2–20 of its ticks.
        name: shown in log lines.
        metrics: counts the changes of state.
    """

    def __init__(self, hosts: str, *, timeout_s: float = 4.0, name: str = "", metrics: Metrics | None = None) -> None:
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._name = name or "session"
        self._metrics = metrics or Metrics()
        self._state = SessionState.CONNECTING
        self._session_id: int | None = None
        self._started_in_pid: int | None = None
        self._client: KazooClient | None = None
        self._connection: AcknowledgedConnection | None = None
        self._up = asyncio.Event()  # set while CONNECTED, and for good once CLOSED
        self._slots = asyncio.Semaphore(SLOTS)
        self._in_flight: set[PendingReply] = set()
        self._outbox: list[tuple[Request, PendingReply]] = []
        self._watches: dict[str, set[Watch]] = {}
        self._followers: list[tuple[str, Callable[[int, str], object]]] = []
        self._subscribers: list[Callable[[SessionChange], None]] = []

    # ---- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect in the background. Never fails because ZooKeeper is absent.

        Raises:
            BadAddress: `hosts` cannot be understood.
            RuntimeError: started twice.
        """
        if self._client is not None or self._state is SessionState.CLOSED:
            raise RuntimeError("a Session is started once")
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(self._loop, self._name)
        self._hosts = str(EnsembleAddress.parse(self._hosts))
        self._started_in_pid = os.getpid()
        self._build_client()

    async def close(self, timeout_s: float = 2.0) -> None:
        """End the session, so that its ephemeral nodes go at once. Idempotent.

        Returns within `timeout_s` + 100 ms even if ZooKeeper is frozen; the nodes then go when it expires.
        """
        if self._state is SessionState.CLOSED:
            return
        polite = self._state is SessionState.CONNECTED
        self._enter(SessionState.CLOSED)
        self._session_id = None
        self._fail_in_flight()
        self._fire_watches()
        self._up.set()
        if self._client is None or self._started_in_pid != os.getpid():
            return
        stopped = self._stop_in_background(self._client)
        if polite:
            await asyncio.wait({stopped}, timeout=timeout_s)
        if not stopped.done() and self._connection is not None:
            self._connection.abort()
            await asyncio.wait({stopped}, timeout=0.05 if polite else timeout_s)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # ---- what is known -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name given, for log lines."""
        return self._name

    @property
    def state(self) -> SessionState:
        """The present state; see `SessionState` for what may be assumed."""
        return self._state

    @property
    def session_id(self) -> int | None:
        """The session we have (also while SUSPENDED); None before the first and after LOST or CLOSED."""
        return self._session_id

    @property
    def last_zxid(self) -> int:
        """The newest zxid that ZooKeeper has told this session; 0: none. After a `sync`, no older than the leader's."""
        return int(self._client.last_zxid) if self._client is not None else 0

    def valid_until(self) -> float:
        """Return the monotonic time (seconds) until which the present session has surely not expired.

        It is the send time of the last packet ZooKeeper acknowledged, plus the negotiated timeout, less a
        margin (`coordination.session.liveness`). Minus infinity without a session.
        """
        validity = self._connection.validity if self._connection is not None else None
        if validity is None or validity.session_id != self._session_id:
            return float("-inf")
        return validity.until

    def is_valid(self, session_id: int) -> bool:
        """Tell whether `session_id` is the present session, connected, and surely not expired now."""
        return (
            self._state is SessionState.CONNECTED
            and self._session_id == session_id
            and time.monotonic() < self.valid_until()
            and self._started_in_pid == os.getpid()
        )

    def check_process(self) -> None:
        """Do nothing in the process that started the session.

        Raises:
            WrongProcess: this is a child of it, forked since.
            RuntimeError: nobody has started it.
        """
        if self._started_in_pid is None:
            raise RuntimeError("the Session was not started")
        if self._started_in_pid != os.getpid():
            raise WrongProcess(self._started_in_pid, os.getpid())

    def subscribe(self, callback: Callable[[SessionChange], None]) -> Callable[[], None]:
        """Have `callback` called on the loop at every change of state from now on; returns what ends that."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    async def wait_connected(self, timeout_s: float | None) -> None:
        """Return as soon as the session is CONNECTED; None waits for ever.

        Raises:
            Unavailable: not within `timeout_s` (+ 100 ms at most), or the session is closed.
        """
        self.check_process()
        await self._wait_up(Deadline.after(timeout_s))

    # ---- requests ------------------------------------------------------------------------------------
    # Each raises Unavailable when ZooKeeper is away or does not answer within timeout_s (seconds), and
    # kazoo's NoNodeError, NodeExistsError, BadVersionError, NotEmptyError when those are ZooKeeper's
    # answer.

    async def create(
        self,
        path: str,
        data: bytes = b"",
        *,
        ephemeral: bool = False,
        sequence: bool = False,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> tuple[str, ZnodeStat]:
        """Create a node; returns its path (with the number if `sequence`) and its stat."""
        made: tuple[str, ZnodeStat] = await self._ask(
            requests.create(path, data, ephemeral=ephemeral, sequence=sequence), timeout_s
        )
        return made

    async def get(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> tuple[bytes, ZnodeStat]:
        """Read a node's data and stat. No watch is left behind if the node is missing."""
        found: tuple[bytes, ZnodeStat] = await self._watched(requests.get, path, watch, timeout_s)
        return found

    async def exists(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ZnodeStat | None:
        """Read a node's stat; None if it is missing, and then `watch` waits for its creation."""
        return await self._watched(requests.exists, path, watch, timeout_s)

    async def get_children(
        self, path: str, *, watch: Watch | None = None, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> list[str]:
        """List a node's children, in no order. No watch is left behind if the node is missing."""
        names: list[str] = await self._watched(requests.get_children, path, watch, timeout_s)
        return names

    async def set(
        self, path: str, data: bytes, *, version: int = -1, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> ZnodeStat:
        """Replace a node's data if its version is `version` (−1: any)."""
        return await self._ask(requests.replace(path, data, version), timeout_s)

    async def delete(self, path: str, *, version: int = -1, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Delete a node if its version is `version` (−1: any)."""
        await self._ask(requests.delete(path, version), timeout_s)

    async def create_all(self, paths: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S) -> bool:
        """Create empty persistent nodes, all or none; False if one of them is there already.

        For thousands of nodes call it with some 128 at a time: a request must stay under ZooKeeper's 1 MB.
        """
        results = await self._ask(requests.transaction([Create(path) for path in paths]), timeout_s)
        refusal = requests.refusal(results)
        if refusal is None or isinstance(refusal, NodeExistsError):
            return refusal is None
        raise outcome(refusal)

    async def ensure_path(self, path: str, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Create a persistent node and its missing parents, those of the chroot included; no matter who else does so.

        A parent that we may not create is no matter either if the node is there in the end.

        Raises:
            Forbidden: a node is missing, and ZooKeeper does not let us create it.
        """
        deadline = Deadline.after(timeout_s)
        await self.wait_connected(deadline.remaining_s())
        chroot = self._client.chroot if self._client is not None else ""
        parts = [part for part in (chroot + path).split("/") if part]
        batch = [requests.create_outside_chroot("/" + "/".join(parts[: depth + 1])) for depth in range(len(parts))]
        refusal: Refused | None = None
        for reply in await self.send_all(batch, deadline):
            try:
                await self.receive(reply, deadline)
            except (NodeExistsError, NoNodeError):
                continue
            except Refused as error:
                refusal = error
        if refusal is not None and await self.ask(requests.exists(path), deadline) is None:
            raise Forbidden(chroot + path) if isinstance(refusal.__cause__, NoAuthError) else refusal

    async def send(self, *batch: Operation, deadline: Deadline) -> tuple[Reply, ...]:
        """Hand 1 to MAX_BATCH requests to ZooKeeper together, once connected; returns a future for each
        reply.

        The futures live on after the deadline and end at the latest when the connection drops
        (ConnectionLoss), so that a late reply can be acted on with ``add_done_callback``. To wait for one
        use `receive`.

        Raises:
            Unavailable: not connected by the deadline; nothing was sent.
        """
        self.check_process()
        if not 1 <= len(batch) <= MAX_BATCH:
            raise ValueError(f"send takes 1 to {MAX_BATCH} requests, not {len(batch)}")
        batched = self._requests(batch)
        await self._take_slot(deadline)
        return self._hand_over(batched, Slot(self._slots, len(batch)))

    def post(self, operation: Operation) -> Reply | None:
        """Hand over one request that undoes something, without waiting for a place; None if not CONNECTED.

        The future is as those of `send`.
        """
        self.check_process()
        if self._state is not SessionState.CONNECTED:
            return None
        return self._hand_over(self._requests([operation]), None)[0]

    async def receive(self, reply: Reply, deadline: Deadline) -> Any:
        """Wait for one reply of `send`.

        Raises:
            Unavailable: the connection dropped, or no reply by the deadline; `maybe_done` is set.
            Refused: ZooKeeper answered that it did not do it.
            KazooException: ZooKeeper's answer about the node (`answers.ABOUT_NODE`).
        """
        if not reply.done() and not await done_by(reply, deadline):
            raise Unavailable("ZooKeeper did not reply in time", maybe_done=True)
        try:
            return reply.result()
        except KazooException as error:
            meant = outcome(error)
            if meant is error:
                raise
            raise meant from error

    async def ask(self, operation: Operation, deadline: Deadline) -> Any:
        """Send one request and wait for its reply. Raises as `send` and `receive`."""
        (reply,) = await self.send(operation, deadline=deadline)
        return await self.receive(reply, deadline)

    async def send_all(self, batch: Sequence[Operation], deadline: Deadline) -> list[Reply]:
        """Send any number of requests, in order, without waiting for replies as long as there are places."""
        replies: list[Reply] = []
        for start in range(0, len(batch), MAX_BATCH):
            replies += await self.send(*batch[start : start + MAX_BATCH], deadline=deadline)
        return replies

    async def ask_all(self, batch: Sequence[Operation], deadline: Deadline) -> list[Any]:
        """Send any number of requests, and wait for their replies; None stands for a node that is not there."""
        return [await self._if_there(reply, deadline) for reply in await self.send_all(batch, deadline)]

    def watch(self, path: str, watch: Watch) -> None:
        """Have `watch` called at the next news of `path`, to be read with ``watch=True``."""
        self._watches.setdefault(path, set()).add(watch)

    def unwatch(self, path: str, watch: Watch) -> None:
        """Forget a watch that has not fired. Idempotent.

        ZooKeeper itself keeps one watch a path and session, which goes with its next event; it is harmless.
        """
        if (watches := self._watches.get(path)) is not None:
            watches.discard(watch)
            if not watches:
                del self._watches[path]

    def follow(self, root: str, told: Callable[[int, str], object]) -> Callable[[], None]:
        """Have `told` called with every event on a node at or under `root`, its kind (`requests.CREATED` …) and
        path; returns what ends that.

        The events are those of `requests.add_watch`, which has to be asked for after every CONNECTED.
        """
        follower = (root, told)
        self._followers.append(follower)

        def unfollow() -> None:
            if follower in self._followers:
                self._followers.remove(follower)

        return unfollow

    # ---- inside --------------------------------------------------------------------------------------

    async def _ask(self, operation: Operation, timeout_s: float) -> Any:
        return await self.ask(operation, Deadline.after(timeout_s))

    async def _if_there(self, reply: Reply, deadline: Deadline) -> Any:
        try:
            return await self.receive(reply, deadline)
        except NoNodeError:
            return None

    async def _watched(
        self, operation: Callable[..., Operation], path: str, watch: Watch | None, timeout_s: float
    ) -> Any:
        if watch is None:
            return await self._ask(operation(path), timeout_s)
        self.watch(path, watch)
        try:
            return await self._ask(operation(path, watch=True), timeout_s)
        except BaseException:
            self.unwatch(path, watch)
            raise

    async def _wait_up(self, deadline: Deadline) -> None:
        if not self._up.is_set():
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._up.wait()
            except TimeoutError:
                state = self._state.value
                raise Unavailable(f"not connected to ZooKeeper at {self._hosts} ({state})") from None
        if self._state is SessionState.CLOSED:
            raise Unavailable("the ZooKeeper session is closed")

    async def _take_slot(self, deadline: Deadline) -> None:
        if self._state is SessionState.CONNECTED and not self._slots.locked():
            await self._slots.acquire()  # does not wait
            return
        while True:
            await self._wait_up(deadline)
            try:
                async with asyncio.timeout(deadline.remaining_s()):
                    await self._slots.acquire()
            except TimeoutError:
                raise Unavailable("too many requests to ZooKeeper are waiting") from None
            if self._state is SessionState.CONNECTED:
                return
            self._slots.release()

    def _requests(self, batch: Iterable[Operation]) -> list[Request]:
        chroot = self._client.chroot if self._client is not None else ""
        return [operation(chroot) for operation in batch]

    def _hand_over(self, batched: list[Request], slot: Slot | None) -> tuple[Reply, ...]:
        if not self._outbox:
            self._loop.call_soon(self._flush)
        answers = [PendingReply(self._loop, self._mailbox, self._settle, slot) for _ in batched]
        self._outbox += zip(batched, answers, strict=True)
        self._in_flight.update(answers)
        return tuple(answer.reply for answer in answers)

    def _flush(self) -> None:
        """Hand over what this turn of the loop has to send."""
        outbox, self._outbox = self._outbox, []
        if self._connection is not None:
            self._connection.hand_over(outbox)

    def _settle(self, answer: PendingReply, value: Any, error: Exception | None = None) -> None:
        if answer not in self._in_flight:  # the connection dropped meanwhile
            return
        self._in_flight.discard(answer)
        if answer.slot is not None:
            answer.slot.one_less()
        if answer.reply.done():  # cancelled
            return
        if error is None:
            answer.reply.set_result(value)
        else:
            answer.reply.set_exception(error)
            answer.reply.exception()  # a reply nobody waits for any more is no error

    def _fail_in_flight(self) -> None:
        for answer in list(self._in_flight):
            self._settle(answer, None, ConnectionLoss())

    def _fire(self, path: str) -> None:
        for watch in self._watches.pop(path, set()):
            watch()

    def _fire_watches(self) -> None:
        for path in list(self._watches):
            self._fire(path)

    # ---- kazoo's side --------------------------------------------------------------------------------

    def _build_client(self) -> None:
        client = KazooClient(
            hosts=self._hosts,
            timeout=self._timeout_s,
            handler=PollingHandler(),
            logger=logging.getLogger("coordination.kazoo"),
        )
        connection = AcknowledgedConnection(
            client,
            Backoff(max_tries=-1, delay=FIRST_RETRY_S, max_delay=MAX_RETRY_S, interrupt=client._stopped.is_set),
            partial(self._mailbox.put, self._on_event, client),
            self._mailbox.wake,
            partial(self._mailbox.post, self._client_ended, client),
        )
        client._connection = connection
        client.add_listener(partial(self._kazoo_says, client))
        self._client, self._connection = client, connection
        client.start_async()

    def _kazoo_says(self, client: KazooClient, kazoo_state: str) -> None:
        """Listener on kazoo's I/O thread: note what only this moment knows, and leave."""
        if kazoo_state == KazooState.CONNECTED:
            self._mailbox.post(self._connected, client, client.client_id[0])
        elif kazoo_state == KazooState.SUSPENDED:
            self._mailbox.post(self._suspended, client)
        else:
            self._mailbox.post(self._lost, client)

    def _on_event(self, client: KazooClient, kind: int, path: str) -> None:
        path = client.unchroot(path)
        self._fire(path)
        for root, told in list(self._followers):
            if path == root or path.startswith(root + "/"):
                told(kind, path)

    def _connected(self, client: KazooClient, session_id: int) -> None:
        if client is not self._client or self._state is SessionState.CLOSED:
            return
        new_session = session_id != self._session_id
        self._session_id = session_id
        self._up.set()
        self._enter(SessionState.CONNECTED, new_session=new_session)

    def _suspended(self, client: KazooClient) -> None:
        if client is self._client and self._state is SessionState.CONNECTED:
            self._drop(SessionState.SUSPENDED)

    def _lost(self, client: KazooClient) -> None:
        if client is self._client and self._state in (SessionState.CONNECTED, SessionState.SUSPENDED):
            self._session_id = None
            self._drop(SessionState.LOST)

    def _drop(self, state: SessionState) -> None:
        self._up.clear()
        self._fail_in_flight()
        self._enter(state)
        self._fire_watches()

    def _enter(self, state: SessionState, *, new_session: bool = False) -> None:
        if state is self._state:
            return
        was = self._state
        log.info("%s: %s -> %s (session %s)", self._name, was.value, state.value, _hex(self._session_id))
        self._state = state
        self._metrics.session_changes.labels(state.value).inc()
        change = SessionChange(state, self._session_id, new_session)
        for callback in list(self._subscribers):
            try:
                callback(change)
            except Exception:
                log.exception("%s: a subscriber failed on %s", self._name, state.value)

    def _client_ended(self, client: KazooClient) -> None:
        if client is not self._client or self._state is SessionState.CLOSED:
            return
        log.error("%s: the ZooKeeper client gave up; building another in %s s", self._name, REBUILD_AFTER_S)
        self._lost(client)
        self._loop.call_later(REBUILD_AFTER_S, self._rebuild, client)

    def _rebuild(self, client: KazooClient) -> None:
        if client is self._client and self._state is not SessionState.CLOSED:
            self._stop_in_background(client)
            self._build_client()

    def _stop_in_background(self, client: KazooClient) -> asyncio.Future[None]:
        """Stop a client on a daemon thread: kazoo's stop() blocks, and an executor would hold up exit."""
        stopped: asyncio.Future[None] = self._loop.create_future()

        def stop() -> None:
            try:
                client.stop()
                client.close()
            except Exception as error:
                log.warning("%s: closing the ZooKeeper client: %r", self._name, error)
            self._mailbox.post(stopped.set_result, None)

        threading.Thread(target=stop, name=f"{self._name}-stop", daemon=True).start()
        return stopped


def _hex(session_id: int | None) -> str:
    return "none" if session_id is None else f"0x{session_id & 0xFFFFFFFFFFFFFFFF:x}"
