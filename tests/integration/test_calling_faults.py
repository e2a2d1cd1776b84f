"""Calls among everything that can be wrong at once, and through a rolling restart: no call fails."""

from __future__ import annotations

import asyncio
import math
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing

import pytest
from grpc.aio import AioRpcError

from coordination.channel import PickerName, by_name
from coordination.channel.channel import sends
from coordination.discovery import Directory, Discovery
from coordination.registry import Registry
from coordination.session import Session
from tests.integration.echo import Cable, Echo, Stub, channel_to, dead_port, directory_of
from tests.integration.provider import Provider, provider_url, started
from tests.integration.zookeeper import ZooKeeper, until

DEADLINE_S = 10.0
"""Of every call. Room for two connections to fall silent one after the other (2 s each), on a busy machine."""


@asynccontextmanager
async def a_bad_neighbourhood(
    zookeeper: ZooKeeper, session: Session, interface: str
) -> AsyncIterator[tuple[Directory, dict[int, Echo], Cable, Provider]]:
    """A directory in ZooKeeper with a child that cannot be read, an endpoint that refuses, one that accepts and never
    speaks, one behind a cable that can fall silent, one process that can be frozen, and three that are healthy.

    Yields the directory, the healthy ones by port, the cable, and the process.
    """
    async with AsyncExitStack() as stack:
        healthy = {await stack.enter_async_context(echo.serving(interface=interface)): echo for echo in _echoes(3)}
        cable = Cable(await stack.enter_async_context(Echo().serving(interface=interface)))
        hushed = await stack.enter_async_context(cable.laid())
        mute = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
        provider = stack.enter_context(started(zookeeper.hosts, interface))
        registry = Registry(session)
        stack.push_async_callback(registry.close)
        for port in (*healthy, hushed, mute.getsockname()[1], dead_port()):
            assert await registry.register(provider_url(port, interface))
        await session.create(f"/dubbo/{interface}/providers/tri%3A%2F%2Fnonsense%3A99999%2F%25", ephemeral=True)
        discovery = Discovery(session)
        stack.push_async_callback(discovery.close)
        directory = await discovery.subscribe(interface, timeout_s=5.0)
        assert await directory._wait_until(lambda: len(directory.endpoints) == 7, 10)
        yield directory, healthy, cable, provider


def _echoes(number: int) -> list[Echo]:
    return [Echo() for _ in range(number)]


async def call(stub: Stub, times: int, at_once: int) -> list[AioRpcError]:
    """Make so many calls, reads and writes in turn, by so many callers at once; returns the errors."""
    errors = []
    numbers = iter(range(times))

    async def caller() -> None:
        for number in numbers:
            method = stub.look if number % 2 else stub.put
            try:
                assert await method(str(number).encode(), timeout=DEADLINE_S) == str(number).encode()
            except AioRpcError as error:
                errors.append(error)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return errors


@pytest.mark.parametrize("name", [PickerName.POWER_OF_TWO_CHOICES, PickerName.WEIGHTED_RANDOM])
async def test_repeatable_calls_succeed_beside_faulty_endpoints(
    zookeeper: ZooKeeper, session: Session, name: PickerName
) -> None:
    """1,000 reads and writes with a deadline of 10 s, by 16 callers; after the first 200 a connection that was good
    falls silent and a process that was good is frozen. None fails, and the healthy three share what they get evenly:
    each within 5 standard deviations of a third of it under weighted random; under p2c, which looks at latencies too,
    each gets between a tenth and two thirds."""
    interface = f"test.bad.{name.name.title()}"
    async with a_bad_neighbourhood(zookeeper, session, interface) as (directory, healthy, cable, provider):
        async with channel_to(directory, picker=by_name(name, random.Random(7))) as channel:
            stub = Stub(channel, interface)
            assert await call(stub, 200, 16) == []
            cable.fall_silent()
            provider.freeze()
            for echo in healthy.values():
                echo.carried_out = 0
            assert await call(stub, 800, 16) == []
        counts = {port: echo.carried_out for port, echo in healthy.items()}
        total = sum(counts.values())
        assert total >= 700, counts
        if name is PickerName.WEIGHTED_RANDOM:
            bound = 5 * math.sqrt(total * (1 / 3) * (2 / 3))
            assert all(abs(count - total / 3) <= bound for count in counts.values()), counts
        else:
            assert all(total / 10 <= count <= total * 2 / 3 for count in counts.values()), counts


async def test_rolling_restart_fails_no_call(zookeeper: ZooKeeper, session: Session) -> None:
    """Two processes are restarted one after the other while calls that may *not* be repeated come without a pause, over
    50 between one restart and the next: each stops politely (unregisters, waits until consumers know, finishes its
    calls), and not one call fails."""
    interface = "test.rolling.Echo"
    discovery = Discovery(session)
    made, errors, enough = Counter[bytes](), [], asyncio.Event()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(discovery.close)
        running = [stack.enter_context(started(zookeeper.hosts, interface)) for _ in range(2)]
        directory = await discovery.subscribe(interface, timeout_s=5.0)
        assert await directory._wait_until(lambda: len(directory.endpoints) == 2, 20)
        channel = await stack.enter_async_context(channel_to(directory))
        stub = Stub(channel, interface)

        async def caller() -> None:
            while not enough.is_set():
                try:
                    made[await stub.charge(b"hi", timeout=5.0)] += 1
                except AioRpcError as error:
                    errors.append(error)
                await asyncio.sleep(0.01)

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        for number in range(4):
            before = made[b"hi"]
            new = await asyncio.to_thread(stack.enter_context, started(zookeeper.hosts, interface))
            await until(lambda port=new.port: port in {endpoint.url.port for endpoint in directory.endpoints})
            await running[number].stop()
            running.append(new)
            await until(lambda before=before: made[b"hi"] > before + 50)
        enough.set()
        await asyncio.gather(*callers)
        assert errors == []


async def test_abrupt_server_stop_fails_no_repeatable_call() -> None:
    """No unregistering, no waiting: calls that meet the closing server are repeated elsewhere if they may be. Of the
    others each is carried out once at most, and fails only if it reached the server while it closed; those that gRPC
    proves unseen go elsewhere, too."""
    stopping, staying = Echo(), Echo()
    outcomes: Counter[str] = Counter()
    enough = asyncio.Event()
    async with staying.serving() as port, AsyncExitStack() as stack:
        gone = await stack.enter_async_context(stopping.serving(grace_s=2.0))
        async with channel_to(directory_of(gone, port), gone, port) as channel:
            stub = Stub(channel)

            async def caller(kind: str) -> None:
                while not enough.is_set():
                    try:
                        await getattr(stub, kind)(b"hi", timeout=5.0)
                        outcomes[f"{kind} OK"] += 1
                    except AioRpcError as error:
                        outcomes[f"{kind} {error.code().name}, sent {sends(error)}"] += 1

            callers = [asyncio.create_task(caller(kind)) for kind in ("put", "charge") for _ in range(8)]
            await until(lambda: stopping.carried_out > 100)
            await stack.aclose()
            before = staying.carried_out
            await until(lambda: staying.carried_out > before + 100)
            enough.set()
            await asyncio.gather(*callers)
    failures = {outcome for outcome in outcomes if not outcome.endswith("OK")}
    assert failures <= {"charge CANCELLED, sent 1", "charge UNAVAILABLE, sent 1"}, outcomes
    assert sum(outcomes[failure] for failure in failures) <= 8, outcomes
