"""The bookkeeping of `make interop`: what passed, what failed, what was skipped, and how the run ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.architecture.code import ROOT
from tests.interop import __main__ as program
from tests.interop import tally
from tests.interop.parts import PARTS
from tests.interop.tally import Outcome, Part, Skip


async def _shows(_scene: Any) -> str:
    return "a thing"


async def _raises(_scene: Any) -> str:
    raise ValueError("not\nas it should be")


async def _asserts(_scene: Any) -> str:
    raise AssertionError


async def _skips(_scene: Any) -> str:
    raise Skip("because go cannot be found on the PATH")


async def _times_out(_scene: Any) -> str:
    raise TimeoutError


GOOD, BAD, ABSENT = Part("good", _shows), Part("bad", _raises), Part("absent one", _skips)


class TestPart:
    """One result for each part."""

    async def test_part_passes_only_by_returning(self) -> None:
        """Whatever it raises makes it failed, but for Skip. The others are run all the same."""
        parts = [BAD, GOOD, ABSENT, Part("late", _times_out), Part("silent", _asserts)]
        told: list[tally.Result] = []
        results = await tally.run(parts, None, told.append)
        assert [(result.name, result.outcome) for result in results] == [
            ("bad", Outcome.FAILED),
            ("good", Outcome.OK),
            ("absent one", Outcome.SKIPPED),
            ("late", Outcome.FAILED),
            ("silent", Outcome.FAILED),
        ]
        assert told == results

    async def test_part_prints_its_result_or_its_error(self) -> None:
        """One line for each, also for an error of several lines, or of none."""
        results = await tally.run([GOOD, BAD, ABSENT, Part("silent", _asserts)], None, lambda _result: None)
        assert [str(result).rpartition(" (")[0] for result in results] == [
            "ok: good: a thing",
            "FAILED: bad: not as it should be",
            "skipped: absent one: because go cannot be found on the PATH",
            "FAILED: silent: AssertionError()",
        ]


class TestRun:
    """The program, with parts of our own."""

    def run(self, monkeypatch: pytest.MonkeyPatch, parts: list[Part[Any]], *arguments: str) -> int:
        monkeypatch.setattr(program, "PARTS", parts)
        monkeypatch.setattr(sys, "argv", ["interop", *arguments])
        with pytest.raises(SystemExit) as end:
            program.main()
        assert isinstance(end.value.code, int)
        return end.value.code

    def test_failed_part_fails_the_run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 1, and the count as the very last line."""
        assert self.run(monkeypatch, [GOOD, BAD, ABSENT, GOOD]) == 1
        assert capsys.readouterr().out.splitlines()[-1] == "interop: 2 passed, 1 failed, 1 skipped"

    def test_skipped_part_is_neither_failure_nor_success(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Exit code 0; it is counted by itself."""
        assert self.run(monkeypatch, [ABSENT, GOOD]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "interop: 1 passed, 0 failed, 1 skipped"

    def test_only_chosen_parts_are_run_and_counted(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """By its name, or by the first word of it."""
        assert self.run(monkeypatch, [GOOD, BAD, ABSENT], "--only", "absent", "--only", "good") == 0
        assert capsys.readouterr().out.splitlines()[-1] == "interop: 1 passed, 0 failed, 1 skipped"

    def test_part_that_is_not_there_is_a_usage_error(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nothing is run, and the parts that there are are named."""
        assert self.run(monkeypatch, [GOOD, ABSENT], "--only", "goo") == 2
        assert "there are good, absent one" in capsys.readouterr().err

    def test_result_is_printed_as_json(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Standard output is the document and nothing else; the same exit code."""
        assert self.run(monkeypatch, [BAD, ABSENT], "--json") == 1
        document = json.loads(capsys.readouterr().out)
        assert (document["passed"], document["failed"], document["skipped"]) == (0, 1, 1)
        assert [(part["name"], part["outcome"]) for part in document["parts"]] == [
            ("bad", "failed"),
            ("absent one", "skipped"),
        ]


def test_parts_have_different_names() -> None:
    """Else one could not be chosen."""
    assert len({part.name for part in PARTS}) == len(PARTS) == 9


def test_parts_without_a_toolchain_are_skipped_by_name(tmp_path: Path) -> None:
    """The program as `make interop` runs it, on a machine without Java, Go and Node: at once, and with the reason."""
    words = [word for name in ("java", "go", "npm") for word in ("--only", name)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.interop", *words],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'protos/gen'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert last == "interop: 0 passed, 0 failed, 7 skipped"
    assert [line.rpartition(" (")[0] for line in lines] == [
        *(
            f"skipped: java {part}: because java and javac and mvn cannot be found on the PATH"
            for part in ("consumer", "provider", "groups", "fault")
        ),
        *(f"skipped: go {part}: because go cannot be found on the PATH" for part in ("consumer", "provider")),
        "skipped: npm consumer: because node and npm cannot be found on the PATH",
    ]
