"""The embedded stack with a PostgreSQL of its own: the roles of a deployment, and a server that dies and comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from sqlalchemy import make_url, text

from countinghouse.payment.v1 import payment_pb2
from services import ledger
from services.devstack.child import Child, Command
from services.devstack.components import postgresql
from services.devstack.files import database_url
from services.devstack.keys import Keys
from services.devstack.stack import Stack
from services.devstack.state import InstanceState, StackRefused
from services.kernel.clock import SystemClock
from services.kernel.errors import Unavailable
from services.kernel.principal import Role
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.transaction import Transaction
from services.testkit.failpoints import DELAY
from services.testkit.harness import Harness, open_client
from tests.certificates import CertificateIssuer
from tests.contract.runtime.wire import wire_to
from tests.e2e.checked import charges, checked_books
from tests.e2e.command import command_line, document, processes_of
from tests.e2e.conftest import options

pytestmark = pytest.mark.long

ONE, TWO = "payment-1", "payment-2"
ORDERS = 12
#: Making a server's data takes a while on a machine that others use too.
START_S = 90.0


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A directory that PostgreSQL's user can get to: it refuses to be root, and tmp_path is closed to others."""
    try:
        postgresql.find(os.environ)
    except postgresql.PostgresqlMissing as error:
        pytest.skip(error.message)
    parent = Path(tempfile.mkdtemp(prefix="countinghouse-"))
    parent.chmod(0o755)
    yield parent / "data"
    shutil.rmtree(parent)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def harness(data: Path, _zookeeper_can_be_started: None) -> AsyncIterator[Harness]:
    """Somebody at a window of it."""
    async with (
        Stack(options(data, database="postgresql", start_timeout_s=START_S, replicas={"payment": 2})) as stack,
        Harness(stack) as harness,
    ):
        yield harness


async def refused(url: str, statement: str) -> str:
    """The reason for which a statement is refused."""

    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    async with Database(url) as database:
        with pytest.raises(DatabaseRefused) as refusal:
            await database.run(step)
    return refusal.value.reason


async def test_order_is_settled_and_the_books_are_read(harness: Harness) -> None:
    order_id = await harness.new_order()
    payment = await harness.cashier.settle_ok(order_id, at=ONE)
    assert payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED
    assert charges(await checked_books(harness), order_id) == [payment.payment_id]


async def test_services_and_the_checker_have_a_password_each_and_few_rights(harness: Harness) -> None:
    """Nobody gets in without theirs."""
    data = harness.stack.data
    checker = make_url(database_url(data, "ledger"))
    service = checker.set(
        username="countinghouse_ledger", query={"passfile": str(data / "keys" / "countinghouse_ledger.pgpass")}
    )
    assert await refused(service.render_as_string(), "UPDATE journals SET memo = ''") == "DATABASE_FORBIDDEN"
    assert await refused(service.render_as_string(), "CREATE TABLE theirs (id int)") == "DATABASE_FORBIDDEN"
    assert await refused(checker.render_as_string(), "UPDATE accounts SET balance = 0") == "DATABASE_FORBIDDEN"
    for stranger in (service.set(query={"passfile": "/nowhere"}), service.set(password="guessed", query={})):
        assert await refused(stranger.render_as_string(hide_password=False), "SELECT 1") == "DATABASE_LOGIN"


async def test_server_takes_no_connection_in_plain_text(harness: Harness) -> None:
    url = make_url(database_url(harness.stack.data, "ledger"))
    password = Keys(harness.stack.data, SystemClock()).password(str(url.username))
    plain = {"host": url.host, "port": url.port, "user": url.username, "database": url.database, "password": password}
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no encryption"):
        await asyncpg.connect(**plain, ssl=False)
    await (await asyncpg.connect(**plain, ssl="require")).close()


async def test_server_is_known_by_its_certificate(harness: Harness, tmp_path: Path) -> None:
    """One with the certificate of another authority is sent no password."""
    url = make_url(database_url(harness.stack.data, "ledger"))
    other = CertificateIssuer(tmp_path / "other").authority.file
    async with Database(url.update_query_dict({"sslrootcert": str(other)}).render_as_string()) as database:
        with pytest.raises(Unavailable):
            await database.ping()


async def test_database_goes_on_after_its_authority_was_replaced(data: Path) -> None:
    """Its server takes the new certificate without a restart; new connections are verified by the new authority."""
    own = data.with_name("replaced")
    async with Stack(options(own, database="postgresql", start_timeout_s=START_S)) as stack:
        replaced = await command_line("key", "rotate", "--authority", "--now", "--data", str(own))
        assert replaced.returncode == 0, replaced.stderr
        async with Database(database_url(own, "ledger")) as database, asyncio.timeout(60):
            while True:
                with suppress(Unavailable):
                    await database.ping()
                    break
        stack.kill("postgresql")
        await stack.wait_server("postgresql")
        async with open_client(stack, "li", Role.CASHIER) as client:
            await client.settle_ok(await client.new_order(), timeout_s=10.0)


async def test_postgresql_files_belong_to_its_user(harness: Harness) -> None:
    for name in ("keys", "logs", "postgresql"):
        assert not stat.S_IMODE((harness.stack.data / name).stat().st_mode) & 0o077
    assert not stat.S_IMODE(harness.stack.data.stat().st_mode) & 0o066


async def test_commands_find_the_books(harness: Harness) -> None:
    checked = document(await command_line("check", "--json", "--data", str(harness.stack.data)))
    assert checked["verdict"] == "ok"
    examined = document(await command_line("doctor", "--json", "--data", str(harness.stack.data)))
    found = {check["name"]: check for check in examined["checks"]}
    newest = sorted(Path(ledger.__file__).parent.glob("migrations/versions/[0-9]*.py"))[-1].name.partition("_")[0]
    assert f"countinghouse_ledger revision {newest}" in found["ledger database"]["detail"]
    assert "payment 1" in found["generation"]["detail"]
    assert found["clocks"]["ok"]
    assert all(f"the {service} database" in found["clocks"]["detail"] for service in ("order", "payment", "ledger"))


async def test_killed_server_comes_back_and_every_order_is_settled_once(harness: Harness) -> None:
    """In the middle of it all: what was not answered is asked again under the same key, and charged once."""
    orders = [await harness.new_order() for _ in range(ORDERS)]
    address = harness.stack.instance("postgresql").address
    await harness.failpoints.arm(ONE, "submitted", DELAY, subject=orders[0], delay_s=2.0)
    settling = [
        asyncio.ensure_future(harness.cashier.settle(order_id, at=(ONE, TWO)[number % 2]))
        for number, order_id in enumerate(orders)
    ]
    await harness.failpoints.wait_fired(ONE, "submitted", more_than=0)
    harness.stack.kill("postgresql")
    answers = await asyncio.gather(*settling)
    assert {answer.payment.state for answer in answers} == {payment_pb2.PAYMENT_STATE_SUCCEEDED}
    await harness.stack.wait_server("postgresql")
    await harness.stack.wait_serving()
    assert harness.stack.instance("postgresql").address == address
    assert all(instance.state is InstanceState.SERVING for instance in harness.stack.instances)
    books = await checked_books(harness)
    assert all(len(charges(books, order_id)) == 1 for order_id in orders)


async def test_backup_is_put_back_into_its_own_server(data: Path, tmp_path: Path) -> None:
    """The server runs for the restore alone. The databases from before are still on it, under other names."""
    own = options(data.with_name("drill"), database="postgresql", start_timeout_s=START_S)
    folder = tmp_path / "backup"
    async with Stack(own) as stack, Harness(stack) as harness:
        kept, lost = await harness.new_order(), await harness.new_order()
        await harness.cashier.settle_ok(kept)
        taken = await command_line("backup", str(folder), "--data", str(stack.data))
        assert taken.returncode == 0, taken.stderr
        await harness.cashier.settle_ok(lost)
    put = await command_line("restore", str(folder), "--data", str(stack.data), "--database", "postgresql", "--json")
    assert put.returncode == 0, put.stderr
    assert processes_of(stack.data) == []
    assert [name.partition("_before_restore_")[0] for name in document(put)["set_aside"]] == [
        f"countinghouse_{service}" for service in ("order", "payment", "ledger")
    ]
    async with Stack(own) as again, Harness(again) as harness:
        books = await checked_books(harness)
        assert (len(charges(books, kept)), len(charges(books, lost))) == (1, 0)
        await harness.cashier.settle_ok(lost)
        assert len(charges(await checked_books(harness), lost)) == 1


async def test_stopped_stack_keeps_its_books(data: Path) -> None:
    """Also its choice: a stack on files is not started over books that are in PostgreSQL."""
    async with Stack(options(data.with_name("again"), database="postgresql", start_timeout_s=START_S)) as stack:
        async with open_client(stack, "li", Role.CASHIER) as client:
            order_id = await client.new_order()
            await client.settle_ok(order_id)
        log = stack.data / "logs" / "postgresql.log"
    assert processes_of(stack.data) == []
    assert "not properly shut down" not in log.read_text()
    with pytest.raises(StackRefused, match="are in PostgreSQL"):
        await Stack(options(stack.data, database="sqlite")).start()
    async with (
        Stack(options(stack.data, database="postgresql", start_timeout_s=START_S)) as again,
        open_client(again, "li", Role.CASHIER) as client,
    ):
        assert await client.order_state(order_id) == "PAID"
    assert "not properly shut down" not in log.read_text()


async def test_services_without_unique_guard_own_their_tables(data: Path) -> None:
    """They drop its indexes at start, which the role of a deployment may not."""
    chosen = options(
        data.with_name("unguarded"), database="postgresql", start_timeout_s=START_S, guards_off=("unique",)
    )
    async with Stack(chosen) as stack, open_client(stack, "li", Role.CASHIER) as client:
        assert (await client.settle_ok(await client.new_order())).state == payment_pb2.PAYMENT_STATE_SUCCEEDED


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
async def test_start_as_root_names_a_folder_that_postgresql_cannot_enter(tmp_path: Path) -> None:
    """In one sentence, before anything is made; nothing stays behind."""
    done = await command_line("up", "--data", str(tmp_path / "data"), COUNTINGHOUSE_DATABASE="postgresql")
    assert done.returncode == 2
    assert "refuses to run as root" in done.stderr
    assert "may not pass through" in done.stderr
    assert processes_of(tmp_path / "data") == []


async def test_service_waits_for_its_database(harness: Harness, tmp_path: Path) -> None:
    """It starts before its database, listens once that is there, and ends at once when told to while it waits."""
    data = harness.stack.data
    service = make_url(database_url(data, "order")).set(
        username="countinghouse_order", query={"passfile": str(data / "keys" / "countinghouse_order.pgpass")}
    )
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    settings = {
        "COUNTINGHOUSE_DATABASE_URL": service.set(port=port).render_as_string(),
        "COUNTINGHOUSE_ZOOKEEPER": harness.stack.zookeeper,
        "COUNTINGHOUSE_MIGRATE": "false",
        "COUNTINGHOUSE_VERIFY_KEY_FILE": str(data / "keys" / "verify.jwks"),
        "COUNTINGHOUSE_CA_FILE": str(data / "keys" / "ca.pem"),
        "COUNTINGHOUSE_IDENTITY_FILE": str(data / "keys" / "tls" / "order-1.pem"),
    }
    command = (sys.executable, "-P", "-m", "services.order.main")
    first = Child.spawn(Command(command, {**os.environ, **settings}, tmp_path / "first.log"))
    await until(lambda: "waiting for the database" in (tmp_path / "first.log").read_text())
    await first.stop(3)
    assert first.returncode == 0
    second = Child.spawn(Command(command, {**os.environ, **settings}, tmp_path / "second.log"))
    await until(lambda: "waiting for the database" in (tmp_path / "second.log").read_text())
    try:
        async with wire_to(service.render_as_string(), port):
            await until(lambda: "listening" in (tmp_path / "second.log").read_text())
    finally:
        await second.stop(8)
    assert second.returncode == 0


async def test_refused_migration_names_the_database(harness: Harness, tmp_path: Path) -> None:
    """Exit code 2, one line, no password: the service's own role cannot migrate."""
    data = harness.stack.data
    url = make_url(database_url(data, "order")).set(username="countinghouse_order", password="guessed", query={})
    log = tmp_path / "migrate.log"
    command = (sys.executable, "-P", "-m", "services.order.main", "migrate")
    settings = {"COUNTINGHOUSE_DATABASE_URL": url.render_as_string(hide_password=False)}
    child = Child.spawn(Command(command, {**os.environ, **settings}, log))
    assert await child.wait() == 2
    assert "password authentication failed" in child.last_log_line("order: ")
    assert "guessed" not in log.read_text()


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits for what another process writes."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)
