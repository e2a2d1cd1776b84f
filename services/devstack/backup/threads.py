"""Work in a thread that has ended before its caller goes on, also a caller that is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class Stopped(Exception):
    """The work was given up, for it was asked to stop."""


def go_on(stop: threading.Event) -> None:
    """Do nothing, unless the work is to end. Raises Stopped."""
    if stop.is_set():
        raise Stopped


async def in_thread(work: Callable[[threading.Event], _T]) -> _T:
    """Run `work` in a thread and return its result.

    Args:
        work: Calls `go_on` with its argument now and then. When the caller is cancelled, it is waited for.
    """
    stop = threading.Event()
    job = asyncio.ensure_future(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        stop.set()
        with contextlib.suppress(Exception):
            await job
        raise
