"""Liveness and readiness, with a database and a ZooKeeper that are there or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from coordination.session import Session, SessionState
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from services.runtime.database.database import Database
from services.runtime.grpc import health
from services.runtime.grpc.health import HealthMonitor

INTERFACE = "countinghouse.order.v1.OrderService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class FakeSession:
    """A session whose state a test sets."""

    def __init__(self) -> None:
        self.state = SessionState.CONNECTED
        self._told: list[Callable[[object], None]] = []

    def subscribe(self, told: Callable[[object], None]) -> Callable[[], None]:
        self._told.append(told)
        return lambda: self._told.remove(told)

    def becomes(self, state: SessionState) -> None:
        self.state = state
        for told in self._told:
            told(state)


class FakeDatabase:
    """A database that answers, or does not."""

    def __init__(self) -> None:
        self.away = False
        self.broken = False
        self.full = False
        self.writes_fail = False

    async def ping(self) -> None:
        if self.away:
            raise Unavailable("DATABASE_UNAVAILABLE", "away")
        if self.broken:
            raise ZeroDivisionError

    async def write(self) -> None:
        self.writes_fail = self.full
        if self.full:
            raise Unavailable("DATABASE_FULL", "full")


class Context:
    """As much of a servicer's context as `Check` uses: it aborts for a name of which nothing was told yet."""

    async def abort(self, code: grpc.StatusCode) -> None:
        raise LookupError(code)


class Monitored:
    """A monitor and what it looks at."""

    def __init__(self) -> None:
        self.session, self.database, self.servicer = FakeSession(), FakeDatabase(), HealthServicer()
        self.monitor = HealthMonitor(
            self.servicer,
            cast(Database, self.database),
            cast(Session, self.session),
            INTERFACE,
            self.database.write,
            SystemClock(),
        )

    async def says(self, service: str) -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await self.servicer.Check(request, cast(Any, Context()))).status

    async def until(self, service: str, wanted: Any) -> None:
        async with asyncio.timeout(10):
            while True:
                with suppress(LookupError):
                    if await self.says(service) == wanted:
                        return
                await asyncio.sleep(0.01)


@pytest.fixture
async def monitored() -> AsyncIterator[Monitored]:
    made = Monitored()
    watching = asyncio.create_task(made.monitor.watch())
    await made.monitor.ready.wait()
    yield made
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_readiness_with_zookeeper_suspended_is_not_serving_and_liveness_is(monitored: Monitored) -> None:
    """A process that still serves reads is not to be started again."""
    monitored.session.becomes(SessionState.SUSPENDED)
    await monitored.until(INTERFACE, NOT_SERVING)
    assert await monitored.says("") == SERVING
    monitored.session.becomes(SessionState.CONNECTED)
    await monitored.until(INTERFACE, SERVING)


async def test_readiness_with_database_away_is_not_serving_and_liveness_is(monitored: Monitored) -> None:
    monitored.database.away = True
    monitored.session.becomes(SessionState.CONNECTED)  # makes it look at once
    await monitored.until(INTERFACE, NOT_SERVING)
    assert await monitored.says("") == SERVING


async def test_liveness_before_first_readiness_is_serving() -> None:
    """A process that starts while ZooKeeper is frozen waits for it, and is not started again."""
    made = Monitored()
    made.session.state = SessionState.SUSPENDED
    watching = asyncio.create_task(made.monitor.watch())
    await made.until(INTERFACE, NOT_SERVING)
    assert await made.says("") == SERVING
    assert not made.monitor.ready.is_set()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_stopping_server_is_neither_alive_nor_ready(monitored: Monitored) -> None:
    """Whoever watches either name hears that it takes no new calls."""
    await monitored.monitor.stopping()
    assert (await monitored.says(""), await monitored.says(INTERFACE)) == (NOT_SERVING, NOT_SERVING)


async def test_readiness_with_a_database_that_cannot_be_written_is_not_serving_until_a_write_works(
    monitored: Monitored,
) -> None:
    monitored.database.full = monitored.database.writes_fail = True  # a call was refused
    monitored.session.becomes(SessionState.CONNECTED)  # makes it look at once
    await monitored.until(INTERFACE, NOT_SERVING)
    assert await monitored.says("") == SERVING
    monitored.database.full = False
    await monitored.until(INTERFACE, SERVING)
    assert not monitored.database.writes_fail


async def test_readiness_of_an_idle_server_notices_that_its_database_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "WRITE_EVERY_S", 0.0)
    made = Monitored()
    made.database.full = True
    watching = asyncio.create_task(made.monitor.watch())
    await made.until(INTERFACE, NOT_SERVING)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_monitor_whose_database_fails_unexpectedly_reports_not_serving_and_goes_on(
    monitored: Monitored,
) -> None:
    monitored.database.broken = True
    monitored.session.becomes(SessionState.CONNECTED)
    await monitored.until(INTERFACE, NOT_SERVING)
    monitored.database.broken = False
    await monitored.until(INTERFACE, SERVING)


async def test_readiness_without_a_zookeeper_follows_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    """The acquirer's: it knows no ZooKeeper."""
    monkeypatch.setattr(health, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(health, "_INTERVAL_S", 0.01)
    database, servicer = FakeDatabase(), HealthServicer()
    made = Monitored()
    made.servicer, made.database = servicer, database
    monitor = HealthMonitor(servicer, cast(Database, database), None, INTERFACE, database.write, SystemClock())
    watching = asyncio.create_task(monitor.watch())
    await made.until(INTERFACE, SERVING)
    database.full = True
    await made.until(INTERFACE, NOT_SERVING)
    assert await made.says("") == SERVING
    database.full = False
    await made.until(INTERFACE, SERVING)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
