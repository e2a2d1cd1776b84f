"""What an endpoint's load remembers, and how it fades."""

from __future__ import annotations

import pytest

from coordination.channel.load import DECAY_S, Load


def ended(load: Load, now_s: float, took_s: float, *, failed: bool = False) -> None:
    load.began()
    load.ended(now_s, took_s, failed=failed)


def test_calls_in_flight() -> None:
    """Each call counts from being sent until it is answered, fails or is given up."""
    load = Load()
    for _ in range(3):
        load.began()
    assert load.in_flight == 3
    load.ended(1.0, 0.1, failed=False)
    load.given_up(1.0, 0.1)
    assert load.in_flight == 1


def test_latency_is_unknown_before_the_first_answer() -> None:
    """None is not zero: nobody is called quick who was never called."""
    load = Load()
    assert load.latency_s(5.0) is None
    ended(load, 5.0, 0.2)
    assert load.latency_s(5.0) == 0.2


def test_recent_latencies_weigh_more() -> None:
    """After DECAY_S without a call the next one makes up for two thirds of the average; after much longer, for all."""
    load = Load()
    ended(load, 0.0, 1.0)
    ended(load, DECAY_S, 0.1)
    assert load.latency_s(DECAY_S) == pytest.approx(1.0 * 0.368 + 0.1 * 0.632, abs=0.001)
    ended(load, 100 * DECAY_S, 0.3)
    assert load.latency_s(100 * DECAY_S) == pytest.approx(0.3)


def test_latency_and_failures_fade() -> None:
    """Without news, slowness and failures are forgotten."""
    load = Load()
    ended(load, 0.0, 1.0)
    ended(load, 0.0, 1.0, failed=True)
    ended(load, 0.0, 1.0, failed=True)
    assert load.failures(0.0) == 2.0
    assert load.failures(DECAY_S) == pytest.approx(2 * 0.368, abs=0.001)
    assert (load.latency_s(20 * DECAY_S) or 0) < 1e-6
    assert load.failures(20 * DECAY_S) < 1e-6


def test_quick_failure_does_not_lower_the_latency() -> None:
    """It leaves the average as it was, and says nothing of one that never answered; a slow one raises it."""
    load = Load()
    ended(load, 0.0, 0.0001, failed=True)
    assert load.latency_s(0.0) is None
    ended(load, 0.0, 0.2)
    ended(load, 1.0, 0.0001, failed=True)
    assert load.latency_s(1.0) == 0.2
    ended(load, 2.0, 5.0, failed=True)
    assert (load.latency_s(2.0) or 0) > 0.2


def test_latency_does_not_fade_while_calls_fail() -> None:
    """Otherwise an endpoint of which every call fails would end up cheaper than all that answer."""
    load = Load()
    ended(load, 0.0, 0.2)
    for number in range(1, 100):
        ended(load, number * DECAY_S, 0.0001, failed=True)
    assert load.latency_s(99 * DECAY_S) == 0.2


def test_cancelled_call_only_raises_the_latency() -> None:
    """It makes an endpoint look slower, never quicker."""
    load = Load()
    ended(load, 0.0, 0.1)
    before_s = load.latency_s(1.0)
    load.began()
    load.given_up(1.0, 0.001)
    assert load.latency_s(1.0) == before_s
    load.began()
    load.given_up(10.0, 2.0)
    assert (load.latency_s(10.0) or 0) > 1.0
