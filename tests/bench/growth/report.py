"""Show a run: a table on a terminal, one JSON document, or one HTML page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from services.chaos.report import page
from tests.bench.growth.results import Part, Series
from tests.bench.settles.report import rounded, shown

COLUMNS: Final = ("part", "what", "values", "greatest ÷ least")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 200, 100, 40, 22, 34
#: Units of the chart between the middles of two labels.
_LABEL: Final = 60


def rows(parts: Sequence[Part]) -> list[tuple[str, str, str, str]]:
    """Return the cells of the table."""
    return [
        (
            part.name,
            f"{series.name} ({series.unit})",
            ", ".join(f"{at:,.0f}: {shown(value)}" for at, value in series.points),
            "" if series.growth is None else f"{series.growth:.2f} ×",
        )
        for part in parts
        for series in part.series
    ]


def document(parts: Sequence[Part], facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the run as JSON has it."""
    return {
        "facts": dict(facts),
        "ok": not any(part.problems for part in parts),
        "parts": [rounded(asdict(part)) for part in parts],
    }


def html(parts: Sequence[Part], facts: Mapping[str, str], command: str) -> str:
    """Return the page."""
    problems = [problem for part in parts for problem in part.problems]
    return page.render(
        "Growth",
        "violated" if problems else "ok",
        reasons=problems[:20],
        facts=facts,
        command=command,
        sections={f"{part.name}: {part.grows}": _section(part) for part in parts},
    )


def _section(part: Part) -> str:
    charts = "".join(f"<h3>{escape(series.name)}</h3>{chart(series, part.grows)}" for series in part.series)
    return f"<p>{escape(part.note)}</p>{charts}"


def chart(series: Series, grows: str) -> str:
    """Draw a series as a line with its points; what grows is on a scale of powers of two, the value begins at zero."""
    greatest = max(value for _, value in series.points) or 1.0
    scale = [math.log2(max(at, 1)) for at, _ in series.points]
    span = (max(scale) - min(scale)) or 1.0

    def x(place: int) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (scale[place] - min(scale)) / span, 1)

    def y(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / greatest, 1)

    bottom = y(0.0)
    line = " ".join(f"{x(place):g},{y(value):g}" for place, (_, value) in enumerate(series.points))
    parts = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom:g}" y2="{bottom:g}"/>',
        f'<text class="end" x="{_LEFT - 8}" y="{bottom:g}">0</text>',
        f'<text class="end" x="{_LEFT - 8}" y="{y(greatest) + 4:g}">{shown(greatest)} {escape(series.unit)}</text>',
        f'<polyline class="quantile" points="{line}"/>',
    ]
    labelled = _apart([x(place) for place in range(len(series.points))])
    for place, (at, value) in enumerate(series.points):
        title = f"{at:,.0f} {grows}: {shown(value)} {series.unit}"
        circle = f'<circle class="ok" cx="{x(place):g}" cy="{y(value):g}" r="3">'
        parts.append(f"{circle}<title>{escape(title)}</title></circle>")
        if place in labelled:
            parts.append(f'<text class="middle" x="{x(place):g}" y="{bottom + 16:g}">{at:,.0f}</text>')
            parts.append(f'<text class="middle" x="{x(place):g}" y="{y(value) - 7:g}">{shown(value)}</text>')
    parts.append(f'<text class="end" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}">{escape(grows)}</text>')
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _apart(places: Sequence[float]) -> set[int]:
    """Return which of some rising places get a label, so that no two cover each other; the last one does."""
    chosen = [len(places) - 1]
    for number in reversed(range(len(places) - 1)):
        if places[chosen[-1]] - places[number] >= _LABEL:
            chosen.append(number)
    return set(chosen)
