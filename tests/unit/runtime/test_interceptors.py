"""The door of every server, on a real grpc.aio server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.order.v1 import order_pb2_grpc
from services.kernel.clock import SystemClock
from services.kernel.errors import (
    Aborted,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    StaleFence,
    Unauthenticated,
)
from services.kernel.idempotency import Answer, StoredResponse
from services.kernel.principal import Principal, Role
from services.runtime.grpc import status
from services.runtime.grpc.admission import Admission
from services.runtime.grpc.context import Call, current_call
from services.runtime.grpc.delegations import DelegationVerifier
from services.runtime.grpc.failpoints import FailpointSet
from services.runtime.grpc.interceptors import CallInterceptor, reply
from services.runtime.grpc.tokens import HOUSE, TokenSigner, audience_of, service_principal
from services.runtime.metrics import CallMetrics
from tests.tokens import believing, verifier_of

LI = Principal("li", Role.CASHIER)
DEFAULT_S, MAX_S = 10.0, 60.0
#: Longer than a request takes to arrive on a busy machine.
MESSAGE_S = 2.0
BUDGET, MOST = 64, 40
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class Server:
    """OrderService behind the interceptor; a test sets what CreateOrder and GetOrder do."""

    def __init__(self) -> None:
        clock = SystemClock()
        self.signer = TokenSigner(Ed25519PrivateKey.generate(), clock)
        self.counted = CollectorRegistry()
        self.interceptor = CallInterceptor(
            verifier_of(self.signer, clock),
            clock,
            default_deadline_s=DEFAULT_S,
            max_deadline_s=MAX_S,
            message_timeout_s=MESSAGE_S,
            admission=Admission(caller_budget=BUDGET, service_budget=4 * BUDGET, max_executions=MOST),
            metrics=CallMetrics(self.counted),
            delegations=DelegationVerifier(believing(self.signer), audience_of("order"), clock),
        )
        self.served: list[str] = []
        self.parsed: list[bytes] = []
        self.calls: list[Call] = []
        self.behaviour: Behaviour = self.answer
        self.server = aio.server(interceptors=[self.interceptor])
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                self.handle,
                request_deserializer=self.parser(request),
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, request in (
                ("CreateOrder", pb.CreateOrderRequest),
                ("GetOrder", pb.GetOrderRequest),
                ("ListOrders", pb.ListOrdersRequest),
            )
        }
        service = grpc.method_handlers_generic_handler("countinghouse.order.v1.OrderService", handlers)
        self.server.add_generic_rpc_handlers((service,))
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)

    def parser(self, request: Any) -> Callable[[bytes], Any]:
        """Parses a request, and keeps what was parsed."""

        def parse(body: bytes) -> Any:
            self.parsed.append(body)
            return request.FromString(body)

        return parse

    async def handle(self, request: Any, context: Any) -> Any:
        self.calls.append(current_call())
        return await self.behaviour(request, context)

    async def answer(self, _request: Any, _context: Any) -> Any:
        return pb.CreateOrderResponse(order=pb.Order(order_id="o1"))

    def token(self, principal: Principal = LI, ttl_s: int = 60) -> str:
        machine = principal.role in (Role.SERVICE, Role.ACQUIRER)
        return self.signer.sign(principal, ttl_s, audience_of("order") if machine else HOUSE)


class Client:
    """A caller who keeps what came back."""

    def __init__(self, channel: aio.Channel, server: Server) -> None:
        self._stub = order_pb2_grpc.OrderServiceStub(channel)
        self._server = server
        self.trailers: dict[str, Any] = {}

    async def create(self, *, token: str | None = None, timeout: float | None = 5.0) -> pb.CreateOrderResponse:
        """Calls CreateOrder, which changes something.

        Raises:
            CountinghouseError: What the server's status stands for.
        """
        call = self.begin(token=token, timeout=timeout)
        try:
            response: pb.CreateOrderResponse = await call
        except aio.AioRpcError as error:
            self.trailers = dict(error.trailing_metadata() or ())
            raise status.from_rpc_error(error) from error
        self.trailers = dict(await call.trailing_metadata())
        return response

    def begin(self, *, token: str | None = None, timeout: float | None = 5.0) -> Any:
        """Sends CreateOrder; to be awaited or cancelled."""
        return self._stub.CreateOrder(pb.CreateOrderRequest(), timeout=timeout, metadata=self._metadata(token))

    def begin_reading(self) -> Any:
        """Sends GetOrder, which changes nothing."""
        return self._stub.GetOrder(pb.GetOrderRequest(), timeout=5.0, metadata=self._metadata(None))

    def _metadata(self, token: str | None) -> tuple[tuple[str, str], ...]:
        token = self._server.token() if token is None else token
        return (("authorization", f"Bearer {token}"),) if token else ()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    yield served
    await served.server.stop(None)


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[aio.Channel]:
    port = server.server.add_insecure_port("127.0.0.1:0")
    await server.server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


@pytest.fixture
def client(channel: aio.Channel, server: Server) -> Client:
    return Client(channel, server)


async def test_call_knows_its_caller(server: Server, client: Client) -> None:
    """The servicer finds method and principal of the call it serves."""
    assert (await client.create()).order.order_id == "o1"
    (call,) = server.calls
    assert (call.method, call.principal) == ("/countinghouse.order.v1.OrderService/CreateOrder", LI)
    assert "x-replayed" not in client.trailers


@pytest.mark.parametrize(
    ("timeout", "expected_s"), [(2.0, 2.0), (None, DEFAULT_S), (1_000.0, MAX_S)], ids=["theirs", "default", "longest"]
)
async def test_deadline_is_the_callers_within_bounds(
    server: Server, client: Client, timeout: float | None, expected_s: float
) -> None:
    """A little earlier than theirs, so that the answer still reaches them."""
    left: list[float] = []

    async def look(request: Any, context: Any) -> Any:
        left.append(current_call().deadline.remaining_s())
        return await server.answer(request, context)

    server.behaviour = look
    await client.create(timeout=timeout)
    assert expected_s - 1.0 < left[0] < expected_s


@pytest.mark.parametrize(
    ("token", "reason"), [("", "TOKEN_REQUIRED"), ("rubbish", "TOKEN_INVALID")], ids=["none", "rubbish"]
)
async def test_call_without_a_valid_token_is_refused(server: Server, client: Client, token: str, reason: str) -> None:
    """UNAUTHENTICATED, before the servicer is asked."""
    with pytest.raises(Unauthenticated) as refusal:
        await client.create(token=token)
    assert refusal.value.reason == reason
    assert not server.calls


async def test_expired_token_is_refused(server: Server, client: Client) -> None:
    """UNAUTHENTICATED, with a reason of its own."""
    with pytest.raises(Unauthenticated) as refusal:
        await client.create(token=server.token(ttl_s=-1))
    assert refusal.value.reason == "TOKEN_EXPIRED"


async def test_another_scheme_is_no_token(channel: aio.Channel, server: Server) -> None:
    """Only Bearer, in any case of letters."""
    stub = order_pb2_grpc.OrderServiceStub(channel)
    for scheme, good in (("Basic", False), ("bEARER", True)):
        call = stub.CreateOrder(
            pb.CreateOrderRequest(), timeout=5.0, metadata=(("authorization", f"{scheme} {server.token()}"),)
        )
        code = await call.code()
        assert (code is grpc.StatusCode.OK) is good


async def test_role_that_may_not_is_refused(server: Server, client: Client) -> None:
    """PERMISSION_DENIED, before the servicer is asked."""
    with pytest.raises(PermissionDenied) as refusal:
        await client.create(token=server.token(Principal("zhao", Role.AUDITOR)))
    assert refusal.value.reason == "ROLE_NOT_ALLOWED"
    assert not server.calls


async def test_unexpected_error_is_logged_and_hidden_from_the_caller(server: Server, client: Client) -> None:
    """An opaque INTERNAL; the log has the exception and the caller's name."""

    async def burst(_request: Any, _context: Any) -> Any:
        raise ValueError("secret")

    server.behaviour = burst
    with capture_logs() as logs, pytest.raises(aio.AioRpcError) as answer:
        await client.begin()
    assert answer.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(answer.value)
    assert "x-reason" not in dict(answer.value.trailing_metadata() or ())
    (entry,) = [entry for entry in logs if entry["event"] == "unexpected"]
    assert (entry["caller"], entry["log_level"]) == ("li (cashier)", "error")


async def test_typed_error_arrives_with_its_details(server: Server, client: Client) -> None:
    """ErrorInfo, BadRequest and RetryInfo, in the trailer that gRPC has for them."""
    sent: list[CountinghouseError] = [
        InvalidArgument.of_field("FIELD_REQUIRED", "order_id", "order_id is required"),
        Aborted("ORDER_LOCKED", "wait", metadata={"holder": "wang", "guard": "lock"}, retry_after_ms=120),
    ]
    for error in sent:

        async def refuse(_request: Any, _context: Any, error: CountinghouseError = error) -> Any:
            raise error

        server.behaviour = refuse
        with pytest.raises(type(error)) as refusal:
            await client.create()
        arrived = refusal.value
        assert (arrived.reason, arrived.message, arrived.metadata) == (error.reason, error.message, error.metadata)
        assert (arrived.retry_after_ms, arrived.fields) == (error.retry_after_ms, error.fields)
        assert client.trailers["x-reason"] == error.reason, "Java Dubbo keeps no details"


@pytest.mark.parametrize("other", ["theirs", "same", "Basic bGk6"])
async def test_call_with_two_authorizations_is_refused_whatever_they_are(
    server: Server, channel: aio.Channel, other: str
) -> None:
    """Neither counts, in whichever order: a proxy before us might have looked at the other one."""
    token = f"Bearer {server.token()}"
    wang = f"Bearer {server.token(Principal('wang', Role.ACCOUNTANT))}"
    second = {"theirs": wang, "same": token}.get(other, other)
    stub: Any = order_pb2_grpc.OrderServiceStub(channel)
    for both in ((token, second), (second, token)):
        metadata = tuple(("authorization", value) for value in both)
        with pytest.raises(aio.AioRpcError) as refusal:
            await stub.CreateOrder(pb.CreateOrderRequest(), timeout=5.0, metadata=metadata)
        error = status.from_rpc_error(refusal.value)
        assert (type(error), error.reason) == (Unauthenticated, "TOKEN_AMBIGUOUS")
    assert not server.calls


async def test_each_call_is_logged_once(server: Server, client: Client) -> None:
    """Method, caller, code, reason and duration; also of those who were not let in."""
    with capture_logs() as logs:
        await client.create()
        with pytest.raises(Unauthenticated):
            await client.create(token="")
    entries = [entry for entry in logs if entry["event"] == "call"]
    assert [(entry["method"], entry["caller"], entry["code"], entry["reason"]) for entry in entries] == [
        ("CreateOrder", "li (cashier)", "OK", ""),
        ("CreateOrder", "", "UNAUTHENTICATED", "TOKEN_REQUIRED"),
    ]


async def test_refusal_is_logged_and_counted_before_its_caller_hears_of_it(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was refused finds the call in the log and in the metrics."""
    seen: list[tuple[list[str], float | None]] = []
    abort = status.abort

    async def observed(*arguments: Any, **named: Any) -> NoReturn:
        labels = {"method": "CreateOrder", "code": "UNAUTHENTICATED"}
        counted = server.counted.get_sample_value("countinghouse_calls_total", labels)
        seen.append(([entry["event"] for entry in logs], counted))
        await abort(*arguments, **named)

    monkeypatch.setattr(status, "abort", observed)
    with capture_logs() as logs, pytest.raises(Unauthenticated):
        await client.create(token="")
    assert seen == [(["call"], 1)]


async def test_replays_and_refusals_of_a_fence_are_counted(server: Server, client: Client) -> None:
    """Of the method each. An answer that is neither is not."""

    async def late(_request: Any, _context: Any) -> Any:
        raise StaleFence("o1", 1, 2)

    async def again(_request: Any, _context: Any) -> Any:
        current_call().replayed = True
        return pb.CreateOrderResponse()

    for behaviour in (server.answer, late, again):
        server.behaviour = behaviour
        with suppress(Aborted):
            await client.create()
    for name in ("replays", "fence_refusals"):
        counted = server.counted.get_sample_value(f"countinghouse_{name}_total", {"method": "CreateOrder"})
        assert counted == 1, name


async def test_refused_caller_is_counted_by_reason(server: Server, client: Client, channel: aio.Channel) -> None:
    """One whom the interceptor lets in and an operation refuses is not: that is no matter of identity."""
    stub: Any = order_pb2_grpc.OrderServiceStub(channel)
    li = server.token()
    stranger = TokenSigner(Ed25519PrivateKey.generate(), SystemClock()).sign(LI, 60, HOUSE)
    auditor = server.token(Principal("eve", Role.AUDITOR))
    service = server.token(Principal("payment-service", Role.SERVICE))
    expired = server.signer.sign(LI, -1, HOUSE)
    for token in ("", "rubbish", stranger, auditor, service, expired):
        with pytest.raises(CountinghouseError):
            await client.create(token=token)
    with pytest.raises(aio.AioRpcError):
        await stub.CreateOrder(pb.CreateOrderRequest(), metadata=(("authorization", f"Bearer {li}"),) * 2)

    async def refuse(_request: Any, _context: Any) -> NoReturn:
        raise PermissionDenied("NOT_YOUR_WALLET", "not yours")

    server.behaviour = refuse
    with pytest.raises(PermissionDenied):
        await client.create()
    counted = {
        sample.labels["reason"]: sample.value
        for family in server.counted.collect()
        for sample in family.samples
        if sample.name == "countinghouse_identity_refusals_total" and sample.value
    }
    assert counted == {
        "TOKEN_REQUIRED": 1,
        "TOKEN_INVALID": 2,
        "TOKEN_EXPIRED": 1,
        "TOKEN_AMBIGUOUS": 1,
        "ROLE_NOT_ALLOWED": 1,
        "SERVICE_NOT_ALLOWED": 1,
    }


async def test_persons_who_are_named_without_a_delegation_are_counted(server: Server, client: Client) -> None:
    """Named by a service that may act for them, or by themselves, they are not."""
    payment, wang = service_principal("payment"), Principal("wang", Role.ACCOUNTANT)
    known = verifier_of(server.signer, SystemClock()).verify(server.token())
    heard: list[Principal] = []

    async def name(_request: Any, _context: Any) -> pb.CreateOrderResponse:
        call = current_call()
        for named, caller in ((known, payment), (LI, LI), (wang, payment), (replace(wang, delegation="no"), payment)):
            heard.append(replace(call, principal=caller).on_behalf_of(named))
        with pytest.raises(PermissionDenied, match="with the delegation of li"):
            replace(call, principal=payment).on_behalf_of(replace(wang, delegation=known.delegation))
        return pb.CreateOrderResponse()

    server.behaviour = name
    await client.create()
    assert heard == [LI, LI, payment, payment]
    assert server.counted.get_sample_value("countinghouse_undelegated_requests_total") == 3


async def test_each_call_is_counted_once_under_its_code(server: Server, client: Client, channel: aio.Channel) -> None:
    """Answered, refused, not let in, burst: the codes add up to the durations. Health is none of our calls."""

    async def refuse(_request: Any, _context: Any) -> Any:
        raise Aborted("ORDER_LOCKED", "wait")

    async def burst(_request: Any, _context: Any) -> Any:
        raise ValueError("secret")

    async def stored(_request: Any, _context: Any) -> Any:
        body = status.to_status(FailedPrecondition("ILLEGAL_STATE", "no")).SerializeToString()
        return reply(current_call(), Answer(StoredResponse(False, body), replayed=True))

    await client.create()
    await client.create()
    for behaviour in (refuse, burst, stored):
        server.behaviour = behaviour
        with pytest.raises(CountinghouseError):
            await client.create()
    with pytest.raises(Unauthenticated):
        await client.create(token="")
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]
    codes = {
        (sample.labels["method"], sample.labels["code"]): sample.value
        for family in server.counted.collect()
        for sample in family.samples
        if sample.name == "countinghouse_calls_total"
    }
    assert codes == {
        ("CreateOrder", code): count
        for code, count in {
            "OK": 2,
            "ABORTED": 1,
            "INTERNAL": 1,
            "FAILED_PRECONDITION": 1,
            "UNAUTHENTICATED": 1,
        }.items()
    }
    assert server.counted.get_sample_value("countinghouse_call_seconds_count", {"method": "CreateOrder"}) == 6


async def test_call_is_in_flight_until_it_has_ended(server: Server, client: Client) -> None:
    """Also one that is refused. By this number instances are added."""
    seen: list[float | None] = []

    async def refuse(_request: Any, _context: Any) -> Any:
        seen.append(server.counted.get_sample_value("countinghouse_calls_in_flight"))
        raise Aborted("ORDER_LOCKED", "wait")

    server.behaviour = refuse
    with pytest.raises(Aborted):
        await client.create()
    assert seen == [1]
    async with asyncio.timeout(10):  # the answer may arrive before the server's task has ended
        while server.counted.get_sample_value("countinghouse_calls_in_flight") != 0:  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("replayed", [False, True])
async def test_stored_response_goes_out_as_it_is(server: Server, client: Client, replayed: bool) -> None:
    """Byte for byte, unknown fields included; only the repeat is marked."""
    body = pb.CreateOrderResponse(order=pb.Order(order_id="o1")).SerializeToString() + b"\xfa\x3f\x01x"

    async def stored(_request: Any, _context: Any) -> Any:
        return reply(current_call(), Answer(StoredResponse(True, body), replayed))

    server.behaviour = stored
    response = await client.create()
    assert response.SerializeToString() == body
    assert client.trailers.get("x-replayed") == ("true" if replayed else None)


@pytest.mark.parametrize("replayed", [False, True])
async def test_stored_refusal_is_repeated(server: Server, client: Client, replayed: bool) -> None:
    """The same status with the same details; only the repeat is marked."""
    error = FailedPrecondition("TICKET_EXPIRED", "fetch a new one", metadata={"key": "t1"})
    body = status.to_status(error).SerializeToString()

    async def stored(_request: Any, _context: Any) -> Any:
        return reply(current_call(), Answer(StoredResponse(False, body), replayed))

    server.behaviour = stored
    with pytest.raises(FailedPrecondition) as refusal:
        await client.create()
    assert (refusal.value.reason, refusal.value.metadata) == ("TICKET_EXPIRED", {"key": "t1"})
    assert client.trailers["x-reason"] == "TICKET_EXPIRED"
    assert (
        status_pb2.Status.FromString(client.trailers[status.DETAILS_KEY])
        .details[0]
        .Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    )
    assert client.trailers.get("x-replayed") == ("true" if replayed else None)


class Hold:
    """A behaviour that waits until it is let go, and tells how it ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go, self.ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.how = ""
        self._error = error

    async def __call__(self, _request: Any, _context: Any) -> Any:
        self.begun.set()
        try:
            await self.go.wait()
            self.how = "finished"
            if self._error is not None:
                raise self._error
            return pb.CreateOrderResponse()
        except asyncio.CancelledError:
            self.how = "cancelled"
            raise
        finally:
            self.ended.set()


async def test_change_is_finished_although_its_caller_hung_up(server: Server, client: Client) -> None:
    """Their patience must not decide in which state a payment is left."""
    server.behaviour = hold = Hold()
    call = client.begin()
    await hold.begun.wait()
    call.cancel()
    drained = asyncio.create_task(server.interceptor.drained())
    with pytest.raises(asyncio.CancelledError):
        await call
    assert not hold.ended.is_set()
    assert not drained.done()
    hold.go.set()
    async with asyncio.timeout(5):
        await hold.ended.wait()
        await drained
    assert hold.how == "finished"


async def test_change_is_finished_although_its_deadline_passed(server: Server, client: Client) -> None:
    """The same for a deadline of the caller's."""
    server.behaviour = hold = Hold()
    with pytest.raises(aio.AioRpcError) as answer:
        await client.begin(timeout=1.5)
    assert answer.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    hold.go.set()
    async with asyncio.timeout(5):
        await server.interceptor.drained()
    assert hold.how == "finished"


@pytest.mark.parametrize(
    ("error", "logged"), [(ValueError("broken"), True), (FailedPrecondition("ILLEGAL_STATE", "no"), False)]
)
async def test_unexpected_error_after_a_hang_up_is_logged(
    server: Server, client: Client, error: Exception, logged: bool
) -> None:
    """A fault after the caller hung up must not be lost."""
    server.behaviour = hold = Hold(error)
    hung_up = asyncio.Event()

    def note(_logger: Any, _name: str, entry: Any) -> Any:
        if entry["event"] == "call":
            hung_up.set()
        return entry

    with capture_logs(processors=[note]) as logs:
        call = client.begin()
        await hold.begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(5):
            await hung_up.wait()  # the server hears of it in its own time
        hold.go.set()
        async with asyncio.timeout(5):
            await server.interceptor.drained()
            await asyncio.sleep(0)
    assert [entry["exc_info"] for entry in logs if entry["event"] == "unexpected"] == ([error] if logged else [])


async def test_read_is_given_up_when_its_caller_hangs_up(server: Server, client: Client) -> None:
    """Nothing is left half done by that."""
    server.behaviour = hold = Hold()
    call = client.begin_reading()
    await hold.begun.wait()
    call.cancel()
    async with asyncio.timeout(5):
        await hold.ended.wait()
        await server.interceptor.drained()
    assert hold.how == "cancelled"


async def test_dropped_reply_is_a_deadline_to_the_caller(server: Server, client: Client) -> None:
    """The change is made, and the caller never hears of it; the next call is answered."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("recorded", failpoint_pb2.FAILPOINT_ACTION_DROP_REPLY)
    done: list[str] = []

    async def settle(request: Any, context: Any) -> Any:
        await failpoints.hit("recorded", current_call(), "o1")
        done.append("done")
        return await server.answer(request, context)

    server.behaviour = settle
    with pytest.raises(aio.AioRpcError) as answer:
        await client.begin(timeout=1.5)
    assert answer.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert done == ["done"]
    assert (await client.create()).order.order_id == "o1"


async def test_dropped_refusal_is_a_deadline_too(server: Server, client: Client) -> None:
    """Whatever the answer was."""

    async def refuse(_request: Any, _context: Any) -> Any:
        current_call().reply_dropped = True
        raise FailedPrecondition("ILLEGAL_STATE", "no")

    server.behaviour = refuse
    with pytest.raises(aio.AioRpcError) as answer:
        await client.begin(timeout=1.5)
    assert answer.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_calls_at_once_do_not_see_each_other(server: Server, client: Client) -> None:
    """Each task serves its own call."""
    everyone = asyncio.Barrier(5)

    async def meet(_request: Any, _context: Any) -> Any:
        await everyone.wait()
        return pb.CreateOrderResponse(order=pb.Order(order_id=current_call().principal.name))

    server.behaviour = meet
    names = [f"c{number}" for number in range(5)]
    answers = await asyncio.gather(
        *(client.begin(token=server.token(Principal(name, Role.CUSTOMER))) for name in names)
    )
    assert [answer.order.order_id for answer in answers] == names


async def test_health_needs_no_token(channel: aio.Channel, server: Server) -> None:
    """What is not ours passes untouched, without a token."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert not server.calls
