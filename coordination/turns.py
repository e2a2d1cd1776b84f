"""Long work on the event loop, done in turns: other tasks run in between.

The work is a generator that yields wherever it may be interrupted. It must cope with what may change meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

#: The length of a turn, seconds. Its last step may exceed it.
TURN_S = 0.005

Result = TypeVar("Result")
Work = Generator[None, None, Result]


class _Steps(Generic[Result]):
    """The steps of some work, to be iterated over once.

    Attributes:
        result: What the work returned; there after the last step.
    """

    result: Result

    def __init__(self, work: Work[Result]) -> None:
        self._work = work

    def __iter__(self) -> Iterator[None]:
        self.result = yield from self._work


def at_once(work: Work[Result]) -> Result:
    """Do all of some work in this turn; return its result."""
    steps = _Steps(work)
    for _ in steps:
        pass
    return steps.result


async def in_turns(work: Work[Result], *, now_s: Callable[[], float] = time.monotonic) -> Result:
    """Do some work in turns of `TURN_S`; return its result. What takes less is done in one turn."""
    steps, ends_s = _Steps(work), now_s() + TURN_S
    for _ in steps:
        if now_s() >= ends_s:
            await asyncio.sleep(0)
            ends_s = now_s() + TURN_S
    return steps.result
