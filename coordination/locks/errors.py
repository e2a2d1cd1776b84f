"""What can go wrong with a lock, as types."""

from __future__ import annotations

from coordination.errors import CoordinationError
from coordination.locks.lock_node import Holder


class LockTimeout(CoordinationError):
    """The order's lock was not had in time.

    Attributes:
        order_id: the order asked for.
        holder: who held it when last looked, or None if that could not be read.
        waited_s: seconds from the call to this error.
    """

    def __init__(self, order_id: str, holder: Holder | None, waited_s: float) -> None:
        by = f"{holder.clerk} ({holder.role}, {holder.instance})" if holder else "somebody"
        super().__init__(f"order {order_id} is held by {by}; waited {waited_s:.3f} s")
        self.order_id = order_id
        self.holder = holder
        self.waited_s = waited_s


class LockLost(CoordinationError):
    """The lease on an order can no longer be relied on: released, session gone, or no word from ZooKeeper."""

    def __init__(self, order_id: str) -> None:
        super().__init__(f"the lock on order {order_id} may have been lost: no new side effect may begin")
        self.order_id = order_id
