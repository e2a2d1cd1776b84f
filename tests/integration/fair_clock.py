"""A clock for bounds on how long something takes: it stands still while the machine lets no thread run.

On a machine whose processors are all busy every thread wakes late, the tested code's and this module's alike. A thread
here does nothing but sleep; what it oversleeps is taken off the time. Code that waits or blocks makes it oversleep
nothing, so a bound that is broken by the code still fails.
"""

from __future__ import annotations

import threading
import time

_PERIOD_S = 0.005
_USUAL_S = 0.001  # what a thread oversleeps on a quiet machine


class _Sleeper(threading.Thread):
    def __init__(self) -> None:
        super().__init__(name="fair-clock", daemon=True)
        self.overslept_s = 0.0
        self._due_s = time.monotonic() + _PERIOD_S

    def run(self) -> None:
        while True:
            time.sleep(_PERIOD_S)
            now_s = time.monotonic()
            self.overslept_s, self._due_s = self.overslept_s + self._late_s(now_s), now_s + _PERIOD_S

    def now_s(self) -> float:
        now_s = time.monotonic()
        return now_s - self.overslept_s - self._late_s(now_s)

    def _late_s(self, now_s: float) -> float:
        return max(0.0, now_s - self._due_s - _USUAL_S)


_sleeper = _Sleeper()
_sleeper.start()


def fair_s() -> float:
    """Return the time in seconds, for differences only."""
    return _sleeper.now_s()


def late_s() -> float:
    """Return how much the machine has kept threads waiting so far, seconds; for differences only."""
    return time.monotonic() - fair_s()
