"""Group commit: what arrives while one batch commits is the next batch.

    caller 1 ──▶ [1] commits ─────────────▶ answered
    caller 2 ───────▶ waits ┐
    caller 3 ──────────▶ waits ┴▶ [2, 3] commit ─────▶ both answered

A commit costs a transaction, its round trips and the wait for the disk, and hardly more for thirty items than for one.
No timer delays the first caller, and no caller is answered before the commit that holds its item.

Rules
1. One batch at a time. Two writers would split what waits into smaller batches, and wait for each other's rows.
2. First come, first served, up to `limit` items a batch. Of two items with the same key the second waits for the next
   batch, so that a step never meets one row twice.
3. An item's refusal is its own outcome. If a batch as a whole raises what one item may have caused, a constraint or a
   wait for a locked row, each of its items is committed alone, and only those that cannot be committed fail. They are
   committed at the same time, so that one that waits for a lock holds up the batch once more at most.
4. A batch runs to its end even if its callers are cancelled: a cancelled caller does not decide what is committed.
5. What commits the batches is a task of none of the callers: it has the context in which the object was made.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.kernel.errors import OutcomeUnknown, ResourceExhausted, Unavailable
from services.runtime import tracing
from services.runtime.database.errors import StatementTimeout

_I = TypeVar("_I")
_O = TypeVar("_O")

#: Items in one batch. Larger ones hold their locks longer and save little more.
_LIMIT = 64
#: Items that wait at most. The calls of a server are fewer (`runtime/grpc/admission.py`).
_WAITING = 4096


@dataclass(slots=True)
class _Waiting(Generic[_I, _O]):
    item: _I
    key: Hashable
    span: tracing.Span | None
    outcome: asyncio.Future[_O] = field(default_factory=asyncio.Future)


class GroupCommit(Generic[_I, _O]):
    """Commits the items of concurrent callers in batches.

    Args:
        commit: Commits some items in one transaction, and returns each one's outcome, of which a refusal is one. What
            it raises concerns the batch.
        key: Names what an item is about; None: `commit` takes several items about one thing.
        limit: Items in one batch at most.
        committed: Is told of each commit how many items it had.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[_I]], Awaitable[Sequence[_O]]],
        *,
        key: Callable[[_I], Hashable] | None = None,
        limit: int = _LIMIT,
        committed: Callable[[int], None] | None = None,
    ) -> None:
        self._commit = commit
        self._key = key
        self._limit = limit
        self._committed = committed
        self._context = contextvars.copy_context()
        self._waiting: deque[_Waiting[_I, _O]] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def run(self, item: _I) -> _O:
        """Commit an item, alone or with others; return its outcome. Raises as `run_all`."""
        (outcome,) = await self.run_all((item,))
        return outcome

    async def run_all(self, items: Sequence[_I]) -> list[_O]:
        """Commit some items, with others if they come at the same time; return the outcome of each, in their order.

        They may be committed in several batches. If it raises, some of them may have been committed.

        Raises:
            ResourceExhausted: COMMITS_WAITING: too many items wait. Nothing was done.
            Exception: What `commit` raised of the batch, or of the item alone.
        """
        if not items:
            return []
        if len(self._waiting) + len(items) > _WAITING:
            raise ResourceExhausted("COMMITS_WAITING", "too many changes wait for the database; try again")
        with tracing.span("commit"):
            span = tracing.current()
            waiting: list[_Waiting[_I, _O]] = [
                _Waiting(item, self._key(item) if self._key else object(), span) for item in items
            ]
            self._waiting.extend(waiting)
            if self._writer is None:
                self._writer = asyncio.create_task(self._write(), context=self._context.copy())
            outcomes = [each.outcome for each in waiting]
            await asyncio.wait(outcomes)  # unlike gather, it cancels none of them with its caller
            return [outcome.result() for outcome in outcomes]

    async def _write(self) -> None:
        """Commit batch after batch until no item waits."""
        try:
            while self._waiting:
                await self._commit_batch(self._next_batch())
        finally:
            self._writer = None

    def _next_batch(self) -> list[_Waiting[_I, _O]]:
        """Take the items that waited longest, each key once."""
        batch: list[_Waiting[_I, _O]] = []
        later: list[_Waiting[_I, _O]] = []
        keys: set[Hashable] = set()
        while self._waiting and len(batch) < self._limit:
            waiting = self._waiting.popleft()
            (later if waiting.key in keys else batch).append(waiting)
            keys.add(waiting.key)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit_batch(self, batch: Sequence[_Waiting[_I, _O]]) -> None:
        try:
            with tracing.batch("commit batch", batch):
                outcomes = await self._commit([waiting.item for waiting in batch])
            answered = list(zip(batch, outcomes, strict=True))
            if self._committed is not None:
                self._committed(len(batch))
        except Exception as error:
            if len(batch) > 1 and _may_be_of_one_item(error):
                await asyncio.gather(*(self._commit_batch([waiting]) for waiting in batch))
                return
            for waiting in batch:
                waiting.outcome.set_exception(error)
                waiting.outcome.exception()  # marks it as taken: its caller may have been cancelled
            return
        for waiting, outcome in answered:
            waiting.outcome.set_result(outcome)


def _may_be_of_one_item(error: Exception) -> bool:
    """Return whether one item may have caused it; nothing of the batch was committed then."""
    return isinstance(error, StatementTimeout) or not isinstance(error, (Unavailable, OutcomeUnknown))
