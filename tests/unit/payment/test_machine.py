"""Payments of two orders, pulled at by any number of executions in any order: what holds after every single step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from services.kernel.errors import CountinghouseError, StaleFence
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestState, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment import model
from services.payment.model import (
    ACTIVE,
    MOVES,
    PARK,
    PAY,
    REVERSE,
    SETTLE,
    UNANSWERED,
    Accepted,
    AcquirerRetry,
    Change,
    Charge,
    ConflictingPayment,
    OutboxAction,
    Parking,
    Payment,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
    Step,
    plan,
)
from tests.fakes.payment_store import Event, FakePaymentStore, FakeRequestRecords

_T = TypeVar("_T")
LI = Principal("li", Role.CASHIER)
FENCES = st.builds(Fence, st.just(1), st.integers(1, 6))
KEYS = st.sampled_from(["k1", "k2", "k3", "k4"])
ORDERS = st.sampled_from(["o1", "o2", ""])
SOURCES = st.sampled_from([Source.DRAWER, Source.CARD])
CHARGE = Charge(1, "mei", Money(300, "CNY"), "drawer:CNY", "sales:CNY")
_ENDED = {PaymentState.SUCCEEDED, PaymentState.DECLINED, PaymentState.REVERSED, PaymentState.PARKED}
_NUMBER = iter(range(1, 10**9))


def now(step: Coroutine[Any, Any, _T]) -> _T:
    """The result of a step that never waits; no event loop is needed for it."""
    try:
        step.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    raise AssertionError("the fake waited")


def said() -> StoredResponse:
    """A response that no other step would give."""
    return StoredResponse(True, str(next(_NUMBER)).encode())


class PaymentInvariants(RuleBasedStateMachine):
    """The database, and what holds after every move."""

    def __init__(self) -> None:
        super().__init__()
        self.store = FakePaymentStore()
        self.requests = FakeRequestRecords(self.store)
        self.now_ms = 1_000
        self.executions: list[Execution] = []
        self.fences: dict[str, Fence] = {}
        self.keys: dict[str, str] = {}
        self.responses: dict[RequestKey, StoredResponse] = {}

    def payment(self, payment_id: str) -> Payment:
        return now(self.store.get(payment_id))

    def histories(self) -> dict[str, list[Event]]:
        histories: dict[str, list[Event]] = {}
        for event in self.store.events:
            histories.setdefault(event.payment_id, []).append(event)
        return histories

    @invariant()
    def one_active_payment_to_an_order(self) -> None:
        active = Counter(
            payment.order_id for payment in self.store.payments.values() if payment.order_id and payment.state in ACTIVE
        )
        assert all(count == 1 for count in active.values()), active

    @invariant()
    def versions_have_no_gap_and_moves_are_legal(self) -> None:
        for payment_id, events in self.histories().items():
            assert [event.version for event in events] == list(range(1, len(events) + 1))
            assert events[0].state is PaymentState.CREATED
            assert all(later.state in MOVES[earlier.state] for earlier, later in pairwise(events))
            payment = self.payment(payment_id)
            assert (payment.version, payment.state) == (events[-1].version, events[-1].state)

    @invariant()
    def fences_never_fall(self) -> None:
        for payment in self.store.payments.values():
            assert payment.fence >= self.fences.get(payment.payment_id, NO_FENCE)
            self.fences[payment.payment_id] = payment.fence
        for events in self.histories().values():
            assert [event.fence for event in events] == sorted(event.fence for event in events)

    @invariant()
    def a_request_is_done_exactly_when_its_payment_has_ended(self) -> None:
        for payment in self.store.payments.values():
            state = self.store.requests.rows[payment.key].state
            begun_once = payment.state is not PaymentState.CREATED
            if payment.decline_reason == "TICKET_EXPIRED":
                assert state is RequestState.EXPIRED
            elif payment.state in {PaymentState.SUBMITTED, PaymentState.UNKNOWN} or _was_unknown(payment):
                assert state in {RequestState.IN_PROGRESS, RequestState.ISSUED}
            else:
                assert (state is RequestState.DONE) is begun_once
            if payment.reversal is not None:
                ended = self.store.requests.rows[payment.reversal.key].state is RequestState.DONE
                assert ended is (payment.state in _ENDED)

    @invariant()
    def responses_never_change(self) -> None:
        for key, row in self.store.requests.rows.items():
            assert (row.response is None) is (row.state is not RequestState.DONE)
            if key in self.responses:
                assert row.response == self.responses[key]
            elif row.response is not None:
                self.responses[key] = row.response

    @invariant()
    def the_order_service_hears_of_every_end(self) -> None:
        """COMPLETE for what succeeded, and REOPEN if it was undone; RELEASE for what never was charged; never both."""
        for payment in self.store.payments.values():
            actions = {purpose for payment_id, purpose in self.store.outbox if payment_id == payment.payment_id}
            succeeded = bool(payment.settled_at_ms)
            if not payment.order_id:
                assert not actions
                continue
            assert (OutboxAction.COMPLETE in actions) is succeeded
            undone = payment.state is PaymentState.REVERSED
            assert (OutboxAction.REOPEN in actions) is (undone and succeeded)
            assert (OutboxAction.RELEASE in actions) or not (undone and not succeeded)
            assert not (succeeded and OutboxAction.RELEASE in actions)

    @invariant()
    def a_card_has_its_key_from_its_submission_on(self) -> None:
        """And never another; who waits for nobody has no silence to be put before people."""
        for payment in self.store.payments.values():
            execution = PaymentState.SUBMITTED in {event.state for event in self.histories()[payment.payment_id]}
            by_card = payment.source is Source.CARD
            assert bool(payment.acquirer_key) is (execution and by_card)
            if payment.acquirer_key:
                assert payment.acquirer_key == self.keys.setdefault(payment.payment_id, payment.acquirer_key)
            assert payment.state in UNANSWERED or not payment.attention
            if not by_card:
                assert (payment.state, payment.journal_id == "") != (PaymentState.REVERSING, True)


class Payments(PaymentInvariants):
    """Every move of the store, under fences and leases that come in any order."""

    payments = Bundle("payments")

    @rule(target=payments, key=KEYS, order_id=ORDERS, method=st.sampled_from([SETTLE, PAY]), source=SOURCES)
    def accept(self, key: str, order_id: str, method: str, source: Source) -> str:
        request = RequestKey(LI, method, key)
        if method == PAY:
            self.store.requests.issue(request, now_ms=self.now_ms, expires_at_ms=self.now_ms + 200, order_id=order_id)
        draft = _draft(f"p{next(_NUMBER)}", request, order_id, source)
        before = self.store.requests.find(request)
        try:
            accepted = now(self.store.accept(draft, order_id, self.lease()))
        except CountinghouseError:
            return self.some_payment(request)
        if isinstance(accepted, StoredResponse):
            assert before is not None
            assert before.state is RequestState.DONE
            assert accepted == before.response
            return self.some_payment(request)
        assert isinstance(accepted, Accepted)
        self.executions.append(accepted.execution)
        assert accepted.payment.key == request
        return accepted.payment.payment_id

    @rule(payment_id=payments, fence=FENCES)
    def submit(self, payment_id: str, fence: Fence) -> None:
        """As operations do: not under a request that was given back, which no execution works on."""
        if self.store.requests.rows[self.payment(payment_id).key].state is RequestState.ISSUED:
            return
        change = model.submit(self.payment(payment_id), CHARGE, self.now_ms)
        self.move(payment_id, fence, lambda f: self.store.submit(change, f) if change else self.seen(payment_id, f))

    @rule(payment_id=payments, fence=FENCES, pause_ms=st.integers(0, 100))
    def mark_unknown(self, payment_id: str, fence: Fence, pause_ms: int) -> None:
        retry = AcquirerRetry(1, self.now_ms + pause_ms, "ACQUIRER_SILENT" if pause_ms > 50 else "")
        self.commit(payment_id, fence, lambda payment: model.mark_unknown(payment, self.now_ms, retry))
        self.move(payment_id, fence, lambda f: self.store.schedule_retry(payment_id, f, retry))

    @rule(payment_id=payments)
    def hear_news(self, payment_id: str) -> None:
        now(self.store.schedule_query(self.payment(payment_id).acquirer_key))

    @rule(payment_id=payments, fence=FENCES)
    def record(self, payment_id: str, fence: Fence) -> None:
        self.commit(payment_id, fence, lambda payment: model.record(payment, "j", self.now_ms))

    @rule(payment_id=payments, fence=FENCES, release=st.booleans())
    def decline(self, payment_id: str, fence: Fence, release: bool) -> None:
        self.commit(payment_id, fence, lambda payment: model.decline(payment, "WHY", self.now_ms, release=release))

    @rule(payment_id=payments, fence=FENCES, key=KEYS)
    def begin_reversal(self, payment_id: str, fence: Fence, key: str) -> None:
        reversal = Reversal(RequestKey(LI, REVERSE, key), LI, "why")
        try:
            execution = now(self.requests.begin(reversal.key, payment_id, self.lease()))
        except CountinghouseError:
            return
        if isinstance(execution, StoredResponse):
            return
        self.executions.append(execution)
        self.commit(payment_id, fence, lambda payment: model.begin_reversal(payment, reversal, self.now_ms))
        if self.payment(payment_id).reversal != reversal:
            now(self.requests.finish(reversal.key, said(), now_ms=self.now_ms))

    @rule(payment_id=payments, fence=FENCES, charged=st.booleans())
    def record_reversal(self, payment_id: str, fence: Fence, charged: bool) -> None:
        undone = ReversalResult("j", "r") if charged or self.payment(payment_id).journal_id else ReversalResult()
        self.commit(payment_id, fence, lambda payment: model.record_reversal(payment, undone, self.now_ms))

    @rule(payment_id=payments, fence=FENCES)
    def refuse_reversal(self, payment_id: str, fence: Fence) -> None:
        reversal = self.payment(payment_id).reversal
        if reversal is not None:
            self.commit(payment_id, fence, lambda payment: model.refuse_reversal(payment, reversal, "j", self.now_ms))

    @rule(payment_id=payments, fence=FENCES, key=KEYS)
    def park(self, payment_id: str, fence: Fence, key: str) -> None:
        parking = Parking(RequestKey(LI, PARK, key), LI, "why")
        try:
            execution = now(self.requests.begin(parking.key, payment_id, self.lease()))
        except CountinghouseError:
            return
        if isinstance(execution, StoredResponse):
            return
        self.commit(payment_id, fence, lambda payment: model.park(payment, parking, self.now_ms))
        if not self.payment(payment_id).is_parked_for(parking):
            now(self.requests.finish(parking.key, said(), now_ms=self.now_ms))

    @rule(payment_id=payments)
    def record_parked_reversal(self, payment_id: str) -> None:
        change = plan(Step.RECORD_PARKED_REVERSAL, self.payment(payment_id), self.now_ms)
        if change is not None:
            now(self.store.apply(change, change.before.fence))

    @rule(payment_id=payments, fence=FENCES, step=st.sampled_from(Step), data=st.data())
    def apply_what_was_planned_before(self, payment_id: str, fence: Fence, step: Step, data: st.DataObject) -> None:
        """An execution that was overtaken commits what it planned on a payment that has changed since."""
        payment = self.payment(payment_id)
        older = replace(payment, version=payment.version - 1, state=data.draw(st.sampled_from(PaymentState)))
        change = plan(step, older, self.now_ms)
        if change is not None:
            events = len(self.store.events)
            self.move(payment_id, fence, lambda f: self.store.apply(change, f))
            assert len(self.store.events) == events

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        """As operations do: only what was not begun, by a first execution."""
        execution = self.some_execution(data)
        if execution is None or not execution.first:
            return
        payment = now(self.store.of_request(execution.key))
        if payment is None or payment.state is PaymentState.CREATED:
            now(self.requests.give_back(execution, now_ms=self.now_ms))

    @rule(data=st.data(), milliseconds=st.integers(-50, 100))
    def renew(self, data: st.DataObject, milliseconds: int) -> None:
        execution = self.some_execution(data)
        if execution is not None:
            now(self.requests.renew([execution], until_ms=self.now_ms + milliseconds))

    @rule()
    def take_over(self) -> None:
        for row in now(self.requests.overdue(now_ms=self.now_ms, limit=2)):
            assert row.lease_until_ms <= self.now_ms
            execution = now(self.requests.take_over(row, self.lease()))
            assert execution is not None
            assert now(self.requests.take_over(row, self.lease())) is None
            assert not execution.first
            self.executions.append(execution)

    @rule()
    def expire(self) -> None:
        now(self.store.expire(now_ms=self.now_ms))

    @rule(payment_id=payments)
    def deliver(self, payment_id: str) -> None:
        for purpose in now(self.store.pending_notifications(payment_id)):
            now(self.store.delivered(payment_id, purpose, now_ms=self.now_ms))

    @rule(milliseconds=st.integers(1, 120))
    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    def commit(self, payment_id: str, fence: Fence, planned: Callable[[Payment], Change | None]) -> None:
        """Plan a transition on the payment as it stands, and commit it with an answer to each request that it ends."""
        change = planned(self.payment(payment_id))
        if change is None:
            self.move(payment_id, fence, lambda f: self.seen(payment_id, f))
            return
        change = replace(change, answers=tuple((key, said()) for key in change.ended))
        self.move(payment_id, fence, lambda f: self.store.apply(change, f))

    def seen(self, payment_id: str, fence: Fence) -> Coroutine[Any, Any, Payment]:
        return self.store.raise_fence(payment_id, fence)

    def move(self, payment_id: str, fence: Fence, step: Callable[[Fence], Coroutine[Any, Any, object]]) -> None:
        """One step: refused exactly if its fence is behind, and then without effect."""
        before = self.payment(payment_id)
        fence = fence if before.order_id else NO_FENCE
        events = len(self.store.events)
        try:
            outcome = now(step(fence))
        except StaleFence:
            assert fence < before.fence
            assert self.payment(payment_id) == before
            assert len(self.store.events) == events
            return
        if isinstance(outcome, ConflictingPayment):
            assert outcome.payment.payment_id != payment_id
            return
        assert fence >= before.fence

    def some_execution(self, data: st.DataObject) -> Execution | None:
        return data.draw(st.sampled_from(self.executions)) if self.executions else None

    def some_payment(self, key: RequestKey) -> str:
        payment = now(self.store.of_request(key))
        assert payment is not None
        return payment.payment_id

    def lease(self) -> Lease:
        return Lease("test", self.now_ms, self.now_ms + 50)


def _draft(payment_id: str, key: RequestKey, order_id: str, source: Source) -> Payment:
    return Payment.created(payment_id, key, order_id, source, LI, "", 1, "tok-mei" if source is Source.CARD else "")


def _was_unknown(payment: Payment) -> bool:
    return payment.state is PaymentState.REVERSING and not payment.journal_id


TestPayments = Payments.TestCase
TestPayments.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
