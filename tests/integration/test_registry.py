"""A registered provider stays registered, whatever becomes of sessions and of ZooKeeper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry

from coordination.errors import BadProviderURL
from coordination.metrics import Metrics
from coordination.registry import ProviderURL, Registry
from coordination.session import Session, SessionState
from services.testkit.fair_clock import fair_s
from tests.integration.provider import provider_url
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, bridge_of, connected, expire, until

INTERFACE = "test.registry.v1.Service"
BACK_WITHIN_S = 2.0


def node(url: ProviderURL) -> str:
    return f"/dubbo/{url.interface}/providers/{url.node_name()}"


@pytest.fixture
async def registry(session: Session) -> AsyncIterator[Registry]:
    """A registry that takes its registrations out at the end."""
    registry = Registry(session)
    yield registry
    await registry.close()


async def stays(other: Session, path: str, owner: Session) -> None:
    """See, with another's eyes, that a node is `owner`'s and that nothing happens to it for a session's lifetime."""
    changed = asyncio.Event()
    stat = await other.exists(path, watch=changed.set)
    assert stat is not None
    assert stat.ephemeralOwner == owner.session_id
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(changed.wait(), SESSION_TIMEOUT_S)


async def until_owned_by_present(session: Session, path: str) -> None:
    """Wait until `path` is an ephemeral node of the session's present id."""

    async def so() -> bool:
        stat = await session.exists(path, timeout_s=10.0)
        return stat is not None and stat.ephemeralOwner == session.session_id

    await until(so)


async def test_register_and_unregister(session: Session, registry: Registry) -> None:
    """The node is ephemeral, named as Dubbo names it, among Dubbo's four directories; and goes again."""
    url = provider_url(1, INTERFACE)
    assert not registry.registered(url)
    assert await registry.register(url)
    assert registry.registered(url)
    assert sorted(await session.get_children(f"/dubbo/{INTERFACE}")) == [
        "configurators",
        "consumers",
        "providers",
        "routers",
    ]
    names = await session.get_children(f"/dubbo/{INTERFACE}/providers")
    assert [ProviderURL.parse(name) for name in names] == [url]
    stat = await session.exists(node(url))
    assert stat is not None
    assert stat.ephemeralOwner == session.session_id
    assert await registry.register(url)  # again: no harm
    assert await registry.unregister(url)
    assert not registry.registered(url)
    assert await session.get_children(f"/dubbo/{INTERFACE}/providers") == []
    assert await registry.unregister(url)  # again: no harm
    assert await registry.register(url)


async def test_ls_lists_providers_consumers_and_unreadable_names(session: Session, registry: Registry) -> None:
    """Interfaces are listed with providers, consumers and what cannot be read."""
    interface = "test.ls.v1.Service"
    consumer = ProviderURL.consumer(interface, "10.0.0.9", application="tests", timestamp_ms=1)
    await registry.register(provider_url(2, interface))
    await registry.register_consumer(consumer)
    await session.create(f"/dubbo/{interface}/providers/nonsense", ephemeral=True)
    await session.ensure_path("/dubbo/metadata/x")
    listings = {listing.interface: listing for listing in await registry.ls()}
    assert listings[interface].providers == (provider_url(2, interface),)
    assert listings[interface].consumers == (consumer,)
    assert listings[interface].malformed == ("nonsense",)
    assert "metadata" not in listings


async def test_provider_is_registered_again_under_a_new_session(
    zookeeper: ZooKeeper, session: Session, registry: Registry
) -> None:
    """After forced expiry the node is there again within two seconds, owned by the new session, and it stays there."""
    url = provider_url(3, INTERFACE)
    await registry.register(url)
    before = session.session_id
    began = fair_s()
    await expire(session)
    await until_owned_by_present(session, node(url))
    assert fair_s() - began < BACK_WITHIN_S
    assert session.session_id != before
    assert await registry.wait_registered(url, 5)
    async with connected(zookeeper) as other:
        await stays(other, node(url), session)


async def test_new_session_comes_before_the_old_one_has_gone(zookeeper: ZooKeeper, registry: Registry) -> None:
    """The other way round: a process started anew finds its node still owned by its old session, which then ends.
    The node is ours at once, and does not go when that one does."""
    url = provider_url(10, INTERFACE)
    async with connected(zookeeper) as earlier:
        older = Registry(earlier)
        await older.register(url)
        older._registrations[node(url)].abandon()  # killed: nobody looks after it any more, and the session lives on
        began = fair_s()
        await registry.register(url)
        await until_owned_by_present(registry._session, node(url))
        assert fair_s() - began < BACK_WITHIN_S
    async with connected(zookeeper) as other:
        await stays(other, node(url), registry._session)


async def test_node_of_an_earlier_session_is_replaced(zookeeper: ZooKeeper, registry: Registry) -> None:
    """A node left by a process before us would vanish with its session: it is deleted and made anew."""
    url = provider_url(4, INTERFACE)
    async with connected(zookeeper) as earlier:
        await earlier.ensure_path(f"/dubbo/{INTERFACE}/providers")
        await earlier.create(node(url), ephemeral=True)
        assert await registry.register(url)
        await until_owned_by_present(registry._session, node(url))
    assert await registry._session.exists(node(url)) is not None


async def test_deleted_registration_is_made_again(session: Session, registry: Registry) -> None:
    """A node that vanished is made again while it is wanted."""
    url = provider_url(5, INTERFACE)
    await registry.register(url)
    await session.delete(node(url))
    await until_owned_by_present(session, node(url))


async def test_same_session_only_reads_again(session: Session, registry: Registry) -> None:
    """After a mere reconnection the node is the one made before."""
    url = provider_url(6, INTERFACE)
    await registry.register(url)
    before = await session.exists(node(url))
    states: list[SessionState] = []
    session.subscribe(lambda change: states.append(change.state))
    bridge_of(session).connection._socket.shutdown(2)
    await until(lambda: SessionState.CONNECTED in states)
    assert await registry.wait_registered(url, 5)
    after = await session.exists(node(url))
    assert before is not None
    assert after is not None
    assert after.czxid == before.czxid


async def test_provider_is_registered_once_zookeeper_is_back(zookeeper: ZooKeeper) -> None:
    """register() says that it is not done yet, and does it when ZooKeeper comes; restarts need no help."""
    zookeeper.stop()
    async with Session(zookeeper.hosts, timeout_s=SESSION_TIMEOUT_S) as session:
        registry, url = Registry(session), provider_url(7, INTERFACE)
        assert not await registry.register(url, timeout_s=0.1)
        assert not registry.registered(url)
        assert not await registry.wait_registered(url, 0.1)
        await asyncio.to_thread(zookeeper.start)
        assert await registry.wait_registered(url, 10)
        await until_owned_by_present(session, node(url))
        zookeeper.stop()
        await asyncio.to_thread(zookeeper.start)
        await until_owned_by_present(session, node(url))
        await registry.close()


async def test_unregister_with_zookeeper_frozen(zookeeper: ZooKeeper, registry: Registry) -> None:
    """unregister() keeps its time, says that it is not done, and does it later."""
    url = provider_url(8, INTERFACE)
    await registry.register(url)
    zookeeper.pause()
    assert not await registry.unregister(url, timeout_s=0.2)
    zookeeper.resume()

    async def gone() -> bool:
        return await registry._session.exists(node(url)) is None

    await until(gone)


async def test_registrations_are_counted(zookeeper: ZooKeeper, session: Session) -> None:
    """What is wanted, by whether it is there; several registries of one process add up."""
    collected = CollectorRegistry()
    metrics = Metrics(collected)

    def figures() -> list[float]:
        name = "coordination_registrations"
        return [collected.get_sample_value(name, {"established": state}) or 0.0 for state in ("yes", "no")]

    one, other = Registry(session, metrics=metrics), Registry(session, metrics=metrics)
    await one.register(provider_url(11, INTERFACE))
    await other.register_consumer(ProviderURL.consumer(INTERFACE, "h", application="tests", timestamp_ms=1))
    assert figures() == [2, 0]
    zookeeper.pause()
    assert not await one.register(provider_url(12, INTERFACE), timeout_s=0.05)
    assert figures() == [2, 1]
    assert not await one.unregister(provider_url(12, INTERFACE), timeout_s=0.05)
    assert figures() == [2, 0]
    assert not await one.register(provider_url(12, INTERFACE), timeout_s=0.05)
    assert figures() == [2, 1]
    zookeeper.resume()
    assert await one.wait_registered(provider_url(12, INTERFACE), 10)
    assert figures() == [3, 0]
    await one.unregister(provider_url(11, INTERFACE))
    assert figures() == [2, 0]
    await one.close()
    await other.close()
    assert figures() == [0, 0]


async def test_url_without_an_interface_is_refused(registry: Registry) -> None:
    """A URL without an interface is refused before anything is written."""
    with pytest.raises(BadProviderURL):
        await registry.register(ProviderURL("tri", "h", 1))
