"""How often other tasks have a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


@asynccontextmanager
async def counted() -> AsyncIterator[Callable[[], int]]:
    """Count how often another task has a turn."""
    had = 0

    async def count() -> None:
        nonlocal had
        while True:
            had += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    yield lambda: had
    counting.cancel()
