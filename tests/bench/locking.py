"""The order lock against kazoo's Lock recipe, on the same server, in the same minute: `make bench-lock`.

    python -m tests.bench.locking [--json]

Measured on a server that stands alone and on a follower of an ensemble of three, both started here.

Each is used as it is meant to be. Kazoo's recipe blocks, so it runs on threads of its own from its first lock to its
last and pays for no hand-over. Ours gives an order up at once and deletes its node in the background; where throughput
is measured the clock runs until the last node is gone. The two take turns in short blocks, after a warm-up, so that
whatever else this machine does falls on both alike; latencies are medians over all blocks, and rates are what all
blocks did in all the time they took.

It asserts nothing and exits with 0: numbers depend on the machine and on what else it does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from kazoo.client import KazooClient

from coordination.locks.lock import Holder, ResourceLocks
from coordination.session import Session
from services.cli import output
from tests.bench.figures import Figure
from tests.integration.zookeeper import Ensemble, ZooKeeper

_BLOCKS = 10
_LATENCIES_PER_BLOCK = 25
_IN_FLIGHT, _OURS_PER_BLOCK = 48, 600
_THREADS, _KAZOOS_PER_BLOCK = 16, 160
_BATCH = 50
_BATCHES_PER_BLOCK = 3
_TIMEOUT_S = 30.0
_HOLDER = Holder("li", {"role": "cashier", "instance": "bench", "payment": "pay_bench"})


@dataclass(frozen=True, slots=True)
class Comparison:
    """One line of the result.

    Args:
        key: Its name in the JSON document, unit last.
        what: Its name for people.
        against: What ours is compared with.
        at_most: The ratio ours / theirs wanted: at most this, if it is a time.
        at_least: The same, if it is a rate.
    """

    key: str
    what: str
    unit: str
    ours: float
    theirs: float
    against: str = "kazoo"
    at_most: float | None = None
    at_least: float | None = None

    @property
    def ratio(self) -> float:
        """Ours / theirs."""
        return self.ours / self.theirs

    @property
    def target(self) -> str:
        """The ratio wanted, for people; empty: none."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g} ×"
        return f"≥ {self.at_least:g} ×" if self.at_least is not None else ""

    @property
    def met(self) -> bool | None:
        """Whether it is; None: nothing is wanted."""
        if self.at_most is not None:
            return self.ratio <= self.at_most
        return self.ratio >= self.at_least if self.at_least is not None else None

    def figures(self) -> list[Figure]:
        """What `make bench` shows of it."""
        return [
            Figure(f"{self.key}_ours", f"{self.what}: ours", self.ours, self.unit),
            Figure(f"{self.key}_{self.against}", f"{self.what}: {self.against}", self.theirs, self.unit),
            Figure(f"{self.key}_ratio", f"{self.what}: ours / {self.against}", self.ratio, "×", self.target),
        ]


class Contest:
    """Ours and kazoo's at one server."""

    def __init__(self, locks: ResourceLocks, kazoo: KazooClient) -> None:
        self._locks = locks
        self._kazoo = kazoo
        self._numbers = itertools.count()

    async def compare(self) -> list[Comparison]:
        """All of it, one after the other."""
        return [
            await self._latency("new", "acquire a new order, p50", self._new, at_most=0.5),
            await self._latency("known", "acquire a known order, p50", lambda: "known"),
            await self._pipelined(),
            await self._batches(),
        ]

    def _new(self) -> str:
        """An order never seen before."""
        return f"order-{next(self._numbers)}"

    async def _latency(self, key: str, what: str, order: Callable[[], str], at_most: float | None = None) -> Comparison:
        ours_s: list[float] = []
        theirs_s: list[float] = []
        for warm in _blocks():
            waited_s = [await self._wait(order()) for _ in range(_LATENCIES_PER_BLOCK)]
            kazoos_s = await asyncio.to_thread(
                lambda: [self._kazoos_wait(order()) for _ in range(_LATENCIES_PER_BLOCK)]
            )
            if warm:
                ours_s += waited_s
                theirs_s += kazoos_s
        ours_ms, theirs_ms = statistics.median(ours_s) * 1000, statistics.median(theirs_s) * 1000
        return Comparison(f"acquire_{key}_ms", what, "ms", ours_ms, theirs_ms, at_most=at_most)

    async def _wait(self, order_id: str) -> float:
        """Seconds until a clerk has the order; nobody's delete is under way meanwhile."""
        began_s = time.perf_counter()
        lease = await self._locks.acquire(order_id, _HOLDER, timeout_s=_TIMEOUT_S)
        waited_s = time.perf_counter() - began_s
        lease.release()
        await self._locks.drained(_TIMEOUT_S)
        return waited_s

    def _kazoos_wait(self, order_id: str) -> float:
        lock = self._kazoo.Lock(f"/bench/kazoo/{order_id}", "li")
        began_s = time.perf_counter()
        lock.acquire(timeout=_TIMEOUT_S)
        waited_s = time.perf_counter() - began_s
        lock.release()
        return waited_s

    async def _pipelined(self) -> Comparison:
        ours, theirs = Rate(), Rate()
        for warm in _blocks():
            await ours.of(_OURS_PER_BLOCK, self._many_clerks, counts=warm)
            await theirs.of(_KAZOOS_PER_BLOCK, lambda count: asyncio.to_thread(self._many_threads, count), counts=warm)
        what = f"lock and release, one client, {_IN_FLIGHT} in flight (kazoo: {_THREADS} threads)"
        return Comparison("pipelined_per_s", what, "/s", ours.per_s, theirs.per_s, at_least=2)

    async def _many_clerks(self, count: int) -> None:
        pile = iter(range(count))

        async def clerk() -> None:
            for _ in pile:
                (await self._locks.acquire(self._new(), _HOLDER, timeout_s=_TIMEOUT_S)).release()

        await asyncio.gather(*(clerk() for _ in range(_IN_FLIGHT)))
        await self._locks.drained(_TIMEOUT_S)

    def _many_threads(self, count: int) -> None:
        def clerk() -> None:
            for _ in range(count // _THREADS):
                self._kazoos_wait(self._new())

        threads = [threading.Thread(target=clerk) for _ in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def _batches(self) -> Comparison:
        together, singly = Rate(), Rate()
        for warm in _blocks():
            await together.of(_BATCH * _BATCHES_PER_BLOCK, self._together, counts=warm)
            await singly.of(_BATCH, self._singly, counts=warm)
        what = f"lock and release, batches of {_BATCH} (against ours singly)"
        return Comparison("batch_per_s", what, "/s", together.per_s, singly.per_s, against="singly", at_least=10)

    async def _together(self, count: int) -> None:
        for _ in range(count // _BATCH):
            orders = [self._new() for _ in range(_BATCH)]
            (await self._locks.acquire_all(orders, _HOLDER, timeout_s=_TIMEOUT_S)).release()
        await self._locks.drained(_TIMEOUT_S)

    async def _singly(self, count: int) -> None:
        for _ in range(count):
            (await self._locks.acquire(self._new(), _HOLDER, timeout_s=_TIMEOUT_S)).release()
        await self._locks.drained(_TIMEOUT_S)


class Rate:
    """What was done in how much time."""

    def __init__(self) -> None:
        self._done = 0
        self._lasted_s = 0.0

    async def of(self, count: int, work: Callable[[int], Awaitable[None]], *, counts: bool) -> None:
        """Does something so many times, and counts it unless that was the warm-up."""
        began_s = time.perf_counter()
        await work(count)
        if counts:
            self._done += count
            self._lasted_s += time.perf_counter() - began_s

    @property
    def per_s(self) -> float:
        """How many in a second."""
        return self._done / self._lasted_s


@asynccontextmanager
async def contest(zookeeper: str) -> AsyncIterator[Contest]:
    """Both of them connected to one server."""
    kazoo = KazooClient(hosts=zookeeper)
    await asyncio.to_thread(kazoo.start)
    try:
        async with Session(zookeeper, name="bench") as session:
            await session.wait_connected(_TIMEOUT_S)
            locks = ResourceLocks(session, root="/bench/ours")
            await locks.prepare(_TIMEOUT_S)
            yield Contest(locks, kazoo)
    finally:
        await asyncio.to_thread(kazoo.stop)
        kazoo.close()


async def measure(zookeeper: str) -> list[Figure]:
    """What `make bench` shows of the lock."""
    async with contest(zookeeper) as both:
        return [figure for comparison in await both.compare() for figure in comparison.figures()]


async def measure_everywhere(folder: Path) -> dict[str, list[Comparison]]:
    """On one server, and on a follower of three; both started in `folder`."""
    results = {}
    alone, three = ZooKeeper(_made(folder / "alone")), Ensemble(_made(folder / "three"))
    for name, servers in (("alone", alone), ("three", three)):
        servers.start()
        try:
            async with contest(_follower(servers)) as both:
                results[name] = await both.compare()
        finally:
            servers.stop()
    return results


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.locking", description="Measures the order lock.")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="countinghouse-bench-") as folder:
        results = uvloop.run(measure_everywhere(Path(folder)))
    if arguments.json:
        output.print_json(
            {
                name: [asdict(each) | {"ratio": round(each.ratio, 3), "met": each.met} for each in comparisons]
                for name, comparisons in results.items()
            }
        )
        return
    rows = [_row(name, comparison) for name, comparisons in results.items() for comparison in comparisons]
    output.print_table("The order lock", ("ZooKeeper", "what", "ours", "kazoo", "ratio", "target", "met?"), rows)


def _row(name: str, comparison: Comparison) -> tuple[str, ...]:
    theirs = _shown(comparison.theirs, comparison.unit)
    return (
        name,
        comparison.what,
        _shown(comparison.ours, comparison.unit),
        theirs if comparison.against == "kazoo" else f"({comparison.against} {theirs})",
        f"{comparison.ratio:.2f} ×",
        comparison.target,
        {True: "yes", False: "no", None: ""}[comparison.met],
    )


def _shown(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.2f} {unit}"


def _blocks() -> Iterator[bool]:
    """Turns to take: False for the warm-up, then True so many times."""
    yield False
    for _ in range(_BLOCKS):
        yield True


def _follower(servers: ZooKeeper | Ensemble) -> str:
    """Where most clients sit."""
    if isinstance(servers, ZooKeeper):
        return servers.hosts
    return next(member.hosts for member in servers.members if "Mode: follower" in member.four_letters("srvr"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
