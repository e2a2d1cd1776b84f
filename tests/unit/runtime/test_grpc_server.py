"""What bounds a connection, on the server of our processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.kernel.clock import SystemClock
from services.runtime.grpc import grpc_server
from services.runtime.grpc.grpc_server import new_server
from services.runtime.grpc.tokens import TokenSigner
from services.runtime.settings import Settings
from tests.e2e.http2 import MAX_CONCURRENT_STREAMS, pinging
from tests.tokens import write_key_set

#: Longer than anything here takes; only so that a test which fails ends.
PATIENCE_S = 20.0


@asynccontextmanager
async def serving(tmp_path: Path, **changes: Any) -> AsyncIterator[str]:
    """The address of a server with health and nothing else."""
    clock = SystemClock()
    key = write_key_set(tmp_path, TokenSigner(Ed25519PrivateKey.generate(), clock))
    server, _ = new_server(Settings(verify_key_file=key, **changes), clock, audience="countinghouse-order")
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_connection_may_have_so_many_streams(tmp_path: Path) -> None:
    """As its SETTINGS say; a client's further calls wait on its side."""
    async with serving(tmp_path, max_streams_per_connection=7) as address, pinging(address) as pinger:
        async with asyncio.timeout(PATIENCE_S):
            assert (await pinger.settings)[MAX_CONCURRENT_STREAMS] == 7


async def test_calls_beyond_the_streams_of_a_connection_wait_and_are_all_answered(tmp_path: Path) -> None:
    """A client that keeps to the limit is never refused a stream."""
    async with serving(tmp_path, max_streams_per_connection=20) as address, aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        await asyncio.gather(*(stub.Check(request, timeout=PATIENCE_S) for _ in range(500)))


async def test_silent_connection_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even HTTP/2's preface: it ends by itself."""
    monkeypatch.setattr(grpc_server, "_HANDSHAKE_MS", 300)
    async with serving(tmp_path) as address:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(PATIENCE_S):
            while await reader.read(1024):
                pass
        writer.close()


async def test_idle_connection_is_closed_and_the_next_call_is_served(tmp_path: Path) -> None:
    """With GOAWAY, though the client pings; gRPC's clients connect again when they call."""
    async with serving(tmp_path, idle_connection_s=1) as address, aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S), pinging(address) as pinger:
            assert (await pinger.until_hung_up()).words == "connection idle"
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
