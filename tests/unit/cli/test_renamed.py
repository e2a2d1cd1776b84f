"""An option or a command that was renamed is refused in a sentence that names the new one."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from services.chaos.faults import ALL
from services.cli.chaos import _RENAMED_FAULTS
from services.cli.commands import app


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("demo --without lock", "--without: it is now --guards-off"),
        ("demo --without=lock", "--without: it is now --guards-off"),
        ("up --without lock", "--without: it is now --guards-off"),
        ("chaos run --without lock", "--without: it is now --guards-off"),
        ("chaos run --some 3", "--some: it is now --sample"),
        ("chaos ablate --guards lock", "--guards: it is now --guards-off"),
        ("chaos ablate --at-once 2", "--at-once: it is now --parallel"),
        ("chaos sweep --seeds 1 --some 3", "--some: it is now --sample"),
        ("chaos sweep --fresh 1", "--fresh: it is now --random-seeds"),
        ("chaos sweep --seeds 1 --at-once 2", "--at-once: it is now --parallel"),
        ("chaos seeds --seeds 1-5 --some 3", "seeds: it is now sweep"),
        ("chaos run --fresh 1", "No such option"),
    ],
)
def test_old_spelling_is_a_usage_error_that_names_the_new_one(typed: str, says: str) -> None:
    ended = CliRunner().invoke(app, typed.split(), env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert says in ended.stderr


@pytest.mark.parametrize(("old", "new"), _RENAMED_FAULTS.items())
def test_old_name_of_a_fault_is_refused_and_names_the_new_one(old: str, new: str) -> None:
    ended = CliRunner().invoke(app, ["chaos", "run", "--faults", f"kill,{old}"])
    assert ended.exit_code == 2
    assert f"the fault {old} is now {new}" in ended.stderr
    assert new in {fault.name for fault in ALL}
