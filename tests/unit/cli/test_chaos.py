"""`countinghouse chaos`: a folder that holds an earlier run is refused, and a run that fails is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli import chaos
from services.cli.commands import app

_RUN = "chaos run --seed 7 --faults kill --database sqlite"


@pytest.fixture(autouse=True)
def no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every run fail before it starts a stack."""

    async def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a stack was to be started")

    for name in ("_run", "_sweep", "_run_ablation"):
        monkeypatch.setattr(chaos, name, fail)


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (_RUN, "history.jsonl"),
        (_RUN, "report.html"),
        (_RUN, "data"),
        ("chaos sweep --seeds 1-3", "seed-2"),
        ("chaos ablate", "report.html"),
        ("chaos ablate", "stack-1-1"),
    ],
)
def test_folder_of_an_earlier_run_is_refused_before_a_stack_starts(tmp_path: Path, command: str, left: str) -> None:
    """A stack on the databases of the earlier run would change its evidence."""
    (tmp_path / left).mkdir()
    ended = CliRunner().invoke(app, [*command.split(), "--data", str(tmp_path)], env={"COLUMNS": "300"})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert f"{tmp_path} holds an earlier run; name another --data, or remove it" in " ".join(ended.stderr.split())
    assert "ZeroDivisionError" not in ended.stderr
    assert [file.name for file in tmp_path.iterdir()] == [left]


@pytest.mark.parametrize("left", ["seed-9", "notes.txt"])
def test_folder_with_other_files_is_used(tmp_path: Path, left: str) -> None:
    """Such as the folders of other seeds."""
    (tmp_path / left).mkdir()
    ended = CliRunner().invoke(app, ["chaos", "sweep", "--seeds", "1-3", "--data", str(tmp_path)])
    assert isinstance(ended.exception, ZeroDivisionError)


def test_run_that_fails_is_unknown(tmp_path: Path) -> None:
    """2, and the traceback that is needed to fix it."""
    ended = CliRunner().invoke(app, [*_RUN.split(), "--data", str(tmp_path / "new")])
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert "Traceback" in ended.stderr


@pytest.mark.parametrize("data", [True, False], ids=["data", "default"])
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("chaos run --seed 7 --faults kil", "there is no fault 'kil' here"),
        ("chaos run --seed 7 --faults kil --stack compose", "there is no fault 'kil' here"),
        ("chaos run --seed 7 --faults bank-silent", "the fault bank-silent is now acquirer-silent"),
        ("chaos run --seed 7 --minutes 0.1", "too short"),
        ("chaos sweep --seeds 1-3 --faults kil", "there is no fault 'kil' here"),
        ("chaos ablate --guards-off fens", "there is no guard 'fens'"),
    ],
)
def test_refused_name_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, says: str, data: bool
) -> None:
    """The same command with the right name can then use the folder: it holds no earlier run."""
    monkeypatch.setattr(chaos, "_NEW_FOLDERS", tmp_path)
    arguments = [*command.split(), *(("--data", str(tmp_path / "new")) if data else ())]
    ended = CliRunner().invoke(app, arguments)
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_run_is_made_for_all_to_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL runs as another user. Without --data it is a new one for each run."""
    monkeypatch.setattr(chaos, "_NEW_FOLDERS", tmp_path)
    for _ in range(2):
        assert CliRunner().invoke(app, _RUN.split()).exit_code == 2
    assert [folder.stat().st_mode & 0o777 for folder in tmp_path.iterdir()] == [0o755] * 2
