"""The peers: services that other teams would write, each a process with a database of its own, and pgbench."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import re
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from services.devstack.components import postgresql
from services.devstack.keys import Keys
from services.devstack.ports import HOST
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.testkit.client import CURRENCY
from tests.bench.settles.results import CEILING, DBOS, PEER, REDIS_LOCK, RESTATE, TEMPORAL, Measurement, measured
from tests.bench.settles.servers import find, servers

FOLDER: Final = Path(__file__).parents[1] / "peers"
_START_TIMEOUT_S = 20.0
_PGBENCH_CLIENTS = 8
_NUMBERS = itertools.count(1)
_AMOUNT_MINOR = 1250


@dataclass(frozen=True, slots=True)
class Kind:
    """What a peer is.

    Args:
        name: As the report shows it.
        folder: Of `tests/bench/peers`.
        packages: Of requirements-bench.lock, without which it can't run.
        programs: Servers of its own, likewise; see `servers.py`.
        tables: The folder of its `schema.sql`.
        responses: The relation (request_id, order_id, response) of the responses that it has stored.
    """

    name: str
    folder: str
    packages: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    tables: str = "one_service"
    responses: str = "requests"

    @property
    def schema(self) -> str:
        """Its tables, as SQL."""
        return (FOLDER / self.tables / "schema.sql").read_text()

    def lacking(self) -> str:
        """Return why it can't be measured here; empty: it can."""
        lacking = [name for name in self.packages if importlib.util.find_spec(name) is None]
        lacking += [name for name in self.programs if find(name) is None]
        return f"not installed: {', '.join(lacking)} (see deploy/setup-bench.sh)" if lacking else ""


#: DBOS keeps the response as the output of the workflow, whose id is the payment's.
_DBOS_RESPONSES = """(
    SELECT workflow_uuid AS request_id, order_id, workflow_output.output AS response
    FROM orders JOIN dbos.workflow_output ON workflow_uuid = payment_id JOIN dbos.workflow_status USING (workflow_uuid)
    WHERE status = 'SUCCESS'
)"""
#: Restate and Temporal keep it on servers of their own; the load generator asks for some again.
_KEPT_ELSEWHERE = "(SELECT payment_id AS request_id, order_id, payment_id AS response FROM orders)"
PEERS: Final = (
    Kind(PEER, "one_service"),
    Kind(REDIS_LOCK, "redis_lock", packages=("redis",), programs=("redis-server",)),
    Kind(DBOS, "dbos", packages=("dbos",), tables="dbos", responses=_DBOS_RESPONSES),
    Kind(
        RESTATE,
        "restate",
        packages=("restate", "httpx", "hypercorn"),
        programs=("restate-server",),
        tables="durable",
        responses=_KEPT_ELSEWHERE,
    ),
    Kind(
        TEMPORAL,
        "temporal",
        packages=("temporalio",),
        programs=("temporal",),
        tables="durable",
        responses=_KEPT_ELSEWHERE,
    ),
)


@dataclass(frozen=True, slots=True)
class Server:
    """The PostgreSQL server of a stack, for a superuser.

    Args:
        environment: Names the file with the password.
    """

    host: str
    port: int
    user: str
    passfile: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, stack: Stack) -> Server:
        """Return the server of a running stack."""
        host, _, port = stack.instance("postgresql").address.rpartition(":")
        passfile = str(Keys(stack.data, SystemClock()).passfile(postgresql.SUPERUSER))
        return cls(host, int(port), postgresql.SUPERUSER, passfile, os.environ | {"PGPASSFILE": passfile})

    def url(self, database: str) -> str:
        """Return a URL without the password."""
        return f"postgresql://{self.user}@{self.host}:{self.port}/{database}"

    async def connect(self, database: str) -> Any:
        """Return a connection."""
        return await asyncpg.connect(self.url(database), passfile=self.passfile)

    async def settings(self) -> dict[str, str]:
        """Return its version and what makes a commit durable."""
        connection = await self.connect(postgresql.SUPERUSER)
        try:
            names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            return {name: await connection.fetchval(f"SHOW {name}") for name in names}
        finally:
            await connection.close()

    async def create(self, database: str) -> None:
        """Make an empty database."""
        administrator = await self.connect(postgresql.SUPERUSER)
        try:
            await administrator.execute(f"CREATE DATABASE {database}")
        finally:
            await administrator.close()


class Peer:
    """A running peer.

    Args:
        connection: To its database.
    """

    callers: tuple[int, ...] = ()
    orders_a_call = 1
    ca_file = ""

    def __init__(self, kind: Kind, connection: Any, address: str) -> None:
        self.name = kind.name
        self.addresses = [address]
        self._kind = kind
        self._connection = connection

    def tokens(self, count: int) -> list[str]:
        """Send none."""
        return [""] * count

    async def make_orders(self, count: int) -> list[str]:
        """Insert them."""
        orders = [f"order-{next(_NUMBERS):08d}" for _ in range(count)]
        await insert(self._connection, orders)
        return orders

    async def problems(self, orders: Sequence[str], _responses: Mapping[str, bytes] | None = None) -> list[str]:
        """Ask the tables."""
        return await problems(self._connection, self._kind, orders)


async def insert(connection: Any, orders: Sequence[str]) -> None:
    """Insert open orders, and have the planner know how many there are."""
    await connection.execute(_INSERT_ORDERS, list(orders), _AMOUNT_MINOR, CURRENCY)
    await connection.execute("ANALYZE")


async def problems(connection: Any, kind: Kind, orders: Sequence[str]) -> list[str]:
    """Return why not every one of these orders was settled exactly once; empty: each was."""
    wrong = await connection.fetch(_WRONG_ORDERS.format(responses=kind.responses), list(orders))
    balances = await connection.fetch(_WRONG_BALANCES)
    return [
        *(f"{row['order_id']} is {row['state']} with {row['postings']} postings" for row in wrong),
        *(f"the balance of {row['account_id']} is not the sum of its postings" for row in balances),
    ]


@asynccontextmanager
async def running(kind: Kind, server: Server, database: str) -> AsyncIterator[Peer]:
    """Run a peer on an empty database, for as long as the context lasts."""
    connection = await server.connect(database)
    try:
        await connection.execute(kind.schema)
        async with (
            servers(kind.programs) as arguments,
            _process(kind, server, (server.url(database), *arguments)) as address,
        ):
            yield Peer(kind, connection, address)
    finally:
        await connection.close()


@asynccontextmanager
async def _process(kind: Kind, server: Server, arguments: Sequence[str]) -> AsyncIterator[str]:
    """Run the peer's service; return its address."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"tests.bench.peers.{kind.folder}.service", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(server.environment),
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("its input and output cannot be used")
        port = int(await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S))
        yield f"{HOST}:{port}"
        process.stdin.close()
        await asyncio.wait_for(process.wait(), _START_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class Ceiling:
    """pgbench with the transaction of `one_service`, on a database of its own with the same tables.

    Args:
        folder: For its logs.
    """

    def __init__(self, server: Server, database: str, connection: Any, folder: Path) -> None:
        self._server = server
        self._database = database
        self._connection = connection
        self._folder = folder

    async def measure(self, number: int, each: int) -> tuple[Measurement, list[str]]:
        """Return its rate, and what is wrong in the tables afterwards.

        Args:
            number: Of the round.
            each: How many orders each client settles.
        """
        run = next(_NUMBERS)
        firsts = [(run * 100 + client) * 1_000_000 for client in range(_PGBENCH_CLIENTS)]
        orders = [f"ceiling-{first + one}" for first in firsts for one in range(1, each + 1)]
        await insert(self._connection, orders)
        program = postgresql.find(os.environ).programs / "pgbench"
        self._folder.mkdir(exist_ok=True)
        log = self._folder / f"pgbench-{run}"
        script = FOLDER / "one_service" / "settle.pgbench.sql"
        arguments = (
            *("--no-vacuum", "--protocol=prepared", f"--client={_PGBENCH_CLIENTS}", "--jobs=2"),
            *(f"--transactions={each}", f"--define=run={run}", "--define=number=0", f"--file={script}"),
            *("--log", f"--log-prefix={log}"),
            *("--host", self._server.host, "--port", str(self._server.port), "--username", self._server.user),
        )
        said = await _output([str(program), *arguments, self._database], self._server.environment)
        lasted = [line for part in self._folder.glob(f"{log.name}.*") for line in part.read_text().splitlines()]
        return read_pgbench(said, lasted, number), await problems(self._connection, PEERS[0], orders)


@asynccontextmanager
async def ceiling(server: Server, database: str, folder: Path) -> AsyncIterator[Ceiling]:
    """Make the tables in an empty database; `folder` is for pgbench's logs."""
    connection = await server.connect(database)
    try:
        await connection.execute(PEERS[0].schema)
        yield Ceiling(server, database, connection, folder)
    finally:
        await connection.close()


def read_pgbench(said: str, log: Iterable[str], number: int) -> Measurement:
    """Return what pgbench measured.

    Args:
        said: What it printed.
        log: The lines of its log: client, transaction, microseconds, …
        number: Of the round.

    Raises:
        ValueError: It did not run every transaction.
    """
    done = re.search(r"transactions actually processed: (\d+)/(\d+)", said)
    per_s = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    lasted_s = [int(line.split()[2]) / 1e6 for line in log]
    if not (done and per_s) or done[1] != done[2] or int(done[1]) != len(lasted_s):
        raise ValueError(f"pgbench did not run every transaction: {said}")
    elapsed_s = len(lasted_s) / float(per_s[1])
    return measured(CEILING, _PGBENCH_CLIENTS, number, elapsed_s=elapsed_s, lasted_s=lasted_s)


async def _output(command: Sequence[str], environment: Mapping[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(environment)
    )
    said, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} failed: {errors.decode(errors='replace')[-1000:]}")
    return said.decode()


_INSERT_ORDERS = """
    INSERT INTO orders (order_id, amount_minor, currency_code) SELECT id, $2, $3 FROM unnest($1::text[]) AS id
"""
_WRONG_ORDERS = """
    SELECT asked.id AS order_id, orders.state, count(postings) AS postings
    FROM unnest($1::text[]) AS asked(id)
    LEFT JOIN orders ON orders.order_id = asked.id
    LEFT JOIN {responses} AS answered ON answered.order_id = asked.id AND answered.response IS NOT NULL
    LEFT JOIN postings ON postings.order_id = asked.id
    GROUP BY asked.id, orders.state
    HAVING orders.state IS DISTINCT FROM 'PAID' OR count(postings) <> 2 OR sum(postings.amount) <> 0
        OR count(DISTINCT answered.request_id) <> 1
"""
_WRONG_BALANCES = """
    SELECT account_id FROM accounts
    WHERE balance <> (SELECT coalesce(sum(amount), 0) FROM postings WHERE postings.account_id = accounts.account_id)
"""
