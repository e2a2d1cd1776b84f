"""The only provider of an interface restarts, and no call made meanwhile is told that there is nobody."""

from __future__ import annotations

import asyncio
import time

import pytest
from grpc.aio import AioRpcError

from coordination.channel.channel import never_sent
from coordination.discovery import DirectoryState, Discovery
from coordination.registry import Registry
from coordination.session import Session
from tests.integration.echo import Echo, Stub, channel_to
from tests.integration.provider import provider_url
from tests.integration.zookeeper import ZooKeeper, connected

INTERFACE = "test.Echo"


async def test_call_during_a_restart_waits_for_the_successor(zookeeper: ZooKeeper, session: Session) -> None:
    """The old one has unregistered and refuses connections: a call that must not be repeated waits for the new one."""
    discovery, echo = Discovery(session), Echo()
    async with connected(zookeeper) as before, connected(zookeeper) as after:
        old, new = Registry(before), Registry(after)
        async with echo.serving() as port:
            await old.register(provider_url(port, INTERFACE))
            directory = await discovery.subscribe(INTERFACE, timeout_s=5)
            async with channel_to(directory) as channel:
                await Stub(channel).charge(b"before", timeout=10.0)
        async with channel_to(directory) as channel:
            await old.close()
            assert await directory._wait_until(lambda: directory.state is DirectoryState.EMPTYING, 5)
            context = asyncio.ensure_future(Stub(channel).charge(b"meanwhile", timeout=5.0))
            done, _ = await asyncio.wait({context}, timeout=0.3)
            assert not done
            async with echo.serving() as port:
                await new.register(provider_url(port, INTERFACE))
                assert await context == b"meanwhile"
                assert echo.carried_out == 2
                await new.close()
    await discovery.close()


async def test_call_without_a_successor_is_unavailable_in_time(zookeeper: ZooKeeper, session: Session) -> None:
    """With no successor the call is told so, never sent, after as long as it would wait for a first provider."""
    discovery = Discovery(session)
    async with connected(zookeeper) as other:
        registry = Registry(other)
        await registry.register(provider_url(1, INTERFACE))
        directory = await discovery.subscribe(INTERFACE, timeout_s=5)
        async with channel_to(directory) as channel:
            await registry.close()
            assert await directory._wait_until(lambda: directory.state is DirectoryState.EMPTYING, 5)
            began = time.monotonic()
            with pytest.raises(AioRpcError, match="can be reached") as caught:
                await Stub(channel).charge(b"hi", timeout=5.0)
            assert never_sent(caught.value)
            assert time.monotonic() - began > 0.5
    await discovery.close()
