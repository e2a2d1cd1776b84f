"""The Prometheus metrics of coordination.

Every component takes a `Metrics`; one process makes one and gives it to all of them. Without one they count into a
`Metrics` of their own that is not exported, so there is no second path through the code.

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
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"coordination_{name}", text, labels, registry=collected_by)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"coordination_{name}", text, labels, registry=collected_by)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"coordination_{name}", text, labels, registry=collected_by, buckets=buckets)

        self.session_changes = counter(
            "session_changes", "Changes of the ZooKeeper session's state, by the state entered.", "state"
        )
        self.lock_acquire_seconds = histogram(
            "lock_acquire_seconds",
            "From asking for locks to having them (held), or not: timeout, unavailable, cancelled.",
            "outcome",
            buckets=LOCK_SECONDS,
        )
        self.locks_held = gauge("locks_held", "Resources whose lock this process holds now.")
        self.locks_waiting = gauge("locks_waiting", "Calls that stand in line for a lock now.")
        self.locks_lost = counter(
            "locks_lost", "Leases that ended before they were released: the session was lost or not heard of."
        )
        self.lock_nodes_to_delete = gauge(
            "lock_nodes_to_delete", "Background deletes under way; it should go back to 0."
        )
        self.registrations = gauge(
            "registrations",
            "URLs this process wants registered, by whether their node is there (yes, no).",
            "established",
        )
        self.endpoints = gauge("endpoints", "Endpoints known of an interface.", "interface")
        self.directory_live = gauge(
            "directory_live",
            "1 if the list of an interface's endpoints is ZooKeeper's own, 0 if it is remembered.",
            "interface",
        )
        self.rule_changes = counter(
            "rule_changes",
            "Governance rules read anew, by kind, and whether they could be read (yes, no).",
            "kind",
            "readable",
        )
        self.call_seconds = histogram(
            "call_seconds",
            "Unary calls with all their attempts, by interface and gRPC status code.",
            "interface",
            "code",
            buckets=CALL_SECONDS,
        )
        self.attempts = counter(
            "attempts",
            "Requests given to an endpoint, by gRPC status code; NEVER_SENT: it could not be reached.",
            *("interface", "address", "code"),
        )
        self.retries = counter(
            "retries",
            "Attempts beyond the first of a call, by why: never_sent, lost, refused, slow, forked.",
            *("interface", "why"),
        )
        self.ejections = counter(
            "ejections", "Times an endpoint was taken out because its calls failed.", "interface", "address"
        )
        self.ejected = gauge("ejected", "Endpoints that are out now because their calls failed.", "interface")
