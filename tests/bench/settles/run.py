"""Measure the systems in rounds: in a round every system runs with every number of callers, one after the other.

The first round warms up and is not counted. Each round begins with another system, so that none is always first. A
measurement settles as many orders as the round before suggests for the wanted time. Then cashiers settle at a fixed
load: alone, and while a batch run settles other orders on the same stack.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from services.devstack.options import POSTGRESQL
from services.devstack.stack import Stack, StackOptions
from tests.bench.settles.load import Job, Load
from tests.bench.settles.peers import PEERS, Ceiling, Server, ceiling, running
from tests.bench.settles.results import (
    BATCH_BESIDE,
    BESIDE,
    CASHIERS,
    CASHIERS_BESIDE,
    CEILING,
    OURS_BATCH,
    OURS_POSTGRESQL,
    OURS_SQLITE,
    OURS_TLS,
    OURS_TWO,
    SYSTEMS,
    Measurement,
    measured,
)
from tests.bench.settles.systems import VARIANTS, System, decoded, our_batch_run, ours, variant

_ORDERS_MIN, _ORDERS_MIN_EACH = 20, 4
_CEILING_WARM_UP = 50
_CALLERS_OF_TWO = (32, 128)
#: Calls of a batch run in flight; as many as pgbench has clients.
_CALLS_IN_FLIGHT = 8
#: Each of eight cashiers settles eight orders a second: less than half of what they could.
_CASHIERS, _CASHIERS_EVERY_S = 8, 0.125
#: They take longer than other measurements, for a 99th percentile needs some hundred orders.
_CASHIERS_LONGER = 2
#: How long the cashiers have been at work when the batch run beside them begins, in seconds.
_CASHIERS_FIRST_S = 0.5
#: Calls in flight of the batch run beside them, as `countinghouse settle-run` has them, and how much longer it is meant
#: to last than they do.
_CALLS_BESIDE, _BATCH_OUTLASTS = 2, 1.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    Args:
        rounds: How many are counted.
        seconds: How long each measurement shall last.
        callers: The numbers of callers.
        systems: What is measured, by name.
    """

    rounds: int
    seconds: float
    callers: tuple[int, ...] = (1, 8, 32, 128)
    systems: tuple[str, ...] = SYSTEMS


@dataclass(slots=True)
class Outcome:
    """What a run measured.

    Args:
        settings: Of PostgreSQL.
        skipped: Why a system was not measured, by its name.
        problems: Which orders were not settled exactly once, in sentences.
        settled: How many orders were settled, with those of the warm-up.
    """

    settings: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    settled: int = 0


class Run:
    """One run of all systems.

    Args:
        tell: Called with a sentence about what is measured.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None]) -> None:
        self.outcome = Outcome()
        self._plan = plan
        self._tell = tell
        self._cashiers: System | None = None
        self._batch_run: System | None = None
        self._rates: dict[tuple[str, int], float] = {}
        self._settled: dict[str, tuple[list[str], dict[str, bytes]]] = {}

    async def run(self, folder: Path) -> Outcome:
        """Start the systems, measure them and stop them.

        Args:
            folder: For the data of the stacks; the user `postgres` must be able to pass through it.
        """
        async with AsyncExitStack() as resources:
            systems, pgbench = await self._start(folder, resources)
            for number in range(self._plan.rounds + 1):
                await self._round(number, systems, pgbench)
        return self.outcome

    async def _start(self, folder: Path, resources: AsyncExitStack) -> tuple[list[System], Ceiling | None]:
        """Start the systems one after the other: those that start at once wait for the same two cores."""
        wanted, enter = self._plan.systems, resources.enter_async_context
        self._tell("starting the systems")
        # Its PostgreSQL is the peers', too, so it runs even if it is not measured.
        on_server = await enter(Stack(StackOptions(folder / "postgresql", database=POSTGRESQL, plaintext=True)))
        server = Server.of(on_server)
        self.outcome.settings = await server.settings()
        systems: list[System] = []
        if OURS_POSTGRESQL in wanted:
            systems.append(await enter(ours(OURS_POSTGRESQL, on_server)))
        if OURS_TLS in wanted:
            secured = await enter(Stack(StackOptions(folder / "tls", database=POSTGRESQL)))
            systems.append(await enter(ours(OURS_TLS, secured)))
        if OURS_BATCH in wanted:
            systems.append(await enter(our_batch_run(OURS_BATCH, on_server, _CALLS_IN_FLIGHT)))
        if any(name in wanted for name in BESIDE):
            self._cashiers = await enter(ours(CASHIERS, on_server))
            self._batch_run = await enter(our_batch_run(BATCH_BESIDE, on_server, _CALLS_BESIDE))
        if OURS_TWO in wanted:
            replicas = dict.fromkeys(("order", "payment", "ledger"), 2)
            two = StackOptions(folder / "two", database=POSTGRESQL, replicas=replicas, plaintext=True)
            systems.append(await enter(ours(OURS_TWO, await enter(Stack(two)), instances=2, callers=_CALLERS_OF_TWO)))
        if OURS_SQLITE in wanted:
            systems.append(
                await enter(ours(OURS_SQLITE, await enter(Stack(StackOptions(folder / "sqlite", plaintext=True)))))
            )
        for name, source in VARIANTS.items():
            if name in wanted:
                systems.append(await enter(ours(name, await enter(variant(name, folder / source.name)))))
        for kind in PEERS:
            if kind.name not in wanted:
                continue
            if lacking := kind.lacking():
                self._tell(f"{kind.name} is skipped: {lacking}")
                self.outcome.skipped[kind.name] = lacking
                continue
            database = f"bench_{kind.folder}"
            await server.create(database)
            systems.append(await enter(running(kind, server, database)))
        if CEILING not in wanted:
            return systems, None
        await server.create("bench_ceiling")
        return systems, await enter(ceiling(server, "bench_ceiling", folder / "pgbench"))

    async def _round(self, number: int, systems: Sequence[System], pgbench: Ceiling | None) -> None:
        what = f"round {number} of {self._plan.rounds}" if number else "warming up"
        turn = number % len(systems) if systems else 0
        checked = list(systems)
        for callers in self._plan.callers:
            for system in (*systems[turn:], *systems[:turn]):
                if callers in (system.callers or self._plan.callers):
                    self._tell(f"{what}: {system.name}, {callers} callers")
                    await self._measure(number, system, callers)
        if self._cashiers and self._batch_run:
            self._tell(f"{what}: {CASHIERS}, and beside a batch run")
            await self._measure_beside(number, self._cashiers, self._batch_run)
            checked += [self._cashiers, self._batch_run]
        if pgbench is not None:
            self._tell(f"{what}: {CEILING}")
            measurement, problems = await pgbench.measure(number, self._each())
            self.outcome.problems += problems
            self._keep(measurement)
        self._tell(f"{what}: checking the books")
        for system in checked:
            orders, responses = self._settled.pop(system.name, ([], {}))
            self.outcome.problems += [f"{system.name}: {one}" for one in await system.problems(orders, responses)]

    async def _measure(self, number: int, system: System, callers: int) -> None:
        orders = await system.make_orders(self._count(system, callers))
        job = Job(system.addresses, system.tokens(callers), orders, system.orders_a_call, ca_file=system.ca_file)
        await self._load(number, system, system.name, job)

    async def _measure_beside(self, number: int, cashiers: System, batch_run: System) -> None:
        """Measure cashiers alone and beside a batch run, the one first that was second in the round before."""
        count = int(self._plan.seconds * _CASHIERS_LONGER * _CASHIERS / _CASHIERS_EVERY_S)
        alone = Job(
            cashiers.addresses, cashiers.tokens(_CASHIERS), [], every_s=_CASHIERS_EVERY_S, ca_file=cashiers.ca_file
        )
        more = int(self._count(batch_run, _CALLS_BESIDE) * _CASHIERS_LONGER * _BATCH_OUTLASTS)
        run = Job(
            batch_run.addresses,
            batch_run.tokens(_CALLS_BESIDE),
            [],
            batch_run.orders_a_call,
            ca_file=batch_run.ca_file,
        )
        for beside in (number % 2 == 0, number % 2 == 1):
            job = replace(alone, orders=await cashiers.make_orders(count))
            if not beside:
                await self._load(number, cashiers, CASHIERS, job)
                continue
            batches = replace(run, orders=await batch_run.make_orders(more))
            async with asyncio.TaskGroup() as at_once:
                at_once.create_task(self._load(number, cashiers, CASHIERS_BESIDE, job))
                await asyncio.sleep(_CASHIERS_FIRST_S)
                at_once.create_task(self._load(number, batch_run, BATCH_BESIDE, batches))

    async def _load(self, number: int, system: System, name: str, job: Job) -> None:
        """Run the load generator, and keep what it measured under this name."""
        load = await _generate(job)
        self.outcome.problems += load.problems
        orders, responses = self._settled.setdefault(system.name, ([], {}))
        orders += job.orders
        responses |= decoded(load.responses)
        self._keep(
            measured(
                name,
                len(job.tokens),
                number,
                elapsed_s=load.elapsed_s,
                lasted_s=load.lasted_s,
                retries=load.retries,
            )
        )

    def _keep(self, measurement: Measurement) -> None:
        self._rates[measurement.system, measurement.callers] = measurement.per_s
        self.outcome.settled += measurement.orders
        if measurement.round:
            self.outcome.measurements.append(measurement)

    def _count(self, system: System, callers: int) -> int:
        """Return how many orders a measurement settles."""
        rate = self._rates.get((system.name, callers), 0.0)
        return max(int(rate * self._plan.seconds), _ORDERS_MIN, callers * _ORDERS_MIN_EACH * system.orders_a_call)

    def _each(self) -> int:
        """Return how many orders each client of pgbench settles."""
        rates = [(rate, clients) for (system, clients), rate in self._rates.items() if system == CEILING]
        return max((int(rate * self._plan.seconds / clients) for rate, clients in rates), default=_CEILING_WARM_UP)


async def _generate(job: Job) -> Load:
    """Run the load generator in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.bench.settles.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, errors = await process.communicate(json.dumps(asdict(job)).encode())
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        raise RuntimeError(f"the load generator failed: {errors.decode(errors='replace')[-2000:]}")
    return Load(**json.loads(said))
