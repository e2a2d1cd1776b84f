"""What callers did to each order, as moves of the model.

A request may be sent several times under one key; it is one deed. It begins with the first attempt that may have done
something, and ends with the first definitive answer, for an attempt that was refused before anything was done did
nothing, and the answer to any attempt tells what the request has done. A request nobody was answered may have been done
at any time since, or never.

| a caller was told | moves |
|---|---|
| Settle, Pay: SUCCEEDED | Claim, Record |
| Settle, Pay: ORDER_ALREADY_PAID, ORDER_NOT_PAYABLE | a look at the order |
| Settle, Pay: ORDER_NOT_FOUND | a look at the order, which is not there; one for all attempts |
| Settle, Pay: declined | Claim, Decline |
| Settle, Pay: nothing for certain | Claim, Record, Decline; each or none |
| CreateOrder, CancelOrder, Reverse | the move, or a look at what forbade it |
| GetOrder, GetPayment | a look |
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from services.checker.books import Books, caller_of, person
from services.checker.history import CUSTOMER, Answer, History, Operation, Outcome, is_stored
from services.checker.linearizability import Deed
from services.checker.order_model import (
    NOBODY,
    Cancel,
    Claim,
    Create,
    Decline,
    Exists,
    Move,
    NotCancellable,
    NotReversible,
    OtherVersion,
    Owed,
    ReadOrder,
    ReadPayment,
    Record,
    Reverse,
    Row,
)

#: Whose key, for which method.
Key = tuple[str, str, str]

_SETTLES = ("Settle", "Pay")
_WRITES = ("CreateOrder", "CancelOrder", "Reverse", *_SETTLES)
_ROWS = {row.name: row for row in Row}


@dataclass(slots=True)
class OrderCalls:
    """The calls that concern one order.

    Args:
        names: The payment id of each settling request, as far as it is known.
        deeds: In no particular order.
        calls: Of each deed, what was sent; empty: it is the last look at the books.
        untold: Why the history does not tell all that happened to the order; empty: it does.
    """

    order_id: str
    names: tuple[str, ...] = ()
    deeds: list[Deed] = field(default_factory=list)
    calls: list[tuple[Operation, ...]] = field(default_factory=list)
    untold: str = ""


def key_of(operation: Operation) -> Key:
    """Under which the services remember it."""
    asked = operation.arguments
    return person(asked.clerk, asked.role), operation.kind, asked.key


def order_calls(history: History, books: Books | None = None) -> list[OrderCalls]:
    """The calls of each order in the history.

    Args:
        books: As they stood when nothing was under way any more, after the last call: which payment belongs to which
            request, and a last look at each order.
    """
    places = _Places(history, books)
    by_order: defaultdict[str, list[Operation]] = defaultdict(list)
    anywhere: list[Operation] = []
    for operation in history.operations:
        if order_id := places.order_of(operation):
            by_order[order_id].append(operation)
        elif operation.kind == "Reverse" and not places.is_direct(operation.arguments.payment_id):
            anywhere.append(operation)
    last = _LastLook(history, books) if books is not None and history.whole else None
    made = [_Compiler(order_id, calls, places, last).compiled() for order_id, calls in by_order.items()]
    for order in made:
        _add_loose(order, anywhere)
    return made


def _add_loose(order: OrderCalls, reversals: Iterable[Operation]) -> None:
    """A reversal of a payment whose order nobody knows may have been of this one, if the name of one of its is not."""
    for operation in reversals if "" in order.names else ():
        if operation.outcome is not Outcome.FAIL:
            order.deeds.append(Deed((Reverse(operation.arguments.payment_id),), operation.invoked_ns, None))
            order.calls.append((operation,))


class _Places:
    """Which order a call concerns, if it does not say so itself, and which payment belongs to which request."""

    def __init__(self, history: History, books: Books | None) -> None:
        self.payment_of: dict[Key, str] = {}
        self.knows_all = books is not None
        self._order_of_payment: dict[str, str] = {}
        self._order_of_ticket: dict[Key, str] = {}
        for row in books.payments if books is not None else ():
            key = (caller_of(row, "request_"), str(row["request_method"]), str(row["request_key"]))
            self.payment_of[key] = str(row["payment_id"])
            self._order_of_payment[str(row["payment_id"])] = str(row["order_id"])
        self._direct = {payment_id for payment_id, order_id in self._order_of_payment.items() if not order_id}
        for operation in history.operations:
            self._learn(operation)

    def order_of(self, operation: Operation) -> str:
        """Empty: none, or nobody knows which."""
        arguments, answer = operation.arguments, operation.answer
        if operation.kind not in (*_WRITES, "GetOrder", "GetPayment"):
            return ""
        named = arguments.order_id or answer.order_id
        if operation.kind == "Pay":
            named = named or self._order_of_ticket.get(key_of(operation), "")
        payment_id = arguments.payment_id or answer.payment_id
        return named or self._order_of_payment.get(payment_id, "")

    def is_direct(self, payment_id: str) -> bool:
        """Whether it is certain that this payment is of no order."""
        return payment_id in self._direct

    def _learn(self, operation: Operation) -> None:
        arguments, answer = operation.arguments, operation.answer
        order_id = arguments.order_id or answer.order_id
        if operation.kind == "IssueTicket" and answer.ticket:
            self._order_of_ticket[key_of(operation)[0], "Pay", answer.ticket] = order_id
        if answer.payment_id and order_id:
            self._order_of_payment.setdefault(answer.payment_id, order_id)
        if operation.kind in _SETTLES and answer.code == "OK" and answer.payment_id:
            self.payment_of[key_of(operation)] = answer.payment_id


class _LastLook:
    """What the books say of each order, looked at after the last call."""

    def __init__(self, history: History, books: Books) -> None:
        ends = [operation.answered_ns or operation.invoked_ns for operation in history.operations]
        self._at_ns = max(ends, default=0) + 1
        self._orders = {str(row["order_id"]): row for row in books.orders}
        self._payments: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in books.payments:
            self._payments[str(row["order_id"])].append(row)

    def deed(self, order_id: str, clerks: tuple[str, ...]) -> Deed:
        """A look at the row."""
        row = self._orders.get(order_id)
        look = ReadOrder(Row.ABSENT)
        if row is not None:
            look = ReadOrder(
                _ROWS.get(row["state"]),
                clerks,
                round=int(row["round"]),
                version=int(row["version"]),
                owed=Owed(int(row["amount_minor_units"]), str(row["currency_code"])),
                payment_id=str(row["payment_id"]),
            )
        return Deed((look,), self._at_ns, self._at_ns)

    def untold(self, order_id: str, keys: set[Key]) -> str:
        """What somebody has done who is not in the history."""
        for row in self._payments[order_id]:
            settled = (caller_of(row, "request_"), str(row["request_method"]), str(row["request_key"]))
            reversed_ = (caller_of(row, "reversal_"), "Reverse", str(row["reversal_key"]))
            for key in (settled, reversed_):
                if key[2] and key not in keys:
                    return f"{key[1]} {key[2]} of {key[0]} is not in the history"
        order = self._orders.get(order_id)
        if (
            order is not None
            and order["state"] == Row.CANCELLED.name
            and not any(key[1] == "CancelOrder" for key in keys)
        ):
            return "who cancelled it is not in the history"
        return ""


@dataclass(slots=True)
class _Request:
    """A settling request.

    Args:
        attempts: Those that may have done something.
        final: The first of them that was told for certain; None: none was.
    """

    number: int
    key: Key
    attempts: list[Operation]
    final: Operation | None

    @property
    def begun_ns(self) -> int:
        """From when on it may have been done."""
        return min(attempt.invoked_ns for attempt in self.attempts)

    @property
    def never_claimed(self) -> bool:
        """Whether it is certain that its payment never claimed the order."""
        if not self.attempts:
            return True
        return self.final is not None and self.final.answer.reason in ("ORDER_ALREADY_PAID", "ORDER_NOT_PAYABLE")


class _Compiler:
    """Makes the deeds of one order."""

    def __init__(self, order_id: str, operations: Sequence[Operation], places: _Places, last: _LastLook | None) -> None:
        self._made = OrderCalls(order_id)
        self._places = places
        self._last = last
        self._by_key: defaultdict[Key, list[Operation]] = defaultdict(list)
        self._reads: list[Operation] = []
        for operation in operations:
            if operation.kind in _WRITES:
                self._by_key[key_of(operation)].append(operation)
            else:
                self._reads.append(operation)
        self._requests = self._settling_requests()
        self._clerks = tuple(request.key[0].partition(" ")[0] for request in self._requests)
        self._refused = frozenset(request.number for request in self._requests if request.never_claimed)

    def compiled(self) -> OrderCalls:
        """All of it."""
        made = self._made
        made.names = tuple(self._name(request) for request in self._requests)
        before = self._used_before(self._requests, made.names)
        for request in self._requests:
            self._settle(request, before.get(request.number, NOBODY))
        for key, attempts in self._by_key.items():
            if key[1] in _SETTLES:
                self._settled_nothing(attempts)
            else:
                self._look_at_absence(attempts)
                self._write(key[1], attempts)
        for operation in self._reads:
            self._read(operation)
        if self._last is not None:
            made.untold = self._last.untold(made.order_id, set(self._by_key))
            self._add((), self._last.deed(made.order_id, self._clerks))
        if not made.untold and not any(key[1] == "CreateOrder" for key in self._by_key) and self._was_there():
            made.untold = "it was made before the history begins"
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
        """Where it makes no difference which of several requests was done, one of them is taken before the next.

        Those that nobody was answered, whose payments nobody ever saw, and which are of one clerk: the earliest can do
        whatever a later one can.
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
        """The payments that somebody saw other than by asking for them."""
        seen = {operation.arguments.payment_id for operation in self._reads}
        seen |= {operation.answer.payment_id for operation in self._reads}
        for key, attempts in self._by_key.items():
            for attempt in attempts:
                if key[1] not in _SETTLES or attempt.outcome is Outcome.FAIL:
                    seen |= {attempt.arguments.payment_id}
                if attempt.outcome is Outcome.FAIL:
                    seen |= {attempt.answer.payment_id}
        if self._last is not None:
            look = self._last.deed(self._made.order_id, ()).moves[0]
            seen |= {look.payment_id} if isinstance(look, ReadOrder) else set()
        return seen - {""}

    def _settle(self, request: _Request, after: int) -> None:
        if not request.attempts:
            return
        number, final = request.number, request.final
        claim = Claim(number, after)
        moves: tuple[Move, ...]
        if final is None:
            moves = (claim, Record(number), Decline(number, claimed=not self._was_seen_declined(request)))
        elif final.outcome is Outcome.OK:
            moves = (claim, Record(number, final.answer.round, _owed(final.answer)))
        elif number in self._refused:
            was_paid = final.answer.reason == "ORDER_ALREADY_PAID"
            moves = (self._look(final.answer, "PAID" if was_paid else "CANCELLED"),)
        else:
            moves = (claim, Decline(number))
        self._add(request.attempts, Deed(moves, request.begun_ns, final.answered_ns if final else None))

    def _was_seen_declined(self, request: _Request) -> bool:
        """Whether somebody saw that its payment, or one that may be its, was declined."""
        name = self._made.names[request.number]
        told = (*self._reads, *(call for calls in self._by_key.values() for call in calls))
        seen = {call.arguments.payment_id for call in told if call.answer.state == "DECLINED"}
        return name in seen if name else bool(seen)

    # Other writes

    def _write(self, kind: str, attempts: Sequence[Operation]) -> None:
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
        self._add(effective, Deed((move,), begun_ns, final.answered_ns if final else None))

    @staticmethod
    def _success(kind: str, asked: Operation) -> Move:
        match kind:
            case "CreateOrder":
                owed = Owed(asked.arguments.amount_minor, asked.arguments.currency)
                return Create(owed if owed.amount_minor else _owed(asked.answer))
            case "CancelOrder":
                return Cancel(asked.answer.version)
            case _:
                return Reverse(asked.arguments.payment_id)

    def _refusal(self, kind: str, asked: Operation) -> Move:
        answer = asked.answer
        match kind:
            case "CreateOrder":
                return Exists()
            case "CancelOrder":
                return self._look(answer) if answer.state else NotCancellable()
            case _:
                payment_id = asked.arguments.payment_id
                if answer.reason == "PAYMENT_PARKED":  # while it was being reversed unseen
                    return ReadPayment(payment_id, "PARKED")
                if answer.reason != "ILLEGAL_STATE":  # the ledger refused, so it was there to be reversed
                    return ReadPayment(payment_id, "SUCCEEDED")
                return (
                    ReadPayment(payment_id, answer.state, self._refused) if answer.state else NotReversible(payment_id)
                )

    # Looks

    def _read(self, operation: Operation) -> None:
        self._look_at_absence([operation])
        answer = operation.answer
        if operation.outcome is not Outcome.OK:
            return
        if operation.kind == "GetOrder":
            self._add((operation,), _at(operation, self._look(answer)))
        else:
            look = ReadPayment(operation.arguments.payment_id, answer.state, self._refused)
            self._add((operation,), _at(operation, look))

    def _settled_nothing(self, attempts: Sequence[Operation]) -> None:
        """A request that was told that there is no such order looked once; later attempts are told the same again."""
        told = [attempt for attempt in attempts if _is_told_of_absence(attempt)]
        if told:
            first_ns = min(attempt.invoked_ns for attempt in attempts)
            ended_ns = min((attempt.answered_ns for attempt in told if attempt.answered_ns is not None), default=None)
            self._add(told, Deed((ReadOrder(Row.ABSENT),), first_ns, ended_ns))

    def _look_at_absence(self, operations: Iterable[Operation]) -> None:
        """Whoever was told that there is no such order has looked. A customer is told so of others' orders, too."""
        for operation in operations:
            if _is_told_of_absence(operation):
                self._add((operation,), _at(operation, ReadOrder(Row.ABSENT)))

    def _look(self, answer: Answer, state: str = "") -> ReadOrder:
        return ReadOrder(
            _ROWS.get(state or answer.state),
            self._clerks,
            answer.round,
            answer.version,
            _owed(answer),
            answer.payment_id,
            answer.clerk,
        )

    def _was_there(self) -> bool:
        return any(deed.moves != (ReadOrder(Row.ABSENT),) for deed in self._made.deeds)

    def _add(self, calls: Iterable[Operation], deed: Deed) -> None:
        self._made.deeds.append(deed)
        self._made.calls.append(tuple(calls))


def _is_told_of_absence(operation: Operation) -> bool:
    return operation.answer.reason == "ORDER_NOT_FOUND" and operation.arguments.role != CUSTOMER


def _effective(attempts: Sequence[Operation]) -> list[Operation]:
    """Return the attempts that may have done something, or got the stored answer.

    An attempt that was told that there is no such order is a look of its own. If that answer is stored, every attempt
    gets it, so none has done anything.
    """
    if any(is_stored(attempt) and _is_told_of_absence(attempt) for attempt in attempts):
        return []
    return [
        attempt
        for attempt in attempts
        if attempt.outcome is not Outcome.FAIL or (is_stored(attempt) and not _is_told_of_absence(attempt))
    ]


def _final(effective: Iterable[Operation]) -> Operation | None:
    """The first that was told for certain."""
    told = [attempt for attempt in effective if attempt.outcome is not Outcome.INFO]
    return min(told, key=lambda attempt: attempt.answered_ns or 0, default=None)


def _owed(answer: Answer) -> Owed:
    return Owed(answer.amount_minor, answer.currency)


def _at(operation: Operation, move: Move) -> Deed:
    return Deed((move,), operation.invoked_ns, operation.answered_ns)
