"""A method that answers with a stream, behind the interceptor that every call passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from prometheus_client import CollectorRegistry

from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.order.v1 import order_pb2_grpc
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from services.kernel.principal import Principal, Role
from services.runtime.grpc import admission, status
from services.runtime.grpc.admission import STREAM_COST, Admission
from services.runtime.grpc.interceptors import CallInterceptor
from services.runtime.grpc.tokens import HOUSE, TokenSigner, TokenVerifier, audience_of
from services.runtime.grpc.trust import Trust, key_id
from services.runtime.metrics import CallMetrics

LI = Principal("li", Role.CASHIER)
#: How long a message may wait for its reader. A reader that reads does so at once, also on a busy machine.
MESSAGE_S = 2.0
BUDGET = 4 * STREAM_COST
Stream = Callable[[Any, Any], AsyncGenerator[Any, None]]


class Server:
    """OrderService; a test sets what WatchOrders streams."""

    def __init__(self) -> None:
        self.port = 0
        self.signer = TokenSigner(Ed25519PrivateKey.generate(), SystemClock())
        self.trust = Trust({key_id(self.signer.public_key): self.signer.public_key})
        self.counted = CollectorRegistry()
        self.interceptor = CallInterceptor(
            TokenVerifier(lambda: self.trust, audience_of("order"), SystemClock()),
            SystemClock(),
            default_deadline_s=10,
            max_deadline_s=60,
            message_timeout_s=MESSAGE_S,
            admission=Admission(caller_budget=BUDGET, service_budget=BUDGET, max_executions=2),
            metrics=CallMetrics(self.counted),
        )
        self.stream: Stream = positions
        self.ended = asyncio.Event()
        self.server = aio.server(interceptors=[self.interceptor])
        handlers: dict[str, Any] = {
            "WatchOrders": grpc.unary_stream_rpc_method_handler(
                self.watch,
                request_deserializer=pb.WatchOrdersRequest.FromString,
                response_serializer=pb.WatchOrdersResponse.SerializeToString,
            ),
            "GetOrder": grpc.unary_unary_rpc_method_handler(
                self.get,
                request_deserializer=pb.GetOrderRequest.FromString,
                response_serializer=pb.GetOrderResponse.SerializeToString,
            ),
        }
        service = grpc.method_handlers_generic_handler("countinghouse.order.v1.OrderService", handlers)
        self.server.add_generic_rpc_handlers((service,))

    async def watch(self, request: Any, context: Any) -> AsyncGenerator[Any, None]:
        try:
            async for message in self.stream(request, context):
                yield message
        finally:
            self.ended.set()

    async def get(self, _request: Any, _context: Any) -> pb.GetOrderResponse:
        return pb.GetOrderResponse()

    def metadata(self, principal: Principal = LI) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.signer.sign(principal, 60, HOUSE)}"),)


async def positions(request: pb.WatchOrdersRequest, _context: Any) -> AsyncGenerator[pb.WatchOrdersResponse, None]:
    """Two messages, and then nothing."""
    for number in (1, 2):
        yield pb.WatchOrdersResponse(position=f"{request.position}.{number}")
    await asyncio.get_running_loop().create_future()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    server.port = server.server.add_insecure_port("127.0.0.1:0")
    await server.server.start()
    yield server
    await server.server.stop(None)


@pytest.fixture
async def stub(server: Server) -> AsyncIterator[Any]:
    async with aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield order_pb2_grpc.OrderServiceStub(channel)


async def first(call: Any) -> Any:
    """The first message of a stream."""
    async with asyncio.timeout(30):
        return await anext(aiter(call))


async def read_to_the_end(call: Any) -> None:
    async with asyncio.timeout(30):
        async for _ in call:
            pass


async def refusal(call: Any) -> tuple[str, str]:
    """The code and the reason with which a stream ends."""
    with pytest.raises(aio.AioRpcError) as ended:
        await read_to_the_end(call)
    error: Any = ended.value
    return error.code().name, status.from_rpc_error(error).reason


async def test_messages_come_as_they_are_sent_until_the_caller_ends_the_stream(server: Server, stub: Any) -> None:
    call = stub.WatchOrders(pb.WatchOrdersRequest(position="here"), metadata=server.metadata())
    messages = aiter(call)
    async with asyncio.timeout(30):
        assert [(await anext(messages)).position for _ in range(2)] == ["here.1", "here.2"]
        assert not server.ended.is_set()
        call.cancel()
        await server.ended.wait()


async def test_caller_without_a_token_gets_no_stream(server: Server, stub: Any) -> None:
    assert await refusal(stub.WatchOrders(pb.WatchOrdersRequest())) == ("UNAUTHENTICATED", "TOKEN_REQUIRED")
    assert not server.ended.is_set()


async def test_stream_ends_when_its_caller_is_revoked(server: Server, stub: Any) -> None:
    """The next message is not sent; that nothing has changed is one, too."""
    goes_on = asyncio.Event()

    async def stream(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        yield pb.WatchOrdersResponse(position="1")
        await goes_on.wait()
        yield pb.WatchOrdersResponse(position="2")

    server.stream = stream
    call = stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata())
    assert (await first(call)).position == "1"
    server.trust = Trust(server.trust.keys, revoked_callers=frozenset({"cashier:li"}))
    goes_on.set()
    assert await refusal(call) == ("UNAUTHENTICATED", "TOKEN_REVOKED")


async def test_refusal_of_a_stream_has_its_reason(server: Server, stub: Any) -> None:
    async def stream(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        yield pb.WatchOrdersResponse(position="1")
        raise Unavailable("SERVER_STOPPING", "this server stops")

    server.stream = stream
    call = stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata())
    assert await refusal(call) == ("UNAVAILABLE", "SERVER_STOPPING")
    labels = {"method": "WatchOrders", "code": "UNAVAILABLE"}
    assert server.counted.get_sample_value("countinghouse_calls_total", labels) == 1


async def test_reader_that_does_not_read_loses_the_stream(server: Server, stub: Any) -> None:
    """What is on its way is bounded by flow control; the server does not keep the rest."""

    async def stream(_request: Any, _context: Any) -> AsyncGenerator[Any, None]:
        while True:
            yield pb.WatchOrdersResponse(position="x" * 100_000)

    server.stream = stream
    call = stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata())
    async with asyncio.timeout(30):
        await server.ended.wait()
    assert await refusal(call) == ("ABORTED", "ANSWER_NOT_TAKEN")


async def test_open_streams_leave_a_server_to_other_calls(server: Server, stub: Any) -> None:
    """More of them than calls that are executed at once."""
    calls = [stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata()) for _ in range(3)]
    for call in calls:
        await first(call)
    assert await stub.GetOrder(pb.GetOrderRequest(), metadata=server.metadata(), timeout=10) == pb.GetOrderResponse()


async def test_caller_has_so_many_streams_and_another_caller_others(server: Server, stub: Any) -> None:
    calls = [
        stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata()) for _ in range(BUDGET // STREAM_COST)
    ]
    for call in calls:
        await first(call)
    more = stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata())
    assert await refusal(more) == ("RESOURCE_EXHAUSTED", "CALLER_LIMIT")
    wang = server.metadata(Principal("wang", Role.ACCOUNTANT))
    await first(stub.WatchOrders(pb.WatchOrdersRequest(), metadata=wang))


async def test_server_has_so_many_streams(server: Server, stub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes the next one when one has ended."""
    monkeypatch.setattr(admission, "_STREAMS", 2)
    calls = [stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata()) for _ in range(2)]
    for call in calls:
        await first(call)
    more = stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata())
    assert await refusal(more) == ("RESOURCE_EXHAUSTED", "STREAM_LIMIT")
    calls[0].cancel()
    async with asyncio.timeout(30):
        await server.ended.wait()
    await first(stub.WatchOrders(pb.WatchOrdersRequest(), metadata=server.metadata()))


def test_stream_costs_its_caller_more_than_a_change() -> None:
    watch = "/countinghouse.order.v1.OrderService/WatchOrders"
    assert admission.cost_of(watch) == STREAM_COST > admission.CHANGE_COST
