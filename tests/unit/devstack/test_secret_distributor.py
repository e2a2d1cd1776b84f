"""What each container of a deployment gets of its keys."""

from __future__ import annotations

import stat
from pathlib import Path

from services.devstack.files import databases_elsewhere, signing_key
from services.devstack.keys import SERVICE_TOKEN_TTL_S
from services.devstack.secret_distributor import SecretDistributor
from services.kernel.principal import Principal, Role
from services.runtime.database.pgpass import passwords_in
from services.runtime.grpc.tokens import TokenVerifier
from tests.fakes.clock import ManualClock

SERVICES = ("order", "ledger")


def passwords(root: Path, reader: str) -> dict[str, str]:
    return passwords_in((root / reader / "pgpass").read_text())


def test_service_gets_its_token_its_role_and_what_verifies(tmp_path: Path) -> None:
    """And nothing of anybody else's."""
    clock = ManualClock()
    SecretDistributor(tmp_path, SERVICES, clock).distribute()
    for service in SERVICES:
        folder = tmp_path / service
        assert {path.name for path in folder.iterdir()} == {"verify.pem", "service.token", "pgpass"}
        verifier = TokenVerifier((folder / "verify.pem").read_bytes(), clock)
        token = (folder / "service.token").read_text()
        assert verifier.verify(token) == Principal(f"{service}-service", Role.SERVICE)
        assert set(passwords(tmp_path, service)) == {f"countinghouse_{service}"}
        assert {path.name for path in (tmp_path / f"{service}-owner").iterdir()} == {"pgpass"}
        assert set(passwords(tmp_path, f"{service}-owner")) == {f"countinghouse_{service}_owner"}


def test_roles_job_gets_every_password(tmp_path: Path) -> None:
    """The same as are handed out; no two are alike."""
    SecretDistributor(tmp_path, SERVICES, ManualClock()).distribute()
    given = passwords(tmp_path, "roles")
    assert len(given) == len(set(given.values())) == 2 * len(SERVICES) + 1
    for reader in (*SERVICES, *(f"{service}-owner" for service in SERVICES)):
        assert passwords(tmp_path, reader).items() <= given.items()
    assert "countinghouse_checker" in given


def test_operators_folder_is_a_data_directory(tmp_path: Path) -> None:
    """Commands that run beside the keys sign with them, and find the books."""
    SecretDistributor(tmp_path, SERVICES, ManualClock()).distribute()
    assert signing_key(tmp_path / "operator").exists()
    urls = databases_elsewhere(tmp_path / "operator")
    passfile = tmp_path / "operator" / "keys" / "countinghouse_checker.pgpass"
    assert urls["ledger"] == (
        f"postgresql+asyncpg://countinghouse_checker@postgres:5432/countinghouse_ledger?passfile={passfile}"
    )
    assert passfile.exists()


def test_secrets_are_readable_by_their_reader_only(tmp_path: Path) -> None:
    SecretDistributor(tmp_path, SERVICES, ManualClock()).distribute()
    for path in tmp_path.rglob("*"):
        if path != tmp_path / "operator" / "keys" / "verify.pem" and path != tmp_path / "operator":
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_second_start_hands_out_the_same_again(tmp_path: Path) -> None:
    """The databases keep their passwords; a service added later gets its own, under the same key."""
    clock = ManualClock()
    SecretDistributor(tmp_path, SERVICES, clock).distribute()
    before = passwords(tmp_path, "roles")
    key = (tmp_path / "order" / "verify.pem").read_bytes()
    SecretDistributor(tmp_path, (*SERVICES, "payment"), clock).distribute()
    assert before.items() < passwords(tmp_path, "roles").items()
    assert (tmp_path / "payment" / "verify.pem").read_bytes() == key


def test_renewed_token_reaches_its_service(tmp_path: Path) -> None:
    """Long before the old one expires."""
    clock = ManualClock()
    distributor = SecretDistributor(tmp_path, SERVICES, clock)
    distributor.distribute()
    old = (tmp_path / "order" / "service.token").read_text()
    assert distributor.renew() == []
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 // 2)
    assert distributor.renew() == list(SERVICES)
    new = (tmp_path / "order" / "service.token").read_text()
    assert new != old
    assert TokenVerifier((tmp_path / "order" / "verify.pem").read_bytes(), clock).verify(old).name == "order-service"
