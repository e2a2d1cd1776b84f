"""ZooKeeper that lost its data, is an older backup or forbids writing: refused in words, and used once mended."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from kazoo.client import KazooClient
from kazoo.security import make_acl

import services.order
from coordination.errors import GenerationUnbelievable
from coordination.locks import ResourceLocks, generation
from coordination.session import Session
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from services.kernel.principal import Principal, Role
from services.order.schema import ENSEMBLE, ORDERS
from services.payment.locks import CoordinatedLocks
from services.runtime.database.database import Database, read_generation
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction
from services.runtime.ensemble import Ensemble, EnsembleRefused
from services.runtime.zookeeper_paths import GENERATION_PATH
from tests.integration.zookeeper import ZooKeeper, connected, expire, until

PACKAGE = Path(services.order.__file__).parent
FENCES = (ORDERS.c.fence_generation, ORDERS.c.fence_token)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ZooKeeper]:
    """One of the test's own."""
    if shutil.which("java") is None:
        pytest.skip("no java: ZooKeeper cannot be started")
    (tmp_path / "zookeeper").mkdir()
    server = ZooKeeper(tmp_path / "zookeeper")
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database(f"sqlite:///{tmp_path / 'order.db'}") as database:
        await bring_up_to_date(database, PACKAGE, migrate=True)
        yield database


class Running:
    """A service's part that settles the generation, and a session it has."""

    def __init__(self, session: Session, database: Database) -> None:
        self.session = session
        self.ensemble = Ensemble(session, database, ENSEMBLE, FENCES)
        self.start()

    def start(self) -> None:
        self._keeping = asyncio.create_task(self.ensemble.keep())

    async def stop(self) -> None:
        self._keeping.cancel()
        await asyncio.gather(self._keeping, return_exceptions=True)

    async def generation(self) -> int:
        assert self.session.session_id is not None
        return await self.ensemble.generation_in(self.session.session_id, 10)

    async def until_refused(self, reason: str = "ENSEMBLE_BEHIND") -> Unavailable:
        found: list[Unavailable] = []

        def refused() -> bool:
            try:
                self.ensemble.check()
            except Unavailable as error:
                if error.reason == reason:
                    found.append(error)
            return bool(found)

        await until(refused, 30)
        return found[0]

    async def until_generation(self, wanted: int) -> None:
        async def settled() -> bool:
            try:
                return self.session.session_id is not None and await self.generation() == wanted
            except Unavailable:
                return False

        await until(settled, 30)


@pytest.fixture
async def running(server: ZooKeeper, database: Database) -> AsyncIterator[Running]:
    async with connected(server) as session:
        running = Running(session, database)
        await running.ensemble.settle()
        yield running
        await running.stop()


def replace_data(server: ZooKeeper, by: Path | None = None) -> None:
    """Lose a server's data; a copy of before takes their place, or nothing."""
    server.stop()
    shutil.rmtree(server._directory / "data")
    if by is not None:
        shutil.copytree(by, server._directory / "data")
    server.start()


async def test_session_with_a_server_that_lost_its_data_is_replaced_by_a_new_one(server: ZooKeeper) -> None:
    """ZooKeeper hangs up on who has seen a newer zxid than it has."""
    async with connected(server) as session:
        first = session.session_id
        for number in range(20):
            await session.create(f"/seen-{number}")
        replace_data(server)
        await until(lambda: session.session_id not in (None, first), 30)
        await session.wait_connected(10)
        assert await session.exists("/seen-0") is None


async def test_ensemble_that_lost_its_data_is_refused_until_the_remedy_and_then_used_without_a_restart(
    server: ZooKeeper, running: Running, database: Database
) -> None:
    assert await running.generation() == 1
    for number in range(20):
        await running.session.create(f"/seen-{number}")
    replace_data(server)
    refusal = await running.until_refused()
    assert "countinghouse doctor --new-generation 2" in refusal.message
    async with connected(server) as doctor:
        await generation.advance(doctor, 2, path=GENERATION_PATH)
    await running.until_generation(2)
    assert await read_generation(database, ENSEMBLE) == 2


async def test_older_backup_of_the_same_generation_is_refused_until_the_remedy(
    server: ZooKeeper, running: Running, database: Database, tmp_path: Path
) -> None:
    """Its locks' fences would be older than those in use: every order would be answered "ask again" for ever."""
    server.stop()
    shutil.copytree(server._directory / "data", tmp_path / "backup")
    server.start()
    async with connected(server) as other:
        for number in range(50):
            _, stat = await other.create(f"/seen-{number}")
    await running.until_generation(1)
    await note_fence(database, 1, stat.czxid)
    replace_data(server, tmp_path / "backup")
    refusal = await running.until_refused()
    assert "countinghouse doctor --new-generation 2" in refusal.message
    async with connected(server) as doctor:
        await generation.advance(doctor, 2, path=GENERATION_PATH)
    await running.until_generation(2)


async def test_impossible_generation_is_refused_and_repaired(running: Running, database: Database) -> None:
    """It is not taken over, so the next one is still a small number."""
    await running.session.set(GENERATION_PATH, b"%d" % 2**62)
    refusal = await running.until_refused()
    assert "--new-generation 2" in refusal.message
    assert await read_generation(database, ENSEMBLE) == 1
    assert await generation.advance(running.session, 2, path=GENERATION_PATH) == 2
    await running.until_generation(2)


@pytest.mark.parametrize("held", [b"", b"two", b"-1", b"0", b"9" * 40, "１".encode(), b"1 "])
async def test_generation_that_is_no_number_is_refused_and_repaired(server: ZooKeeper, held: bytes) -> None:
    async with connected(server) as session:
        await session.ensure_path("/countinghouse")
        await session.create(GENERATION_PATH, held)
        with pytest.raises(GenerationUnbelievable):
            await generation.ensure(session, 1, path=GENERATION_PATH)
        assert await generation.advance(session, 2, path=GENERATION_PATH) == 2
        assert await generation.ensure(session, 1, path=GENERATION_PATH) == 2


async def test_generation_beyond_int64_is_never_written(server: ZooKeeper) -> None:
    async with connected(server) as session:
        with pytest.raises(ValueError, match="a generation is a number"):
            await generation.advance(session, 2**63, path=GENERATION_PATH)
        assert await generation.read(session, path=GENERATION_PATH) is None


@pytest.mark.parametrize("node", ["/", "/countinghouse"])
async def test_ensemble_that_forbids_its_generation_is_refused_until_it_is_allowed(
    server: ZooKeeper, database: Database, node: str
) -> None:
    """In words, to callers and to the start; then it is used without a restart."""
    async with connected(server) as session, administrating(server) as zookeeper:
        if node != "/":
            await session.ensure_path(node)
        await asyncio.to_thread(zookeeper.set_acls, node, [make_acl("world", "anyone", read=True, admin=True)])
        running = Running(session, database)
        try:
            refusal = await running.until_refused("ENSEMBLE_FORBIDDEN")
            assert "/countinghouse" in refusal.message
            assert "nothing was done" in refusal.message
            with pytest.raises(EnsembleRefused) as ended:
                await running.ensemble.settle()
            assert ended.value.reason == "ENSEMBLE_FORBIDDEN"
            assert await read_generation(database, ENSEMBLE) == 0
            await asyncio.to_thread(zookeeper.set_acls, node, [make_acl("world", "anyone", all=True)])
            await running.until_generation(1)
            running.ensemble.check()
        finally:
            await running.stop()


async def test_service_that_starts_before_it_has_its_rights_waits_for_them(
    server: ZooKeeper, database: Database
) -> None:
    """The operator starts at the same time, and gives them in a moment."""
    async with connected(server) as session, administrating(server) as zookeeper:
        await session.ensure_path("/countinghouse")
        await asyncio.to_thread(
            zookeeper.set_acls, "/countinghouse", [make_acl("world", "anyone", read=True, admin=True)]
        )
        running = Running(session, database)
        try:
            await running.until_refused("ENSEMBLE_FORBIDDEN")
            starting = asyncio.create_task(running.ensemble.settle())
            await asyncio.to_thread(zookeeper.set_acls, "/countinghouse", [make_acl("world", "anyone", all=True)])
            await starting
            running.ensemble.check()
        finally:
            await running.stop()


async def test_lock_of_a_new_session_waits_until_the_generation_is_settled_for_that_session(
    server: ZooKeeper, running: Running
) -> None:
    """What was settled for the session before says nothing: the ensemble may have been made anew between them."""
    locks = ResourceLocks(running.session, root="/countinghouse/locks", shards=4)
    await locks.prepare(10)
    orders = CoordinatedLocks(locks, running.ensemble, SystemClock(), instance="payment-1", wait_turn=True)
    li = Principal("li", Role.CASHIER)
    async with orders.hold("o1", li, "p1", 10) as hold:
        assert hold.fence.generation == 1
    first = running.session.session_id
    await running.stop()  # nobody looks at the new session
    await expire(running.session)
    await until(lambda: running.session.session_id not in (None, first), 30)
    await running.session.wait_connected(10)
    async with connected(server) as doctor:
        await generation.advance(doctor, 2, path=GENERATION_PATH)

    with pytest.raises(Unavailable) as refusal:
        async with orders.hold("o1", li, "p2", 0.5):
            raise AssertionError("held under a generation that is not known")
    assert refusal.value.reason == "ZOOKEEPER_UNAVAILABLE"

    async def held() -> int:
        async with orders.hold("o1", li, "p3", 20) as hold:
            return hold.fence.generation

    holding = asyncio.create_task(held())
    await until(lambda: has_queue(locks, "p3"), 10)
    running.start()
    assert await holding == 2


async def has_queue(locks: ResourceLocks, payment: str) -> bool:
    """Whether a payment is first in line for the order."""
    queue = await locks.queue("o1")
    return bool(queue) and queue[0].holder is not None and queue[0].holder.details["payment"] == payment


@asynccontextmanager
async def administrating(server: ZooKeeper) -> AsyncIterator[KazooClient]:
    """Somebody who may change access lists."""
    client = KazooClient(hosts=server.hosts)
    await asyncio.to_thread(client.start)
    yield client
    await asyncio.to_thread(client.stop)
    client.close()


async def note_fence(database: Database, of: int, token: int) -> None:
    """An order that was locked under a fence."""
    from sqlalchemy import text

    values: dict[str, object] = {}
    for column in ORDERS.columns:
        kind = column.type.python_type
        values[column.key] = {int: 0, str: "", bool: False, bytes: b""}[kind]
    values |= {"order_id": "o1", "fence_generation": of, "fence_token": token}

    async def step(tx: Transaction) -> None:
        await tx.execute(text("PRAGMA ignore_check_constraints = 1"))
        await tx.execute(ORDERS.insert().values(**values))

    await database.run(step)
