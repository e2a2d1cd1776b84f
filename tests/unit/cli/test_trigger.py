"""`countinghouse trigger`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.cli import trigger
from services.cli.commands import app
from services.cli.interruption import ignored
from services.demo.acts import ActResult
from services.demo.lanes import Lane
from services.demo.situations import SITUATIONS, Outcome, Situation
from services.devstack.state import StackRefused
from tests.unit.cli.stacks import described_as_running

Tell = Callable[[str], None]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trigger", *arguments])


@pytest.fixture
def comes_about(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the next situation come about, with this end."""

    def end(ok: bool | None, detail: str = "1 charge", left: tuple[str, ...] = ()) -> None:
        async def bring_about(
            situation: Situation,
            data: Path,
            _clock: Any,
            tell: Tell,
            undisturbed: Callable[[], AbstractContextManager[None]],
        ) -> Outcome:
            assert undisturbed is ignored
            tell("li makes order order-1")
            tell("li settles \x1b[2J")
            lanes = (Lane("cashier li", ((0, "lock"),), 18, "✔", "settled in 18 ms"),)
            return Outcome(ActResult(situation.name, ok, detail, lanes), ("order-1",), left)

        monkeypatch.setattr(trigger, "bring_about", bring_about)

    return end


def test_without_a_situation_all_are_listed_with_what_they_need() -> None:
    lines = invoke().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SITUATIONS)
    assert lines[0].split() == ["situation", "what", "happens", "needs"]
    needs = {line.split()[0]: line.partition(".  ")[2].strip() for line in lines[1:]}
    assert needs["two-clerks"] == ""
    assert needs["lost-reply"] == "--failpoints"
    assert needs["frozen-holder"] == "--failpoints --replicas payment=2"


def test_list_is_one_json_document_if_asked_for() -> None:
    found = json.loads(invoke("--json").stdout)["situations"]
    assert [each["name"] for each in found] == list(SITUATIONS)
    assert found[0] == {
        "name": "double-click",
        "says": SITUATIONS["double-click"].says,
        "failpoints": False,
        "payment_instances": 1,
    }


def test_unknown_situation_is_refused_with_those_there_are() -> None:
    result = invoke("lost-money")
    assert result.exit_code == 2
    assert "silent-acquirer" in result.output


def test_steps_outcome_and_the_commands_that_show_the_books_are_printed(
    comes_about: Callable[..., None], tmp_path: Path
) -> None:
    comes_about(True)
    result = invoke("lost-reply", "--data", str(tmp_path))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"lost-reply: {SITUATIONS['lost-reply'].says}"
    assert lines[1] == "  1. li makes order order-1"
    assert "\x1b" not in result.stdout
    assert any("cashier li" in line and "settled in 18 ms" in line for line in lines)
    assert "ok: 1 charge" in lines
    assert lines[-2:] == [
        f"see: countinghouse check --data {tmp_path}",
        f"see: countinghouse order history order-1 --data {tmp_path}",
    ]


def test_commands_need_no_directory_where_it_is_the_usual_one(comes_about: Callable[..., None]) -> None:
    comes_about(True)
    result = CliRunner().invoke(app, ["trigger", "lost-reply"], env={"COUNTINGHOUSE_DATA": ""})
    assert "see: countinghouse check\n" in result.stdout


@pytest.mark.parametrize(("ok", "verdict", "code"), [(True, "ok", 0), (False, "violated", 1), (None, "unknown", 2)])
def test_exit_code_is_that_of_the_verdict(
    comes_about: Callable[..., None], ok: bool | None, verdict: str, code: int
) -> None:
    comes_about(ok, "2 charges")
    result = invoke("lost-reply")
    assert result.exit_code == code
    assert f"{verdict}: 2 charges" in result.stdout.splitlines()


def test_json_is_one_document_with_all_of_it(comes_about: Callable[..., None]) -> None:
    comes_about(True, left=("posted of payment-1",))
    result = CliRunner().invoke(app, ["trigger", "lost-reply", "--json", "--data", "a b"])
    assert "\x1b" not in result.stdout
    assert json.loads(result.stdout) == {
        "situation": "lost-reply",
        "verdict": "ok",
        "detail": "1 charge",
        "steps": ["li makes order order-1", "li settles \x1b[2J"],
        "orders": ["order-1"],
        "still_armed": ["posted of payment-1"],
        "commands": [
            "countinghouse check --data 'a b'",
            "countinghouse order history order-1 --data 'a b'",
        ],
    }


def test_failpoint_that_stays_armed_is_told_with_the_remedy(comes_about: Callable[..., None]) -> None:
    comes_about(True, left=("posted of payment-1",))
    assert "start the stack again to be rid of posted of payment-1" in invoke("lost-reply").stderr


def test_stack_without_failpoints_is_refused_before_anything_is_printed(tmp_path: Path) -> None:
    with described_as_running(tmp_path, "payment-1"):
        result = invoke("lost-reply", "--data", str(tmp_path))
    assert isinstance(result.exception, StackRefused)
    assert result.exception.reason == "FAILPOINTS_OFF"
    assert result.stdout == ""


def test_stack_that_is_not_running_is_refused(tmp_path: Path) -> None:
    result = invoke("two-clerks", "--data", str(tmp_path))
    assert isinstance(result.exception, StackRefused)
    assert result.exception.reason == "STACK_NOT_RUNNING"


def test_deployment_on_docker_is_refused() -> None:
    """Its containers serve no failpoints."""
    result = CliRunner().invoke(app, ["--stack", "compose", "trigger", "lost-reply"])
    assert result.exit_code == 2
    assert "embedded stacks" in result.output


def test_name_of_a_situation_is_completed() -> None:
    environment = {
        "_COUNTINGHOUSE_COMPLETE": "complete_bash",
        "COMP_WORDS": "countinghouse trigger l",
        "COMP_CWORD": "2",
    }
    result = CliRunner().invoke(app, [], prog_name="countinghouse", env=environment)
    assert result.stdout.split() == ["lost-reply", "late-charge"]
