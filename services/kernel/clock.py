"""Time, as a port: the only module that reads a clock.

Two clocks, never mixed: the wall clock dates what people read and compares with stored times; the monotonic clock
measures waits and deadlines. Nothing that must be right depends on the wall clock: leases by it only decide *when* a
recovery is tried, and fences and conditional updates decide whether it may write. What instances compare with each
other's times is dated by one clock all the same (`runtime/database/clock.py`), or recovery would come too late.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The two clocks."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


def rfc3339(unix_ms: int) -> str:
    """Return a moment as RFC 3339 in UTC with milliseconds, like 2026-11-28T04:03:01.123Z.

    Args:
        unix_ms: Unix milliseconds, not after the year 9999.
    """
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@dataclass(frozen=True, slots=True)
class CallDeadline:
    """The moment by which an answer is due; one for all that a call does.

    Args:
        at_s: A moment of `clock.monotonic_s()`.
    """

    at_s: float
    clock: Clock

    @classmethod
    def after(cls, seconds: float, clock: Clock) -> CallDeadline:
        """Return the moment `seconds` from now."""
        return cls(clock.monotonic_s() + seconds, clock)

    def remaining_s(self) -> float:
        """Return the seconds left; 0 when it has passed."""
        return max(0.0, self.at_s - self.clock.monotonic_s())

    def shaved(self, margin_s: float) -> CallDeadline:
        """Return an earlier deadline, for the next hop: what it says must still reach our caller in time."""
        return CallDeadline(self.at_s - margin_s, self.clock)
