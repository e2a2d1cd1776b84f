"""Data that an earlier release wrote: today's services migrate it, answer for it, and go on with it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import make_url

from coordination.locks import generation
from coordination.session import Session
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.devstack.stack import Stack
from services.kernel.principal import Role
from services.runtime.database.pgpass import Roles
from services.runtime.database.postgres_roles import prepare
from services.runtime.zookeeper_paths import GENERATION_PATH
from services.testkit.client import RecordingClient
from services.testkit.harness import Harness, open_client
from tests.e2e.checked import checked_books
from tests.e2e.conftest import options
from tests.integration.zookeeper import ZooKeeper
from tests.postgresql import PostgresServer, server

RELEASE = Path(__file__).parent / "releases" / "first"
SERVICES = ("order", "payment", "ledger", "acquirer")
#: The databases have seen generation 1; the test's own ZooKeeper is an ensemble that was rebuilt since.
GENERATION = 2


def restore_files(data: Path) -> None:
    """Write the release's SQLite files into a data directory."""
    data.mkdir(parents=True)
    for service in SERVICES:
        with closing(sqlite3.connect(data / f"{service}.db")) as connection:
            connection.executescript((RELEASE / "sqlite" / f"{service}.sql").read_text())


async def restore_databases(postgresql: PostgresServer, house: str) -> None:
    """Write the release's PostgreSQL databases, each as its owner."""
    await prepare(postgresql.url, house, SERVICES, {})
    for service in SERVICES:
        roles = Roles(house, service)
        url = postgresql.url.set(drivername="postgresql", database=roles.database)
        connection = await asyncpg.connect(url.render_as_string(hide_password=False))
        try:
            await connection.execute(f'SET ROLE "{roles.owner}"')
            await connection.execute((RELEASE / "postgresql" / f"{service}.sql").read_text())
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory, _zookeeper_can_be_started: None) -> Iterator[ZooKeeper]:
    """A ZooKeeper that knows nothing."""
    zookeeper = ZooKeeper(tmp_path_factory.mktemp("zookeeper"))
    zookeeper.start()
    yield zookeeper
    zookeeper.stop()


@pytest_asyncio.fixture(
    scope="module", loop_scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)]
)
async def upgraded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rebuilt: ZooKeeper
) -> AsyncIterator[Stack]:
    """Today's stack on the release's data; each kind of database has a chroot of its own."""
    kind: str = request.param
    data = tmp_path_factory.mktemp("upgraded") / "data"
    async with Session(rebuilt.hosts) as session:
        await session.ensure_path(f"/{kind}/countinghouse")
        await generation.advance(session, GENERATION, path=f"/{kind}{GENERATION_PATH}")
    if kind == "sqlite":
        restore_files(data)
        async with Stack(
            options(data, zookeeper=f"{rebuilt.hosts}/{kind}", database="sqlite", zookeeper_plaintext=True)
        ) as stack:
            yield stack
        return
    with server() as postgresql:
        url = postgresql.of_house("upgraded")
        await restore_databases(postgresql, make_url(url).database or "")
        async with Stack(
            options(data, zookeeper=f"{rebuilt.hosts}/{kind}", database=url, zookeeper_plaintext=True)
        ) as stack:
            yield stack


async def test_settle_sent_before_the_upgrade_is_replayed(upgraded: Stack) -> None:
    """The stored answer is found under the request id that the clerk used then."""
    async with open_client(upgraded, "li", Role.CASHIER) as cashier:
        before = len(await cashier.journals("drawer-paid"))
        request = pb.SettleRequest(request_id="rq-s1", order_id="drawer-paid", source=pb.SOURCE_DRAWER)
        result = await cashier.call(request)
        assert result.replayed
        assert result.payment.state == pb.PAYMENT_STATE_SUCCEEDED
        assert len(await cashier.journals("drawer-paid")) == before == 1


async def test_journals_of_before_are_listed_by_account(upgraded: Stack) -> None:
    """All those with a leg on it, and no others."""
    async with open_client(upgraded, "li", Role.CASHIER) as cashier:

        async def listed(account_id: str = "") -> list[ledger_pb2.Journal]:
            request = ledger_pb2.ListJournalsRequest(account_id=account_id, page_size=1_000)
            return list((await cashier.ask(request)).journals)

        everything = await listed()
        newest = everything[0].sequence  # the worker may post the payment that was UNKNOWN while this test reads
        for account_id in ("drawer:CNY", "sales:CNY", "acquirer:CNY"):
            expected = [journal for journal in everything if account_id in {leg.account_id for leg in journal.postings}]
            assert expected
            assert [journal for journal in await listed(account_id) if journal.sequence <= newest] == expected


async def test_unpaid_order_of_before_is_settled(upgraded: Stack) -> None:
    async with open_client(upgraded, "li", Role.CASHIER) as cashier:
        assert await cashier.order_state("unpaid") == "UNPAID"
        assert (await cashier.settle_ok("unpaid")).state == pb.PAYMENT_STATE_SUCCEEDED
        assert await cashier.order_state("unpaid") == "PAID"


async def test_payment_made_before_is_reversed_and_its_order_settled_again(upgraded: Stack) -> None:
    """By drawer and by card, whose charge the acquirer of that time holds."""
    async with (
        open_client(upgraded, "wang", Role.ACCOUNTANT) as accountant,
        open_client(upgraded, "li", Role.CASHIER) as li,
    ):
        for order_id in ("drawer-paid", "card-paid", "wallet-paid"):
            (paid,) = await payments_of(accountant, order_id)
            request = pb.ReverseRequest(request_id=f"undo-{order_id}", payment_id=paid.payment_id, reason="wrong order")
            undone = (await accountant.ask(request)).payment
            assert undone.state == pb.PAYMENT_STATE_REVERSED, order_id
            assert (await li.settle_ok(order_id)).state == pb.PAYMENT_STATE_SUCCEEDED
            assert len(await li.journals(order_id)) == 3


async def test_unknown_payment_of_before_ends_once_the_acquirer_answers(upgraded: Stack) -> None:
    """Then the checker finds nothing wrong with what both releases have done."""
    async with Harness(upgraded) as harness, open_client(upgraded, "li", Role.CASHIER) as cashier:
        await checked_books(harness)
        (payment,) = await payments_of(cashier, "card-unknown")
        assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
        assert await cashier.order_state("card-unknown") == "PAID"


async def payments_of(client: RecordingClient, order_id: str) -> list[pb.Payment]:
    """Return the payments of an order that were not declined."""
    listed = await client.ask(pb.ListPaymentsRequest(order_id=order_id))
    return [payment for payment in listed.payments if payment.state != pb.PAYMENT_STATE_DECLINED]
