"""People who insist: they ask under the same key until somebody gives a definitive answer."""

from __future__ import annotations

from typing import Any

import pytest

from countinghouse.payment.v1 import payment_pb2
from services.checker.evidence import Answered
from services.demo.people import Person, Seen, Telephone
from services.kernel.clock import ManualClock
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    KeyMismatch,
    OutcomeUnknown,
    RequestInProgress,
    StaleFence,
    Unavailable,
)
from services.kernel.fence import Fence
from services.kernel.principal import Role

_STALE = StaleFence("o1", Fence(1, 1), Fence(1, 2))
_PAID = AlreadyExists("ORDER_ALREADY_PAID", "o1 was already settled by li")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (None, False),
        (Unavailable("R", "m"), True),
        (OutcomeUnknown("R", "m"), True),
        (RequestInProgress("r1"), True),
        (_STALE, True),
        (Aborted("R", "m"), False),
        (_PAID, False),
        (FailedPrecondition("R", "m"), False),
        (InvalidArgument("R", "m"), False),
        (KeyMismatch("r1"), False),
    ],
)
def test_what_may_come_right_is_asked_again(error: CountinghouseError | None, again: bool) -> None:
    """An outcome that nobody knows is asked for again, under the same key; a refusal is an answer."""
    assert Seen(b"", error, False, 0, 1).open is again


class Line(Telephone):
    """A telephone on which each call meets what is next; time goes on by 50 ms a call."""

    def __init__(self, *outcomes: CountinghouseError | None) -> None:
        self.hand = ManualClock()
        super().__init__(self.hand)
        self.outcomes = list(outcomes)
        self.asked: list[tuple[Any, float]] = []

    async def call(self, address: str, method: str, request: Any, token: str, timeout_s: float) -> Seen:
        self.asked.append((request, timeout_s))
        error = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        began_ms = self.hand.now_ms()
        self.hand.advance(50)
        return Seen(b"no" if error else b"yes", error, False, began_ms, self.hand.now_ms())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.demo.people._RETRY_MS", 0)


async def insist(line: Line, **limits: float) -> Seen:
    person = Person("li", Role.CASHIER, "token", line)
    request = payment_pb2.SettleRequest(request_id="k1", order_id="o1")
    return await person.insist("host:1", "Settle", request, "k1", **limits)


async def test_an_answer_at_once_is_the_answer() -> None:
    line = Line(None)
    answer = await insist(line)
    assert (answer.tries, answer.first_error, answer.open) == (1, None, False)
    assert line.answers == [Answered("k1", True, b"yes")]


async def test_the_same_request_is_sent_until_it_is_answered() -> None:
    """The answer tells how often, what was met first, and how long all of it took."""
    stale = StaleFence("o1", Fence(1, 1), Fence(1, 2))
    stale.retry_after_ms = 1
    line = Line(stale, stale, None)
    answer = await insist(line)
    assert (answer.tries, answer.first_error, answer.error) == (3, stale, None)
    assert answer.ended_ms - answer.began_ms == 150
    assert len({id(request) for request, _ in line.asked}) == 1
    assert line.answers == [Answered("k1", True, b"yes")]


async def test_a_refusal_is_kept_for_the_checker() -> None:
    line = Line(_PAID)
    assert (await insist(line)).error is _PAID
    assert line.answers == [Answered("k1", False, b"no")]


async def test_patience_ends_and_no_answer_is_kept() -> None:
    """What is not definitive is nothing the checker could hold against the table."""
    away = Unavailable("R", "m")
    away.retry_after_ms = 1
    line = Line(away)
    answer = await insist(line, patience_s=0.3)
    assert answer.open
    assert answer.tries == 6
    assert line.answers == []


async def test_no_call_may_last_longer_than_patience() -> None:
    away = Unavailable("R", "m")
    away.retry_after_ms = 1
    line = Line(away)
    await insist(line, timeout_s=5.0, patience_s=0.2)
    assert [timeout_s for _, timeout_s in line.asked] == pytest.approx([0.2, 0.15, 0.1, 0.05], abs=0.001)
