"""What was measured, and how rounds become one line: medians, spreads, and medians of the rounds' ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

OURS_POSTGRESQL, OURS_SQLITE = "ours, PostgreSQL", "ours, SQLite"
OURS_TWO, OURS_BATCH = "ours, two of each service", "ours, batch run, 8 calls of 64 at once"
#: Cashiers at a fixed load, which leaves half of the machine idle: alone, beside a batch run, and that batch run.
CASHIERS, CASHIERS_BESIDE = "ours, cashiers at 64/s", "ours, cashiers at 64/s beside a batch run"
BATCH_BESIDE = "ours, batch run beside cashiers, 2 calls of 64 at once"
#: All others are measured in plain text, as the peers are.
OURS_TLS = "ours, PostgreSQL, over TLS"
OURS_KAZOO, OURS_SINGLY = "ours, kazoo's own Lock", "ours, no batches"
#: The system that others are compared with.
PEER = "one service, asyncpg"
REDIS_LOCK, DBOS = "one service, Redis lock", "DBOS, three steps"
RESTATE, TEMPORAL = "Restate, three steps", "Temporal, three activities"
CEILING = "pgbench, the same transaction"
#: In the order in which they are shown.
SYSTEMS = (
    OURS_POSTGRESQL,
    OURS_TLS,
    OURS_TWO,
    OURS_BATCH,
    CASHIERS,
    CASHIERS_BESIDE,
    BATCH_BESIDE,
    OURS_SQLITE,
    OURS_KAZOO,
    OURS_SINGLY,
    PEER,
    REDIS_LOCK,
    DBOS,
    RESTATE,
    TEMPORAL,
    CEILING,
)
#: Measured together, as one choice of `--only`.
BESIDE = (CASHIERS, CASHIERS_BESIDE, BATCH_BESIDE)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One system in one round.

    Args:
        callers: How many settled at once; of a batch run, how many calls were in flight.
        retries: How often a request was sent again.
        p50_ms: Of one settle, from the first try to the answer; of a batch run, of one call. Likewise `p99_ms`.
    """

    system: str
    callers: int
    round: int
    orders: int
    retries: int
    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of the rounds, the least and the greatest."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Line:
    """All rounds of one system with as many callers.

    Args:
        rate_ratio: Orders a second, divided by the peer's with as many callers; None: the peer was not measured, or
            the load is fixed.
        p50_ratio: The median latency, likewise.
    """

    system: str
    callers: int
    orders: int
    retries: int
    per_s: Spread
    p50_ms: Spread
    p99_ms: Spread
    rate_ratio: float | None
    p50_ratio: float | None


def measured(
    system: str, callers: int, number: int, *, elapsed_s: float, lasted_s: Sequence[float], retries: int = 0
) -> Measurement:
    """Return the measurement of one round.

    Args:
        number: Of the round.
        lasted_s: How long each settle took.
    """
    p50_s, p99_s = percentile(lasted_s, 50), percentile(lasted_s, 99)
    return Measurement(
        system, callers, number, len(lasted_s), retries, len(lasted_s) / elapsed_s, p50_s * 1000, p99_s * 1000
    )


def percentile(values: Sequence[float], percent: int) -> float:
    """Return what so many percent of the values stay under; values between two are interpolated."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def spread(values: Sequence[float]) -> Spread:
    """Return the median, the least and the greatest of some values."""
    return Spread(statistics.median(values), min(values), max(values))


def ratio(
    ours: Iterable[Measurement], peers: Iterable[Measurement], value: Callable[[Measurement], float]
) -> float | None:
    """Return the median of the rounds' ratios; None if no round has both.

    The systems of one round ran one after the other, so that what else the machine does falls on both.
    """
    peer = {measurement.round: value(measurement) for measurement in peers}
    ratios = [value(measurement) / peer[measurement.round] for measurement in ours if measurement.round in peer]
    return statistics.median(ratios) if ratios else None


def summary(measurements: Sequence[Measurement]) -> list[Line]:
    """Return a line for each system and number of callers, by the number of callers."""
    groups: dict[tuple[int, str], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.callers, one.system), []).append(one)
    return [
        _line(groups[callers, system], [] if system in BESIDE else groups.get((callers, PEER), []))
        for callers, system in sorted(groups, key=lambda group: (group[0], SYSTEMS.index(group[1])))
    ]


def _line(rounds: Sequence[Measurement], peers: Sequence[Measurement]) -> Line:
    return Line(
        system=rounds[0].system,
        callers=rounds[0].callers,
        orders=sum(one.orders for one in rounds),
        retries=sum(one.retries for one in rounds),
        per_s=spread([one.per_s for one in rounds]),
        p50_ms=spread([one.p50_ms for one in rounds]),
        p99_ms=spread([one.p99_ms for one in rounds]),
        rate_ratio=ratio(rounds, peers, lambda one: one.per_s),
        p50_ratio=ratio(rounds, peers, lambda one: one.p50_ms),
    )
