"""How a command connects: by the authority that it is told, or by that of the data directory, and never in silence
without one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordination.session.security import OPEN
from services.devstack.dialers import of_command, zookeeper_of_command
from services.devstack.files import ca_file, zookeeper_user_file
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


def describe(data: Path, *, plaintext: bool, zookeeper_plaintext: bool = False) -> None:
    """Writes how the stack was started."""
    state = StackState(
        os.getpid(), False, "127.0.0.1:2181", 0, (), plaintext=plaintext, zookeeper_plaintext=zookeeper_plaintext
    )
    state.write(data)


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


@pytest.fixture
def superuser(data: Path) -> str:
    """The superuser of the stack's ZooKeeper."""
    file = zookeeper_user_file(data, "super")
    file.parent.mkdir()
    file.write_text("super:secret\n")
    return "super:secret"


@pytest.mark.parametrize("elsewhere", [True, False])
def test_zookeeper_of_the_authority_of_the_data_directory_is_told_its_superuser(
    data: Path, superuser: str, elsewhere: bool
) -> None:
    security = zookeeper_of_command(data, {}, elsewhere=elsewhere)
    assert security.context is not None
    assert security.user is not None
    assert security.user() == superuser


@pytest.mark.usefixtures("superuser")
def test_zookeeper_of_another_authority_is_not_told_the_superuser(data: Path, tmp_path: Path) -> None:
    other = CertificateIssuer(tmp_path / "other").authority.file
    security = zookeeper_of_command(data, {"COUNTINGHOUSE_CA_FILE": str(other)})
    assert security.context is not None
    assert security.user is None


def test_user_of_zookeeper_that_is_named_prevails(data: Path, superuser: str, tmp_path: Path) -> None:
    file = tmp_path / "user"
    told = {"COUNTINGHOUSE_ZOOKEEPER_USER_FILE": str(file)}
    with pytest.raises(StackRefused) as refusal:
        zookeeper_of_command(data, told)
    assert refusal.value.reason == "ZOOKEEPER_USER_MISSING"
    file.write_text("order:other")
    security = zookeeper_of_command(data, told)
    assert security.user is not None
    assert security.user() == "order:other" != superuser


def test_zookeeper_in_plain_text_is_used_so_and_the_services_over_tls(data: Path) -> None:
    describe(data, plaintext=False, zookeeper_plaintext=True)
    assert zookeeper_of_command(data, {}) is OPEN
    assert zookeeper_of_command(data, {"COUNTINGHOUSE_ZOOKEEPER_PLAINTEXT": "false"}).context is not None
    assert zookeeper_of_command(data, {}, elsewhere=True).context is not None
    assert of_command(data, {}).credentials is not None


def test_stack_without_tls_has_a_zookeeper_without(data: Path) -> None:
    describe(data, plaintext=True)
    assert zookeeper_of_command(data, {}) is OPEN
    assert zookeeper_of_command(data, {}, elsewhere=True).context is not None


@pytest.mark.parametrize("content", ["", "rubbish"])
def test_file_without_certificates_is_refused_with_the_remedy(tmp_path: Path, content: str) -> None:
    """`key ca > ca.pem` leaves an empty file behind where it is refused."""
    (tmp_path / "ca.pem").write_text(content)
    told = {"COUNTINGHOUSE_CA_FILE": str(tmp_path / "ca.pem")}
    for connect in (of_command, zookeeper_of_command):
        with pytest.raises(StackRefused, match=r"PEM form; write to it what `countinghouse key ca`"):
            connect(tmp_path, told)
