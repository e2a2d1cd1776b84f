"""Clerks in tests of the resource lock, and what can be seen of their queues."""

from __future__ import annotations

from coordination.locks import Holder, ResourceLocks
from coordination.session import Session
from services.runtime.zookeeper_paths import LOCKS_ROOT
from tests.integration.zookeeper import until

SLACK_S = 0.1
"""What the lock promises: a call returns this much after its deadline at most."""

CASHIER = Holder("alice", {"role": "cashier", "instance": "payment-1"}, 1_700_000_000_000)
ACCOUNTANT = Holder("bob", {"role": "accountant", "instance": "payment-2"}, 1_700_000_000_500)


async def nodes_left(session: Session, root: str = LOCKS_ROOT) -> list[str]:
    """Return every lock node there is."""
    names: list[str] = []
    for shard in await session.get_children(root):
        names += await session.get_children(f"{root}/{shard}")
    return names


async def queued(locks: ResourceLocks, resource_id: str, places: int) -> None:
    """Wait until a resource's queue has so many places."""

    async def so() -> bool:
        return len(await locks.queue(resource_id)) == places

    await until(so)
