"""The ablation: which guard stops which fault, shown by switching each of them off.

    row = guard + scene          all on    only it off    only it on    all off
    ticket: reply lost             ok        VIOLATED         ok        VIOLATED

A cell plays the row's scene on a stack with those guards, and has the books checked; "all else equal" is meant: the
scene, the checks and their bounds are the same in all cells of a row. A row is filled if its scene is ok with its guard
on and a violation was found with it off. With all guards on every scene has to be ok, or the matrix proves nothing.

Where several guards stand against one fault, a row names those that are off throughout (`besides`); it shows that its
guard is the last one standing, and has the first two columns only: there "all on" is all but those.

Rules
1. A stack is used for the next scene only while all went as it should. One with its guard off has a stack to itself.
2. A cell that is expected to be violated, and one whose scene did not come about, is tried with the next seed, up to
   the number asked for; the seed that decided it is told.
3. A row that did not come about is unknown, never empty or filled.
"""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from services.chaos import scenes
from services.chaos.booth import Booth, open_booth
from services.chaos.scenes import Scene
from services.chaos.targets.target import NotBroughtAbout
from services.checker.findings import Check, Verdict, verdict_of
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.guards import NAMES

GuardsOff = tuple[str, ...]


class Column(StrEnum):
    """Which guards are on; the values are the heads of the table."""

    ALL_ON = "all on"
    IT_OFF = "only it off"
    IT_ON = "only it on"
    ALL_OFF = "all off"


@dataclass(frozen=True, slots=True)
class Row:
    """One guard, and a fault for which it is the only defence.

    Args:
        besides: Guards that are off in all its cells, for they stand against this fault as well.
    """

    guard: str
    scene: Scene
    besides: GuardsOff = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is played of it."""
        return (Column.ALL_ON, Column.IT_OFF) if self.besides else tuple(Column)

    def guards_off(self, column: Column) -> GuardsOff:
        """What is off in one of its cells, in the guards' order."""
        off = {
            Column.ALL_ON: set(self.besides),
            Column.IT_OFF: {self.guard, *self.besides},
            Column.IT_ON: set(NAMES) - {self.guard},
            Column.ALL_OFF: set(NAMES),
        }[column]
        return tuple(name for name in NAMES if name in off)

    def ends_well(self, column: Column) -> bool:
        """Whether its guard is on."""
        return column in (Column.ALL_ON, Column.IT_ON)


ROWS: Final = (
    Row("ticket", scenes.REPLY_LOST),
    Row("lock", scenes.PRESSED_WHILE_BUSY),
    Row("lock", scenes.PRESSED_AT_ONCE, besides=("fence", "unique")),
    Row("fence", scenes.LATE_CLAIM),
    Row("fence", scenes.FROZEN_HOLDER, besides=("unique",)),
    Row("state", scenes.CANCELLED_MEANWHILE),
    Row("unique", scenes.LEDGER_DIED),
    Row("recovery", scenes.CLERK_DIED),
    Row("acquirer-key", scenes.BANK_SILENT),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one scene under some guards.

    Args:
        reasons: Of `violated` each violation, with its check's name; of `unknown` why.
        seed: That decided it.
        tries: How many seeds were played.
        took_s: Of the deciding one, without the start of its stack.
    """

    row: Row
    column: Column
    verdict: Verdict
    reasons: tuple[str, ...]
    seed: int
    tries: int
    took_s: float

    @property
    def as_expected(self) -> bool:
        """Whether it is ok with its guard on, and violated with it off."""
        return self.verdict is (Verdict.OK if self.row.ends_well(self.column) else Verdict.VIOLATED)

    @property
    def checks(self) -> tuple[str, ...]:
        """The names of the checks that found something."""
        if self.verdict is not Verdict.VIOLATED:
            return ()
        return tuple(dict.fromkeys(reason.partition(": ")[0] for reason in self.reasons))


@dataclass(frozen=True, slots=True)
class Matrix:
    """All cells that were played."""

    rows: tuple[Row, ...]
    cells: Mapping[tuple[Row, Column], Cell]

    def filled(self, row: Row) -> bool | None:
        """Whether a violation was found with the guard off that is not there with it on; None: not known."""
        on, off = self.cells[row, Column.ALL_ON].verdict, self.cells[row, Column.IT_OFF].verdict
        if on is Verdict.OK and off is Verdict.VIOLATED:
            return True
        return None if Verdict.UNKNOWN in (on, off) else False

    @property
    def verdict(self) -> Verdict:
        """`ok`: every row is filled. `violated`: one is empty, or its control was violated."""
        found = [self.filled(row) for row in self.rows]
        if False in found:
            return Verdict.VIOLATED
        return Verdict.UNKNOWN if None in found else Verdict.OK

    @property
    def empty(self) -> tuple[str, ...]:
        """What is wrong with the rows that are not filled, in words."""
        return tuple(self._why(row) for row in self.rows if not self.filled(row))

    def _why(self, row: Row) -> str:
        named = f"{row.guard}, {row.scene.name}"
        for column in (Column.ALL_ON, Column.IT_OFF):
            cell = self.cells[row, column]
            if cell.verdict is Verdict.UNKNOWN:
                return f"{named}, {column}: unknown: {'; '.join(cell.reasons)}"
            if column is Column.ALL_ON and cell.verdict is Verdict.VIOLATED:
                return f"{named}: violated with the guard on: {'; '.join(cell.reasons)}"
        return f"{named}: no violation was found with the guard off"


def chosen_rows(guards: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these guards; none named: all.

    Raises:
        InvalidArgument: GUARD_UNKNOWN.
    """
    for name in guards:
        if name not in NAMES:
            raise InvalidArgument("GUARD_UNKNOWN", f"there is no guard {name!r}; the guards are {', '.join(NAMES)}")
    return tuple(row for row in ROWS if not guards or row.guard in guards)


@dataclass(frozen=True, slots=True)
class Job:
    """Cells that need the same guards off, one after the other."""

    guards_off: GuardsOff
    cells: tuple[tuple[Row, Column], ...]


def jobs_of(rows: Iterable[Row]) -> tuple[Job, ...]:
    """All cells of some rows. Those in which all is to end well share a stack, the others each have their own."""
    shared: dict[GuardsOff, list[tuple[Row, Column]]] = {}
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
    rows: Sequence[Row],
    folder: Path,
    clock: Clock,
    *,
    seeds: Sequence[int],
    at_once: int,
    tell: Callable[[Cell], None],
) -> Matrix:
    """Plays all cells of some rows.

    Args:
        folder: Where stacks keep their data and histories; those of cells that are not as expected stay.
        seeds: To be tried one after the other.
        at_once: How many stacks at a time.
        tell: Told of each cell.
    """
    room = asyncio.Semaphore(at_once)
    cells: dict[tuple[Row, Column], Cell] = {}

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
        self._tries: Counter[tuple[Row, Column]] = Counter()

    async def run(self) -> None:
        """Plays until every cell is decided."""
        replicas = _replicas(row.scene for row, _ in self._job.cells)
        stacks = 0
        while self._todo:
            stacks += 1
            place = self._folder.with_name(f"{self._folder.name}-{stacks}")
            place.mkdir(parents=True)
            seed = self._seeds[self._tries[self._todo[0]]]
            strange = False
            try:
                async with open_booth(place, self._job.guards_off, replicas, seed, self._clock) as booth:
                    while self._todo and not strange:
                        cell = await self._play_next(booth, seed)
                        strange = not cell.as_expected
            except CountinghouseError as error:
                strange = True
                if self._todo:
                    row, column = self._todo[0]
                    self._take(row, column, Verdict.UNKNOWN, (f"the stack: {error}",), seed, 0.0)
            if not strange:
                await asyncio.to_thread(shutil.rmtree, place)

    async def _play_next(self, booth: Booth, seed: int) -> Cell:
        row, column = self._todo[0]
        began_s = self._clock.monotonic_s()
        verdict, reasons = await _play(booth, row.scene)
        return self._take(row, column, verdict, reasons, seed, self._clock.monotonic_s() - began_s)

    def _take(
        self, row: Row, column: Column, verdict: Verdict, reasons: tuple[str, ...], seed: int, took_s: float
    ) -> Cell:
        """Takes what a try has shown, and no other try if that decides it."""
        self._tries[row, column] += 1
        tries = self._tries[row, column]
        cell = Cell(row, column, verdict, reasons, seed, tries, took_s)
        # A violation is one, whoever else sees none.
        if cell.as_expected or verdict is Verdict.VIOLATED or tries == len(self._seeds):
            self._todo.popleft()
            self._tell(cell)
        return cell


async def _play(booth: Booth, scene: Scene) -> tuple[Verdict, tuple[str, ...]]:
    """Plays a scene and has it judged: what is to be said of it, and why."""
    try:
        await booth.stack.wait_serving()
        calls = booth.calls
        await scene.play(booth)
        checks = await booth.judge(calm_since=calls if scene.calm else None)
    except (NotBroughtAbout, CountinghouseError, TimeoutError) as why:
        return Verdict.UNKNOWN, (f"not brought about: {str(why) or type(why).__name__}",)
    return verdict_of(checks), _reasons(checks)


def _reasons(checks: Iterable[Check]) -> tuple[str, ...]:
    """The violations; where there are none, what could not be decided."""
    violations = tuple(f"{check.name}: {words}" for check in checks for words in check.violations)
    return violations or tuple(f"{check.name}: {words}" for check in checks for words in check.undecided)


def _replicas(chosen: Iterable[Scene]) -> dict[str, int]:
    """Enough of each service for all of these scenes."""
    most: dict[str, int] = {}
    for scene in chosen:
        for service, count in scene.replicas.items():
            most[service] = max(count, most.get(service, 1))
    return most
