"""An echo to put a proxy before, and what one says to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[str]:
    """A server that sends back what it gets; yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def said(connection: Connection, words: bytes) -> bytes:
    """Say something; returns as much as comes back."""
    reader, writer = connection
    writer.write(words)
    return await asyncio.wait_for(reader.readexactly(len(words)), 5)


async def closed(connection: Connection) -> bool:
    """Tell whether the connection ended, politely or not."""
    try:
        return await asyncio.wait_for(connection[0].read(1), 5) == b""
    except ConnectionResetError:
        return True
