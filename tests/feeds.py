"""What a store tells those who watch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

from services.runtime.change_feed import ChangeFeed, Changes

_T = TypeVar("_T")


class Watch(Generic[_T]):
    """A watch that has begun."""

    def __init__(self, watched: AsyncGenerator[Changes[_T], None]) -> None:
        self._watched = watched

    async def until(self, last: _T) -> list[_T]:
        """The changes from the beginning to the last one."""
        found: list[_T] = []
        async with asyncio.timeout(30):
            while last not in found:
                piece = await anext(self._watched)
                assert not piece.lost
                found += piece.changes
        return found


@asynccontextmanager
async def watching(feed: ChangeFeed[_T]) -> AsyncIterator[Watch[_T]]:
    """Watches a feed from now on."""
    async with aclosing(feed.watch("", lambda _change: True)) as watched:
        await anext(watched)
        yield Watch(watched)
