"""Clients that ping an idle connection, as Dubbo's do: dubbo-go every 10 s, Java's every 60 s.

A gRPC server with its default options takes them for an attack and hangs up with `too_many_pings`; ours keep them. Each
test meets both, so that it is seen to tell one from the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from services.devstack.stack import Stack
from services.devstack.state import INTERFACES
from services.runtime.grpc.identity import server_name
from services.runtime.grpc.tls import Dialer
from tests.e2e.http2 import ENHANCE_YOUR_CALM, HungUp, Pinger, pinging

#: (seconds between two pings, how many)
_QUICK = pytest.param(0.2, 15, id="quick")
_DUBBO = pytest.param(10.0, 12, id="two minutes", marks=pytest.mark.soak)
_BURST = 200


@pytest_asyncio.fixture(loop_scope="session")
async def strict() -> AsyncIterator[str]:
    """The address of a server with gRPC's default options."""
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


def pinging_service(stack: Stack, service: str) -> AbstractAsyncContextManager[Pinger]:
    """An idle connection to the first instance of a service."""
    address, ca_file = stack.instance(f"{service}-1").address, stack.data / "keys" / "ca.pem"
    return pinging(address, ca_file=ca_file, name=server_name(service))


async def ping_again_and_again(pinger: Pinger, interval_s: float, times: int) -> None:
    """Every ping is acknowledged before the next is sent; raises HungUp if the server has enough of it."""
    for _ in range(times):
        await asyncio.sleep(interval_s)
        await pinger.ping()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("interval_s", "times"), [_QUICK, _DUBBO])
async def test_idle_connection_that_pings_is_kept(stack: Stack, strict: str, interval_s: float, times: int) -> None:
    """By every service: each ping is acknowledged, and there is no GOAWAY. The strict server says one."""
    async with asyncio.TaskGroup() as group:
        for service in INTERFACES:
            group.create_task(_kept(stack, service, interval_s, times))
    async with pinging(strict) as pinger:
        with pytest.raises(HungUp) as refused:
            await ping_again_and_again(pinger, min(interval_s, 0.2), times)
    assert (refused.value.code, refused.value.words) == (ENHANCE_YOUR_CALM, "too_many_pings")


async def _kept(stack: Stack, service: str, interval_s: float, times: int) -> None:
    async with pinging_service(stack, service) as pinger:
        await ping_again_and_again(pinger, interval_s, times)


async def test_burst_of_pings_is_answered(stack: Stack, strict: str) -> None:
    """Hundreds in one piece, and the connection still is one."""
    for service in INTERFACES:
        async with pinging_service(stack, service) as pinger:
            await burst(pinger)
    async with pinging(strict) as pinger:
        with pytest.raises(HungUp):
            await burst(pinger)


async def burst(pinger: Pinger) -> None:
    """Hundreds of pings, and one more: a GOAWAY may come behind the last of their acknowledgements."""
    await asyncio.gather(*(pinger.ping() for _ in range(_BURST)))
    await pinger.ping()


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("interval_s", "times"), [_QUICK, _DUBBO])
async def test_grpc_own_keepalive_without_calls_is_kept(
    stack: Stack, strict: str, interval_s: float, times: int
) -> None:
    """The same with grpc's client, which pings at its own pace: while nobody calls its connection stays READY, at least
    twice as long as the strict server bears it.
    """
    borne_s = await ready_for_s(Dialer(None), strict, 0.2, at_most_s=20.0)
    assert borne_s < 20.0
    long_s = max(interval_s * times, 2 * borne_s)
    address = stack.instance("order-1").address
    assert await ready_for_s(stack.dialer(), address, interval_s, at_most_s=long_s) == long_s


async def ready_for_s(dialer: Dialer, address: str, keepalive_s: float, *, at_most_s: float) -> float:
    """How long a connection that was used once stays READY without a call; `at_most_s` if it still was after that."""
    options = [
        ("grpc.keepalive_time_ms", int(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with dialer.open(address, "order", options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)  # type: ignore[attr-defined]  # its stubs lack it
        since_s = time.monotonic()
        try:
            async with asyncio.timeout(at_most_s):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        except TimeoutError:
            return at_most_s
        return time.monotonic() - since_s
