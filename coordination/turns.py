"""Long work on the event loop, done in turns: other tasks run in between.

The work is a generator that yields wherever it may be interrupted. It must cope with what may change meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from typing import TypeVar

#: How long a turn takes, and the longest step of the work besides.
TURN_S = 0.005

Result = TypeVar("Result")
Work = Generator[None, None, Result]


def at_once(work: Work[Result]) -> Result:
    """Do all of some work in this turn; return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result


async def in_turns(work: Work[Result], *, now_s: Callable[[], float] = time.monotonic) -> Result:
    """Do some work in turns of `TURN_S`; return its result. What takes less is done in one turn."""
    ends_s = now_s() + TURN_S
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: Result = end.value
            return result
        if now_s() >= ends_s:
            await asyncio.sleep(0)
            ends_s = now_s() + TURN_S
