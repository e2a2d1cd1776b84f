"""The order's lock over `coordination.locks`, with its fence and the service's own errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coordination.errors import Refused, Unavailable
from coordination.locks import LockLost, LockTimeout
from coordination.locks.lock import Holder, ResourceLease, ResourceLocks
from services.kernel import errors
from services.kernel.clock import CallDeadline, Clock
from services.kernel.fence import Fence
from services.kernel.principal import Principal
from services.runtime import tracing
from services.runtime.ensemble import Ensemble


class Hold:
    """A held lock."""

    def __init__(self, lease: ResourceLease, fence: Fence) -> None:
        self._lease = lease
        self.fence = fence

    def ensure(self) -> None:
        """Check that the next side effect may begin.

        It only fails fast: between this line and the effect the process may be paused. The fencing token in the
        write guarantees safety.

        Raises:
            Aborted: ORDER_LOCK_LOST.
        """
        try:
            self._lease.ensure()
        except LockLost as lost:
            raise errors.Aborted(
                "ORDER_LOCK_LOST",
                f"another clerk may hold the lock of {self._lease.resource_id} by now; ask again with the same id",
                metadata={"order_id": self._lease.resource_id, "guard": "lock"},
                retry_after_ms=50,
            ) from lost


class CoordinatedLocks:
    """Order locks in ZooKeeper.

    Args:
        instance: This process's name, for those who wait behind it.
        wait_turn: False, with the guard `lock` off: take a place and its fence, and go on at once.
    """

    def __init__(
        self, locks: ResourceLocks, ensemble: Ensemble, clock: Clock, *, instance: str, wait_turn: bool
    ) -> None:
        self._locks = locks
        self._ensemble = ensemble
        self._clock = clock
        self._instance = instance
        self._wait_turn = wait_turn

    @asynccontextmanager
    async def hold(self, order_id: str, clerk: Principal, payment_id: str, wait_s: float) -> AsyncIterator[Hold]:
        """Hold the order's lock; wait for it at most `wait_s` seconds. Releasing it delays no reply.

        Raises:
            Aborted: ORDER_LOCKED, with the holder and how long was waited.
            Unavailable: ZOOKEEPER_UNAVAILABLE; ENSEMBLE_BEHIND: this ZooKeeper has lost its data.
        """
        self._ensemble.check()
        deadline = CallDeadline.after(wait_s, self._clock)
        details = {"role": str(clerk.role), "instance": self._instance, "payment": payment_id}
        holder = Holder(clerk.name, details, self._clock.now_ms())
        with tracing.span("lock", tracing.Kind.CLIENT) as span:
            lease = await self._taken(order_id, holder, wait_s)
            span.set(token=lease.token, waited_ms=round(lease.waited_s * 1000))
        try:
            generation = await self._ensemble.generation_in(lease.session_id, max(deadline.remaining_s(), 0.0))
            yield Hold(lease, Fence(generation, lease.token))
        finally:
            lease.release()

    async def _taken(self, order_id: str, holder: Holder, wait_s: float) -> ResourceLease:
        take = self._locks.acquire if self._wait_turn else self._locks.enter
        try:
            return await take(order_id, holder, timeout_s=wait_s)
        except LockTimeout as timeout:
            raise _locked(timeout) from timeout
        except Unavailable as away:
            why = str(away) if isinstance(away, Refused) else "ZooKeeper cannot be reached"
            raise errors.Unavailable(
                "ZOOKEEPER_UNAVAILABLE",
                f"{why}, so {order_id} cannot be locked; nothing was done, try again",
                retry_after_ms=int(away.retry_after_s * 1000),
            ) from away


def _locked(timeout: LockTimeout) -> errors.Aborted:
    holder, order_id = timeout.holder, timeout.resource_id
    shown = holder.details if holder else {}
    who = f"{holder.owner} ({shown.get('role', '?')})" if holder else "another clerk"
    waited_ms = round(timeout.waited_s * 1000)
    return errors.Aborted(
        "ORDER_LOCKED",
        f"{order_id} is being settled by {who}; waited {waited_ms} ms, ask again with the same id",
        metadata={
            "order_id": order_id,
            "holder": holder.owner if holder else "",
            "holder_role": shown.get("role", ""),
            "holder_instance": shown.get("instance", ""),
            "holder_payment_id": shown.get("payment", ""),
            "waited_ms": str(waited_ms),
            "guard": "lock",
        },
        retry_after_ms=200,
    )
