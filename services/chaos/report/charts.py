"""Draw the charts of a report as SVG: outcomes, latencies and faults over time, and the calls about one order.

Time runs from left to right, from the first call to the last answer. The charts of a report share its scale, so that
they can be read below one another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from services.checker.history import History, Outcome, Phase, RecordedCall

WIDTH = 1080
_LEFT = 150
_RIGHT = 36
_MAX_POINTS = 6000
_QUANTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
_MIN_BAR_PX = 3.0


@dataclass(frozen=True, slots=True)
class Window:
    """The time during which a fault was active; seconds since the run began."""

    fault: str
    target: str
    began_s: float
    ended_s: float


class TimeScale:
    """Converts seconds since a run began to horizontal positions."""

    def __init__(self, history: History) -> None:
        moments = [operation.invoked_ns for operation in history.calls]
        moments += [moment for operation in history.calls if (moment := operation.answered_ns) is not None]
        moments += [nemesis.at_ns for nemesis in history.nemesis]
        self.began_ns = min(moments, default=0)
        self.length_s = max((max(moments, default=0) - self.began_ns) / 1e9, 1.0)

    def seconds(self, at_ns: int) -> float:
        """Return seconds since the run began."""
        return (at_ns - self.began_ns) / 1e9

    def x(self, seconds: float) -> float:
        """Return the position of a moment."""
        return round(_LEFT + seconds / self.length_s * (WIDTH - _LEFT - _RIGHT), 1)


def windows(history: History, scale: TimeScale) -> list[Window]:
    """Return every injected fault, from its injection to its healing, or to the end of the run."""
    found: list[Window] = []
    begun: dict[tuple[str, str], float] = {}
    for moment in history.nemesis:
        key = (moment.fault, moment.target)
        if moment.phase is Phase.BEGUN:
            begun[key] = scale.seconds(moment.at_ns)
        elif moment.phase is Phase.ENDED and key in begun:
            found.append(Window(*key, begun.pop(key), scale.seconds(moment.at_ns)))
    found += [Window(*key, began_s, scale.length_s) for key, began_s in begun.items()]
    return sorted(found, key=lambda window: (window.began_s, window.fault))


def faults(scale: TimeScale, injected: Sequence[Window]) -> str:
    """Draw a row for each fault type."""
    names = list(dict.fromkeys(window.fault for window in injected))
    height = 20 * len(names) + 26
    parts = [_axis(scale, height)]
    for row, name in enumerate(names):
        y = 6 + 20 * row
        parts.append(_text(_LEFT - 8, y + 11, name, "label end"))
        for window in injected:
            if window.fault == name:
                words = f"{window.fault} {window.target}: {window.began_s:.1f}–{window.ended_s:.1f} s"
                parts.append(_bar(scale, window.began_s, window.ended_s, y, 14, "fault", words))
    return _svg(height, parts, "Faults over time")


def answers(history: History, scale: TimeScale, injected: Sequence[Window]) -> str:
    """Draw the calls answered in each second, by outcome."""
    height, floor = 190, 160
    buckets = max(1, math.ceil(scale.length_s))
    counts = {outcome: [0] * buckets for outcome in Outcome}
    for operation in history.calls:
        ended_ns = operation.answered_ns if operation.answered_ns is not None else operation.invoked_ns
        counts[operation.outcome][min(int(scale.seconds(ended_ns)), buckets - 1)] += 1
    most = max((sum(counts[outcome][second] for outcome in Outcome) for second in range(buckets)), default=1) or 1
    parts = [*_shades(scale, injected, floor), _axis(scale, height)]
    for share in (0.5, 1.0):
        y = floor - share * (floor - 14)
        parts += [
            _line(_LEFT, y, WIDTH - _RIGHT, y, "grid"),
            _text(_LEFT - 8, y + 4, f"{most * share:.0f}/s", "label end"),
        ]
    for second in range(buckets):
        base = float(floor)
        for outcome in Outcome:
            if count := counts[outcome][second]:
                tall = count / most * (floor - 14)
                base -= tall
                left, right = scale.x(second), scale.x(min(second + 1, scale.length_s))
                title = f"second {second}: {count} {outcome}"
                parts.append(_rect(left + 0.5, base, max(right - left - 1, 1), tall, str(outcome), title))
    return _svg(height, parts, "Answers by outcome")


def latencies(history: History, scale: TimeScale, injected: Sequence[Window]) -> str:
    """Draw how long each answer took, on a logarithmic scale, and quantiles of each second."""
    height, floor, ceiling = 240, 210, 10
    answered = [
        (scale.seconds(operation.answered_ns), (operation.answered_ns - operation.invoked_ns) / 1e6, operation)
        for operation in history.calls
        if operation.answered_ns is not None
    ]
    low, high = 0.0, math.log10(max([latency_ms for _, latency_ms, _ in answered], default=10.0) + 10)

    def y(latency_ms: float) -> float:
        return floor - (math.log10(max(latency_ms, 1.0)) - low) / (high - low) * (floor - ceiling)

    parts = [*_shades(scale, injected, floor), _axis(scale, height)]
    for power in range(int(high) + 1):
        parts += [
            _line(_LEFT, y(10**power), WIDTH - _RIGHT, y(10**power), "grid"),
            _text(_LEFT - 8, y(10**power) + 4, _duration(10.0**power), "label end"),
        ]
    step = max(1, len(answered) // _MAX_POINTS)
    for at_s, latency_ms, operation in answered[::step]:
        title = f"{operation.kind} of {operation.process}: {_duration(latency_ms)}, {_result(operation)}"
        parts.append(
            f'<circle cx="{scale.x(at_s)}" cy="{y(latency_ms):.1f}" r="1.7" class="{operation.outcome}">'
            f"<title>{escape(title)}</title></circle>"
        )
    for share, name in _QUANTILES:
        points = [
            (scale.x(second + 0.5), y(_quantile(values, share)))
            for second, values in enumerate(_by_second(((at_s, latency_ms) for at_s, latency_ms, _ in answered), scale))
            if values and second + 0.5 <= scale.length_s
        ]
        if points:
            path = " ".join(f"{x:.1f},{point:.1f}" for x, point in points)
            parts += [
                f'<polyline points="{path}" class="quantile {name}"/>',
                _text(points[-1][0] + 2, points[-1][1] + 4, name, "label"),
            ]
    return _svg(height, parts, "Latency")


def lane(operations: Sequence[RecordedCall]) -> str:
    """Draw one order on a scale of its own: a row for each process that called about it, a bar for each call."""
    scale = TimeScale(History(tuple(operations)))
    processes = list(dict.fromkeys(operation.process for operation in operations))
    height = 24 * len(processes) + 26
    parts = [_axis(scale, height)]
    for row, process in enumerate(processes):
        y = 6 + 24 * row
        parts.append(_text(_LEFT - 8, y + 12, process, "label end"))
        for operation in operations:
            if operation.process != process:
                continue
            start_s = scale.seconds(operation.invoked_ns)
            end_s = scale.length_s if operation.answered_ns is None else scale.seconds(operation.answered_ns)
            parts.append(
                _bar(scale, start_s, end_s, y, 16, str(operation.outcome), f"{operation.kind}: {_result(operation)}")
            )
            if scale.x(end_s) - scale.x(start_s) > 60:
                parts.append(_text(scale.x(start_s) + 4, y + 12, f"{operation.kind} {_result(operation)}", "inside"))
    return _svg(height, parts, "One order")


def _result(operation: RecordedCall) -> str:
    """Return the outcome of a call in a word or two."""
    answer = operation.answer
    if operation.answered_ns is None:
        return "never answered"
    words = answer.reason or answer.state or answer.code or "no answer"
    return f"{words}{' (again)' if answer.replayed else ''}"


def _by_second(points: Iterable[tuple[float, float]], scale: TimeScale) -> list[list[float]]:
    seconds: list[list[float]] = [[] for _ in range(math.ceil(scale.length_s) + 1)]
    for at_s, value in points:
        seconds[int(at_s)].append(value)
    return seconds


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _duration(milliseconds: float) -> str:
    return f"{milliseconds / 1000:g} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _shades(scale: TimeScale, injected: Sequence[Window], floor: float) -> list[str]:
    return [
        _rect(
            scale.x(window.began_s),
            0,
            max(scale.x(window.ended_s) - scale.x(window.began_s), 1),
            floor,
            "shade",
            f"{window.fault} {window.target}".strip(),
        )
        for window in injected
    ]


def _axis(scale: TimeScale, height: float) -> str:
    """Draw ticks at round numbers of seconds, along the lower edge."""
    step = next((step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300) if scale.length_s / step <= 14), 600)
    parts = [_line(_LEFT, height - 20, WIDTH - _RIGHT, height - 20, "axis")]
    for number in range(int(scale.length_s / step) + 1):
        x = scale.x(number * step)
        parts += [
            _line(x, height - 20, x, height - 16, "axis"),
            _text(x, height - 4, f"{number * step:g} s", "label middle"),
        ]
    return "".join(parts)


def _bar(scale: TimeScale, began_s: float, ended_s: float, y: float, tall: float, kind: str, title: str) -> str:
    left = scale.x(began_s)
    return _rect(left, y, max(scale.x(ended_s) - left, _MIN_BAR_PX), tall, kind, title)


def _rect(x: float, y: float, wide: float, tall: float, kind: str, title: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"'
    return f'<rect {place} class="{kind}"><title>{escape(title)}</title></rect>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def _svg(height: float, parts: Iterable[str], title: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
