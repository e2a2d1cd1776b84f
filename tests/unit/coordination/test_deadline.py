"""A deadline is one point in time, however often it is handed down."""

from __future__ import annotations

from coordination.deadline import Deadline


def test_deadline_without_a_timeout_never_ends() -> None:
    """No timeout: no deadline, and slices of it end."""
    never = Deadline.after(None)
    assert never.remaining_s() is None
    assert not never.expired()
    left = never.at_most(5).remaining_s()
    assert left is not None
    assert 4 < left <= 5


def test_slices_end_no_later_than_the_whole() -> None:
    """A slice is never longer than what is left, and what is left is never negative."""
    deadline = Deadline.after(1)
    assert deadline.at_most(5).at == deadline.at
    assert deadline.at_most(0.1).at < deadline.at
    past = Deadline.after(-1)
    assert past.expired()
    assert past.remaining_s() == 0.0
