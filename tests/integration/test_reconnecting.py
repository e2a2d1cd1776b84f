"""Finding another server: within the time that the session still lives, and with pauses that grow."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coordination.session import Session, SessionChange, SessionState
from tests.integration.relay import relayed
from tests.integration.zookeeper import ZooKeeper

WAIT_S = 20.0
#: Long enough for its parts to be told apart on a busy machine; ZooKeeper allows 10 s.
LONG_SESSION_S = 6.0


@asynccontextmanager
async def deaf_server() -> AsyncIterator[str]:
    """A server that accepts connections and never says anything; yields its address."""
    connections: list[asyncio.StreamWriter] = []

    def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        for writer in connections:
            writer.close()
        server.close()
        await server.wait_closed()


async def test_session_survives_a_silent_server_and_unresponsive_ones(
    zookeeper: ZooKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silent one is noticed late, and unresponsive ones are next: the last must still be reached in time."""
    monkeypatch.setattr(random, "shuffle", lambda _servers: None)  # kazoo asks the servers in the order given
    states: list[SessionChange] = []
    async with relayed(zookeeper.hosts) as silent, deaf_server() as one, deaf_server() as two, deaf_server() as three:
        hosts = f"{silent.hosts},{one},{two},{three},{zookeeper.hosts}"
        async with Session(hosts, timeout_s=LONG_SESSION_S, name="survivor") as session:
            await session.wait_connected(WAIT_S)
            suspended, again = asyncio.Event(), asyncio.Event()

            def note(change: SessionChange) -> None:
                states.append(change)
                (again if change.state is SessionState.CONNECTED else suspended).set()

            session.subscribe(note)
            silent.hold()
            await asyncio.wait_for(suspended.wait(), WAIT_S)
            await asyncio.wait_for(again.wait(), WAIT_S)
    assert [change.state for change in states[:2]] == [SessionState.SUSPENDED, SessionState.CONNECTED]
    assert not states[1].new_session


async def test_server_that_hangs_up_after_the_handshake_is_connected_to_with_growing_pauses(
    zookeeper: ZooKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: (low + high) / 2)  # kazoo's jitter
    connects: list[float] = []
    enough = asyncio.Event()

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connects.append(time.monotonic())
        if len(connects) == 8:
            enough.set()
        upstream_reader, upstream = await asyncio.open_connection(*zookeeper.hosts.split(":"))
        upstream.write(await frame(reader))
        writer.write(await frame(upstream_reader))
        await writer.drain()
        writer.close()
        upstream.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Session(address, timeout_s=LONG_SESSION_S, name="patient"):
        await asyncio.wait_for(enough.wait(), WAIT_S)
    server.close()
    await server.wait_closed()
    pauses = [later - earlier for earlier, later in itertools.pairwise(connects)]
    assert sum(pauses) >= 0.05 + 0.1 + 0.2 + 0.4 + 3 * 0.6, pauses


async def frame(reader: asyncio.StreamReader) -> bytes:
    """Read one frame of ZooKeeper's protocol."""
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "big"))
