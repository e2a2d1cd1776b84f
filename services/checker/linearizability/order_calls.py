"""The calls to each order, as operations of the model.

All attempts under one key are one operation. It begins with the first attempt that may have had an effect, and ends
with the first definitive answer: an attempt that was refused before anything was done had no effect, and the answer to
any attempt tells what the request has done. A request without an answer may have been done at any time since, or never.

| a caller was answered | moves |
|---|---|
| Settle, Pay: SUCCEEDED | Claim, Post |
| Settle, Pay: ORDER_ALREADY_PAID, ORDER_NOT_PAYABLE | a read of the order |
| Settle, Pay: ORDER_NOT_FOUND | a read of the absent order; one for all attempts |
| Settle, Pay: declined | Claim, Decline |
| Settle, Pay: nothing for certain | Claim, Post, Decline; each or none |
| CreateOrder, CancelOrder, Reverse | the move, or a read of what forbade it |
| GetOrder, GetPayment | a read |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from services.checker.evidence import Key, key_of, reversal_key, settling_key, title
from services.checker.history import CUSTOMER, Answer, History, Outcome, RecordedCall, is_stored
from services.checker.linearizability.order_model import (
    NO_REQUEST,
    Cancel,
    Claim,
    Create,
    Decline,
    Exists,
    Move,
    NotCancellable,
    NotReversible,
    OrderState,
    OtherVersion,
    Owed,
    Post,
    ReadOrder,
    ReadPayment,
    Reverse,
)
from services.checker.linearizability.search import Operation
from services.checker.snapshot import Snapshot

_SETTLES = ("Settle", "Pay")
_WRITES = ("CreateOrder", "CancelOrder", "Reverse", *_SETTLES)
_ORDER_STATES = {row.name: row for row in OrderState}


@dataclass(slots=True)
class OrderCalls:
    """The calls that concern one order.

    Args:
        names: The payment id of each settling request, as far as it is known.
        operations: In no particular order.
        calls: Of each operation, the calls that were sent; empty: it is the final read of the books.
        unrecorded: What happened to the order and is not in the history; empty: nothing.
    """

    order_id: str
    names: tuple[str, ...] = ()
    operations: list[Operation[Move]] = field(default_factory=list)
    calls: list[tuple[RecordedCall, ...]] = field(default_factory=list)
    unrecorded: str = ""


def order_calls(history: History, snapshot: Snapshot | None = None) -> list[OrderCalls]:
    """Return the calls of each order in the history.

    Args:
        snapshot: Taken after the last call, with nothing under way. It shows which payment belongs to which request,
            and is the final read of each order.
    """
    places = CallIndex(history, snapshot)
    by_order: defaultdict[str, list[RecordedCall]] = defaultdict(list)
    anywhere: list[RecordedCall] = []
    for call in history.calls:
        if order_id := places.order_of(call):
            by_order[order_id].append(call)
        elif call.kind == "Reverse" and not places.is_direct(call.arguments.payment_id):
            anywhere.append(call)
    last = FinalRead(history, snapshot) if snapshot is not None and history.whole else None
    made = [_Compiler(order_id, calls, places, last).compiled() for order_id, calls in by_order.items()]
    for order in made:
        _add_loose(order, anywhere)
    return made


def _add_loose(order: OrderCalls, reversals: Iterable[RecordedCall]) -> None:
    """Add reversals of payments of unknown order: they may be of this one, if one of its payments has no name."""
    for call in reversals if "" in order.names else ():
        if call.outcome is not Outcome.FAIL:
            order.operations.append(Operation((Reverse(call.arguments.payment_id),), call.invoked_ns, None))
            order.calls.append((call,))


class CallIndex:
    """Finds the order that a call concerns, and the payment that belongs to a request."""

    def __init__(self, history: History, snapshot: Snapshot | None) -> None:
        self.payment_of: dict[Key, str] = {}
        self.knows_all = snapshot is not None
        self._order_of_payment: dict[str, str] = {}
        self._order_of_ticket: dict[Key, str] = {}
        for row in snapshot.payments if snapshot is not None else ():
            self.payment_of[settling_key(row)] = str(row["payment_id"])
            self._order_of_payment[str(row["payment_id"])] = str(row["order_id"])
        self._direct = {payment_id for payment_id, order_id in self._order_of_payment.items() if not order_id}
        for call in history.calls:
            self._learn(call)

    def order_of(self, call: RecordedCall) -> str:
        """Return the id of the order; empty: none, or not known."""
        arguments, answer = call.arguments, call.answer
        if call.kind not in (*_WRITES, "GetOrder", "GetPayment"):
            return ""
        named = arguments.order_id or answer.order_id
        if call.kind == "Pay":
            named = named or self._order_of_ticket.get(key_of(call), "")
        payment_id = arguments.payment_id or answer.payment_id
        return named or self._order_of_payment.get(payment_id, "")

    def is_direct(self, payment_id: str) -> bool:
        """Return whether this payment certainly has no order."""
        return payment_id in self._direct

    def _learn(self, call: RecordedCall) -> None:
        arguments, answer = call.arguments, call.answer
        order_id = arguments.order_id or answer.order_id
        if call.kind == "IssueTicket" and answer.ticket:
            self._order_of_ticket[key_of(call)[0], "Pay", answer.ticket] = order_id
        if answer.payment_id and order_id:
            self._order_of_payment.setdefault(answer.payment_id, order_id)
        if call.kind in _SETTLES and answer.code == "OK" and answer.payment_id:
            self.payment_of[key_of(call)] = answer.payment_id


class FinalRead:
    """A read of each order in the snapshot, after the last call."""

    def __init__(self, history: History, snapshot: Snapshot) -> None:
        ends = [call.answered_ns or call.invoked_ns for call in history.calls]
        self._at_ns = max(ends, default=0) + 1
        self._orders = {str(row["order_id"]): row for row in snapshot.orders}
        self._payments: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in snapshot.payments:
            self._payments[str(row["order_id"])].append(row)

    def operation(self, order_id: str, clerks: tuple[str, ...]) -> Operation[Move]:
        row = self._orders.get(order_id)
        look = ReadOrder(OrderState.ABSENT)
        if row is not None:
            look = ReadOrder(
                _ORDER_STATES.get(row["state"]),
                clerks,
                round=int(row["round"]),
                version=int(row["version"]),
                owed=Owed(int(row["amount_minor_units"]), str(row["currency_code"])),
                payment_id=str(row["payment_id"]),
            )
        return Operation((look,), self._at_ns, self._at_ns)

    def unrecorded(self, order_id: str, keys: set[Key]) -> str:
        """Return what was done to the order by a caller that is not in the history; empty: nothing."""
        for row in self._payments[order_id]:
            for key in (settling_key(row), reversal_key(row)):
                if key[2] and key not in keys:
                    return f"{title(key)} is not in the history"
        order = self._orders.get(order_id)
        if (
            order is not None
            and order["state"] == OrderState.CANCELLED.name
            and not any(key[1] == "CancelOrder" for key in keys)
        ):
            return "its cancellation is not in the history"
        return ""


@dataclass(slots=True)
class _Request:
    """A settling request.

    Args:
        attempts: Those that may have had an effect.
        final: The first of them with a definitive answer; None: none has one.
    """

    number: int
    key: Key
    attempts: list[RecordedCall]
    final: RecordedCall | None

    @property
    def begun_ns(self) -> int:
        return min(attempt.invoked_ns for attempt in self.attempts)

    @property
    def never_claimed(self) -> bool:
        """Whether its payment certainly never claimed the order."""
        if not self.attempts:
            return True
        return self.final is not None and self.final.answer.reason in ("ORDER_ALREADY_PAID", "ORDER_NOT_PAYABLE")


class _Compiler:
    """Makes the operations of one order."""

    def __init__(self, order_id: str, calls: Sequence[RecordedCall], places: CallIndex, last: FinalRead | None) -> None:
        self._made = OrderCalls(order_id)
        self._places = places
        self._last = last
        self._by_key: defaultdict[Key, list[RecordedCall]] = defaultdict(list)
        self._reads: list[RecordedCall] = []
        for call in calls:
            if call.kind in _WRITES:
                self._by_key[key_of(call)].append(call)
            else:
                self._reads.append(call)
        self._requests = self._settling_requests()
        self._clerks = tuple(request.key[0].partition(" ")[0] for request in self._requests)
        self._refused = frozenset(request.number for request in self._requests if request.never_claimed)

    def compiled(self) -> OrderCalls:
        made = self._made
        made.names = tuple(self._name(request) for request in self._requests)
        before = self._used_before(self._requests, made.names)
        for request in self._requests:
            self._settle(request, before.get(request.number, NO_REQUEST))
        for key, attempts in self._by_key.items():
            if key[1] in _SETTLES:
                self._read_by_settling(attempts)
            else:
                self._read_absence(attempts)
                self._write(key[1], attempts)
        for call in self._reads:
            self._read(call)
        if self._last is not None:
            made.unrecorded = self._last.unrecorded(made.order_id, set(self._by_key))
            self._add((), self._last.operation(made.order_id, self._clerks))
        if not made.unrecorded and not any(key[1] == "CreateOrder" for key in self._by_key) and self._was_there():
            made.unrecorded = "it was made before the history begins"
        return made

    # Settling

    def _settling_requests(self) -> list[_Request]:
        found: list[_Request] = []
        for key, attempts in self._by_key.items():
            if key[1] in _SETTLES:
                effective = _effective(attempts)
                found.append(_Request(len(found), key, effective, _final(effective)))
        return found

    def _name(self, request: _Request) -> str:
        name = self._places.payment_of.get(request.key, "")
        if not name and self._places.knows_all:
            return f"none of {request.key[2]}"  # it never arrived, so nothing that was seen can be its payment
        return name

    def _used_before(self, requests: Iterable[_Request], names: Sequence[str]) -> dict[int, int]:
        """Return, for requests that are interchangeable, the one that is used before each.

        Requests of one clerk that were not answered, and whose payments no caller saw: the earliest can do whatever a
        later one can.
        """
        seen = self._seen_payments()
        alike: defaultdict[tuple[str, bool], list[_Request]] = defaultdict(list)
        for request in requests:
            if request.attempts and request.final is None and names[request.number] not in seen:
                alike[request.key[0], not names[request.number]].append(request)
        return {
            later.number: earlier.number
            for group in alike.values()
            for earlier, later in pairwise(sorted(group, key=lambda request: request.begun_ns))
        }

    def _seen_payments(self) -> set[str]:
        """Return the payments that a caller saw other than as the answer to its own settle."""
        seen = {call.arguments.payment_id for call in self._reads}
        seen |= {call.answer.payment_id for call in self._reads}
        for key, attempts in self._by_key.items():
            for attempt in attempts:
                if key[1] not in _SETTLES or attempt.outcome is Outcome.FAIL:
                    seen |= {attempt.arguments.payment_id}
                if attempt.outcome is Outcome.FAIL:
                    seen |= {attempt.answer.payment_id}
        if self._last is not None:
            look = self._last.operation(self._made.order_id, ()).moves[0]
            seen |= {look.payment_id} if isinstance(look, ReadOrder) else set()
        return seen - {""}

    def _settle(self, request: _Request, after: int) -> None:
        if not request.attempts:
            return
        number, final = request.number, request.final
        claim = Claim(number, after)
        moves: tuple[Move, ...]
        if final is None:
            moves = (claim, Post(number), Decline(number, claimed=not self._was_seen_declined(request)))
        elif final.outcome is Outcome.OK:
            moves = (claim, Post(number, final.answer.round, _owed(final.answer)))
        elif number in self._refused:
            was_paid = final.answer.reason == "ORDER_ALREADY_PAID"
            moves = (self._order_read(final.answer, "PAID" if was_paid else "CANCELLED"),)
        else:
            moves = (claim, Decline(number))
        self._add(request.attempts, Operation(moves, request.begun_ns, final.answered_ns if final else None))

    def _was_seen_declined(self, request: _Request) -> bool:
        """Return whether a caller saw that its payment, or one that may be its, was declined."""
        name = self._made.names[request.number]
        told = (*self._reads, *(call for calls in self._by_key.values() for call in calls))
        seen = {call.arguments.payment_id for call in told if call.answer.state == "DECLINED"}
        return name in seen if name else bool(seen)

    # Other writes

    def _write(self, kind: str, attempts: Sequence[RecordedCall]) -> None:
        for attempt in attempts:
            if attempt.answer.reason == "STALE_VERSION":
                look = OtherVersion(attempt.arguments.expected_version, attempt.answer.version)
                self._add((attempt,), _at(attempt, look))
        effective = _effective(attempts)
        if not effective:
            return
        final = _final(effective)
        refused = final is not None and final.outcome is Outcome.FAIL
        asked = final or effective[0]
        move = (self._refusal if refused else self._success)(kind, asked)
        begun_ns = min(attempt.invoked_ns for attempt in effective)
        self._add(effective, Operation((move,), begun_ns, final.answered_ns if final else None))

    @staticmethod
    def _success(kind: str, asked: RecordedCall) -> Move:
        match kind:
            case "CreateOrder":
                owed = Owed(asked.arguments.amount_minor, asked.arguments.currency)
                return Create(owed if owed.amount_minor else _owed(asked.answer))
            case "CancelOrder":
                return Cancel(asked.answer.version)
            case _:
                return Reverse(asked.arguments.payment_id)

    def _refusal(self, kind: str, asked: RecordedCall) -> Move:
        answer = asked.answer
        match kind:
            case "CreateOrder":
                return Exists()
            case "CancelOrder":
                return self._order_read(answer) if answer.state else NotCancellable()
            case _:
                payment_id = asked.arguments.payment_id
                if answer.reason == "PAYMENT_PARKED":  # while it was being reversed unseen
                    return ReadPayment(payment_id, "PARKED")
                if answer.reason != "ILLEGAL_STATE":  # the ledger refused, so it was there to be reversed
                    return ReadPayment(payment_id, "SUCCEEDED")
                return (
                    ReadPayment(payment_id, answer.state, self._refused) if answer.state else NotReversible(payment_id)
                )

    # Reads

    def _read(self, call: RecordedCall) -> None:
        self._read_absence([call])
        answer = call.answer
        if call.outcome is not Outcome.OK:
            return
        if call.kind == "GetOrder":
            self._add((call,), _at(call, self._order_read(answer)))
        else:
            look = ReadPayment(call.arguments.payment_id, answer.state, self._refused)
            self._add((call,), _at(call, look))

    def _read_by_settling(self, attempts: Sequence[RecordedCall]) -> None:
        """Add the one read of a request that was answered ORDER_NOT_FOUND; later attempts get the same answer."""
        told = [attempt for attempt in attempts if _is_order_not_found(attempt)]
        first = _final(told)
        if first is not None:
            begun_ns = min(attempt.invoked_ns for attempt in attempts)
            self._add(told, Operation((ReadOrder(OrderState.ABSENT),), begun_ns, first.answered_ns))

    def _read_absence(self, calls: Iterable[RecordedCall]) -> None:
        """Add a read for each ORDER_NOT_FOUND, but for customers: they get it for others' orders, too."""
        for call in calls:
            if _is_order_not_found(call):
                self._add((call,), _at(call, ReadOrder(OrderState.ABSENT)))

    def _order_read(self, answer: Answer, state: str = "") -> ReadOrder:
        return ReadOrder(
            _ORDER_STATES.get(state or answer.state),
            self._clerks,
            answer.round,
            answer.version,
            _owed(answer),
            answer.payment_id,
            answer.clerk,
        )

    def _was_there(self) -> bool:
        return any(operation.moves != (ReadOrder(OrderState.ABSENT),) for operation in self._made.operations)

    def _add(self, calls: Iterable[RecordedCall], operation: Operation[Move]) -> None:
        self._made.operations.append(operation)
        self._made.calls.append(tuple(calls))


def _is_order_not_found(call: RecordedCall) -> bool:
    return call.answer.reason == "ORDER_NOT_FOUND" and call.arguments.role != CUSTOMER


def _effective(attempts: Sequence[RecordedCall]) -> list[RecordedCall]:
    """Return the attempts that may have done something, or got the stored answer.

    An attempt that was answered ORDER_NOT_FOUND is a read of its own. If that answer is stored, every attempt gets it,
    so none has done anything.
    """
    if any(is_stored(attempt) and _is_order_not_found(attempt) for attempt in attempts):
        return []
    return [
        attempt
        for attempt in attempts
        if attempt.outcome is not Outcome.FAIL or (is_stored(attempt) and not _is_order_not_found(attempt))
    ]


def _final(effective: Iterable[RecordedCall]) -> RecordedCall | None:
    """Return the first with a definitive answer."""
    told = [attempt for attempt in effective if attempt.outcome is not Outcome.INFO]
    return min(told, key=lambda attempt: attempt.answered_ns or 0, default=None)


def _owed(answer: Answer) -> Owed:
    return Owed(answer.amount_minor, answer.currency)


def _at(call: RecordedCall, move: Move) -> Operation[Move]:
    return Operation((move,), call.invoked_ns, call.answered_ns)
