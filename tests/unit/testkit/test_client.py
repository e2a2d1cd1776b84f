"""A caller who goes on under the same key until the answer is final; and what the history says of a request."""

from __future__ import annotations

import json
import random
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.type.v1 import clerk_pb2
from services.checker.evidence import Answered
from services.checker.history import Answer, Arguments, HistoryWriter, Outcome
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
from services.runtime.grpc import status
from services.testkit import client
from services.testkit.client import CallResult, Connections, RecordingClient, money
from services.testkit.identities import Identity
from tests.fakes.clock import ManualClock

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
def test_result_is_open_if_the_request_may_come_right(error: CountinghouseError | None, again: bool) -> None:
    """An unknown outcome is asked for again, under the same key; a refusal is an answer."""
    assert CallResult(0, 1, error=error).open is again
    assert CallResult(0, 1, error=error).final is not again


def test_result_with_a_payment_under_way_is_not_final() -> None:
    for state, final in (("UNKNOWN", False), ("SUBMITTED", False), ("SUCCEEDED", True), ("PARKED", True), ("", True)):
        assert CallResult(0, 1, answer=Answer(state=state)).final is final


def test_result_in_a_state_that_this_version_does_not_know_is_not_final() -> None:
    assert not CallResult(0, 1, answer=Answer(state="99")).final


class Scripted(RecordingClient):
    """A client of which each call meets what is next; a call takes 50 ms."""

    def __init__(self, *outcomes: CountinghouseError | str | None) -> None:
        self.hand = ManualClock()
        self.connections = Connections(str, self.hand)
        super().__init__(self.connections, Identity("li", Role.CASHIER, "token"))
        self.outcomes = list(outcomes)
        self.asked: list[tuple[Any, float]] = []

    async def call(self, request: Message, *, at: str = "", timeout_s: float = 5.0) -> CallResult:
        self.asked.append((request, timeout_s))
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        began_ms = self.hand.now_ms()
        self.hand.advance(50)
        if isinstance(outcome, CountinghouseError):
            return CallResult(began_ms, self.hand.now_ms(), b"no", outcome)
        return CallResult(began_ms, self.hand.now_ms(), b"yes", answer=Answer(state=outcome or "SUCCEEDED"))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RETRY_S", 0)


async def test_answer_at_once_is_the_answer() -> None:
    caller = Scripted(None)
    answer = await caller.settle("o1", "k1")
    assert (answer.tries, answer.first_error, answer.open) == (1, None, False)
    assert caller.connections.answers == [Answered("k1", True, b"yes")]


async def test_same_request_is_sent_until_it_is_answered() -> None:
    """The answer tells how often, what was met first, and how long all of it took."""
    stale = StaleFence("o1", Fence(1, 1), Fence(1, 2))
    stale.retry_after_ms = 1
    caller = Scripted(stale, "UNKNOWN", None)
    answer = await caller.settle("o1", "k1")
    assert (answer.tries, answer.first_error, answer.error) == (3, stale, None)
    assert answer.ended_ms - answer.began_ms == 150
    assert len({id(request) for request, _ in caller.asked}) == 1
    assert caller.connections.answers == [Answered("k1", True, b"yes")]


async def test_refusal_is_kept_for_the_checker() -> None:
    caller = Scripted(_PAID)
    assert (await caller.settle("o1", "k1")).error is _PAID
    assert caller.connections.answers == [Answered("k1", False, b"no")]


async def test_refusal_is_raised_where_a_response_is_needed() -> None:
    with pytest.raises(AlreadyExists):
        await Scripted(_PAID).ask(pb.SettleRequest())
    with pytest.raises(AlreadyExists):
        _ = CallResult(0, 1, error=_PAID).payment


async def test_patience_ends_and_no_answer_is_kept() -> None:
    """What is not definitive is nothing the checker could hold against the table."""
    away = Unavailable("R", "m")
    away.retry_after_ms = 1
    caller = Scripted(away)
    answer = await caller.settle("o1", "k1", within_s=0.3)
    assert answer.open
    assert answer.tries == 6
    assert caller.connections.answers == []


async def test_no_call_may_last_longer_than_patience() -> None:
    away = Unavailable("R", "m")
    away.retry_after_ms = 1
    caller = Scripted(away)
    await caller.settle("o1", "k1", timeout_s=5.0, within_s=0.2)
    assert [timeout_s for _, timeout_s in caller.asked] == pytest.approx([0.2, 0.15, 0.1, 0.05], abs=0.001)


@pytest.mark.parametrize(
    ("request_", "arguments"),
    [
        (
            order_pb2.CreateOrderRequest(request_id="k", order_id="o1", customer_id="mei", amount=money(700)),
            Arguments("o1", key="k", amount_minor=700, currency="CNY"),
        ),
        (order_pb2.GetOrderRequest(order_id="o1"), Arguments("o1")),
        (
            order_pb2.CancelOrderRequest(request_id="k", order_id="o1", expected_version=3),
            Arguments("o1", key="k", expected_version=3),
        ),
        (
            pb.SettleRequest(request_id="k", order_id="o1", source=pb.SOURCE_DRAWER),
            Arguments("o1", key="k", source="DRAWER"),
        ),
        (pb.PayRequest(ticket_id="t1", source=pb.SOURCE_CARD), Arguments("o9", key="t1", source="CARD")),
        (
            pb.PayRequest(ticket_id="t2", source=pb.SOURCE_BANK, amount=money(5), payee_account_id="sales:CNY"),
            Arguments(key="t2", source="BANK", amount_minor=5, currency="CNY", payee_account_id="sales:CNY"),
        ),
        (pb.ReverseRequest(request_id="k", payment_id="p1"), Arguments("o1", "p1", "k")),
    ],
)
def test_history_records_the_request(request_: Any, arguments: Arguments) -> None:
    """And which order a ticket or payment is about, if an answer has said so."""
    connections = Connections(str, ManualClock())
    connections.order_of("t1", "o9")
    connections.order_of("p1", "o1")
    caller = RecordingClient(connections, Identity("li", Role.CASHIER, "token"))
    assert caller._arguments(request_) == replace(arguments, clerk="li", role="cashier")


def test_order_of_a_payment_keeps_its_first_value() -> None:
    """A request that is sent again has to say the same."""
    connections = Connections(str, ManualClock())
    assert connections.order_of("p1") == ""
    assert connections.order_of("p1", "o1") == ""


def test_ids_are_those_of_the_seed() -> None:
    def ids(seed: int | None) -> list[str]:
        connections = Connections(str, ManualClock(), rng=None if seed is None else random.Random(seed))
        return [connections.new_id("order") for _ in range(3)]

    assert ids(7) == ids(7) != ids(8)
    assert len({*ids(None), *ids(None)}) == 6


class BatchAnswering(RecordingClient):
    """Answers every call with some bytes, or with an error of the transport."""

    def __init__(self, answer: bytes | grpc.aio.AioRpcError, history: HistoryWriter | None = None) -> None:
        super().__init__(Connections(str, ManualClock(), history=history), Identity("li", Role.ACCOUNTANT, ""))
        self._with = answer

    def _send(self, request: Message, at: str, timeout_s: float) -> Any:
        async def answered() -> bytes:
            if isinstance(self._with, grpc.aio.AioRpcError):
                raise self._with
            return self._with

        return answered()


class Answering(RecordingClient):
    """Answers every call with a response."""

    def __init__(self, response: Message) -> None:
        super().__init__(Connections(str, ManualClock()), Identity("li", Role.CASHIER, ""))
        self._response = response

    def _send(self, request: Message, at: str, timeout_s: float) -> Any:
        return _Sent(self._response.SerializeToString())


class _Sent:
    """As much of a call of gRPC as a client needs."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __await__(self) -> Generator[Any, None, bytes]:
        yield from ()
        return self._body

    async def trailing_metadata(self) -> tuple[()]:
        return ()


SETTLES = [pb.SettleRequest(request_id=f"r{number}", order_id=f"o{number}") for number in range(3)]


async def test_each_settle_of_a_batch_has_its_own_result_and_its_own_place_in_the_history(tmp_path: Path) -> None:
    paid = pb.SettleResponse(
        payment=pb.Payment(
            payment_id="p0", order_id="o0", state=pb.PAYMENT_STATE_SUCCEEDED, clerk=clerk_pb2.Clerk(name="li")
        )
    )
    refused = status.stored_refusal(_PAID).body
    locked = status.to_status(Aborted("ORDER_LOCKED", "locked", retry_after_ms=200)).SerializeToString()
    outcomes = [
        pb.SettleOutcome(response=paid, replayed=True),
        pb.SettleOutcome(error=refused),
        pb.SettleOutcome(error=locked),
    ]
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path, ManualClock()) as history:
        body = pb.SettleBatchResponse(outcomes=outcomes).SerializeToString()
        first, second, third = await BatchAnswering(body, history).settle_batch(SETTLES)
    assert (first.payment, first.answer.replayed, first.final) == (paid.payment, True, True)
    assert first.body == paid.SerializeToString(deterministic=True)
    assert (type(second.error), second.body, second.final) == (AlreadyExists, refused, True)
    assert (third.answer.reason, third.answer.code) == ("ORDER_LOCKED", "ABORTED")
    events = [json.loads(line) for line in path.read_text().splitlines()][1:-1]
    assert [event["kind"] for event in events] == ["Settle"] * 6
    assert [event["arguments"]["key"] for event in events[:3]] == ["r0", "r1", "r2"]
    assert [event["type"] for event in events[3:]] == ["ok", "fail", "fail"]


@pytest.mark.parametrize(
    "answer",
    [
        grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, grpc.aio.Metadata(), grpc.aio.Metadata()),
        grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()),
    ],
    ids=["deadline", "lost"],
)
async def test_batch_without_an_answer_is_open_for_each_settle(tmp_path: Path, answer: grpc.aio.AioRpcError) -> None:
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path, ManualClock()) as history:
        results = await BatchAnswering(answer, history).settle_batch(SETTLES)
    assert [(type(result.error), result.open) for result in results] == [(OutcomeUnknown, True)] * 3
    events = [json.loads(line) for line in path.read_text().splitlines()][1:-1]
    assert [event["type"] for event in events[3:]] == ["info"] * 3


async def test_settle_in_a_state_that_this_version_does_not_know_is_recorded_by_number_and_is_no_success(
    tmp_path: Path,
) -> None:
    """So is the source of a request."""
    settle = pb.SettleRequest(request_id="r1", order_id="o1", source=42)  # type: ignore[arg-type]
    payment = pb.Payment(payment_id="p1", order_id="o1", state=99)  # type: ignore[arg-type]
    outcome = pb.SettleOutcome(response=pb.SettleResponse(payment=payment))
    path = tmp_path / "history.jsonl"
    with HistoryWriter(path, ManualClock()) as history:
        body = pb.SettleBatchResponse(outcomes=[outcome]).SerializeToString()
        (result,) = await BatchAnswering(body, history).settle_batch([settle])
    assert (result.answer.state, result.outcome, result.final) == ("99", Outcome.INFO, False)
    begun, ended = [json.loads(line) for line in path.read_text().splitlines()][1:-1]
    assert (begun["arguments"]["source"], ended["type"], ended["answer"]["state"]) == ("42", "info", "99")


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (order_pb2.GetOrderRequest(), order_pb2.GetOrderResponse(order=order_pb2.Order(state=99))),  # type: ignore[arg-type]
        (pb.GetPaymentRequest(), pb.GetPaymentResponse(payment=pb.Payment(state=99))),  # type: ignore[arg-type]
        (pb.IssueTicketRequest(), pb.IssueTicketResponse(ticket=pb.Ticket(state=99))),  # type: ignore[arg-type]
    ],
    ids=["order", "payment", "ticket"],
)
async def test_answer_in_a_state_that_this_version_does_not_know_has_its_number(
    request_: Message, response: Message
) -> None:
    result = await Answering(response).call(request_)
    assert (result.answer.state, result.response) == ("99", response)


async def test_state_of_an_order_that_this_version_does_not_know_is_a_number() -> None:
    answer = order_pb2.GetOrderResponse(order=order_pb2.Order(state=99))  # type: ignore[arg-type]
    assert await Answering(answer).order_state("o1") == "99"
