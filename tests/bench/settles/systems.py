"""The systems that are measured: how each gets orders, where it is called, and how it is seen that each order was
settled exactly once.

| system | what runs | checked by |
|---|---|---|
| ours | the embedded stack, one instance of each service | the checker, and a count of journals by order |
| one service | `tests/bench/peers/one_service` | SQL |
| pgbench | the same transaction, without a service | SQL |

The last two use a database of their own on the PostgreSQL server of our stack: the same settings, the same disk.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import asyncpg

from services.checker.evidence import Answered
from services.checker.registry import run_checks
from services.devstack.components import postgresql
from services.devstack.keys import Keys
from services.devstack.stack import Stack
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.testkit.client import CURRENCY
from services.testkit.harness import Harness
from tests.bench.settles.results import CEILING, PEER, Measurement, measured

PEER_FOLDER = Path(__file__).parents[1] / "peers" / "one_service"
_DATABASE = "bench"
_CREATORS = 32
_SETTLED_WITHIN_S = 30.0
_START_TIMEOUT_S = 20.0
_PGBENCH_CLIENTS = 8
_NUMBERS = itertools.count(1)
_AMOUNT_MINOR = 1250


class System(Protocol):
    """One of the systems that the load generator calls."""

    name: str
    address: str

    def tokens(self, count: int) -> list[str]:
        """Return the token of each of so many callers; empty: it takes none."""
        ...

    async def make_orders(self, count: int) -> list[str]:
        """Return the ids of new orders."""
        ...

    async def problems(self, orders: Sequence[str], responses: Mapping[str, bytes]) -> list[str]:
        """Return why not every one of these orders was settled exactly once; empty: each was.

        Args:
            responses: What was answered, by request id.
        """
        ...


class Ours:
    """Our services on a running stack."""

    def __init__(self, name: str, harness: Harness) -> None:
        self.name = name
        self.address = harness.address("payment-1")
        self._harness = harness

    def tokens(self, count: int) -> list[str]:
        """Make every caller a cashier: a server admits only so many calls of one caller at once."""
        return [self._harness.stack.token(f"cashier-{number}", Role.CASHIER) for number in range(count)]

    async def make_orders(self, count: int) -> list[str]:
        """Create them as a clerk does."""
        orders: list[str] = []
        left = iter(range(count))

        async def create() -> None:
            for _ in left:
                orders.append(await self._harness.cashier.new_order(_AMOUNT_MINOR))

        async with asyncio.TaskGroup() as creators:
            for _ in range(_CREATORS):
                creators.create_task(create())
        return orders

    async def problems(self, orders: Sequence[str], responses: Mapping[str, bytes]) -> list[str]:
        """Run the checker on everything so far, and count the journals of each order."""
        reading = await self._harness.settled_snapshot(_SETTLED_WITHIN_S)
        snapshot = reading.snapshot
        answers = [Answered(key, ok=True, body=body) for key, body in responses.items()]
        checks = await asyncio.to_thread(run_checks, snapshot, answers, now_ms=reading.at_ms)
        found = [f"{check.name}: {sentence}" for check in checks for sentence in (*check.violations, *check.undecided)]
        states = {row["order_id"]: row["state"] for row in snapshot.orders}
        journals = Counter(row["order_id"] for row in snapshot.journals)
        return found + [
            f"{order} is {states.get(order)} with {journals[order]} journals"
            for order in orders
            if states.get(order) != "PAID" or journals[order] != 1
        ]


@dataclass(frozen=True, slots=True)
class Server:
    """The PostgreSQL server of a stack, for a superuser.

    Args:
        environment: Names the file with the password.
    """

    host: str
    port: int
    passfile: str
    environment: Mapping[str, str]

    @classmethod
    def of(cls, stack: Stack) -> Server:
        """Return the server of a running stack."""
        host, _, port = stack.instance("postgresql").address.rpartition(":")
        passfile = str(Keys(stack.data, SystemClock()).passfile(postgresql.SUPERUSER))
        return cls(host, int(port), passfile, os.environ | {"PGPASSFILE": passfile})

    def url(self, database: str) -> str:
        """Return a URL without the password."""
        return f"postgresql://{postgresql.SUPERUSER}@{self.host}:{self.port}/{database}"

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


class OneService:
    """The peer, and the ceiling on the peer's tables."""

    name = PEER

    def __init__(self, server: Server, connection: Any, address: str, folder: Path) -> None:
        self.address = address
        self._folder = folder
        self._server = server
        self._connection = connection

    def tokens(self, count: int) -> list[str]:
        """Send none."""
        return [""] * count

    async def make_orders(self, count: int) -> list[str]:
        """Insert them."""
        orders = [f"order-{next(_NUMBERS):08d}" for _ in range(count)]
        await self._insert(orders)
        return orders

    async def problems(self, orders: Sequence[str], _responses: Mapping[str, bytes] | None = None) -> list[str]:
        """Ask the tables."""
        wrong = await self._connection.fetch(_WRONG_ORDERS, list(orders))
        balances = await self._connection.fetch(_WRONG_BALANCES)
        return [
            *(f"{row['order_id']} is {row['state']} with {row['postings']} postings" for row in wrong),
            *(f"the balance of {row['account_id']} is not the sum of its postings" for row in balances),
        ]

    async def measure_ceiling(self, number: int, each: int) -> tuple[Measurement, list[str]]:
        """Run pgbench; return its rate, and what is wrong in the tables afterwards.

        Args:
            number: Of the round.
            each: How many orders each client settles.
        """
        run = next(_NUMBERS)
        firsts = [(run * 100 + client) * 1_000_000 for client in range(_PGBENCH_CLIENTS)]
        orders = [f"ceiling-{first + one}" for first in firsts for one in range(1, each + 1)]
        await self._insert(orders)
        program = postgresql.find(os.environ).programs / "pgbench"
        self._folder.mkdir(exist_ok=True)
        log = self._folder / f"pgbench-{run}"
        arguments = (
            *(
                "--no-vacuum",
                "--protocol=prepared",
                f"--client={_PGBENCH_CLIENTS}",
                "--jobs=2",
                f"--transactions={each}",
            ),
            *(f"--define=run={run}", "--define=number=0", f"--file={PEER_FOLDER / 'settle.pgbench.sql'}"),
            *("--log", f"--log-prefix={log}"),
            *("--host", self._server.host, "--port", str(self._server.port), "--username", postgresql.SUPERUSER),
        )
        said = await _output([str(program), *arguments, _DATABASE], self._server.environment)
        lasted = [line for part in self._folder.glob(f"{log.name}.*") for line in part.read_text().splitlines()]
        return read_pgbench(said, lasted, number), await self.problems(orders)

    async def _insert(self, orders: Sequence[str]) -> None:
        await self._connection.execute(_INSERT_ORDERS, list(orders), _AMOUNT_MINOR, CURRENCY)
        await self._connection.execute("ANALYZE")


@asynccontextmanager
async def one_service(server: Server, folder: Path) -> AsyncIterator[OneService]:
    """Make the peer's database and start its process, for as long as the context lasts.

    Args:
        folder: For files of pgbench.
    """
    administrator = await server.connect(postgresql.SUPERUSER)
    await administrator.execute(f"CREATE DATABASE {_DATABASE}")
    await administrator.close()
    connection = await server.connect(_DATABASE)
    await connection.execute((PEER_FOLDER / "schema.sql").read_text())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.peers.one_service.service", server.url(_DATABASE)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=dict(server.environment),
    )
    try:
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("its input and output cannot be used")
        port = int(await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S))
        yield OneService(server, connection, f"127.0.0.1:{port}", folder)
        process.stdin.close()
        await asyncio.wait_for(process.wait(), _START_TIMEOUT_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await connection.close()


@asynccontextmanager
async def ours(name: str, stack: Stack) -> AsyncIterator[Ours]:
    """Return our services on a running stack, with the client that makes orders."""
    async with Harness(stack) as harness:
        yield Ours(name, harness)


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


def decoded(responses: Mapping[str, str]) -> dict[str, bytes]:
    """Return the bytes of responses in Base64."""
    return {key: base64.b64decode(body) for key, body in responses.items()}


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
    LEFT JOIN requests ON requests.order_id = asked.id AND requests.response IS NOT NULL
    LEFT JOIN postings ON postings.order_id = asked.id
    GROUP BY asked.id, orders.state
    HAVING orders.state IS DISTINCT FROM 'PAID' OR count(postings) <> 2 OR sum(postings.amount) <> 0
        OR count(DISTINCT requests.request_id) <> 1
"""
_WRONG_BALANCES = """
    SELECT account_id FROM accounts
    WHERE balance <> (SELECT coalesce(sum(amount), 0) FROM postings WHERE postings.account_id = accounts.account_id)
"""
