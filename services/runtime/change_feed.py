"""What this process has changed lately, for those who watch it: a bounded list in memory.

    store ──committed──▶ [the last `kept` changes] ──▶ watcher, watcher, …

A watcher reads at its own pace; no step waits for it. Its position names the last change that it has seen, so that it
can go on after its connection was lost.

Invariants
1. A change is published after its commit, in the order of the commits.
2. A watcher is told that changes were lost, never silently passed over: if it is further behind than what is kept, if
   its position is of another life of the process, and if a commit was not answered, so that it may stand.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, TypeVar

from services.kernel.errors import OutcomeUnknown, Unavailable
from services.kernel.ids import RandomIds

_T = TypeVar("_T")
#: At the highest rates that were measured, the changes of some seconds.
_KEPT: Final = 4096
#: Changes in one piece: a message of theirs stays below the largest that is sent.
_AT_ONCE: Final = 64
_IDLE_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Changes(Generic[_T]):
    """A piece of what has changed.

    Args:
        changes: The oldest first; none: nothing has changed for a while, or changes were lost.
        position: Where to go on after them.
        lost: Whether changes before these cannot be told.
    """

    changes: Sequence[_T]
    position: str
    lost: bool = False


class ChangeFeed(Generic[_T]):
    """See the module.

    Args:
        kept: How many changes are kept.
        idle_s: How often a watcher hears that nothing has changed.
    """

    def __init__(self, *, kept: int = _KEPT, idle_s: float = _IDLE_S) -> None:
        self._life = RandomIds().new("life")  # tells this life of the process from others
        self._idle_s = idle_s
        self._kept: deque[_T] = deque(maxlen=kept)
        self._number = 0  # of the newest change
        self._changed = asyncio.Event()
        self._closed = False

    @contextmanager
    def publishing(self) -> Iterator[list[_T]]:
        """Publish what a step writes into the list, once the step has been committed.

        A step that may run twice clears the list at its beginning.
        """
        changes: list[_T] = []
        try:
            yield changes
        except (OutcomeUnknown, asyncio.CancelledError):
            self._lose()
            raise
        self.publish(changes)

    def publish(self, changes: Sequence[_T]) -> None:
        """Tell the watchers of changes that have been committed."""
        if changes:
            self._kept.extend(changes)
            self._number += len(changes)
            self._wake()

    async def watch(self, position: str, wanted: Callable[[_T], bool]) -> AsyncGenerator[Changes[_T], None]:
        """Yield what changes, from a position on; first a piece without changes. It ends with the watcher.

        Args:
            position: Of an earlier watch; empty: from now on.
            wanted: Says of a change whether the watcher wants to know.

        Raises:
            Unavailable: SERVER_STOPPING: watch another instance.
        """
        number, lost = self._number_at(position)
        yield self._piece((), number, lost=lost)
        while True:
            changed = self._changed
            if self._closed:
                raise Unavailable("SERVER_STOPPING", "this server stops; watch another one")
            if number < self._number - len(self._kept):
                number = self._number
                yield self._piece((), number, lost=True)
            elif number < self._number:
                first = len(self._kept) - (self._number - number)
                changes = tuple(islice(self._kept, first, first + _AT_ONCE))
                number += len(changes)
                if found := tuple(filter(wanted, changes)):
                    yield self._piece(found, number)
            elif not await self._changes_within(changed):
                yield self._piece((), number)

    async def run(self) -> None:
        """End every watch when this is cancelled; for the workers of a service."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._closed = True
            self._wake()

    def _lose(self) -> None:
        """Tell the watchers that a change may have been made which cannot be told."""
        self._kept.clear()
        self._number += 1
        self._wake()

    def _number_at(self, position: str) -> tuple[int, bool]:
        """Return the number of the change at a position, and whether changes behind it were lost."""
        if not position:
            return self._number, False
        life, _, number = position.rpartition(".")
        if life != self._life or not number.isdecimal() or int(number[:20]) > self._number:
            return self._number, True
        return int(number), False

    def _piece(self, changes: Sequence[_T], number: int, *, lost: bool = False) -> Changes[_T]:
        return Changes(changes, f"{self._life}.{number}", lost)

    async def _changes_within(self, changed: asyncio.Event) -> bool:
        try:
            async with asyncio.timeout(self._idle_s):
                await changed.wait()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
