"""A simulated run: clerks, a queue at each order, lost replies and dead processes, all from one seed.

    callers' calls ──▶ steps, in a random order      ──▶ what callers recorded, what the services wrote

The services (`simulated_services.py`) do what the real ones promise. A caller may stop listening at any step (the reply
is lost), a process may stop at any step (it died) or lose its lock (it was frozen). What it left is finished by the
next clerk, or in the end by the worker. So the history and the books it leaves are lawful, and every check has to
accept them.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from services.checker.history import NO_ANSWER, Answer, Arguments, RecordedCall, outcome_of
from tests.unit.checker.dataset import DatasetBuilder
from tests.unit.checker.rows import CURRENCY, role_of
from tests.unit.checker.simulated_services import CLERKS, Call, FaultRates, SimulatedServices, StaleFenceError, Steps

_STALE = Answer("ABORTED", "STALE_FENCE")
_AWAY = Answer("UNAVAILABLE")


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
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.rng = random.Random(self.seed)
        self.dataset = DatasetBuilder()
        self.dataset.account("wallet:mei:CNY", "LIABILITY", overdraft=10**12)
        self.services = SimulatedServices(self.dataset, self.rng, self.rates)
        self._settles: defaultdict[str, list[Arguments]] = defaultdict(list)
        self._now_ns = 0
        self._keys = 0

    def run(self) -> DatasetBuilder:
        """Run from the seed until nothing is under way any more; return the dataset, the same each time."""
        self._begin_anew()
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
        self.services.finish()
        self.dataset.seal()
        return self.dataset

    def _shuffle(self, plan: list[str]) -> None:
        """Most calls at an order come soon after each other; some are late."""
        plan.sort(key=lambda order_id: (int(order_id[5:]) + self.rng.expovariate(0.5), self.rng.random()), reverse=True)

    # Callers

    def _advance(self, call: Call) -> bool:
        """One more step of a call; False: it is over."""
        rates = self.rates
        if self.rng.random() < rates.death:
            self._is_over(call, self.rng.choice((NO_ANSWER, _AWAY)))
            return False
        if self.rng.random() < rates.freeze:
            self.services.lose_lock(call)
        if call.recorded is not None and self.rng.random() < rates.lost_reply:
            self._note(call.recorded, NO_ANSWER)
            call.recorded = None
        assert call.steps is not None
        try:
            next(call.steps)
        except StopIteration as end:
            self._is_over(call, end.value)
            return False
        except StaleFenceError:
            self._is_over(call, _STALE)
            return False
        return True

    def _is_over(self, call: Call, answer: Answer) -> None:
        """The call has ended, or its process."""
        self.services.end(call)
        if call.recorded is not None:
            self._note(call.recorded, answer)

    def _note(self, recorded: RecordedCall, answer: Answer) -> None:
        recorded.answer, recorded.outcome = answer, outcome_of(recorded.kind, answer)
        recorded.answered_ns = self._tick()

    def _ask(self, order_id: str) -> Call:
        kind = self.rng.choices(
            ("Settle", "Again", "GetOrder", "GetPayment", "Reverse", "CancelOrder", "CreateOrder"),
            weights=(8, 4, 8, 3, 2, 0.3, 0.3),
        )[0]
        clerk = self.rng.choice(list(CLERKS))
        known = self.services.of_order[order_id]
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
                return self._begin("Reverse", asked, order_id, lambda call: self.services.reverse(call, payment))
            case "GetPayment" if known:
                payment = self.rng.choice(known)
                asked = Arguments(payment_id=payment["payment_id"], clerk=clerk)
                return self._begin("GetPayment", asked, "", lambda _call: self.services.look_at_payment(payment))
            case "CancelOrder":
                asked = Arguments(order_id=order_id, key=self._key("c"), clerk=clerk)
                return self._begin("CancelOrder", asked, order_id, self.services.cancel)
            case "CreateOrder":
                return self._create(order_id)
        asked = Arguments(order_id=order_id, clerk=clerk)
        return self._begin("GetOrder", asked, "", lambda _call: self.services.look_at_order(order_id))

    def _create(self, order_id: str) -> Call:
        amount = self.rng.randrange(1, 10_000)
        key = self._key("m")
        asked = Arguments(order_id=order_id, key=key, clerk="li", amount_minor=amount, currency=CURRENCY)
        return self._begin("CreateOrder", asked, order_id, lambda call: self.services.create(call, asked))

    def _settle(self, asked: Arguments) -> Call:
        return self._begin("Settle", asked, asked.order_id, lambda call: self.services.settle(call, asked))

    def _begin(self, kind: str, asked: Arguments, order_id: str, steps: Callable[[Call], Steps]) -> Call:
        place = len(self.dataset.calls) + 1
        asked = replace(asked, role=role_of(asked.clerk))
        recorded = RecordedCall(place, f"{asked.clerk}-{place}", kind, asked, self._tick())
        self.dataset.calls.append(recorded)
        call = Call(recorded, (asked.clerk, kind, asked.key), order_id)
        call.steps = steps(call)
        return call

    def _key(self, what: str) -> str:
        self._keys += 1
        return f"{what}-{self._keys}"

    def _tick(self) -> int:
        self._now_ns += self.rng.randrange(1, 1_000_000)
        return self._now_ns
