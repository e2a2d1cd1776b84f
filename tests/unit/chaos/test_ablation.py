"""The matrix of guards and faults: what is off in which cell, when a cell is tried again, and what it adds up to."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.chaos.ablation import run as ablation
from services.chaos.ablation.matrix import ROWS, Cell, Column, GuardRow, GuardsOff, Matrix, chosen_rows
from services.chaos.ablation.run import ablate, jobs_of
from services.chaos.ablation.scenarios import Scenario
from services.chaos.ablation.trial import no_clerk_loses_an_order
from services.chaos.report.matrix_page import HEADS, document, render, table
from services.checker.findings import Verdict
from services.checker.history import Answer, Arguments, RecordedCall
from services.cli.commands import app
from services.kernel.clock import Clock, SystemClock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.guards import NAMES

OK, VIOLATED, UNKNOWN = Verdict.OK, Verdict.VIOLATED, Verdict.UNKNOWN


async def _nothing(_harness: object) -> None:
    """A scenario in which nothing happens."""


ONE = GuardRow("ticket", Scenario("one", "the first <fault>", _nothing, {"payment": 2}))
TWO = GuardRow("lock", Scenario("two", "the second fault", _nothing, {"ledger": 2}))
PAIR = GuardRow("fence", Scenario("pair", "a fault that unique stops, too", _nothing), besides=("unique",))


def cell(row: GuardRow, column: Column, verdict: Verdict, *reasons: str) -> Cell:
    return Cell(row, column, verdict, reasons, seed=4, tries=2, took_s=1.25)


def matrix(on: Verdict, off: Verdict, row: GuardRow = ONE) -> Matrix:
    """Of one row; with its guard on, and with it off."""
    reasons = {OK: (), VIOLATED: ("settled at most once: twice",), UNKNOWN: ("not brought about: nobody came",)}
    cells = [
        cell(row, column, verdict, *reasons[verdict])
        for column in row.columns
        for verdict in [on if row.ends_well(column) else off]
    ]
    return Matrix((row,), {(each.row, each.column): each for each in cells})


class TestRows:
    """What is played."""

    def test_every_guard_has_a_row_in_which_it_is_the_only_defence(self) -> None:
        """Alone, with nothing else switched off beside it."""
        assert {row.guard for row in ROWS if not row.besides} == set(NAMES)
        assert len(set(ROWS)) == len(ROWS)

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.guard}-{row.scenario.name}")
    def test_row_differs_in_its_own_guard_only(self, row: GuardRow) -> None:
        """All else equal: from one column to the next only its guard is switched."""
        on, off = set(row.guards_off(Column.ALL_ON)), set(row.guards_off(Column.IT_OFF))
        assert off - on == {row.guard}
        assert on == set(row.besides)
        assert on < off
        if not row.besides:
            assert row.guards_off(Column.ALL_OFF) == NAMES
            assert set(NAMES) - set(row.guards_off(Column.IT_ON)) == {row.guard}

    def test_some_guards_rows_can_be_chosen(self) -> None:
        """By name; a guard that does not exist is refused."""
        assert {row.guard for row in chosen_rows(["lock", "fence"])} == {"lock", "fence"}
        assert chosen_rows([]) == ROWS
        with pytest.raises(InvalidArgument, match="no guard 'luck'"):
            chosen_rows(["luck"])

    def test_cell_is_run_once_and_a_violating_cell_on_its_own_stack(self) -> None:
        """Books that are broken say nothing of the next scenario."""
        jobs = jobs_of(ROWS)
        cells = [each for job in jobs for each in job.cells]
        assert len(cells) == len(set(cells))
        assert set(cells) == {(row, column) for row in ROWS for column in row.columns}
        for job in jobs:
            assert {row.guards_off(column) for row, column in job.cells} == {job.guards_off}
            assert len(job.cells) == 1 or all(row.ends_well(column) for row, column in job.cells)
        assert sum(not job.guards_off for job in jobs) == 1, "all guards on: one stack for all controls"


class TestVerdict:
    """What cells add up to."""

    @pytest.mark.parametrize(
        ("on", "off", "filled", "verdict"),
        [
            (OK, VIOLATED, True, OK),
            (OK, OK, False, VIOLATED),
            (VIOLATED, VIOLATED, False, VIOLATED),
            (VIOLATED, OK, False, VIOLATED),
            (OK, UNKNOWN, None, UNKNOWN),
            (UNKNOWN, VIOLATED, None, UNKNOWN),
        ],
    )
    def test_row_is_filled_by_harm_that_its_guard_prevents(
        self, on: Verdict, off: Verdict, filled: bool | None, verdict: Verdict
    ) -> None:
        """Harm with the guard on shows nothing, nor does none with it off."""
        found = matrix(on, off)
        assert (found.filled(ONE), found.verdict) == (filled, verdict)
        assert bool(found.empty) == (verdict is not OK)

    def test_matrix_with_an_empty_row_is_violated(self) -> None:
        """And it is named."""
        empty, unknown = matrix(OK, OK), matrix(OK, UNKNOWN, TWO)
        both = Matrix((ONE, TWO), {**empty.cells, **unknown.cells})
        assert both.verdict is VIOLATED
        assert both.empty == (
            "ticket, one: no violation was found with the guard off",
            "lock, two, only it off: unknown: not brought about: nobody came",
        )

    def test_violated_control_names_the_violation(self) -> None:
        """It would be a bug of ours."""
        assert matrix(VIOLATED, VIOLATED).empty == (
            "ticket, one: violated with the guard on: settled at most once: twice",
        )


@dataclass
class Stacks:
    """Stacks that need no process: scripted cells, and what was asked for.

    Args:
        script: Verdicts by (scenario, guards off), one for each run; ok or violated as expected if missing.
    """

    script: dict[tuple[str, GuardsOff], list[Verdict]] = field(default_factory=dict)
    broken: int = 0
    opened: list[tuple[GuardsOff, int, Mapping[str, int]]] = field(default_factory=list)
    played: list[tuple[str, GuardsOff, int]] = field(default_factory=list)

    @asynccontextmanager
    async def open(
        self, folder: Path, guards_off: GuardsOff, replicas: Mapping[str, int], seed: int, _clock: Clock
    ) -> AsyncIterator[Any]:
        self.opened.append((guards_off, seed, replicas))
        (folder / "history.jsonl").touch()
        if self.broken:
            self.broken -= 1
            raise CountinghouseError("STACK_NOT_READY", "not ready")
        yield guards_off, seed

    async def play(self, trial: Any, scenario: Scenario) -> tuple[Verdict, tuple[str, ...]]:
        guards_off, seed = trial
        self.played.append((scenario.name, guards_off, seed))
        (row,) = [row for row in (ONE, TWO, PAIR) if row.scenario == scenario]
        scripted = self.script.get((scenario.name, guards_off))
        verdict = scripted.pop(0) if scripted else VIOLATED if row.guard in guards_off else OK
        return verdict, () if verdict is OK else (f"a check: {verdict}",)


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> Stacks:
    """All cells go as expected, unless scripted otherwise."""
    found = Stacks()
    monkeypatch.setattr(ablation, "open_trial", found.open)
    monkeypatch.setattr(ablation, "_run", found.play)
    return found


async def played(folder: Path, *rows: GuardRow) -> tuple[Matrix, list[Cell]]:
    told: list[Cell] = []
    return await ablate(rows, folder, SystemClock(), seeds=(4, 5, 6), at_once=2, tell=told.append), told


def left_in(folder: Path) -> int:
    return len(list(folder.iterdir()))


class TestRun:
    """Stacks, seeds and what is left behind."""

    async def test_run_as_expected_fills_every_row(self, stacks: Stacks, tmp_path: Path) -> None:
        """The first seed decides everything; those with all guards on share a stack; nothing is left behind."""
        found, told = await played(tmp_path, ONE, TWO, PAIR)
        assert found.verdict is OK
        assert len(told) == len(found.cells) == 10
        assert {(each.seed, each.tries) for each in told} == {(4, 1)}
        assert [replicas for off, _, replicas in stacks.opened if not off] == [{"payment": 2, "ledger": 2}]
        assert len(stacks.opened) == 9
        assert left_in(tmp_path) == 0

    async def test_violation_is_looked_for_with_every_seed(self, stacks: Stacks, tmp_path: Path) -> None:
        """Each on a stack of its own; the cell tells which seed found it, and the data of those that did not stays."""
        stacks.script["one", ("ticket",)] = [OK, OK]
        found, _ = await played(tmp_path, ONE)
        off = found.cells[ONE, Column.IT_OFF]
        assert (off.verdict, off.seed, off.tries) == (VIOLATED, 6, 3)
        assert [seed for guards_off, seed, _ in stacks.opened if guards_off == ("ticket",)] == [4, 5, 6]
        assert left_in(tmp_path) == 2

    async def test_row_without_a_violation_by_any_seed_is_empty(self, stacks: Stacks, tmp_path: Path) -> None:
        """No seed found anything."""
        stacks.script["one", ("ticket",)] = [OK, OK, OK]
        found, _ = await played(tmp_path, ONE)
        assert found.filled(ONE) is False
        assert found.cells[ONE, Column.IT_OFF].tries == 3

    async def test_control_that_is_violated_is_not_tried_again(self, stacks: Stacks, tmp_path: Path) -> None:
        """One violation is one too many; the other scenarios then get a stack whose books are right."""
        stacks.script["one", ()] = [VIOLATED]
        found, _ = await played(tmp_path, ONE, TWO)
        assert found.verdict is VIOLATED
        assert found.cells[ONE, Column.ALL_ON].tries == 1
        assert found.cells[TWO, Column.ALL_ON].verdict is OK
        assert [guards_off for guards_off, _, _ in stacks.opened].count(()) == 2

    @pytest.mark.parametrize("column", [Column.ALL_ON, Column.IT_OFF])
    async def test_scenario_not_brought_about_is_tried_with_the_next_seed(
        self, stacks: Stacks, tmp_path: Path, column: Column
    ) -> None:
        """With the next seed; at last it is unknown."""
        stacks.script["one", ONE.guards_off(column)] = [UNKNOWN]
        found, _ = await played(tmp_path / "a", ONE)
        assert (found.verdict, found.cells[ONE, column].seed) == (OK, 5)
        stacks.script["one", ONE.guards_off(column)] = [UNKNOWN] * 3
        found, _ = await played(tmp_path / "b", ONE)
        assert (found.verdict, found.cells[ONE, column].verdict) == (UNKNOWN, UNKNOWN)

    async def test_stack_that_does_not_start_is_unknown(self, stacks: Stacks, tmp_path: Path) -> None:
        """It proves nothing; another one is started."""
        stacks.broken = 1
        found, _ = await played(tmp_path, ONE)
        assert found.verdict is OK
        assert found.cells[ONE, Column.ALL_ON].tries == 2


def test_clerk_overtaken_at_work_is_a_violation() -> None:
    """Waiting, being told and being refused are no harm; to be overtaken while at work is."""

    def settle(reason: str, kind: str = "Settle") -> RecordedCall:
        return RecordedCall(1, "li", kind, Arguments("order-1"), 0, answer=Answer(code="ABORTED", reason=reason))

    lawful = [settle(reason) for reason in ("", "ORDER_LOCKED", "ORDER_ALREADY_PAID", "REQUEST_IN_PROGRESS")]
    assert no_clerk_loses_an_order(tuple(lawful)).check("queue").ok
    for kind in ("Settle", "Pay", "Reverse"):
        for reason in ("STALE_FENCE", "ORDER_LOCK_LOST"):
            found = no_clerk_loses_an_order((*lawful, settle(reason, kind))).check("queue")
            assert found.examined == 5
            assert found.violations == (f"li lost order-1 ({reason}), and had neither died nor frozen",)


class TestReport:
    """For people and for scripts."""

    def test_table_names_the_seed_of_a_violation(self) -> None:
        """And what was not played."""
        assert table(matrix(OK, VIOLATED)) == [
            ("ticket", "the first <fault>", "ok", "VIOLATED, seed 4", "ok", "VIOLATED, seed 4", "filled")
        ]
        assert len(HEADS) == len(table(matrix(OK, OK))[0])
        assert table(matrix(UNKNOWN, OK, PAIR)) == [
            ("fence", "a fault that unique stops, too (without unique)", "unknown, seed 4", "ok", "–", "–", "unknown")
        ]
        assert table(matrix(OK, OK))[0][-1] == "EMPTY"

    def test_json_document_has_the_documented_fields(self) -> None:
        """For scripts."""
        found = document(matrix(OK, VIOLATED, PAIR))
        assert (found["verdict"], found["reasons"]) == ("ok", [])
        (row,) = found["rows"]
        assert (row["guard"], row["scene"], row["off_besides"], row["filled"]) == ("fence", "pair", ["unique"], True)
        assert row["cells"] == {
            "all on": {
                "guards_off": ["unique"],
                "verdict": "ok",
                "seed": 4,
                "tries": 2,
                "took_s": 1.2,
                "reasons": [],
            },
            "only it off": {
                "guards_off": ["fence", "unique"],
                "verdict": "violated",
                "seed": 4,
                "tries": 2,
                "took_s": 1.2,
                "reasons": ["settled at most once: twice"],
            },
        }

    def test_page_needs_no_other_file(self) -> None:
        """One file: the matrix, what was found and by which seed, and the command that repeats it."""
        page = render(matrix(OK, VIOLATED), "countinghouse chaos ablate --seeds 1", {"cells": "4"})
        assert not re.search(r"<link|<script|https?://", page)
        assert "the first &lt;fault&gt;" in page
        assert page.count("settled at most once: twice") == 2
        assert page.count("<small>settled at most once</small>") == 2
        assert "countinghouse chaos ablate --seeds 1" in page
        assert "EMPTY" not in page
        assert "EMPTY" in render(matrix(OK, OK), "", {})


class TestCommand:
    """`countinghouse chaos ablate`, without a stack."""

    @pytest.mark.parametrize(
        ("on", "off", "code"), [(OK, VIOLATED, 0), (OK, OK, 1), (VIOLATED, VIOLATED, 1), (OK, UNKNOWN, 2)]
    )
    def test_exit_code_is_that_of_the_matrix(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on: Verdict, off: Verdict, code: int
    ) -> None:
        """0: every row is filled; 1: one is empty; 2: one is unknown."""

        async def found(rows: tuple[GuardRow, ...], *_: object, seeds: list[int], **__: object) -> Matrix:
            assert (rows, seeds) == (chosen_rows(["ticket"]), [1, 2, 3])
            return matrix(on, off)

        monkeypatch.setattr(ablation, "ablate", found)
        ended = CliRunner().invoke(app, ["chaos", "ablate", "--guards-off", "ticket", "--data", str(tmp_path)])
        assert ended.exit_code == code, ended.output
        assert f"verdict: {matrix(on, off).verdict} (4 cells); report: {tmp_path}/report.html" in ended.stdout
        assert all(reason in ended.stdout for reason in matrix(on, off).empty)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "countinghouse chaos ablate --seeds 1,2,3 --guards-off ticket" in page

    def test_guard_that_does_not_exist_is_refused(self, tmp_path: Path) -> None:
        """With 2, before anything starts: 1 would say that a row is empty."""
        ended = CliRunner().invoke(app, ["chaos", "ablate", "--guards-off", "luck", "--data", str(tmp_path)])
        assert ended.exit_code == 2
        assert "there is no guard 'luck'; the guards are ticket, lock" in ended.stderr
