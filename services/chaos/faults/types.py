"""The kinds of faults that every world has: at processes, at failpoints, at ZooKeeper, at PostgreSQL, at the bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.chaos.plan import Kind

ACQUIRER: Final = "acquirer-1"
#: Where a process of each service is killed.
_POINTS: Final[Mapping[str, tuple[str, ...]]] = {
    "order": ("claimed", "completed"),
    "ledger": ("accepted", "posted"),
    "acquirer": ("charged",),
}
_PAYMENT_POINTS: Final = (
    *("accepted", "locked", "claimed", "submitted", "charged", "posted"),
    *("recorded", "completed", "released"),
)
#: Before these the payment has done nothing under its fence that a rival could overtake.
_FREEZE_POINTS: Final = ("submitted", "charged")


def process_kinds(instances: tuple[str, ...], *, rolling_s: float) -> tuple[Kind, ...]:
    """Killed, paused, restarted; also at a certain step of a payment.

    Args:
        rolling_s: How long it takes to restart all of them, one after the other.
    """
    payments = _named(instances, "payment")
    company, contended = {"company": ("alone", "contended")}, {"company": ("contended",)}
    return (
        Kind("kill", "process", instances, 1.0, 2.0),
        Kind("pause", "process", instances, 1.0, 4.0),
        Kind("rolling-restart", "process", ("",), rolling_s, rolling_s),
        Kind("kill-at", "process", payments, 1.0, 2.0, {"point": _PAYMENT_POINTS, **company}, alone=True),
        Kind("freeze-at", "process", payments, 1.0, 1.5, {"point": _FREEZE_POINTS, **contended}, alone=True),
        *(
            Kind(
                f"kill-{service}-at",
                "process",
                _named(instances, service),
                1.0,
                2.0,
                {"point": points, **company},
                alone=True,
            )
            for service, points in _POINTS.items()
        ),
    )


def zookeeper_kinds() -> tuple[Kind, ...]:
    """At the ensemble itself."""
    return (
        Kind("leader-kill", "zookeeper", ("",), 2.0, 4.0),
        Kind("quorum-loss", "zookeeper", ("",), 2.0, 5.0),
        Kind("zookeeper-freeze", "zookeeper", ("",), 1.0, 5.0),
    )


def postgresql_kinds() -> tuple[Kind, ...]:
    """At the database server."""
    return (
        Kind("postgresql-restart", "database", ("",), 1.0, 2.0),
        Kind("postgresql-kill", "database", ("",), 1.0, 2.0),
    )


def bank_kinds() -> tuple[Kind, ...]:
    """What the bank does by itself."""
    names = ("bank-silent", "bank-slow", "bank-down", "bank-tells-twice")
    return tuple(Kind(name, "bank", (ACQUIRER,), 1.0, 3.0) for name in names)


def _named(instances: tuple[str, ...], service: str) -> tuple[str, ...]:
    return tuple(name for name in instances if name.startswith(service))
