"""What the processes of a stack share: messages, whether they restart, and the tasks that keep them running.

Nothing that supervises ends by what it supervises: whatever fails while a process is started, watched or described
(a full disk, no more processes, a terminal that is gone) is reported and tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine

from services.kernel.errors import CountinghouseError


class Supervision:
    """See the module.

    Args:
        tell: Called with a sentence when a process ends, starts again or waits.
        on_change: Called at every change of a process. Must not fail.

    Attributes:
        ready: Whether every process has been SERVING once.
        failure: Why the stack cannot go on, once it cannot.
        restarts: Set while a process that ends is started again.
    """

    def __init__(self, tell: Callable[[str], None], on_change: Callable[[], None] = lambda: None) -> None:
        self.ready = False
        self.failure: CountinghouseError | None = None
        self.restarts = asyncio.Event()
        self.restarts.set()
        self._tell = tell
        self._on_change = on_change
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def run(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` in a task of its own, until `close` at the latest."""
        self._tasks.append(asyncio.create_task(work))

    async def close(self) -> None:
        """End all tasks: no process is started again."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def changed(self) -> None:
        """Report a change of a process."""
        self._on_change()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def tell(self, sentence: str) -> None:
        """Send a message to the watcher; without effect if that fails."""
        with contextlib.suppress(Exception):
            self._tell(sentence)

    def fail(self, error: CountinghouseError) -> None:
        """Report that the stack cannot go on; the first report counts."""
        self.failure = self.failure or error

    async def wait_until(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        """Wait until `condition()`, which is checked at every change of a process.

        Raises:
            TimeoutError: Not within `timeout_s` seconds; None waits for ever.
            StackRefused, StackFailed: The stack cannot go on.
        """
        async with asyncio.timeout(timeout_s):
            while not condition():
                if self.failure is not None:
                    raise self.failure
                await self._changed.wait()
