"""What each container of a deployment gets of its keys."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from services.devstack import revocations
from services.devstack.files import databases_elsewhere, signing_key
from services.devstack.keys import SERVICE_TOKEN_TTL_S, mint, revoked_file
from services.devstack.revocations import Revocations
from services.devstack.secret_distributor import SecretDistributor
from services.devstack.signing_keys import PUBLISHED_S, SigningKeys
from services.kernel.errors import CountinghouseError, Unauthenticated
from services.kernel.principal import Principal, Role
from services.runtime.database.pgpass import passwords_in
from services.runtime.grpc.tokens import TokenVerifier, audience_of
from services.runtime.grpc.trust import TrustFiles
from tests.fakes.clock import ManualClock

SERVICES = {"order": 2, "payment": 1}
ENSEMBLE = ("zoo1", "zoo2", "zoo3")


def passwords(root: Path, reader: str) -> dict[str, str]:
    return passwords_in((root / reader / "pgpass").read_text())


def test_service_gets_its_token_its_role_and_what_verifies(tmp_path: Path) -> None:
    """And nothing of anybody else's."""
    clock = ManualClock()
    SecretDistributor(tmp_path, SERVICES, clock).distribute()
    for service, instances in SERVICES.items():
        folder = tmp_path / service
        tokens = {"order.token", "ledger.token", "acquirer.token"} if service == "payment" else set()
        tls = {"ca.pem", "outside-ca.pem", "database-ca.pem"}
        given = {"verify.jwks", "revoked.json", "pgpass", "zookeeper-user"}
        for number in range(instances):
            assert [each.name for each in (tmp_path / f"{service}-{number + 1}").iterdir()] == ["identity.pem"]
        assert {path.name for path in folder.iterdir()} == given | tokens | tls
        assert set(passwords(tmp_path, service)) == {f"countinghouse_{service}"}
        assert {path.name for path in (tmp_path / f"{service}-owner").iterdir()} == {"pgpass", "database-ca.pem"}
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
    assert urls["payment"] == (
        f"postgresql+asyncpg://countinghouse_checker@postgres:5432/countinghouse_payment?passfile={passfile}"
        f"&sslrootcert={tmp_path / 'operator' / 'keys' / 'ca.pem'}"
    )
    assert passfile.exists()


def test_secrets_are_readable_by_their_reader_only(tmp_path: Path) -> None:
    SecretDistributor(tmp_path, SERVICES, ManualClock()).distribute()
    operator = tmp_path / "operator"
    keys = operator / "keys"
    public = [operator, keys / "revoked.json"]
    database = tmp_path / "postgres"  # of another user, alone in its volume
    public += [database, database / "server.pem", database / "ca.pem"]
    public += [folder / name for folder in (keys, keys / "acquirer") for name in ("verify.jwks", "ca.pem")]
    for path in tmp_path.rglob("*"):
        if path not in public:
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_server_of_zookeeper_gets_its_keys_and_no_password(tmp_path: Path) -> None:
    """Its superuser is known to it by a digest. Only servers have certificates of the quorum's authority."""
    distributor = SecretDistributor(tmp_path, SERVICES, ManualClock(), ensemble=ENSEMBLE)
    distributor.distribute()
    superuser = (tmp_path / "operator" / "keys" / "zookeeper" / "super").read_text()
    for server in ENSEMBLE:
        folder = tmp_path / server
        assert {each.name for each in folder.iterdir()} == {
            *("server.pem", "ca.pem", "quorum.pem", "quorum-ca.pem", "superuser")
        }
        assert superuser.partition(":")[2] not in (folder / "superuser").read_text()
        authority = x509.load_pem_x509_certificate((folder / "quorum-ca.pem").read_bytes())
        for name, ours in (("quorum.pem", True), ("server.pem", False)):
            certificate = x509.load_pem_x509_certificate((folder / name).read_bytes())
            assert (certificate.issuer == authority.subject) is ours
        for path in (folder, *folder.iterdir()):
            assert stat.S_IMODE(path.stat().st_mode) & 0o044, path  # another user's, alone in its volume


def test_every_server_of_postgresql_gets_a_certificate_in_its_own_name(tmp_path: Path) -> None:
    """By which ZooKeeper and the other servers know it; and the books are on whichever is the primary."""
    databases = ("postgres1", "postgres2", "postgres3")
    SecretDistributor(tmp_path, SERVICES, ManualClock(), ensemble=ENSEMBLE, databases=databases).distribute()
    for name in databases:
        folder = tmp_path / name
        assert {each.name for each in folder.iterdir()} == {"server.pem", "ca.pem"}
        certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        assert (folder / "ca.pem").read_bytes() == (tmp_path / ENSEMBLE[0] / "ca.pem").read_bytes()
    hosts = "&".join(f"host={name}:5432" for name in databases)
    url = databases_elsewhere(tmp_path / "operator")["payment"]
    assert url.startswith(f"postgresql+asyncpg://countinghouse_checker@/countinghouse_payment?{hosts}&passfile=")
    assert not (tmp_path / "postgres").exists()


def test_users_of_zookeeper_are_known_to_their_service_and_to_the_job_that_makes_the_tree(tmp_path: Path) -> None:
    SecretDistributor(tmp_path, SERVICES, ManualClock(), ensemble=ENSEMBLE).distribute()
    tree = {each.name: each.read_text() for each in (tmp_path / "tree").iterdir()}
    assert set(tree) == {"ca.pem", "super", "order", "payment", "ledger"}
    assert len(set(tree.values())) == len(tree)
    for service in SERVICES:
        assert (tmp_path / service / "zookeeper-user").read_text() == tree[service]
        assert tree[service].startswith(f"{service}:")


def test_second_start_hands_out_the_same_again(tmp_path: Path) -> None:
    """The databases keep their passwords; a service added later gets its own, under the same key."""
    clock = ManualClock()
    SecretDistributor(tmp_path, SERVICES, clock).distribute()
    before = passwords(tmp_path, "roles")
    key = (tmp_path / "order" / "verify.jwks").read_bytes()
    SecretDistributor(tmp_path, {**SERVICES, "ledger": 1}, clock).distribute()
    assert before.items() < passwords(tmp_path, "roles").items()
    assert (tmp_path / "ledger" / "verify.jwks").read_bytes() == key


def test_gateway_gets_the_authority_that_its_callers_believe_and_nothing_else(tmp_path: Path) -> None:
    SecretDistributor(tmp_path, SERVICES, ManualClock()).distribute()
    (file,) = (tmp_path / "gateway").iterdir()
    assert (file.name, file.read_bytes()) == ("ca.pem", (tmp_path / "order" / "ca.pem").read_bytes())


def test_failed_renewal_keeps_nothing_else_from_its_readers(tmp_path: Path) -> None:
    """Tokens and revocations go out while the authority of the acquirer is damaged."""
    clock = ManualClock()
    distributor = SecretDistributor(tmp_path, SERVICES, clock)
    distributor.distribute()
    old = (tmp_path / "payment" / "order.token").read_text()
    data = tmp_path / "operator"
    (data / "keys" / "acquirer" / "ca.pem").write_text("rubbish")
    revocations.write(revoked_file(data), Revocations(callers=frozenset({"cashier:li"})), 0)
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 // 2)
    with pytest.raises(CountinghouseError, match="has no certificate"):
        distributor.renew()
    assert (tmp_path / "payment" / "order.token").read_text() != old
    assert "cashier:li" in (tmp_path / "order" / "revoked.json").read_text()


def test_renewed_token_reaches_its_service(tmp_path: Path) -> None:
    """Long before the old one expires."""
    clock = ManualClock()
    distributor = SecretDistributor(tmp_path, SERVICES, clock)
    distributor.distribute()
    old = (tmp_path / "payment" / "order.token").read_text()
    assert distributor.renew() == []
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 // 2)
    assert distributor.renew() == list(SERVICES)
    new = (tmp_path / "payment" / "order.token").read_text()
    assert new != old
    order = trusting(tmp_path, "order", clock)
    assert [order.verify(token).name for token in (old, new)] == ["payment-service"] * 2


def test_rotated_key_and_revoked_caller_reach_every_service(tmp_path: Path) -> None:
    """What an operator does in the folder of the keys; no service is restarted."""
    clock = ManualClock()
    distributor = SecretDistributor(tmp_path, SERVICES, clock)
    distributor.distribute()
    order = trusting(tmp_path, "order", clock)
    data = tmp_path / "operator"
    li = mint(data, Principal("li", Role.CASHIER), 600, clock)
    wu = mint(data, Principal("wu", Role.CASHIER), 600, clock)
    SigningKeys(data / "keys", clock).rotate()
    revocations.write(revoked_file(data), Revocations(callers=frozenset({"cashier:li"})), 0)
    distributor.renew()
    assert order.verify(wu).name == "wu"
    with pytest.raises(Unauthenticated):
        order.verify(li)
    clock.advance(PUBLISHED_S * 1000)
    distributor.renew()
    for token in (wu, mint(data, Principal("wu", Role.CASHIER), 600, clock)):
        assert order.verify(token).name == "wu"
    assert order.verify((tmp_path / "payment" / "order.token").read_text()).name == "payment-service"


def trusting(root: Path, service: str, clock: ManualClock) -> TokenVerifier:
    """How the instances of a service verify, with what they were handed out."""
    trust = TrustFiles(root / service / "verify.jwks", root / service / "revoked.json")
    return TokenVerifier(trust.current, audience_of(service), clock)
