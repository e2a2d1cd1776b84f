"""What a shell is told when it completes a line, by the script that `--show-completion` prints."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from services.cli.commands import app


def completed(line: str) -> list[str]:
    """What the last word of a line may become."""
    words = line.split(" ")
    environment = {
        "_COUNTINGHOUSE_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="countinghouse", env=environment)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("countinghouse settle", ["settle", "settle-run"]),
        ("countinghouse --st", ["--stack"]),
        ("countinghouse order c", ["create", "cancel"]),
        ("countinghouse settle --so", ["--source"]),
        ("countinghouse settle --source c", ["card"]),
        ("countinghouse locks w", ["watch"]),
    ],
)
def test_command_option_and_value_are_completed(line: str, words: list[str]) -> None:
    """Also those of a command whose module is not imported before it is named."""
    assert completed(line) == words


def test_registry_without_a_command_is_completed_by_its_commands() -> None:
    """Although `registry` alone is `registry ls`."""
    assert completed("countinghouse registry ") == ["ls", "offline", "online", "weight", "watch", "explain"]


def test_line_with_an_unknown_command_is_no_defect() -> None:
    """The shell completes while a person still types."""
    assert "settle" in completed("countinghouse nonsense ")


def test_help_names_the_options_that_install_the_completion() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "--install-completion" in shown
    assert "--show-completion" in shown
