"""Batches of settles give way to single calls.

Whatever is served at the same time shares the processors and the group commits, so a batch of 64 would make a clerk
beside it wait for all of its orders. While clerks call, batches are served in small parts instead, one part at a time
in this process, and each part is followed by a pause as long as it took.

    no clerk calls    [ 64 orders ] [ 64 orders ]
    a clerk calls     [ 8 ] pause [ 8 ] pause [ 8 ] …

Beside a run with two batches under way, the 99th percentile of clerks' calls was 6.5 times that without a run while
batches were served whole, and is 1.4 times that with parts of eight (`make bench-settle`).

Giving way never makes a batch fail: one that has used a third of the time to its deadline is served at once, and a
part that waits for something slow, like a card, lets the next part begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from services.kernel.clock import CallDeadline, Clock

_I = TypeVar("_I")
_O = TypeVar("_O")

#: Orders of a batch that are served together while clerks call.
_PART: Final = 8
#: How long after the last call of a clerk the next is still expected, in seconds. A clerk serves a customer in between.
_QUIET_S: Final = 2.0
#: How long a part is alone at most, and the pause after it, in seconds.
_LONGEST_S: Final = 0.25
#: The part of a batch's time in which it gives way.
_GIVES_WAY: Final = 1 / 3


class Pacing:
    """Knows whether clerks call, and serves batches accordingly.

    Args:
        pause: Waits for so many seconds.
    """

    def __init__(self, clock: Clock, pause: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._clock = clock
        self._pause = pause
        self._calls = 0
        self._quiet_at_s = clock.monotonic_s()
        self._turn = asyncio.Lock()

    @contextmanager
    def single_call(self) -> Iterator[None]:
        """Serve a clerk's call; batches give way to it."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._quiet_at_s = self._clock.monotonic_s() + _QUIET_S

    async def serve(
        self, items: Sequence[_I], deadline: CallDeadline, part: Callable[[Sequence[_I]], Awaitable[Sequence[_O]]]
    ) -> list[_O]:
        """Serve a batch; return the outcome of each item, in their order.

        Args:
            deadline: Of the whole batch.
            part: Serves some of its items, all at the same time.
        """
        outcomes: list[_O] = []
        until_s = self._clock.monotonic_s() + deadline.remaining_s() * _GIVES_WAY
        while left := items[len(outcomes) :]:
            if self._is_quiet() or not await self._take_turn(until_s):
                outcomes += await part(left)
            else:
                outcomes += await self._serve_in_turn(part(left[:_PART]))
        return outcomes

    async def _take_turn(self, until_s: float) -> bool:
        """Wait for the turn; return whether it came in time, and a clerk still calls."""
        left_s = until_s - self._clock.monotonic_s()
        if left_s <= 0:
            return False
        try:
            async with asyncio.timeout(left_s):
                await self._turn.acquire()
        except TimeoutError:
            return False
        if self._is_quiet():
            self._turn.release()
            return False
        return True

    async def _serve_in_turn(self, serving: Awaitable[Sequence[_O]]) -> Sequence[_O]:
        """Serve a part; give the turn back after it and a pause, or before its end if it is slow."""
        task = asyncio.ensure_future(serving)
        try:
            started_s = self._clock.monotonic_s()
            try:
                await asyncio.wait({task}, timeout=_LONGEST_S)
                await self._pause(min(self._clock.monotonic_s() - started_s, _LONGEST_S))
            finally:
                self._turn.release()
            return await task
        finally:
            task.cancel()

    def _is_quiet(self) -> bool:
        return not self._calls and self._clock.monotonic_s() >= self._quiet_at_s
