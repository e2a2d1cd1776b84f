"""Another program at a registered address: it answers fast, never does the work, and costs callers nothing."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc.aio import AioRpcError
from prometheus_client import CollectorRegistry

from coordination.channel import Broadcast, Failfast, Forking
from coordination.channel.channel import DiscoveredChannel, never_sent
from coordination.channel.load_balancing import PickerName, Standing, by_name
from coordination.channel.outcomes import DETAILS_KEY
from coordination.metrics import Metrics
from services.testkit.fair_clock import fair_s
from tests.integration.echo import INTERFACE, Context, Echo, Stub, channel_to, directory_of
from tests.integration.zookeeper import until

ELSEWHERE = "test.SomethingElse"
WORK_S = 0.005
"""How long an endpoint that does its work takes, so that one that fails at once looks quick beside it."""

GIVEN_TO_A_BAD_ONE = 12
"""Attempts of 220 that may go there: two until it is out, or a few until it is dear, and some after each return."""

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def work(_context: Context) -> None:
    """Take the time that work takes."""
    await asyncio.sleep(WORK_S)


async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close a connection as soon as it is open."""
    writer.close()


async def speak_http_1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as a web server does that does not know HTTP/2."""
    await reader.read(1)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """Serve TCP on a free port; yields it."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def attempts_at(counted: CollectorRegistry, port: int) -> int:
    """Return how many attempts an endpoint was given."""
    return sum(
        int(sample.value)
        for metric in counted.collect()
        for sample in metric.samples
        if sample.name == "coordination_attempts_total" and sample.labels["address"] == f"127.0.0.1:{port}"
    )


@pytest.mark.parametrize("name", PickerName)
async def test_another_program_fails_no_call(name: PickerName) -> None:
    """One of three addresses is another service's. 200 reads and 20 calls that must not be sent twice: each is answered
    by the two others, is carried out once, and hardly any was sent to the third, whatever the picker."""
    echoes, stranger, counted = [Echo(), Echo()], Echo(), CollectorRegistry()
    for echo in echoes:
        echo.before_answer = work
    async with (
        echoes[0].serving() as one,
        echoes[1].serving() as two,
        stranger.serving(interface=ELSEWHERE) as third,
        channel_to(
            directory_of(one, two, third), picker=by_name(name, random.Random(7)), metrics=Metrics(counted)
        ) as channel,
    ):
        stub = Stub(channel)
        for number in range(220):
            method = stub.charge if number % 11 == 0 else stub.look
            assert await method(b"hi", timeout=5.0) == b"hi"
        assert sum(echo.carried_out for echo in echoes) == 220
        assert attempts_at(counted, third) <= GIVEN_TO_A_BAD_ONE


@pytest.mark.parametrize("name", PickerName)
@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
    ids=lambda code: code.name,
)
async def test_endpoint_that_fails_fast_attracts_no_calls(name: PickerName, code: grpc.StatusCode) -> None:
    """One of three answers every call at once with an error without details: it gets a few, whatever the picker."""
    echoes = [Echo(), Echo()]
    bad = Echo()
    for echo in echoes:
        echo.before_answer = work

    async def fail(context: Context) -> None:
        await context.abort(code, "no")

    bad.before_answer = fail
    async with (
        echoes[0].serving() as one,
        echoes[1].serving() as two,
        bad.serving() as third,
        channel_to(directory_of(one, two, third), picker=by_name(name, random.Random(7))) as channel,
    ):
        stub = Stub(channel)
        failed = 0
        for _ in range(100):
            try:
                assert await stub.look(b"hi", timeout=5.0) == b"hi"
            except AioRpcError:
                failed += 1
        assert failed == bad.carried_out <= GIVEN_TO_A_BAD_ONE


@pytest.mark.parametrize("name", [PickerName.POWER_OF_TWO_CHOICES, PickerName.LEAST_ACTIVE])
async def test_endpoint_that_refuses_with_details_attracts_no_calls(name: PickerName) -> None:
    """It may serve others and is not taken out (one whose key is out of date, say); but its haste is no merit."""
    echoes, bad = [Echo(), Echo()], Echo()
    for echo in echoes:
        echo.before_answer = work

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no", ((DETAILS_KEY, b"who are you?"),))

    bad.before_answer = refuse
    async with (
        echoes[0].serving() as one,
        echoes[1].serving() as two,
        bad.serving() as third,
        channel_to(directory_of(one, two, third), picker=by_name(name, random.Random(7))) as channel,
    ):
        stub = Stub(channel)

        async def caller() -> None:
            for _ in range(25):
                try:
                    await stub.look(b"hi", timeout=5.0)
                except AioRpcError:
                    continue

        await asyncio.gather(*(caller() for _ in range(8)))
        assert bad.carried_out <= 40  # a fifth; an even share would be 67
        standings = {verdict.address: verdict.standing for verdict in channel.explain(f"/{INTERFACE}/Look", b"")}
        assert standings[f"127.0.0.1:{third}"] is not Standing.EJECTED


@pytest.mark.parametrize("serve", [hang_up, speak_http_1])
async def test_server_without_grpc_fails_no_call(serve: Serve) -> None:
    """One closes connections at once, one answers HTTP/1.1: no call is ever sent there."""
    echo = Echo()
    async with echo.serving() as one, listening(serve) as other, channel_to(directory_of(one, other)) as channel:
        for _ in range(50):
            assert await Stub(channel).charge(b"hi", timeout=5.0) == b"hi"
        assert echo.carried_out == 50


@pytest.mark.parametrize("wait_for_ready", [None, True])
async def test_only_other_programs_are_unavailable_at_once(wait_for_ready: bool | None) -> None:
    """However often it is called: UNAVAILABLE, nothing was done, the reason is said, and nobody waits."""
    first, second = Echo(), Echo()
    async with (
        first.serving(interface=ELSEWHERE) as one,
        second.serving(interface=ELSEWHERE) as two,
        channel_to(directory_of(one, two)) as channel,
    ):
        stub, began = Stub(channel), fair_s()
        for _ in range(5):
            with pytest.raises(AioRpcError) as caught:
                await stub.charge(b"hi", timeout=30.0, wait_for_ready=wait_for_ready)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert never_sent(caught.value)
            assert "answered UNIMPLEMENTED" in (caught.value.details() or "")
            assert all(f"127.0.0.1:{port}" in (caught.value.details() or "") for port in (one, two))
        assert fair_s() - began < 20


@pytest.mark.parametrize("serve", [hang_up, speak_http_1])
async def test_only_servers_without_grpc_are_unavailable(serve: Serve) -> None:
    """The call ends within its deadline, and says that nobody can be reached."""
    async with listening(serve) as port, channel_to(directory_of(port)) as channel:
        with pytest.raises(AioRpcError) as caught:
            await Stub(channel).charge(b"hi", timeout=10.0)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert never_sent(caught.value)


async def test_another_program_comes_back_once_it_serves_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is SERVING all the time, but not what was called, so it stays out; replaced by the right one it comes back."""
    monkeypatch.setattr("coordination.channel.outlier_detection.FIRST_OUT_S", 0.1)
    monkeypatch.setattr("coordination.channel.outlier_detection.LONGEST_OUT_S", 0.1)
    good, other = Echo(), Echo()
    other.knows = ELSEWHERE.encode()
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(good.serving())
        two = await stack.enter_async_context(other.serving(interface=ELSEWHERE))
        channel: DiscoveredChannel = await stack.enter_async_context(channel_to(directory_of(one, two), two, one))
        stub = Stub(channel)

        def out() -> bool:
            verdicts = channel.explain(f"/{INTERFACE}/Put", b"")
            return {v.address: v.standing for v in verdicts}[f"127.0.0.1:{two}"] is Standing.EJECTED

        while not out():
            assert await stub.put(b"hi", timeout=5.0) == b"hi"
        await until(lambda: other.health_checks >= 3)
        assert out()
        other.knows = INTERFACE.encode()
        await until(lambda: not out())


@pytest.mark.parametrize("policy", [Failfast(), Forking(2)], ids=lambda policy: type(policy).__name__)
async def test_every_policy_tries_another_endpoint(policy: Failfast | Forking) -> None:
    """What another program answers is no answer: under any policy that asks some, the right one answers a read."""
    good, others = Echo(), [Echo(), Echo()]
    async with (
        good.serving() as one,
        others[0].serving(interface=ELSEWHERE) as two,
        others[1].serving(interface=ELSEWHERE) as three,
        channel_to(directory_of(one, two, three), two, three, one, policy=policy) as channel,
    ):
        assert await Stub(channel).look(b"hi", timeout=5.0) == b"hi"


async def test_broadcast_to_another_program_fails() -> None:
    """All were to be told; another program cannot be."""
    good, other = Echo(), Echo()
    async with (
        good.serving() as one,
        other.serving(interface=ELSEWHERE) as two,
        channel_to(
            directory_of(one, two), policy=lambda _: Broadcast() if _.endswith("Put") else Failfast()
        ) as channel,
    ):
        with pytest.raises(AioRpcError) as caught:
            await Stub(channel).put(b"hi", timeout=5.0)
        assert f"127.0.0.1:{two}" in (caught.value.details() or "")
        assert good.carried_out <= 1


async def test_stream_to_another_program_is_a_failure() -> None:
    """Two streams that meet another program take it out."""
    good, other = Echo(), Echo()
    async with (
        good.serving() as one,
        other.serving(interface=ELSEWHERE) as two,
        channel_to(directory_of(one, two), two, one) as channel,
    ):
        for _ in range(2):
            with pytest.raises(AioRpcError):
                [response async for response in Stub(channel).stream(b"hi", timeout=5.0)]
        await until(lambda: Standing.EJECTED in {v.standing for v in channel.explain(f"/{INTERFACE}/Stream", b"")})
        assert [response async for response in Stub(channel).stream(b"hi", timeout=5.0)] == [b"hi0", b"hi1", b"hi2"]
