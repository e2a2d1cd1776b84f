"""Write the dashboard of Grafana, countinghouse.json, from the table of panels here.

    python -m deploy.grafana.make_dashboard          # a test says so if that was forgotten

The file is imported in Grafana as it is, and asks which Prometheus it is to read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).with_name("countinghouse.json")
_WIDTH, _HEIGHT, _A_ROW = 8, 8, 3
_SOURCE: Final = {"type": "prometheus", "uid": "${source}"}
_JOB: Final = 'job=~"$job"'


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph.

    Args:
        unit: As Grafana names units.
        queries: Expressions of PromQL by legend; `$job` is what is chosen above.
        about: What to look for.
    """

    title: str
    unit: str
    queries: dict[str, str]
    about: str


def _quantile(quantile: float, histogram: str, by: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le{by}) (rate({histogram}_bucket{{{_JOB}}}[$__rate_interval])))"


def _rate(counter: str, by: str, *, where: str = "") -> str:
    return f"sum by ({by}) (rate({counter}{{{_JOB}{where}}}[$__rate_interval]))"


ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Calls": (
        Panel(
            "Calls a second",
            "reqps",
            {"{{method}}": _rate("countinghouse_calls_total", "method")},
            "By method, whatever became of them.",
        ),
        Panel(
            "Refused and failed",
            "reqps",
            {"{{method}} {{code}}": _rate("countinghouse_calls_total", "method, code", where=',code!="OK"')},
            "ABORTED and ALREADY_EXISTS are what two clerks at one order get. UNAVAILABLE and INTERNAL are not.",
        ),
        Panel(
            "How long a call takes, p99",
            "s",
            {"{{method}}": _quantile(0.99, "countinghouse_call_seconds", ", method")},
            "From its arrival to its answer, time in the queue for the lock included.",
        ),
    ),
    "Settled once": (
        Panel(
            "Replays",
            "reqps",
            {"{{method}}": _rate("countinghouse_replays_total", "method")},
            "Repeated requests, answered with the stored answer.",
        ),
        Panel(
            "Wait for the lock",
            "s",
            {
                "p50 {{outcome}}": _quantile(0.5, "coordination_lock_acquire_seconds", ", outcome"),
                "p99 {{outcome}}": _quantile(0.99, "coordination_lock_acquire_seconds", ", outcome"),
            },
            "timeout: another caller had the order for too long.",
        ),
        Panel(
            "Refused by a fence",
            "reqps",
            {"{{method}}": _rate("countinghouse_fence_refusals_total", "method")},
            "A holder wrote after its lock had gone to another: each of these would have been a double payment.",
        ),
    ),
    "Recovery": (
        Panel(
            "Recoveries",
            "reqps",
            {"{{kind}} {{outcome}}": _rate("countinghouse_recoveries_total", "kind, outcome")},
            "Payments whose process died, or whose peer did not answer. Those that wait are tried again.",
        ),
        Panel(
            "Notifications overdue",
            "short",
            {"{{instance}}": f"countinghouse_outbox_overdue{{{_JOB}}}"},
            "Orders that are paid, and whose service does not know it yet.",
        ),
        Panel(
            "Changes in a commit",
            "short",
            {
                "p50": _quantile(0.5, "countinghouse_commit_batch_size", ""),
                "p99": _quantile(0.99, "countinghouse_commit_batch_size", ""),
            },
            "More callers at once make larger batches, and no more commits.",
        ),
    ),
    "Cluster": (
        Panel(
            "Endpoints known",
            "short",
            {"{{interface}}": f"min by (interface) (coordination_endpoints{{{_JOB}}})"},
            "Of each interface, as the consumer sees it that knows fewest.",
        ),
        Panel(
            "Attempts beyond the first",
            "reqps",
            {"{{why}}": _rate("coordination_retries_total", "why")},
            "Calls that were sent again, by why.",
        ),
        Panel(
            "Callers refused",
            "reqps",
            {"{{reason}}": _rate("countinghouse_identity_refusals_total", "reason")},
            "For who they are: tokens and certificates.",
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    """Return the document."""
    panels: list[dict[str, Any]] = []
    for row, (title, graphs) in enumerate(ROWS.items()):
        y = row * (_HEIGHT + 1)
        panels.append({"type": "row", "title": title, "gridPos": {"x": 0, "y": y, "w": _WIDTH * _A_ROW, "h": 1}})
        panels += [_graph(panel, place * _WIDTH, y + 1) for place, panel in enumerate(graphs)]
    for number, panel in enumerate(panels, start=1):
        panel["id"] = number
    return {
        "title": "Countinghouse",
        "uid": "countinghouse",
        "schemaVersion": 39,
        "timezone": "",
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
                {
                    "name": "job",
                    "label": "Job",
                    "type": "query",
                    "datasource": _SOURCE,
                    "query": "label_values(countinghouse_calls_total, job)",
                    "includeAll": True,
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": panels,
    }


def text() -> str:
    """Return the file's content."""
    return json.dumps(dashboard(), indent=1) + "\n"


def _graph(panel: Panel, x: int, y: int) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": _WIDTH, "h": _HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": _SOURCE}
            for place, (legend, query) in enumerate(panel.queries.items())
        ],
    }


if __name__ == "__main__":
    FILE.write_text(text())
