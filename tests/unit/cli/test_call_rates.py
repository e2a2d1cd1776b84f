"""What two looks at a page of metrics say of the calls between them."""

from __future__ import annotations

import grpc
import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from services.cli.call_rates import CallRates, PageCounts, quantile, rates_since
from services.runtime.metrics import CallMetrics

INFINITE = float("inf")
OK, PAID = grpc.StatusCode.OK, grpc.StatusCode.ALREADY_EXISTS


class Process:
    """A server that counts, and its page."""

    def __init__(self, started_s: float = 1_000.0) -> None:
        self.registry = CollectorRegistry()
        self.metrics = CallMetrics(self.registry)
        Gauge("process_start_time_seconds", "As ProcessCollector has it.", registry=self.registry).set(started_s)

    def counts(self, at_s: float) -> PageCounts:
        return PageCounts.parse(generate_latest(self.registry).decode(), at_s)


def between(process: Process, before: PageCounts | None, at_s: float = 2.0, watches: int = 0) -> CallRates:
    return rates_since(before, process.counts(at_s), watches=watches)


def test_calls_between_two_looks_are_a_rate() -> None:
    """Over all methods, and not those from before the first look."""
    process = Process()
    process.metrics.answered("Settle", OK, 0.01)
    before = process.counts(at_s=0.0)
    for method in ("Settle", "Settle", "GetOrder"):
        process.metrics.answered(method, OK, 0.01)
    assert between(process, before).calls_per_s == 1.5


def test_first_look_has_no_rate() -> None:
    """It cannot be known over which time."""
    process = Process()
    process.metrics.answered("Settle", PAID, 0.01)
    assert between(process, None) == CallRates(None, 0)


def test_calls_that_were_not_ok_are_named_by_their_code() -> None:
    process = Process()
    process.metrics.answered("Settle", PAID, 0.01)
    before = process.counts(0.0)
    for code in (OK, PAID, PAID, grpc.StatusCode.UNAVAILABLE):
        process.metrics.answered("Settle", code, 0.01)
    assert between(process, before).not_ok == {"ALREADY_EXISTS": 2, "UNAVAILABLE": 1}


def test_refused_callers_are_named_by_the_reason() -> None:
    """Those of health and reflection by their code."""
    process = Process()
    process.metrics.refused("TOKEN_INVALID")
    before = process.counts(0.0)
    process.metrics.refused("TOKEN_EXPIRED")
    process.metrics.public_refused("Check", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert between(process, before).refused == {"TOKEN_EXPIRED": 1, "RESOURCE_EXHAUSTED": 1}


def test_half_of_the_calls_and_99_of_100_took_so_long() -> None:
    """Between the bounds of the histogram by straight lines; those before the first look do not count."""
    process = Process()
    for _ in range(1000):
        process.metrics.answered("Settle", OK, 5.0)
    before = process.counts(0.0)
    for _ in range(98):
        process.metrics.answered("Settle", OK, 0.004)
    for _ in range(2):
        process.metrics.answered("GetOrder", OK, 0.4)
    found = between(process, before)
    assert found.p50_s is not None
    assert 0.0025 <= found.p50_s <= 0.005
    assert found.p99_s == pytest.approx(0.375)


def test_watch_is_no_call() -> None:
    """It lasts for as long as its reader likes, and ends by being cancelled."""
    process = Process()
    before = process.counts(0.0)
    process.metrics.answered("WatchOrders", grpc.StatusCode.CANCELLED, 3600.0)
    assert between(process, before) == CallRates(0.0, 0)


def test_our_own_watches_are_not_in_flight() -> None:
    process = Process()
    with process.metrics.in_flight(), process.metrics.in_flight(), process.metrics.in_flight():
        assert between(process, None, watches=1).in_flight == 2
        assert between(process, None, watches=9).in_flight == 0


def test_process_that_was_started_again_counts_from_zero() -> None:
    """Although its counts are larger than those of the process before."""
    old = Process(started_s=1_000.0)
    old.metrics.answered("Settle", PAID, 0.01)
    new = Process(started_s=2_000.0)
    for _ in range(3):
        new.metrics.answered("Settle", PAID, 0.01)
    found = between(new, old.counts(0.0))
    assert (found.calls_per_s, found.not_ok) == (1.5, {"ALREADY_EXISTS": 3})


@pytest.mark.parametrize(
    ("buckets", "share", "seconds"),
    [
        ({}, 0.5, None),
        ({0.1: 0, INFINITE: 0}, 0.5, None),
        ({0.1: 10, 0.2: 10, INFINITE: 10}, 0.5, 0.05),
        ({0.1: 5, 0.2: 10, INFINITE: 10}, 0.5, 0.1),
        ({0.1: 5, 0.2: 10, INFINITE: 10}, 0.9, 0.18),
        ({0.1: 0, 0.2: 0, INFINITE: 4}, 0.5, 0.2),
    ],
)
def test_quantile_lies_within_its_bucket(buckets: dict[float, int], share: float, seconds: float | None) -> None:
    """In the last one, which has no end, at its beginning."""
    assert quantile(buckets, share) == (None if seconds is None else pytest.approx(seconds))


def test_page_of_another_program_counts_nothing() -> None:
    assert PageCounts.parse("# TYPE x counter\nx_total 3\n", 1.0) == PageCounts(1.0)


def test_text_that_is_no_page_is_refused() -> None:
    with pytest.raises(ValueError, match="html"):
        PageCounts.parse("<html><body>not found", 1.0)
