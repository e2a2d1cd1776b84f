"""Show a run: a table on a terminal, one JSON document, or one HTML page that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any, Final

from services.chaos.report import page
from tests.bench.settles.results import (
    BATCH_BESIDE,
    BESIDE,
    CASHIERS,
    CASHIERS_BESIDE,
    CEILING,
    DBOS,
    OURS_BATCH,
    OURS_KAZOO,
    OURS_POSTGRESQL,
    OURS_SINGLY,
    OURS_SQLITE,
    OURS_TLS,
    OURS_TWO,
    PEER,
    REDIS_LOCK,
    RESTATE,
    SYSTEMS,
    TEMPORAL,
    Line,
    Measurement,
    Spread,
    ratio,
    summary,
)
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
_COLOURS: Final = {
    OURS_POSTGRESQL: "#2f6fb0",
    OURS_TWO: "#2f6fb0",
    OURS_TLS: "#7a9cc6",
    OURS_BATCH: "#1d4e80",
    CASHIERS: "#7aa7a0",
    CASHIERS_BESIDE: "#7aa7a0",
    BATCH_BESIDE: "#1d4e80",
    OURS_SQLITE: "#5fa8a0",
    OURS_KAZOO: "#8fb3d6",
    OURS_SINGLY: "#b9cfe4",
    PEER: "#c8871a",
    REDIS_LOCK: "#dcae63",
    DBOS: "#a5546a",
    RESTATE: "#86466e",
    TEMPORAL: "#6b4a86",
    CEILING: "#8a8f98",
}
_OTHER_COLOUR: Final = "#7b5ea7"
#: Significant digits of a number in the JSON document.
_DIGITS: Final = 4
_MARKDOWN_COLUMNS: Final = (
    "settles of distinct orders",
    "1 caller: p50",
    "8 callers",
    "32 callers",
    "p50, p99",
    "128 callers",
    "÷ one service, 1 / 32 / 128",
)
#: What README.md leaves to the whole table in tests/bench/settles/README.md.
_NOT_IN_SHORT: Final = (*BESIDE, OURS_SQLITE, OURS_KAZOO, OURS_SINGLY, REDIS_LOCK)
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
    of = _by_system(outcome, 8)
    ratios = {name: ratio(rounds, of.get(CEILING, []), lambda one: one.per_s) for name, rounds in of.items()}
    return {name: value for name, value in ratios.items() if value is not None and name not in (CEILING, *BESIDE)}


def beside_batch_run(measurements: Sequence[Measurement]) -> float | None:
    """Return the 99th percentile of cashiers beside a batch run divided by that of the same cashiers without it."""
    alone = [one for one in measurements if one.system == CASHIERS]
    return ratio([one for one in measurements if one.system == CASHIERS_BESIDE], alone, lambda one: one.p99_ms)


def ours_against(outcome: Outcome) -> dict[str, float]:
    """Return our orders a second on PostgreSQL divided by each other system's, with 32 callers, by that system."""
    of = _by_system(outcome, 32)
    ratios = {name: ratio(of.get(OURS_POSTGRESQL, []), rounds, lambda one: one.per_s) for name, rounds in of.items()}
    return {name: value for name, value in ratios.items() if value is not None and name != OURS_POSTGRESQL}


def _by_system(outcome: Outcome, callers: int) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {}
    for one in outcome.measurements:
        if one.callers == callers:
            found.setdefault(one.system, []).append(one)
    return found


def document(outcome: Outcome, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return the run as JSON has it: facts, a line for each system, and every measurement."""
    found: dict[str, Any] = rounded(
        {
            "facts": dict(facts),
            "ok": not outcome.problems,
            "problems": outcome.problems,
            "skipped": outcome.skipped,
            "lines": [asdict(line) for line in summary(outcome.measurements)],
            "against_ceiling": against_ceiling(outcome),
            "ours_against": ours_against(outcome),
            "cashiers_p99_beside_batch_run": beside_batch_run(outcome.measurements),
            "measurements": [asdict(one) for one in outcome.measurements],
        }
    )
    return found


def markdown(document: Mapping[str, Any], *, short: bool = False) -> str:
    """Return a table of a run, and below it the facts that a reader needs to compare it with another run.

    Args:
        document: A run as `document` has it.
        short: The table of README.md: without variants, without cashiers.
    """
    found = {(line["system"], line["callers"]): line for line in document["lines"]}
    lines = [f"| {' | '.join(_MARKDOWN_COLUMNS)} |", f"|---|{'---:|' * (len(_MARKDOWN_COLUMNS) - 1)}"]
    for system in [name for name in SYSTEMS if not (short and name in _NOT_IN_SHORT)]:
        of = {callers: line for (name, callers), line in found.items() if name == system}
        if of:
            lines.append(f"| {' | '.join(_markdown_cells(system, of))} |")
    facts = document["facts"]
    skipped = [f"{name}: {reason}" for name, reason in document["skipped"].items()]
    database = facts["PostgreSQL"].removeprefix("server_version ").split(" ")[0]
    said = [f"{facts['date'][:10]}, {facts['machine']}, PostgreSQL {database}, fsync on", f"`{facts['command']}`"]
    if beside := document.get("cashiers_p99_beside_batch_run"):
        said.append(f"cashiers' p99 beside a batch run: {beside:.2f} × without")
    return "\n".join([*lines, "", f"{'; '.join([*said, *skipped])}."])


def _markdown_cells(system: str, of: Mapping[int, Mapping[str, Any]]) -> list[str]:
    def cell(callers: int, say: Callable[[Mapping[str, Any]], str]) -> str:
        return say(of[callers]) if callers in of else ""

    if system in (*BESIDE, OURS_BATCH):
        return [*_in_one_cell(system, of), *[""] * (len(_MARKDOWN_COLUMNS) - 3)]
    ratios = [cell(callers, lambda line: f"{line['rate_ratio'] or 0:.2f}") for callers in (1, 32, 128)]
    return [
        system,
        cell(1, lambda line: f"{shown(line['p50_ms']['median'])} ms"),
        cell(8, lambda line: f"{shown(line['per_s']['median'])} /s"),
        cell(32, lambda line: f"{shown(line['per_s']['median'])} /s"),
        cell(32, lambda line: f"{shown(line['p50_ms']['median'])}, {shown(line['p99_ms']['median'])} ms"),
        cell(128, lambda line: f"{shown(line['per_s']['median'])} /s"),
        " / ".join(ratio or "–" for ratio in ratios) if any(ratios) else "",
    ]


def _in_one_cell(system: str, of: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Return the cells of a system that is measured with one number of callers: the rate; p50, p99."""
    [line] = of.values()
    rate, p50, p99 = (shown(line[name]["median"]) for name in ("per_s", "p50_ms", "p99_ms"))
    return [system, "", f"{rate} /s; {p50}, {p99} ms"]


def rounded(value: Any) -> Any:
    """Return the value with every number in it rounded."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    return [rounded(member) for member in value] if isinstance(value, (list, tuple)) else value


def html(outcome: Outcome, facts: Mapping[str, str], command: str) -> str:
    """Return the page."""
    lines = summary(outcome.measurements)
    return page.render(
        _TITLE,
        "violated" if outcome.problems else "ok",
        reasons=outcome.problems[:20],
        facts={**facts, **{f"skipped: {name}": reason for name, reason in outcome.skipped.items()}},
        command=command,
        sections={
            "Cashiers beside a batch run": _beside(outcome.measurements),
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


def _beside(measurements: Sequence[Measurement]) -> str:
    value = beside_batch_run(measurements)
    said = "It was not measured." if value is None else f"Their 99th percentile is {value:.2f} × that without it."
    return f"<p>Eight cashiers settle 64 orders a second, alone and beside a batch run. {said}</p>"


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
    "services, a database each; or two instances of each. A batch run calls SettleBatch with 64 orders a call: its "
    "latency is that of a call. Two variants of ours run on PostgreSQL: with kazoo’s own lock recipe, and with each "
    "row committed and each request sent on its own (tests/bench/variants). The peers are in tests/bench/peers: one "
    "process with one transaction, which has no lock service, no fence, no tokens, no second process and no "
    "recovery; the same under a lock of redis-py; durable workflows of DBOS Transact, Restate "
    "and Temporal, the last two with a server of their own. pgbench sends the first peer’s "
    "transaction without a service.</p>"
)
