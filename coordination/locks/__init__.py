"""Locks in ZooKeeper with fencing tokens: one or many at once, their leases, their queues live, and the generation of
the ensemble within which tokens compare.
"""

from coordination.locks import generation
from coordination.locks.errors import LockLost, LockTimeout
from coordination.locks.lease import BatchLease, ResourceLease
from coordination.locks.lock import ResourceLocks
from coordination.locks.lock_node import Holder, Place
from coordination.locks.queue_watch import QueueChange, QueueWatch

__all__ = [
    "BatchLease",
    "Holder",
    "LockLost",
    "LockTimeout",
    "Place",
    "QueueChange",
    "QueueWatch",
    "ResourceLease",
    "ResourceLocks",
    "generation",
]
