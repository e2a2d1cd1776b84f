"""What the metrics of an instance say of its calls: between two looks at its page.

    page ──parse──▶ PageCounts ──┐
    page ──parse──▶ PageCounts ──┴─ rates_since ──▶ CallRates

A process that was started between the looks has counted from 0. Watches are no calls here: one lasts for as long as its
reader likes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

_OK: Final = "OK"
_WATCH: Final = "Watch"


@dataclass(frozen=True, slots=True)
class PageCounts:
    """What a process has counted.

    Args:
        at_s: When the page was read, monotonic seconds of the reader.
        started_s: When the process began, Unix seconds; 0: the page does not say.
        calls: Answered, by gRPC code.
        buckets: Answered within so many seconds, by that bound; the last bound is infinite.
        refused: Callers refused, and calls of health and reflection, by reason.
        in_flight: Calls, and watches, that are not answered now.
    """

    at_s: float
    started_s: float = 0.0
    calls: Mapping[str, float] = field(default_factory=dict)
    buckets: Mapping[float, float] = field(default_factory=dict)
    refused: Mapping[str, float] = field(default_factory=dict)
    in_flight: int = 0

    @classmethod
    def parse(cls, page: str, at_s: float) -> PageCounts:
        """Return what is on a page of `runtime/metrics.py`.

        Raises:
            ValueError: It is no page of metrics.
        """
        calls: defaultdict[str, float] = defaultdict(float)
        buckets: defaultdict[float, float] = defaultdict(float)
        refused: defaultdict[str, float] = defaultdict(float)
        found = {"process_start_time_seconds": 0.0, "countinghouse_calls_in_flight": 0.0}
        for sample in _samples(page):
            match sample.name:
                case "countinghouse_calls_total":
                    calls[sample.labels["code"]] += sample.value
                case "countinghouse_call_seconds_bucket":
                    buckets[float(sample.labels["le"])] += sample.value
                case "countinghouse_identity_refusals_total":
                    refused[sample.labels["reason"]] += sample.value
                case "countinghouse_public_refusals_total":
                    refused[sample.labels["code"]] += sample.value
                case name if name in found:
                    found[name] = sample.value
        started_s, in_flight = found.values()
        return cls(at_s, started_s, calls, buckets, refused, int(in_flight))


@dataclass(frozen=True, slots=True)
class CallRates:
    """The calls of an instance between two looks.

    Args:
        calls_per_s: None: this is the first look.
        p50_s, p99_s: How long half of the calls took at most, and 99 of 100; None: there were none. The last finite
            bound of the histogram means that it was at least so long.
        not_ok: Calls answered with another code than OK, by code.
        refused: As in `PageCounts`.
    """

    calls_per_s: float | None
    in_flight: int
    p50_s: float | None = None
    p99_s: float | None = None
    not_ok: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)


def rates_since(before: PageCounts | None, now: PageCounts, *, watches: int) -> CallRates:
    """Return what happened between two looks.

    Args:
        before: None: this is the first look.
        watches: How many of the calls in flight are our own watches.
    """
    in_flight = max(0, now.in_flight - watches)
    if before is None:
        return CallRates(None, in_flight)
    if before.started_s != now.started_s:  # another process, which began to count anew
        before = PageCounts(before.at_s)
    calls = _increase(before.calls, now.calls)
    took = {bound: int(value - before.buckets.get(bound, 0)) for bound, value in now.buckets.items()}
    elapsed_s = max(now.at_s - before.at_s, 1e-3)
    return CallRates(
        sum(calls.values()) / elapsed_s,
        in_flight,
        quantile(took, 0.5),
        quantile(took, 0.99),
        {code: number for code, number in calls.items() if code != _OK},
        _increase(before.refused, now.refused),
    )


def quantile(buckets: Mapping[float, int], share: float) -> float | None:
    """Return within how many seconds a share of the calls was answered, between the bounds by straight lines.

    Args:
        buckets: How many were answered within each bound.

    Returns:
        None: There are no calls.
    """
    bounds = sorted(buckets)
    if not bounds or not (total := buckets[bounds[-1]]):
        return None
    wanted = share * total
    for lower, upper in pairwise([0.0, *bounds]):
        below = buckets.get(lower, 0)
        if buckets[upper] >= wanted:
            inside = buckets[upper] - below
            return lower if upper == float("inf") else lower + (upper - lower) * (wanted - below) / inside
    return None


def _samples(page: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if not sample.labels.get("method", "").startswith(_WATCH):
                yield sample


def _increase(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, int]:
    """Return by how much each count has grown; those that have not are left out."""
    grown = {key: int(value - before.get(key, 0)) for key, value in now.items()}
    return {key: number for key, number in grown.items() if number > 0}
