"""Clocks and the deadline."""

from __future__ import annotations

from services.kernel.clock import CallDeadline, SystemClock
from tests.fakes.clock import ManualClock


def test_deadline_counts_down_and_stops_at_zero() -> None:
    """Remaining time is never negative."""
    clock = ManualClock()
    deadline = CallDeadline.after(2.0, clock)
    assert deadline.remaining_s() == 2.0
    clock.advance(1_500)
    assert deadline.remaining_s() == 0.5
    clock.advance(1_000)
    assert deadline.remaining_s() == 0.0


def test_shaved_deadline_is_earlier() -> None:
    """The next hop has to answer before our own caller gives up."""
    deadline = CallDeadline.after(2.0, ManualClock()).shaved(0.5)
    assert deadline.remaining_s() == 1.5


def test_machines_clocks_move() -> None:
    """Wall time is after this was written; monotonic time never falls."""
    clock = SystemClock()
    assert clock.now_ms() > 1_700_000_000_000
    first = clock.monotonic_s()
    assert clock.monotonic_s() >= first
