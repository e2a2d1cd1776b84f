"""The metrics of a database."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Histogram

_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128)


class DatabaseMetrics:
    """What is committed.

    Args:
        collected_by: The Prometheus registry to appear in; None: none, for tests and jobs.
    """

    def __init__(self, collected_by: CollectorRegistry | None = None) -> None:
        self._batch_size = Histogram(
            "countinghouse_commit_batch_size",
            "Changes of concurrent callers in one commit (group_commit.py).",
            buckets=_SIZES,
            registry=collected_by,
        )

    def committed(self, changes: int) -> None:
        """Count one commit of so many changes."""
        self._batch_size.observe(changes)
