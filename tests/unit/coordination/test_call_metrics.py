"""What is counted of a channel's calls, and who is told of their attempts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from coordination.channel.call_metrics import CallMetrics
from coordination.metrics import Metrics


def test_attempt_is_counted_and_told_with_its_endpoint_and_code() -> None:
    collected, told = CollectorRegistry(), list[tuple[str, str]]()
    counted = CallMetrics(Metrics(collected), "a.B", lambda endpoint, code: told.append((endpoint, code)))
    counted.attempt_ended("h:1", "NEVER_SENT")
    counted.attempt_ended("h:2", "OK")
    assert told == [("h:1", "NEVER_SENT"), ("h:2", "OK")]
    labels = {"interface": "a.B", "address": "h:2", "code": "OK"}
    assert collected.get_sample_value("coordination_attempts_total", labels) == 1


def test_attempt_is_counted_where_there_is_no_observer() -> None:
    collected = CollectorRegistry()
    CallMetrics(Metrics(collected), "a.B").attempt_ended("h:1", "OK")
    labels = {"interface": "a.B", "address": "h:1", "code": "OK"}
    assert collected.get_sample_value("coordination_attempts_total", labels) == 1
