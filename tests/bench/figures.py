"""Figures: what was measured, and how a row of measurements is put in one."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the result.

    Args:
        key: Its name in the JSON document, unit last.
        what: Its name for people.
        target: What was asked for; empty: nothing.
    """

    key: str
    what: str
    value: float
    unit: str
    target: str = ""

    @property
    def shown(self) -> str:
        """The value with its unit, three digits or so."""
        digits = 0 if self.value >= 100 else 1 if self.value >= 10 else 2
        return f"{self.value:.{digits}f} {self.unit}".rstrip()


def median_ms(seconds: Sequence[float]) -> float:
    """The median, in milliseconds."""
    return statistics.median(seconds) * 1000


def p95_ms(seconds: Sequence[float]) -> float:
    """What 95 of 100 stay under, in milliseconds."""
    return statistics.quantiles(seconds, n=20, method="inclusive")[-1] * 1000
