"""A clock that leaves out the time in which the machine lets no thread run."""

from __future__ import annotations

import pytest

from services.testkit import fair_clock
from services.testkit.fair_clock import FairClock, fair_s, late_s
from tests.fakes.clock import ManualClock


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of a machine, on which the clock's thread has just gone to sleep and is never woken."""
    machine = ManualClock()
    asleep = fair_clock._Sleeper(machine)
    monkeypatch.setattr(fair_clock, "_sleeper", lambda: asleep)
    return machine


def test_time_in_which_no_thread_is_woken_is_left_out(machine: ManualClock) -> None:
    """But for the few milliseconds after which the thread was to wake."""
    began_s = fair_s()
    machine.advance(30_000)
    assert 0.0 < fair_s() - began_s < 0.01
    assert 29.99 < late_s() < 30.0


def test_time_until_the_thread_is_to_wake_counts(machine: ManualClock) -> None:
    began_s = fair_s()
    machine.advance(4)
    assert fair_s() - began_s == pytest.approx(0.004, abs=1e-5)


def test_wall_clock_is_the_one_that_was_given() -> None:
    assert FairClock(ManualClock()).now_ms() == ManualClock().now_ms()
