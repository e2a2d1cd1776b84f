"""The systems that are measured: how each gets orders, where it is called, and how it is seen that each order was
settled exactly once.

| system | what runs | checked by |
|---|---|---|
| ours | the embedded stack, one or two instances of each service | the checker, and a count of journals by order |
| ours, batch run | the same stack, called by SettleBatch, several calls of 64 in flight | likewise |
| variants of ours | the same, with methods replaced by `tests/bench/variants` | likewise |
| the peers | `tests/bench/peers` (`peers.py`) | SQL |
| pgbench | the transaction of the peer `one_service`, without a service | SQL |

The last two use databases of their own on the PostgreSQL server of our stack: the same settings, the same disk.
"""

from __future__ import annotations

import asyncio
import base64
import os
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

from services.checker.evidence import Answered
from services.checker.registry import run_checks
from services.devstack.options import POSTGRESQL
from services.devstack.stack import Stack, StackOptions
from services.kernel.principal import Role
from services.testkit.harness import ONE, TWO, Harness
from tests.bench.settles.results import OURS_KAZOO, OURS_SINGLY

#: The folder that is put first on the path of our services' processes, by the system's name.
VARIANTS: Final = {
    name: Path(__file__).parents[1] / "variants" / folder
    for name, folder in ((OURS_KAZOO, "kazoo_lock"), (OURS_SINGLY, "without_batches"))
}
#: Orders in a call of a batch run, and calls in flight of one accountant: the most that the service admits.
ORDERS_A_CALL, _CALLS_OF_ONE = 64, 4
_CREATORS = 32
_SETTLED_WITHIN_S = 30.0
_AMOUNT_MINOR = 1250


class System(Protocol):
    """One of the systems that the load generator calls.

    Attributes:
        callers: The numbers of callers with which it is measured; empty: all.
        orders_a_call: As `Job` has it.
        ca_file: As `Job` has it.
    """

    name: str
    addresses: list[str]
    callers: tuple[int, ...]
    orders_a_call: int
    ca_file: str

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

    orders_a_call = 1

    def __init__(self, name: str, harness: Harness, *, instances: int = 1, callers: tuple[int, ...] = ()) -> None:
        self.name = name
        self.addresses = [harness.address(instance) for instance in (ONE, TWO)[:instances]]
        self.callers = callers
        options = harness.stack.options
        self.ca_file = "" if options.plaintext else str(harness.stack.data / "keys" / "ca.pem")
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


class OurBatchRun(Ours):
    """Our services, called by SettleBatch."""

    orders_a_call = ORDERS_A_CALL

    def tokens(self, count: int) -> list[str]:
        """Make as few accountants of the callers as their budgets allow."""
        names = [f"accountant-{number // _CALLS_OF_ONE}" for number in range(count)]
        return [self._harness.stack.token(name, Role.ACCOUNTANT) for name in names]


@asynccontextmanager
async def ours(name: str, stack: Stack, *, instances: int = 1, callers: tuple[int, ...] = ()) -> AsyncIterator[Ours]:
    """Return our services on a running stack, with the client that makes orders."""
    async with Harness(stack) as harness:
        yield Ours(name, harness, instances=instances, callers=callers)


@asynccontextmanager
async def our_batch_run(name: str, stack: Stack, callers: int) -> AsyncIterator[OurBatchRun]:
    """Return a batch run on a running stack, with so many calls in flight."""
    async with Harness(stack) as harness:
        yield OurBatchRun(name, harness, callers=(callers,))


def variant(name: str, data: Path, database: str = POSTGRESQL) -> Stack:
    """Return our stack with methods replaced, as the `sitecustomize` in the folder of `VARIANTS` does it."""
    environment = {**os.environ, "PYTHONPATH": str(VARIANTS[name])}
    return Stack(StackOptions(data, database=database, plaintext=True), environment=environment)


def decoded(responses: Mapping[str, str]) -> dict[str, bytes]:
    """Return the bytes of responses in Base64."""
    return {key: base64.b64decode(body) for key, body in responses.items()}
