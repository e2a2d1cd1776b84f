from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from services.runtime.database import Database
from services.runtime.migrations import bring_up_to_date


@pytest.fixture
async def fresh_database(tmp_path: Path) -> AsyncIterator[Callable[[Path], Awaitable[Database]]]:
    numbers = itertools.count()
    async with AsyncExitStack() as stack:

        async def make(package: Path) -> Database:
            database = await stack.enter_async_context(
                Database(f"sqlite+aiosqlite:///{tmp_path / f'{next(numbers)}.db'}")
            )
            await bring_up_to_date(database, package, migrate=True)
            return database

        yield make
