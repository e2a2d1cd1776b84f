"""A simulated run: clerks, a queue at each order, lost replies and dead processes, all from one seed.

    callers' calls ──▶ steps, in a random order      ──▶ what callers recorded, what the services wrote

It does what the services promise, in its own words: every call is a generator that takes one step at a time, and
between two steps anybody else may take theirs. A caller may stop listening at any step (the reply is lost), a process
may stop at any step (it died) or lose its lock (it was frozen). What it left is finished by the next clerk, or in the
end by the worker. So the history and the books it leaves are lawful, and every check has to accept them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

from services.checker.history import NO_ANSWER, Answer, Arguments, RecordedCall, outcome_of
from tests.unit.checker.dataset import CURRENCY, DatasetBuilder, Row, digest, role_of

Key = tuple[str, str, str]
#: What a service is at; it returns what it answers.
Steps = Generator[None, None, Answer]
Parts = Generator[None, None, None]

CLERKS = {"li": "drawer", "wu": "bank", "mei": "wallet:mei:CNY"}
_PATIENCE = 6
_LOCKED = Answer("ABORTED", "ORDER_LOCKED")
_IN_PROGRESS = Answer("ABORTED", "REQUEST_IN_PROGRESS")
_STALE = Answer("ABORTED", "STALE_FENCE")
_NOT_FOUND = Answer("NOT_FOUND", "ORDER_NOT_FOUND")
_AWAY = Answer("UNAVAILABLE")
_ENDED = ("SUCCEEDED", "DECLINED", "REVERSED")


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


class _StaleFenceError(Exception):
    """The lock is somebody else's by now."""


@dataclass(eq=False)
class _Call:
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


@dataclass
class Simulation:
    """Orders, people, and what becomes of them.

    Args:
        orders: How many.
        calls: How many calls at each order.
        at_once: How many calls are under way at most.
    """

    seed: int
    orders: int = 2
    calls: int = 12
    at_once: int = 4
    rates: FaultRates = field(default_factory=FaultRates)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.dataset = DatasetBuilder()
        self.dataset.account("wallet:mei:CNY", "LIABILITY", overdraft=10**12)
        self._responses: dict[Key, Answer] = {}
        self._payments: dict[Key, Row] = {}
        self._of_order: defaultdict[str, list[Row]] = defaultdict(list)
        self._settles: defaultdict[str, list[Arguments]] = defaultdict(list)
        self._words: defaultdict[str, list[Row]] = defaultdict(list)
        self._locks: dict[str, _Call] = {}
        self._running: dict[Key, _Call] = {}
        self._begun: set[Key] = set()
        self._now_ns = 0
        self._keys = 0

    def run(self) -> DatasetBuilder:
        """Run until nothing is under way any more; return the dataset."""
        under_way = [self._create(f"order-{number}") for number in range(self.orders)]
        plan = [f"order-{number}" for number in range(self.orders) for _ in range(self.calls)]
        self._shuffle(plan)
        while plan or under_way:
            while plan and len(under_way) < self.at_once:
                under_way.append(self._ask(plan.pop()))
            place = self.rng.randrange(len(under_way))
            if not self._advance(under_way[place]):
                under_way[place] = under_way[-1]
                under_way.pop()
        self._finish()
        self.dataset.seal()
        return self.dataset

    def _shuffle(self, plan: list[str]) -> None:
        """Most calls at an order come soon after each other; some are late."""
        plan.sort(key=lambda order_id: (int(order_id[5:]) + self.rng.expovariate(0.5), self.rng.random()), reverse=True)

    # Callers

    def _advance(self, call: _Call) -> bool:
        """One more step of a call; False: it is over."""
        rates = self.rates
        if self.rng.random() < rates.death:
            self._is_over(call, self.rng.choice((NO_ANSWER, _AWAY)))
            return False
        if self.rng.random() < rates.freeze and self._locks.get(call.order_id) is call:
            del self._locks[call.order_id]
        if call.recorded is not None and self.rng.random() < rates.lost_reply:
            self._note(call.recorded, NO_ANSWER)
            call.recorded = None
        assert call.steps is not None
        try:
            next(call.steps)
        except StopIteration as end:
            self._is_over(call, end.value)
            return False
        except _StaleFenceError:
            self._is_over(call, _STALE)
            return False
        return True

    def _is_over(self, call: _Call, answer: Answer) -> None:
        """The call has ended, or its process: locks go, what was written stays."""
        if self._locks.get(call.order_id) is call:
            del self._locks[call.order_id]
        if self._running.get(call.key) is call:
            del self._running[call.key]
        if call.recorded is not None:
            self._note(call.recorded, answer)

    def _note(self, recorded: RecordedCall, answer: Answer) -> None:
        recorded.answer, recorded.outcome = answer, outcome_of(recorded.kind, answer)
        recorded.answered_ns = self._tick()

    def _ask(self, order_id: str) -> _Call:
        kind = self.rng.choices(
            ("Settle", "Again", "GetOrder", "GetPayment", "Reverse", "CancelOrder", "CreateOrder"),
            weights=(8, 4, 8, 3, 2, 0.3, 0.3),
        )[0]
        clerk = self.rng.choice(list(CLERKS))
        known = self._of_order[order_id]
        match kind:
            case "Again" if self._settles[order_id]:
                return self._settle(self.rng.choice(self._settles[order_id][-4:]))
            case "Settle" | "Again":
                asked = Arguments(order_id=order_id, key=self._key("s"), clerk=clerk, source=CLERKS[clerk])
                self._settles[order_id].append(asked)
                return self._settle(asked)
            case "Reverse" if known:
                payment = self.rng.choice(known)
                asked = Arguments(payment_id=payment["payment_id"], key=self._key("r"), clerk="wu")
                return self._begin("Reverse", asked, order_id, lambda call: self._reverse_steps(call, payment))
            case "GetPayment" if known:
                payment = self.rng.choice(known)
                asked = Arguments(payment_id=payment["payment_id"], clerk=clerk)
                return self._begin("GetPayment", asked, "", lambda _call: self._look_at_payment(payment))
            case "CancelOrder":
                asked = Arguments(order_id=order_id, key=self._key("c"), clerk=clerk)
                return self._begin("CancelOrder", asked, order_id, self._cancel_steps)
            case "CreateOrder":
                return self._create(order_id)
        asked = Arguments(order_id=order_id, clerk=clerk)
        return self._begin("GetOrder", asked, "", lambda _call: self._look_at_order(order_id))

    def _create(self, order_id: str) -> _Call:
        amount = self.rng.randrange(1, 10_000)
        key = self._key("m")
        asked = Arguments(order_id=order_id, key=key, clerk="li", amount_minor=amount, currency=CURRENCY)
        return self._begin("CreateOrder", asked, order_id, lambda call: self._create_steps(call, asked))

    def _settle(self, asked: Arguments) -> _Call:
        return self._begin("Settle", asked, asked.order_id, lambda call: self._settle_steps(call, asked))

    def _begin(self, kind: str, asked: Arguments, order_id: str, steps: Callable[[_Call], Steps]) -> _Call:
        place = len(self.dataset.calls) + 1
        asked = replace(asked, role=role_of(asked.clerk))
        recorded = RecordedCall(place, f"{asked.clerk}-{place}", kind, asked, self._tick())
        self.dataset.calls.append(recorded)
        call = _Call(recorded, (asked.clerk, kind, asked.key), order_id)
        call.steps = steps(call)
        return call

    # What the services do

    def _create_steps(self, call: _Call, asked: Arguments) -> Steps:
        yield
        if call.key not in self._responses:
            if self._is_made(asked.order_id):
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

    def _cancel_steps(self, call: _Call) -> Steps:
        yield
        if not self._is_made(call.order_id):
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

    def _look_at_order(self, order_id: str) -> Steps:
        yield
        answer = self.dataset.seen_order(self.dataset.order(order_id)) if self._is_made(order_id) else _NOT_FOUND
        yield
        return answer

    def _look_at_payment(self, payment: Row) -> Steps:
        yield
        answer = self.dataset.seen_payment(payment)
        yield
        return answer

    def _settle_steps(self, call: _Call, asked: Arguments) -> Steps:
        yield
        if (found := self._entered(call)) is not None:
            return found
        payment = self._payments.get(call.key)
        if payment is None:
            payment = self.dataset.accept(asked.order_id, "Settle", asked.key, asked.clerk)
            self._payments[call.key] = payment
            self._of_order[asked.order_id].append(payment)
        yield
        if (refused := (yield from self._lock(call))) is not None:
            return refused
        if not self._is_made(asked.order_id):
            self._move(call, payment, "DECLINED")
            self._respond(call.key, _NOT_FOUND)
        else:
            yield from self._charge_order(call, payment, asked.source)
        answer = self._responses[call.key]
        yield
        return answer

    def _reverse_steps(self, call: _Call, payment: Row) -> Steps:
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

    def _entered(self, call: _Call) -> Answer | None:
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

    def _lock(self, call: _Call) -> Generator[None, None, Answer | None]:
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

    def _give_back(self, call: _Call) -> None:
        """Nothing was done, so the request may run again."""
        payment = self._payments.get(call.key)
        if payment is None or payment["state"] == "CREATED":
            self.dataset.request_of(*call.key).update(state="ISSUED")

    def _charge_order(self, call: _Call, payment: Row, source: str) -> Parts:
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
                holder = next(row for row in self._of_order[call.order_id] if row["payment_id"] == order["payment_id"])
                yield from self._carry_on(call, holder, certainly=True)
            else:
                self._refuse(call, payment, order)
        yield from self._carry_on(call, payment)

    def _refuse(self, call: _Call, payment: Row, order: Row) -> None:
        """Somebody else was first, or it is cancelled."""
        self._move(call, payment, "DECLINED")
        key = (payment["request_caller"], payment["request_method"], payment["request_key"])
        if order["state"] == "PAID":
            told = {"payment_id": order["payment_id"], "clerk": order["settled_by_name"]}
            self._respond(key, Answer("ALREADY_EXISTS", "ORDER_ALREADY_PAID", **told))
        else:
            self._respond(key, Answer("FAILED_PRECONDITION", "ORDER_NOT_PAYABLE", state=order["state"]))

    def _carry_on(self, call: _Call, payment: Row, *, certainly: bool = False) -> Parts:
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

    def _post(self, call: _Call, payment: Row) -> Parts:
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

    def _post_reversal(self, call: _Call, payment: Row) -> Parts:
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

    def _tell_order(self, call: _Call, payment: Row, *, certainly: bool = False) -> Parts:
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

    def _check(self, call: _Call) -> None:
        """Every write is under the lock."""
        if self._locks.get(call.order_id) is not call:
            raise _StaleFenceError

    def _move(self, call: _Call, payment: Row, state: str) -> None:
        self._check(call)
        self.dataset.move_payment(payment, state, call.fence)

    def _respond(self, key: Key, answer: Answer) -> None:
        body = self.dataset.answer(*key, ok=answer.code == "OK")
        self._responses[key] = replace(answer, sha256=digest(body))

    def _is_made(self, order_id: str) -> bool:
        return self.dataset.has_order(order_id)

    # The worker

    def _finish(self) -> None:
        """Brings to its end what was left between two steps."""
        self.rates = replace(self.rates, late_delivery=0)
        for row in self.dataset.requests:
            key = (row["caller"], row["method"], row["key"])
            if row["state"] != "IN_PROGRESS" or key[1] not in ("Settle", "Reverse"):
                continue
            self._work(key)
        for payments in self._of_order.values():
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
        if not self._is_made(payment["order_id"]):
            self.dataset.request_of(*key).update(state="ISSUED")
            return
        call = self._hold(payment["order_id"])
        _run(self._charge_order(call, payment, CLERKS[payment["clerk_name"]]))
        self._locks.clear()

    def _hold(self, order_id: str) -> _Call:
        call = _Call(None, ("", "", ""), order_id, fence=self.dataset.fence())
        self._locks[order_id] = call
        return call

    def _key(self, what: str) -> str:
        self._keys += 1
        return f"{what}-{self._keys}"

    def _tick(self) -> int:
        self._now_ns += self.rng.randrange(1, 1_000_000)
        return self._now_ns


def _run(parts: Parts) -> None:
    for _ in parts:
        pass
