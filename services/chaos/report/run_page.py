"""Render a chaos run: what the checks found, which faults were injected where, and how long calls took meanwhile."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from html import escape

from services.chaos.faults.trigger import PREFIX
from services.chaos.report import charts, page
from services.checker.findings import Check
from services.checker.history import History, Outcome, RecordedCall

_MAX_LANES = 14
_MAX_VIOLATIONS = 20


def render(
    title: str,
    verdict: str,
    *,
    reasons: Sequence[str],
    facts: Mapping[str, str],
    command: str,
    checks: Sequence[Check],
    coverage: Mapping[tuple[str, str], int],
    proofs: Mapping[str, int],
    history: History,
) -> str:
    """Return the page; see `page.render`.

    Args:
        coverage: How often each fault was injected at each step; rows by fault, columns by step.
        proofs: What the run had to bring about, and how often it did.
    """
    scale = charts.TimeScale(history)
    injected = charts.windows(history, scale)
    sections = {
        "Checks": _checks(checks),
        "What the run brought about": _proofs(proofs),
        "Faults": charts.faults(scale, injected),
        "Answers": _LEGEND + charts.answers(history, scale, injected),
        "Latency": charts.latencies(history, scale, injected),
        "Which fault was injected at which step": _coverage(coverage),
        "Orders worth a look": _lanes(history),
    }
    return page.render(title, verdict, reasons=reasons, facts=facts, command=command, sections=sections)


def interesting(history: History, most: int = _MAX_LANES) -> list[tuple[str, str, list[RecordedCall]]]:
    """Return order id, why it is worth a look, and the calls about it; those of most interest first.

    Trigger: of a fault. Contended: two clerks settled at one time. Reversed. Unknown: a caller got no answer.
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
    """Return whether two clerks were settling one order at the same time."""
    settling = [operation for operation in operations if operation.kind in ("Settle", "Pay")]
    for number, one in enumerate(settling):
        for other in settling[number + 1 :]:
            apart = one.answered_ns is not None and one.answered_ns < other.invoked_ns
            if one.arguments.clerk != other.arguments.clerk and not apart:
                return True
    return False


_WHYS: Mapping[str, Callable[[str, Sequence[RecordedCall]], bool]] = {
    "trigger": lambda order_id, _operations: order_id.startswith(PREFIX),
    "contended": lambda _order_id, operations: contended(operations),
    "reversed": lambda _order_id, operations: any(
        operation.kind == "Reverse" and operation.outcome is Outcome.OK for operation in operations
    ),
    "unknown": lambda _order_id, operations: any(
        operation.kind in ("Settle", "Pay", "Reverse") and operation.outcome is Outcome.INFO for operation in operations
    ),
}


def _checks(checks: Sequence[Check]) -> str:
    rows = []
    for check in checks:
        result = "ok" if check.ok else "violated"
        note = f" <small>{escape(check.skipped)}</small>" if check.skipped else ""
        found = page.items((*check.violations, *check.undecided), _MAX_VIOLATIONS)
        rows.append(
            f"<tr><td>{escape(check.name)}{note}{found}</td>"
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
        return "<p>No fault was injected.</p>"
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
    return _LEGEND + "".join(parts) if parts else "<p>None.</p>"


_LEGEND = (
    '<p class="legend"><i class="ok"></i> done <i class="fail"></i> refused, without effect '
    '<i class="info"></i> unknown to its caller <i class="shade"></i> a fault</p>'
)
