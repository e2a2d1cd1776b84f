"""A run as one page that needs nothing else: what was found, what was hit, and what it looked like.

Everything is in the file: no script, no font and no picture from elsewhere, so that it can be mailed or kept beside the
seed. What a reader wants first comes first: the verdict, why, and the command that repeats the run.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from services.chaos.report import charts
from services.checker.history import History, Outcome, RecordedCall

_MAX_LANES = 14
_MAX_VIOLATIONS = 20


@dataclass(frozen=True, slots=True)
class Examined:
    """One check and what it found."""

    name: str
    ok: bool
    examined: int
    violations: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a page is made of.

    Args:
        verdict: `ok`, `violated` or `unknown`.
        reasons: Why it is not ok.
        command: What repeats the run.
        facts: The run in a few pairs, such as its seed.
        coverage: How often each fault struck at each step; rows by fault, columns by step.
        proofs: What the run had to bring about, and how often it did.
    """

    title: str
    verdict: str
    reasons: Sequence[str]
    command: str
    facts: Mapping[str, str]
    checks: Sequence[Examined]
    coverage: Mapping[tuple[str, str], int]
    proofs: Mapping[str, int]
    history: History


def render(report: Report) -> str:
    """The page."""
    scale = charts.TimeScale(report.history)
    struck = charts.windows(report.history, scale)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report.title)}: {report.verdict}</title><style>{STYLE}</style></head><body><main>",
            _head(report),
            _section("Checks", _checks(report.checks)),
            _section("What the run brought about", _proofs(report.proofs)),
            _section("Faults", charts.faults(scale, struck)),
            _section("Answers", _LEGEND + charts.answers(report.history, scale, struck)),
            _section("Latency", charts.latencies(report.history, scale, struck)),
            _section("Which fault struck at which step", _coverage(report.coverage)),
            _section("Orders worth a look", _lanes(report.history)),
            "</main></body></html>",
        ]
    )


def interesting(history: History, most: int = _MAX_LANES) -> list[tuple[str, str, list[RecordedCall]]]:
    """Orders worth a look: order id, why, and the calls about it; those of most interest first.

    Contended: two clerks settled at one time. Struck: the bait of a fault. Reversed. Unknown: somebody never heard.
    """
    by_order: dict[str, list[RecordedCall]] = defaultdict(list)
    for operation in history.calls:
        if order_id := operation.arguments.order_id or operation.answer.order_id:
            by_order[order_id].append(operation)
    found = []
    for order_id, operations in by_order.items():
        whys = [why for why, so in _WHYS.items() if so(order_id, operations)]
        if whys:
            found.append((order_id, ", ".join(whys), operations, len(whys)))
    found.sort(key=lambda item: (-item[3], -len(item[2])))
    return [(order_id, why, operations) for order_id, why, operations, _ in found[:most]]


def contended(operations: Sequence[RecordedCall]) -> bool:
    """Whether two clerks were settling one order at the same time."""
    settling = [operation for operation in operations if operation.kind in ("Settle", "Pay")]
    for number, one in enumerate(settling):
        for other in settling[number + 1 :]:
            apart = one.answered_ns is not None and one.answered_ns < other.invoked_ns
            if one.arguments.clerk != other.arguments.clerk and not apart:
                return True
    return False


_WHYS: Mapping[str, Callable[[str, Sequence[RecordedCall]], bool]] = {
    "struck": lambda order_id, _operations: order_id.startswith("bait-"),
    "contended": lambda _order_id, operations: contended(operations),
    "reversed": lambda _order_id, operations: any(
        operation.kind == "Reverse" and operation.outcome is Outcome.OK for operation in operations
    ),
    "unknown": lambda _order_id, operations: any(
        operation.kind in ("Settle", "Pay", "Reverse") and operation.outcome is Outcome.INFO for operation in operations
    ),
}


def _head(report: Report) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in report.facts.items())
    return (
        f'<header><p class="verdict {report.verdict}">{report.verdict}</p><h1>{escape(report.title)}</h1>'
        f"{f'<ul class=reasons>{reasons}</ul>' if reasons else ''}"
        f"<dl>{facts}</dl><p>Repeat it:</p><pre>{escape(report.command)}</pre></header>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _checks(checks: Sequence[Examined]) -> str:
    rows = []
    for check in checks:
        result = "ok" if check.ok else "violated"
        broken = "".join(f"<li>{escape(violation)}</li>" for violation in check.violations[:_MAX_VIOLATIONS])
        more = len(check.violations) - _MAX_VIOLATIONS
        broken += f"<li>and {more} more</li>" if more > 0 else ""
        note = f" <small>{escape(check.note)}</small>" if check.note else ""
        rows.append(
            f"<tr><td>{escape(check.name)}{note}{f'<ul>{broken}</ul>' if broken else ''}</td>"
            f'<td class="number">{check.examined:,}</td><td class="{result}">{result}</td></tr>'
        )
    return f"<table><tr><th>check</th><th class=number>examined</th><th>result</th></tr>{''.join(rows)}</table>"


def _proofs(proofs: Mapping[str, int]) -> str:
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="number {"" if count else "violated"}">{count:,}</td></tr>'
        for name, count in proofs.items()
    )
    return f"<table>{rows}</table>"


def _coverage(coverage: Mapping[tuple[str, str], int]) -> str:
    faults = sorted({fault for fault, _ in coverage})
    steps = sorted({step for _, step in coverage}, key=_step_order)
    if not faults:
        return "<p>No fault struck.</p>"
    head = "".join(f"<th class=slanted><span>{escape(step)}</span></th>" for step in steps)
    rows = []
    for fault in faults:
        cells = "".join(
            f'<td class="cell {"hit" if (count := coverage.get((fault, step), 0)) else ""}">{count or ""}</td>'
            for step in steps
        )
        rows.append(f"<tr><td>{escape(fault)}</td>{cells}</tr>")
    return f'<table class="coverage"><tr><th></th>{head}</tr>{"".join(rows)}</table>'


_STEPS = (
    *("accepted", "locked", "CREATED", "claimed", "submitted", "SUBMITTED", "UNKNOWN", "charged", "posted", "refunded"),
    *("REVERSING", "recorded", "outbox", "completed", "released"),
)


def _step_order(step: str) -> tuple[int, str]:
    name = step.rpartition(" ")[2]
    return (_STEPS.index(name) if name in _STEPS else len(_STEPS), step)


def _lanes(history: History) -> str:
    parts = []
    for order_id, why, operations in interesting(history):
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(each.kind for each in operations).items())
        parts.append(f"<h3>{escape(order_id)} <small>{escape(why)}: {escape(kinds)}</small></h3>")
        parts.append(charts.lane(operations))
    return _LEGEND + "".join(parts) if parts else "<p>None: nobody met anybody, and nothing was reversed or lost.</p>"


_LEGEND = (
    '<p class="legend"><i class="ok"></i> done <i class="fail"></i> refused, without effect '
    '<i class="info"></i> unknown to its caller <i class="shade"></i> a fault</p>'
)

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6776; --paper: #fbfbf9; --line: #d8dbe0;
  --ok: #2e7d54; --fail: #c8871a; --info: #7b5ea7; --bad: #b3261e; --shade: #b3261e14; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b2; --paper: #14181f; --line: #333b47;
  --ok: #5fbf8c; --fail: #e0a94a; --info: #b59ae0; --bad: #ef6a60; --shade: #ef6a6022; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { margin: 4px 0 10px; font-size: 24px; } h2 { margin: 34px 0 8px; font-size: 18px; }
h3 { margin: 18px 0 2px; font-size: 14px; } small { color: var(--soft); font-weight: normal; }
.verdict { display: inline-block; margin: 0; padding: 2px 14px; border-radius: 4px; color: #fff; font-weight: 700; }
.verdict.ok { background: var(--ok); } .verdict.violated { background: var(--bad); }
.verdict.unknown { background: var(--info); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 12px 0; }
dt { color: var(--soft); } dd { margin: 0; } pre { padding: 8px 12px; overflow-x: auto; background: var(--shade); }
table { border-collapse: collapse; } td, th { padding: 3px 12px 3px 0; text-align: left; vertical-align: top; }
tr { border-bottom: 1px solid var(--line); } .number { text-align: right; font-variant-numeric: tabular-nums; }
td.ok { color: var(--ok); } td.violated, .reasons { color: var(--bad); }
td ul { margin: 2px 0 6px; padding-left: 18px; }
.coverage td.cell { min-width: 26px; padding: 3px; text-align: center; border: 1px solid var(--line); }
.coverage .hit { background: var(--ok); color: #fff; } .slanted { padding: 3px; vertical-align: bottom; }
.slanted span { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: normal; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); } svg .end { text-anchor: end; }
svg .middle { text-anchor: middle; } svg .inside { fill: #fff; pointer-events: none; }
svg .axis { stroke: var(--soft); } svg .grid { stroke: var(--line); stroke-dasharray: 2 3; }
.ok { fill: var(--ok); } .fail { fill: var(--fail); } .info { fill: var(--info); } .fault { fill: var(--bad); }
.shade { fill: var(--shade); } circle { opacity: 0.65; }
.quantile { fill: none; stroke: var(--ink); stroke-width: 1.2; opacity: 0.8; }
.p95 { stroke-dasharray: 5 3; } .p99 { stroke-dasharray: 1 3; }
.legend i { display: inline-block; width: 12px; height: 12px; margin: 0 3px 0 12px; border-radius: 2px; }
.legend .ok { background: var(--ok); } .legend .fail { background: var(--fail); }
.legend .info { background: var(--info); } .legend .shade { background: var(--shade); outline: 1px solid var(--line); }
"""
