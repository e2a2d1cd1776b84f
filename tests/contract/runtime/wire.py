"""A wire between a client and PostgreSQL that can be cut, go silent, or lose the answer to a COMMIT."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum, auto

from sqlalchemy import URL, make_url


class Commit(Enum):
    """What becomes of the next COMMIT."""

    PASSES = auto()
    #: It arrives, and the wire is cut before its answer comes back.
    ANSWER_IS_LOST = auto()
    #: The wire is cut before it arrives.
    IS_LOST = auto()
    #: It arrives, and its answer never comes, though the wire holds.
    IS_NOT_ANSWERED = auto()


class Wire:
    """Carries the bytes of every connection to the server of a URL."""

    def __init__(self, url: str) -> None:
        self._server = make_url(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.commit = Commit.PASSES
        self.port = 0

    @property
    def url(self) -> str:
        """The server's URL by way of this wire."""
        url: URL = self._server.set(host="127.0.0.1", port=self.port)
        return url.render_as_string(hide_password=False)

    def go_silent(self) -> None:
        """From now on nothing arrives at either end."""
        self._open.clear()

    def cut(self) -> None:
        """Ends every connection there is."""
        for writer in self._writers:
            writer.close()

    async def close(self) -> None:
        """Ends all."""
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes a new connection."""
        task = asyncio.ensure_future(self._carry(reader, writer))
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it."""
        there, back = await asyncio.open_connection(self._server.host, self._server.port)
        ends = {writer, back}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, back, requests=True), self._pump(there, writer, requests=False))
        finally:
            self._writers -= ends
            for end in ends:
                end.close()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, requests: bool) -> None:
        with suppress(OSError):
            while chunk := await source.read(65_536):
                await self._open.wait()
                if requests and b"COMMIT" in chunk and self.commit is not Commit.PASSES:
                    await self._lose(chunk, sink)
                    continue
                sink.write(chunk)
                await sink.drain()
        sink.close()

    async def _lose(self, chunk: bytes, server: asyncio.StreamWriter) -> None:
        how, self.commit = self.commit, Commit.PASSES
        self.go_silent()
        if how is not Commit.IS_LOST:
            server.write(chunk)
            await server.drain()
        if how is not Commit.IS_NOT_ANSWERED:
            self.cut()
            self._open.set()


@asynccontextmanager
async def wire_to(url: str, port: int = 0) -> AsyncIterator[Wire]:
    """A wire to a server for as long as the context lasts."""
    wire = Wire(url)
    server = await asyncio.start_server(wire.accept, "127.0.0.1", port)
    wire.port = server.sockets[0].getsockname()[1]
    try:
        yield wire
    finally:
        server.close()
        await wire.close()
