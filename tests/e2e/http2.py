"""An HTTP/2 client that pings, frame by frame: no library decides for it how often it may, or when it reads.

    connect: preface, SETTINGS ──▶ ping … ping, request ──▶ hung up by the server: GOAWAY, or the connection just ends

Frames are as RFC 9113 has them: 3 bytes of length, type, flags, 4 bytes of stream, payload.
"""

from __future__ import annotations

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS, _PING, _GOAWAY = 0x0, 0x1, 0x4, 0x6, 0x7
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
#: RFC 9113, section 6.5.2.
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 0x3, 0x4
_HEAD_BYTES = 9
#: RFC 9113, section 7: what a server says to a client that asks too much of it.
ENHANCE_YOUR_CALM = 0xB


class HungUp(Exception):
    """The server ended the connection.

    Args:
        code: Of its GOAWAY; -1: it said nothing, or what it said was lost.
        words: What it said.
    """

    def __init__(self, code: int, words: str) -> None:
        super().__init__(f"{words} ({code})")
        self.code = code
        self.words = words


class Pinger:
    """One connection. Made by `pinging`.

    Attributes:
        settings: What the server's SETTINGS say, once they came.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, settings: Mapping[int, int]) -> None:
        self.settings: asyncio.Future[Mapping[int, int]] = asyncio.get_running_loop().create_future()
        self._own_settings = b"".join(
            key.to_bytes(2, "big") + value.to_bytes(4, "big") for key, value in settings.items()
        )
        self._streams = itertools.count(1, 2)
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answered: dict[int, asyncio.Future[None]] = {}
        self._hung_up: HungUp | None = None
        self._listening = asyncio.create_task(self._listen())

    async def ping(self, timeout_s: float = 5.0) -> None:
        """Sends one PING, and returns when it is acknowledged.

        Raises:
            HungUp: The server ended the connection.
            TimeoutError: It did neither.
        """
        if self._hung_up is not None:
            raise self._hung_up
        number = next(self._numbers)
        answered = self._answered[number] = asyncio.get_running_loop().create_future()
        self._send(_PING, number.to_bytes(8, "big"))
        async with asyncio.timeout(timeout_s):
            await answered

    def request(self, path: str, body: bytes) -> None:
        """Sends a gRPC call without a token; what comes back is not looked at."""
        headers = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "test"}
        headers |= {"te": "trailers", "content-type": "application/grpc"}  # codespell:ignore te
        block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in headers.items())
        stream = next(self._streams)
        self._send(_HEADERS, block, flags=_END_HEADERS, stream=stream)
        self._send(_DATA, b"\x00" + len(body).to_bytes(4, "big") + body, flags=_END_STREAM, stream=stream)

    async def _listen(self) -> None:
        self._writer.write(_PREFACE)
        self._send(_SETTINGS, self._own_settings)
        try:
            while True:
                head = await self._reader.readexactly(_HEAD_BYTES)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                self._take(kind=head[3], flags=head[4], payload=payload)
        except (asyncio.IncompleteReadError, ConnectionError):
            self._end(self._hung_up or HungUp(-1, "the connection ended"))

    def _take(self, *, kind: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._send(_SETTINGS, b"", flags=_ACK)
            pairs = [payload[place : place + 6] for place in range(0, len(payload), 6)]
            if not self.settings.done():
                self.settings.set_result(
                    {int.from_bytes(pair[:2], "big"): int.from_bytes(pair[2:], "big") for pair in pairs}
                )
        elif kind == _PING and flags & _ACK:
            if (answered := self._answered.pop(int.from_bytes(payload, "big"), None)) and not answered.done():
                answered.set_result(None)
        elif kind == _PING:
            self._send(_PING, payload, flags=_ACK)
        elif kind == _GOAWAY:
            self._end(HungUp(int.from_bytes(payload[4:8], "big"), payload[8:].decode(errors="replace")))

    def _end(self, hung_up: HungUp) -> None:
        self._hung_up = hung_up
        for answered in self._answered.values():
            if not answered.done():
                answered.set_exception(hung_up)
        self._answered.clear()

    async def until_hung_up(self) -> HungUp:
        """Waits until the server ends the connection."""
        await self._listening
        assert self._hung_up is not None
        return self._hung_up

    def _send(self, kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> None:
        self._writer.write(len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload)

    async def close(self) -> None:
        """Hangs up."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._writer.close()


def _text(text: str) -> bytes:
    """A string of fewer than 127 bytes as HPACK has it, not compressed (RFC 7541, section 5.2)."""
    return bytes([len(text)]) + text.encode()


@asynccontextmanager
async def pinging(
    address: str, settings: Mapping[int, int] | None = None, *, ca_file: Path | None = None, name: str = ""
) -> AsyncIterator[Pinger]:
    """An idle connection to `host:port`.

    Args:
        settings: Of the client; see RFC 9113, section 6.5.2.
        ca_file: Of the authority of the server's certificate; None: in plain text.
        name: What the certificate must name; empty: the host.
    """
    host, _, port = address.rpartition(":")
    secured = None
    if ca_file is not None:
        secured = ssl.create_default_context(cafile=ca_file)
        secured.set_alpn_protocols(["h2"])
    pinger = Pinger(
        *await asyncio.open_connection(host, int(port), ssl=secured, server_hostname=name or None), settings or {}
    )
    try:
        yield pinger
    finally:
        await pinger.close()
