"""deploy/grafana: the dashboard shows metrics that the services have, by labels that these have."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from deploy.grafana.make_dashboard import FILE, dashboard, text
from services.payment.metrics import RecoveryMetrics
from services.runtime.database.metrics import DatabaseMetrics
from tests.unit.deploy.test_alerts import registered, sample_names

_METRIC = re.compile(r"\b(?:countinghouse|coordination)_\w+")
_LABELS = re.compile(r"\bby \(([^)]*)\)|\{\{(\w+)\}\}")
#: What Prometheus itself adds, and the buckets of a histogram have.
_OF_PROMETHEUS = {"instance", "job", "le"}


def shown() -> CollectorRegistry:
    """The registry of a payment service, which has the most."""
    registry = registered()
    DatabaseMetrics(registry)
    RecoveryMetrics(registry)
    return registry


GRAPHS: dict[str, dict[str, Any]] = {each["title"]: each for each in dashboard()["panels"] if each["type"] != "row"}
every = pytest.mark.parametrize("title", GRAPHS)


def test_file_is_what_the_table_makes() -> None:
    """`python -m deploy.grafana.make_dashboard` writes it."""
    assert FILE.read_text() == text()
    assert json.loads(FILE.read_text())["uid"] == "countinghouse"


@every
def test_panel_shows_metrics_that_exist_by_labels_that_they_have(title: str) -> None:
    registry = shown()
    labels = {
        name: {*metric._labelnames}
        for metric, names in registry._collector_to_names.items()
        if hasattr(metric, "_labelnames")
        for name in names
    }
    names = sample_names(registry)
    for target in GRAPHS[title]["targets"]:
        used = _METRIC.findall(target["expr"])
        assert used
        assert set(used) <= names, target["expr"]
        wanted = {
            label.strip()
            for found in _LABELS.findall(target["expr"] + target["legendFormat"])
            for label in "".join(found).split(",")
        }
        assert wanted - _OF_PROMETHEUS <= labels[used[0]], target["expr"]


@every
def test_panel_says_what_to_look_for(title: str) -> None:
    assert GRAPHS[title]["description"].endswith(".")
    assert GRAPHS[title]["fieldConfig"]["defaults"]["unit"]


def test_panels_do_not_cover_each_other() -> None:
    places = [
        (x, y)
        for panel in dashboard()["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
