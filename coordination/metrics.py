"""What coordination counts, for Prometheus.

Every part takes a `Metrics`; one process makes one and gives it to all of them. Without one they count into a
`Metrics` of their own that nobody collects, so there is no second path through the code.

Labels have few values each: interfaces, addresses of providers, outcomes. Never a resource or a user.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOCK_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """The collectors.

    Args:
        collected_by: the Prometheus registry to appear in; None: none, for tests and short-lived programs.
    """

    def __init__(self, collected_by: CollectorRegistry | None = None) -> None:
        registry = collected_by
        self.session_changes = Counter(
            "coordination_session_changes",
            "Changes of the ZooKeeper session's state, by the state entered.",
            ["state"],
            registry=registry,
        )
        self.lock_acquire_seconds = Histogram(
            "coordination_lock_acquire_seconds",
            "From asking for locks to having them (held), or not: timeout, unavailable, cancelled.",
            ["outcome"],
            buckets=LOCK_SECONDS,
            registry=registry,
        )
        self.locks_held = Gauge(
            "coordination_locks_held", "Resources whose lock this process holds now.", registry=registry
        )
        self.locks_waiting = Gauge(
            "coordination_locks_waiting", "Calls that stand in line for a lock now.", registry=registry
        )
        self.locks_lost = Counter(
            "coordination_locks_lost",
            "Leases that ended before they were released: the session was lost or not heard of.",
            registry=registry,
        )
        self.lock_nodes_to_delete = Gauge(
            "coordination_lock_nodes_to_delete",
            "Background deletes under way; it should go back to 0.",
            registry=registry,
        )
        self.registrations = Gauge(
            "coordination_registrations",
            "URLs this process wants registered, by whether their node is there (yes, no).",
            ["established"],
            registry=registry,
        )
        self.endpoints = Gauge(
            "coordination_endpoints", "Endpoints known of an interface.", ["interface"], registry=registry
        )
        self.directory_live = Gauge(
            "coordination_directory_live",
            "1 if the list of an interface's endpoints is ZooKeeper's own, 0 if it is remembered.",
            ["interface"],
            registry=registry,
        )
        self.rule_changes = Counter(
            "coordination_rule_changes",
            "Governance rules read anew, by kind, and whether they could be read (yes, no).",
            ["kind", "readable"],
            registry=registry,
        )
        self.call_seconds = Histogram(
            "coordination_call_seconds",
            "Unary calls with all their attempts, by interface and gRPC status code.",
            ["interface", "code"],
            buckets=CALL_SECONDS,
            registry=registry,
        )
        self.attempts = Counter(
            "coordination_attempts",
            "Requests given to an endpoint, by gRPC status code; NEVER_SENT: it could not be reached.",
            ["interface", "address", "code"],
            registry=registry,
        )
        self.retries = Counter(
            "coordination_retries",
            "Attempts beyond the first of a call, by why: never_sent, lost, refused, slow, forked.",
            ["interface", "why"],
            registry=registry,
        )
        self.ejections = Counter(
            "coordination_ejections",
            "Times an endpoint was taken out because its calls failed.",
            ["interface", "address"],
            registry=registry,
        )
        self.ejected = Gauge(
            "coordination_ejected",
            "Endpoints that are out now because their calls failed.",
            ["interface"],
            registry=registry,
        )
