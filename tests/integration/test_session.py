"""The session keeps its deadlines, says truly what may be assumed, and comes back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NodeExistsError, NoNodeError
from kazoo.security import ACL, ANYONE_ID_UNSAFE, OPEN_ACL_UNSAFE, Permissions

from coordination.deadline import Deadline
from coordination.errors import Forbidden, Unavailable, WrongProcess
from coordination.metrics import Metrics
from coordination.session import requests
from coordination.session.session import SLOTS, Session, SessionChange, SessionState
from services.testkit.fair_clock import fair_s
from tests.integration.zookeeper import SESSION_TIMEOUT_S, ZooKeeper, bridge_of, connected, expire, until

SLACK_S = 0.25


async def next_change(session: Session, *states: SessionState, timeout_s: float = 15.0) -> SessionChange:
    """Wait for the session to enter one of `states`."""
    entered: asyncio.Future[SessionChange] = asyncio.get_running_loop().create_future()

    def note(change: SessionChange) -> None:
        if change.state in states and not entered.done():
            entered.set_result(change)

    unsubscribe = session.subscribe(note)
    try:
        return await asyncio.wait_for(entered, timeout_s)
    finally:
        unsubscribe()


async def test_requests_create_read_write_list_and_delete(session: Session) -> None:
    """Nodes are created, read, written, listed and deleted; ZooKeeper's refusals are kazoo's exceptions."""
    path, made = await session.create("/requests", b"one")
    assert path == "/requests"
    assert made.ephemeralOwner == 0
    with pytest.raises(NodeExistsError):
        await session.create("/requests")
    assert (await session.set("/requests", b"two", version=0)).version == 1
    assert (await session.get("/requests"))[0] == b"two"
    await session.ensure_path("/requests/a/b/c/d/e")
    assert await session.get_children("/requests/a/b/c/d") == ["e"]
    assert await session.exists("/requests/none") is None
    with pytest.raises(NoNodeError):
        await session.delete("/requests/none")
    assert await session.create_all(["/requests/x", "/requests/y"])
    assert not await session.create_all(["/requests/z", "/requests/y"])
    assert sorted(await session.get_children("/requests")) == ["a", "x", "y"]
    with pytest.raises(NoNodeError):
        await session.create_all(["/requests/nowhere/z"])


async def test_request_that_cannot_be_written_takes_no_place(session: Session) -> None:
    """A path that is no text fails its own call, and costs nobody a place among the requests."""
    for _ in range(SLOTS + 1):
        with pytest.raises(UnicodeEncodeError):
            await session.exists("/\udcff", timeout_s=1)
    assert session._slots._value == SLOTS
    assert session._queue.in_flight == set()


async def test_paths_lie_under_the_chroot(zookeeper: ZooKeeper, session: Session) -> None:
    """With a chroot in the hosts every request, reply and event speaks of paths below it."""
    await session.ensure_path("/below/this")
    async with Session(f"{zookeeper.hosts}/below", timeout_s=SESSION_TIMEOUT_S) as inside:
        await inside.wait_connected(10)
        assert await inside.get_children("/") == ["this"]
        path, _ = await inside.create("/this/node-", sequence=True)
        assert path == "/this/node-0000000000"
        deadline = Deadline.after(5)
        parts = [requests.Create("/this/other"), requests.Create("/below"), requests.Create("/below/below")]
        assert await inside.ask(requests.transaction(parts), deadline) == [part.path for part in parts]
        assert (await inside.create("/below/too"))[0] == "/below/too"
        listings = await inside.ask(requests.get_children_of(["/", "/this", "/none"]), deadline)
        assert requests.names_of(["/", "/this", "/none"], listings)["/none"] == []
        assert sorted(listings[1]) == ["node-0000000000", "other"]
        news = asyncio.Event()
        await inside.get("/this/other", watch=news.set)
        await session.set("/below/this/other", b"new")
        await asyncio.wait_for(news.wait(), 5)


async def test_watch_fires_once_and_can_be_forgotten(session: Session) -> None:
    """A watch is called on the loop at the next news; a forgotten one is not, and leaves nothing here."""
    await session.create("/watched")
    news, forgotten = asyncio.Event(), asyncio.Event()
    await session.get("/watched", watch=news.set)
    await session.get("/watched", watch=forgotten.set)
    session.watches.remove("/watched", forgotten.set)
    await session.set("/watched", b"1")
    await asyncio.wait_for(news.wait(), 5)
    assert not forgotten.is_set()
    assert session.watches.by_path == {}
    with pytest.raises(NoNodeError):
        await session.get("/watched/none", watch=news.set)
    assert session.watches.by_path == {}


async def test_starts_without_zookeeper() -> None:
    """With nobody at the address start() succeeds, and wait_connected() fails within its time."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with Session(f"127.0.0.1:{port}", timeout_s=SESSION_TIMEOUT_S) as session:
        began = fair_s()
        with pytest.raises(Unavailable) as caught:
            await session.wait_connected(0.3)
        assert fair_s() - began < 0.3 + SLACK_S
        assert caught.value.retry_after_s > 0
        assert session.state is SessionState.CONNECTING
        assert session.session_id is None
        assert session.valid_until() == float("-inf")
        with pytest.raises(Unavailable) as caught:
            await session.get("/", timeout_s=0.1)
        assert not caught.value.maybe_done


async def test_client_that_gave_up_is_replaced() -> None:
    """A server that talks nonsense ends kazoo's thread for good; the session builds another client."""
    welcome = struct.pack("!iiqi16s?", 0, 2000, 1, 16, b"", False)
    nonsense = struct.pack("!iqi", 99, 1, 0)  # the reply to a request nobody made
    visits = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.read(4096)
        for packet in (welcome, nonsense):
            writer.write(struct.pack("!i", len(packet)) + packet)
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with Session(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=SESSION_TIMEOUT_S) as session:
        first = bridge_of(session).client
        await until(lambda: visits >= 2)
        assert bridge_of(session).client is not first
    server.close()
    await server.wait_closed()


async def test_session_with_zookeeper_frozen_before_connecting_keeps_its_deadlines(zookeeper: ZooKeeper) -> None:
    """A ZooKeeper that accepts connections and answers nothing delays neither wait_connected() nor close()."""
    zookeeper.pause()
    session = Session(zookeeper.hosts, timeout_s=SESSION_TIMEOUT_S)
    await session.start()
    began = fair_s()
    with pytest.raises(Unavailable):
        await session.wait_connected(0.3)
    assert fair_s() - began < 0.3 + SLACK_S
    began = fair_s()
    await session.close(timeout_s=0.5)
    assert fair_s() - began < 0.5 + SLACK_S
    assert session.state is SessionState.CLOSED


async def test_session_with_zookeeper_frozen_while_connected_keeps_its_deadlines(zookeeper: ZooKeeper) -> None:
    """Every request and close() keep their time; what was sent is reported as maybe done."""
    async with connected(zookeeper) as session:
        zookeeper.pause()
        began = fair_s()
        with pytest.raises(Unavailable) as caught:
            await session.create("/frozen", timeout_s=0.2)
        assert fair_s() - began < 0.2 + SLACK_S
        assert caught.value.maybe_done
        began = fair_s()
        await session.close(timeout_s=0.3)
        assert fair_s() - began < 0.3 + SLACK_S


async def test_frozen_is_noticed_under_load(session: Session, zookeeper: ZooKeeper) -> None:
    """Requests that keep coming do not hide a silent server: the connection is given up within the timeout.

    (kazoo looks for an overdue ping only when nothing else happens.)
    """
    suspended = asyncio.create_task(next_change(session, SessionState.SUSPENDED, timeout_s=2 * SESSION_TIMEOUT_S))
    await asyncio.sleep(0)
    zookeeper.pause()
    while not suspended.done():
        with pytest.raises(Unavailable):
            await session.exists("/", timeout_s=0.1)
    await suspended


async def test_many_requests_do_not_block_the_loop(session: Session) -> None:
    """With kazoo's thread stuck (a full send buffer) the loop goes on, however many requests pile up."""
    connection: Any = bridge_of(session).connection
    write, stuck, went_on = connection._write, threading.Event(), threading.Event()

    def hang(*packet: Any) -> None:
        stuck.wait(10)
        went_on.set()
        write(*packet)

    connection._write = hang
    requests = [asyncio.create_task(session.exists("/", timeout_s=0.5)) for _ in range(1000)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert not went_on.is_set()  # a loop that waited for kazoo's thread would have come here only after it
    stuck.set()
    async with asyncio.timeout(30):
        while True:
            with contextlib.suppress(Unavailable):  # the connection drops if it was stuck for too long
                await session.exists("/", timeout_s=10)
                break


async def test_request_that_got_lost_inside_ends_with_the_connection(session: Session) -> None:
    """A request kazoo never answers fails when the connection drops, and its place is free again."""

    connection: Any = bridge_of(session).connection
    connection.hand_over = lambda requests: None
    (reply,) = await session.send(requests.exists("/"), deadline=Deadline.after(1))
    await asyncio.sleep(0)
    del connection.hand_over
    connection._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises(Unavailable) as caught:
        await session.receive(reply, Deadline.after(10))
    assert caught.value.maybe_done
    await session.wait_connected(10)
    assert session._queue.in_flight == set()


async def test_lost_request_fails_when_the_session_is_suspended(session: Session, zookeeper: ZooKeeper) -> None:
    """Whoever learns that their request was lost finds the session SUSPENDED: kazoo fails requests first and tells of
    the dropped connection a moment later, in which the next request would be sent into the void."""
    client: Any = bridge_of(session).client
    fail_requests = client._notify_pending

    def preempted(state: str) -> None:
        fail_requests(state)
        time.sleep(0.1)

    client._notify_pending = preempted
    zookeeper.pause()
    (reply,) = await session.send(requests.exists("/"), deadline=Deadline.after(1))
    states: list[SessionState] = []
    reply.add_done_callback(lambda _: states.append(session.state))
    await asyncio.sleep(0.05)
    client._connection._socket.shutdown(socket.SHUT_RDWR)
    await until(reply.done)
    await asyncio.sleep(0)
    zookeeper.resume()
    assert states == [SessionState.SUSPENDED]
    await session.wait_connected(10)
    await session.exists("/")


async def test_request_given_up_is_not_sent_later(session: Session) -> None:
    """A request that was failed with one connection, before it was sent, is not sent on the next: whoever was told of
    the loss may have looked in vain for what it would make."""
    client: Any = bridge_of(session).client
    fail_requests, failed, go_on = client._notify_pending, threading.Event(), threading.Event()

    def preempted(state: str) -> None:
        fail_requests(state)
        failed.set()
        go_on.wait(10)

    client._notify_pending = preempted
    client._connection._socket.shutdown(socket.SHUT_RDWR)
    await until(failed.is_set)
    (reply,) = await session.send(requests.create("/too-late", b""), deadline=Deadline.after(1))
    await asyncio.sleep(0)
    assert [request.type for request, _ in client._queue] == [15]
    go_on.set()
    with pytest.raises(Unavailable):
        await session.receive(reply, Deadline.after(5))
    client._notify_pending = fail_requests
    await session.wait_connected(10)
    assert await session.exists("/too-late") is None
    assert session._queue.in_flight == set()
    assert session._slots._value == SLOTS


async def test_posting_many_deletes_does_not_block_the_loop(session: Session) -> None:
    """With kazoo's thread stuck any number of `post` returns at once, each in a turn of the loop of its own."""
    connection: Any = bridge_of(session).connection
    write, stuck, went_on = connection._write, threading.Event(), threading.Event()

    def hang(*packet: Any) -> None:
        stuck.wait(10)
        went_on.set()
        write(*packet)

    connection._write = hang
    replies = []
    for _ in range(1000):
        replies.append(session.post(requests.exists("/")))
        await asyncio.sleep(0)
    assert not went_on.is_set()
    stuck.set()
    await asyncio.wait([reply for reply in replies if reply is not None], timeout=10)
    assert session._queue.in_flight == set()


async def test_validity_follows_acknowledgements(session: Session, zookeeper: ZooKeeper) -> None:
    """While ZooKeeper answers, belief moves on by pings alone; when it is silent, belief lapses in time."""
    first = session.valid_until()
    assert time.monotonic() < first <= time.monotonic() + SESSION_TIMEOUT_S
    assert session.session_id is not None
    await until(lambda: session.valid_until() > first)
    assert time.monotonic() < first
    zookeeper.pause()
    silent_since = time.monotonic()
    present = session.session_id
    await until(lambda: not session.is_valid(present))
    assert time.monotonic() <= silent_since + SESSION_TIMEOUT_S
    assert session.valid_until() <= silent_since + SESSION_TIMEOUT_S


async def test_reconnected_session_is_the_same(session: Session) -> None:
    """A dropped connection: SUSPENDED, then CONNECTED with the same session, every watch told to look again."""
    before, changes, looked_again = session.session_id, list[SessionChange](), asyncio.Event()
    session.subscribe(changes.append)
    await session.exists("/nothing", watch=looked_again.set)
    again = asyncio.create_task(next_change(session, SessionState.CONNECTED))
    await asyncio.sleep(0)
    bridge_of(session).connection._socket.shutdown(socket.SHUT_RDWR)
    await again
    assert looked_again.is_set()
    assert session.session_id == before
    assert changes == [
        SessionChange(SessionState.SUSPENDED, before),
        SessionChange(SessionState.CONNECTED, before, new_session=False),
    ]


async def test_expired_session_is_replaced(session: Session) -> None:
    """A session that ZooKeeper ended: LOST, then CONNECTED with another."""
    before, changes = session.session_id, list[SessionChange]()
    session.subscribe(changes.append)
    again = asyncio.create_task(next_change(session, SessionState.CONNECTED))
    await asyncio.sleep(0)
    await expire(session)
    change = await again
    assert change.new_session
    assert change.session_id not in (None, before)
    assert [change.state for change in changes][-2:] == [SessionState.LOST, SessionState.CONNECTED]


async def test_changes_of_state_are_counted(zookeeper: ZooKeeper) -> None:
    """Each state entered counts once."""
    metrics, entered = Metrics(), Counter[SessionState]()
    async with Session(zookeeper.hosts, timeout_s=SESSION_TIMEOUT_S, metrics=metrics) as session:
        session.subscribe(lambda change: entered.update([change.state]))
        await session.wait_connected(10)
        again = asyncio.create_task(next_change(session, SessionState.CONNECTED))
        await asyncio.sleep(0)
        await expire(session)
        await again
    assert entered[SessionState.LOST] == entered[SessionState.CLOSED] == 1
    for state in SessionState:
        assert metrics.session_changes.labels(state.value)._value.get() == entered[state]


async def test_restarted_zookeeper_is_found_again(zookeeper: ZooKeeper) -> None:
    """Stopped and started again on the same port, ZooKeeper is found again without anybody's help."""
    async with connected(zookeeper) as session:
        suspended = asyncio.create_task(next_change(session, SessionState.SUSPENDED))
        await asyncio.sleep(0)
        zookeeper.stop()
        await suspended
        await asyncio.to_thread(zookeeper.start)
        await session.wait_connected(10)
        await session.exists("/", timeout_s=5)


async def test_late_reply_completes_its_future(session: Session, zookeeper: ZooKeeper) -> None:
    """The future of a request outlives its deadline, so that what it did late can be undone."""
    zookeeper.pause()
    (reply,) = await session.send(requests.create("/late", b""), deadline=Deadline.after(1))
    with pytest.raises(Unavailable):
        await session.receive(reply, Deadline.after(0.1))
    zookeeper.resume()
    path, _ = await asyncio.wait_for(reply, 10)
    assert path == "/late"


async def test_closed_session_refuses_at_once(zookeeper: ZooKeeper) -> None:
    """After close() nothing waits: requests fail at once, ephemeral nodes are gone."""
    async with connected(zookeeper) as other:
        async with connected(zookeeper) as session:
            await session.create("/mine", ephemeral=True)
            assert await other.exists("/mine") is not None
        assert await other.exists("/mine") is None
    began = fair_s()
    with pytest.raises(Unavailable):
        await session.get("/", timeout_s=5)
    assert fair_s() - began < SLACK_S
    await session.close()


async def test_session_in_a_forked_child_raises(session: Session) -> None:
    """In a forked child, whose threads are gone, the session raises instead of hanging."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        verdict = b"no error"
        try:
            session.check_process()
        except WrongProcess:
            verdict = b"told"
        finally:
            os.write(tell, verdict)
            os._exit(0)
    assert os.read(told, 100) == b"told"  # it ends right after writing
    os.waitpid(child, 0)  # noqa: ASYNC222
    os.close(told)
    os.close(tell)
    await session.exists("/")


async def test_missing_chroot_is_made_with_the_first_path_under_it(zookeeper: ZooKeeper, session: Session) -> None:
    async with Session(f"{zookeeper.hosts}/new/house", timeout_s=SESSION_TIMEOUT_S) as inside:
        await inside.wait_connected(10)
        await inside.ensure_path("/a/b")
        assert await inside.get_children("/a") == ["b"]
    assert await session.get_children("/new/house") == ["a"]


async def test_path_under_a_node_that_may_not_be_created_is_made_where_that_node_exists(
    zookeeper: ZooKeeper, session: Session
) -> None:
    """CREATE on the root is not needed by somebody whose own directory is there."""
    await session.ensure_path("/theirs")
    async with everything_but_create_on("/", zookeeper):
        await session.ensure_path("/theirs/a/b")
        assert await session.get_children("/theirs/a") == ["b"]


async def test_path_that_may_not_be_created_and_is_missing_is_named_in_a_sentence(
    zookeeper: ZooKeeper, session: Session
) -> None:
    async with (
        everything_but_create_on("/", zookeeper),
        Session(f"{zookeeper.hosts}/elsewhere", timeout_s=SESSION_TIMEOUT_S) as inside,
    ):
        await inside.wait_connected(10)
        with pytest.raises(Forbidden, match=r"ZooKeeper has no /elsewhere/a, .* allow us CREATE"):
            await inside.ensure_path("/a")


@asynccontextmanager
async def everything_but_create_on(path: str, zookeeper: ZooKeeper) -> AsyncIterator[None]:
    """Take CREATE on a node away from everybody, for as long as it lasts."""
    client = KazooClient(hosts=zookeeper.hosts)
    await asyncio.to_thread(client.start)
    try:
        await asyncio.to_thread(client.set_acls, path, [ACL(Permissions.ALL & ~Permissions.CREATE, ANYONE_ID_UNSAFE)])
        yield
    finally:
        await asyncio.to_thread(client.set_acls, path, OPEN_ACL_UNSAFE)
        await asyncio.to_thread(client.stop)
        client.close()
