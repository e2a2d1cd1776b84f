"""Measure the systems in rounds: in a round every system runs with every number of callers, one after the other.

The first round warms up and is not counted. Each round begins with another system, so that none is always first. A
measurement settles as many orders as the round before suggests for the wanted time.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from services.devstack.options import POSTGRESQL
from services.devstack.stack import Stack, StackOptions
from tests.bench.settles.load import Job, Load
from tests.bench.settles.results import CEILING, OURS_POSTGRESQL, OURS_SQLITE, Measurement, measured
from tests.bench.settles.systems import OneService, Ours, Server, System, decoded, one_service, ours

_ORDERS_MIN, _ORDERS_MIN_EACH = 20, 4
_CEILING_WARM_UP = 50


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    Args:
        rounds: How many are counted.
        seconds: How long each measurement shall last.
        callers: The numbers of callers.
    """

    rounds: int
    seconds: float
    callers: tuple[int, ...] = (1, 8, 32, 128)


@dataclass(slots=True)
class Outcome:
    """What a run measured.

    Args:
        settings: Of PostgreSQL.
        problems: Which orders were not settled exactly once, in sentences.
        settled: How many orders were settled, with those of the warm-up.
    """

    settings: dict[str, str] = field(default_factory=dict)
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
        self._rates: dict[tuple[str, int], float] = {}

    async def run(self, folder: Path) -> Outcome:
        """Start the systems, measure them and stop them.

        Args:
            folder: For the data of the stacks; the user `postgres` must be able to pass through it.
        """
        self._tell("starting two stacks")
        async with AsyncExitStack() as resources:
            # One after the other: stacks that start at once wait for the same two cores.
            on_server = await resources.enter_async_context(
                Stack(StackOptions(folder / "postgresql", database=POSTGRESQL))
            )
            on_files = await resources.enter_async_context(Stack(StackOptions(folder / "sqlite")))
            server = Server.of(on_server)
            self.outcome.settings = await server.settings()
            peer = await resources.enter_async_context(one_service(server, folder / "pgbench"))
            mine = [
                await resources.enter_async_context(ours(OURS_POSTGRESQL, on_server)),
                await resources.enter_async_context(ours(OURS_SQLITE, on_files)),
            ]
            for number in range(self._plan.rounds + 1):
                await self._round(number, mine, peer)
        return self.outcome

    async def _round(self, number: int, mine: Sequence[Ours], peer: OneService) -> None:
        what = f"round {number} of {self._plan.rounds}" if number else "warming up"
        systems: list[System] = [*mine, peer]
        turn = number % len(systems)
        settled: dict[str, tuple[list[str], dict[str, bytes]]] = {one.name: ([], {}) for one in systems}
        for callers in self._plan.callers:
            for system in systems[turn:] + systems[:turn]:
                self._tell(f"{what}: {system.name}, {callers} callers")
                orders = await system.make_orders(self._count(system.name, callers))
                load = await _generate(Job(system.address, system.tokens(callers), orders))
                self.outcome.problems += load.problems
                settled[system.name][0].extend(orders)
                settled[system.name][1].update(decoded(load.responses))
                self._keep(
                    measured(
                        system.name,
                        callers,
                        number,
                        elapsed_s=load.elapsed_s,
                        lasted_s=load.lasted_s,
                        retries=load.retries,
                    )
                )
        self._tell(f"{what}: {CEILING}")
        measurement, problems = await peer.measure_ceiling(number, self._each())
        self.outcome.problems += problems
        self._keep(measurement)
        self._tell(f"{what}: checking the books")
        for system in systems:
            orders, responses = settled[system.name]
            self.outcome.problems += [f"{system.name}: {one}" for one in await system.problems(orders, responses)]

    def _keep(self, measurement: Measurement) -> None:
        self._rates[measurement.system, measurement.callers] = measurement.per_s
        self.outcome.settled += measurement.orders
        if measurement.round:
            self.outcome.measurements.append(measurement)

    def _count(self, system: str, callers: int) -> int:
        """Return how many orders a measurement settles."""
        rate = self._rates.get((system, callers), 0.0)
        return max(int(rate * self._plan.seconds), _ORDERS_MIN, callers * _ORDERS_MIN_EACH)

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
