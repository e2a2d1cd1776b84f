"""One request on its way: the place it takes, its reply, and how that gets from kazoo's thread to the event loop.

    Session ──Answer──▶ PipelinedConnection ──set, set_exception──▶ Mailbox ──one wake-up──▶ loop ──settle──▶ reply

Invariants
1. What kazoo's threads post is done on the loop, in the order in which it was posted.
2. The loop is woken once for all that lies in the mailbox.
3. A slot is given back when the last request of its batch has been answered, however it was answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from kazoo.exceptions import AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError

from coordination.deadline import Deadline

log = logging.getLogger(__name__)

DROPPED = (AuthFailedError, ConnectionClosedError, ConnectionLoss, SessionExpiredError)
"""What kazoo fails requests with when the connection goes, a moment before it says so. We fail them when it says so:
whoever is told that a request was lost must not find the session CONNECTED, and send the next one into the void."""

Reply = asyncio.Future[Any]


class Mailbox:
    """What kazoo's threads have for the event loop.

    Args:
        loop: the loop on which everything posted is done.
        name: shown in log lines.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._name = name
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._woken = False

    def put(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function` called on the loop once it is woken. Any thread."""
        self._posted.append((function, args))

    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Have `function` called on the loop. Any thread."""
        self.put(function, *args)
        self.wake()

    def wake(self) -> None:
        """Have the loop do what was put. Any thread."""
        if self._posted and not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._empty)
            except RuntimeError:
                log.debug("%s: news after the event loop was closed", self._name)

    def _empty(self) -> None:
        self._woken = False
        try:
            while self._posted:
                function, args = self._posted.popleft()
                function(*args)
        finally:
            self.wake()  # if one of them failed


class Slot:
    """One of a session's places for batches, given back when the last request of its batch has been answered."""

    __slots__ = ("_left", "_slots")

    def __init__(self, slots: asyncio.Semaphore, requests: int) -> None:
        self._slots = slots
        self._left = requests

    def one_less(self) -> None:
        """Count one request of the batch as answered."""
        self._left -= 1
        if not self._left:
            self._slots.release()


class PendingReply:
    """The way of one reply, from kazoo's thread to the future somebody may wait for.

    Args:
        settle: called on the loop with (this, value, error).
    """

    __slots__ = ("_mailbox", "_settle", "reply", "slot")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        mailbox: Mailbox,
        settle: Callable[[PendingReply, Any, Exception | None], object],
        slot: Slot | None,
    ) -> None:
        self._mailbox = mailbox
        self._settle = settle
        self.slot = slot
        self.reply: Reply = loop.create_future()

    def set(self, value: Any) -> None:
        """Take ZooKeeper's answer; the connection wakes the loop for all that came together."""
        self._mailbox.put(self._settle, self, value, None)

    def set_exception(self, error: Exception) -> None:
        """Take what went wrong with this request alone."""
        if not isinstance(error, DROPPED):
            self._mailbox.post(self._settle, self, None, error)

    def wanted(self) -> bool:
        """Tell whether anybody still waits."""
        return not self.reply.done()


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
