"""Show who charges twice: a Markdown table, or one JSON document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.faults.outcomes import Outcome

#: By fault, then by system.
Cells = Mapping[str, Mapping[str, Outcome]]


def markdown(cells: Cells, systems: Sequence[str]) -> str:
    """Return the table."""
    lines = [f"| how often the acquirer charged | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
    for fault, row in cells.items():
        shown = [row[system].shown() if system in row else "–" for system in systems]
        lines.append(f"| {fault} | {' | '.join(shown)} |")
    return "\n".join(lines)


def document(cells: Cells, facts: Mapping[str, str], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Return the run as JSON has it."""
    return {
        "facts": dict(facts),
        "skipped": dict(skipped),
        "outcomes": {
            fault: {system: {**asdict(outcome), "agrees": outcome.agrees} for system, outcome in row.items()}
            for fault, row in cells.items()
        },
    }


def cells_of(document: Mapping[str, Any]) -> dict[str, dict[str, Outcome]]:
    """Return the outcomes of a run by fault and system, from its document."""
    return {
        fault: {system: Outcome(one["charged"], one["order"], one["detail"]) for system, one in row.items()}
        for fault, row in document["outcomes"].items()
    }
