"""The proxy passes every byte on unaltered, and disturbs exactly what a toxic says."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator

import pytest

from services.chaos.faultproxy.proxy import Proxy, Stream, Toxic, bound, join_address, split_address
from services.kernel.errors import InvalidArgument
from tests.unit.chaos.echo import Connection, closed, echo, said


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy in front of an echo."""
    async with echo() as upstream, Proxy("echo", upstream, rng=random.Random(7)) as proxy:
        yield proxy


async def connect(proxy: Proxy) -> Connection:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_bytes_pass_unaltered(proxy: Proxy) -> None:
    """A megabyte goes there and back; the end of one side is the end of the other."""
    connection = await connect(proxy)
    words = random.Random(1).randbytes(1 << 20)
    assert await said(connection, words) == words
    connection[1].write_eof()
    assert await closed(connection)
    assert proxy.affected == 0


async def test_latency_delays_and_keeps_order(proxy: Proxy) -> None:
    """Each chunk comes later by the latency, in order, and a chunk need not wait for the answer to the one before."""
    connection = await connect(proxy)
    proxy.add(Toxic("slow", "latency", attributes={"latency": 200, "jitter": 50}))
    began = time.monotonic()
    words = b"".join(number.to_bytes(4, "big") for number in range(200))
    assert await said(connection, words) == words
    assert time.monotonic() - began >= 0.15
    proxy.remove("slow")
    assert await said(connection, b"x") == b"x"
    assert proxy.affected == 1


async def test_toxic_disturbs_its_direction_only(proxy: Proxy) -> None:
    """What goes up arrives, what comes down does not; the connection ends with the toxic that dropped bytes."""
    arrived: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(await reader.read(100))
        writer.write(b"done")
        heard.set()

    heard = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.upstream = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    connection = await connect(proxy)
    proxy.add(Toxic("mute", "timeout", Stream.DOWNSTREAM))
    connection[1].write(b"pay")
    await asyncio.wait_for(heard.wait(), 5)
    assert arrived == [b"pay"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection[0].read(1), 0.1)
    proxy.remove("mute")
    assert await closed(connection)
    server.close()


async def test_timeout_closes_after_its_time(proxy: Proxy) -> None:
    """With a time given the silent connection is closed then."""
    connection = await connect(proxy)
    began = time.monotonic()
    proxy.add(Toxic("mute", "timeout", attributes={"timeout": 150}))
    connection[1].write(b"x")
    assert await closed(connection)
    assert time.monotonic() - began >= 0.14


async def test_changed_toxic_forgets_its_former_time(proxy: Proxy) -> None:
    """One that was to close soon and now is to close late closes late."""
    connection = await connect(proxy)
    assert await said(connection, b"x") == b"x"
    proxy.add(Toxic("cut", "reset_peer", attributes={"timeout": 50}))
    proxy.change(Toxic("cut", "reset_peer", attributes={"timeout": 600_000}))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(connection[0].read(1), 0.3)


async def test_reset_peer_resets_the_connection(proxy: Proxy) -> None:
    """Both ends get a TCP reset."""
    connection = await connect(proxy)
    assert await said(connection, b"x") == b"x"
    proxy.add(Toxic("cut", "reset_peer"))
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(connection[0].read(1), 5)


async def test_limit_data_closes_after_so_many_bytes(proxy: Proxy) -> None:
    """A reply is cut in the middle."""
    proxy.add(Toxic("short", "limit_data", attributes={"bytes": 3}))
    connection = await connect(proxy)
    connection[1].write(b"abcdef")
    assert await asyncio.wait_for(connection[0].read(), 5) == b"abc"


async def test_slicer_and_bandwidth_slow_a_stream_down(proxy: Proxy) -> None:
    """Slices add up to the same bytes; a narrow bandwidth takes its time."""
    connection = await connect(proxy)
    proxy.add(Toxic("slices", "slicer", attributes={"average_size": 10, "size_variation": 5, "delay": 10}))
    words = random.Random(2).randbytes(1000)
    assert await said(connection, words) == words
    proxy.remove("slices")
    proxy.add(Toxic("narrow", "bandwidth", attributes={"rate": 100}))
    began = time.monotonic()
    words = random.Random(3).randbytes(30_000)
    assert await said(connection, words) == words
    assert time.monotonic() - began >= 0.25


async def test_small_piece_is_sent_at_once() -> None:
    """The proxy adds no delay of its own: what is accepted on its port does not wait for acknowledgements."""
    options: asyncio.Queue[int] = asyncio.Queue()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        options.put_nowait(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    listening = bound("127.0.0.1", 0)
    async with await asyncio.start_server(serve, sock=listening):
        _, writer = await asyncio.open_connection(*listening.getsockname())
        assert await asyncio.wait_for(options.get(), 5)
        writer.close()


async def test_proxy_whose_port_was_taken_is_not_enabled(proxy: Proxy) -> None:
    """And it does not claim to be; once the port is free again it is."""
    await proxy.disable()
    with socket.create_server(("127.0.0.1", proxy.port)):
        with pytest.raises(OSError, match="in use"):
            await proxy.enable()
        assert not proxy.enabled
    await proxy.enable()
    assert await said(await connect(proxy), b"x") == b"x"


async def test_upstream_that_is_away_resets_the_client(proxy: Proxy) -> None:
    """When a server listens there again, the next connection works."""
    there, proxy.upstream = proxy.upstream, "127.0.0.1:1"
    assert await closed(await connect(proxy))
    proxy.upstream = there
    assert await said(await connect(proxy), b"x") == b"x"


async def test_toxicity_is_drawn_from_the_rng() -> None:
    """Of many connections the toxic affects its share, the same ones for the same seed."""
    fates: list[list[bool]] = []
    for _ in range(2):
        async with echo() as upstream, Proxy("echo", upstream, rng=random.Random(5)) as proxy:
            proxy.add(Toxic("cut", "reset_peer", toxicity=0.5))
            fates.append([await _survives(await connect(proxy)) for _ in range(40)])
    assert fates[0] == fates[1]
    assert 10 <= sum(fates[0]) <= 30


async def _survives(connection: Connection) -> bool:
    try:
        return await said(connection, b"x") == b"x"
    except (OSError, EOFError):
        return False


@pytest.mark.parametrize(
    ("kind", "attributes", "toxicity"),
    [("poison", {}, 1.0), ("latency", {"ms": 1}, 1.0), ("latency", {"latency": -1}, 1.0), ("latency", {}, 1.5)],
)
def test_invalid_toxic_is_refused(kind: str, attributes: dict[str, int], toxicity: float) -> None:
    """An unknown toxic or attribute, or a number out of range, is refused with what there is."""
    with pytest.raises(InvalidArgument):
        Toxic("x", kind, toxicity=toxicity, attributes=attributes)


def test_addresses_are_read_and_written() -> None:
    """An IPv6 address has its brackets outside only."""
    for address, parts in {
        "127.0.0.1:80": ("127.0.0.1", 80),
        "db.local:65535": ("db.local", 65535),
        "[::1]:0": ("::1", 0),
        ":0": ("", 0),
    }.items():
        assert split_address(address) == parts
        assert join_address(*parts) == address
    for wrong in ("", "a", "a:", "a:x", "a:-1", "a:65536", "::1:80", "[::1]", "a b:1", "a\0:1", "a:1\n"):
        with pytest.raises(InvalidArgument):
            split_address(wrong)
