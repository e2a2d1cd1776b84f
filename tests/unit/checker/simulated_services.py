"""The three services of a simulated run: every call is a generator that takes one step at a time.

They do what the real ones promise, in their own words. Between two steps another call may take its own; a call that
dies or loses its lock leaves what it has written. The next call finishes that, or in the end `finish`, the worker.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass, replace

from services.checker.history import CUSTOMER, Answer, Arguments, RecordedCall
from tests.unit.checker.dataset import DatasetBuilder, digest
from tests.unit.checker.rows import CURRENCY, Row, role_of

Key = tuple[str, str, str]
#: What a service is at; it returns what it answers.
Steps = Generator[None, None, Answer]
Parts = Generator[None, None, None]

CLERKS = {"li": "drawer", "wu": "bank", "mei": "wallet:mei:CNY"}
_PATIENCE = 6
_LOCKED = Answer("ABORTED", "ORDER_LOCKED")
_IN_PROGRESS = Answer("ABORTED", "REQUEST_IN_PROGRESS")
_NOT_FOUND = Answer("NOT_FOUND", "ORDER_NOT_FOUND")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The probability of each fault, at each step."""

    lost_reply: float = 0.02
    death: float = 0.01
    freeze: float = 0.005
    late_delivery: float = 0.1
    decline: float = 0.2


NONE = FaultRates(lost_reply=0, death=0, freeze=0, late_delivery=0)
HIGH = FaultRates(lost_reply=0.1, death=0.08, freeze=0.05, late_delivery=0.4, decline=0.4)


class StaleFenceError(Exception):
    """The lock is somebody else's by now."""


@dataclass(eq=False)
class Call:
    """A call that is under way.

    Args:
        recorded: None: its caller has stopped listening.
        key: Its request; empty for a look.
        order_id: The order whose lock it may hold.
    """

    recorded: RecordedCall | None
    key: Key
    order_id: str
    steps: Steps | None = None
    fence: int = 0


class SimulatedServices:
    """Orders, payments, journals and locks.

    Args:
        dataset: Where they write.

    Attributes:
        of_order: The payments of each order, the oldest first.
    """

    def __init__(self, dataset: DatasetBuilder, rng: random.Random, rates: FaultRates) -> None:
        self.dataset = dataset
        self.rng = rng
        self.rates = rates
        self._responses: dict[Key, Answer] = {}
        self._payments: dict[Key, Row] = {}
        self.of_order: defaultdict[str, list[Row]] = defaultdict(list)
        self._words: defaultdict[str, list[Row]] = defaultdict(list)
        self._locks: dict[str, Call] = {}
        self._running: dict[Key, Call] = {}
        self._begun: set[Key] = set()

    def end(self, call: Call) -> None:
        """The call has ended, or its process: its lock goes, what it has written stays."""
        self.lose_lock(call)
        if self._running.get(call.key) is call:
            del self._running[call.key]

    def lose_lock(self, call: Call) -> None:
        """Give the lock of a call to others, if it has one."""
        if self._locks.get(call.order_id) is call:
            del self._locks[call.order_id]

    def create(self, call: Call, asked: Arguments) -> Steps:
        yield
        if call.key not in self._responses:
            if self.dataset.has_order(asked.order_id):
                self.dataset.request(*call.key, rows=self.dataset.order_requests)
                self._respond(call.key, Answer("ALREADY_EXISTS", "ORDER_EXISTS"))
            else:
                row, body = self.dataset.open_order(
                    asked.order_id, asked.amount_minor, key=asked.key, clerk=asked.clerk
                )
                self._responses[call.key] = replace(self.dataset.seen_order(row), sha256=digest(body))
        answer = self._responses[call.key]
        yield
        return answer

    def cancel(self, call: Call) -> Steps:
        yield
        if not self.dataset.has_order(call.order_id):
            return _NOT_FOUND
        order = self.dataset.order(call.order_id)
        self.dataset.request(*call.key, rows=self.dataset.order_requests)
        if order["state"] == "UNPAID":
            self.dataset.move_order(call.order_id, "CANCELLED", 0)
            self._respond(call.key, self.dataset.seen_order(order))
        else:
            seen = self.dataset.seen_order(order)
            self._respond(call.key, replace(seen, code="FAILED_PRECONDITION", reason="ILLEGAL_STATE", clerk=""))
        answer = self._responses[call.key]
        yield
        return answer

    def look_at_order(self, order_id: str) -> Steps:
        yield
        answer = (
            self.dataset.seen_order(self.dataset.order(order_id)) if self.dataset.has_order(order_id) else _NOT_FOUND
        )
        yield
        return answer

    def look_at_payment(self, payment: Row) -> Steps:
        yield
        answer = self.dataset.seen_payment(payment)
        yield
        return answer

    def settle(self, call: Call, asked: Arguments) -> Steps:
        yield
        if role_of(asked.clerk) == CUSTOMER and not self.dataset.has_order(asked.order_id):
            return _NOT_FOUND  # whose order it is, is looked up before the request is run
        if (found := self._entered(call)) is not None:
            return found
        payment = self._payments.get(call.key)
        if payment is None:
            payment = self.dataset.accept(asked.order_id, "Settle", asked.key, asked.clerk)
            self._payments[call.key] = payment
            self.of_order[asked.order_id].append(payment)
        yield
        if (refused := (yield from self._lock(call))) is not None:
            return refused
        if not self.dataset.has_order(asked.order_id):
            self._move(call, payment, "DECLINED")
            self._respond(call.key, _NOT_FOUND)
        else:
            yield from self._charge_order(call, payment, asked.source)
        answer = self._responses[call.key]
        yield
        return answer

    def reverse(self, call: Call, payment: Row) -> Steps:
        yield
        if (found := self._entered(call)) is not None:
            return found
        yield
        if (refused := (yield from self._lock(call))) is not None:
            return refused
        yield from self._tell_order(call, payment)
        if payment["state"] == "REVERSING":
            yield from self._carry_on(call, payment)
        if payment["state"] == "SUCCEEDED":
            payment.update(reversal_caller=call.key[0], reversal_role=role_of(call.key[0]), reversal_key=call.key[2])
            self._move(call, payment, "REVERSING")
            yield from self._carry_on(call, payment)
        if payment["reversal_key"] != call.key[2]:
            seen = Answer("FAILED_PRECONDITION", "ILLEGAL_STATE", state=payment["state"])
            self._respond(call.key, seen)
        answer = self._responses[call.key]
        yield
        return answer

    def _entered(self, call: Call) -> Answer | None:
        """None: the request is this call's to run."""
        if call.key in self._responses:
            return replace(self._responses[call.key], replayed=True)
        if call.key in self._running:
            return _IN_PROGRESS
        self._running[call.key] = call
        if call.key not in self._begun:
            self.dataset.request(*call.key)
        self._begun.add(call.key)
        self.dataset.request_of(*call.key).update(state="IN_PROGRESS")
        return None

    def _lock(self, call: Call) -> Generator[None, None, Answer | None]:
        for _ in range(_PATIENCE):
            if call.order_id not in self._locks:
                self._locks[call.order_id] = call
                call.fence = self.dataset.fence()
                yield
                self._check(call)
                return None
            yield
        self._give_back(call)
        return _LOCKED

    def _give_back(self, call: Call) -> None:
        """Nothing was done, so the request may run again."""
        payment = self._payments.get(call.key)
        if payment is None or payment["state"] == "CREATED":
            self.dataset.request_of(*call.key).update(state="ISSUED")

    def _charge_order(self, call: Call, payment: Row, source: str) -> Parts:
        while payment["state"] == "CREATED":
            self._check(call)
            order = self.dataset.order(payment["order_id"])
            if order["state"] == "UNPAID":
                self.dataset.move_order(payment["order_id"], "PAYING", call.fence, payment["payment_id"])
                payment["payer_account_id"] = source if ":" in source else f"{source}:{CURRENCY}"
                yield
            elif order["payment_id"] == payment["payment_id"]:
                break
            elif order["state"] == "PAYING":
                holder = next(row for row in self.of_order[call.order_id] if row["payment_id"] == order["payment_id"])
                yield from self._carry_on(call, holder, certainly=True)
            else:
                self._refuse(call, payment, order)
        yield from self._carry_on(call, payment)

    def _refuse(self, call: Call, payment: Row, order: Row) -> None:
        """Somebody else was first, or it is cancelled."""
        self._move(call, payment, "DECLINED")
        key = (payment["request_caller"], payment["request_method"], payment["request_key"])
        if order["state"] == "PAID":
            told = {"payment_id": order["payment_id"], "clerk": order["settled_by_name"]}
            self._respond(key, Answer("ALREADY_EXISTS", "ORDER_ALREADY_PAID", **told))
        else:
            self._respond(key, Answer("FAILED_PRECONDITION", "ORDER_NOT_PAYABLE", state=order["state"]))

    def _carry_on(self, call: Call, payment: Row, *, certainly: bool = False) -> Parts:
        """From whatever state a payment is in to its end."""
        if payment["state"] == "CREATED":
            self._check(call)
            amount = self.dataset.order(payment["order_id"])["amount_minor_units"]
            self.dataset.submit(payment, call.fence, payment["payer_account_id"], amount)
            yield
        if payment["state"] in ("SUBMITTED", "UNKNOWN"):
            yield from self._post(call, payment)
        if payment["state"] == "REVERSING":
            yield from self._post_reversal(call, payment)
        yield from self._tell_order(call, payment, certainly=certainly)

    def _post(self, call: Call, payment: Row) -> Parts:
        self._check(call)
        self.dataset.see_fence(payment["order_id"], call.fence)
        key = (payment["request_caller"], payment["request_method"], payment["request_key"])
        by_wallet = payment["payer_account_id"].startswith("wallet")
        if not payment["journal_id"] and by_wallet and self.rng.random() < self.rates.decline:
            self._move(call, payment, "DECLINED")
            self._respond(key, Answer("FAILED_PRECONDITION", "INSUFFICIENT_FUNDS"))
            self._words[payment["payment_id"]].append(self.dataset.deliver(payment, "RELEASE", delivered=False))
            return
        if not payment["journal_id"]:
            business_key = f"settle:{payment['order_id']}:{payment['round']}"
            self.dataset.post(payment, call.fence, business_key)
            yield
            self._check(call)
            if payment["state"] == "SUBMITTED" and self.rng.random() < self.rates.lost_reply:
                self._move(call, payment, "UNKNOWN")
                yield
                self._check(call)
        self._move(call, payment, "SUCCEEDED")
        self._respond(key, self.dataset.seen_payment(payment))
        self._words[payment["payment_id"]].append(self.dataset.deliver(payment, "COMPLETE", delivered=False))
        yield

    def _post_reversal(self, call: Call, payment: Row) -> Parts:
        self._check(call)
        self.dataset.see_fence(payment["order_id"], call.fence)
        if not payment["reversal_journal_id"]:
            payment["reversal_journal_id"] = self.dataset.undo(payment, call.fence)["journal_id"]
            yield
            self._check(call)
        self._move(call, payment, "REVERSED")
        self._respond(
            (payment["reversal_caller"], "Reverse", payment["reversal_key"]), self.dataset.seen_payment(payment)
        )
        self._words[payment["payment_id"]].append(self.dataset.deliver(payment, "REOPEN", delivered=False))
        yield

    def _tell_order(self, call: Call, payment: Row, *, certainly: bool = False) -> Parts:
        """Delivers what the order service has yet to be told; now and then it cannot be reached."""
        moves = {"COMPLETE": ("PAYING", "PAID"), "RELEASE": ("PAYING", "UNPAID"), "REOPEN": ("PAID", "UNPAID")}
        words = self._words[payment["payment_id"]]
        while words:
            if not certainly and self.rng.random() < self.rates.late_delivery:
                return
            self._check(call)
            word = words[0]
            before, after = moves[word["purpose"]]
            order = self.dataset.order(payment["order_id"])
            if (order["state"], order["payment_id"]) == (before, payment["payment_id"]):
                self.dataset.move_order(payment["order_id"], after, call.fence, payment["payment_id"])
            yield
            self._check(call)
            word["delivered_at_ms"] = self.dataset.now_ms()
            if word in words:
                words.remove(word)

    def _check(self, call: Call) -> None:
        """Every write is under the lock."""
        if self._locks.get(call.order_id) is not call:
            raise StaleFenceError

    def _move(self, call: Call, payment: Row, state: str) -> None:
        self._check(call)
        self.dataset.move_payment(payment, state, call.fence)

    def _respond(self, key: Key, answer: Answer) -> None:
        body = self.dataset.answer(*key, ok=answer.code == "OK")
        self._responses[key] = replace(answer, sha256=digest(body))

    # The worker

    def finish(self) -> None:
        """Brings to its end what was left between two steps."""
        self.rates = replace(self.rates, late_delivery=0)
        for row in self.dataset.requests:
            key = (row["caller"], row["method"], row["key"])
            if row["state"] != "IN_PROGRESS" or key[1] not in ("Settle", "Reverse"):
                continue
            self._work(key)
        for payments in self.of_order.values():
            for payment in payments:
                if self._words[payment["payment_id"]]:
                    call = self._hold(payment["order_id"])
                    _run(self._tell_order(call, payment))
                    self._locks.clear()

    def _work(self, key: Key) -> None:
        payment = self._payments.get(key) or next(
            (row for row in self.dataset.payments if (row["reversal_caller"], row["reversal_key"]) == (key[0], key[2])),
            None,
        )
        if payment is None:  # a reversal that had not begun
            self.dataset.request_of(*key).update(state="ISSUED")
            return
        if not self.dataset.has_order(payment["order_id"]):
            self.dataset.request_of(*key).update(state="ISSUED")
            return
        call = self._hold(payment["order_id"])
        _run(self._charge_order(call, payment, CLERKS[payment["clerk_name"]]))
        self._locks.clear()

    def _hold(self, order_id: str) -> Call:
        call = Call(None, ("", "", ""), order_id, fence=self.dataset.fence())
        self._locks[order_id] = call
        return call


def _run(parts: Parts) -> None:
    for _ in parts:
        pass
