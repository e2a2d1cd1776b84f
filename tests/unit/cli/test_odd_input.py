"""No command ends with a traceback for what somebody typed, set or left in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from services.cli.arguments import amount_of
from services.cli.commands import app
from tests.unit.cli.test_commands import commands, run

CREATE = ("order", "create", "--customer", "mei", "--currency", "CNY")
SETTLE = ("settle", "o1", "--source", "drawer")
TOO_LARGE = str(2**63)


def run_bytes(*arguments: bytes, **environment: bytes) -> subprocess.CompletedProcess[bytes]:
    settings = {name: value for name, value in os.environb.items() if not name.startswith(b"COUNTINGHOUSE_")}
    named = {name.encode(): value for name, value in environment.items()}
    return subprocess.run(
        [sys.executable.encode(), b"-m", b"services.cli.main", *arguments],
        capture_output=True,
        check=False,
        timeout=60,
        env=settings | named,
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*CREATE, "--amount", "0"), "0.01 CNY"),
        ((*CREATE, "--amount", "0", "--line", "tea:2:3.00"), "0.01 CNY"),
        ((*CREATE, "--amount-minor", "0", "--line", "tea:2:3.00"), "0.01 CNY"),
        ((*CREATE, "--amount", "-1"), "not an amount"),
        ((*CREATE, "--amount", "1,000"), "not an amount"),
        ((*CREATE, "--amount", "1e3"), "not an amount"),
        ((*CREATE, "--amount", "nan"), "not an amount"),
        ((*CREATE, "--amount", ""), "not an amount"),
        ((*CREATE, "--amount", "12.505"), "2 decimals"),
        ((*CREATE, "--amount", "9" * 30), f"--amount: '{'9' * 30}' is more than 10000000000000.00 CNY"),
        ((*CREATE, "--amount-minor", TOO_LARGE), "--amount-minor: 92233720368547758.08 CNY is out of range"),
        ((*CREATE, "--amount-minor", TOO_LARGE), "0.01 CNY to 10000000000000.00 CNY"),
        ((*CREATE, "--amount", "12.50", "--amount-minor", "1250"), "use one of them"),
        ((*CREATE,), "--amount"),
        ((*CREATE, "--line", "tea:2:0"), "0.01 CNY"),
        ((*CREATE, "--line", "tea:2:3.005"), "2 decimals"),
        ((*CREATE, "--line", "tea:two:3.00"), "tea:2:3.00"),
        (("order", "create", "--customer", "mei", "--currency", "RMB", "--amount", "5"), "'--currency': 'RMB' is not"),
        (("order", "create", "--customer", "mei", "--currency", "RMB", "--line", "tea:2:3.00"), "'--currency': 'RMB'"),
        (("pay", "t1", "--source", "drawer", "--amount-minor", "5", "--currency", "RMB"), "'--currency': 'RMB'"),
        (("ledger", "open", "a", "--currency", "RMB"), "'--currency': 'RMB' is not a currency of ISO 4217"),
        (("order", "create", "--customer", "mei", "--currency", "JPY", "--amount", "5.0"), "no decimals"),
        (("order", "cancel", "o1", "--reason", "x", "--version", TOO_LARGE), "--version"),
        (("pay", "t1", "--source", "drawer", "--amount", "5.00"), "go together"),
        (("pay", "t1", "--source", "drawer", "--currency", "CNY"), "go together"),
        (("pay", "t1", "--source", "drawer", "--amount", "0", "--currency", "CNY"), "0.01 CNY"),
        (("ledger", "open", "a", "--currency", "CNY", "--overdraft", "x"), "not an amount"),
        (("ledger", "open", "merchant:li", "--currency", "CNY"), "--kind"),
        (("ledger", "open", "wallets:mei:CNY", "--currency", "CNY"), "does not imply a kind"),
        (("acquirer", "log", "--jsonl", "--key", "pay_1:1"), "whole log"),
        (("ledger", "open", "a", "--currency", "CNY", "--overdraft-minor", TOO_LARGE), "0.00 CNY to 10000000000000.00"),
        (
            ("ledger", "open", "a", "--currency", "CNY", "--overdraft-minor", "-1"),
            "--overdraft-minor: -0.01 CNY is out",
        ),
        (("ledger", "verify", "--from", TOO_LARGE), "--from"),
        (("ledger", "verify", "--to", TOO_LARGE), "--to"),
        ((*SETTLE, "--timeout", "inf"), "--timeout"),
        ((*SETTLE, "--timeout", "nan"), "--timeout"),
        ((*SETTLE, "--timeout", "0"), "--timeout"),
        ((*SETTLE, "--timeout", "-1"), "--timeout"),
        ((*SETTLE, "--timeout", "1e300"), "--timeout"),
        (("check", "--settle-s", "nan"), "--settle-s"),
        (("chaos", "run", "--minutes", "nan"), "--minutes"),
        (("chaos", "seeds", "--seeds", "1-9999999999"), "seeds"),
        (("up", "--start-timeout", "nan"), "--start-timeout"),
        (("up", "--detached"), "No such option"),
        (("registry", "weight", "payment-2", "-1"), "-1 is out of range; it is 0 to 1000000"),
        (("registry", "weight", "payment-2", "1000001"), "1000001 is out of range; it is 0 to 1000000"),
        (("registry", "weight", "payment-2", "5", "--intrface"), "extra argument"),
        ((*SETTLE, "--as", "cashier:梅"), "--as: name must be"),
        ((*SETTLE, "--request-id", ""), "'--request-id': it is empty"),
    ],
)
def test_odd_value_is_a_usage_error(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    """Refused before anybody is asked."""
    settings = {"COUNTINGHOUSE_DATA": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    done = CliRunner().invoke(app, arguments, env=settings)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.stderr.replace("│", " ").split())
    assert done.stdout == ""


@pytest.mark.parametrize("command", [("settle", "o1"), ("pay", "t1")])
@pytest.mark.parametrize("card", [(), ("--card", "")])
def test_source_card_without_a_card_is_refused_before_anybody_is_asked(
    tmp_path: Path, command: tuple[str, ...], card: tuple[str, ...]
) -> None:
    settings = {"COUNTINGHOUSE_DATA": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    done = CliRunner().invoke(app, [*command, "--source", "card", *card], env=settings)
    assert (done.exit_code, done.stdout) == (2, "")
    said = " ".join(done.stderr.replace("│", " ").split())
    assert "'--card': it is required for --source card; name the card's token, like --card tok-mei" in said


@pytest.mark.parametrize(
    ("arguments", "variable", "says"),
    [
        ((), {"COUNTINGHOUSE_TOKEN": "t"}, "--as and the variable COUNTINGHOUSE_TOKEN both name the caller"),
        (("--token", "t"), {}, "--as and --token both name the caller"),
        (("--token", "t"), {"COUNTINGHOUSE_TOKEN": "u"}, "--as and --token both name the caller"),
    ],
)
def test_token_beside_as_is_refused_by_the_name_under_which_it_was_given(
    tmp_path: Path, arguments: tuple[str, ...], variable: dict[str, str], says: str
) -> None:
    """Whoever set the variable long ago has typed no --token."""
    settings = {"COUNTINGHOUSE_DATA": str(tmp_path), "NO_COLOR": "1", "COLUMNS": "300", "TERMINAL_WIDTH": "300"}
    done = CliRunner().invoke(app, [*SETTLE, "--as", "cashier:li", *arguments], env=settings | variable)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        (b"order", b"get", b"li\xe9"),
        (
            b"order",
            b"create",
            b"--customer",
            b"mei",
            b"--currency",
            b"CNY",
            b"--amount",
            b"5",
            b"--request-id",
            b"\xe9",
        ),
        (b"settle", b"o1", b"--source", b"drawer", b"--memo", b"li\xe9"),
        (b"status", b"--data", b"/nowhere/li\xe9"),
        (b"li\xe9",),
    ],
)
def test_argument_in_latin_1_is_refused_in_a_sentence(arguments: tuple[bytes, ...]) -> None:
    """Its place is named."""
    done = run_bytes(*arguments)
    assert done.returncode == 2, done.stderr
    assert b"UTF-8" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_setting_in_latin_1_is_refused_in_a_sentence() -> None:
    """By its name."""
    done = run_bytes(b"status", COUNTINGHOUSE_TOKEN=b"li\xe9")
    assert done.returncode == 2, done.stderr
    assert b"COUNTINGHOUSE_TOKEN is not text in UTF-8" in done.stderr


@pytest.mark.parametrize("token", ["“eyJ.a.b”", '"eyJ.a.b"', "eyJ.a.b\n", "eyJ a b", "梅"])
def test_token_in_quotes_is_refused_in_a_sentence(tmp_path: Path, token: str) -> None:
    """Before it is sent: gRPC takes no such header."""
    acquirer = {"COUNTINGHOUSE_ACQUIRER_ADDRESS": "127.0.0.1:1", "COUNTINGHOUSE_PLAINTEXT": "true"}
    done = run("acquirer", "log", COUNTINGHOUSE_ACQUIRER_TOKEN=token, **acquirer)
    assert done.returncode == 1, done.stderr
    assert "countinghouse token" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "[::1", ",", "h:p"])
@pytest.mark.parametrize("command", [("order", "get", "o1"), ("doctor",)])
def test_zookeeper_address_that_does_not_parse_is_refused(tmp_path: Path, command: Any, address: str) -> None:
    """Given as a setting as well as by an option."""
    done = run(*command, COUNTINGHOUSE_DATA=str(tmp_path), COUNTINGHOUSE_ZOOKEEPER=address)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("stack.json", b"li\xe9"),
        ("stack.json", b"[]"),
        ("stack.json", b"{}"),
        pytest.param("stack.json", b"[" * 20_000, id="stack.json-deep"),
        ("keys/signing.key", b"li\xe9"),
    ],
)
@pytest.mark.parametrize("command", [("token", "--role", "cashier"), ("down",), ("doctor",)])
def test_damaged_file_of_a_stack_is_no_traceback(
    tmp_path: Path, file: str, content: bytes, command: tuple[str, ...]
) -> None:
    """While its lock is held, so that it is believed."""
    (tmp_path / "keys").mkdir()
    (tmp_path / file).write_bytes(content)
    with open(tmp_path / "stack.lock", "wb") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(*command, "--data", str(tmp_path))
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "--history", "{file}"),
        ("check", "--acquirer-log", "{file}"),
        ("check", "--databases", "{file}"),
        ("check", "--history", "{folder}"),
        ("check", "--history", "{folder}/none"),
        ("chaos", "proxy", "--config", "{file}"),
        ("demo", "--keep", "{file}"),
        ("demo", "--svg", "{folder}"),
        ("demo", "--svg", "{folder}/none/lanes.svg"),
        ("chaos", "run", "--data", "{file}"),
        ("chaos", "ablate", "--data", "{file}"),
        ("up", "--data", "{file}"),
        ("status", "--data", "{file}"),
        ("doctor", "--data", "{file}"),
        ("token", "--role", "cashier", "--data", "{file}"),
        ("token", "--role", "cashier", "--name", "梅"),
        ("chaos", "proxy", "--listen", "127.0.0.1:99999"),
        ("chaos", "proxy", "--listen", "li\u00e9:1"),
        ("registry", "explain", "o\n1", "--service", "x"),
    ],
)
def test_odd_file_is_no_traceback(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A file in Latin-1, a directory in place of a file, and the other way round."""
    file = tmp_path / "latin-1"
    file.write_bytes(b"li\xe9\n")
    done = run(*(part.format(file=file, folder=tmp_path) for part in arguments))
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode in (1, 2)
    assert done.stderr


def numbers() -> Iterator[tuple[str, Any]]:
    """Every option of every command that is a floating-point number."""
    for words, command in commands():
        for parameter in command.params:
            if parameter.type_descriptor.annotation is float:
                yield f"{' '.join(words)} {parameter.opts[0]}", parameter


@pytest.mark.parametrize(("name", "parameter"), [pytest.param(*each, id=each[0]) for each in numbers()])
def test_number_of_every_option_has_limits(name: str, parameter: Any) -> None:
    """`inf` and `nan` are beyond them."""
    assert parameter.min is not None
    assert parameter.max is not None


def test_amount_is_read_in_major_or_in_minor_units() -> None:
    """As given, and nothing if neither is."""
    assert amount_of("12.50", None, "CNY") == amount_of(None, 1250, "CNY") == 1250
    assert amount_of("1250", None, "JPY") == 1250
    assert amount_of("1.250", None, "KWD") == 1250
    assert amount_of(None, None, "CNY") is None


def test_commands_are_all_there_is_to_start() -> None:
    """No option is hidden: what starts a mode by accident would be one."""
    hidden = [parameter.opts for _, command in commands() for parameter in command.params if parameter.hidden]
    assert hidden == []
