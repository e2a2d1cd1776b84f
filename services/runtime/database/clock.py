"""A service's wall clock, taken from its database, so that all instances compare the same times.

Leases, the times at which a payment is asked about again and the ages of the outbox are written by one instance and
read by another. With each machine's own clock, an instance an hour ahead would leave work that is not
touched for an hour. So every instance asks the database for the time and counts on from there with its monotonic clock.

On SQLite the database's clock is the machine's, which all its instances share.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from services.kernel.clock import Clock
from services.kernel.errors import Unavailable
from services.runtime.database.database import Database

_SET_AGAIN_S: Final = 10.0
#: An answer that took longer says too little of when it was given.
_PROMPT_S: Final = 1.0


class DatabaseClock:
    """A `Clock`.

    Args:
        clock: Of which only the monotonic time is used.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._ahead_ms: float | None = None  # of the monotonic clock

    def now_ms(self) -> int:
        """Unix time in milliseconds, as the database has it. `set` comes first."""
        if self._ahead_ms is None:
            raise AssertionError("the clock was never set")
        return int(self._clock.monotonic_s() * 1000 + self._ahead_ms)

    def monotonic_s(self) -> float:
        """Return the machine's monotonic time."""
        return self._clock.monotonic_s()

    async def set(self) -> None:
        """Ask the database.

        Raises:
            Unavailable: It does not answer; the clock goes on as it did.
        """
        began_s = self._clock.monotonic_s()
        now_ms = await self._database.now_ms()
        ended_s = self._clock.monotonic_s()
        if self._ahead_ms is None or ended_s - began_s <= _PROMPT_S:
            self._ahead_ms = now_ms - (began_s + ended_s) / 2 * 1000

    async def run(self) -> None:
        """Set it repeatedly until cancelled."""
        while True:
            await asyncio.sleep(_SET_AGAIN_S)
            with suppress(Unavailable):
                await self.set()
