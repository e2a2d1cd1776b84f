"""A channel over a directory behaves as grpc.aio's own, and calls whoever lives."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from prometheus_client import CollectorRegistry

from coordination.channel.channel import never_sent
from coordination.channel.load_balancing import WeightedRandom
from coordination.discovery import Discovery
from coordination.metrics import Metrics
from coordination.session import Session
from services.testkit.fair_clock import fair_s
from tests.integration.echo import INTERFACE, Context, Echo, InTurn, Stub, channel_to, dead_port, directory_of
from tests.integration.provider import provider_url, started
from tests.integration.zookeeper import ZooKeeper, until

PATIENCE_S = 20.0  # for what takes an instant on an idle machine


async def test_call_passes_metadata_deadline_and_answer() -> None:
    """Metadata, deadline and answer go through; the call object says what grpc.aio's would."""
    echo = Echo()
    async with echo.serving() as port, channel_to(directory_of(port)) as channel:
        call = Stub(channel).charge(b"hi", timeout=20.0, metadata=(("x-caller", "me"),))
        assert await call == b"hi"
        assert (await call.initial_metadata())["x-first"] == "1"
        assert (await call.trailing_metadata())["x-last"] == "2"
        assert await call.code() is grpc.StatusCode.OK
        assert call.done()
        assert not call.cancelled()
        assert echo.seen["metadata"]["x-caller"] == "me"
        assert 1.0 < echo.seen["left_s"] <= 20.0 + 0.1  # a deadline of that size is sent in steps of 0.1 s, rounded up
        assert channel.get_state() is grpc.ChannelConnectivity.READY
        ended: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        call.add_done_callback(ended.set_result)
        assert await ended is call


async def test_errors_of_the_server_go_through() -> None:
    """Code, details and trailing metadata of a refusal reach the caller; it is not repeated."""
    echo = Echo()

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.ABORTED, "locked", (("x-why", "clerk"),))

    echo.before_answer = refuse
    async with echo.serving() as port, channel_to(directory_of(port)) as channel:
        call = Stub(channel).look(b"hi", timeout=10.0)
        with pytest.raises(AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert caught.value.trailing_metadata()["x-why"] == "clerk"
        assert await call.code() is grpc.StatusCode.ABORTED
        assert await call.details() == "locked"
        assert echo.carried_out == 1
        assert not never_sent(caught.value)


async def test_streams_of_three_kinds_work() -> None:
    """The three kinds of stream work over a picked endpoint."""

    async def requests() -> AsyncIterator[bytes]:
        for request in (b"a", b"b"):
            yield request

    async with Echo().serving() as port, channel_to(directory_of(dead_port(), port)) as channel:
        watching = Stub(channel).stream(b"n")
        assert [response async for response in watching] == [b"n0", b"n1", b"n2"]
        assert await watching.code() is grpc.StatusCode.OK
        assert await Stub(channel).collect(requests()) == b"a,b"
        chat = Stub(channel).chat()
        await chat.write(b"x")
        assert await chat.read() == b"X"
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        cancelled = Stub(channel).stream(b"n")
        assert cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(aiter(cancelled))


async def test_generated_stub_accepts_the_channel() -> None:
    """A stub that protoc made works on it as on grpc.aio's own channel, streams included."""
    health = HealthServicer()
    await health.set(INTERFACE, health_pb2.HealthCheckResponse.SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channel_to(directory_of(port)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=INTERFACE)
        assert (await stub.Check(request, timeout=10.0)).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(request)
        assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert watching.cancel()
    await server.stop(None)


async def test_dead_endpoint_of_two_fails_no_call() -> None:
    """With one of two endpoints refusing connections no call fails, not even one that must not be repeated."""
    echo = Echo()
    async with echo.serving() as port, channel_to(directory_of(dead_port(), port)) as channel:
        charge = Stub(channel).charge
        for number in range(20):
            assert await charge(str(number).encode(), timeout=5.0) == str(number).encode()
        assert echo.carried_out == 20


async def test_silent_endpoint_of_two_fails_no_call() -> None:
    """An endpoint that accepts connections and never speaks costs a slice of the deadline, not the call."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Echo().serving() as port, channel_to(directory_of(silent.getsockname()[1], port)) as channel:
            began = fair_s()
            for _ in range(4):
                assert await Stub(channel).charge(b"hi", timeout=5.0) == b"hi"
            assert fair_s() - began < 3.0


async def test_endpoint_that_is_late_to_connect_delays_no_further_call() -> None:
    """One call waits for its slice; those after it go to the other endpoint at once, while gRPC still connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        silent = server.getsockname()[1]
        picker = InTurn()
        async with Echo().serving() as port, channel_to(directory_of(silent, port), picker=picker) as channel:
            picker.ports = (silent, port)
            for _ in range(20):
                assert await Stub(channel).charge(b"hi", timeout=60.0) == b"hi"
            assert picker.picked[silent] == 1


async def test_call_without_providers_is_unavailable_in_time() -> None:
    """With no provider the call fails UNAVAILABLE, in words and within its deadline, and was never sent."""
    async with channel_to(directory_of()) as channel:
        call = Stub(channel).look(b"hi", timeout=0.3)
        began = fair_s()
        with pytest.raises(AioRpcError, match=f"no provider of {INTERFACE} is registered") as caught:
            await call
        assert fair_s() - began < 0.3
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert never_sent(caught.value)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert await call.details()
        assert list(await call.trailing_metadata()) == list(Metadata())
        with pytest.raises(AioRpcError):
            await anext(aiter(Stub(channel).stream(b"n", timeout=0.2)))


async def test_provider_that_comes_in_time_is_used() -> None:
    """A call made a moment before the first provider registers waits for it."""
    async with Echo().serving() as port:
        directory = directory_of()
        async with channel_to(directory) as channel:
            calling = asyncio.ensure_future(Stub(channel).charge(b"hi", timeout=10.0))
            await asyncio.sleep(0.05)
            directory.take(directory.reader.read([provider_url(port, INTERFACE).node_name()]))
            assert await calling == b"hi"


async def test_call_with_dead_providers_is_never_sent() -> None:
    """With every endpoint dead the call fails at once, never sent; with wait_for_ready it waits for one."""
    port = dead_port()
    async with channel_to(directory_of(port)) as channel:
        began = fair_s()
        with pytest.raises(AioRpcError, match="can be reached") as caught:
            await Stub(channel).charge(b"hi", timeout=10.0)
        assert fair_s() - began < 1.0
        assert never_sent(caught.value)
        with pytest.raises(AioRpcError):
            await Stub(channel).charge(b"hi", timeout=0.3, wait_for_ready=True)


async def test_cancelling_reaches_the_server() -> None:
    """Cancelling the awaiting task, or the call, ends the call at the server."""
    echo, entered, left = Echo(), asyncio.Event(), asyncio.Event()

    async def hold(_: Context) -> None:
        entered.set()
        try:
            await asyncio.sleep(30)
        finally:
            left.set()

    echo.before_answer = hold
    async with echo.serving() as port, channel_to(directory_of(port)) as channel:
        call = Stub(channel).look(b"hi", timeout=20.0)

        async def wait() -> None:
            await call

        waiting = asyncio.create_task(wait())
        await entered.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(left.wait(), 5)
        assert call.cancelled()


async def test_connection_to_a_removed_endpoint_is_closed_after_its_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that comes back in time keeps its connection; one that stays away has it closed."""
    monkeypatch.setattr("coordination.channel.endpoint_pool.REMOVED_ENDPOINT_TTL_S", 0.1)
    async with Echo().serving() as port:
        directory = directory_of(port)
        async with channel_to(directory) as channel:
            await Stub(channel).look(b"hi", timeout=10.0)
            (link,) = channel._pool.connections.values()
            directory.take(directory.reader.read([]))
            directory.take(directory.reader.read([provider_url(port, INTERFACE).node_name()]))
            await asyncio.sleep(0.2)
            assert list(channel._pool.connections.values()) == [link]
            directory.take(directory.reader.read([]))
            await until(lambda: not channel._pool.connections)


@pytest.mark.parametrize("stale", range(1, 7))
async def test_connection_made_between_two_reads_of_its_state_is_noticed(
    stale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC connects in threads of its own: the state may change between any two lines of channel_ready()."""
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        connection = channel._pool.connection_to(channel.directory.endpoints[0]).channel
        await connection.channel_ready()
        read = connection.get_state
        reads = iter([grpc.ChannelConnectivity.CONNECTING] * stale)  # as before the connection was made
        monkeypatch.setattr(connection, "get_state", lambda try_to_connect=False: next(reads, read(try_to_connect)))
        async with asyncio.timeout(PATIENCE_S):
            await channel.channel_ready()


async def test_channel_is_ready_for_an_endpoint_that_registers_later() -> None:
    """channel_ready() began when there was none, or only one that cannot be reached."""
    async with Echo().serving() as port:
        for directory in (directory_of(), directory_of(dead_port())):
            async with channel_to(directory) as channel:
                ready = asyncio.ensure_future(channel.channel_ready())
                await until(lambda: bool(channel._pool.watchers))
                directory.take(directory.reader.read([provider_url(port, INTERFACE).node_name()]))
                async with asyncio.timeout(PATIENCE_S):
                    await ready
                assert channel.get_state() is grpc.ChannelConnectivity.READY


async def test_connection_that_a_call_opened_changes_the_state() -> None:
    """wait_for_state_change() began when the channel had no connection."""
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        changed = asyncio.ensure_future(channel.wait_for_state_change(grpc.ChannelConnectivity.IDLE))
        await until(lambda: bool(channel._pool.watchers))
        await Stub(channel).look(b"hi", timeout=20.0)
        async with asyncio.timeout(PATIENCE_S):
            await changed


async def test_channel_of_gone_endpoints_is_not_ready() -> None:
    """The connection to an endpoint that left the directory is kept for a while, and gets no call."""
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        await channel.channel_ready()
        channel.directory.take(())
        await until(lambda: not channel.directory.endpoints)
        assert channel.get_state() is grpc.ChannelConnectivity.IDLE


async def test_closing_ends_every_wait_for_a_state() -> None:
    """As on grpc.aio's own channel: closed is a change, and a closed channel is never ready."""
    for directory in (directory_of(), directory_of(dead_port())):
        async with channel_to(directory) as channel, grpc.aio.insecure_channel(f"127.0.0.1:{dead_port()}") as peer:
            for one in (channel, peer):
                ready = asyncio.ensure_future(one.channel_ready())
                changed = asyncio.ensure_future(one.wait_for_state_change(one.get_state()))
                await asyncio.sleep(0)
                await one.close()
                async with asyncio.timeout(PATIENCE_S):
                    with pytest.raises(grpc.aio.UsageError):
                        await ready
                    await changed
                    with pytest.raises(grpc.aio.UsageError):
                        await one.channel_ready()


async def test_closed_channel_takes_no_call() -> None:
    """After close() calls fail at once; close() can be repeated."""
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        await channel.channel_ready()
        await channel.close()
        await channel.close()
        assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
        with pytest.raises(AioRpcError):
            await Stub(channel).look(b"hi", timeout=1.0)


async def test_killed_provider_fails_no_call(zookeeper: ZooKeeper, session: Session) -> None:
    """kill -9: the node lingers until its session expires, and yet no idempotent call begun after the kill fails,
    nor any other once the broken connection has been noticed."""
    interface = "test.killed.Echo"
    discovery = Discovery(session)
    with started(zookeeper.hosts, interface) as killed, started(zookeeper.hosts, interface):
        directory = await discovery.subscribe(interface)
        assert await directory._wait_until(lambda: len(directory.endpoints) == 2, 20)
        async with channel_to(directory, picker=WeightedRandom(random.Random(1))) as channel:
            stub = Stub(channel, interface)
            for _ in range(20):
                await stub.charge(b"hi", timeout=10.0)
            killed.kill()
            for _ in range(100):
                assert await stub.look(b"hi", timeout=10.0) == b"hi"
            for _ in range(100):
                assert await stub.charge(b"hi", timeout=10.0) == b"hi"
            assert len(directory.endpoints) == 2
    await discovery.close()


async def test_calls_and_attempts_are_counted() -> None:
    """Each call once, by its end; each attempt once, by its end and endpoint; what was sent again, by why."""
    counted = CollectorRegistry()
    echo = Echo()

    async def refuse(context: Context) -> None:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no")

    async with echo.serving() as port:
        dead = dead_port()
        async with channel_to(directory_of(dead, port), dead, port, metrics=Metrics(counted)) as channel:
            assert await Stub(channel).charge(b"hi", timeout=10.0) == b"hi"
            echo.before_answer = refuse
            with pytest.raises(AioRpcError):
                await Stub(channel).charge(b"hi", timeout=10.0)

            def value(name: str, **labels: str) -> float | None:
                return counted.get_sample_value(f"coordination_{name}", {"interface": INTERFACE, **labels})

            assert value("call_seconds_count", code="OK") == 1
            assert value("call_seconds_count", code="NOT_FOUND") == 1
            assert value("attempts_total", address=f"127.0.0.1:{port}", code="OK") == 1
            assert value("attempts_total", address=f"127.0.0.1:{port}", code="NOT_FOUND") == 1
            assert value("attempts_total", address=f"127.0.0.1:{dead}", code="NEVER_SENT") == 1
            assert value("retries_total", why="never_sent") == 1


async def test_request_that_cannot_be_sent_leaves_nothing_behind() -> None:
    """A request that gRPC cannot take is the caller's mistake: it is told so, and no endpoint is busy with it."""
    async with Echo().serving() as port, channel_to(directory_of(port)) as channel:
        for _ in range(3):
            with pytest.raises(TypeError):
                await Stub(channel).look("not bytes", timeout=10.0)
        (link,) = channel._pool.connections.values()
        assert link.load.in_flight == 0
