"""deploy/prometheus: the alerts name metrics that the code has, and periods that the code keeps.

`make check-alerts` tests when each alert fires.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from coordination.metrics import Metrics
from coordination.session import Session, SessionState
from services.chaos.targets.replicas import REPLICAS
from services.devstack.authority import COPY_GOOD_S, LIFE_S
from services.devstack.state import INTERFACES
from services.runtime.grpc.credential_metrics import CredentialMetrics
from services.runtime.metrics import REFUSAL_REASONS, CallMetrics, process_registry
from tests.unit.deploy.test_compose_file import INSTANCES, SERVICES, service_of

FOLDER = Path(__file__).parents[3] / "deploy" / "prometheus"
#: What Prometheus itself adds.
_OF_PROMETHEUS = {"up"}
_METRIC = re.compile(r"\b(?:up\b|(?:countinghouse|coordination|process)_\w+)")
_SELECTOR = re.compile(r"(\w+)=~?\"([^\"]*)\"")


def rules_of(file: str) -> dict[str, dict[str, Any]]:
    """The rules of a file, by the names of the alerts."""
    document = yaml.safe_load((FOLDER / file).read_text())
    return {rule["alert"]: rule for group in document["groups"] for rule in group["rules"]}


ALERTS = rules_of("alerts.yml")
every_alert = pytest.mark.parametrize("name", ALERTS)
#: Those of Patroni, whose metrics are not ours.
OF_PATRONI = rules_of("alerts_ha.yml")
every_rule = pytest.mark.parametrize("name", ALERTS | OF_PATRONI)


def registered() -> CollectorRegistry:
    """The registry of a service, with all that it shows."""
    registry = process_registry()
    Session("127.0.0.1:1", metrics=Metrics(registry))
    CallMetrics(registry)
    CredentialMetrics(registry)
    return registry


def sample_names(registry: CollectorRegistry) -> set[str]:
    """The names that a query may use, also of metrics without a sample yet."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {f"{family.name}{suffix}" for family in families for suffix in suffixes.get(family.type, ("",))}


@every_alert
def test_alert_names_metrics_that_a_service_shows(name: str) -> None:
    used = set(_METRIC.findall(ALERTS[name]["expr"]))
    assert used
    assert used - _OF_PROMETHEUS <= sample_names(registered())


@every_rule
def test_alert_has_a_severity_and_says_what_to_do(name: str) -> None:
    rule = (ALERTS | OF_PATRONI)[name]
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}
    assert len(rule["annotations"]["description"]) > len(rule["annotations"]["summary"])


@every_rule
def test_alert_is_tested(name: str) -> None:
    file = "alerts_test.yml" if name in ALERTS else "alerts_ha_test.yml"
    assert f'alertname="{name}"' in (FOLDER / file).read_text()


def test_alert_selects_values_that_the_code_gives() -> None:
    """A reason or a state that is renamed would never match again."""
    known = {
        "reason": set(REFUSAL_REASONS),
        "code": {code.name for code in grpc.StatusCode},
        "state": {state.value for state in SessionState},
        "established": {"yes", "no"},
        "job": {yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"][0]["job_name"]},
    }
    selected = [pair for rule in ALERTS.values() for pair in _SELECTOR.findall(rule["expr"])]
    assert {label for label, _ in selected} == set(known)
    for label, values in selected:
        assert set(values.split("|")) <= known[label], (label, values)


def test_certificate_alert_is_at_a_quarter_of_its_life() -> None:
    assert ALERTS["CertificateExpires"]["expr"].endswith(f"< {LIFE_S // 4}")


def test_authority_alert_is_when_a_copy_is_no_longer_good() -> None:
    days = COPY_GOOD_S // 86_400
    assert ALERTS["AuthorityExpires"]["expr"].endswith(f"< {days} * 86400")


def test_prometheus_reads_every_instance_of_the_compose_file() -> None:
    """The acquirer, which is outside, shows no metrics."""
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (targets,) = (config["targets"] for config in job["static_configs"])
    shown = [name for name in INSTANCES if service_of(name) in INTERFACES]
    assert sorted(targets) == [
        f"{name}:{SERVICES[name]['environment']['COUNTINGHOUSE_METRICS_PORT']}" for name in sorted(shown)
    ]


def test_prometheus_of_the_replicated_deployment_reads_patroni_besides() -> None:
    ours = yaml.safe_load((FOLDER / "prometheus_ha.yml").read_text())
    theirs = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    *jobs, patroni = ours["scrape_configs"]
    assert jobs == theirs["scrape_configs"]
    assert patroni["static_configs"] == [{"targets": [f"{name}:8008" for name in REPLICAS]}]
    assert f'job="{patroni["job_name"]}"' in OF_PATRONI["ReplicaDown"]["expr"]
