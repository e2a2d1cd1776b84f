"""A session over TLS, as a user: with a real ZooKeeper that has a certificate."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kazoo.security import ACL, Id, Permissions

from coordination.errors import Refused, Unavailable
from coordination.locks import Holder, ResourceLocks
from coordination.session import Session, SessionState, kazoo_bridge
from coordination.session.security import Security
from tests.certificates import CertificateIssuer
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, bridge_of, until

NAME = "zookeeper.countinghouse"
#: All for the user who creates a node, and nothing for others.
CREATORS = (ACL(Permissions.ALL, Id("auth", "")),)
Contexts = Callable[[], ssl.SSLContext]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> CertificateIssuer:
    return CertificateIssuer(tmp_path_factory.mktemp("ours") / "keys")


@pytest.fixture(scope="module")
def secured(issuer: CertificateIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZooKeeper]:
    server = ZooKeeper(
        tmp_path_factory.mktemp("zookeeper"), certified=(issuer.authority.file, issuer.certify("zookeeper"))
    )
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def context(issuer: CertificateIssuer) -> Contexts:
    return lambda: ssl.create_default_context(cafile=issuer.authority.file)


def session(server: ZooKeeper, security: Security) -> Session:
    return Session(server.hosts, timeout_s=SESSION_TIMEOUT_S, security=security)


def user(context: Contexts, name: str = "payment") -> Security:
    return Security(context, NAME, lambda: f"{name}:secret", CREATORS)


async def test_requests_locks_and_watches_work_over_tls(secured: ZooKeeper, context: Contexts) -> None:
    """Also replies of many records of TLS, which are decrypted in pieces, and replies that come together in one."""
    async with session(secured, user(context)) as one:
        await one.wait_connected(10.0)
        await one.ensure_path("/parts")
        for size in (1, 16_384, 16_385, 900_000):
            await one.create(f"/parts/{size}", b"x" * size)
            assert len((await one.get(f"/parts/{size}"))[0]) == size
        changed = asyncio.Event()
        await one.get_children("/parts", watch=changed.set)
        await asyncio.gather(*(one.create(f"/parts/many-{number}", b"y" * 300) for number in range(300)))
        async with asyncio.timeout(10.0):
            await changed.wait()
        assert len(await one.get_children("/parts")) == 304
        locks = ResourceLocks(one, root="/locks")
        async with await locks.acquire("order-17", Holder("li"), timeout_s=10.0) as lease:
            assert lease.valid()


async def test_password_is_logged_at_no_level(
    secured: ZooKeeper, context: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(1):
        async with session(secured, user(context)) as one:
            await one.wait_connected(10.0)
            await one.exists("/")
    assert "Sending request" in caplog.text, "of kazoo"
    assert "secret" not in caplog.text


async def test_user_that_cannot_be_read_for_a_moment_is_read_again(
    secured: ZooKeeper, context: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a client has ended, the one in its place asks for the user's password anew."""
    monkeypatch.setattr(kazoo_bridge, "REBUILD_AFTER_S", 0.05)
    asked = 0

    def name_and_password() -> str:
        nonlocal asked
        asked += 1
        if asked in (2, 3):
            raise OSError(24, "Too many open files")
        return "payment:secret"

    async with session(secured, Security(context, NAME, name_and_password, CREATORS)) as one:
        await one.wait_connected(10.0)
        bridge = bridge_of(one)
        ended = bridge.client
        bridge._on_client_end(ended)
        await until(lambda: bridge.client is not ended)
        await one.wait_connected(10.0)
        assert asked == 4


async def test_silent_session_outlives_its_timeout(secured: ZooKeeper, context: Contexts) -> None:
    """Its pings are sent and answered."""
    async with session(secured, user(context)) as one:
        await one.wait_connected(10.0)
        before = one.session_id
        await asyncio.sleep(2 * SESSION_TIMEOUT_S)
        assert one.session_id == before
        await one.exists("/")


@pytest.mark.parametrize("wrong", ["name", "authority", "plain text"])
async def test_server_that_is_not_ours_gets_no_session(
    secured: ZooKeeper, context: Contexts, tmp_path: Path, wrong: str
) -> None:
    """Nor a password: the handshake ends before anything is sent."""
    security = Security(context, "order.countinghouse", lambda: "payment:secret")
    if wrong == "authority":
        other = CertificateIssuer(tmp_path / "other").authority.file
        security = Security(lambda: ssl.create_default_context(cafile=other), NAME, lambda: "payment:secret")
    if wrong == "plain text":
        security = Security()
    async with session(secured, security) as one:
        with pytest.raises(Unavailable):
            await one.wait_connected(1.5)


async def test_nodes_of_a_user_are_closed_to_others(secured: ZooKeeper, context: Contexts) -> None:
    async with session(secured, user(context)) as owner, session(secured, user(context, "order")) as other:
        await owner.ensure_path("/owned")
        await owner.create("/owned/node", b"1")
        async with session(secured, Security(context, NAME)) as anonymous:
            for stranger in (other, anonymous):
                await stranger.wait_connected(10.0)
                for request in (
                    stranger.get("/owned/node"),
                    stranger.get_children("/owned"),
                    stranger.set("/owned/node", b"2"),
                    stranger.create("/owned/more"),
                    stranger.delete("/owned/node"),
                ):
                    with pytest.raises(Refused):
                        await request
        assert (await owner.get("/owned/node"))[0] == b"1"


async def test_user_is_known_again_after_a_reconnection(secured: ZooKeeper, context: Contexts) -> None:
    """To the same session, of which ZooKeeper forgets the users with the connection; the context is asked for anew."""
    asked = 0

    def counted() -> ssl.SSLContext:
        nonlocal asked
        asked += 1
        return context()

    async with session(secured, user(counted)) as one:
        await one.wait_connected(10.0)
        await one.ensure_path("/again")
        before, times = one.session_id, asked
        secured.stop()
        await until(lambda: one.state is SessionState.SUSPENDED)
        secured.start()
        await one.wait_connected(20.0)
        await one.create("/again/node")
        assert one.session_id == before
        assert asked > times
        await until(lambda: one.is_valid(before or 0))
