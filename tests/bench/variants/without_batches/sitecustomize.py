"""Commit each row and send each request on its own, beside the others, as it was before there were batches.

Python imports `sitecustomize` before it starts a program, so that no service has to know of it. A limit of one row a
batch would be no fair comparison: one batch at a time, it would commit one row at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from services.kernel.clock import CallDeadline
from services.runtime.database import group_commit
from services.runtime.grpc import batching


async def _commit_each(self: group_commit.GroupCommit[Any, Any], items: Sequence[Any]) -> list[Any]:
    outcomes = await asyncio.gather(*(self._commit([item]) for item in items))
    return [outcome for (outcome,) in outcomes]


async def _call_one(self: batching.BatchedCalls, request: Any, deadline: CallDeadline) -> Any:
    return await self._peers.call(self._one, request, deadline)


group_commit.GroupCommit.run_all = _commit_each  # type: ignore[method-assign]
batching.BatchedCalls.call = _call_one  # type: ignore[method-assign]
