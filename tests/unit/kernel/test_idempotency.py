"""A key that may be used once: what a caller meets in each state, and what holds after any sequence of moves."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.kernel.errors import CountinghouseError, FailedPrecondition, KeyMismatch, RequestInProgress
from services.kernel.idempotency import (
    MOVES,
    Decision,
    Execution,
    Lease,
    RequestKey,
    RequestRow,
    RequestState,
    StoredResponse,
    decide,
    fingerprint,
)
from services.kernel.principal import Principal, Role
from tests.fakes.request_table import FakeRequestTable

LI = Principal("li", Role.CASHIER)
KEY = RequestKey(LI, "Pay", "t1")
NOW_MS = 1_000
DONE = StoredResponse(True, b"done")


def row(state: RequestState, *, payload: str = "f", lease_ms: int = 2_000, expires_ms: int = 9_000) -> RequestRow:
    response = DONE if state is RequestState.DONE else None
    return RequestRow(KEY, state, payload, 1, lease_ms, expires_ms, response)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (row(RequestState.ISSUED, payload=""), Decision.RUN),
        (row(RequestState.ISSUED), Decision.RUN),
        (row(RequestState.DONE), Decision.REPLAY),
        (row(RequestState.DONE, expires_ms=1), Decision.REPLAY),
        (row(RequestState.IN_PROGRESS, lease_ms=1_000), Decision.RUN),
    ],
)
def test_decide_allows_fresh_finished_and_abandoned_keys(found: RequestRow, expected: Decision) -> None:
    """A fresh key runs, a finished one is replayed for ever, an abandoned one is carried on."""
    assert decide(found, "f", NOW_MS) is expected


@pytest.mark.parametrize(
    ("found", "take_over", "error", "reason"),
    [
        (row(RequestState.IN_PROGRESS), True, RequestInProgress, "REQUEST_IN_PROGRESS"),
        (row(RequestState.IN_PROGRESS, lease_ms=1_000), False, RequestInProgress, "REQUEST_IN_PROGRESS"),
        (row(RequestState.EXPIRED), True, FailedPrecondition, "TICKET_EXPIRED"),
        (row(RequestState.ISSUED, expires_ms=1_000), True, FailedPrecondition, "TICKET_EXPIRED"),
    ],
)
def test_decide_refuses_running_and_expired_keys(
    found: RequestRow, take_over: bool, error: type[CountinghouseError], reason: str
) -> None:
    """Somebody works on it, or its time is over; also before anybody has written that down."""
    with pytest.raises(error) as refusal:
        decide(found, "f", NOW_MS, take_over=take_over)
    assert refusal.value.reason == reason


@pytest.mark.parametrize("state", RequestState)
def test_another_payload_is_refused_in_every_state(state: RequestState) -> None:
    """KeyMismatch comes before whatever else could be said."""
    with pytest.raises(KeyMismatch):
        decide(replace(row(state), lease_until_ms=0, expires_at_ms=0), "g", NOW_MS)


def test_fingerprints_of_two_payloads_differ() -> None:
    """SHA-256 in hexadecimal, as the column has room for."""
    assert fingerprint(b"a") == fingerprint(b"a") != fingerprint(b"b")
    assert len(fingerprint(b"")) == 64


class Key(RuleBasedStateMachine):
    """One key, callers with two payloads, workers, and a clock that only they move."""

    def __init__(self) -> None:
        super().__init__()
        self.table = FakeRequestTable()
        self.now_ms = 0
        self.executions: list[Execution] = []
        self.path: list[RequestState] = []
        self.answers: set[StoredResponse] = set()
        self.payload = ""
        self.finished = 0

    @precondition(lambda self: not self.table.rows)
    @rule(ttl_ms=st.integers(1, 50))
    def issue(self, ttl_ms: int) -> None:
        self.table.issue(KEY, now_ms=self.now_ms, expires_at_ms=self.now_ms + ttl_ms, order_id="")
        self.note()

    @rule(payload=st.sampled_from(["f", "g"]), lease_ms=st.integers(1, 20))
    def begin(self, payload: str, lease_ms: int) -> None:
        before = self.table.find(KEY)
        try:
            result = self.table.begin(KEY, payload, Lease("me", self.now_ms, self.now_ms + lease_ms))
        except KeyMismatch:
            assert self.payload not in {"", payload}
        except RequestInProgress:
            assert before is not None
            assert before.lease_until_ms > self.now_ms
        except FailedPrecondition:
            assert before is not None
            assert before.state is RequestState.EXPIRED or before.expires_at_ms <= self.now_ms
        else:
            assert self.payload in {"", payload}
            if isinstance(result, StoredResponse):
                self.answers.add(result)
            else:
                assert before is None or before.lease_until_ms <= self.now_ms
                self.executions.append(result)
                self.payload = payload
                self.note()

    @precondition(lambda self: self.executions)
    @rule(data=st.data(), lease_ms=st.integers(1, 20))
    def take_over(self, data: st.DataObject, lease_ms: int) -> None:
        attempt = data.draw(st.sampled_from(self.executions)).attempt
        taken = self.table.take_over(KEY, attempt, Lease("worker", self.now_ms, self.now_ms + lease_ms))
        if taken is not None:
            assert not taken.first
            self.executions.append(taken)
            self.note()

    @precondition(lambda self: self.executions)
    @rule(body=st.binary(max_size=2), ok=st.booleans())
    def finish(self, body: bytes, ok: bool) -> None:
        response = StoredResponse(ok, body)
        if self.table.finish(KEY, response, now_ms=self.now_ms):
            self.finished += 1
            self.answers.add(response)
            self.note()

    @precondition(lambda self: self.executions)
    @rule()
    def give_back(self) -> None:
        newest = self.executions[-1]
        if newest.first and self.table.give_back(KEY, newest.attempt, now_ms=self.now_ms):
            self.note()

    @precondition(lambda self: self.executions)
    @rule(data=st.data(), until_ms=st.integers(-20, 20))
    def renew(self, data: st.DataObject, until_ms: int) -> None:
        self.table.renew([data.draw(st.sampled_from(self.executions))], until_ms=self.now_ms + until_ms)

    @rule(milliseconds=st.integers(1, 30))
    def wait(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    @rule()
    def expire(self) -> None:
        if self.table.expire(now_ms=self.now_ms):
            self.note()

    def note(self) -> None:
        self.path.append(self.table.rows[KEY].state)

    @invariant()
    def only_moves_of_the_table(self) -> None:
        for earlier, later in zip(self.path, self.path[1:], strict=False):
            assert later in MOVES[earlier]

    @invariant()
    def one_answer_for_ever(self) -> None:
        assert self.finished <= 1
        assert len(self.answers) <= 1
        assert (self.finished == 1) == (RequestState.DONE in self.path)

    @invariant()
    def a_stored_response_and_done_go_together(self) -> None:
        found = self.table.find(KEY)
        if found is not None:
            assert (found.state is RequestState.DONE) == (found.response is not None)

    @invariant()
    def nothing_leaves_an_end(self) -> None:
        for end in (RequestState.DONE, RequestState.EXPIRED):
            if end in self.path:
                assert self.path.index(end) == len(self.path) - 1


TestKey = Key.TestCase
TestKey.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
