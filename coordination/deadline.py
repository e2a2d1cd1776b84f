"""One deadline for all steps of a call: made once from a timeout, and passed down instead of timeouts.

A timeout handed down starts anew with every step (kazoo's ``Lock.acquire(timeout=2)`` took 5.2 s that way); a
deadline does not. Times are ``time.monotonic()`` seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in monotonic time, or none at all (``at`` is infinite)."""

    at: float

    @classmethod
    def after(cls, timeout_s: float | None) -> Deadline:
        """Return the deadline ``timeout_s`` seconds from now; None means never."""
        return cls(float("inf")) if timeout_s is None else cls(time.monotonic() + timeout_s)

    def remaining_s(self) -> float | None:
        """Return the seconds left, never negative; None (as asyncio has it) when there is no deadline."""
        if self.at == float("inf"):
            return None
        return max(0.0, self.at - time.monotonic())

    def expired(self) -> bool:
        """Tell whether the time is up."""
        return time.monotonic() >= self.at

    def at_most(self, timeout_s: float) -> Deadline:
        """Return the earlier of this deadline and ``timeout_s`` seconds from now: a slice for one step."""
        return Deadline(min(self.at, time.monotonic() + timeout_s))
