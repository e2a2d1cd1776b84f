"""Finding out which ZooKeeper this is outlives an absence of the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from services.kernel.errors import OutcomeUnknown, Unavailable
from services.runtime import ensemble
from services.runtime.ensemble import Ensemble


class Connected:
    """A session that is there."""

    session_id = 7

    async def wait_connected(self, _timeout_s: float) -> None: ...

    def subscribe(self, _told: object) -> Callable[[], None]:
        return lambda: None


class Beside:
    """The generation beside the data: away a few times, and then what it is."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.generation = 0

    async def read(self, _database: Any, _table: Any, _fences: Any) -> tuple[int, int]:
        self._fail()
        return self.generation, 0

    async def write(self, _database: Any, _table: Any, generation: int) -> None:
        self._fail()
        self.generation = generation

    def _fail(self) -> None:
        if self._failures:
            raise self._failures.pop(0)


@pytest.mark.parametrize(
    "failures",
    [
        [Unavailable("DATABASE_UNAVAILABLE", "away")],
        [Unavailable("DATABASE_UNAVAILABLE", "away"), OutcomeUnknown("OUTCOME_UNKNOWN", "away")],
    ],
)
async def test_database_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch, failures: list[Exception]) -> None:
    """A server that has begun to listen must not end because its database restarts."""
    beside = Beside(*failures)

    async def ensure(_session: Any, known: int, timeout_s: float, **_: Any) -> int:
        assert timeout_s > 0
        return max(known, 3)

    monkeypatch.setattr(ensemble, "read_newest_fence", beside.read)
    monkeypatch.setattr(ensemble, "write_generation", beside.write)
    monkeypatch.setattr("coordination.locks.generation.ensure", ensure)
    monkeypatch.setattr(ensemble, "_RETRY_S", 0.0)
    found = Ensemble(cast(Any, Connected()), cast(Any, None), cast(Any, None), cast(Any, None))
    keeping = asyncio.create_task(found.keep())
    await found.settle()
    keeping.cancel()
    assert (await found.generation_in(Connected.session_id, 0.0), beside.generation) == (3, 3)
