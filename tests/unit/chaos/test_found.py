"""The commands of FOUND.md can be run as they stand."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from services.chaos.targets import local
from services.cli.chaos import ChaosStack, _numbers, _run_config, _target, app

PAGE = (Path(__file__).parents[2] / "chaos" / "FOUND.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"(?:`|^\$ )countinghouse chaos ([^`\n]+)", PAGE, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_found_has_a_plan(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its options are known, and its faults exist and have room."""
    monkeypatch.setattr(local, "_FAKETIME", tmp_path)  # as if libfaketime were installed
    name, *options = shlex.split(command)
    group: Any = typer.main.get_command(app)
    given = group.commands[name].make_context(name, options).params
    seeds = [given["seed"]] if name == "run" else _numbers(given["seeds"])
    target = _target(given.get("stack", ChaosStack.LOCAL), tmp_path, given["database"], ())
    for seed in seeds:
        config = _run_config(target, seed, given["minutes"] * 60, given["faults"], given["sample"], 15.0, "")
        assert config.plan(target)


def test_every_bug_of_found_has_a_command_and_some_are_repeated() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 10
    assert all(row.startswith("| `countinghouse chaos run --") for row in rows)
    assert len(re.findall(r"^\$ countinghouse chaos sweep --seeds", PAGE, re.M)) >= 5
