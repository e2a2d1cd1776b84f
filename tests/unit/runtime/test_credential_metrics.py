"""What a process shows of its certificates, keys and revocations: the files as they are when the page is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from services.devstack.authority import LIFE_S
from services.runtime.grpc import tls
from services.runtime.grpc.credential_metrics import CredentialMetrics
from services.runtime.grpc.tls import TlsFiles
from services.runtime.grpc.trust import TrustFiles, key_set
from tests.certificates import CertificateIssuer
from tests.fakes.clock import ManualClock

HOUSE = {"authority": "house"}
START_MS = 1_700_000_000_000


class Shown:
    """The gauges of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = CredentialMetrics(self.registry)

    def value(self, name: str, **labels: str) -> float | None:
        """What the page would say now; None: nothing."""
        return self.registry.get_sample_value(f"countinghouse_{name}", labels)


@pytest.fixture
def shown() -> Shown:
    return Shown()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START_MS)


@pytest.fixture
def issuer(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> CertificateIssuer:
    monkeypatch.setattr(tls, "_LOOK_S", 0.0)
    return CertificateIssuer(tmp_path / "ours", clock)


def expires_s(file: Path) -> float:
    """The latest expiry in a file of certificates."""
    return max(
        each.not_valid_after_utc.timestamp() for each in x509.load_pem_x509_certificates(Path(file).read_bytes())
    )


def test_expiry_is_that_of_the_files_also_when_they_are_renewed(
    shown: Shown, issuer: CertificateIssuer, clock: ManualClock
) -> None:
    """Nothing but the page has looked at them."""
    shown.metrics.show_tls("house", issuer.files("order"))
    assert shown.value("certificate_expiry_timestamp_seconds", **HOUSE) == START_MS / 1000 + LIFE_S
    authority_s = expires_s(issuer.authority.file)
    assert shown.value("authority_expiry_timestamp_seconds", **HOUSE) == authority_s
    clock.advance(3_600_000)
    issuer.certify("order")
    assert shown.value("certificate_expiry_timestamp_seconds", **HOUSE) == START_MS / 1000 + 3600 + LIFE_S
    assert shown.value("authority_expiry_timestamp_seconds", **HOUSE) == authority_s


def test_authority_expiry_is_that_of_the_newest_that_is_believed(
    shown: Shown, issuer: CertificateIssuer, clock: ManualClock
) -> None:
    shown.metrics.show_tls("house", issuer.files("order"))
    first_s = expires_s(issuer.authority.file)
    clock.advance(100 * 86_400_000)  # more than a quarter of its life
    issuer.authority.advance()
    assert len(x509.load_pem_x509_certificates(issuer.authority.file.read_bytes())) == 2
    newest_s = shown.value("authority_expiry_timestamp_seconds", **HOUSE)
    assert newest_s == expires_s(issuer.authority.file)
    assert newest_s > first_s + 200 * 86_400


def test_tls_files_are_unusable_until_they_can_be_loaded(shown: Shown, issuer: CertificateIssuer) -> None:
    """What was loaded before holds, and so does its expiry."""
    shown.metrics.show_tls("house", issuer.files("order"))
    assert shown.value("tls_files_unusable", **HOUSE) == 0
    before_s = shown.value("certificate_expiry_timestamp_seconds", **HOUSE)
    file = issuer.folder / "order-1.pem"
    for content in (b"rubbish", b""):
        file.write_bytes(content)
        assert shown.value("tls_files_unusable", **HOUSE) == 1
        assert shown.value("certificate_expiry_timestamp_seconds", **HOUSE) == before_s
    file.unlink()
    assert shown.value("tls_files_unusable", **HOUSE) == 1
    issuer.certify("order")
    assert shown.value("tls_files_unusable", **HOUSE) == 0


def test_tls_files_are_usable_when_the_loaded_ones_come_back(shown: Shown, issuer: CertificateIssuer) -> None:
    shown.metrics.show_tls("house", issuer.files("order"))
    file = issuer.folder / "order-1.pem"
    kept = file.rename(issuer.folder / "kept.pem")
    assert shown.value("tls_files_unusable", **HOUSE) == 1
    os.replace(kept, file)
    assert shown.value("tls_files_unusable", **HOUSE) == 0


def test_client_without_a_certificate_shows_its_authority_alone(shown: Shown, issuer: CertificateIssuer) -> None:
    shown.metrics.show_tls("acquirer", TlsFiles(issuer.authority.file))
    assert shown.value("certificate_expiry_timestamp_seconds", authority="acquirer") is None
    assert shown.value("authority_expiry_timestamp_seconds", authority="acquirer") == expires_s(issuer.authority.file)
    assert shown.value("tls_files_unusable", authority="acquirer") == 0


def test_process_in_plain_text_shows_no_certificate(shown: Shown) -> None:
    """Not 0, which would be a certificate that expired long ago."""
    shown.metrics.show_tls("house", None)
    samples = {sample.name for family in shown.registry.collect() for sample in family.samples}
    assert samples == {"countinghouse_trust_files_unusable"}


def test_trust_files_are_unusable_until_they_can_be_read(shown: Shown, tmp_path: Path) -> None:
    keys, revoked = tmp_path / "verify.jwks", tmp_path / "revoked.json"
    keys.write_bytes(key_set([Ed25519PrivateKey.generate().public_key()]))
    shown.metrics.show_trust(TrustFiles(keys, revoked))
    assert shown.value("trust_files_unusable") == 0
    revoked.write_bytes(b"rubbish")
    assert shown.value("trust_files_unusable") == 1
    revoked.write_bytes(b'{"tokens": {}, "callers": ["cashier:li"]}')
    assert shown.value("trust_files_unusable") == 0
