"""Whose turn it is when the shards' counters wrap, for one resource and for a batch: both queue the same way."""

from __future__ import annotations

import time
from typing import Any

import pytest

from coordination.deadline import Deadline
from coordination.locks import LockTimeout
from coordination.locks.cleanup import Nodes
from coordination.locks.lock import Holder, ResourceLocks, _Attempt, _Taken
from coordination.session import SessionState, requests
from services.runtime.zookeeper_paths import LOCKS_ROOT

LAST, FIRST_AFTER_THE_WRAP = 2**31 - 1, -(2**31)
HOLDER = Holder("li", {"role": "cashier"})
SESSION_ID = 7


class OneSession:
    """A session in which every node holds `HOLDER`."""

    session_id = SESSION_ID
    state = SessionState.CONNECTED

    def subscribe(self, callback: object) -> None: ...

    async def ask(self, operation: requests.Operation, deadline: Deadline) -> Any:
        return HOLDER.to_json(), None


def name(resource_id: str, nonce: str, sequence: int) -> str:
    return f"{resource_id}-{nonce * 16}-{sequence:010d}"


async def turns(sequences: dict[str, tuple[int, int]]) -> bool:
    """Stand in the queues of these resources, each with the numbers (ours, somebody else's), without time to wait."""
    session: Any = OneSession()
    locks = ResourceLocks(session, shards=1, root=LOCKS_ROOT)
    shards = dict.fromkeys(sequences, "/shard")
    attempt = _Attempt(shards, b"", time.monotonic(), Deadline.after(0))
    ours = {resource_id: name(resource_id, "a", mine) for resource_id, (mine, _) in sequences.items()}
    theirs = [name(resource_id, "b", other) for resource_id, (_, other) in sequences.items()]
    taken = _Taken(Nodes(tuple(f"/shard/{each}" for each in ours.values()), SESSION_ID), 1)
    return await locks._wait_turns(attempt, taken, {"/shard": [*theirs, *ours.values()]})


@pytest.mark.parametrize("resources", [["o-1"], ["o-1", "o-2", "o-3"]], ids=["one resource", "a batch"])
async def test_last_number_stands_before_the_first_after_the_wrap(resources: list[str]) -> None:
    """2147483647 was given out before -2147483648, so its owner holds."""
    assert await turns(dict.fromkeys(resources, (LAST, FIRST_AFTER_THE_WRAP)))
    with pytest.raises(LockTimeout) as caught:
        await turns(dict.fromkeys(resources, (FIRST_AFTER_THE_WRAP, LAST)))
    assert caught.value.resource_id == resources[0]
    assert caught.value.holder == HOLDER


async def test_batch_waits_for_the_one_resource_that_is_behind_the_wrap() -> None:
    """First in one queue and second, across the wrap, in another: the second one is named."""
    ahead, behind = (LAST - 1, LAST), (FIRST_AFTER_THE_WRAP + 3, LAST - 5)
    with pytest.raises(LockTimeout) as caught:
        await turns({"o-1": ahead, "o-2": behind, "o-3": ahead})
    assert caught.value.resource_id == "o-2"
