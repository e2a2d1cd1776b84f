"""What a part of the run has measured: series of points, which the page draws and the JSON document lists."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Series:
    """Values of one unit, each at a value of what grows.

    Args:
        name: As the page and the document show it.
        points: (what grows, value), in the order in which they were measured.
    """

    name: str
    unit: str
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def growth(self) -> float | None:
        """The value at the greatest of what grows divided by that at the least; None: there is nothing to divide."""
        if len(self.points) < 2:
            return None
        (_, first), (_, last) = min(self.points), max(self.points)
        return last / first if first else None


@dataclass(slots=True)
class Part:
    """One question of the run, and its answer.

    Args:
        grows: What grows.
        note: How it was measured, in sentences.
        problems: What was not as it must be, in sentences.
    """

    name: str
    grows: str
    note: str
    series: list[Series] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, unit: str, at: float, value: float) -> None:
        """Add a point to a series, which begins with its first point."""
        for series in self.series:
            if series.name == name:
                series.points.append((at, value))
                return
        self.series.append(Series(name, unit, [(at, value)]))


def median_ms(lasted_s: Sequence[float]) -> float:
    """Return the median of some durations, milliseconds."""
    return statistics.median(lasted_s) * 1000


def p99_ms(lasted_s: Sequence[float]) -> float:
    """Return what 99 of 100 durations stay under, milliseconds."""
    ordered = sorted(lasted_s)
    return ordered[max(math.ceil(len(ordered) * 0.99) - 1, 0)] * 1000
