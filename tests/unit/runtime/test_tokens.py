"""Tokens: who is believed, and who is not."""

from __future__ import annotations

import base64
import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.kernel.errors import CountinghouseError, InvalidArgument, Unauthenticated
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenFile, TokenSigner, TokenVerifier
from tests.fakes.clock import ManualClock

LI = Principal("li", Role.CASHIER)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def signer(key: Ed25519PrivateKey, clock: ManualClock) -> TokenSigner:
    return TokenSigner(key, clock)


@pytest.fixture
def verifier(signer: TokenSigner, clock: ManualClock) -> TokenVerifier:
    return TokenVerifier(signer.public_pem(), clock)


@pytest.mark.parametrize("role", Role)
def test_token_names_its_principal(signer: TokenSigner, verifier: TokenVerifier, role: Role) -> None:
    """Name and role come back."""
    principal = Principal("li.2:x", role)
    assert verifier.verify(signer.sign(principal, 60)) == principal


def test_expired_token_is_refused(signer: TokenSigner, verifier: TokenVerifier, clock: ManualClock) -> None:
    """At its second, by the service's own clock, and says what to do."""
    token = signer.sign(LI, 60)
    clock.advance(59_000)
    assert verifier.verify(token) == LI
    clock.advance(1_000)
    with pytest.raises(Unauthenticated, match="countinghouse token") as refusal:
        verifier.verify(token)
    assert refusal.value.reason == "TOKEN_EXPIRED"


def test_foreign_key_signs_nothing(verifier: TokenVerifier, clock: ManualClock) -> None:
    """A well-formed token of another house is not one of ours."""
    foreign = TokenSigner(Ed25519PrivateKey.generate(), clock).sign(LI, 60)
    assert_invalid(verifier, foreign)


def test_changed_token_is_refused(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """A cashier who writes `accountant` over their role."""
    head, body, signature = signer.sign(LI, 60).split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    claims["role"] = "accountant"
    forged = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    assert_invalid(verifier, f"{head}.{forged}.{signature}")


@pytest.mark.parametrize(
    "change",
    [
        {"role": "king"},
        {"role": None},
        {"sub": "two words"},
        {"sub": ""},
        {"iss": "elsewhere"},
        {"exp": "soon"},
        {"exp": None},
    ],
)
def test_claims_must_make_sense(key: Ed25519PrivateKey, verifier: TokenVerifier, change: dict[str, object]) -> None:
    """Even under our own signature: a known role, a name, our issuer, an end."""
    claims: dict[str, object] = {"iss": "countinghouse", "sub": "li", "role": "cashier", "exp": 4_000_000_000}
    claims |= change
    present = {name: value for name, value in claims.items() if value is not None}
    assert_invalid(verifier, jwt.encode(present, key, algorithm="EdDSA"))


def test_only_our_algorithm_is_taken(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Neither `none`, nor the public key used as a shared secret."""
    claims = {"iss": "countinghouse", "sub": "li", "role": "operator", "exp": 4_000_000_000}
    assert_invalid(verifier, jwt.encode(claims, "", algorithm="none"))
    body = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims)
    )
    digest = jwt.get_algorithm_by_name("HS256")
    signature = digest.sign(body.encode(), signer.public_pem())
    assert_invalid(verifier, f"{body}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}")


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é", "." * 10_000])
def test_rubbish_is_refused(verifier: TokenVerifier, token: str) -> None:
    """With the same answer as every other bad token."""
    assert_invalid(verifier, token)


def test_name_that_cannot_be_one_is_not_signed(signer: TokenSigner) -> None:
    """Better here than at every call."""
    with pytest.raises(InvalidArgument):
        signer.sign(Principal("two words", Role.CASHIER), 60)


def test_key_file_is_made_for_its_owner_only(tmp_path: Path, clock: ManualClock) -> None:
    """Mode 0600, whatever the umask; and the next start reads the same key."""
    path = tmp_path / "signing.pem"
    before = os.umask(0)
    try:
        first = TokenSigner.from_file(path, clock)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert TokenSigner.from_file(path, clock).public_pem() == first.public_pem()
    assert [child.name for child in tmp_path.iterdir()] == ["signing.pem"]


def test_file_that_is_no_such_key_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    """Rather than overwritten; the message names the file."""
    path = tmp_path / "signing.pem"
    other = ec.generate_private_key(ec.SECP256R1())
    path.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    with pytest.raises(CountinghouseError, match=r"signing\.pem") as refusal:
        TokenSigner.from_file(path, clock)
    assert refusal.value.reason == "SIGNING_KEY_INVALID"
    path.write_text("rubbish")
    with pytest.raises(CountinghouseError, match=r"signing\.pem"):
        TokenSigner.from_file(path, clock)


def test_service_does_not_verify_by_rubbish(tmp_path: Path, clock: ManualClock) -> None:
    """A key of another kind, or none at all."""
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    pem = other.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for public in (pem, b"rubbish"):
        with pytest.raises(CountinghouseError) as refusal:
            TokenVerifier(public, clock)
        assert refusal.value.reason == "VERIFY_KEY_INVALID"


def test_signers_that_start_at_once_end_with_one_key(tmp_path: Path, clock: ManualClock) -> None:
    """The file appears whole or not at all, and whoever came second takes it."""
    with ThreadPoolExecutor(8) as pool:
        signers = list(pool.map(lambda _: TokenSigner.from_file(tmp_path / "k.pem", clock), range(8)))
    assert len({signer.public_pem() for signer in signers}) == 1


def test_services_own_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """So that it can be renewed under a running service."""
    path = tmp_path / "service.token"
    path.write_text("one\n")
    file = TokenFile(path)
    assert file.token() == "one"
    path.write_text("two\n")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert file.token() == "two"


def assert_invalid(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    assert refusal.value.reason == "TOKEN_INVALID"
