"""Error codes of ZooKeeper that are not about a node: outcomes for the caller, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_acl

from coordination.deadline import Deadline
from coordination.errors import Refused, Unavailable
from coordination.locks import ResourceLocks
from coordination.session import Session, SessionState, requests
from tests.integration.queueing import CASHIER, nodes_left
from tests.integration.relay import CREATE2, DELETE, GET_CHILDREN, Relay, relayed
from tests.integration.zookeeper import ZooKeeper, until

REQUEST_TIMEOUT, NOT_AUTHORISED, QUOTA_EXCEEDED, THROTTLED, NEVER_HEARD_OF = -122, -102, -125, -127, -999
WAIT_S = 10.0
LONG_SESSION_S = 10.0  # no session ends here, however busy the machine is


@pytest.fixture
async def relay(zookeeper: ZooKeeper) -> AsyncIterator[Relay]:
    """Between `through` and ZooKeeper."""
    async with relayed(zookeeper.hosts) as relay:
        yield relay


@pytest.fixture
async def through(relay: Relay) -> AsyncIterator[Session]:
    """A session whose requests the relay can answer itself."""
    async with Session(relay.hosts, timeout_s=LONG_SESSION_S, name="through") as session:
        await session.wait_connected(WAIT_S)
        yield session


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Each test has its own: a session that could not be closed in time keeps its nodes until it expires."""
    return f"/{tmp_path.name}/locks"


@pytest.fixture
async def locks(through: Session, root: str) -> ResourceLocks:
    """Prepared locks of that session."""
    locks = ResourceLocks(through, root=root, shards=4)
    await locks.prepare(WAIT_S)
    return locks


@pytest.mark.parametrize("code", [THROTTLED, QUOTA_EXCEEDED, NOT_AUTHORISED])
async def test_request_not_carried_out_is_refused(through: Session, relay: Relay, code: int) -> None:
    relay.answer(CREATE2, code)
    with pytest.raises(Refused) as refusal:
        await through.create("/never-made", timeout_s=WAIT_S)
    assert not refusal.value.maybe_done
    assert await through.exists("/never-made", timeout_s=WAIT_S) is None


async def test_request_timed_out_in_the_server_may_have_been_done(through: Session, relay: Relay) -> None:
    relay.answer(CREATE2, REQUEST_TIMEOUT, done=True)
    with pytest.raises(Unavailable) as away:
        await through.create("/made-all-the-same", timeout_s=WAIT_S)
    assert away.value.maybe_done
    assert await through.exists("/made-all-the-same", timeout_s=WAIT_S) is not None


async def test_unknown_error_code_ends_one_request_and_not_the_session(through: Session, relay: Relay) -> None:
    session_id = through.session_id
    relay.answer(CREATE2, NEVER_HEARD_OF)
    with pytest.raises(Unavailable) as away:
        await through.create("/never-heard-of", timeout_s=WAIT_S)
    assert away.value.maybe_done
    assert (through.state, through.session_id) == (SessionState.CONNECTED, session_id)


@pytest.mark.parametrize("code", [THROTTLED, QUOTA_EXCEEDED])
async def test_refused_lock_is_unavailable_and_leaves_no_node(
    locks: ResourceLocks, root: str, relay: Relay, session: Session, code: int
) -> None:
    """Also for a batch, whose refusal lies in the results of its transaction."""
    relay.answer(CREATE2, code)
    with pytest.raises(Refused):
        await locks.acquire("order-1", CASHIER, timeout_s=WAIT_S)
    assert await locks.drained(WAIT_S)
    assert await nodes_left(session, root) == []
    relay.answer(CREATE2, 0)
    async with await locks.acquire("order-1", CASHIER, timeout_s=WAIT_S) as lease:
        assert lease.valid()


async def test_lock_created_by_a_request_that_timed_out_is_held(locks: ResourceLocks, relay: Relay) -> None:
    """The node is found by its nonce, as after a lost reply."""
    relay.answer(CREATE2, REQUEST_TIMEOUT, done=True)
    async with await locks.acquire("order-1", CASHIER, timeout_s=WAIT_S) as lease:
        assert lease.valid()


async def test_listing_refused_for_now_keeps_the_place_in_the_queue(locks: ResourceLocks, relay: Relay) -> None:
    relay.forget()
    relay.answer(GET_CHILDREN, THROTTLED)
    taking = asyncio.ensure_future(locks.acquire("order-1", CASHIER, timeout_s=WAIT_S))
    await until(lambda: relay.requests().count(GET_CHILDREN) > 2)
    relay.answer(GET_CHILDREN, 0)
    async with await taking as lease:
        assert lease.valid()
    assert relay.requests().count(CREATE2) == 1


async def test_release_refused_is_tried_again_until_the_node_is_gone(
    locks: ResourceLocks, root: str, relay: Relay, session: Session
) -> None:
    """`drained()` says so only then."""
    lease = await locks.acquire("order-1", CASHIER, timeout_s=WAIT_S)
    relay.answer(DELETE, THROTTLED)
    lease.release()
    await until(lambda: relay.requests().count(DELETE) >= 2)
    assert not await locks.drained(0.0)
    assert len(await nodes_left(session, root)) == 1
    relay.answer(DELETE, 0)
    assert await locks.drained(WAIT_S)
    assert await nodes_left(session, root) == []


async def test_shard_without_the_right_to_create_refuses_one_lock_and_a_batch(
    zookeeper: ZooKeeper, locks: ResourceLocks, root: str, session: Session
) -> None:
    """A real NOAUTH, from an ACL."""
    read_only = [make_acl("world", "anyone", read=True)]
    administrator = KazooClient(zookeeper.hosts)
    await asyncio.to_thread(administrator.start)
    try:
        shards = await asyncio.to_thread(administrator.get_children, root)
        for shard in shards:
            await asyncio.to_thread(administrator.set_acls, f"{root}/{shard}", read_only)
        with pytest.raises(Refused):
            await locks.acquire("order-1", CASHIER, timeout_s=WAIT_S)
        with pytest.raises(Refused):
            await locks.acquire_all(["order-1", "order-2"], CASHIER, timeout_s=WAIT_S)
        assert await locks.drained(WAIT_S)
        assert await nodes_left(session, root) == []
    finally:
        await asyncio.to_thread(administrator.stop)
        administrator.close()


async def test_listing_of_a_node_that_may_not_be_read_is_refused(zookeeper: ZooKeeper, session: Session) -> None:
    """Alone, and among others that are listed in one request."""
    administrator = KazooClient(zookeeper.hosts)
    await asyncio.to_thread(administrator.start)
    try:
        nobody = [make_acl("world", "anyone", admin=True)]
        await asyncio.to_thread(administrator.create, "/hidden", b"", nobody)
        await asyncio.to_thread(administrator.create, "/shown", b"")
        with pytest.raises(Refused):
            await session.get_children("/hidden", timeout_s=WAIT_S)
        reply = await session.ask(requests.get_children_of(["/shown", "/hidden"]), Deadline.after(WAIT_S))
        with pytest.raises(Refused):
            requests.names_of(["/shown", "/hidden"], reply)
    finally:
        await asyncio.to_thread(administrator.stop)
        administrator.close()
