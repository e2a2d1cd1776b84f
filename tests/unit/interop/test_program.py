"""A foreign program at work: what it says is heard, and how it ends is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.interop.program import Program, ProgramFailed


def program(tmp_path: Path, code: str) -> Program:
    """A program in Python."""
    return Program("fake", (sys.executable, "-c", code), {"INTEROP_TOKEN": "secret"}, tmp_path / "fake.log")


async def test_output_lines_of_name_and_value_are_read(tmp_path: Path) -> None:
    """Its own log may stand between them."""
    code = (
        "import os; print('2026 INFO'); print('paid', 'p1'); print('[x] y'); print('paid', os.environ['INTEROP_TOKEN'])"
    )
    async with program(tmp_path, code) as running:
        said = await running.finished(10.0)
    assert dict(said) == {"paid": ["p1", "secret"]}
    assert "2026 INFO" in (tmp_path / "fake.log").read_text()


async def test_program_answers_on_standard_input(tmp_path: Path) -> None:
    """Through its standard input."""
    async with program(tmp_path, "while True: print('heard', input(), flush=True)") as running:
        assert [await running.ask(line, "heard", 10.0) for line in ("one", "two")] == ["one", "two"]
        await running.stop()


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("raise SystemExit('error: no provider')", "ended with exit code 1: error: no provider"),
        ("import os; os.kill(os.getpid(), 9)", "ended with signal SIGKILL"),
        ("import time; time.sleep(60)", r"still at work after 0\.5 s"),
    ],
)
async def test_exit_code_other_than_0_is_an_error(tmp_path: Path, code: str, how: str) -> None:
    """It says how, and in which words."""
    async with program(tmp_path, code) as running:
        with pytest.raises(ProgramFailed, match=how):
            await running.finished(0.5 if "sleep" in code else 10.0)


async def test_missing_line_is_not_awaited_after_the_end(tmp_path: Path) -> None:
    """Nor longer than is allowed."""
    async with program(tmp_path, "print('other', 1)") as running:
        with pytest.raises(ProgramFailed, match="ended with exit code 0"):
            await running.says("ready", 10.0)
    async with program(tmp_path, "import time; time.sleep(60)") as running:
        with pytest.raises(ProgramFailed, match=r"did not say 'ready' within 0\.2 s"):
            await running.says("ready", 0.2)


async def test_program_is_ended_with_its_context(tmp_path: Path) -> None:
    """Whatever it thinks of SIGTERM."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    async with program(tmp_path, code) as running:
        await running.says("ready", 10.0)
    assert running.ended
