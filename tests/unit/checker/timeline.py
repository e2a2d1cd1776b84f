"""Histories of one order, written by hand: each line a call, with when it began and ended.

t = Timeline()
t.settle("s1", 1, 4, paid="p1")         asked for at 1, told at 4 that p1 has paid
t.look(5, 6, "PAID", "p1")
assert t.is_lawful()
"""

from __future__ import annotations

from services.checker.checks.orders import orders_linearizable
from services.checker.findings import Findings
from services.checker.history import NO_ANSWER, Answer, Arguments, History, RecordedCall, outcome_of
from services.kernel.clock import SystemClock

ORDER = "o"
LIMIT_S = 5.0
_MADE = Answer(state="UNPAID")


class Timeline:
    """The calls at one order; it is made at 0, unless nothing is said."""

    def __init__(self, *, made: bool = True) -> None:
        self.calls: list[RecordedCall] = []
        if made:
            self.create("m", -2, -1)

    def call(
        self, kind: str, arguments: Arguments, answer: Answer | None, began: int, ended: int | None
    ) -> RecordedCall:
        """A call with its answer; None: no answer came."""
        told = answer or NO_ANSWER
        place = len(self.calls) + 1
        call = RecordedCall(place, f"p{place}", kind, arguments, began, outcome_of(kind, told), told, ended)
        self.calls.append(call)
        return call

    def create(self, key: str, began: int, ended: int, answer: Answer | None = _MADE) -> RecordedCall:
        asked = Arguments(order_id=ORDER, key=key, clerk="li", amount_minor=100, currency="CNY")
        return self.call("CreateOrder", asked, answer, began, ended)

    def settle(
        self,
        key: str,
        began: int,
        ended: int | None,
        *,
        paid: str = "",
        answer: Answer | None = None,
        clerk: str = "li",
        round_: int = 0,
        amount: int = 0,
    ) -> RecordedCall:
        """Settle; nobody was answered, unless it is said that it was paid, or what else was answered."""
        if paid:
            answer = Answer(state="SUCCEEDED", payment_id=paid, round=round_, amount_minor=amount, currency="CNY")
        return self.call("Settle", Arguments(order_id=ORDER, key=key, clerk=clerk), answer, began, ended)

    def refused(
        self, key: str, began: int, ended: int, by: str, *, clerk: str = "wu", winner: str = ""
    ) -> RecordedCall:
        """Settle, of an order that was paid already."""
        answer = Answer("ALREADY_EXISTS", "ORDER_ALREADY_PAID", payment_id=by, clerk=winner)
        return self.settle(key, began, ended, answer=answer, clerk=clerk)

    def declined(self, key: str, began: int, ended: int) -> RecordedCall:
        """Settle, with too little money."""
        return self.settle(key, began, ended, answer=Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"))

    def look(self, began: int, ended: int, state: str, payment: str = "", **told: int | str) -> RecordedCall:
        answer = Answer(state=state, payment_id=payment, **told)  # type: ignore[arg-type]
        return self.call("GetOrder", Arguments(order_id=ORDER), answer, began, ended)

    def absent(self, began: int, ended: int, *, role: str = "cashier") -> RecordedCall:
        """GetOrder, and there is none."""
        asked = Arguments(order_id=ORDER, role=role)
        return self.call("GetOrder", asked, Answer("NOT_FOUND", "ORDER_NOT_FOUND"), began, ended)

    def look_at_payment(self, began: int, ended: int, payment: str, state: str) -> RecordedCall:
        asked = Arguments(payment_id=payment, order_id=ORDER)
        return self.call("GetPayment", asked, Answer(state=state, payment_id=payment), began, ended)

    def reverse(
        self, key: str, began: int, ended: int | None, payment: str, answer: Answer | None = None
    ) -> RecordedCall:
        """Reverse; nobody was answered, unless something is said."""
        asked = Arguments(payment_id=payment, order_id=ORDER, key=key, clerk="wu")
        return self.call("Reverse", asked, answer, began, ended)

    def reversed(self, key: str, began: int, ended: int, payment: str) -> RecordedCall:
        """Reverse, and it was done."""
        return self.reverse(key, began, ended, payment, Answer(state="REVERSED", payment_id=payment))

    def cancel(
        self, key: str, began: int, ended: int | None, answer: Answer | None = None, expected: int = 0
    ) -> RecordedCall:
        """CancelOrder; nobody was answered, unless something is said."""
        asked = Arguments(order_id=ORDER, key=key, clerk="li", expected_version=expected)
        return self.call("CancelOrder", asked, answer, began, ended)

    def history(self) -> History:
        return History(tuple(sorted(self.calls, key=lambda call: (call.invoked_ns, call.op))))

    def examined(self) -> Findings:
        """What the check finds, by the calls alone."""
        return orders_linearizable(
            self.history(), None, SystemClock(), limit_s=LIMIT_S, on_progress=lambda _done, _of: None
        )

    def is_lawful(self) -> bool:
        """Whether there is an order; fails if that is not decided."""
        found = self.examined()
        assert list(found.undecided) == []
        assert found.examined == 1
        return not list(found.violations)


CANCELLED = Answer(state="CANCELLED", version=0)


def illegal_state(state: str = "") -> Answer:
    """The refusal of a move that the state forbids."""
    return Answer("FAILED_PRECONDITION", "ILLEGAL_STATE", state=state)
