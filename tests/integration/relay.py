"""A TCP relay between a client and ZooKeeper that reads the frames on the wire, and can hold them back.

    client ──▶ request frames ──[held until let go]──▶ ZooKeeper
    client ◀────────────────────────── reply frames ◀──

What is counted here is what was really sent: no hook inside the client can be fooled by its own layers.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

CREATE, DELETE, EXISTS, GET_DATA, GET_CHILDREN, PING, MULTI, CREATE2, MULTI_READ = 1, 2, 3, 4, 8, 11, 14, 15, 22
_EVENT, _PING = -1, -2  # xids


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, pings aside. `type` is that of the request, also in its reply; 0 in a watch event."""

    at: float
    reply: bool
    xid: int
    type: int
    body: bytes


class Relay:
    """See the module's header. Made by `relayed`."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._open = asyncio.Event()
        self._open.set()
        self._to_lose: int | None = None
        self._answers: dict[int, int] = {}
        self._done_first: set[int] = set()
        self._stay_away = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.hosts = ""
        self.frames: list[Frame] = []

    def hold(self) -> None:
        """Keep requests from ZooKeeper from now on; they are read and noted."""
        self._open.clear()

    def let_go(self) -> None:
        """Pass on what was held."""
        self._open.set()

    def forget(self) -> None:
        """Begin to count anew."""
        self.frames.clear()

    def lose_reply(self, kind: int, *, stay_away: bool) -> None:
        """Break the connection in place of the next reply to such a request.

        With `stay_away` nothing passes afterwards, new connections included, until `let_go`.
        """
        self._to_lose, self._stay_away = kind, stay_away

    def answer(self, kind: int, code: int, *, done: bool = False) -> None:
        """Answer requests of this type with an error code from now on.

        Args:
            code: ZooKeeper's number of the error; 0: pass them on again.
            done: whether ZooKeeper carries them out nevertheless.
        """
        self._answers.pop(kind, None)
        self._done_first.discard(kind)
        if code:
            self._answers[kind] = code
        if code and done:
            self._done_first.add(kind)

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._writers:
            writer.transport.abort()

    def requests(self) -> list[int]:
        """Return the types of the requests seen, in order."""
        return [frame.type for frame in self.frames if not frame.reply]

    def replies(self) -> list[int]:
        """Return the types of the requests whose replies were seen, in order."""
        return [frame.type for frame in self.frames if frame.reply and frame.xid != _EVENT]

    def events(self) -> int:
        """Return how many watch events were seen."""
        return sum(frame.xid == _EVENT for frame in self.frames)

    async def serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        """Relay one connection until either side ends it."""
        server, to_server = await asyncio.open_connection(*self._upstream)
        self._writers |= {to_client, to_server}
        types: dict[int, tuple[int, int]] = {}
        waiting: asyncio.Queue[bytes] = asyncio.Queue()
        ways = [
            asyncio.ensure_future(self._requests(client, waiting, types)),
            asyncio.ensure_future(self._pass_on(waiting, to_server)),
            asyncio.ensure_future(self._replies(server, to_client, types)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for writer in (to_client, to_server):
                self._writers.discard(writer)
                writer.close()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _requests(
        self, client: asyncio.StreamReader, waiting: asyncio.Queue[bytes], types: dict[int, tuple[int, int]]
    ) -> None:
        waiting.put_nowait(await _frame(client))  # the handshake
        while True:
            packet = await _frame(client)
            xid, kind = struct.unpack_from("!ii", packet, 4)
            if kind != PING:
                self.frames.append(Frame(time.monotonic(), False, xid, kind, packet[12:]))
            if kind in self._answers and kind not in self._done_first:
                packet = _harmless(xid)  # so that replies keep their order
            types[xid] = kind, self._answers.get(kind, 0)
            waiting.put_nowait(packet)

    async def _pass_on(self, waiting: asyncio.Queue[bytes], server: asyncio.StreamWriter) -> None:
        while True:
            packet = await waiting.get()
            await self._open.wait()
            server.write(packet)

    async def _replies(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, types: dict[int, tuple[int, int]]
    ) -> None:
        client.write(await _frame(server))
        while True:
            packet = await _frame(server)
            (xid,) = struct.unpack_from("!i", packet, 4)
            kind, code = types.pop(xid, (0, 0))
            if kind == self._to_lose:
                self._to_lose = None
                if self._stay_away:
                    self.hold()
                self.cut()
                return
            if code:
                packet = _error(xid, code)
            if xid != _PING:
                self.frames.append(Frame(time.monotonic(), True, xid, kind, packet[20:]))
            client.write(packet)


@asynccontextmanager
async def relayed(upstream: str) -> AsyncIterator[Relay]:
    """A relay to one server, on a port of its own."""
    relay = Relay(upstream)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await relay.serve(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    relay.hosts = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield relay
    finally:
        relay.let_go()
        relay.cut()
        server.close()
        await server.wait_closed()


def _harmless(xid: int) -> bytes:
    """Return the frame of a request that changes nothing: whether `/` exists."""
    body = struct.pack("!iii1s?", xid, EXISTS, 1, b"/", False)
    return struct.pack("!i", len(body)) + body


def _error(xid: int, code: int) -> bytes:
    """Return the frame of a reply that is an error; zxid 0 says nothing about the server."""
    return struct.pack("!iiqi", 16, xid, 0, code)


async def _frame(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(struct.unpack("!i", head)[0])
