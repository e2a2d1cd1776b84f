"""Show a run: a table on a terminal, one JSON document, or one HTML page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from services.chaos.report import page
from tests.bench.settles.results import CEILING, OURS_POSTGRESQL, OURS_SQLITE, PEER, Line, Spread, ratio, summary
from tests.bench.settles.run import Outcome

COLUMNS: Final = (
    "callers",
    "system",
    "orders",
    "orders/s: median (least–most)",
    "p50 ms",
    "p99 ms",
    "orders/s ÷ peer",
    "p50 ÷ peer",
    "sent again",
)
_TITLE: Final = "Settles of distinct orders"
_COLOURS: Final = {OURS_POSTGRESQL: "#2f6fb0", OURS_SQLITE: "#5fa8a0", PEER: "#c8871a", CEILING: "#8a8f98"}
_OTHER_COLOUR: Final = "#7b5ea7"
_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _HEAD = 900, 220, 150, 18, 6, 24


def rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """Return the cells of the table."""
    return [
        (
            str(line.callers),
            line.system,
            f"{line.orders:,}",
            f"{shown(line.per_s.median)} ({shown(line.per_s.least)}–{shown(line.per_s.greatest)})",
            shown(line.p50_ms.median),
            shown(line.p99_ms.median),
            shown_ratio(line.rate_ratio),
            shown_ratio(line.p50_ratio),
            str(line.retries),
        )
        for line in lines
    ]


def against_ceiling(outcome: Outcome) -> dict[str, float]:
    """Return each system's orders a second with 8 callers divided by pgbench's with 8 clients, by system."""
    every = [one for one in outcome.measurements if one.callers == 8]
    ceiling = [one for one in every if one.system == CEILING]
    names = dict.fromkeys(one.system for one in every if one.system != CEILING)
    ratios = {
        name: ratio([one for one in every if one.system == name], ceiling, lambda one: one.per_s) for name in names
    }
    return {name: value for name, value in ratios.items() if value is not None}


def document(outcome: Outcome, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the run as JSON has it: facts, a line for each system, and every measurement."""
    return {
        "facts": dict(facts),
        "ok": not outcome.problems,
        "problems": outcome.problems,
        "lines": [asdict(line) for line in summary(outcome.measurements)],
        "against_ceiling": against_ceiling(outcome),
        "measurements": [asdict(one) for one in outcome.measurements],
    }


def html(outcome: Outcome, facts: Mapping[str, str], command: str) -> str:
    """Return the page."""
    lines = summary(outcome.measurements)
    return page.render(
        _TITLE,
        "violated" if outcome.problems else "ok",
        reasons=outcome.problems[:20],
        facts=facts,
        command=command,
        sections={
            "Orders a second": bars(lines, lambda line: line.per_s, "/s", one_scale=True),
            "Median latency": bars(lines, lambda line: line.p50_ms, "ms", one_scale=False),
            "99th percentile of the latency": bars(lines, lambda line: line.p99_ms, "ms", one_scale=False),
            "All of it": _table(lines),
            "What is compared": _NOTES,
        },
    )


def bars(lines: Sequence[Line], value: Callable[[Line], Spread], unit: str, *, one_scale: bool) -> str:
    """Draw a bar for each line, grouped by the number of callers, with the least and the greatest round.

    Args:
        one_scale: Whether all groups have the same scale; otherwise each has its own.
    """
    groups: dict[int, list[Line]] = {}
    for line in lines:
        groups.setdefault(line.callers, []).append(line)
    most = max((value(line).greatest for line in lines), default=0.0)
    parts, y = [], 0
    for callers, members in sorted(groups.items()):
        longest = most if one_scale else max(value(line).greatest for line in members)
        parts.append(f'<text x="0" y="{y + 16}">{callers} caller{"s" * (callers != 1)}</text>')
        y += _HEAD
        for line in members:
            parts.append(_bar(line.system, value(line), longest, unit, y))
            y += _BAR + _GAP
        y += _GAP
    return f'<svg viewBox="0 0 {_WIDTH} {y}" role="img">{"".join(parts)}</svg>'


def shown(number: float) -> str:
    """Return three digits or so."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def shown_ratio(number: float | None) -> str:
    """Return a ratio; nothing if there is none."""
    return "" if number is None else f"{number:.2f} ×"


def _bar(name: str, value: Spread, longest: float, unit: str, y: int) -> str:
    def x(number: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * number / (longest or 1.0), 1)

    middle = y + _BAR / 2
    colour = _COLOURS.get(name, _OTHER_COLOUR)
    words = f"{shown(value.median)} {unit} ({shown(value.least)}–{shown(value.greatest)})"
    return (
        f'<text class="end" x="{_LEFT - 8}" y="{y + 13}">{escape(name)}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{max(x(value.median) - _LEFT, 1):g}" height="{_BAR}" fill="{colour}"/>'
        f'<line class="axis" x1="{x(value.least):g}" x2="{x(value.greatest):g}" y1="{middle:g}" y2="{middle:g}"/>'
        f'<text x="{math.ceil(x(value.greatest)) + 8}" y="{y + 13}">{escape(words)}</text>'
    )


def _table(lines: Sequence[Line]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows(lines))
    return f"<table><tr>{head}</tr>{body}</table>"


_NOTES: Final = (
    "<p>Every system answers after its commit is durable. The load generator is the same process for all that have "
    "callers, and runs on the same cores. Bars are medians of the rounds; the thin lines go from the least to the "
    "greatest round. A ratio is the median of the ratios within each round. After each round every order was checked "
    "to be settled exactly once, and repeated requests to be answered with the stored response.</p>"
    "<p>“Ours” takes a lock in ZooKeeper, records the payment, posts the journal and completes the order: three "
    "services, a database each. The peer is one process with one transaction: it has no lock service, no "
    "fence, no tokens, no second process and no recovery (tests/bench/peers/one_service). pgbench sends the peer’s "
    "transaction without a service.</p>"
)
