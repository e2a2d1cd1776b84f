"""The metrics of one channel's calls."""

from __future__ import annotations

from collections.abc import Callable

import grpc
from prometheus_client import Histogram

from coordination.metrics import Metrics


class CallMetrics:
    """Counts calls and their attempts.

    Args:
        metrics: the collectors.
        interface: the interface called.
        on_attempt: called with the endpoint and the code of each attempt, in the task of its call.
    """

    def __init__(self, metrics: Metrics, interface: str, on_attempt: Callable[[str, str], None] | None = None) -> None:
        self.ejected = metrics.ejected.labels(interface)
        self._metrics = metrics
        self._interface = interface
        self._on_attempt = on_attempt
        self._codes: dict[str, set[str]] = {}  # by endpoint: the codes its attempts were counted under
        self._calls: dict[grpc.StatusCode, Histogram] = {}

    def attempt_ended(self, key: str, code: str) -> None:
        """Count an attempt at an endpoint."""
        self._codes.setdefault(key, set()).add(code)
        self._metrics.attempts.labels(self._interface, key, code).inc()
        if self._on_attempt is not None:
            self._on_attempt(key, code)

    def retried(self, why: str) -> None:
        """Count a further attempt of a call: never_sent, lost, refused, slow or forked."""
        self._metrics.retries.labels(self._interface, why).inc()

    def call_ended(self, code: grpc.StatusCode, took_s: float) -> None:
        """Count a unary call with all its attempts."""
        histogram = self._calls.get(code)
        if histogram is None:
            histogram = self._calls[code] = self._metrics.call_seconds.labels(self._interface, code.name)
        histogram.observe(took_s)

    def endpoint_ejected(self, key: str) -> None:
        """Count an ejection."""
        self._metrics.ejections.labels(self._interface, key).inc()
        self.ejected.inc()

    def remove(self, key: str) -> None:
        """Remove the series of an endpoint that has gone: addresses come and go without end."""
        for code in self._codes.pop(key, ()):
            self._metrics.attempts.remove(self._interface, key, code)
        self._metrics.ejections.remove(self._interface, key)

    def remove_all(self) -> None:
        """Remove the series of all endpoints."""
        for key in list(self._codes):
            self.remove(key)
