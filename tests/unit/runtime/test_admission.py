"""What callers may have of a server at once, on a real grpc.aio server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.kernel.errors import Aborted, CountinghouseError, InvalidArgument, ResourceExhausted, Unauthenticated
from services.kernel.principal import Principal, Role
from services.runtime.grpc import access, methods, public, receiving, status
from services.runtime.grpc.admission import CHANGE_COST, LIST_COST, READ_COST, STREAM_COST, cost_of
from tests.e2e.http2 import INITIAL_WINDOW_SIZE, pinging
from tests.unit.runtime.test_interceptors import BUDGET, LI, MESSAGE_S, MOST, Hold, Server

SERVICE = "countinghouse.order.v1.OrderService"
CREATE, GET, LIST = (f"/{SERVICE}/{name}" for name in ("CreateOrder", "GetOrder", "ListOrders"))
WANG = Principal("wang", Role.CASHIER)
PROTOS = (order_pb2, payment_pb2, ledger_pb2, acquirer_pb2, failpoint_pb2)
#: Longer than anything here takes; only so that a test which fails ends.
PATIENCE_S = 20.0


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    reflection.enable_server_reflection([SERVICE], served.server)
    yield served
    await served.server.stop(None)


@pytest.fixture
async def address(server: Server) -> str:
    port = server.server.add_insecure_port("127.0.0.1:0")
    await server.server.start()
    return f"127.0.0.1:{port}"


@pytest.fixture
async def channel(address: str) -> AsyncIterator[aio.Channel]:
    async with aio.insecure_channel(address) as channel:
        yield channel


class Caller:
    """One caller, who sends requests or only headers."""

    def __init__(self, channel: aio.Channel, token: str) -> None:
        self._channel = channel
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def send(self, method: str, body: bytes = b"") -> Any:
        """A call with its request."""
        stub: Any = self._channel.unary_unary(method)
        return stub(body, metadata=self._metadata, timeout=PATIENCE_S)

    def headers(self, method: str) -> Any:
        """A call whose request does not come."""
        stub: Any = self._channel.stream_unary(method)
        return stub(metadata=self._metadata, timeout=PATIENCE_S)


async def refusal(call: Any) -> CountinghouseError:
    """Why a call was refused."""
    with pytest.raises(aio.AioRpcError) as raised:
        await call
    return status.from_rpc_error(raised.value)


async def begun(server: Server, count: int) -> None:
    """Waits until the servicer was asked so often."""
    async with asyncio.timeout(PATIENCE_S):
        while len(server.calls) < count:  # noqa: ASYNC110  the servicer counts, and tells nobody
            await asyncio.sleep(0.005)


class TestSilentCalls:
    """Headers without a request."""

    async def test_silent_call_without_token_is_refused_when_its_headers_arrive(
        self, server: Server, channel: aio.Channel
    ) -> None:
        """More of them than a server executes calls; one that waited would be told REQUEST_NOT_RECEIVED."""
        nobody = Caller(channel, "")
        refusals = await asyncio.gather(*(refusal(nobody.headers(CREATE)) for _ in range(560)))
        assert {type(error) for error in refusals} == {Unauthenticated}
        await Caller(channel, server.token()).send(CREATE)

    @pytest.mark.parametrize("method", [CREATE, "/grpc.health.v1.Health/Check"])
    async def test_request_that_does_not_come_in_time_is_refused(
        self, server: Server, channel: aio.Channel, method: str
    ) -> None:
        """ABORTED: nothing was done, and the call can be made again."""
        error = await refusal(Caller(channel, server.token()).headers(method))
        assert (type(error), error.reason) == (Aborted, "REQUEST_NOT_RECEIVED")
        assert not server.calls

    async def test_call_that_ends_without_request_is_refused(self, server: Server, channel: aio.Channel) -> None:
        call = Caller(channel, server.token()).headers(CREATE)
        await call.done_writing()
        error = await refusal(call)
        assert (type(error), error.reason) == (InvalidArgument, "REQUEST_REQUIRED")

    async def test_silent_calls_of_many_callers_leave_the_server_free(
        self, server: Server, channel: aio.Channel
    ) -> None:
        """Nothing is executed yet, so nothing counts against the server's limit."""
        callers = [Caller(channel, server.token(Principal(f"c{number}", Role.CASHIER))) for number in range(MOST + 5)]
        silent = [caller.headers(CREATE) for caller in callers]
        for call in silent:
            await call.wait_for_connection()
        assert await Caller(channel, server.token()).send(CREATE)
        for call in silent:
            call.cancel()

    async def test_silent_call_beyond_the_limit_ends_the_oldest(
        self, server: Server, channel: aio.Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many strangers are silent, no more of them are waited for."""
        monkeypatch.setattr(receiving, "_MOST_WAITING", 3)
        await health(channel)  # connected, so that the calls arrive in their order
        nobody = Caller(channel, "")
        ended: list[int] = []

        async def silent(number: int) -> None:
            error = await refusal(nobody.headers("/grpc.health.v1.Health/Check"))
            assert error.reason == "REQUEST_NOT_RECEIVED"
            ended.append(number)

        tasks = [asyncio.create_task(silent(number)) for number in range(8)]
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*tasks)
        assert sorted(ended) == list(range(8))
        assert set(ended[:5]) == set(range(5))


class TestCallerBudget:
    """One caller's calls at once."""

    async def test_caller_beyond_budget_is_refused_before_its_call_is_executed(
        self, server: Server, channel: aio.Channel
    ) -> None:
        """RESOURCE_EXHAUSTED, CALLER_LIMIT, with the time to try again; another caller is served at once."""
        server.behaviour = hold = Hold()
        caller = Caller(channel, server.token(LI))
        within = BUDGET // LIST_COST
        calls = [asyncio.ensure_future(caller.send(LIST)) for _ in range(within + 200)]
        pending = set(calls)
        async with asyncio.timeout(PATIENCE_S):
            while len(pending) > within:
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        await begun(server, within)
        refused = [call for call in calls if call.done()]
        errors = [await refusal(call) for call in refused]
        assert {(type(error), error.reason) for error in errors} == {(ResourceExhausted, "CALLER_LIMIT")}
        assert all(error.retry_after_ms for error in errors)
        assert len(server.calls) == within
        server.behaviour = server.answer
        assert await Caller(channel, server.token(WANG)).send(GET)
        hold.go.set()
        await asyncio.gather(*pending)

    async def test_caller_beyond_budget_needs_no_request_to_be_refused(
        self, server: Server, channel: aio.Channel
    ) -> None:
        """When the headers arrive: nothing is received, let alone parsed."""
        server.behaviour = hold = Hold()
        caller = Caller(channel, server.token(LI))
        held = [asyncio.ensure_future(caller.send(LIST)) for _ in range(BUDGET // LIST_COST)]
        await begun(server, len(held))
        assert (await refusal(caller.headers(LIST))).reason == "CALLER_LIMIT"
        hold.go.set()
        await asyncio.gather(*held)
        await admitted(caller, LIST)

    async def test_call_that_was_hung_up_on_counts_until_its_execution_ends(
        self, server: Server, channel: aio.Channel
    ) -> None:
        server.behaviour = hold = Hold()
        caller = Caller(channel, server.token(LI))
        held = [caller.send(CREATE) for _ in range(BUDGET // CHANGE_COST)]
        await begun(server, len(held))
        for call in held:
            call.cancel()
        await hung_up_on(server, len(held))
        assert (await refusal(caller.send(CREATE))).reason == "CALLER_LIMIT"
        hold.go.set()
        async with asyncio.timeout(PATIENCE_S):
            await server.interceptor.drained()
        await admitted(caller, CREATE)

    async def test_same_name_under_another_role_is_another_caller(self, server: Server, channel: aio.Channel) -> None:
        server.behaviour = hold = Hold()
        held = [asyncio.ensure_future(Caller(channel, server.token(LI)).send(LIST)) for _ in range(BUDGET // LIST_COST)]
        await begun(server, len(held))
        server.behaviour = server.answer
        assert await Caller(channel, server.token(Principal("li", Role.CUSTOMER))).send(LIST)
        hold.go.set()
        await asyncio.gather(*held)

    async def test_service_has_a_larger_budget(
        self, server: Server, channel: aio.Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It carries the calls of many. (None of ours calls what costs so much; this one may.)"""
        monkeypatch.setitem(access.SERVICES_CALL, "payment-service", frozenset({LIST}))
        server.behaviour = hold = Hold()
        service = Caller(channel, server.token(Principal("payment-service", Role.SERVICE)))
        held = [asyncio.ensure_future(service.send(LIST)) for _ in range(BUDGET // LIST_COST + 1)]
        await begun(server, len(held))
        hold.go.set()
        await asyncio.gather(*held)


class TestServerLimit:
    """All callers' calls at once."""

    async def test_full_server_refuses_calls_and_answers_health_and_reflection(
        self, server: Server, channel: aio.Channel
    ) -> None:
        server.behaviour = hold = Hold()
        held = await executing(server, channel, GET, MOST)
        late = Caller(channel, server.token(WANG))
        error = await refusal(late.send(CREATE))
        assert (type(error), error.reason) == (ResourceExhausted, "SERVER_LIMIT")
        assert error.retry_after_ms
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        assert await reflected(channel)
        hold.go.set()
        await asyncio.gather(*held)
        server.behaviour = server.answer
        await admitted(late, CREATE)

    async def test_half_full_server_refuses_lists_and_serves_reads_and_changes(
        self, server: Server, channel: aio.Channel
    ) -> None:
        server.behaviour = hold = Hold()
        held = await executing(server, channel, GET, MOST // 2)
        server.behaviour = server.answer
        late = Caller(channel, server.token(WANG))
        assert (await refusal(late.send(LIST))).reason == "SERVER_LIMIT"
        assert await late.send(GET)
        assert await late.send(CREATE)
        hold.go.set()
        await asyncio.gather(*held)
        await admitted(late, LIST)


class TestPublicCalls:
    """Health and reflection, which need no token."""

    async def test_health_and_reflection_beyond_their_budgets_leave_checks_answered(self, channel: aio.Channel) -> None:
        """Of too many watches the oldest is ended and the newest served."""
        watches = [watched(channel) for _ in range(public._WATCHES)]
        for watch in watches:
            await watch.read()
        reflections = [talk(channel) for _ in range(public._REFLECTIONS)]
        for each in reflections:
            await each.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            await each.read()
        assert await talk(channel).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        watches.append(watched(channel))
        assert (await watches[-1].read()).status == health_pb2.HealthCheckResponse.SERVING
        async with asyncio.timeout(PATIENCE_S):
            ended, _ = await asyncio.wait(
                [asyncio.ensure_future(watch.code()) for watch in watches], return_when=asyncio.FIRST_COMPLETED
            )
        assert [each.result() for each in ended] == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert await health(channel) == health_pb2.HealthCheckResponse.SERVING
        for call in (*watches, *reflections):
            call.cancel()

    async def test_watches_of_one_host_take_no_place_of_another_hosts(
        self, address: str, channel: aio.Channel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each connection stands for a host here."""
        monkeypatch.setattr(public, "_host_of", lambda context: context.peer())
        watch = watched(channel)
        await watch.read()
        ended = asyncio.ensure_future(watch.code())
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with aio.insecure_channel(address, options=own) as stranger:
            pending = {asyncio.create_task(read_to_end(watched(stranger))) for _ in range(3 * public._WATCHES)}
            async with asyncio.timeout(PATIENCE_S):
                while len(pending) >= public._WATCHES and not ended.done():
                    done, _ = await asyncio.wait({*pending, ended}, return_when=asyncio.FIRST_COMPLETED)
                    pending -= done
            assert not ended.done()
            another = watched(channel)
            await another.read()
            assert not ended.done()
            for call in (watch, another, *pending):
                call.cancel()

    async def test_reflection_that_asks_nothing_is_ended(self, channel: aio.Channel) -> None:
        silent = talk(channel)
        async with asyncio.timeout(PATIENCE_S):
            assert await silent.code() is grpc.StatusCode.ABORTED

    async def test_watch_that_is_not_read_does_not_hold_up_the_health_of_others(
        self, server: Server, address: str, channel: aio.Channel
    ) -> None:
        """A client without a window takes no state; the state changes for others all the same."""
        async with pinging(address, {INITIAL_WINDOW_SIZE: 0}) as stranger:
            await stranger.settings
            stranger.request("/grpc.health.v1.Health/Watch", b"")
            await stranger.ping()
            await asyncio.sleep(MESSAGE_S / 2)  # it is being written to
            async with asyncio.timeout(PATIENCE_S):
                await server.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
            assert await health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING


class TestCosts:
    """The price of each method."""

    @pytest.mark.parametrize("file", PROTOS, ids=lambda file: file.DESCRIPTOR.name)
    def test_every_method_that_pages_costs_as_a_list_or_more(self, file: Any) -> None:
        """So does a batch of settles; every other a read's cost or a change's."""
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                if "page_size" in method.input_type.fields_by_name or method.name in (
                    *("TrialBalance", "VerifyJournal", "SettleBatch"),
                ):
                    assert cost_of(path) >= LIST_COST, path
                elif method.server_streaming:
                    assert cost_of(path) == STREAM_COST, path
                else:
                    assert cost_of(path) == (READ_COST if methods.is_read(path) else CHANGE_COST), path


async def executing(server: Server, channel: aio.Channel, method: str, count: int) -> list[Any]:
    """So many calls under execution, each of another caller."""
    before = len(server.calls)
    tokens = [server.token(Principal(f"c{number}", Role.CASHIER)) for number in range(count)]
    held = [asyncio.ensure_future(Caller(channel, token).send(method)) for token in tokens]
    await begun(server, before + count)
    return held


async def admitted(caller: Caller, method: str) -> None:
    """Calls until it is not refused: what was in use is given back a moment after the last answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await caller.send(method)
            except aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
            else:
                return


async def hung_up_on(server: Server, count: int) -> None:
    """Waits until the server knows of so many calls of CreateOrder that they were hung up on."""
    labels = {"method": "CreateOrder", "code": "CANCELLED"}
    async with asyncio.timeout(PATIENCE_S):
        while (server.counted.get_sample_value("countinghouse_calls_total", labels) or 0) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def watched(channel: aio.Channel) -> Any:
    """A watch of the server as a whole."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)


async def read_to_end(call: Any) -> None:
    """Reads a stream until it is refused."""
    with pytest.raises(aio.AioRpcError):
        async for _ in call:
            pass


def talk(channel: aio.Channel) -> Any:
    """A reflection without a question yet."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    return stub.ServerReflectionInfo(timeout=PATIENCE_S)


async def reflected(channel: aio.Channel) -> list[Any]:
    """What reflection lists."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    questions = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    return [answer async for answer in stub.ServerReflectionInfo(questions, timeout=PATIENCE_S)]


async def health(channel: aio.Channel) -> Any:
    """What Check says of the server as a whole."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)).status
