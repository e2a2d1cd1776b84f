"""Progress of a run where standard error is no terminal, and where it is one."""

from __future__ import annotations

import io
import sys

import pytest

from services.cli.run_progress import RunProgress
from tests.fakes.clock import ManualClock


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_line_is_printed_now_and_then_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = ManualClock()
    with RunProgress(1000, clock) as progress:
        for _ in range(8):
            clock.advance(1_000)
            progress.advance(50)
    assert capsys.readouterr().err == "250 of 1000 lines, 50/s, 15 s left\n"
    assert progress.done == 400


def test_sentence_is_shown_if_the_last_line_is_long_ago(capsys: pytest.CaptureFixture[str]) -> None:
    """Words of a server in it are escaped."""
    clock = ManualClock()
    with RunProgress(10, clock) as progress:
        for _ in range(6):
            clock.advance(1_000)
            progress.tell("away\x1b[31m")
    assert capsys.readouterr().err == "away\\x1b[31m\n"


@pytest.mark.parametrize("bar", [True, False])
def test_bar_is_on_a_terminal_only_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch, bar: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with RunProgress(10, ManualClock(), bar=bar) as progress:
        progress.advance(10)
    assert ("10/10" in terminal.getvalue()) == bar
