"""How a command connects: by the authority that it is told, or by that of the data directory, and never in silence
without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.devstack.dialers import of_command
from services.devstack.files import ca_file
from services.devstack.state import StackLock, StackRefused, StackState
from tests.certificates import CertificateIssuer


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The data directory of a stack that runs, with the authorities of the services and of the acquirer."""
    for outside in (False, True):
        file = ca_file(tmp_path, outside=outside)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(CertificateIssuer(tmp_path / f"authority-{outside}").authority.file.read_bytes())
    lock = StackLock(tmp_path)
    lock.take()
    describe(tmp_path, plaintext=False)
    yield tmp_path
    lock.give_up()


def describe(data: Path, *, plaintext: bool) -> None:
    """Writes how the stack was started."""
    StackState(os.getpid(), False, "127.0.0.1:2181", 0, (), plaintext=plaintext).write(data)


def test_command_uses_the_authority_of_the_data_directory(data: Path) -> None:
    dialer = of_command(data, {})
    assert dialer.credentials is not None
    assert dialer.options("payment") == (("grpc.ssl_target_name_override", "payment.countinghouse"),)


def test_acquirer_is_known_by_its_own_authority_and_by_its_host(data: Path) -> None:
    """Without the acquirer's authority there is no way to it, even if that of the house is here."""
    assert of_command(data, {}, outside=True).options("acquirer") == ()
    ca_file(data, outside=True).unlink()
    with pytest.raises(StackRefused) as refusal:
        of_command(data, {}, outside=True)
    assert refusal.value.reason == "CA_FILE_MISSING"


def test_stack_without_tls_is_called_without(data: Path) -> None:
    describe(data, plaintext=True)
    assert of_command(data, {}).credentials is None


def test_another_stack_is_not_called_in_plain_text_because_the_local_one_is(data: Path) -> None:
    describe(data, plaintext=True)
    assert of_command(data, {}, elsewhere=True).credentials is not None


def test_authority_that_is_named_prevails_over_a_stack_without_tls(data: Path) -> None:
    describe(data, plaintext=True)
    assert of_command(data, {"COUNTINGHOUSE_CA_FILE": str(ca_file(data))}).credentials is not None


def test_authority_and_plain_text_at_once_are_refused(data: Path) -> None:
    told = {"COUNTINGHOUSE_CA_FILE": "ca.pem", "COUNTINGHOUSE_PLAINTEXT": "true"}
    with pytest.raises(StackRefused) as refusal:
        of_command(data, told)
    assert refusal.value.reason == "PLAINTEXT_AMBIGUOUS"


def test_missing_authority_is_refused_with_the_command_that_prints_it(data: Path) -> None:
    with pytest.raises(StackRefused, match="countinghouse key ca") as refusal:
        of_command(data, {"COUNTINGHOUSE_CA_FILE": str(data / "absent.pem")})
    assert refusal.value.reason == "CA_FILE_MISSING"
