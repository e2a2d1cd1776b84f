"""The ablation matrix: which guard stops which fault, shown by switching each of them off.

    row = guard + scenario       all on    only it off    only it on    all off
    ticket: reply lost             ok        VIOLATED         ok        VIOLATED

A cell runs the row's scenario on a stack with those guards, and has the books checked; "all else equal" is meant: the
scenario, the checks and their bounds are the same in all cells of a row. A row is filled if its scenario is ok with its
guard on and a violation was found with it off. With all guards on every scenario has to be ok, or the matrix proves
nothing.

Where several guards stand against one fault, a row names those that are off throughout (`besides`); it shows that its
guard is the last one standing, and has the first two columns only: there "all on" is all but those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.chaos.ablation import scenarios
from services.chaos.ablation.scenarios import Scenario
from services.checker.findings import Verdict
from services.kernel.errors import InvalidArgument
from services.kernel.guards import NAMES

GuardsOff = tuple[str, ...]


class Column(StrEnum):
    """Which guards are on; the values are the heads of the table."""

    ALL_ON = "all on"
    IT_OFF = "only it off"
    IT_ON = "only it on"
    ALL_OFF = "all off"


@dataclass(frozen=True, slots=True)
class GuardRow:
    """One guard, and a fault for which it is the only defence.

    Args:
        besides: Guards that are off in all its cells, for they stand against this fault as well.
    """

    guard: str
    scenario: Scenario
    besides: GuardsOff = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is run of it."""
        return (Column.ALL_ON, Column.IT_OFF) if self.besides else tuple(Column)

    def guards_off(self, column: Column) -> GuardsOff:
        """Return what is off in one of its cells, in the guards' order."""
        off = {
            Column.ALL_ON: set(self.besides),
            Column.IT_OFF: {self.guard, *self.besides},
            Column.IT_ON: set(NAMES) - {self.guard},
            Column.ALL_OFF: set(NAMES),
        }[column]
        return tuple(name for name in NAMES if name in off)

    def ends_well(self, column: Column) -> bool:
        """Return whether its guard is on."""
        return column in (Column.ALL_ON, Column.IT_ON)


ROWS: Final = (
    GuardRow("ticket", scenarios.REPLY_LOST),
    GuardRow("lock", scenarios.PRESSED_WHILE_BUSY),
    GuardRow("lock", scenarios.PRESSED_AT_ONCE, besides=("fence", "unique")),
    GuardRow("fence", scenarios.LATE_CLAIM),
    GuardRow("fence", scenarios.FROZEN_HOLDER, besides=("unique",)),
    GuardRow("state", scenarios.CANCELLED_MEANWHILE),
    GuardRow("unique", scenarios.LEDGER_DIED),
    GuardRow("recovery", scenarios.CLERK_DIED),
    GuardRow("acquirer-key", scenarios.ACQUIRER_SILENT),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """The outcome of one scenario under some guards.

    Args:
        reasons: Of `violated` each violation, with its check's name; of `unknown` why.
        seed: That decided it.
        tries: How many seeds were run.
        took_s: Of the deciding one, without the start of its stack.
    """

    row: GuardRow
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
    """All cells that were run."""

    rows: tuple[GuardRow, ...]
    cells: Mapping[tuple[GuardRow, Column], Cell]

    def filled(self, row: GuardRow) -> bool | None:
        """Return whether a violation was found with the guard off that is not there with it on; None: not known."""
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

    def _why(self, row: GuardRow) -> str:
        named = f"{row.guard}, {row.scenario.name}"
        for column in (Column.ALL_ON, Column.IT_OFF):
            cell = self.cells[row, column]
            if cell.verdict is Verdict.UNKNOWN:
                return f"{named}, {column}: unknown: {'; '.join(cell.reasons)}"
            if column is Column.ALL_ON and cell.verdict is Verdict.VIOLATED:
                return f"{named}: violated with the guard on: {'; '.join(cell.reasons)}"
        return f"{named}: no violation was found with the guard off"


def chosen_rows(guards: Sequence[str]) -> tuple[GuardRow, ...]:
    """Return the rows of these guards; none named: all.

    Raises:
        InvalidArgument: GUARD_UNKNOWN.
    """
    for name in guards:
        if name not in NAMES:
            raise InvalidArgument("GUARD_UNKNOWN", f"there is no guard {name!r}; the guards are {', '.join(NAMES)}")
    return tuple(row for row in ROWS if not guards or row.guard in guards)
