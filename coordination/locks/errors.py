"""The errors of a lock."""

from __future__ import annotations

from coordination.errors import CoordinationError
from coordination.locks.lock_node import Holder


class LockTimeout(CoordinationError):
    """Another holder kept the resource until the deadline.

    Attributes:
        resource_id: the resource asked for.
        holder: the holder when last read, or None if that could not be read.
        waited_s: seconds from the call to this error.
    """

    def __init__(self, resource_id: str, holder: Holder | None, waited_s: float) -> None:
        super().__init__(f"{resource_id} is held by {holder or 'another holder'}; waited {waited_s:.3f} s")
        self.resource_id = resource_id
        self.holder = holder
        self.waited_s = waited_s


class LockLost(CoordinationError):
    """The lease on a resource can no longer be relied on: released, session gone, or no answer from ZooKeeper."""

    def __init__(self, resource_id: str) -> None:
        super().__init__(f"the lock on {resource_id} may have been lost: no new side effect may begin")
        self.resource_id = resource_id
