"""The commands as a whole: their help, their speed, and how they refuse."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from services.cli.arguments import parse_pairs
from services.cli.commands import app, load
from services.cli.connection import parse_principal, user_name
from services.devstack.state import StackLock, StackState
from services.kernel.clock import SystemClock
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenSigner
from tests.tokens import verifier_of

#: They keep nothing, or in a directory of their own.
WITHOUT_DATA = {("chaos", "proxy"), ("demo",)}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("COUNTINGHOUSE_")}
    return subprocess.run(
        [sys.executable, "-m", "services.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=settings | environment | {"NO_COLOR": "1", "COLUMNS": "200"},
    )


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, with the words that call it."""
    listed = [str(each.name) for each in app.registered_commands]
    found: dict[str, Any] = group.commands if group else {name: load(name) for name in listed}
    for name, command in found.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        if not hasattr(command, "commands") or command.invoke_without_command:
            yield (*path, name), command


def test_every_command_of_the_issue_is_there() -> None:
    found = {" ".join(words) for words, _ in commands()}
    assert found == {
        *("key ca", "key ls", "key rotate", "revoke"),
        *(
            "up",
            "down",
            "backup",
            "restore",
            "status",
            "doctor",
            "token",
            "demo",
            "check",
            "locks",
            "locks watch",
            "metrics",
            "gateway",
            "trigger",
            "top",
        ),
        *("registry ls", "registry watch", "registry explain"),
        *("registry offline", "registry online", "registry weight"),
        *("order create", "order get", "order list", "order cancel", "order history"),
        *("ticket", "pay", "settle", "reverse", "payment get", "payment list", "payment history", "payment attention"),
        *("payment park", "settle-run"),
        *("acquirer log", "acquirer faults", "reconcile"),
        *("chaos run", "chaos sweep", "chaos ablate", "chaos proxy"),
        *("ledger accounts", "ledger open", "ledger close-account"),
        *("ledger journals", "ledger trial-balance", "ledger verify"),
    }


@pytest.mark.parametrize(("words", "command"), [pytest.param(*found, id=" ".join(found[0])) for found in commands()])
def test_every_command_has_a_summary_an_example_and_json(words: tuple[str, ...], command: Any) -> None:
    assert command.help
    assert f"Example: countinghouse {' '.join(words)}" in command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--data"} - ({"--data"} if words in WITHOUT_DATA else set()) <= options
    assert all(parameter.help for parameter in command.params if not parameter.hidden)


@pytest.mark.parametrize("listed", app.registered_commands, ids=lambda listed: str(listed.name))
def test_help_lists_each_command_with_the_first_sentences_of_its_own_help(listed: Any) -> None:
    own = load(listed.name)
    if listed.name != "check":  # there the list says how it is proved
        assert listed.help == " ".join(own.help.split("\n\n")[0].split())


def test_version_is_that_of_the_package() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"countinghouse {importlib.metadata.version('countinghouse')}\n")


def test_help_does_not_wait_for_what_only_commands_need() -> None:
    """gRPC, SQLAlchemy and kazoo together take longer to import than the help takes to print."""
    program = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from services.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & "
        "{'grpc', 'kazoo', 'sqlalchemy', 'pydantic', 'jwt', 'google', 'asyncpg', 'alembic', 'starlette', 'uvicorn'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("status",), 2, "no stack is running"),
        (("order", "get", "o1"), 2, "countinghouse up"),
        (("token", "--role", "king"), 2, "king"),
        (("settle", "o1"), 2, "--source"),
        (("settle", "o1", "--source", "drawer", "--as", "li"), 2, "role:name"),
        (("settle", "o1", "--source", "drawer", "--as", "cashier:li", "--token", "x"), 2, "use one of them"),
        (("order", "list", "--state", "LOST"), 2, "UNPAID"),
        (("order", "create", "--customer", "mei", "--currency", "CNY", "--line", "tea"), 2, "tea:2:3.00"),
        (("payment", "list", "--state", "LOST"), 2, "SUCCEEDED"),
        (("registry",), 2, "countinghouse up"),
        (("token", "--role", "cashier"), 2, "countinghouse up"),
        (("registry", "--nonsense"), 2, "--nonsense"),
        (("registry", "weight", "payment-1", "-1"), 2, "-1"),
        (("registry", "nonsense"), 2, "nonsense"),
        (("up", "--replicas", "payment"), 2, "payment=2"),
        (("up", "--replicas", "gate=2"), 2, "gate"),
        (("up", "--guards-off", "luck"), 2, "luck"),
        (("locks", "--json", "watch"), 2, "go behind it"),
        (("nonsense",), 2, "nonsense"),
    ],
)
def test_refusal_is_on_standard_error_and_in_the_exit_code(
    tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = run(*arguments, COUNTINGHOUSE_DATA=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_status_without_a_stack_is_still_json(tmp_path: Path) -> None:
    done = run("status", "--json", "--data", str(tmp_path))
    assert done.returncode == 2
    assert json.loads(done.stdout) == {"zookeeper": "", "acquirer": "", "gateway": "", "services": []}
    assert done.stderr.count("\n") == 1


def test_status_shows_the_processes_of_acquirer_and_zookeeper(tmp_path: Path) -> None:
    """With the state that the acquirer answers; the JSON document keeps the fields that its callers know."""
    lock = StackLock(tmp_path)
    lock.take()
    StackState(1, True, "127.0.0.1:2", 4712, (), acquirer="127.0.0.1:1", acquirer_pid=4711, plaintext=True).write(
        tmp_path
    )
    try:
        shown = CliRunner().invoke(app, ["status", "--data", str(tmp_path)], env={"COLUMNS": "200"})
        as_json = CliRunner().invoke(app, ["status", "--json", "--data", str(tmp_path)])
    finally:
        lock.give_up()
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["acquirer", "127.0.0.1:1", "4711", "UNREACHABLE"] in lines
    assert ["zookeeper", "127.0.0.1:2", "4712"] in lines
    assert json.loads(as_json.stdout) == {
        "zookeeper": "127.0.0.1:2",
        "acquirer": "127.0.0.1:1",
        "gateway": "",
        "services": [],
    }


def test_error_is_json_too_if_json_was_asked_for(tmp_path: Path) -> None:
    done = run("token", "--role", "cashier", "--json", "--data", str(tmp_path))
    assert json.loads(done.stdout)["error"]["reason"] == "SIGNING_KEY_MISSING"
    assert done.returncode == 2


def test_down_without_a_stack_has_nothing_to_do(tmp_path: Path) -> None:
    done = run("down", "--json", "--data", str(tmp_path))
    assert (done.returncode, json.loads(done.stdout)) == (0, {"stopped": False})


def test_start_without_java_and_docker_names_what_to_install(tmp_path: Path) -> None:
    done = run("up", "--data", str(tmp_path), PATH="/nowhere", HOME=str(tmp_path), JAVA_HOME="")
    assert done.returncode == 2
    assert "apt install" in done.stderr
    assert "Docker" in done.stderr
    assert done.stderr.count("\n") == 1


def test_printed_token_is_accepted_by_the_services(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    signer = TokenSigner.from_file(tmp_path / "keys" / "signing.key", SystemClock())
    done = run("token", "--role", "cashier", "--name", "li", "--data", str(tmp_path))
    verifier = verifier_of(signer, SystemClock())
    assert verifier.verify(done.stdout.strip()) == Principal("li", Role.CASHIER)


def test_caller_is_read_as_role_and_name() -> None:
    assert parse_principal("accountant:wang") == Principal("wang", Role.ACCOUNTANT)
    for wrong in ("", "li", "king:li", "cashier:"):
        with pytest.raises(typer.BadParameter):
            parse_principal(wrong)


def test_user_has_a_name_that_is_one_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "DOMAIN\\mei li")
    assert user_name() == "DOMAINmeili"
    monkeypatch.setattr("getpass.getuser", lambda: "梅")
    assert user_name() == "local"


def test_pairs_are_read() -> None:
    assert parse_pairs(["payment=2", "order=1"], "payment=2") == {"payment": 2, "order": 1}
    for wrong in ("payment", "payment=", "payment=x", "=2", "payment=123456"):
        with pytest.raises(typer.BadParameter):
            parse_pairs([wrong], "payment=2")


@pytest.mark.parametrize("command", [("doctor",), ("order", "list"), ("up",)])
def test_zookeeper_address_that_is_not_understood_is_refused_before_anything_is_done(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--zookeeper", "h1:2181;h2:2181"])
    assert result.exit_code == 2
    assert "one ensemble" in result.output
