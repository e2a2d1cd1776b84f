"""The parts of the run. Each starts what it needs, measures, and checks what it has done.

| part | what grows | what is measured |
|---|---|---|
| books | settled orders in the books | a settle, beside the same settle on small books in the same rounds |
| callers | callers who settle one order at once | until each of them is answered |
| providers | providers of one service | a call through discovery, and the arrival of one provider |
| memory | orders settled | memory of each process, nodes in ZooKeeper |
| recovery | payments under way when the payment service is killed | until it serves again, until none is under way |
"""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from kazoo.client import KazooClient
from sqlalchemy import func, select

from countinghouse.payment.v1 import payment_pb2
from services.checker.registry import run_checks
from services.devstack.stack import Stack, StackOptions
from services.kernel.principal import Role
from services.payment.schema import REQUESTS
from services.runtime.database.database import Database
from services.testkit.client import RecordingClient
from services.testkit.harness import ONE, Harness
from services.testkit.waiting import wait_until
from tests.bench.growth.filling import Books, Filler, Settled
from tests.bench.growth.results import Part, median_ms, p99_ms
from tests.integration.echo import INTERFACE, Echo, Stub, channel_to, directory_of
from tests.integration.provider import provider_url

_LEDGER: Final = "ledger-1"
#: The checker holds all it reads in memory: larger books are measured, and not checked whole.
_CHECKED_UP_TO: Final = 10_000
_ANSWERED_WITHIN_S: Final = 120.0
_RECOVERED_WITHIN_S: Final = 120.0
_CREATORS: Final = 16
_A_BATCH: Final = 64
_BATCHES_AT_ONCE: Final = 3
_TRIES: Final = 50
_ROUND: Final = 5_000
#: Of each round of the memory part, this share is settled by a cashier, one by one.
_SINGLY: Final = 0.04

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How far each part goes.

    Args:
        database: Of the stacks.
        settles: Settles of one caller in a round of the part `books`.
        memory: Orders that the part `memory` settles.
    """

    database: str
    books: tuple[int, ...] = (1_000, 10_000, 100_000)
    settles: int = 100
    rounds: int = 3
    callers: tuple[int, ...] = (1, 8, 32, 128, 512, 1_000)
    providers: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    memory: int = 100_000
    under_way: tuple[int, ...] = (1, 10, 100, 1_000)


@asynccontextmanager
async def _running(folder: Path, plan: Plan) -> AsyncIterator[Harness]:
    options = StackOptions(folder, database=plan.database, zookeeper_plaintext=True)
    async with Stack(options) as stack, Harness(stack) as harness:
        yield harness


async def books(folder: Path, plan: Plan, tell: Tell) -> Part:
    """Measure a settle with more and more orders in the books, and on small books in the same rounds."""
    part = Part(
        "books",
        "orders in the books",
        "One settled order is multiplied (filling.py). Rounds of 100 settles of one caller, and of eight callers, are "
        "made in turn on the growing books and on books that stay small.",
    )
    async with _running(folder / "small", plan) as small, _running(folder / "growing", plan) as growing:
        for harness in (small, growing):
            await _settle_all(harness, 50, 1)
        filler = await _filler(growing, lambda count: tell(f"books: {count:,} orders"))
        async with Books(growing) as databases:
            for size in plan.books:
                await filler.fill(databases, size)
                lasted_s: list[float] = []
                ratios: list[float] = []
                per_s: list[float] = []
                for _ in range(plan.rounds):
                    on_small, _ = await _settle_all(small, plan.settles, 1)
                    on_growing, _ = await _settle_all(growing, plan.settles, 1)
                    lasted_s += on_growing
                    ratios.append(median_ms(on_growing) / median_ms(on_small))
                    per_s.append((await _settle_all(growing, plan.settles * 2, 8))[1])
                part.add("settle, 1 caller, p50", "ms", size, median_ms(lasted_s))
                part.add("settle, 1 caller, p99", "ms", size, p99_ms(lasted_s))
                part.add("p50 divided by that on small books", "×", size, statistics.median(ratios))
                part.add("settles, 8 callers", "/s", size, statistics.median(per_s))
                part.problems += await _wrong(growing, filler, size)
    return part


async def _filler(harness: Harness, tell: Callable[[int], None]) -> Filler:
    """Settle the order that is multiplied."""
    order_id = await harness.new_order()
    payment = await harness.cashier.settle_ok(order_id, f"settle-{order_id}")
    (journal,) = await harness.cashier.journals(order_id)
    return Filler(Settled(order_id, payment.payment_id, journal.journal_id), tell)


async def _wrong(harness: Harness, filler: Filler, size: int) -> list[str]:
    """Return why a multiplied order is not like a settled one; for books that are not too large, ask the checker."""
    copy = filler.copy_of(size)
    again = await harness.cashier.settle(copy)
    reason = again.error.reason if again.error else "SETTLED"
    found = [] if reason == "ORDER_ALREADY_PAID" else [f"order {copy} in books of {size:,} was answered with {reason}"]
    if size <= _CHECKED_UP_TO:
        reading = await harness.settled_snapshot(_ANSWERED_WITHIN_S)
        checks = await asyncio.to_thread(run_checks, reading.snapshot, [], now_ms=reading.at_ms)
        found += [f"{check.name}: {sentence}" for check in checks for sentence in check.violations[:5]]
    return found


async def _settle_all(harness: Harness, count: int, callers: int) -> tuple[list[float], float]:
    """Settle so many new orders; return how long each took, seconds, and how many were settled a second."""
    remaining = iter(await _new_orders(harness.cashier, count))
    lasted_s: list[float] = []

    async def settle(client: RecordingClient) -> None:
        for order_id in remaining:
            began_s = time.perf_counter()
            await client.settle_ok(order_id)
            lasted_s.append(time.perf_counter() - began_s)

    began_s = time.perf_counter()
    clients = [harness.client(f"cashier-{number}", Role.CASHIER) for number in range(callers)]
    await asyncio.gather(*map(settle, clients))
    return lasted_s, count / (time.perf_counter() - began_s)


async def _new_orders(client: RecordingClient, count: int) -> list[str]:
    left = iter(range(count))
    made: list[str] = []

    async def create() -> None:
        for _ in left:
            made.append(await client.new_order())

    await asyncio.gather(*(create() for _ in range(_CREATORS)))
    return made


async def callers(folder: Path, plan: Plan, tell: Tell) -> Part:
    """Have more and more callers settle one order at once."""
    part = Part(
        "callers",
        "callers of one order",
        "Cashiers of different names settle the same order at the same time. Each sends its request again, when and as "
        "the service says, until the answer is final. One of them settles the order.",
    )
    async with _running(folder, plan) as harness:
        await _settle_all(harness, 50, 1)
        for count in plan.callers:
            order_id = await harness.cashier.new_order()
            clients = [harness.client(f"cashier-{number}", Role.CASHIER) for number in range(count)]
            lasted_s: list[float] = []
            began_s = time.perf_counter()
            answers = await asyncio.gather(*(_answered(client, order_id, lasted_s) for client in clients))
            part.add("until all are answered", "s", count, time.perf_counter() - began_s)
            part.add("a caller is answered, p50", "ms", count, median_ms(lasted_s))
            part.add("answered a second", "/s", count, count / (time.perf_counter() - began_s))
            journals = await harness.cashier.journals(order_id)
            if answers.count("SETTLED") != 1 or len(journals) != 1:
                part.problems.append(f"{count} callers: settled {answers.count('SETTLED')} times")
            if odd := set(answers) - {"SETTLED", "ORDER_ALREADY_PAID"}:
                part.problems.append(f"{count} callers: also answered with {', '.join(sorted(odd))}")
            tell(f"callers: {count}")
    return part


async def _answered(client: RecordingClient, order_id: str, lasted_s: list[float]) -> str:
    began_s = time.perf_counter()
    result = await client.settle(order_id, timeout_s=_ANSWERED_WITHIN_S, within_s=_ANSWERED_WITHIN_S)
    lasted_s.append(time.perf_counter() - began_s)
    return result.error.reason if result.error else "SETTLED"


async def providers(_folder: Path, plan: Plan, tell: Tell) -> Part:
    """Call through discovery with more and more providers of one service."""
    part = Part(
        "providers",
        "providers of one service",
        "The providers are servers in one process that answer at once; the list is read without ZooKeeper. The calls "
        "are those of one caller. A change is the arrival of a provider: the loop's processor time until the next call "
        "could be made.",
    )
    for count in plan.providers:
        async with AsyncExitStack() as resources:
            ports = [await resources.enter_async_context(Echo().serving()) for _ in range(count)]
            directory = directory_of(*ports)
            stub = Stub(await resources.enter_async_context(channel_to(directory)))
            for _ in range(count * 20):
                await stub.look(b"warm", timeout=10.0)
            lasted_s = []
            for _ in range(plan.settles * 10):
                began_s = time.perf_counter()
                await stub.look(b"hi", timeout=10.0)
                lasted_s.append(time.perf_counter() - began_s)
            part.add("a call, p50", "ms", count, median_ms(lasted_s))
            part.add("a call, p99", "ms", count, p99_ms(lasted_s))
            part.add("a change", "ms", count, median_ms([_change_s(ports) for _ in range(20)]))
        tell(f"providers: {count}")
    return part


def _change_s(ports: Sequence[int]) -> float:
    directory = directory_of(*ports[:-1])
    names = [provider_url(port, INTERFACE).node_name() for port in ports]
    began_s = time.thread_time()
    directory.take(directory.reader.read(names))
    directory.candidates("Look")
    return time.thread_time() - began_s


async def memory(folder: Path, plan: Plan, tell: Tell) -> Part:
    """Settle very many orders, most of them in batches, and look at the memory of each process."""
    part = Part(
        "memory",
        "orders settled",
        "An accountant settles orders by SettleBatch, three calls of 64 at a time, and a cashier one in 25 by itself. "
        "Memory is what each process has resident after 5,000 orders and later; nodes are all that ZooKeeper has.",
    )
    async with _running(folder, plan) as harness:
        nodes = await asyncio.to_thread(_nodes, harness.stack.zookeeper)
        part.add("nodes in ZooKeeper", "nodes", 0, nodes)
        for settled in range(_ROUND, plan.memory + 1, _ROUND):
            await _settle_round(harness)
            for name, mebibytes in _resident(harness).items():
                part.add(name, "MiB", settled, mebibytes)
            part.add("nodes in ZooKeeper", "nodes", settled, await asyncio.to_thread(_nodes, harness.stack.zookeeper))
            tell(f"memory: {settled:,} orders")
    return part


async def _settle_round(harness: Harness) -> None:
    orders = await _new_orders(harness.cashier, _ROUND)
    singly = iter(orders[: int(_ROUND * _SINGLY)])
    rest = orders[int(_ROUND * _SINGLY) :]
    batches = iter([rest[start : start + _A_BATCH] for start in range(0, len(rest), _A_BATCH)])

    async def accountant() -> None:
        for batch in batches:
            requests = [harness.accountant.settle_request(order_id) for order_id in batch]
            for _ in range(_TRIES):
                answer = await harness.accountant.ask(payment_pb2.SettleBatchRequest(requests=requests), timeout_s=60.0)
                outcomes = zip(requests, answer.outcomes, strict=True)
                requests = [request for request, outcome in outcomes if not outcome.HasField("response")]
                if not requests:
                    break
            else:
                raise TimeoutError(f"{len(requests)} orders of a batch were not settled in {_TRIES} tries")

    async def cashier() -> None:
        for order_id in singly:
            await harness.cashier.settle_ok(order_id)

    await asyncio.gather(cashier(), *(accountant() for _ in range(_BATCHES_AT_ONCE)))


def _resident(harness: Harness) -> dict[str, float]:
    """Return the resident memory of each process, mebibytes, by name."""
    pids = {instance.name: instance.pid for instance in harness.stack.instances}
    pids["zookeeper"] = harness.stack.zookeeper_pid
    return {name: psutil.Process(pid).memory_info().rss / 2**20 for name, pid in pids.items() if pid}


def _nodes(hosts: str) -> int:
    client = KazooClient(hosts)
    client.start()

    def count(path: str) -> int:
        below: list[str] = client.get_children(path)
        return 1 + sum(count(f"{path.rstrip('/')}/{name}") for name in below)

    try:
        return count("/")
    finally:
        client.stop()
        client.close()


async def recovery(folder: Path, plan: Plan, tell: Tell) -> Part:
    """Kill the payment service with more and more payments under way, and wait until its successor has ended them."""
    part = Part(
        "recovery",
        "payments under way when it is killed",
        "The ledger is stopped (SIGSTOP) until as many payments wait for it as the payment service admits; then the "
        "payment service is killed, and the ledger goes on. Measured is the time from the kill. A request is taken "
        "over when its lease has passed.",
    )
    async with _running(folder, plan) as harness, Books(harness) as databases:
        database = databases["payment"]
        await _settle_all(harness, 50, 1)
        for count in plan.under_way:
            orders = await _new_orders(harness.cashier, count)
            clients = [harness.client(f"cashier-{number}", Role.CASHIER) for number in range(count)]
            harness.stack.kill(_LEDGER, signal.SIGSTOP)
            calls = [
                asyncio.create_task(client.settle_once(order_id, at=ONE))
                for client, order_id in zip(clients, orders, strict=True)
            ]
            under_way = await _open_at_most(database, count)
            pid = harness.pid(ONE)
            harness.stack.kill(ONE)
            began_s = time.perf_counter()
            harness.thaw(_LEDGER)
            await asyncio.gather(*calls)
            await harness.wait_died(ONE, pid)
            await harness.stack.wait_serving(ONE)
            part.add("the service serves again", "s", under_way, time.perf_counter() - began_s)
            await wait_until(lambda: _is_at_rest(database), "a request stayed open", _RECOVERED_WITHIN_S)
            part.add("no payment is under way", "s", under_way, time.perf_counter() - began_s)
            reading = await harness.settled_snapshot(_ANSWERED_WITHIN_S)
            checks = await asyncio.to_thread(run_checks, reading.snapshot, [], now_ms=reading.at_ms)
            part.problems += [f"{check.name}: {said}" for check in checks for said in check.violations[:5]]
            tell(f"recovery: {count} callers, {under_way} payments under way")
    return part


async def _open_at_most(database: Database, count: int) -> int:
    """Wait until so many requests are open, or until there are no more of them for a second; return how many."""
    found, since_s = 0, time.monotonic()
    while found < count and (not found or time.monotonic() - since_s < 1.0):
        await asyncio.sleep(0.02)
        now = await _open(database)
        if now > found:
            found, since_s = now, time.monotonic()
    return found


async def _open(database: Database) -> int:
    """Return how many requests are open."""
    counted = select(func.count().label("open")).where(REQUESTS.c.state == "IN_PROGRESS")
    return int((await database.select(counted, {})).scalar_one())


async def _is_at_rest(database: Database) -> bool:
    return await _open(database) == 0


PARTS: Final[Mapping[str, Callable[[Path, Plan, Tell], Awaitable[Part]]]] = {
    "books": books,
    "callers": callers,
    "providers": providers,
    "memory": memory,
    "recovery": recovery,
}
