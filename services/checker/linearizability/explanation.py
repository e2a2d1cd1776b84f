"""Why some calls are not linearizable, shown with as few of them as possible.

First the history is cut off where the contradiction is complete. Then each call is left out, or taken for one without
an answer, if the others contradict each other without it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from services.checker.history import Nemesis, Outcome, Phase, RecordedCall
from services.checker.linearizability.order_calls import OrderCalls
from services.checker.linearizability.order_model import Move, OrderModel, ReadOrder, is_read_only
from services.checker.linearizability.search import Budget, Operation, Undecided, is_linearizable, known_by

#: The most calls that are listed, of those needed and of those without an answer.
_MAX_NEEDED, _MAX_UNKNOWN = 12, 5
_NS_PER_S = 1e9


def explain(order: OrderCalls, nemesis: Iterable[Nemesis], budget: Budget) -> str:
    """Return some lines about the calls of `order`, which are not linearizable.

    Args:
        budget: Once it is spent, nothing more is left out.
    """
    model = OrderModel(order.names)
    end_ns = max(_ends(order.operations))
    try:
        end_ns = _complete_at_ns(order.operations, model, budget)
        needed = _needed(order.operations, end_ns, model, budget)
    except Undecided:
        needed = [number for number, operation in enumerate(order.operations) if _is_known(operation, end_ns)]
    begin_ns = min(order.operations[number].invoked_ns for number in needed)
    lines = [f"order {order.order_id}: these calls cannot be put in one sequence:"]
    lines += _calls(order, needed, (begin_ns, end_ns), _MAX_NEEDED)
    unknown = [
        number
        for number, operation in enumerate(order.operations)
        if operation.invoked_ns <= end_ns and not _is_known(operation, end_ns) and not is_read_only(operation.moves)
    ]
    if unknown:
        lines.append("whether or not any of these was done, which had no answer by then:")
        lines += _calls(order, unknown, (begin_ns, end_ns), _MAX_UNKNOWN)
    lines += [
        f"  {_moment(fault.at_ns, begin_ns)}  {fault.fault} {fault.target} {fault.phase}"
        for fault in nemesis
        if begin_ns <= fault.at_ns <= end_ns and fault.phase is not Phase.PLANNED
    ]
    return "\n".join(lines)


def _complete_at_ns(operations: Sequence[Operation[Move]], model: OrderModel, budget: Budget) -> int:
    """Return the first moment at which what was known was not linearizable."""
    ends = sorted(_ends(operations))
    place = bisect_left(ends, True, key=lambda end_ns: not is_linearizable(known_by(operations, end_ns), model, budget))
    return ends[place]


def _needed(operations: Sequence[Operation[Move]], end_ns: int, model: OrderModel, budget: Budget) -> list[int]:
    """Return the operations that contradict each other."""
    kept = {number: operation for number, operation in enumerate(operations) if _is_known(operation, end_ns)}
    unknown = [operation for operation in known_by(operations, end_ns) if operation.answered_ns is None]
    for number in sorted(kept, key=lambda number: operations[number].invoked_ns):
        others = {other: operation for other, operation in kept.items() if other != number}
        perhaps = replace(operations[number], answered_ns=None)
        if not is_linearizable([*others.values(), *unknown, perhaps], model, budget):
            kept, unknown = others, [*unknown, perhaps]
    return list(kept)


def _ends(operations: Iterable[Operation[Move]]) -> list[int]:
    return [operation.answered_ns for operation in operations if operation.answered_ns is not None]


def _is_known(operation: Operation[Move], at_ns: int) -> bool:
    return operation.answered_ns is not None and operation.answered_ns <= at_ns


def _calls(order: OrderCalls, numbers: Sequence[int], window_ns: tuple[int, int], limit: int) -> list[str]:
    begin_ns, end_ns = window_ns
    calls = [call for number in numbers for call in order.calls[number] if call.invoked_ns <= end_ns]
    lines = [_call(call, begin_ns) for call in sorted(calls, key=lambda call: call.invoked_ns)]
    lines += [_final_read(order.operations[number]) for number in numbers if not order.calls[number]]
    return [*lines[:limit], f"  … and {len(lines) - limit} more"] if len(lines) > limit else lines


def _call(call: RecordedCall, begin_ns: int) -> str:
    end = _moment(call.answered_ns, begin_ns) if call.answered_ns is not None else "the end"
    asked = " ".join(part for part in (call.kind, call.arguments.key, call.arguments.payment_id) if part)
    by = f" by {call.arguments.clerk}" if call.arguments.clerk else ""
    return f"  {_moment(call.invoked_ns, begin_ns)} to {end}  {call.process}: {asked}{by} → {_answer(call)}"


def _answer(call: RecordedCall) -> str:
    answer = call.answer
    parts = [answer.reason or (answer.code if answer.code != "OK" else ""), answer.state]
    parts += [f"by {answer.payment_id}" if answer.payment_id and call.kind != "GetPayment" else ""]
    parts += [f"round {answer.round}" if answer.round else "", f"version {answer.version}" if answer.version else ""]
    told = ", ".join(part for part in parts if part)
    return f"unknown: {told or 'no answer'}" if call.outcome is Outcome.INFO else f"{call.outcome}: {told}"


def _final_read(operation: Operation[Move]) -> str:
    look = cast(ReadOrder, operation.moves[0])
    state = look.row.name if look.row is not None else "something that no order is"
    by = f", by {look.payment_id}" if look.payment_id else ""
    return f"  in the end: the databases have {state}{by}, round {look.round}, version {look.version}"


def _moment(at_ns: int, begin_ns: int) -> str:
    return f"{(at_ns - begin_ns) / _NS_PER_S:+.6f} s"
