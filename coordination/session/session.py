"""A ZooKeeper session for asyncio, on kazoo: every request is an awaitable with a deadline.

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
1. No call blocks the event loop, and no call outlives its deadline by more than scheduling. A reply that comes too
   late completes a future without a waiter; a caller that must act on late replies keeps the future (`send`).
2. State, watches and replies change on the loop only, in the order in which kazoo's threads reported them.
3. The requests of one `send` reach ZooKeeper in order and in one write: two of them cost one round trip. All requests
   of one turn of the loop leave in one write.
4. A connection that drops fails every request in flight (its effect is then unknown: `Unavailable.maybe_done`) and
   fires every watch, in the same turn as the state changes. A watch means "read again", never "this has happened".
5. Requests are handed over only while CONNECTED, and at most SLOTS * MAX_BATCH of `send` at a time, so that a caller
   waits here, where its deadline is kept, and not in kazoo's queue. `post` skips the limit: it is for cleaning up.
6. The session is sought for ever, until close().

Which function makes each move
    _on_kazoo_state  CONNECTING | SUSPENDED | LOST -> CONNECTED; CONNECTED -> SUSPENDED; CONNECTED | SUSPENDED -> LOST
    close            any -> CLOSED
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from kazoo.protocol.states import KazooState

from coordination.deadline import Deadline
from coordination.errors import Unavailable, WrongProcess
from coordination.metrics import Metrics
from coordination.session.address import EnsembleAddress
from coordination.session.in_flight import Reply, RequestQueue, Slot
from coordination.session.kazoo_bridge import KazooBridge
from coordination.session.node_requests import DEFAULT_TIMEOUT_S, MAX_BATCH, NodeRequests
from coordination.session.requests import Operation, Scope, serialized
from coordination.session.security import OPEN, Security
from coordination.session.watches import Watch, Watches

__all__ = ["DEFAULT_TIMEOUT_S", "MAX_BATCH", "SLOTS", "Session", "SessionChange", "SessionState", "Watch"]

log = logging.getLogger(__name__)

SLOTS = 64


class SessionState(enum.Enum):
    """Where the session is, and what a caller may still assume."""

    #: No session yet. No node of ours is in ZooKeeper.
    CONNECTING = "connecting"

    #: The session lives and ZooKeeper answers, as far as is known. Until `valid_until()` our ephemeral nodes exist;
    #: past it assume nothing, even though the state still says CONNECTED (the process may have been paused).
    CONNECTED = "connected"

    #: The connection dropped; the session may live or expire without our knowledge. Our ephemeral nodes exist until
    #: `valid_until()`. Begin no new side effect that relies on a lock. Lists read before may be out of date.
    SUSPENDED = "suspended"

    #: ZooKeeper ended the session: its ephemeral nodes are gone, others may hold our locks. A new session is being
    #: sought.
    LOST = "lost"

    #: `close()` was called. Nothing comes back; ephemeral nodes go at once, or when the session expires if ZooKeeper
    #: could not be reached.
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SessionChange:
    """One change of state, as subscribers receive it.

    Attributes:
        state: the state entered.
        session_id: the present session; None if there is none.
        new_session: on CONNECTED, True if this is not the session we had before (register and subscribe
            again), False for the same one reconnected (read again). False for every other state.
    """

    state: SessionState
    session_id: int | None
    new_session: bool = False


class Session(NodeRequests):
    """One ZooKeeper session at a time, kept for as long as this object is open.

    Args:
        hosts: the ensemble's address, in any spelling of `coordination.session.address`.
        timeout_s: session timeout to ask for, seconds; ZooKeeper bounds it to 2–20 of its ticks.
        name: shown in log lines.
        metrics: counts the changes of state.
        security: how ZooKeeper is known, as whom the session comes, and who may touch its nodes.
    """

    def __init__(
        self,
        hosts: str,
        *,
        timeout_s: float = 4.0,
        name: str = "",
        metrics: Metrics | None = None,
        security: Security = OPEN,
    ) -> None:
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._name = name or "session"
        self._metrics = metrics or Metrics()
        self._security = security
        self._acl = serialized(security.acl)
        self._acls = tuple((path, serialized(acl)) for path, acl in security.acls.items())
        for state in SessionState:
            self._metrics.session_changes.labels(state.value)  # from 0: else the first change is no increase
        self._state = SessionState.CONNECTING
        self._session_id: int | None = None
        self._started_in_pid: int | None = None
        self._bridge: KazooBridge | None = None
        self._up = asyncio.Event()  # set while CONNECTED, and for good once CLOSED
        self._slots = asyncio.Semaphore(SLOTS)
        self._queue = RequestQueue()
        self.watches = Watches()
        self._subscribers: list[Callable[[SessionChange], None]] = []

    # ---- life ----------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect in the background. Never fails because ZooKeeper is absent.

        Raises:
            BadAddress: `hosts` cannot be understood.
            RuntimeError: started twice.
        """
        if self._bridge is not None or self._state is SessionState.CLOSED:
            raise RuntimeError("a Session is started once")
        self._hosts = str(EnsembleAddress.parse(self._hosts))
        self._started_in_pid = os.getpid()
        self._bridge = KazooBridge(
            self._hosts,
            self._timeout_s,
            self._name,
            security=self._security,
            on_state=self._on_kazoo_state,
            on_event=self.watches.dispatch,
        )
        self._queue.connect(self._bridge.callbacks, self._bridge.hand_over)

    async def close(self, timeout_s: float = 2.0) -> None:
        """End the session, so that its ephemeral nodes go at once. Idempotent.

        Returns within `timeout_s` + 100 ms even if ZooKeeper is frozen; the nodes then go when it expires.
        """
        if self._state is SessionState.CLOSED:
            return
        polite = self._state is SessionState.CONNECTED
        self._enter(SessionState.CLOSED)
        self._session_id = None
        self._queue.fail_all()
        self.watches.fire_all()
        self._up.set()
        if self._bridge is not None and self._started_in_pid == os.getpid():
            await self._bridge.close(polite=polite, timeout_s=timeout_s)

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
        """The newest zxid this session has received; 0: none. After a `sync`, no older than the leader's."""
        return self._bridge.last_zxid if self._bridge is not None else 0

    @property
    def chroot(self) -> str:
        """The node under which all paths of the session lie; "" for the root."""
        return self._bridge.chroot if self._bridge is not None else ""

    def valid_until(self) -> float:
        """Return the monotonic time (seconds) until which the present session has surely not expired.

        It is the send time of the last packet ZooKeeper acknowledged, plus the negotiated timeout, less a
        margin (`coordination.session.liveness`). Minus infinity without a session.
        """
        validity = self._bridge.validity if self._bridge is not None else None
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
            WrongProcess: this process is a forked child of it.
            RuntimeError: it was not started.
        """
        if self._started_in_pid is None:
            raise RuntimeError("the Session was not started")
        if self._started_in_pid != os.getpid():
            raise WrongProcess(self._started_in_pid, os.getpid())

    def subscribe(self, callback: Callable[[SessionChange], None]) -> Callable[[], None]:
        """Have `callback` called on the loop at every change of state; return what ends that."""
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

    async def send(self, *batch: Operation, deadline: Deadline) -> tuple[Reply, ...]:
        """Send 1 to MAX_BATCH requests to ZooKeeper together, once connected; return a future for each reply.

        The futures outlive the deadline and end at the latest when the connection drops (ConnectionLoss), so that a
        late reply can be acted on with ``add_done_callback``. To wait for one use `receive`.

        Raises:
            Unavailable: not connected by the deadline; nothing was sent.
        """
        self.check_process()
        if not 1 <= len(batch) <= MAX_BATCH:
            raise ValueError(f"send takes 1 to {MAX_BATCH} requests, not {len(batch)}")
        scope = self._scope()
        requests = [operation(scope) for operation in batch]
        await self._take_slot(deadline)
        return self._queue.put(requests, Slot(self._slots, len(batch)))

    def post(self, operation: Operation) -> Reply | None:
        """Send one request that cleans up, without waiting for a slot; return its reply, or None if not CONNECTED."""
        self.check_process()
        if self._state is not SessionState.CONNECTED:
            return None
        return self._queue.put([operation(self._scope())], None)[0]

    # ---- inside --------------------------------------------------------------------------------------

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

    def _scope(self) -> Scope:
        return Scope(self.chroot, self._acl, self._acls)

    def _on_kazoo_state(self, kazoo_state: str, session_id: int) -> None:
        if kazoo_state == KazooState.CONNECTED:
            new_session = session_id != self._session_id
            self._session_id = session_id
            self._up.set()
            self._enter(SessionState.CONNECTED, new_session=new_session)
        elif kazoo_state == KazooState.SUSPENDED:
            if self._state is SessionState.CONNECTED:
                self._drop(SessionState.SUSPENDED)
        elif self._state in (SessionState.CONNECTED, SessionState.SUSPENDED):
            self._session_id = None
            self._drop(SessionState.LOST)

    def _drop(self, state: SessionState) -> None:
        self._up.clear()
        self._queue.fail_all()
        self._enter(state)
        self.watches.fire_all()

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


def _hex(session_id: int | None) -> str:
    return "none" if session_id is None else f"0x{session_id & 0xFFFFFFFFFFFFFFFF:x}"
