"""Calls go to whoever lives, are repeated only when that is safe, and fail in time and in plain words."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from coordination.balancing import RoundRobin, WeightedRandom
from coordination.channel import DiscoveredChannel, never_sent
from coordination.discovery import Directory, Discovery
from coordination.session import Session
from tests.integration.provider import provider_url
from tests.integration.zookeeper import ZooKeeper, until

INTERFACE = "test.Echo"
SAFE = f"/{INTERFACE}/Look"
Context = grpc.aio.ServicerContext[bytes, bytes]


class Echo:
    """A server that counts what it carries out, and may be told to do something before it answers."""

    def __init__(self) -> None:
        self.carried_out = 0
        self.before_answer: Callable[[Context], Awaitable[None]] | None = None
        self.seen: dict[str, Any] = {}

    async def unary(self, request: bytes, context: Context) -> bytes:
        self.carried_out += 1
        self.seen = {"metadata": dict(context.invocation_metadata() or ()), "left_s": context.time_remaining()}
        if self.before_answer is not None:
            await self.before_answer(context)
        await context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"),))
        return request

    async def stream(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(3):
            yield request + str(number).encode()

    async def collect(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b",".join([request async for request in requests])

    async def chat(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serve on a free port; yields it."""
        server = grpc.aio.server()
        methods: dict[str, Any] = {
            "Look": grpc.unary_unary_rpc_method_handler(self.unary),
            "Charge": grpc.unary_unary_rpc_method_handler(self.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(INTERFACE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield port
        finally:
            await server.stop(None)


class Cable:
    """A TCP relay in front of a server that can be cut: both ends are closed, and what was on its way is lost."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def laid(self) -> AsyncIterator[int]:
        """Relay from a free port; yields it."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.cut()
            server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, far_writer]
        await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()


class Stub:
    """What protoc would make of the test service, with bytes for messages."""

    def __init__(self, channel: grpc.aio.Channel, interface: str = INTERFACE) -> None:
        self.look: Any = channel.unary_unary(f"/{interface}/Look")
        self.charge: Any = channel.unary_unary(f"/{interface}/Charge")
        self.stream: Any = channel.unary_stream(f"/{interface}/Stream")
        self.collect: Any = channel.stream_unary(f"/{interface}/Collect")
        self.chat: Any = channel.stream_stream(f"/{interface}/Chat")


def directory_of(*ports: int) -> Directory:
    """Return a directory that names these ports, without ZooKeeper."""
    directory = Directory(INTERFACE, limbo_s=0)
    directory._read([provider_url(port, INTERFACE).node_name() for port in ports])
    return directory


@asynccontextmanager
async def channel_to(directory: Directory, **more: Any) -> AsyncIterator[DiscoveredChannel]:
    """Return a channel that takes endpoints in turn and knows SAFE as idempotent."""
    settings: dict[str, Any] = {"picker": RoundRobin(), "is_idempotent": {SAFE}.__contains__}
    async with DiscoveredChannel(directory, **(settings | more)) as channel:
        yield channel


def dead_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


async def test_one_call() -> None:
    """Metadata, deadline and answer go through; the call object says what grpc.aio's would."""
    echo = Echo()
    async with echo.serving() as port, channel_to(directory_of(port)) as channel:
        call = Stub(channel).charge(b"hi", timeout=2.0, metadata=(("x-caller", "me"),))
        assert await call == b"hi"
        assert (await call.initial_metadata())["x-first"] == "1"
        assert (await call.trailing_metadata())["x-last"] == "2"
        assert await call.code() is grpc.StatusCode.OK
        assert call.done()
        assert not call.cancelled()
        assert echo.seen["metadata"]["x-caller"] == "me"
        assert 1.0 < echo.seen["left_s"] <= 2.0
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
        call = Stub(channel).look(b"hi", timeout=2.0)
        with pytest.raises(AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert caught.value.trailing_metadata()["x-why"] == "clerk"
        assert await call.code() is grpc.StatusCode.ABORTED
        assert await call.details() == "locked"
        assert echo.carried_out == 1
        assert not never_sent(caught.value)


async def test_streams() -> None:
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


async def test_generated_stubs_take_it() -> None:
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
        assert (await stub.Check(request, timeout=2.0)).status == health_pb2.HealthCheckResponse.SERVING
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
            assert await charge(str(number).encode(), timeout=1.0) == str(number).encode()
        assert echo.carried_out == 20


async def test_silent_endpoint_of_two_fails_no_call() -> None:
    """An endpoint that accepts connections and never speaks costs a slice of the deadline, not the call."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with Echo().serving() as port, channel_to(directory_of(silent.getsockname()[1], port)) as channel:
            began = time.monotonic()
            for _ in range(4):
                assert await Stub(channel).charge(b"hi", timeout=1.5) == b"hi"
            assert time.monotonic() - began < 3.0


async def test_lost_reply_is_repeated_if_idempotent() -> None:
    """The connection breaks before the reply: an idempotent call is carried out again, on the other endpoint."""
    echo = Echo()
    async with echo.serving() as port:
        cable = Cable(port)

        async def cut(_: Context) -> None:
            cable.cut()
            echo.before_answer = None

        echo.before_answer = cut
        async with cable.laid() as near, channel_to(directory_of(near, port)) as channel:
            channel._picker = _InTurn(near, port)
            assert await Stub(channel).look(b"hi", timeout=5.0) == b"hi"
            assert echo.carried_out == 2


async def test_lost_reply_is_not_repeated_otherwise() -> None:
    """The connection breaks before the reply: a call that is not idempotent was carried out once, and says so."""
    echo = Echo()
    async with echo.serving() as port:
        cable = Cable(port)

        async def cut(_: Context) -> None:
            cable.cut()

        echo.before_answer = cut
        async with cable.laid() as near, channel_to(directory_of(near, port)) as channel:
            channel._picker = _InTurn(near, port)
            with pytest.raises(AioRpcError) as caught:
                await Stub(channel).charge(b"hi", timeout=5.0)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert not never_sent(caught.value)
            assert echo.carried_out == 1


async def test_deadline_exceeded_is_never_repeated() -> None:
    """A call that took too long may have been carried out: not even an idempotent one is tried again."""
    echo = Echo()

    async def dawdle(_: Context) -> None:
        await asyncio.sleep(1.0)

    echo.before_answer = dawdle
    async with echo.serving() as one, echo.serving() as two, channel_to(directory_of(one, two)) as channel:
        began = time.monotonic()
        with pytest.raises(AioRpcError) as caught:
            await Stub(channel).look(b"hi", timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 0.6
        assert echo.carried_out == 1


async def test_nobody_is_registered() -> None:
    """With no provider the call fails UNAVAILABLE, in words and within its deadline, and was never sent."""
    async with channel_to(directory_of()) as channel:
        call = Stub(channel).look(b"hi", timeout=0.3)
        began = time.monotonic()
        with pytest.raises(AioRpcError, match=f"no provider of {INTERFACE} is registered") as caught:
            await call
        assert time.monotonic() - began < 0.3
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
            calling = asyncio.ensure_future(Stub(channel).charge(b"hi", timeout=2.0))
            await asyncio.sleep(0.05)
            directory._read([provider_url(port, INTERFACE).node_name()])
            assert await calling == b"hi"


async def test_nobody_can_be_reached() -> None:
    """With every endpoint dead the call fails at once, never sent; with wait_for_ready it waits for one."""
    port = dead_port()
    async with channel_to(directory_of(port)) as channel:
        began = time.monotonic()
        with pytest.raises(AioRpcError, match="can be reached") as caught:
            await Stub(channel).charge(b"hi", timeout=2.0)
        assert time.monotonic() - began < 1.0
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


async def test_endpoint_that_left_is_closed_after_limbo(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that comes back in time keeps its connection; one that stays away has it closed."""
    monkeypatch.setattr("coordination.channel.LIMBO_S", 0.1)
    async with Echo().serving() as port:
        directory = directory_of(port)
        async with channel_to(directory) as channel:
            await Stub(channel).look(b"hi", timeout=2.0)
            (link,) = channel._links.values()
            directory._read([])
            directory._read([provider_url(port, INTERFACE).node_name()])
            await asyncio.sleep(0.2)
            assert list(channel._links.values()) == [link]
            directory._read([])
            await until(lambda: not channel._links)


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
    command = [sys.executable, "-m", "tests.integration.provider", zookeeper.hosts, interface]
    processes = [subprocess.Popen(command) for _ in range(2)]  # noqa: ASYNC220 (it does not wait)
    discovery = Discovery(session)
    try:
        directory = await discovery.subscribe(interface)
        assert await directory._wait_until(lambda: len(directory.endpoints) == 2, 20)
        picker, is_idempotent = WeightedRandom(random.Random(1)), {f"/{interface}/Look"}.__contains__
        async with channel_to(directory, picker=picker, is_idempotent=is_idempotent) as channel:
            stub = Stub(channel, interface)
            for _ in range(20):
                await stub.charge(b"hi", timeout=2.0)
            processes[0].kill()
            processes[0].wait()
            for _ in range(100):
                assert await stub.look(b"hi", timeout=2.0) == b"hi"
            for _ in range(100):
                assert await stub.charge(b"hi", timeout=2.0) == b"hi"
            assert len(directory.endpoints) == 2
    finally:
        for process in processes:
            process.kill()
            process.wait()
        await discovery.close()


class _InTurn:
    """A picker that goes through given ports in order."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports

    def pick(self, endpoints: Any, exclude: Any = ()) -> Any:
        by_port = {endpoint.url.port: endpoint for endpoint in endpoints if endpoint.address not in exclude}
        return next((by_port[port] for port in self._ports if port in by_port), None)
