"""A service's clock is its database's, and goes on by the monotonic clock."""

from __future__ import annotations

import pytest

from services.kernel.errors import Unavailable
from services.runtime.database.clock import DatabaseClock
from tests.fakes.clock import ManualClock


class Hands:
    """A database that says what time it is, after some time; or does not answer."""

    def __init__(self, clock: ManualClock, now_ms: int) -> None:
        self._clock = clock
        self.now = now_ms
        self.takes_ms = 0
        self.away = False

    async def now_ms(self) -> int:
        self._clock.advance(self.takes_ms)
        if self.away:
            raise Unavailable("DATABASE_UNAVAILABLE", "away")
        return self.now


@pytest.fixture
def machine() -> ManualClock:
    """A machine whose wall clock is a year behind."""
    return ManualClock(1_700_000_000_000)


async def test_service_clock_follows_the_database(machine: ManualClock) -> None:
    """Whatever the machine believes; between two settings the monotonic clock carries it on."""
    clock = DatabaseClock(hands := Hands(machine, 1_731_536_000_000), machine)  # type: ignore[arg-type]
    await clock.set()
    assert clock.now_ms() == 1_731_536_000_000
    machine.advance(2_500)
    assert clock.now_ms() == 1_731_536_002_500
    hands.now = 1_731_536_002_400  # it was set back a little
    await clock.set()
    assert clock.now_ms() == 1_731_536_002_400


async def test_database_time_is_taken_at_the_middle_of_the_round_trip(machine: ManualClock) -> None:
    """And one that took more than a second is not believed, but for the first."""
    clock = DatabaseClock(hands := Hands(machine, 5_000_000), machine)  # type: ignore[arg-type]
    hands.takes_ms = 400
    await clock.set()
    assert clock.now_ms() == 5_000_200
    hands.takes_ms = 1_400
    await clock.set()
    assert clock.now_ms() == 5_001_600


async def test_service_clock_goes_on_without_the_database(machine: ManualClock) -> None:
    """The database is away: the caller is told, and the time is still there."""
    clock = DatabaseClock(hands := Hands(machine, 5_000_000), machine)  # type: ignore[arg-type]
    await clock.set()
    hands.away = True
    with pytest.raises(Unavailable):
        await clock.set()
    machine.advance(1_000)
    assert clock.now_ms() == 5_001_000
