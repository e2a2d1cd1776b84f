"""Which of several PostgreSQL servers a new connection goes to. The servers are played; deploy/ has real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from services.runtime.database import postgresql_servers
from services.runtime.database.postgresql_servers import Servers

HOSTS = ("a", "b", "c")


class Connection:
    """To one server."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.terminated = False

    def terminate(self) -> None:
        self.terminated = True


class Played:
    """Three servers: `primary` accepts a connection, `frozen` never answers, all others refuse."""

    def __init__(self, primary: str = "", frozen: str = "") -> None:
        self.primary, self.frozen = primary, frozen
        self.asked: list[str] = []
        self.opened: list[Connection] = []
        self.thawed = asyncio.Event()

    async def open_one(self, host: str, port: int) -> Connection:
        assert port == 5432
        self.asked.append(host)
        if host == self.frozen:
            await self.thawed.wait()
        elif host != self.primary:
            raise ConnectionRefusedError(host)
        self.opened.append(Connection(host))
        return self.opened[-1]


@pytest.fixture
def servers() -> Servers:
    return Servers(HOSTS, [5432] * 3)


async def test_primary_of_the_last_connection_is_asked_alone(servers: Servers) -> None:
    played = Played(primary="b")
    assert (await servers.connect(played.open_one)).host == "b"
    assert set(played.asked) == {*HOSTS}
    played.asked.clear()
    assert (await servers.connect(played.open_one)).host == "b"
    assert played.asked == ["b"]


async def test_others_are_asked_when_a_server_refuses(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and not after the head start."""
    monkeypatch.setattr(postgresql_servers, "_HEAD_START_S", 3600.0)
    played = Played(primary="c")
    async with asyncio.timeout(30):
        assert (await servers.connect(played.open_one)).host == "c"


async def test_server_that_is_frozen_costs_the_head_start(servers: Servers) -> None:
    """What it answers later is not waited for, and a connection that comes all the same is closed."""
    played = Played(primary="c", frozen="a")
    async with asyncio.timeout(30):
        assert (await servers.connect(played.open_one)).host == "c"
    played.thawed.set()
    await asyncio.sleep(0)
    assert all(connection.terminated for connection in played.opened if connection.host == "a")


async def test_connection_of_a_second_primary_is_closed(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was cut off may not know yet that another has taken its place."""
    monkeypatch.setattr(postgresql_servers, "_HEAD_START_S", 0.0)
    opened: list[Connection] = []

    async def open_one(host: str, _port: int) -> Connection:
        await asyncio.sleep(0)  # so that all are asked before one answers
        opened.append(Connection(host))
        return opened[-1]

    used = await servers.connect(open_one)
    await asyncio.sleep(0)
    assert [connection for connection in opened if not connection.terminated] == [used]


async def test_error_of_the_server_that_was_the_primary_is_raised_where_none_is(servers: Servers) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"^a$"):
        await servers.connect(Played().open_one)


async def test_connect_that_is_cancelled_leaves_no_connection(servers: Servers) -> None:
    played = Played(frozen="a")
    connecting = asyncio.create_task(servers.connect(played.open_one))
    await until(lambda: played.asked == [*HOSTS])
    connecting.cancel()
    await asyncio.gather(connecting, return_exceptions=True)
    played.thawed.set()
    await asyncio.sleep(0)
    assert all(connection.terminated for connection in played.opened)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  tasks of this loop
            await asyncio.sleep(0)
