"""`countinghouse key …, revoke`: what they show, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.commands import app
from services.devstack.authority import Authority
from services.devstack.files import ca_file
from services.devstack.keys import identity_file
from services.devstack.signing_keys import SigningKeys
from services.kernel.clock import SystemClock
from tests.unit.cli.stacks import described_as_running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with the keys of a house and the certificate of one payment process."""
    keys = tmp_path / "keys"
    keys.mkdir()
    SigningKeys(keys, SystemClock())
    Authority(keys, "countinghouse", SystemClock())
    file = identity_file(keys, "payment-1")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("")
    return tmp_path


@pytest.fixture
def running(data: Path) -> Iterator[None]:
    with described_as_running(data, "payment-1"):
        yield


def test_process_without_a_certificate_cannot_be_revoked(data: Path) -> None:
    """A typing error must not pass for a revocation."""
    result = CliRunner().invoke(app, ["revoke", "--instance", "payment-9", "--data", str(data)])
    assert (result.exit_code, "payment-1" in result.output) == (2, True)
    shown = CliRunner().invoke(app, ["revoke", "--json", "--data", str(data)])
    assert json.loads(shown.stdout)["callers"] == []


def test_process_is_revoked_and_taken_back(data: Path) -> None:
    revoke = ["revoke", "--instance", "payment-1", "--json", "--data", str(data)]
    revoked = json.loads(CliRunner().invoke(app, revoke).stdout)
    assert (revoked["callers"], revoked["instances"]) == ([], ["payment-1"])
    assert json.loads(CliRunner().invoke(app, [*revoke, "--undo"]).stdout)["instances"] == []


def test_list_of_what_is_revoked_names_callers_and_instances_apart(data: Path) -> None:
    where = ("--data", str(data))
    assert CliRunner().invoke(app, ["revoke", *where]).stdout == "nothing is revoked\n"
    CliRunner().invoke(app, ["revoke", "--instance", "payment-1", *where])
    listed = CliRunner().invoke(app, ["revoke", "--caller", "cashier:li", *where]).stdout.splitlines()
    assert [line.split() for line in listed[1:]] == [["caller", "cashier:li"], ["instance", "payment-1"]]


def test_revocation_of_a_running_process_says_that_it_still_answers(data: Path, running: None) -> None:
    revoke = ["revoke", "--instance", "payment-1", "--data", str(data)]
    assert "countinghouse registry offline payment-1" in CliRunner().invoke(app, revoke).stdout
    assert "offline" not in CliRunner().invoke(app, [*revoke, "--undo"]).stdout


def test_authorities_are_listed_and_a_successor_is_published_before_it_signs(data: Path) -> None:
    listed = CliRunner().invoke(app, ["key", "ls", "--authority", "--json", "--data", str(data)])
    (first,) = json.loads(listed.stdout)["keys"]
    rotated = CliRunner().invoke(app, ["key", "rotate", "--authority", "--json", "--data", str(data)])
    successor, signing = json.loads(rotated.stdout)["keys"]
    assert (signing["kid"], signing["signs_from_s"], signing["believed_until_s"]) == (first["kid"], None, None)
    assert successor["signs_from_s"] > SystemClock().now_ms() // 1000


@pytest.mark.parametrize("options", [(), ("--authority",)], ids=["key", "authority"])
def test_second_rotation_says_that_nothing_was_made(data: Path, options: tuple[str, ...]) -> None:
    """The one that is on its way would never sign if each call made another."""
    rotate = ["key", "rotate", *options, "--data", str(data)]
    assert "nothing was made" not in CliRunner().invoke(app, rotate).stdout
    assert "nothing was made: the next one is on its way already" in CliRunner().invoke(app, rotate).stdout
    assert "nothing was made" not in CliRunner().invoke(app, [*rotate, "--now"]).stdout


def test_missing_authority_is_named_and_not_a_signing_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["key", "ls", "--authority", "--data", str(tmp_path)])
    assert "there is no authority in" in str(result.exception)


def test_authorities_are_printed_as_they_are(data: Path) -> None:
    printed = CliRunner().invoke(app, ["key", "ca", "--data", str(data)])
    assert printed.stdout == ca_file(data).read_text()
    assert "PRIVATE" not in printed.stdout


def test_authority_is_not_made_by_looking_for_it(data: Path) -> None:
    ca_file(data).unlink()
    printed = CliRunner().invoke(app, ["key", "ca", "--data", str(data)])
    assert (printed.exit_code, ca_file(data).exists()) == (1, False)
