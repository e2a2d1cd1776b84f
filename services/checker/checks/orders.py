"""Each order's history is checked for linearizability."""

from __future__ import annotations

from collections.abc import Callable

from services.checker.findings import Findings
from services.checker.history import History
from services.checker.linearizability.explanation import explain
from services.checker.linearizability.order_calls import OrderCalls, order_calls
from services.checker.linearizability.order_model import OrderModel
from services.checker.linearizability.search import Budget, Undecided, is_linearizable
from services.checker.snapshot import Snapshot
from services.kernel.clock import Clock

#: Orders between two reports of progress.
_REPORT_EVERY = 64

#: Called with how many orders were examined, of how many.
OnProgress = Callable[[int, int], None]


def orders_linearizable(
    history: History, snapshot: Snapshot | None, clock: Clock, *, limit_s: float, on_progress: OnProgress
) -> Findings:
    """Check that each order's history is linearizable.

    Args:
        snapshot: As `order_calls`.
        limit_s: How long one order may take; then it is undecided.
    """
    orders = order_calls(history, snapshot)
    violations: list[str] = []
    undecided: list[str] = []
    if not history.whole:
        undecided.append("the recording broke off; what came after it is not known")
    for place, order in enumerate(orders):
        if place % _REPORT_EVERY == 0:
            on_progress(place, len(orders))
        if order.unrecorded:
            undecided.append(f"order {order.order_id}: {order.unrecorded}")
            continue
        _look(order, history, clock, limit_s, violations, undecided)
    on_progress(len(orders), len(orders))
    return Findings(len(orders), violations, undecided)


def _look(
    order: OrderCalls,
    history: History,
    clock: Clock,
    limit_s: float,
    violations: list[str],
    undecided: list[str],
) -> None:
    try:
        if not is_linearizable(order.operations, OrderModel(order.names), Budget.of(limit_s, clock)):
            violations.append(explain(order, history.nemesis, Budget.of(limit_s, clock)))
    except Undecided:
        undecided.append(f"order {order.order_id}: no sequence of its calls was found or ruled out in {limit_s:g} s")
