"""Why some calls cannot be put in one sequence, told in as few of them as possible.

First the history is cut off where the contradiction is complete. Then each call is left out, or held to be one of which
nobody heard, if the others contradict each other without it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

from services.checker.history import Nemesis, Operation, Outcome, Phase
from services.checker.linearizability import Budget, Deed, Undecided, has_order, known_by
from services.checker.order_calls import OrderCalls
from services.checker.order_model import ReadOrder, State, before_all, only_looks

#: Calls that are told at most, of those that are needed and of those of which nobody heard.
_MAX_NEEDED, _MAX_UNKNOWN = 12, 5
_NS_PER_S = 1e9


def explain(order: OrderCalls, nemesis: Iterable[Nemesis], budget: Budget) -> str:
    """Some lines about the calls of `order`, which have no order.

    Args:
        budget: Once it is spent, nothing more is left out.
    """
    start = before_all(order.names)
    end_ns = max(_ends(order.deeds))
    try:
        end_ns = _complete_at_ns(order.deeds, start, budget)
        needed = _needed(order.deeds, end_ns, start, budget)
    except Undecided:
        needed = [number for number, deed in enumerate(order.deeds) if _is_known(deed, end_ns)]
    begin_ns = min(order.deeds[number].invoked_ns for number in needed)
    lines = [f"order {order.order_id}: these calls cannot be put in one sequence:"]
    lines += _calls(order, needed, (begin_ns, end_ns), _MAX_NEEDED)
    unknown = [
        number
        for number, deed in enumerate(order.deeds)
        if deed.invoked_ns <= end_ns and not _is_known(deed, end_ns) and not only_looks(deed.moves)
    ]
    if unknown:
        lines.append("whether or not any of these was done, of which nobody had heard by then:")
        lines += _calls(order, unknown, (begin_ns, end_ns), _MAX_UNKNOWN)
    lines += [
        f"  {_moment(fault.at_ns, begin_ns)}  {fault.fault} {fault.target} {fault.phase}"
        for fault in nemesis
        if begin_ns <= fault.at_ns <= end_ns and fault.phase is not Phase.PLANNED
    ]
    return "\n".join(lines)


def _complete_at_ns(deeds: Sequence[Deed], start: State, budget: Budget) -> int:
    """The first moment at which what was known had no order."""
    ends = sorted(_ends(deeds))
    place = bisect_left(ends, True, key=lambda end_ns: not has_order(known_by(deeds, end_ns), start, budget))
    return ends[place]


def _needed(deeds: Sequence[Deed], end_ns: int, start: State, budget: Budget) -> list[int]:
    """The deeds that contradict each other."""
    kept = {number: deed for number, deed in enumerate(deeds) if _is_known(deed, end_ns)}
    unknown = [deed for deed in known_by(deeds, end_ns) if deed.answered_ns is None]
    for number in sorted(kept, key=lambda number: deeds[number].invoked_ns):
        others = {other: deed for other, deed in kept.items() if other != number}
        perhaps = replace(deeds[number], answered_ns=None)
        if not has_order([*others.values(), *unknown, perhaps], start, budget):
            kept, unknown = others, [*unknown, perhaps]
    return list(kept)


def _ends(deeds: Iterable[Deed]) -> list[int]:
    return [deed.answered_ns for deed in deeds if deed.answered_ns is not None]


def _is_known(deed: Deed, at_ns: int) -> bool:
    return deed.answered_ns is not None and deed.answered_ns <= at_ns


def _calls(order: OrderCalls, numbers: Sequence[int], window_ns: tuple[int, int], limit: int) -> list[str]:
    begin_ns, end_ns = window_ns
    calls = [call for number in numbers for call in order.calls[number] if call.invoked_ns <= end_ns]
    lines = [_call(call, begin_ns) for call in sorted(calls, key=lambda call: call.invoked_ns)]
    lines += [_last_look(order.deeds[number]) for number in numbers if not order.calls[number]]
    return [*lines[:limit], f"  … and {len(lines) - limit} more"] if len(lines) > limit else lines


def _call(call: Operation, begin_ns: int) -> str:
    end = _moment(call.answered_ns, begin_ns) if call.answered_ns is not None else "the end"
    asked = " ".join(part for part in (call.kind, call.arguments.key, call.arguments.payment_id) if part)
    by = f" by {call.arguments.clerk}" if call.arguments.clerk else ""
    return f"  {_moment(call.invoked_ns, begin_ns)} to {end}  {call.process}: {asked}{by} → {_said(call)}"


def _said(call: Operation) -> str:
    answer = call.answer
    parts = [answer.reason or (answer.code if answer.code != "OK" else ""), answer.state]
    parts += [f"by {answer.payment_id}" if answer.payment_id and call.kind != "GetPayment" else ""]
    parts += [f"round {answer.round}" if answer.round else "", f"version {answer.version}" if answer.version else ""]
    told = ", ".join(part for part in parts if part)
    return f"unknown: {told or 'no answer'}" if call.outcome is Outcome.INFO else f"{call.outcome}: {told}"


def _last_look(deed: Deed) -> str:
    look = cast(ReadOrder, deed.moves[0])
    state = look.row.name if look.row is not None else "something that no order is"
    by = f", by {look.payment_id}" if look.payment_id else ""
    return f"  in the end: the books say {state}{by}, round {look.round}, version {look.version}"


def _moment(at_ns: int, begin_ns: int) -> str:
    return f"{(at_ns - begin_ns) / _NS_PER_S:+.6f} s"
