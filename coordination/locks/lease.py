"""Leases: the right to act on a resource, or on a batch of them, for as long as it can be relied on.

            ┌── release() ──────────────────────────▶ RELEASED (also after LOST: the node may still be there)
    HELD ───┤
            └── session gone, or not heard of ──▶ LOST

Invariants
1. `valid()` reads the clock at that moment: no event, task or timer has to come first. `valid()` and `ensure()` only
   fail fast; the fencing token in the write guarantees safety against a process paused after asking.
2. Callbacks for the loss run in the turn of the loop in which it is known: the session was lost or closed, or the time
   passed until which it was surely alive. A dropped connection alone is no loss: nothing new may begin, but the
   resource is still ours until that time.
3. A lease is invalid for ever once its callbacks ran, also if the session turns out to have survived.
4. Without callbacks there is no timer and no subscription. One of each serves all callbacks.

Which function makes each move
    LockLeases.issue    nothing -> HELD        release     HELD | LOST -> RELEASED
    LockLeases._check   HELD -> LOST, if it has callbacks; else `valid()` and `release` find it so
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

from coordination.locks.cleanup import Nodes, Removal
from coordination.locks.errors import LockLost
from coordination.locks.lock_node import Holder
from coordination.metrics import Metrics
from coordination.session.session import Session

log = logging.getLogger(__name__)

TIMER_GRAIN_S = 0.001  # a loop's clock counts milliseconds; a timer must not come too early by one

#: Called on the loop when a lease ends: True if it was lost, False if it was released.
OnEnd = Callable[[bool], object]


class LockLease:
    """The base of leases on one resource and on many.

    Attributes:
        token: grows with every holder of the resource; with the generation it is the fence.
        session_id: the session in which it was taken.
        waited_s: seconds spent in the queue; 0.0 if it was empty.
    """

    def __init__(self, leases: LockLeases, grant: _Grant, waited_s: float) -> None:
        self.token = grant.token
        self.session_id = grant.session_id
        self.waited_s = waited_s
        self._leases = leases
        self._grant = grant
        self._released = False

    @property
    def name(self) -> str:
        """What is held, for messages."""
        raise NotImplementedError

    def valid(self) -> bool:
        """Tell whether a side effect may begin now: not released, connected, session surely not expired.

        False in a forked child.
        """
        grant = self._grant
        return not (self._released or grant.lost) and self._leases.session.is_valid(grant.session_id)

    def ensure(self) -> None:
        """Do nothing if `valid()`.

        Raises:
            LockLost: it is not.
            WrongProcess: this is a forked child.
        """
        if not self.valid():
            self._leases.session.check_process()
            raise LockLost(self.name)

    def on_lost(self, callback: Callable[[], object]) -> Callable[[], None]:
        """Have `callback` called once, on the loop, if the lease is lost before it is released.

        If it is lost already, it is called in the next turn of the loop.

        Returns:
            What removes the callback. Idempotent.

        Raises:
            WrongProcess: this is a forked child.
        """
        return self._leases.listen(self, lambda lost: callback() if lost else None)

    async def lost(self) -> bool:
        """Wait until the lease ends.

        Returns:
            True: it was lost before it was released. False: it was released.

        Raises:
            WrongProcess: this is a forked child.
        """
        self._leases.session.check_process()
        ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def end(lost: bool) -> None:
            if not ended.done():
                ended.set_result(lost)

        forget = self._leases.listen(self, end)
        try:
            return False if self._released else await ended
        finally:
            forget()

    def release(self) -> None:
        """Give up what is held. Return at once; the nodes are deleted in the background, retried until they are gone
        or the session has ended. Idempotent. Must be called on the event loop.

        Raises:
            WrongProcess: this is a forked child.
        """
        raise NotImplementedError

    async def aclose(self) -> None:
        """Release the lease, for ``contextlib.aclosing``."""
        self.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} token={self.token} valid={self.valid()}>"


class ResourceLease(LockLease):
    """The right to act on one resource. Made by `ResourceLocks.acquire`, or one of a batch.

    Attributes:
        resource_id: the resource.
        waited_for: the holder last seen before our turn; None if there was none.
    """

    def __init__(
        self, leases: LockLeases, grant: _Grant, waited_s: float, resource_id: str, path: str, waited_for: Holder | None
    ) -> None:
        super().__init__(leases, grant, waited_s)
        self.resource_id = resource_id
        self.waited_for = waited_for
        self._path = path

    @property
    def name(self) -> str:
        """The resource's id."""
        return self.resource_id

    def release(self) -> None:
        """See `LockLease.release`."""
        self._leases.give_up(self._grant, [self])


class BatchLease(LockLease):
    """The right to act on many resources, taken together at one zxid. Made by `ResourceLocks.acquire_all`.

    ``batch[resource_id]`` is the lease of one of them, with the same token: code for one resource takes one of a batch.
    A resource released singly is no longer part of the batch; a loss concerns all together.

    Attributes:
        resources: the leases by resource id, in the order in which they were asked for.
    """

    def __init__(self, leases: LockLeases, grant: _Grant, waited_s: float, resources: Sequence[ResourceLease]) -> None:
        super().__init__(leases, grant, waited_s)
        self.resources: Mapping[str, ResourceLease] = MappingProxyType(
            {lease.resource_id: lease for lease in resources}
        )

    @property
    def name(self) -> str:
        """Some of the resources' ids."""
        first, *more = self.resources
        return f"{first} and {len(more)} more" if more else first

    def release(self) -> None:
        """See `LockLease.release`; the deleting is one transaction for all that was not given up singly."""
        self._leases.give_up(self._grant, [self, *self.resources.values()])

    def __getitem__(self, resource_id: str) -> ResourceLease:
        return self.resources[resource_id]


@dataclass(slots=True, eq=False)
class _Grant:
    """What the leases of resources taken at one zxid share.

    Attributes:
        lost: whether callbacks ran for the loss.
        held: how many of the resources are not released.
    """

    token: int
    session_id: int
    lost: bool
    held: int


class LockLeases:
    """All leases of one `ResourceLocks`: issued, given up, and their callbacks for the loss."""

    def __init__(self, session: Session, removal: Removal, metrics: Metrics) -> None:
        self.session = session
        self._removal = removal
        self._metrics = metrics
        self._listeners: dict[LockLease, list[OnEnd]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def issue(
        self, resource_ids: Sequence[str], nodes: Nodes, token: int, waited_s: float, waited_for: Mapping[str, Holder]
    ) -> list[ResourceLease]:
        """Return the leases of resources taken together: one for each, in their order."""
        grant = _Grant(token, nodes.session_id, lost=False, held=len(resource_ids))
        self._metrics.locks_held.inc(grant.held)
        return [
            ResourceLease(self, grant, waited_s, resource_id, path, waited_for.get(resource_id))
            for resource_id, path in zip(resource_ids, nodes.paths, strict=True)
        ]

    def bind(self, resources: Sequence[ResourceLease]) -> BatchLease:
        """Return one lease for those that were issued together."""
        return BatchLease(self, resources[0]._grant, resources[0].waited_s, resources)

    def give_up(self, grant: _Grant, leases: Sequence[LockLease]) -> None:
        """Release those of the leases that are not released yet."""
        self.session.check_process()
        paths: list[str] = []
        for lease in leases:
            if not lease._released:
                lease._released = True
                self._end(lease, lost=False)
                if isinstance(lease, ResourceLease):
                    paths.append(lease._path)
        if not paths:
            return
        if not (grant.lost or self._stands(grant)):
            self._metrics.locks_lost.inc(len(paths))
        if not grant.lost:
            self._metrics.locks_held.dec(len(paths))
        grant.held -= len(paths)
        self._removal.delete(Nodes(tuple(paths), grant.session_id))

    def listen(self, lease: LockLease, ended: OnEnd) -> Callable[[], None]:
        """Have `ended` called when the lease ends; return what removes it."""
        self.session.check_process()
        if lease._released:
            return lambda: None
        self._listeners.setdefault(lease, []).append(ended)
        if self._unsubscribe is None:
            self._unsubscribe = self.session.subscribe(lambda _: self._check())
        self._check_in(0.0)  # it may be lost already

        def forget() -> None:
            listeners = self._listeners.get(lease, [])
            if ended in listeners:
                listeners.remove(ended)
            if not listeners:
                self._listeners.pop(lease, None)
                self._stop_unless_needed()

        return forget

    def _stands(self, grant: _Grant) -> bool:
        """Tell whether the session surely lives, connected or not."""
        return self.session.session_id == grant.session_id and time.monotonic() < self.session.valid_until()

    def _check(self) -> None:
        """Run the callbacks of leases that are lost; check again when the session's present validity ends."""
        for lease in list(self._listeners):
            grant = lease._grant
            if not (grant.lost or self._stands(grant)):
                grant.lost = True
                self._metrics.locks_lost.inc(grant.held)
                self._metrics.locks_held.dec(grant.held)
            if grant.lost:
                self._end(lease, lost=True)
        if self._listeners:
            self._check_in(self.session.valid_until() - time.monotonic())

    def _check_in(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(delay_s + TIMER_GRAIN_S, self._check)

    def _end(self, lease: LockLease, *, lost: bool) -> None:
        for ended in self._listeners.pop(lease, ()):
            try:
                ended(lost)
            except Exception:
                log.exception("a callback failed at the end of the lease on %s", lease.name)
        self._stop_unless_needed()

    def _stop_unless_needed(self) -> None:
        if not self._listeners and self._unsubscribe is not None and self._timer is not None:
            self._timer.cancel()
            self._unsubscribe()
            self._timer = self._unsubscribe = None
