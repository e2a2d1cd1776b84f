"""A clock that tests move by hand."""

from __future__ import annotations


class ManualClock:
    """A clock that moves only by `advance`. Both of its times move together."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._now_ms / 1000

    def advance(self, milliseconds: int) -> None:
        """Move both times forward."""
        self._now_ms += milliseconds
