"""A directory follows its interface's providers and forgets nobody while ZooKeeper is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coordination.discovery import Directory, DirectoryState, Discovery
from coordination.errors import NoProviders
from coordination.registry import Registry
from coordination.session import Session
from tests.integration.provider import provider_url
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, connected, expire


async def until(directory: Directory, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for the directory to be as it should."""
    assert await directory._wait_until(condition, timeout_s), (directory.state, directory.endpoints)


def ports(directory: Directory) -> list[int]:
    return [endpoint.url.port for endpoint in directory.endpoints]


@pytest.fixture
async def discovery(session: Session) -> AsyncIterator[Discovery]:
    """A discovery without a cache."""
    discovery = Discovery(session)
    yield discovery
    await discovery.close()


async def test_consumer_before_provider(zookeeper: ZooKeeper, discovery: Discovery) -> None:
    """A consumer that started first finds the provider as soon as it registers, and loses it when it goes."""
    directory = await discovery.subscribe("test.first.Service", timeout_s=5)
    assert directory.state is DirectoryState.LIVE
    assert directory.endpoints == ()
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.05)
    assert not caught.value.away
    async with connected(zookeeper) as session:
        registry = Registry(session)
        await registry.register(provider_url(1, "test.first.Service"))
        assert [endpoint.address for endpoint in await directory.wait_any(5)] == ["127.0.0.1:1"]
        await registry.register(provider_url(2, "test.first.Service"))
        await until(directory, lambda: ports(directory) == [1, 2])
        await registry.close()
    await until(directory, lambda: directory.endpoints == ())
    assert directory.state is DirectoryState.LIVE
    assert await discovery.subscribe("test.first.Service") is directory


async def test_directory_deleted_and_made_again(session: Session, discovery: Discovery) -> None:
    """The providers node may go and come back: the directory is empty in between, and then follows again."""
    path = "/dubbo/test.again.Service/providers"
    directory = await discovery.subscribe("test.again.Service", timeout_s=5)
    for port in (1, 2):
        await session.ensure_path(path)
        url = provider_url(port, "test.again.Service")
        await session.create(f"{path}/{url.node_name()}")
        await until(directory, lambda port=port: ports(directory) == [port])  # type: ignore[misc]
        await session.delete(f"{path}/{url.node_name()}")
        await session.delete(path)
        await until(directory, lambda: directory.endpoints == ())


async def test_malformed_child_is_skipped(
    session: Session, discovery: Discovery, caplog: pytest.LogCaptureFixture
) -> None:
    """Nonsense among the providers costs itself and a warning; other protocols are left to others."""
    path = "/dubbo/test.bad.Service/providers"
    await session.ensure_path(path)
    with caplog.at_level(logging.WARNING, "coordination"):
        for name in ("nonsense", "tri%3A%2F%2Fhost%3Anoport%2Fx", "dubbo%3A%2F%2Fh%3A20880%2Fx%3Fa%3Db"):
            await session.create(f"{path}/{name}", ephemeral=True)
        await session.create(f"{path}/{provider_url(3, 'test.bad.Service').node_name()}", ephemeral=True)
        directory = await discovery.subscribe("test.bad.Service", timeout_s=5)
    assert ports(directory) == [3]
    assert "nonsense" in caplog.text
    assert "noport" in caplog.text


async def test_expired_session_subscribes_again(zookeeper: ZooKeeper, session: Session, discovery: Discovery) -> None:
    """A consumer whose session expired keeps its list and hears of later changes."""
    async with connected(zookeeper) as other:
        registry = Registry(other)
        await registry.register(provider_url(1, "test.expired.Service"))
        directory = await discovery.subscribe("test.expired.Service", timeout_s=5)
        lists: list[list[int]] = []
        directory.subscribe(lambda: lists.append(ports(directory)))
        away = asyncio.create_task(directory._wait_until(lambda: directory.state is DirectoryState.AWAY, 10))
        await asyncio.sleep(0)
        await expire(session)
        assert await away
        await registry.register(provider_url(2, "test.expired.Service"))
        await until(directory, lambda: ports(directory) == [1, 2])
        assert directory.state is DirectoryState.LIVE
        assert [] not in lists
        await registry.close()


async def test_list_is_kept_while_zookeeper_is_away(zookeeper: ZooKeeper, tmp_path: Path) -> None:
    """Stopped, ZooKeeper takes no endpoint out; a cold start without it has the list of the last run."""
    interface = "test.away.Service"
    async with connected(zookeeper) as session:
        registry, discovery = Registry(session), Discovery(session, cache_dir=tmp_path)
        await registry.register(provider_url(1, interface))
        directory = await discovery.subscribe(interface, timeout_s=5)
        zookeeper.stop()
        await until(directory, lambda: directory.state is DirectoryState.AWAY)
        assert ports(directory) == [1]

        async with Session(zookeeper.hosts, timeout_s=SESSION_TIMEOUT_S) as cold_session:
            cold = Discovery(cold_session, cache_dir=tmp_path)
            remembered = await cold.subscribe(interface, timeout_s=0.1)
            await remembered.wait_any(2)
            assert (remembered.state, ports(remembered)) == (DirectoryState.CACHED, [1])
            unknown = await cold.subscribe("test.never.Service", timeout_s=0.1)
            assert (unknown.state, unknown.endpoints) == (DirectoryState.UNKNOWN, ())
            with pytest.raises(NoProviders) as caught:
                await unknown.wait_any(0.05)
            assert caught.value.away

            await asyncio.to_thread(zookeeper.start)
            await until(remembered, lambda: remembered.state is DirectoryState.LIVE and ports(remembered) == [1])
            await until(directory, lambda: directory.state is DirectoryState.LIVE and ports(directory) == [1])
            await cold.close()
        await discovery.close()
        await registry.close()
