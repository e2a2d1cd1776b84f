"""Requests in flight: the slot each takes, its reply, and how that gets from kazoo's thread to the event loop.

    RequestQueue ──▶ PipelinedConnection ──set, set_exception──▶ CallbackQueue ──one wake-up──▶ loop ──▶ reply

Invariants
1. Callbacks of kazoo's threads run on the loop, in the order in which they were posted.
2. The loop is woken once for all callbacks that are pending.
3. A slot is given back when the last request of its batch has been answered, whatever the answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from kazoo.exceptions import AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError

from coordination.deadline import Deadline
from coordination.session.requests import Request

log = logging.getLogger(__name__)

#: What kazoo fails requests with when the connection goes, a moment before it reports that. They are failed here when
#: it reports it: a caller whose request was lost must not find the session CONNECTED, and send the next one in vain.
DROPPED = (AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError)

Reply = asyncio.Future[Any]


class CallbackQueue:
    """The callbacks that kazoo's threads have for the event loop.

    Args:
        loop: the loop on which they run.
        name: shown in log lines.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.loop = loop
        self._name = name
        self._pending: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function` called on the loop once it is woken. Any thread."""
        self._pending.append((function, args))

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function` called on the loop. Any thread."""
        self.put(function, *args)
        self.wake()

    def wake(self) -> None:
        """Have the loop run the pending callbacks. Any thread."""
        if self._pending and not self._woken:
            self._woken = True
            try:
                self.loop.call_soon_threadsafe(self._run_pending)
            except RuntimeError:
                log.debug("%s: a callback came after the event loop was closed", self._name)

    def _run_pending(self) -> None:
        self._woken = False
        try:
            while self._pending:
                function, args = self._pending.popleft()
                function(*args)
        finally:
            self.wake()  # if one of them failed


class Slot:
    """A session's slot for one batch, given back when the last request of the batch has been answered."""

    __slots__ = ("_left", "_slots")

    def __init__(self, slots: asyncio.Semaphore, requests: int) -> None:
        self._slots = slots
        self._left = requests

    def count_answer(self) -> None:
        """Count one request of the batch as answered."""
        self._left -= 1
        if not self._left:
            self._slots.release()


class PendingReply:
    """The way of one reply, from kazoo's thread to the future that callers wait for.

    Args:
        settle: called on the loop with (this, value, error).
    """

    __slots__ = ("_callbacks", "_settle", "reply", "slot")

    def __init__(
        self,
        callbacks: CallbackQueue,
        settle: Callable[[PendingReply, Any, Exception | None], object],
        slot: Slot | None,
    ) -> None:
        self._callbacks = callbacks
        self._settle = settle
        self.slot = slot
        self.reply: Reply = callbacks.loop.create_future()

    def set(self, value: Any) -> None:
        """Take ZooKeeper's answer; the connection wakes the loop for all that came together."""
        self._callbacks.put(self._settle, self, value, None)

    def set_exception(self, error: Exception) -> None:
        """Take the error of this request alone."""
        if not isinstance(error, DROPPED):
            self._callbacks.post(self._settle, self, None, error)

    def wanted(self) -> bool:
        """Tell whether the reply is still open."""
        return not self.reply.done()


class RequestQueue:
    """The requests of one session that were not answered yet.

    Attributes:
        in_flight: their replies.
    """

    def __init__(self) -> None:
        self.in_flight: set[PendingReply] = set()
        self._outbox: list[tuple[Request, PendingReply]] = []  # of this turn of the loop

    def connect(
        self, callbacks: CallbackQueue, hand_over: Callable[[list[tuple[Request, PendingReply]]], object]
    ) -> None:
        """Send with `hand_over`, and take replies from `callbacks`. Called once, before the first `put`."""
        self._callbacks, self._hand_over = callbacks, hand_over

    def put(self, requests: Sequence[Request], slot: Slot | None) -> tuple[Reply, ...]:
        """Send requests at the end of this turn of the loop, with all others of the turn; return their replies."""
        if not self._outbox:
            self._callbacks.loop.call_soon(self._flush)
        pending = [PendingReply(self._callbacks, self._settle, slot) for _ in requests]
        self._outbox += zip(requests, pending, strict=True)
        self.in_flight.update(pending)
        return tuple(each.reply for each in pending)

    def fail_all(self) -> None:
        """Fail every request in flight: the connection dropped."""
        for pending in list(self.in_flight):
            self._settle(pending, None, ConnectionLoss())

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, []
        self._hand_over(outbox)

    def _settle(self, pending: PendingReply, value: Any, error: Exception | None = None) -> None:
        if pending not in self.in_flight:  # the connection dropped meanwhile
            return
        self.in_flight.discard(pending)
        if pending.slot is not None:
            pending.slot.count_answer()
        if pending.reply.done():  # cancelled
            return
        if error is None:
            pending.reply.set_result(value)
        else:
            pending.reply.set_exception(error)
            pending.reply.exception()  # no warning if the caller has stopped waiting


async def done_by(reply: Reply, deadline: Deadline) -> bool:
    """Wait for a reply, which stays as it is if the deadline comes first or the waiting is cancelled."""
    loop = asyncio.get_running_loop()
    woken = loop.create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    remaining_s = deadline.remaining_s()
    timer = None if remaining_s is None else loop.call_later(remaining_s, wake)
    reply.add_done_callback(wake)
    try:
        await woken
    finally:
        reply.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()
    return reply.done()
