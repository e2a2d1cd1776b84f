"""A clock for bounds on how long something takes: it stands still while the machine lets no thread run.

On a machine whose processors are all busy every thread wakes late, the tested code's and this module's alike. A thread
here does nothing but sleep; what it oversleeps is taken off the time. Code that waits or blocks makes it oversleep
nothing, so a bound that is broken by the code still fails.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Final

from services.kernel.clock import Clock, SystemClock

_PERIOD_S: Final = 0.005
_USUAL_S: Final = 0.001  # what a thread oversleeps on a quiet machine


class FairClock:
    """A wall clock, and the machine's monotonic clock made fair.

    Args:
        clock: The wall clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return self._clock.now_ms()

    def monotonic_s(self) -> float:
        """As `fair_s`."""
        return fair_s()


class _Sleeper(threading.Thread):
    def __init__(self, clock: Clock) -> None:
        super().__init__(name="fair-clock", daemon=True)
        self.clock = clock
        self.overslept_s = 0.0
        self._due_s = clock.monotonic_s() + _PERIOD_S
        self._never = threading.Event()

    def run(self) -> None:
        while True:
            self._never.wait(_PERIOD_S)
            now_s = self.clock.monotonic_s()
            self.overslept_s, self._due_s = self.overslept_s + self._late_s(now_s), now_s + _PERIOD_S

    def now_s(self) -> float:
        now_s = self.clock.monotonic_s()
        return now_s - self.overslept_s - self._late_s(now_s)

    def _late_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._due_s - _USUAL_S)


@cache
def _sleeper() -> _Sleeper:
    sleeper = _Sleeper(SystemClock())
    sleeper.start()
    return sleeper


def fair_s() -> float:
    """Return the time in seconds, for differences only."""
    return _sleeper().now_s()


def late_s() -> float:
    """Return how much the machine has kept threads waiting so far, seconds; for differences only."""
    return _sleeper().clock.monotonic_s() - fair_s()
