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
from services.runtime.grpc.identity import Identity
from services.runtime.grpc.tokens import HOUSE, MAX_TTL_S, TokenFile, TokenSigner, TokenVerifier, audience_of
from services.runtime.grpc.trust import Trust, key_id
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
    return verifier_of(signer, clock)


def verifier_of(signer: TokenSigner, clock: ManualClock) -> TokenVerifier:
    """The order service, which believes this key."""
    return TokenVerifier(lambda: trust_in(signer), audience_of("order"), clock)


def trust_in(*signers: TokenSigner, **revoked: frozenset[str]) -> Trust:
    return Trust({key_id(signer.public_key): signer.public_key for signer in signers}, **revoked)


@pytest.mark.parametrize("role", Role)
def test_token_names_its_principal(signer: TokenSigner, verifier: TokenVerifier, role: Role) -> None:
    """Name and role come back."""
    principal = Principal("li.2:x", role)
    assert verifier.verify(signer.sign(principal, 60, audience_of("order"))) == principal


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
        {"iat": None},
        {"iat": "now"},
        {"jti": None},
        {"aud": None},
    ],
)
def test_claims_must_make_sense(
    key: Ed25519PrivateKey, verifier: TokenVerifier, clock: ManualClock, change: dict[str, object]
) -> None:
    """Even under our own signature: a known role, a name, our issuer, an end."""
    assert verifier.verify(signed(key, clock)) == LI
    assert_invalid(verifier, signed(key, clock, **change))


def test_only_our_algorithm_is_taken(signer: TokenSigner, verifier: TokenVerifier) -> None:
    """Neither `none`, nor the public key used as a shared secret."""
    kid = {"kid": key_id(signer.public_key)}
    claims = jwt.decode(signer.sign(Principal("li", Role.OPERATOR), 60), options={"verify_signature": False})
    assert_invalid(verifier, jwt.encode(claims, "", algorithm="none", headers=kid))
    body = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in ({"alg": "HS256", "typ": "JWT"} | kid, claims)
    )
    digest = jwt.get_algorithm_by_name("HS256")
    public = signer.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    signature = digest.sign(body.encode(), public)
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
    assert key_id(TokenSigner.from_file(path, clock).public_key) == key_id(first.public_key)
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


def test_signers_that_start_at_once_end_with_one_key(tmp_path: Path, clock: ManualClock) -> None:
    """The file appears whole or not at all, and whoever came second takes it."""
    with ThreadPoolExecutor(8) as pool:
        signers = list(pool.map(lambda _: TokenSigner.from_file(tmp_path / "k.pem", clock), range(8)))
    assert len({key_id(signer.public_key) for signer in signers}) == 1


def test_services_own_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """So that it can be renewed under a running service."""
    path = tmp_path / "service.token"
    path.write_text("one\n")
    file = TokenFile(path)
    assert file.token() == "one"
    path.write_text("two\n")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert file.token() == "two"


def signed(key: Ed25519PrivateKey, clock: ManualClock, **change: object) -> str:
    """A token of li with other claims; None leaves one out."""
    now_s = clock.now_ms() // 1000
    claims: dict[str, object] = {
        "iss": "countinghouse",
        "aud": ["countinghouse"],
        "sub": "li",
        "role": "cashier",
        "jti": "tok_1",
        "iat": now_s,
        "exp": now_s + 60,
    }
    claims |= change
    present = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(present, key, algorithm="EdDSA", headers={"kid": key_id(key.public_key())})


@pytest.mark.parametrize("role", [Role.SERVICE, Role.ACQUIRER])
@pytest.mark.parametrize("audience", [HOUSE, audience_of("ledger"), "acquirer"])
def test_token_of_a_machine_is_good_at_one_service_only(
    signer: TokenSigner, verifier: TokenVerifier, role: Role, audience: str
) -> None:
    """The ledger cannot call the order service with the token that the payment service sends it."""
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(signer.sign(Principal("payment-service", role), 60, audience))
    assert refusal.value.reason == "TOKEN_FOR_ANOTHER"


def test_token_of_a_person_is_good_in_the_house_and_not_outside(signer: TokenSigner, clock: ManualClock) -> None:
    """And one that the acquirer issued is of no use in the house."""
    outside = TokenVerifier(lambda: trust_in(signer), "acquirer", clock, house=False)
    with pytest.raises(Unauthenticated) as refusal:
        outside.verify(signer.sign(LI, 60))
    assert refusal.value.reason == "TOKEN_FOR_ANOTHER"
    assert outside.verify(signer.sign(LI, 60, "acquirer")) == LI
    with pytest.raises(Unauthenticated) as refusal:
        verifier_of(signer, clock).verify(signer.sign(LI, 60, "acquirer"))
    assert refusal.value.reason == "TOKEN_FOR_ANOTHER"


@pytest.mark.parametrize("role", Role)
def test_life_of_a_token_is_bounded_by_its_role(
    key: Ed25519PrivateKey, signer: TokenSigner, clock: ManualClock, role: Role
) -> None:
    """The signer refuses more; and what another signer signed for longer is not taken, not even in its last hour."""
    longest_s, audience = MAX_TTL_S[role], audience_of("order")
    verifier = verifier_of(signer, clock)
    principal = Principal("li", role)
    assert verifier.verify(signer.sign(principal, longest_s, audience)) == principal
    with pytest.raises(InvalidArgument, match=f"{longest_s} seconds") as refusal:
        signer.sign(principal, longest_s + 1, audience)
    assert refusal.value.reason == "TTL_TOO_LONG"
    now_s = clock.now_ms() // 1000
    claims = {"role": str(role), "aud": [audience]}
    assert_invalid(verifier, signed(key, clock, **claims, exp=now_s + longest_s + 1))
    assert_invalid(verifier, signed(key, clock, **claims, iat=now_s - longest_s, exp=now_s + 1))
    ahead_s = now_s + 3600
    assert_invalid(verifier, signed(key, clock, **claims, iat=ahead_s, exp=ahead_s + longest_s))


def test_old_and_new_key_are_believed_side_by_side_and_a_dropped_one_is_not(
    signer: TokenSigner, clock: ManualClock
) -> None:
    """Without a restart, and also of a token that was verified before."""
    successor = TokenSigner(Ed25519PrivateKey.generate(), clock)
    now = [trust_in(signer)]
    verifier = TokenVerifier(lambda: now[0], audience_of("order"), clock)
    old, new = signer.sign(LI, 60), successor.sign(LI, 60)
    assert verifier.verify(old) == LI
    assert_invalid(verifier, new)
    now[0] = trust_in(signer, successor)
    assert (verifier.verify(old), verifier.verify(new)) == (LI, LI)
    now[0] = trust_in(successor)
    assert verifier.verify(new) == LI
    assert_invalid(verifier, old)


def test_revoked_token_and_caller_are_refused(signer: TokenSigner, clock: ManualClock) -> None:
    """Also a token that was verified before; another role of the same name is another caller."""
    now = [trust_in(signer)]
    verifier = TokenVerifier(lambda: now[0], audience_of("order"), clock)
    one, other = signer.sign(LI, 60), signer.sign(LI, 60)
    customer = signer.sign(Principal("li", Role.CUSTOMER), 60)
    assert verifier.verify(one) == LI
    identity = jwt.decode(one, options={"verify_signature": False})["jti"]
    now[0] = trust_in(signer, revoked_tokens=frozenset({identity}))
    assert_revoked(verifier, one)
    assert verifier.verify(other) == LI
    now[0] = trust_in(signer, revoked_callers=frozenset({"cashier:li"}))
    assert_revoked(verifier, one)
    assert_revoked(verifier, other)
    assert verifier.verify(customer).role is Role.CUSTOMER


def assert_revoked(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    assert refusal.value.reason == "TOKEN_REVOKED"


def assert_invalid(verifier: TokenVerifier, token: str) -> None:
    with pytest.raises(Unauthenticated) as refusal:
        verifier.verify(token)
    assert refusal.value.reason == "TOKEN_INVALID"


class TestCertificate:
    """A service that sends a token must have its certificate."""

    payment = Principal("payment-service", Role.SERVICE)

    def test_service_with_its_certificate_is_believed(self, verifier: TokenVerifier) -> None:
        verifier.check_certificate(self.payment, Identity("payment", "payment-2"))

    @pytest.mark.parametrize(
        ("shown", "reason"),
        [(None, "CERTIFICATE_REQUIRED"), (Identity("order", "payment-1"), "CERTIFICATE_FOR_ANOTHER")],
    )
    def test_service_without_it_is_refused(self, verifier: TokenVerifier, shown: Identity | None, reason: str) -> None:
        with pytest.raises(Unauthenticated) as refused:
            verifier.check_certificate(self.payment, shown)
        assert refused.value.reason == reason

    def test_revoked_instance_is_refused_and_its_siblings_are_not(
        self, signer: TokenSigner, clock: ManualClock
    ) -> None:
        trust = trust_in(signer, revoked_callers=frozenset({"instance:payment-1"}))
        verifier = TokenVerifier(lambda: trust, audience_of("order"), clock)
        with pytest.raises(Unauthenticated) as refused:
            verifier.check_certificate(self.payment, Identity("payment", "payment-1"))
        assert refused.value.reason == "CERTIFICATE_REVOKED"
        verifier.check_certificate(self.payment, Identity("payment", "payment-2"))
