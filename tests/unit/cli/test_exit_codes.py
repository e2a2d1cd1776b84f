"""The exit codes: one table, shown in --help and services/cli/README.md, and a script that ships only what is paid."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from countinghouse.payment.v1 import payment_pb2 as pb
from services.cli import exit_codes, payments, program
from services.cli.commands import app
from services.cli.exit_codes import ExitCode
from services.kernel.errors import AlreadyExists, CountinghouseError, FailedPrecondition
from services.payment.execution import not_parkable, not_reversible
from services.payment.model import PaymentState
from tests.unit.payment.test_model import PAYMENT

#: As much of a client as showing needs.
CLIENT: Any = SimpleNamespace(as_json=False)
ROOT = Path(__file__).parents[3]


def test_help_shows_every_exit_code() -> None:
    """With its meaning."""
    shown = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output.split())
    for code in ExitCode:
        assert f"{code.value}: {code.meaning}" in shown


def test_readme_shows_every_exit_code() -> None:
    """The same table, and no other code."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (ROOT / "services/cli/README.md").read_text(), re.MULTILINE)
    assert [(int(code), meaning.replace("`", "")) for code, meaning in rows] == [
        (code.value, code.meaning) for code in ExitCode
    ]


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("SUCCEEDED", ExitCode.DONE),
        *((state, ExitCode.OUTCOME_UNKNOWN) for state in ("CREATED", "SUBMITTED", "UNKNOWN", "REVERSING", "PARKED")),
        *((state, ExitCode.NOT_PAID) for state in ("DECLINED", "REVERSED")),
    ],
)
def test_settle_that_did_not_succeed_ends_with_a_code_of_its_own(
    state: str, code: ExitCode, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that `settle && ship` ships nothing that is not paid; the payment is shown all the same."""
    payment = pb.Payment(payment_id="pay_1", state=pb.PaymentState.Value(f"PAYMENT_STATE_{state}"))
    with pytest.raises(typer.Exit) as end:
        payments._end(CLIENT, payment, {"replayed": False, "request_id": "req_1"}, wanted="SUCCEEDED")
    assert end.value.exit_code == code
    assert "pay_1" in capsys.readouterr().out


def test_payment_of_unknown_outcome_names_the_request_id_that_repeats_it(capsys: pytest.CaptureFixture[str]) -> None:
    """And the command that shows it."""
    payment = pb.Payment(payment_id="pay_1", state=pb.PAYMENT_STATE_UNKNOWN)
    with pytest.raises(typer.Exit):
        payments._end(CLIENT, payment, {"replayed": False, "request_id": "req_1"}, wanted="SUCCEEDED")
    said = capsys.readouterr().out
    assert "--request-id req_1" in said
    assert "countinghouse payment get pay_1" in said


@pytest.mark.parametrize("wanted", ["SUCCEEDED", "REVERSED", "PARKED"])
def test_payment_in_a_state_that_this_version_does_not_know_is_shown_and_is_no_success(
    wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newer service may have it; whether money moved is not known here."""
    payment = pb.Payment(payment_id="pay_1", state=99, source=42)  # type: ignore[arg-type]
    with pytest.raises(typer.Exit) as end:
        payments._end(CLIENT, payment, {"replayed": False, "request_id": "req_1"}, wanted=wanted)
    assert end.value.exit_code == ExitCode.OUTCOME_UNKNOWN
    said = capsys.readouterr().out
    assert ["state", "99"] in [line.split() for line in said.splitlines()]
    assert "this version does not know the state 99" in said
    assert "--request-id req_1" in said


@pytest.mark.parametrize(
    ("state", "code"),
    [("REVERSED", ExitCode.DONE), ("REVERSING", ExitCode.OUTCOME_UNKNOWN), ("SUCCEEDED", ExitCode.NOT_PAID)],
)
async def test_reversal_that_is_not_reversed_ends_with_a_code_of_its_own(state: str, code: ExitCode) -> None:
    """A ledger may refuse to reverse."""
    assert exit_codes.of_payment(f"PAYMENT_STATE_{state}", "REVERSED") is code
    payment = pb.Payment(payment_id="pay_1", state=pb.PaymentState.Value(f"PAYMENT_STATE_{state}"))

    async def change(*_: object) -> Any:
        return SimpleNamespace(message=pb.ReverseResponse(payment=payment), replayed=False)

    client = SimpleNamespace(as_json=False, change=change, new_id=lambda given: given)
    command: Any = inspect.unwrap(payments.reverse)
    with pytest.raises(typer.Exit) as end:
        await command(client, "pay_1", reason="wrong order", request_id="req_1")
    assert end.value.exit_code == code


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        *(
            (not_allowed(replace(PAYMENT, state=state)), ExitCode.FAILED)
            for not_allowed in (not_reversible, not_parkable)
            for state in (PaymentState.REVERSED, PaymentState.DECLINED)
        ),
        (FailedPrecondition("ORDER_NOT_PAYABLE", "o1 is CANCELLED"), ExitCode.FAILED),
        (FailedPrecondition("CARDS_NOT_TAKEN", "no acquirer is set"), ExitCode.FAILED),
        (AlreadyExists("ORDER_ALREADY_PAID", "paid"), ExitCode.FAILED),
        (FailedPrecondition("INSUFFICIENT_FUNDS", "declined: short"), ExitCode.NOT_PAID),
        (FailedPrecondition("ALREADY_REVERSED", "nothing is left to undo"), ExitCode.NOT_PAID),
    ],
)
async def test_refusal_by_state_ends_with_1_and_an_answer_that_no_money_moved_with_4(
    refusal: CountinghouseError, code: ExitCode
) -> None:
    """Whichever command met it."""

    async def change(*_: object) -> None:
        raise refusal

    with pytest.raises(type(refusal)) as refused:
        await payments._change(SimpleNamespace(change=change), "Reverse", None, "r1")  # type: ignore[arg-type]
    assert program._end_with(refused.value) == code


def test_state_of_a_payment_is_known_to_the_exit_codes() -> None:
    """None of the proto's states counts as declined by being forgotten."""
    ends = {"SUCCEEDED", "DECLINED", "REVERSED"}
    states = {value.name.removeprefix("PAYMENT_STATE_") for value in pb.PaymentState.DESCRIPTOR.values}
    not_paid = {state for state in states if exit_codes.of_payment(state, "") is ExitCode.NOT_PAID}
    assert not_paid == ends


def test_every_verdict_has_the_same_code_in_every_command() -> None:
    """check, chaos and demo."""
    verdicts = ("ok", "violated", "unknown")
    assert [exit_codes.of_verdict(verdict).value for verdict in verdicts] == [0, 1, 2]


def test_defect_ends_with_a_code_that_no_verdict_has() -> None:
    """1 would say of a proof that it found a violation."""
    script = "from services.cli import program\ndef broken(): raise ZeroDivisionError('a defect')\nprogram.run(broken)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == ExitCode.DEFECT
    assert "a defect" in done.stderr
