"""A TCP proxy that disturbs connections on demand, with toxiproxy's toxics.

    client ──▶ upstream toxics ──▶ server
    client ◀── downstream toxics ◀── server

    one direction of one connection:
    read ─▶ chunk ─▶ toxic ─▶ toxic ─▶ queue of (due, chunk) ─▶ wait until due ─▶ write

Invariants
1. Bytes are passed on in order and unaltered. A connection that has lost bytes (`timeout`) passes no more; it is closed
   when that toxic is removed at the latest: a TCP stream has no holes.
2. A toxic works from its adding to its removal, also on connections that were open before.
3. A disabled proxy has no connection and refuses new ones; it keeps its port.
4. Whether a toxic affects a connection (toxicity) is drawn once, from `rng`: a seed repeats it.

Which function makes each move
    Proxy.enable, disable   listening, refusing        Proxy.add, change, remove   the toxics
    _Pipe._take             chunk -> due chunks        _Pipe._give                 due chunks -> the other side
    _Connection.end         open -> closed, or reset

Times are in milliseconds, as toxiproxy has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random  # noqa: TID251  seeded, so that a run can be repeated
import re
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from services.kernel.errors import InvalidArgument

HOST: Final = "127.0.0.1"
_MAX_PORT = 65535
_CHUNK_BYTES = 64 * 1024
#: Chunks under way in one direction; then the sender is held back, as by a full window.
_QUEUE_CHUNKS = 64
_MAX_CONNECTIONS = 1024
_CONNECT_TIMEOUT_S = 5.0
_RESET = struct.pack("ii", 1, 0)


class Stream(enum.StrEnum):
    """The direction that a toxic disturbs."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"


#: Each toxic's attributes with their defaults.
ATTRIBUTES: Final[Mapping[str, Mapping[str, int]]] = {
    "latency": {"latency": 0, "jitter": 0},
    "bandwidth": {"rate": 0},
    "slow_close": {"delay": 0},
    "timeout": {"timeout": 0},
    "reset_peer": {"timeout": 0},
    "slicer": {"average_size": 0, "size_variation": 0, "delay": 0},
    "limit_data": {"bytes": 0},
}


@dataclass(frozen=True, slots=True)
class Toxic:
    """One disturbance of one direction.

    Args:
        kind: `latency` (latency, jitter ms), `bandwidth` (rate kB/s), `slow_close` (delay ms), `timeout` (nothing
            passes; closed after timeout ms, 0: when the toxic is removed), `reset_peer` (reset after timeout ms),
            `slicer` (average_size, size_variation bytes, delay µs), `limit_data` (closed after bytes).
        toxicity: Share of the connections affected, 0 to 1.

    Raises:
        InvalidArgument: TOXIC_UNKNOWN or OUT_OF_RANGE.
    """

    name: str
    kind: str
    stream: Stream = Stream.DOWNSTREAM
    toxicity: float = 1.0
    attributes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in ATTRIBUTES:
            raise InvalidArgument(
                "TOXIC_UNKNOWN", f"there is no toxic {self.kind!r}; there are {', '.join(ATTRIBUTES)}"
            )
        known = ATTRIBUTES[self.kind]
        for name, value in self.attributes.items():
            if name not in known:
                raise InvalidArgument("TOXIC_UNKNOWN", f"{self.kind} has no {name!r}; it has {', '.join(known)}")
            if value < 0:
                raise InvalidArgument("OUT_OF_RANGE", f"{name} must be 0 or more, not {value}")
        if not 0 <= self.toxicity <= 1:
            raise InvalidArgument("OUT_OF_RANGE", f"toxicity is 0 to 1, not {self.toxicity}")
        object.__setattr__(self, "attributes", {**known, **self.attributes})


class Proxy:
    """One listening port in front of one address. `async with Proxy(…) as proxy:` opens and closes it.

    Args:
        upstream: `host:port` to pass connections on to; may change, and need not answer yet.
        host: An address of this machine, IPv4 or IPv6.
        listen_port: 0 takes a free one.
        rng: For jitter, slices and toxicity.

    Raises:
        OSError: The port is taken, or the address is not of this machine.
    """

    def __init__(
        self,
        name: str,
        upstream: str,
        *,
        host: str = HOST,
        listen_port: int = 0,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.upstream = upstream
        self.enabled = False
        self.toxics: dict[str, Toxic] = {}
        self.affected = 0  #: Connections that a toxic has affected, or that disabling has reset.
        self._rng = rng or random.Random()  # noqa: S311
        self._socket = bound(host, listen_port)
        self.port = int(self._socket.getsockname()[1])  #: It never changes.
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    @property
    def listen(self) -> str:
        """Return `host:port` where it listens."""
        return join_address(self.host, self.port)

    async def enable(self) -> None:
        """Listen. Idempotent.

        Raises:
            OSError: Another process listens on the port.
        """
        if not self.enabled:
            self.enabled = True
            try:
                self._server = await asyncio.start_server(self._accept, sock=self._socket)
            except OSError:
                self.enabled = False
                raise

    async def disable(self) -> None:
        """Refuse new connections and reset the open ones. Idempotent."""
        self.enabled = False
        if self._server is not None:
            self._server.close()
            self._server = None
            self._socket.close()
            self._socket = bound(self.host, self.port)  # bound and not listening: it refuses, and the port stays ours
        for connection in list(self._connections):
            self.affected += 1
            connection.end(reset=True)

    def add(self, toxic: Toxic) -> None:
        """Add a toxic, in place of one of the same name."""
        self.remove(toxic.name)
        self.toxics[toxic.name] = toxic
        for connection in list(self._connections):
            connection.add(toxic)

    def change(self, toxic: Toxic) -> None:
        """Replace a toxic by another of the same name; a connection that has lost bytes stays open."""
        self.toxics[toxic.name] = toxic
        for connection in list(self._connections):
            connection.change(toxic)

    def remove(self, name: str) -> None:
        """Remove a toxic. Idempotent."""
        toxic = self.toxics.pop(name, None)
        if toxic is not None:
            for connection in list(self._connections):
                connection.remove(toxic)

    async def reset(self) -> None:
        """Remove every toxic, and enable it."""
        for name in list(self.toxics):
            self.remove(name)
        await self.enable()

    async def close(self) -> None:
        """Close every connection and the port. Idempotent."""
        await self.disable()
        ended = [connection.ended.wait() for connection in self._connections]
        await asyncio.gather(*ended)
        self._socket.close()

    async def __aenter__(self) -> Self:
        await self.enable()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def draws(self, toxic: Toxic) -> bool:
        """Draw whether a toxic affects a connection."""
        return toxic.toxicity >= 1 or self._rng.random() < toxic.toxicity

    def draw(self, low: float, high: float) -> float:
        """Draw a number between the two."""
        return self._rng.uniform(low, high)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            writer.transport.abort()
            return
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                far = await asyncio.open_connection(*split_address(self.upstream))
        except (OSError, TimeoutError, UnicodeError):  # UnicodeError: the host is no valid name
            _reset(writer)
            return
        if not self.enabled:  # meanwhile
            _reset(writer)
            _reset(far[1])
            return
        connection = _Connection(self, (reader, writer), far)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)


class _Connection:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(
        self,
        proxy: Proxy,
        near: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        far: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.proxy = proxy
        self.ended = asyncio.Event()
        self._writers = (near[1], far[1])
        self._active: dict[str, Toxic] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._holed: set[str] = set()  # names of the toxics that have dropped bytes
        self._over = asyncio.Event()
        self._pipes = (
            _Pipe(self, Stream.UPSTREAM, near[0], far[1]),
            _Pipe(self, Stream.DOWNSTREAM, far[0], near[1]),
        )
        for toxic in list(proxy.toxics.values()):
            self.add(toxic)

    async def run(self) -> None:
        """Pass bytes both ways until both sides have closed, or `end` is called."""
        tasks = [asyncio.create_task(pipe.run()) for pipe in self._pipes]
        over = asyncio.create_task(self._over.wait())
        both: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.wait([both, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, over):
                task.cancel()
            await asyncio.gather(*tasks, over, return_exceptions=True)
            for timer in self._timers.values():
                timer.cancel()
            for writer in self._writers:
                writer.close()
            self.ended.set()

    def end(self, *, reset: bool) -> None:
        """Close both connections; with `reset` at once, by a TCP reset."""
        if reset:
            for writer in self._writers:
                _reset(writer)
        self._over.set()

    def add(self, toxic: Toxic) -> None:
        """Begin with a toxic that was added, if the draw says so."""
        if not self.proxy.draws(toxic):
            return
        self.proxy.affected += 1
        self._active[toxic.name] = toxic
        if toxic.kind == "reset_peer" or (toxic.kind == "timeout" and toxic.attributes["timeout"]):
            after_s = toxic.attributes["timeout"] / 1000
            end: Callable[[], None] = lambda: self.end(reset=toxic.kind == "reset_peer")  # noqa: E731
            self._timers[toxic.name] = asyncio.get_running_loop().call_later(after_s, end)

    def change(self, toxic: Toxic) -> None:
        """Go on with a toxic that was changed; whether it affects this connection is drawn anew."""
        if timer := self._timers.pop(toxic.name, None):
            timer.cancel()
        self.add(toxic)
        if self._active.get(toxic.name) is not toxic:
            self.remove(toxic)

    def remove(self, toxic: Toxic) -> None:
        """End a toxic that was removed."""
        if self._active.pop(toxic.name, None) is None:
            return
        if timer := self._timers.pop(toxic.name, None):
            timer.cancel()
        if toxic.name in self._holed:
            self.end(reset=True)

    def toxics(self, stream: Stream) -> list[Toxic]:
        """Return the toxics of one direction."""
        return [toxic for toxic in self._active.values() if toxic.stream is stream]

    def dropped_by(self, toxic: Toxic) -> None:
        """Note that a toxic has dropped bytes."""
        self._holed.add(toxic.name)


class _Pipe:
    """One direction of a connection."""

    def __init__(
        self, connection: _Connection, stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._reader = reader
        self._writer = writer
        self._due: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(_QUEUE_CHUNKS)
        self._free_at = 0.0  # when the next byte may be sent, under a bandwidth
        self._passed_bytes = 0

    async def run(self) -> None:
        """Pass bytes on until the sender closes its side."""
        giving = asyncio.create_task(self._give())
        try:
            with contextlib.suppress(OSError):
                while chunk := await self._reader.read(_CHUNK_BYTES):
                    await self._take(chunk)
            await self._take_end()
            await giving
        finally:
            giving.cancel()

    async def _take(self, chunk: bytes) -> None:
        """Apply the toxics to a chunk, and queue what is left with the time when it is due."""
        now = asyncio.get_running_loop().time()
        pieces, due = [chunk], now
        gap_s = 0.0
        for toxic in self._connection.toxics(self._stream):
            attributes = toxic.attributes
            match toxic.kind:
                case "latency":
                    jitter = attributes["jitter"]
                    due += max(0.0, attributes["latency"] + self._connection.proxy.draw(-jitter, jitter)) / 1000
                case "bandwidth" if attributes["rate"]:
                    self._free_at = max(self._free_at, now) + len(chunk) / (attributes["rate"] * 1000)
                    due = max(due, self._free_at)
                case "timeout":
                    self._connection.dropped_by(toxic)
                    pieces = []
                case "slicer" if attributes["average_size"]:
                    pieces = [slice_ for piece in pieces for slice_ in self._sliced(piece, toxic)]
                    gap_s = attributes["delay"] / 1e6
                case "limit_data":
                    left = max(0, attributes["bytes"] - self._passed_bytes)
                    if len(chunk) >= left:
                        if left:
                            await self._due.put((due, chunk[:left]))
                        await self._due.put((due, None))
                        return
                case _:
                    pass
        for number, piece in enumerate(pieces):
            self._passed_bytes += len(piece)
            await self._due.put((due + number * gap_s, piece))

    async def _take_end(self) -> None:
        delay_s = sum(
            toxic.attributes["delay"] / 1000
            for toxic in self._connection.toxics(self._stream)
            if toxic.kind == "slow_close"
        )
        await self._due.put((asyncio.get_running_loop().time() + delay_s, b""))

    async def _give(self) -> None:
        """Write each chunk when it is due, never before the one ahead of it.

        An empty chunk ends this direction, None the connection.
        """
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await self._due.get()
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if chunk is None:
                self._connection.end(reset=False)
                return
            try:
                if not chunk:
                    self._writer.write_eof()
                    return
                self._writer.write(chunk)
                await self._writer.drain()
            except OSError:
                self._connection.end(reset=True)
                return

    def _sliced(self, chunk: bytes, toxic: Toxic) -> list[bytes]:
        average, variation = toxic.attributes["average_size"], toxic.attributes["size_variation"]
        slices, start = [], 0
        while start < len(chunk):
            size = max(1, round(average + self._connection.proxy.draw(-variation, variation)))
            slices.append(chunk[start : start + size])
            start += size
        return slices


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a TCP reset, as a machine that has crashed."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the port and does not listen yet.

    Raises:
        OSError: It cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with the protocol named asyncio sets TCP_NODELAY; else a small piece may wait 40 ms for the one before
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except OSError:
        taken.close()
        raise
    return taken


def split_address(address: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of `host:port`.

    Raises:
        InvalidArgument: ADDRESS_INVALID.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]\0]{0,253})):([0-9]{1,5})", address)
    if match is None or int(match[3]) > _MAX_PORT:
        raise InvalidArgument("ADDRESS_INVALID", f"{address!r} is not like 127.0.0.1:6379 or [::1]:6379")
    return match[1] or match[2], int(match[3])


def join_address(host: str, port: int) -> str:
    """Return `host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
