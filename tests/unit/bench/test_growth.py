"""The growth benchmark: what it writes of one order, and how it shows what it has measured."""

from __future__ import annotations

import itertools
import re

from tests.bench.growth import report
from tests.bench.growth.filling import Settled
from tests.bench.growth.results import Part, Series, p99_ms

SETTLED = Settled("order-1234567890", "pay-1234567890", "journal-1234567890")


def test_copy_of_a_value_has_ids_of_its_own_of_the_same_length() -> None:
    """In text and in bytes; what is not about the order stays."""
    assert SETTLED.copy_of("settle:order-1234567890:pay-1234567890", 7) == "settle:order-1200000007:pay-1200000007"
    assert SETTLED.copy_of(b"\x12\x10order-1234567890", 7) == b"\x12\x10order-1200000007"
    assert [SETTLED.copy_of(value, 7) for value in ("PAID", 5, None, b"\x00")] == ["PAID", 5, None, b"\x00"]


def test_row_is_about_the_order_if_one_of_its_ids_is_part_of_a_value() -> None:
    assert SETTLED.has({"key": "make-order-1234567890", "at_ms": 1})
    assert not SETTLED.has({"key": "make-order-0000000000", "at_ms": 1234567890})


def test_growth_compares_the_greatest_with_the_least() -> None:
    """Whatever the order in which they were measured; one point has not grown."""
    assert Series("p50", "ms", [(100, 3.0), (1, 2.0), (10, 9.0)]).growth == 1.5
    assert Series("p50", "ms", [(1, 2.0)]).growth is None


def test_percentile_is_one_of_the_durations() -> None:
    assert p99_ms([0.001 * number for number in range(1, 201)]) == 198.0
    assert p99_ms([0.25]) == 250.0


def test_chart_has_a_point_for_each_value_and_starts_at_zero() -> None:
    """The greatest value is at the top, half of it halfway down to the axis."""
    series = Series("p50", "ms", [(1, 1.0), (4, 2.0), (16, 0.0)])
    drawn = report.chart(series, "orders & lines")
    points = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (_, half), (_, top), (_, bottom) = points
    assert [float(x) for x, _ in points] == [100.0, 480.0, 860.0]
    assert float(half) == (float(top) + float(bottom)) / 2
    assert "orders &amp; lines" in drawn


def test_labels_that_would_cover_each_other_are_left_out() -> None:
    """Each point is drawn; the last one keeps its label."""
    drawn = report.chart(Series("memory", "MiB", [(5_000 * number, 100.0) for number in range(1, 21)]), "orders")
    places = [float(x) for x in re.findall(r'<text class="middle" x="([\d.]+)" y="182"', drawn)]
    assert drawn.count("<circle") == 20
    assert places[-1] == 860.0
    assert min(right - left for left, right in itertools.pairwise(places)) >= 60.0


def test_document_says_whether_each_part_is_as_it_must_be() -> None:
    good, bad = Part("books", "orders", ""), Part("callers", "callers", "", problems=["settled 2 times"])
    good.add("p50", "ms", 1_000, 1.23456)
    assert report.document([good], {})["ok"]
    assert not report.document([good, bad], {})["ok"]
    assert report.document([good], {})["parts"][0]["series"][0]["points"] == [[1_000, 1.235]]
    assert report.rows([good]) == [("books", "p50 (ms)", "1,000: 1.23", "")]
