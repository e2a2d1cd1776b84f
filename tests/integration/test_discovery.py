"""A directory follows its interface's providers and forgets nobody while ZooKeeper is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from coordination.discovery import Consumer, Directory, DirectoryState, Discovery
from coordination.errors import NoProviders
from coordination.registry import ProviderURL, Registry
from coordination.session import Session
from services.testkit.fair_clock import fair_s
from tests.integration.provider import provider_url
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, connected, expire
from tests.integration.zookeeper import until as eventually

SHORT_GRACE_S = 0.3
FOUND_WITHIN_S = 1.0


async def until(directory: Directory, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Wait for the directory to be as it should."""
    assert await directory._wait_until(condition, timeout_s), (directory.state, directory.endpoints)


def ports(directory: Directory) -> list[int]:
    return [endpoint.url.port for endpoint in directory.endpoints]


class History:
    """When a directory said what, from now on: (monotonic seconds, state, ports)."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.entries: list[tuple[float, DirectoryState, list[int]]] = []
        directory.subscribe(self._note)

    def _note(self) -> None:
        self.entries.append((time.monotonic(), self._directory.state, ports(self._directory)))

    def first(self, state: DirectoryState, wanted: list[int]) -> float:
        """When that was first said."""
        return next(at for at, *rest in self.entries if rest == [state, wanted])


@pytest.fixture
async def discovery(session: Session) -> AsyncIterator[Discovery]:
    """A discovery without a cache, which doubts an empty list for a short time only."""
    discovery = Discovery(session, empty_list_grace_s=SHORT_GRACE_S)
    yield discovery
    await discovery.close()


async def test_consumer_started_before_the_provider_finds_it(zookeeper: ZooKeeper, discovery: Discovery) -> None:
    """A consumer that started first finds a provider within a second of its registering, the first and the second,
    and loses them when they go."""
    directory = await discovery.subscribe("test.first.Service", timeout_s=5)
    assert directory.state is DirectoryState.LIVE
    assert directory.endpoints == ()
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.05)
    assert not caught.value.away
    async with connected(zookeeper) as session:
        registry = Registry(session)
        for port in (1, 2):
            began = fair_s()
            await registry.register(provider_url(port, "test.first.Service"))
            await until(directory, lambda port=port: port in ports(directory))  # type: ignore[misc]
            assert fair_s() - began < FOUND_WITHIN_S
        assert ports(directory) == [1, 2]
        await registry.close()
    await until(directory, lambda: directory.endpoints == ())
    assert directory.state is DirectoryState.LIVE
    assert await discovery.subscribe("test.first.Service") is directory


async def test_deleted_providers_node_is_watched_again(session: Session, discovery: Discovery) -> None:
    """The providers node may go and come back: whoever registers then is found within a second."""
    path = "/dubbo/test.again.Service/providers"
    directory = await discovery.subscribe("test.again.Service", timeout_s=5)
    for port in (1, 2):
        url = provider_url(port, "test.again.Service")
        began = fair_s()
        await session.ensure_path(path)
        await session.create(f"{path}/{url.node_name()}")
        await until(directory, lambda port=port: ports(directory) == [port])  # type: ignore[misc]
        assert fair_s() - began < FOUND_WITHIN_S
        await session.delete(f"{path}/{url.node_name()}")
        await session.delete(path)
        await until(directory, lambda: directory.endpoints == ())


async def test_restart_of_the_only_instance_never_empties_the_list(zookeeper: ZooKeeper, session: Session) -> None:
    """The only provider goes and its successor comes: the list is never empty, and the successor is there at once."""
    interface = "test.restart.Service"
    discovery = Discovery(session)
    async with connected(zookeeper) as before, connected(zookeeper) as after:
        old, new = Registry(before), Registry(after)
        await old.register(provider_url(1, interface))
        directory = await discovery.subscribe(interface, timeout_s=5)
        history = History(directory)
        await old.close()
        await until(directory, lambda: directory.state is DirectoryState.EMPTYING)
        assert ports(directory) == [1]
        began = fair_s()
        await new.register(provider_url(2, interface))
        await until(directory, lambda: ports(directory) == [2])
        assert fair_s() - began < FOUND_WITHIN_S
        assert directory.state is DirectoryState.LIVE
        assert [] not in [seen for _, _, seen in history.entries]
        await new.close()
    await discovery.close()


async def test_empty_list_is_taken_as_true_after_the_grace_period(zookeeper: ZooKeeper, discovery: Discovery) -> None:
    """An empty list that lasts becomes the truth, not before and not much after the time it is doubted for; ZooKeeper
    is asked once more."""
    interface = "test.gone.Service"
    async with connected(zookeeper) as session:
        registry = Registry(session)
        await registry.register(provider_url(1, interface))
        directory = await discovery.subscribe(interface, timeout_s=5)
        history = History(directory)
        await registry.close()
        await until(directory, lambda: (directory.state, ports(directory)) == (DirectoryState.LIVE, []))
    lasted_s = history.first(DirectoryState.LIVE, []) - history.first(DirectoryState.EMPTYING, [1])
    assert SHORT_GRACE_S <= lasted_s < SHORT_GRACE_S + 0.5


async def test_empty_list_after_an_outage_has_a_grace_period(zookeeper: ZooKeeper, tmp_path: Path) -> None:
    """Sessions expired meanwhile, so the first list read again is empty: who was there is kept until they are back."""
    interface = "test.absence.Service"
    path = f"/dubbo/{interface}/providers"
    async with connected(zookeeper) as session, connected(zookeeper) as provider:
        discovery = Discovery(session)
        await provider.ensure_path(path)
        await provider.create(f"{path}/{provider_url(1, interface).node_name()}", ephemeral=True)
        directory = await discovery.subscribe(interface, timeout_s=5)
        history = History(directory)
        zookeeper.stop()
        await until(directory, lambda: directory.state is DirectoryState.AWAY)
        await provider.close()  # its node can only go with its session
        await asyncio.to_thread(zookeeper.start)
        await until(directory, lambda: directory.state is DirectoryState.EMPTYING)
        assert ports(directory) == [1]
        async with connected(zookeeper) as successor:
            registry = Registry(successor)
            await registry.register(provider_url(2, interface))
            await until(directory, lambda: ports(directory) == [2])
            await registry.close()
        assert [] not in [seen for _, _, seen in history.entries]
        await discovery.close()


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
    assert [bool(verdict.why_not) for verdict in directory.eligibility("A")] == [True, True, False, True]


async def test_group_and_version_choose(session: Session, discovery: Discovery) -> None:
    """Each subscription sees the providers of its group and version; a star sees all."""
    interface = "test.grouped.Service"
    path = f"/dubbo/{interface}/providers"
    await session.ensure_path(path)
    for port, more in enumerate(({}, {"group": "g"}, {"group": "g", "version": "1.0"}), 1):
        url = provider_url(port, interface).with_parameters(more)
        await session.create(f"{path}/{url.node_name()}", ephemeral=True)
    assert ports(await discovery.subscribe(interface, timeout_s=5)) == [1]
    assert ports(await discovery.subscribe(interface, group="g", timeout_s=5)) == [2]
    assert ports(await discovery.subscribe(interface, group="g", version="1.0", timeout_s=5)) == [3]
    assert ports(await discovery.subscribe(interface, group="*", version="*", timeout_s=5)) == [1, 2, 3]


async def test_consumers_make_themselves_known(zookeeper: ZooKeeper, session: Session) -> None:
    """Whoever subscribes with an address is registered, also after its session expired, and gone when it closes."""
    interface = "test.consumed.Service"
    consumer = Consumer("desk", "10.0.0.9", timestamp_ms=5, instance="desk-1")
    async with connected(zookeeper) as own:
        discovery = Discovery(own, consumer=consumer)

        async def registered() -> list[ProviderURL]:
            listings = {listing.interface: listing for listing in await Registry(session).ls()}
            return list(listings[interface].consumers) if interface in listings else []

        async def one() -> bool:
            return len(await registered()) == 1

        directory = await discovery.subscribe(interface, timeout_s=5)
        await eventually(one)
        assert await registered() == [directory.consumer]
        await expire(own)

        async def again() -> bool:
            path = f"/dubbo/{interface}/consumers/{directory.consumer.node_name()}"
            stat = await session.exists(path)
            return stat is not None and stat.ephemeralOwner == own.session_id

        await eventually(again)
        await discovery.close()
        assert await registered() == []


async def test_consumer_without_an_address_is_not_registered(session: Session, discovery: Discovery) -> None:
    """Without an address there is nothing to tell operators; nothing is written for such a consumer."""
    await discovery.subscribe("test.unseen.Service", timeout_s=5)
    assert await session.exists("/dubbo/test.unseen.Service") is None


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


@pytest.mark.parametrize("broken", ["corrupt", "unwritable"])
async def test_unreadable_cache_is_ignored(session: Session, tmp_path: Path, broken: str) -> None:
    """With a damaged file, or nowhere to write one, providers are found all the same."""
    interface = f"test.{broken}.Service"
    cache_dir = tmp_path / "cache"
    if broken == "corrupt":
        cache_dir.mkdir()
        (cache_dir / f"{interface}.json").write_text('["tri%3A%2F%2Fh%3A1%2F')
    else:
        cache_dir.write_text("a file where the directory should be")
    registry, discovery = Registry(session), Discovery(session, cache_dir=cache_dir)
    await registry.register(provider_url(1, interface))
    assert ports(await discovery.subscribe(interface, timeout_s=5)) == [1]
    await discovery.close()
    await registry.close()
