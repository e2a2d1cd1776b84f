"""A run of the ablation: every cell of some rows, on as few stacks as it takes.

Rules
1. A stack is used for the next scenario only while all went as it should. One with its guard off has a stack to itself.
2. A cell that is expected to be violated, and one whose scenario did not come about, is tried with the next seed, up to
   the number asked for; the seed that decided it is reported.
3. A row that did not come about is unknown, never empty or filled.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.chaos.ablation.matrix import Cell, Column, GuardRow, GuardsOff, Matrix
from services.chaos.ablation.scenarios import Scenario
from services.chaos.ablation.trial import Trial, open_trial
from services.checker.findings import Check, Verdict, verdict_of
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.testkit.waiting import NotBroughtAbout


@dataclass(frozen=True, slots=True)
class Job:
    """Cells that need the same guards off, one after the other."""

    guards_off: GuardsOff
    cells: tuple[tuple[GuardRow, Column], ...]


def jobs_of(rows: Iterable[GuardRow]) -> tuple[Job, ...]:
    """Return all cells of some rows. Cells that are expected to end ok share a stack; each other has its own."""
    shared: dict[GuardsOff, list[tuple[GuardRow, Column]]] = {}
    alone: list[Job] = []
    for row in rows:
        for column in row.columns:
            off = row.guards_off(column)
            if row.ends_well(column):
                shared.setdefault(off, []).append((row, column))
            else:
                alone.append(Job(off, ((row, column),)))
    return (*(Job(off, tuple(cells)) for off, cells in shared.items()), *alone)


async def ablate(
    rows: Sequence[GuardRow],
    folder: Path,
    clock: Clock,
    *,
    seeds: Sequence[int],
    at_once: int,
    tell: Callable[[Cell], None],
) -> Matrix:
    """Run all cells of some rows.

    Args:
        folder: Where stacks keep their data and histories; those of cells that are not as expected stay.
        seeds: To be tried one after the other.
        at_once: How many stacks at a time.
        tell: Called with each cell.
    """
    room = asyncio.Semaphore(at_once)
    cells: dict[tuple[GuardRow, Column], Cell] = {}

    def decided(cell: Cell) -> None:
        cells[cell.row, cell.column] = cell
        tell(cell)

    async def work(number: int, job: Job) -> None:
        async with room:
            await _Work(job, folder / f"stack-{number}", clock, seeds, decided).run()

    async with asyncio.TaskGroup() as tasks:
        for number, job in enumerate(jobs_of(rows), start=1):
            tasks.create_task(work(number, job))
    return Matrix(tuple(rows), cells)


class _Work:
    """A job under way: its cells one after the other, on as few stacks as it takes."""

    def __init__(
        self, job: Job, folder: Path, clock: Clock, seeds: Sequence[int], tell: Callable[[Cell], None]
    ) -> None:
        self._job = job
        self._folder = folder
        self._clock = clock
        self._seeds = seeds
        self._tell = tell
        self._todo = deque(job.cells)
        self._tries: Counter[tuple[GuardRow, Column]] = Counter()

    async def run(self) -> None:
        """Run until every cell is decided."""
        replicas = _replicas(row.scenario for row, _ in self._job.cells)
        stacks = 0
        while self._todo:
            stacks += 1
            place = self._folder.with_name(f"{self._folder.name}-{stacks}")
            place.mkdir(parents=True)
            seed = self._seeds[self._tries[self._todo[0]]]
            strange = False
            try:
                async with open_trial(place, self._job.guards_off, replicas, seed, self._clock) as trial:
                    while self._todo and not strange:
                        cell = await self._run_next(trial, seed)
                        strange = not cell.as_expected
            except CountinghouseError as error:
                strange = True
                if self._todo:
                    row, column = self._todo[0]
                    self._take(row, column, Verdict.UNKNOWN, (f"the stack: {error}",), seed, 0.0)
            if not strange:
                await asyncio.to_thread(shutil.rmtree, place)

    async def _run_next(self, trial: Trial, seed: int) -> Cell:
        row, column = self._todo[0]
        began_s = self._clock.monotonic_s()
        verdict, reasons = await _run(trial, row.scenario)
        return self._take(row, column, verdict, reasons, seed, self._clock.monotonic_s() - began_s)

    def _take(
        self, row: GuardRow, column: Column, verdict: Verdict, reasons: tuple[str, ...], seed: int, took_s: float
    ) -> Cell:
        """Take the result of a try, and make no other try if it decides."""
        self._tries[row, column] += 1
        tries = self._tries[row, column]
        cell = Cell(row, column, verdict, reasons, seed, tries, took_s)
        # A violation counts, also where other seeds find none.
        if cell.as_expected or verdict is Verdict.VIOLATED or tries == len(self._seeds):
            self._todo.popleft()
            self._tell(cell)
        return cell


async def _run(trial: Trial, scenario: Scenario) -> tuple[Verdict, tuple[str, ...]]:
    """Run a scenario and judge it: the verdict, and the reasons for it."""
    try:
        await trial.harness.stack.wait_serving()
        calls = trial.calls
        await scenario.run(trial.harness)
        checks = await trial.judge(undisturbed_since=calls if scenario.undisturbed else None)
    except (NotBroughtAbout, CountinghouseError, TimeoutError) as why:
        return Verdict.UNKNOWN, (f"not brought about: {str(why) or type(why).__name__}",)
    return verdict_of(checks), _reasons(checks)


def _reasons(checks: Iterable[Check]) -> tuple[str, ...]:
    """Return the violations; where there are none, what could not be decided."""
    violations = tuple(f"{check.name}: {words}" for check in checks for words in check.violations)
    return violations or tuple(f"{check.name}: {words}" for check in checks for words in check.undecided)


def _replicas(chosen: Iterable[Scenario]) -> dict[str, int]:
    """Enough of each service for all of these scenarios."""
    most: dict[str, int] = {}
    for scenario in chosen:
        for service, count in scenario.replicas.items():
            most[service] = max(count, most.get(service, 1))
    return most
