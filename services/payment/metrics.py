"""The metrics of the recovery."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

REQUEST, NOTIFICATION, PARKED = "request", "notification", "parked"
_OUTCOMES: Final = ("finished", "waits")


class RecoveryMetrics:
    """What the recovery found, and what became of it.

    Args:
        collected_by: The Prometheus registry to appear in; None: none, for tests.
    """

    def __init__(self, collected_by: CollectorRegistry | None = None) -> None:
        self._recoveries = Counter(
            "countinghouse_recoveries",
            "Overdue requests, notifications and parked payments that were taken up, by kind, and whether they are "
            "finished or wait for another try.",
            ["kind", "outcome"],
            registry=collected_by,
        )
        self._overdue = Gauge(
            "countinghouse_outbox_overdue",
            "Notifications to the order service that were not delivered within a second, at the last look; 50 at most.",
            registry=collected_by,
        )
        for kind in (REQUEST, NOTIFICATION, PARKED):
            for outcome in _OUTCOMES:
                self._recoveries.labels(
                    kind, outcome
                )  # from 0: Prometheus sees no increase in a series that begins with 1

    def looked(self, overdue: int) -> None:
        """Note how many notifications were overdue at a look."""
        self._overdue.set(overdue)

    def taken_up(self, kind: str, *, finished: bool) -> None:
        """Count one that was taken up.

        Args:
            kind: REQUEST, NOTIFICATION or PARKED.
        """
        self._recoveries.labels(kind, _OUTCOMES[not finished]).inc()
