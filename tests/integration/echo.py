"""A test service with a method of every kind, cables that can be cut or fall silent, and channels to them."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from coordination.channel import DiscoveredChannel, Idempotency
from coordination.channel.load_balancing import Candidate, Explanation, Standing
from coordination.discovery import Directory
from coordination.session import ServerAddress
from tests.integration.provider import SERVER_OPTIONS, provider_url

INTERFACE = "test.Echo"
Context = grpc.aio.ServicerContext[bytes, bytes]


def idempotency(method: str) -> Idempotency:
    """Look is a read, Put may be repeated, Charge may not."""
    bare = method.rpartition("/")[2]
    known = {"Look": Idempotency.NO_SIDE_EFFECTS, "Put": Idempotency.IDEMPOTENT}
    return known.get(bare, Idempotency.UNKNOWN)


class Echo:
    """A server that counts what it carries out, and may be told to do something before it answers.

    Attributes:
        carried_out: unary calls begun.
        cancelled: of them, those that were cancelled.
        healthy: what it answers to a health check; None: it has no health service.
        health_checks: how many it had.
        knows: the only service whose health it knows, besides the server's as a whole; empty: any.
        seen: what the last unary call brought along.
    """

    def __init__(self) -> None:
        self.carried_out = 0
        self.cancelled = 0
        self.healthy: bool | None = True
        self.health_checks = 0
        self.knows = b""
        self.before_answer: Callable[[Context], Awaitable[None]] | None = None
        self.seen: dict[str, Any] = {}

    async def unary(self, request: bytes, context: Context) -> bytes:
        self.carried_out += 1
        self.seen = {"metadata": dict(context.invocation_metadata() or ()), "left_s": context.time_remaining()}
        try:
            if self.before_answer is not None:
                await self.before_answer(context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
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

    async def check(self, request: bytes, context: Context) -> bytes:
        self.health_checks += 1
        if self.healthy is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such service")
        if self.knows and request and not request.endswith(self.knows):
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return b"\x08\x01" if self.healthy else b"\x08\x02"

    @asynccontextmanager
    async def serving(
        self,
        interface: str = INTERFACE,
        grace_s: float | None = None,
        *,
        host: str = "127.0.0.1",
        credentials: grpc.ServerCredentials | None = None,
    ) -> AsyncIterator[int]:
        """Serve on a free port; yields it. At the end calls under way have `grace_s` seconds left."""
        server = grpc.aio.server(options=SERVER_OPTIONS)
        methods: dict[str, Any] = {
            "Look": grpc.unary_unary_rpc_method_handler(self.unary),
            "Put": grpc.unary_unary_rpc_method_handler(self.unary),
            "Charge": grpc.unary_unary_rpc_method_handler(self.unary),
            "Stream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Collect": grpc.stream_unary_rpc_method_handler(self.collect),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
        }
        health: dict[str, Any] = {"Check": grpc.unary_unary_rpc_method_handler(self.check)}
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(interface, methods),
                grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),
            )
        )
        address = str(ServerAddress(host, 0))
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
        await server.start()
        try:
            yield port
        finally:
            await server.stop(grace_s)


class Cable:
    """A TCP relay in front of a server.

    It can be cut: both ends are closed, and what was on its way is lost. It can fall silent: connections stay open,
    new ones are accepted, and nothing is relayed any more. And it can lose the connections that are open now: nothing
    is relayed on these, and they stay open.

    Args:
        port: where the server listens.
        delay_s: how long what is sent is on its way, in each direction.

    Attributes:
        port: where the server listens.
        connections: how many were opened.
    """

    def __init__(self, port: int, *, delay_s: float = 0) -> None:
        self.port = port
        self.connections = 0
        self._delay_s = delay_s
        self._lost = 0  # connections up to this number are lost
        self._writers: list[asyncio.StreamWriter] = []
        self._relaying = asyncio.Event()
        self._relaying.set()

    @asynccontextmanager
    async def laid(self, host: str = "127.0.0.1") -> AsyncIterator[int]:
        """Relay from a free port; yields it."""
        server = await asyncio.start_server(self._relay, host, 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self.cut()
            self.speak()
            server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def fall_silent(self) -> None:
        self._relaying.clear()

    def speak(self) -> None:
        self._relaying.set()

    def lose_open_connections(self) -> None:
        self._lost = self.connections

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers += [writer, far_writer]
        await asyncio.gather(self._copy(number, reader, far_writer), self._copy(number, far_reader, writer))

    async def _copy(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._relaying.wait()
                if number <= self._lost:
                    continue
                await asyncio.sleep(self._delay_s)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


class Stub:
    """What protoc would make of the test service, with bytes for messages."""

    def __init__(self, channel: grpc.aio.Channel, interface: str = INTERFACE) -> None:
        self.look: Any = channel.unary_unary(f"/{interface}/Look")
        self.put: Any = channel.unary_unary(f"/{interface}/Put")
        self.charge: Any = channel.unary_unary(f"/{interface}/Charge")
        self.stream: Any = channel.unary_stream(f"/{interface}/Stream")
        self.collect: Any = channel.stream_unary(f"/{interface}/Collect")
        self.chat: Any = channel.stream_stream(f"/{interface}/Chat")


class InTurn:
    """A picker that prefers ports in a given order, and counts whom it picked."""

    def __init__(self, *ports: int) -> None:
        self.ports = ports
        self.picked: Counter[int] = Counter()

    def pick(self, candidates: Sequence[Candidate], _key: str = "") -> Candidate:
        by_port = {candidate.endpoint.url.port: candidate for candidate in candidates}
        chosen = next((by_port[port] for port in self.ports if port in by_port), candidates[0])
        self.picked[chosen.endpoint.url.port] += 1
        return chosen

    def explain(self, candidates: Sequence[Candidate], _key: str = "") -> list[Explanation]:
        return [Explanation(candidate.key, Standing.NOT_DRAWN, "") for candidate in candidates]


def directory_of(*ports: int, **parameters: str) -> Directory:
    """Return a directory that names these ports, without ZooKeeper."""
    directory = Directory(INTERFACE, empty_list_grace_s=0)
    directory.take(directory.reader.read([provider_url(port, INTERFACE, **parameters).node_name() for port in ports]))
    return directory


@asynccontextmanager
async def channel_to(directory: Directory, *in_turn: int, **more: Any) -> AsyncIterator[DiscoveredChannel]:
    """Return a channel that prefers endpoints by port in the order given, seeded."""
    settings: dict[str, Any] = {"idempotency": idempotency, "rng": random.Random(7)}
    if in_turn:
        settings["picker"] = InTurn(*in_turn)
    async with DiscoveredChannel(directory, **(settings | more)) as channel:
        yield channel


def dead_port() -> int:
    """Return a port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
