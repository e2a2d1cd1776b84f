"""Batched calls: what becomes of the requests of concurrent callers, and of the requests of one batch at the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.payment.v1 import payment_pb2
from services.kernel.clock import CallDeadline, SystemClock
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    OutcomeUnknown,
    PermissionDenied,
    StaleFence,
    Unavailable,
)
from services.kernel.idempotency import Answer, StoredResponse
from services.kernel.principal import Principal, Role
from services.runtime.grpc import batching, status
from services.runtime.grpc.batching import BatchedCalls, serve_each
from services.runtime.grpc.context import Call, current_call, serving
from services.runtime.grpc.interceptors import reply

_Method = Callable[[Any], Awaitable[Any]]


def in_s(seconds: float) -> CallDeadline:
    return CallDeadline.after(seconds, SystemClock())


def silence(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> OutcomeUnknown:
    """No answer, as `Peers.call` raises it."""
    error = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
    error.__cause__ = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())
    return error


class Server:
    """Answers ClaimOrder and ClaimOrders when it is told to, and notes what it was sent.

    Args:
        refused: Its refusals, by order id.
        batch: Raised by every batch.
        alone: Raised by every request that is sent alone.
    """

    def __init__(
        self,
        *,
        refused: dict[str, CountinghouseError] | None = None,
        batch: Exception | None = None,
        alone: CountinghouseError | None = None,
    ) -> None:
        self.sent: list[list[str]] = []
        self.deadlines: list[float] = []
        self.refused = refused or {}
        self.batch = batch
        self.alone = alone
        self.may_answer = asyncio.Event()
        self.received = asyncio.Semaphore(0)
        self.missing = 0
        self.calls = BatchedCalls(self, self.claim, self.claim_all, pb.ClaimOrdersRequest, name="ClaimOrder")

    async def call(self, method: Callable[..., Any], request: Any, deadline: CallDeadline) -> Any:
        self.deadlines.append(deadline.remaining_s())
        return await method(request)

    async def claim(self, request: pb.ClaimOrderRequest) -> pb.ClaimOrderResponse:
        await self._received([request.order_id])
        if self.alone is not None:
            raise self.alone
        if request.order_id in self.refused:
            raise self.refused[request.order_id]
        return pb.ClaimOrderResponse(order=pb.Order(order_id=request.order_id))

    async def claim_all(self, request: pb.ClaimOrdersRequest) -> pb.ClaimOrdersResponse:
        await self._received([each.order_id for each in request.requests])
        if self.batch is not None:
            raise self.batch
        outcomes = [self._outcome(each.order_id) for each in request.requests]
        return pb.ClaimOrdersResponse(outcomes=outcomes[self.missing :])

    async def _received(self, order_ids: list[str]) -> None:
        self.sent.append(order_ids)
        self.received.release()
        await self.may_answer.wait()

    def _outcome(self, order_id: str) -> pb.ClaimOrderOutcome:
        if order_id in self.refused:
            return pb.ClaimOrderOutcome(error=status.to_status(self.refused[order_id]).SerializeToString())
        return pb.ClaimOrderOutcome(response=pb.ClaimOrderResponse(order=pb.Order(order_id=order_id)))

    async def begun(self, *order_ids: str, seconds: float = 60) -> list[asyncio.Task[str]]:
        """Ask for the orders; when this returns, the first request is on its way and the others wait."""
        first = asyncio.create_task(self.ask(order_ids[0], seconds))
        await self.received.acquire()
        others = [asyncio.create_task(self.ask(order_id, seconds)) for order_id in order_ids[1:]]
        await asyncio.sleep(0)
        return [first, *others]

    async def ask(self, order_id: str, seconds: float = 60) -> str:
        response = await self.calls.call(pb.ClaimOrderRequest(order_id=order_id), in_s(seconds))
        return str(response.order.order_id)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch is sent while another is on its way, however long that takes."""
    monkeypatch.setattr(batching, "_PATIENCE_S", 60.0)


@pytest.mark.usefixtures("patient")
class TestBatch:
    """Requests of concurrent callers."""

    async def test_requests_that_come_during_a_call_are_the_next_batch(self) -> None:
        """The first one is sent alone, at once."""
        server = Server()
        tasks = await server.begun("a", "b", "c", "d")
        server.may_answer.set()
        assert await asyncio.gather(*tasks) == ["a", "b", "c", "d"]
        assert server.sent == [["a"], ["b", "c", "d"]]

    async def test_batch_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batching, "LIMIT", 2)
        server = Server()
        tasks = await server.begun(*"abcde")
        server.may_answer.set()
        await asyncio.gather(*tasks)
        assert server.sent == [["a"], ["b", "c"], ["d", "e"]]

    async def test_waiting_requests_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One more than may wait is refused, and was not sent."""
        monkeypatch.setattr(batching, "_MOST_WAITING", 1)
        server = Server()
        tasks = await server.begun("a", "b")
        with pytest.raises(Unavailable, match="too many"):
            await server.ask("c")
        server.may_answer.set()
        assert await asyncio.gather(*tasks) == ["a", "b"]
        assert server.sent == [["a"], ["b"]]

    async def test_refusal_concerns_its_own_request(self) -> None:
        refusal = FailedPrecondition("ILLEGAL_STATE", "it is PAID", metadata={"state": "PAID"})
        server = Server(refused={"c": refusal})
        tasks = await server.begun(*"abcd")
        server.may_answer.set()
        a, b, c, d = await asyncio.gather(*tasks, return_exceptions=True)
        assert (a, b, d) == ("a", "b", "d")
        assert isinstance(c, FailedPrecondition)
        assert (c.reason, c.message, c.metadata) == (refusal.reason, refusal.message, refusal.metadata)

    async def test_refusal_of_this_service_is_not_its_callers(self) -> None:
        """As of a single call: a caller with every right is not told PERMISSION_DENIED."""
        server = Server(refused={"c": PermissionDenied("ROLE_NOT_ALLOWED", "no")})
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        _, _, c = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(c, Unavailable)
        assert c.reason == "PEER_REFUSED_US"

    async def test_answer_with_too_few_outcomes_is_no_answer(self) -> None:
        server = Server()
        server.missing = 1
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[0] == "a"
        assert [type(error) for error in answers[1:]] == [OutcomeUnknown, OutcomeUnknown]


@pytest.mark.usefixtures("patient")
class TestSilence:
    """A batch without an answer."""

    async def test_lost_reply_is_resolved_by_asking_for_each_alone(self) -> None:
        """Under its own key."""
        server = Server(batch=silence())
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]
        assert server.sent == [["a"], ["b", "c"], ["b"], ["c"]]

    @pytest.mark.parametrize("second", [StaleFence("b", 1, 2), Unavailable("DATABASE_AWAY", "again")])
    async def test_answer_of_the_second_attempt_only_is_no_outcome(self, second: CountinghouseError) -> None:
        """The batch may have claimed the order."""
        server = Server(batch=silence(), refused={"b": second})
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        a, b, c = await asyncio.gather(*tasks, return_exceptions=True)
        assert (a, type(b), c) == ("a", OutcomeUnknown, "c")

    async def test_definitive_answer_of_the_second_attempt_stands(self) -> None:
        """It would have met the first one, too, or is what that one led to."""
        server = Server(batch=silence(), refused={"b": FailedPrecondition("ILLEGAL_STATE", "no")})
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        _, b, _ = await asyncio.gather(*tasks, return_exceptions=True)
        assert type(b) is FailedPrecondition

    async def test_batch_that_took_all_time_is_not_asked_again(self) -> None:
        server = Server(batch=silence(grpc.StatusCode.DEADLINE_EXCEEDED))
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [str, OutcomeUnknown, OutcomeUnknown]
        assert server.sent == [["a"], ["b", "c"]]

    async def test_batch_that_was_never_sent_is_unavailable_to_each(self) -> None:
        server = Server(batch=Unavailable("PEER_UNAVAILABLE", "away"))
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [str, Unavailable, Unavailable]

    async def test_error_in_the_client_reaches_every_caller(self) -> None:
        """None of them waits for ever."""
        server = Server(batch=ZeroDivisionError())
        tasks = await server.begun(*"abc")
        server.may_answer.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers] == [str, ZeroDivisionError, ZeroDivisionError]


class TestDeadline:
    """Each caller waits as long as the own deadline allows."""

    async def test_batch_without_an_answer_does_not_hold_up_the_next(self) -> None:
        """A paused instance delays the requests it was sent."""
        server = Server()
        tasks = await server.begun(*"abc")
        await server.received.acquire()
        assert server.sent == [["a"], ["b", "c"]]
        server.may_answer.set()
        assert await asyncio.gather(*tasks) == ["a", "b", "c"]

    async def test_batches_on_their_way_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(batching, "_MOST_SENDING", 2)
        monkeypatch.setattr(batching, "_PATIENCE_S", 0.0)
        server = Server()
        tasks = await server.begun("a")
        tasks += await server.begun("b")
        tasks.append(asyncio.create_task(server.ask("c")))
        tasks.append(asyncio.create_task(server.ask("d")))
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.sent == [["a"], ["b"]]
        server.may_answer.set()
        assert await asyncio.gather(*tasks) == ["a", "b", "c", "d"]

    @pytest.mark.usefixtures("patient")
    async def test_shorter_deadline_in_a_batch_ends_only_its_own_wait(self) -> None:
        """What was sent is unknown then; what was not is not sent any more."""
        server = Server()
        (first,) = await server.begun("a")
        impatient = asyncio.create_task(server.ask("b", seconds=0.01))
        patient = asyncio.create_task(server.ask("c"))
        with pytest.raises(Unavailable) as never_sent:
            await impatient
        assert never_sent.value.reason == "DEADLINE_TOO_SHORT"
        server.may_answer.set()
        assert [await first, await patient] == ["a", "c"]
        assert server.sent == [["a"], ["c"]]

    @pytest.mark.usefixtures("patient")
    async def test_request_that_was_sent_is_unknown_after_its_deadline(self) -> None:
        server = Server()
        (only,) = await server.begun("a", seconds=0.01)
        with pytest.raises(OutcomeUnknown):
            await only

    @pytest.mark.usefixtures("patient")
    async def test_batch_has_the_longest_deadline_of_its_requests(self) -> None:
        server = Server()
        tasks = await server.begun("a")
        tasks += [asyncio.create_task(server.ask(order_id, seconds)) for order_id, seconds in (("b", 90), ("c", 30))]
        await asyncio.sleep(0)
        server.may_answer.set()
        await asyncio.gather(*tasks)
        assert 60 < server.deadlines[1] <= 90

    @pytest.mark.usefixtures("patient")
    async def test_caller_that_leaves_takes_no_other_along(self) -> None:
        server = Server()
        tasks = await server.begun(*"abc")
        tasks[1].cancel()
        await asyncio.sleep(0)
        server.may_answer.set()
        a, b, c = await asyncio.gather(*tasks, return_exceptions=True)
        assert (a, type(b), c) == ("a", asyncio.CancelledError, "c")
        assert server.sent == [["a"], ["c"]]


class TestServeEach:
    """A batch at the server."""

    @pytest.fixture(autouse=True)
    def call(self) -> Call:
        call = Call("/order/ClaimOrders", Principal("payment-1", Role.SERVICE), in_s(60))
        serving(call)
        return call

    async def _serve(self, serve: Callable[[Any, Any], Awaitable[Any]], *order_ids: str) -> list[Any]:
        requests = [pb.ClaimOrderRequest(order_id=order_id) for order_id in order_ids]
        return await serve_each(requests, serve, pb.ClaimOrderOutcome)

    async def test_one_poisoned_request_fails_alone(self, call: Call) -> None:
        """A refusal and an error of ours; the second says nothing of what happened."""

        async def serve(request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
            if request.order_id == "refused":
                raise InvalidArgument.of_field("FIELD_REQUIRED", "fence", "fence is required")
            if request.order_id == "broken":
                raise ZeroDivisionError("secret")
            return pb.ClaimOrderResponse(order=pb.Order(order_id=request.order_id))

        one, refused, broken, two = await self._serve(serve, "one", "refused", "broken", "two")
        assert (one.response.order.order_id, two.response.order.order_id) == ("one", "two")
        refusal = status.from_bytes(refused.error)
        assert (type(refusal), refusal.reason) == (InvalidArgument, "FIELD_REQUIRED")
        assert list(refusal.fields) == [("fence", "fence is required")]
        assert type(status.from_bytes(broken.error)) is OutcomeUnknown
        assert b"secret" not in broken.error
        assert not call.reply_dropped

    async def test_each_request_is_told_as_decided(self, call: Call) -> None:
        """With the reason of its refusal, and whether its answer is a stored one: for the metrics."""
        told: list[tuple[str, bool]] = []
        call.decided = lambda reason, replayed: told.append((reason, replayed))

        async def serve(request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
            if request.order_id == "late":
                raise StaleFence("o1", 1, 2)
            current_call().replayed = request.order_id == "again"
            return pb.ClaimOrderResponse(order=pb.Order(order_id=request.order_id))

        await self._serve(serve, "one", "late", "again")
        assert sorted(told) == [("", False), ("", True), ("STALE_FENCE", False)]

    async def test_requests_are_served_at_the_same_time_as_calls_of_their_own(self, call: Call) -> None:
        """So that they are committed together; and one's replay is not another's."""
        began = asyncio.Barrier(3)

        async def serve(request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
            mine = current_call()
            mine.replayed = request.order_id == "b"
            await asyncio.wait_for(began.wait(), 10)
            assert current_call() is mine
            return pb.ClaimOrderResponse(order=pb.Order(order_id=str(mine.replayed)))

        answers = await self._serve(serve, "a", "b", "c")
        assert [answer.response.order.order_id for answer in answers] == ["False", "True", "False"]
        assert not call.replayed

    async def test_reply_that_a_failpoint_drops_is_that_of_the_batch(self, call: Call) -> None:
        async def serve(request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
            current_call().reply_dropped = request.order_id == "b"
            return pb.ClaimOrderResponse()

        await self._serve(serve, "a", "c")
        assert not call.reply_dropped
        await self._serve(serve, "a", "b")
        assert call.reply_dropped

    async def test_reply_that_a_part_of_the_batch_drops_stays_dropped(self, call: Call) -> None:
        """Whatever the next part does."""

        async def serve(_request: pb.ClaimOrderRequest, _context: object) -> pb.ClaimOrderResponse:
            return pb.ClaimOrderResponse()

        call.reply_dropped = True
        await self._serve(serve, "a", "b")
        assert call.reply_dropped

    async def test_stored_answer_is_passed_on_as_it_is_stored(self) -> None:
        """A response and a refusal, marked where an earlier call had stored it."""
        refusal = status.stored_refusal(FailedPrecondition("ORDER_NOT_PAYABLE", "no"))

        async def serve(request: payment_pb2.SettleRequest, _context: object) -> bytes:
            if request.order_id == "refused":
                return bytes(reply(current_call(), Answer(refusal, replayed=True)))
            response = payment_pb2.SettleResponse(payment=payment_pb2.Payment(payment_id="p1"))
            stored = StoredResponse(True, response.SerializeToString())
            return bytes(reply(current_call(), Answer(stored, replayed=request.order_id == "again")))

        requests = [payment_pb2.SettleRequest(order_id=order_id) for order_id in ("new", "again", "refused")]
        new, again, refused = await serve_each(requests, serve, payment_pb2.SettleOutcome)
        assert (new.response.payment.payment_id, again.response) == ("p1", new.response)
        assert [each.replayed for each in (new, again, refused)] == [False, True, True]
        assert refused.error == refusal.body

    async def test_batch_that_is_too_large_is_refused_whole(self) -> None:
        async def serve(_request: object, _context: object) -> pb.ClaimOrderResponse:
            raise AssertionError

        with pytest.raises(InvalidArgument) as refusal:
            await self._serve(serve, *("o" for _ in range(batching.LIMIT + 1)))
        assert refusal.value.reason == "BATCH_TOO_LARGE"


def test_bytes_that_are_no_status_say_nothing() -> None:
    assert type(status.from_bytes(b"\xff\xff\xff")) is OutcomeUnknown
