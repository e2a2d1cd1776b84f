"""Requests that are no valid protobuf, on a real grpc.aio server on loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from countinghouse.order.v1 import order_pb2 as pb
from services.kernel.errors import CountinghouseError
from services.kernel.principal import Principal, Role
from services.runtime.grpc import status
from tests.unit.runtime.test_interceptors import Server

CREATE = "/countinghouse.order.v1.OrderService/CreateOrder"
LOOK = "/countinghouse.order.v1.OrderService/GetOrder"
MALFORMED = {
    "truncated": pb.CreateOrderRequest(request_id="r1", customer_id="mei").SerializeToString()[:-1],
    "invalid UTF-8": b"\x0a\x02\xff\xfe",
    "varint of 11 bytes": b"\x0a" + b"\xff" * 10 + b"\x01",
    "length beyond the end": b"\x0a\xff\xff\xff\xff\x07",
    "field number 0": b"\x02\x01x",
    "reserved wire type": b"\x0f",
    "group that is not closed": b"\xf3\x3f",
    "nested too deeply": b"\xf3\x3f" * 1_000 + b"\xf4\x3f" * 1_000,
    "text": b"GET / HTTP/1.1\r\n\r\n",
}
#: Parsed by every protobuf library as the message it belongs to, with fields it does not know.
UNKNOWN_FIELDS = {
    "unknown field": b"\xfa\x3f\x01x",
    "known field of another wire type": b"\x08\x05",
}


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    reflection.enable_server_reflection(["countinghouse.order.v1.OrderService"], served.server)
    yield served
    await served.server.stop(None)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[aio.Channel]:
    port = server.server.add_insecure_port("127.0.0.1:0")
    await server.server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def send(channel: aio.Channel, method: str, body: bytes, token: str = "") -> bytes:
    """Sends `body` as it is.

    Raises:
        CountinghouseError: What the server's status stands for.
    """
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        stub: Any = channel.unary_unary(method)
        answer: bytes = await stub(body, timeout=5.0, metadata=metadata)
        return answer
    except aio.AioRpcError as error:
        raise status.from_rpc_error(error) from error


@pytest.mark.parametrize("method", [CREATE, LOOK])
@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
async def test_malformed_request_is_refused_before_the_servicer(
    server: Server, channel: aio.Channel, method: str, body: bytes
) -> None:
    """INVALID_ARGUMENT, MALFORMED_REQUEST, with nothing of the body in the message; the servicer sees nothing."""
    with pytest.raises(CountinghouseError) as refusal:
        await send(channel, method, body, server.token())
    assert (status.code_of(refusal.value), refusal.value.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "MALFORMED_REQUEST",
    )
    assert "\xff" not in refusal.value.message
    assert not server.calls


async def test_malformed_request_is_counted_and_logged_once(server: Server, channel: aio.Channel) -> None:
    """With its caller, under its code, and without a traceback."""
    with capture_logs() as logs, pytest.raises(CountinghouseError):
        await send(channel, CREATE, b"\x0f", server.token())
    (entry,) = logs
    assert (entry["event"], entry["caller"], entry["code"], entry["reason"]) == (
        "call",
        "li (cashier)",
        "INVALID_ARGUMENT",
        "MALFORMED_REQUEST",
    )
    labels = {"method": "CreateOrder", "code": "INVALID_ARGUMENT"}
    assert server.counted.get_sample_value("countinghouse_calls_total", labels) == 1


@pytest.mark.parametrize("body", [b"\x0f", b"", pb.CreateOrderRequest().SerializeToString()])
async def test_request_without_token_is_never_parsed(server: Server, channel: aio.Channel, body: bytes) -> None:
    """UNAUTHENTICATED, whatever was sent."""
    with pytest.raises(CountinghouseError) as refusal:
        await send(channel, CREATE, body)
    assert refusal.value.reason == "TOKEN_REQUIRED"
    assert not server.parsed


async def test_request_of_a_role_that_may_not_call_is_never_parsed(server: Server, channel: aio.Channel) -> None:
    """PERMISSION_DENIED, whatever was sent."""
    with pytest.raises(CountinghouseError) as refusal:
        await send(channel, CREATE, b"\x0f", server.token(Principal("zhao", Role.AUDITOR)))
    assert refusal.value.reason == "ROLE_NOT_ALLOWED"
    assert not server.parsed


@pytest.mark.parametrize("extra", UNKNOWN_FIELDS.values(), ids=UNKNOWN_FIELDS)
async def test_request_with_unknown_fields_is_served(server: Server, channel: aio.Channel, extra: bytes) -> None:
    """A newer client may send fields that this server does not know."""
    body = pb.CreateOrderRequest(customer_id="mei").SerializeToString() + extra
    await send(channel, CREATE, body, server.token())
    assert len(server.calls) == 1


@pytest.mark.parametrize("method", ["Check", "Watch"])
async def test_malformed_health_request_is_refused_counted_and_logged(
    server: Server, channel: aio.Channel, method: str
) -> None:
    """Health has no token to look at, so all that it can say is INVALID_ARGUMENT."""
    path = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/{method}"
    kind: Any = channel.unary_unary if method == "Check" else channel.unary_stream
    with capture_logs() as logs:
        assert await kind(path)(b"\x0f", timeout=5.0).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert [(entry["method"], entry["reason"]) for entry in logs] == [(path, "MALFORMED_REQUEST")]
    assert public_refusals(server, method) == 1


def public_refusals(server: Server, method: str) -> float | None:
    """How many calls of this method were counted as malformed."""
    labels = {"method": method, "code": "INVALID_ARGUMENT"}
    return server.counted.get_sample_value("countinghouse_public_refusals_total", labels)


async def test_malformed_reflection_request_ends_its_stream(server: Server, channel: aio.Channel) -> None:
    """What was asked before is answered; the stream ends with INVALID_ARGUMENT."""
    call: Any = channel.stream_stream(f"/{reflection.SERVICE_NAME}/ServerReflectionInfo")(timeout=5.0)
    await call.write(reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString())
    assert b"OrderService" in await call.read()
    await call.write(b"\x0f")
    with pytest.raises(aio.AioRpcError):
        await call.read()
    assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert public_refusals(server, "ServerReflectionInfo") == 1


async def test_well_formed_health_watch_and_reflection_are_served(channel: aio.Channel) -> None:
    """Checking their requests takes nothing away."""
    watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
    call = watch(b"", timeout=5.0)
    assert health_pb2.HealthCheckResponse.FromString(await call.read()).status == health_pb2.HealthCheckResponse.SERVING
    call.cancel()
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    request = reflection_pb2.ServerReflectionRequest(file_by_filename="countinghouse/order/v1/order.proto")
    answers = [answer async for answer in stub.ServerReflectionInfo(iter([request]), timeout=5.0)]
    assert answers[0].HasField("file_descriptor_response")
