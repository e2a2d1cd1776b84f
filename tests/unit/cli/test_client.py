"""Asking again under the same key, within one timeout."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli import program
from services.cli.client import Client, Reply
from services.cli.connection import Connection
from services.devstack.state import StackRefused
from services.kernel.clock import CallDeadline
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    OutcomeUnknown,
    RequestInProgress,
    StaleVersion,
    Unauthenticated,
    Unavailable,
    may_come_right,
)
from services.kernel.principal import Role
from services.runtime.grpc.status import DETAILS_KEY, to_status

LOST = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
AWAY = Unavailable("SERVICE_UNAVAILABLE", "away", retry_after_ms=1)


class ScriptedClient(Client):
    """Gives the scripted answers, one a try; the last again and again."""

    def __init__(self, answers: Sequence[Reply | CountinghouseError], data: Path, timeout_s: float = 5.0) -> None:
        super().__init__(
            Connection(
                data=data,
                zookeeper="",
                principal=None,
                default_role=Role.CASHIER,
                token="",
                timeout_s=timeout_s,
                as_json=False,
            )
        )
        self._answers = list(answers)
        self.sent: list[Message] = []

    async def _once(self, service: str, method: str, request: Message, deadline: CallDeadline) -> Reply:
        self.sent.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, CountinghouseError):
            raise answer
        return answer


DONE = Reply(pb.SettleResponse(), replayed=True)
REQUEST = pb.SettleRequest(request_id="req_1", order_id="o1")


async def settle(client: Client) -> Reply:
    return await client.change("payment", "Settle", REQUEST, client.new_id("req_1"))


@pytest.mark.parametrize("first", [LOST, AWAY, RequestInProgress("req_1", retry_after_ms=1)])
async def test_passing_error_is_retried_with_the_same_request(tmp_path: Path, first: CountinghouseError) -> None:
    client = ScriptedClient([first, DONE], tmp_path)
    assert await settle(client) == DONE
    assert client.sent == [REQUEST, REQUEST]


@pytest.mark.parametrize(
    "error",
    [
        AlreadyExists("ORDER_ALREADY_PAID", "paid"),
        FailedPrecondition("ILLEGAL_STATE", "no"),
        InvalidArgument("FIELD_REQUIRED", "no"),
        StaleVersion("o1", 1, 2),
    ],
)
async def test_definitive_answer_is_not_retried(tmp_path: Path, error: CountinghouseError) -> None:
    client = ScriptedClient([error], tmp_path)
    with pytest.raises(type(error)) as refusal:
        await settle(client)
    assert refusal.value is error
    assert len(client.sent) == 1


async def test_timeout_names_the_key(tmp_path: Path) -> None:
    client = ScriptedClient([LOST], tmp_path, timeout_s=0.5)
    with pytest.raises(OutcomeUnknown, match=r"--request-id req_1$") as refusal:
        await settle(client)
    assert refusal.value.metadata["request_id"] == "req_1"
    assert len(client.sent) > 1


async def test_faults_of_a_stack_without_failpoints_are_refused_with_the_remedy(tmp_path: Path) -> None:
    """The acquirer has no such method; nothing was done, and asking again would not help."""
    missing = AioRpcError(StatusCode.UNIMPLEMENTED, Metadata(), Metadata(), "Method not found!")

    class Stub:
        async def GetFaults(self, request: Message, **_: object) -> Message:  # noqa: N802
            raise missing

    client = Client(Connection(tmp_path, "", None, Role.OPERATOR, "", 5.0, False))
    client._tokens[True] = "token"
    client._stubs["faults"] = Stub()
    with pytest.raises(StackRefused, match="countinghouse up --failpoints") as refusal:
        await client.read("faults", "GetFaults", acquirer_pb2.GetFaultsRequest())
    assert refusal.value.reason == "FAILPOINTS_OFF"


def test_aborted_without_a_waiting_time_is_final() -> None:
    assert not may_come_right(Aborted("STALE_VERSION", "read it again"))
    assert may_come_right(Aborted("ORDER_LOCKED", "held", retry_after_ms=5))


async def test_call_without_a_stack_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as client:
        with pytest.raises(StackRefused, match="countinghouse up"):
            await client.read("order", "GetOrder", REQUEST)


async def test_silent_zookeeper_is_reported_within_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT", "true")
    async with connected(tmp_path, zookeeper="127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
            await client.read("order", "GetOrder", REQUEST)


async def test_service_that_is_not_found_is_reported_long_before_the_timeout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT", "true")
    async with connected(tmp_path, zookeeper="127.0.0.1:1", timeout_s=600.0) as client:
        with pytest.raises(Unavailable, match=r"the payment service was not found in 0\.3 s"):
            await client.find("payment", 0.3)


async def test_request_that_is_sent_once_is_not_repeated(tmp_path: Path) -> None:
    client = ScriptedClient([AWAY, DONE], tmp_path)
    with pytest.raises(Unavailable):
        await client.send("payment", "Settle", REQUEST, 1.0)
    assert client.sent == [REQUEST]


async def test_call_without_a_key_or_token_is_refused(tmp_path: Path) -> None:
    async with connected(tmp_path) as client:
        with pytest.raises(Unauthenticated, match="--token"):
            client._bearer("order")


def connected(data: Path, **changes: Any) -> Client:
    settings: dict[str, Any] = {
        "data": data,
        "zookeeper": "",
        "principal": None,
        "default_role": Role.AUDITOR,
        "token": "",
        "timeout_s": 0.5,
        "as_json": False,
    }
    return Client(Connection(**(settings | changes)))


async def test_list_that_comes_in_short_pages_is_read_to_its_limit(tmp_path: Path) -> None:
    """A page cut by its size is not the last one; of what is asked next, no more than is missing."""
    pages = [
        Reply(
            pb.ListPaymentsResponse(payments=[pb.Payment(payment_id=f"p{n}") for n in rows], next_page_token=token),
            False,
        )
        for rows, token in (((0, 1), "a"), ((2,), "b"), ((3, 4), "c"))
    ]
    client = ScriptedClient(pages, tmp_path)
    request = pb.ListPaymentsRequest(page_size=5, order_id="o1")
    response = await client.read_list("payment", "ListPayments", request, "payments")
    assert [payment.payment_id for payment in response.payments] == ["p0", "p1", "p2", "p3", "p4"]
    assert response.next_page_token == "c"
    assert len(client.sent) == 3
    assert (request.page_size, request.page_token, request.order_id) == (2, "b", "o1")


async def test_list_that_ends_early_is_read_to_its_end(tmp_path: Path) -> None:
    """An empty token ends it, whatever was asked for."""
    client = ScriptedClient([Reply(pb.ListPaymentsResponse(payments=[pb.Payment()]), False)], tmp_path)
    response = await client.read_list("payment", "ListPayments", pb.ListPaymentsRequest(page_size=5), "payments")
    assert len(response.payments) == 1
    assert not response.next_page_token


class HangingClient(ScriptedClient):
    """Is asked, and waits for ever."""

    def __init__(self, data: Path) -> None:
        super().__init__([LOST], data)
        self.asked = asyncio.Event()

    async def _once(self, service: str, method: str, request: Message, deadline: CallDeadline) -> Reply:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing ends this wait")


@pytest.mark.parametrize("given", ["req_mine", ""])
async def test_interrupted_change_names_the_request_id_that_repeats_it(tmp_path: Path, given: str) -> None:
    """One that was given as well as one that was made for it."""
    client = HangingClient(tmp_path)
    request_id = client.new_id(given)
    task = asyncio.ensure_future(client.change("payment", "Settle", REQUEST, request_id))
    await client.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.interrupted is not None
    assert client.interrupted.message.endswith(f" --request-id {request_id}")  # to be copied as it stands


async def test_interrupted_payment_by_ticket_is_repeated_by_the_same_command(tmp_path: Path) -> None:
    """Its key is the ticket: there is no --request-id to give."""
    client = HangingClient(tmp_path)
    task = asyncio.ensure_future(client.change("payment", "Pay", REQUEST, "tkt_1"))
    await client.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.interrupted is not None
    assert "run the same command" in client.interrupted.message
    assert "--request-id" not in client.interrupted.message


async def test_interruption_of_nothing_names_no_request_id(tmp_path: Path) -> None:
    """Before a change and after its answer."""
    client = ScriptedClient([DONE], tmp_path)
    assert client.interrupted is None
    await settle(client)
    assert client.interrupted is None


@pytest.mark.parametrize("last", [AWAY, Unauthenticated("TOKEN_EXPIRED", "too old")])
async def test_change_once_unanswered_stays_unknown_after_a_later_refusal(
    tmp_path: Path, last: CountinghouseError
) -> None:
    """`nothing was done` is true of that try only."""
    client = ScriptedClient([LOST, last], tmp_path, timeout_s=0.5)
    with pytest.raises(OutcomeUnknown, match="--request-id req_1"):
        await settle(client)


async def test_change_under_way_stays_unknown_after_a_later_refusal(tmp_path: Path) -> None:
    """Another execution of the request carries it on."""
    under_way = Aborted("REQUEST_IN_PROGRESS", "ask again", retry_after_ms=1)
    for answers in ([under_way], [under_way, Aborted("ORDER_LOCKED", "held", retry_after_ms=1)]):
        client = ScriptedClient(answers, tmp_path, timeout_s=0.5)
        with pytest.raises(OutcomeUnknown, match="--request-id req_1"):
            await settle(client)


class RefusingClient(Client):
    """Is told one stored refusal by a server."""

    async def _stub(self, service: str) -> Any:
        refusal = to_status(AlreadyExists("ORDER_ALREADY_PAID", "o1 is already settled"))
        trailers = grpc.aio.Metadata((DETAILS_KEY, refusal.SerializeToString()), ("x-replayed", "true"))

        async def call(*_: object, **__: object) -> None:
            raise grpc.aio.AioRpcError(
                code=grpc.StatusCode.ALREADY_EXISTS,
                initial_metadata=grpc.aio.Metadata(),
                trailing_metadata=trailers,
                details=refusal.message,
            )

        return SimpleNamespace(Settle=call)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("req_1", "This is the stored answer to --request-id req_1; use a new id to ask anew."),
        ("tkt_1", "This is the stored answer to ticket tkt_1; fetch a new ticket to ask anew."),
    ],
)
async def test_stored_refusal_is_marked_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, sentence: str
) -> None:
    """What it says was so when it was first given; as JSON it is marked as a stored result is."""
    client = RefusingClient(
        Connection(
            data=tmp_path,
            zookeeper="",
            principal=None,
            default_role=Role.CASHIER,
            token="t",
            timeout_s=5.0,
            as_json=True,
        )
    )
    client.new_id("req_1")
    with pytest.raises(AlreadyExists) as refusal:
        await client.change("payment", "Settle", REQUEST, key)
    assert refusal.value.message == f"o1 is already settled. {sentence}"
    monkeypatch.setattr("sys.argv", ["countinghouse", "settle", "--json"])
    assert program._end_with(refusal.value) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["replayed"] is True
    assert document.get("request_id") == ("req_1" if key == "req_1" else None), "as of a result: a ticket is none"
