"""For whom a service may act at another service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.kernel.errors import PermissionDenied, Unauthenticated
from services.kernel.principal import MAX_DELEGATION_CHARS, Principal, Role
from services.runtime.grpc import delegations
from services.runtime.grpc.delegations import DelegationVerifier
from services.runtime.grpc.tokens import MAX_TTL_S, TokenSigner, audience_of, service_principal
from services.runtime.grpc.trust import Trust, key_id
from tests.fakes.clock import ManualClock
from tests.tokens import believing, verifier_of

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
PAYMENT = service_principal("payment")


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
def verifier(signer: TokenSigner, clock: ManualClock) -> DelegationVerifier:
    return DelegationVerifier(believing(signer), audience_of("order"), clock)


def caller_with(signer: TokenSigner, clock: ManualClock, principal: Principal = LI) -> Principal:
    """The caller of a token, as the payment service knows them."""
    return verifier_of(signer, clock, "payment").verify(signer.sign(principal, 60))


@pytest.mark.parametrize("person", [LI, WANG, Principal("li", Role.CUSTOMER), Principal("x" * 64, Role.CUSTOMER)])
@pytest.mark.parametrize("service", ["order", "ledger"])
def test_payment_service_acts_for_a_person_who_has_called_it(
    signer: TokenSigner, clock: ManualClock, person: Principal, service: str
) -> None:
    """Also when the token itself has long expired, as the recovery worker does."""
    verifier = DelegationVerifier(believing(signer), audience_of(service), clock)
    caller = caller_with(signer, clock, person)
    assert len(caller.delegation) <= MAX_DELEGATION_CHARS
    assert verifier.represented(caller, PAYMENT) == person
    clock.advance(delegations.TTL_S * 1000 - 1)
    assert verifier.represented(caller, PAYMENT) == person


def test_delegation_outlives_every_token() -> None:
    assert max(MAX_TTL_S.values()) < delegations.TTL_S


def test_service_that_names_a_person_without_a_delegation_is_recorded_itself(verifier: DelegationVerifier) -> None:
    assert verifier.represented(LI, PAYMENT) == PAYMENT


def test_delegation_that_has_expired_records_the_service(
    signer: TokenSigner, verifier: DelegationVerifier, clock: ManualClock
) -> None:
    caller = caller_with(signer, clock)
    clock.advance(delegations.TTL_S * 1000)
    assert verifier.represented(caller, PAYMENT) == PAYMENT


def test_another_service_does_not_act_for_a_person(
    signer: TokenSigner, verifier: DelegationVerifier, clock: ManualClock
) -> None:
    """The ledger, for instance, has seen the delegation."""
    ledger = service_principal("ledger")
    assert verifier.represented(caller_with(signer, clock), ledger) == ledger


@pytest.mark.parametrize("other", [WANG, Principal("li", Role.ACCOUNTANT), Principal("wang", Role.CASHIER)])
def test_person_is_not_named_with_the_delegation_of_another(
    signer: TokenSigner, verifier: DelegationVerifier, clock: ManualClock, other: Principal
) -> None:
    shown = replace(other, delegation=caller_with(signer, clock).delegation)
    with pytest.raises(PermissionDenied) as refusal:
        verifier.represented(shown, PAYMENT)
    assert refusal.value.reason == "DELEGATION_FOR_ANOTHER"


def test_delegation_of_a_revoked_token_or_person_or_of_a_dropped_key_records_the_service(
    signer: TokenSigner, clock: ManualClock
) -> None:
    """Also one that was read before."""
    caller = caller_with(signer, clock)
    token_id = jwt.decode(caller.delegation, options={"verify_signature": False})["jti"]
    keys = {key_id(signer.public_key): signer.public_key}
    now = [Trust(keys)]
    verifier = DelegationVerifier(lambda: now[0], audience_of("order"), clock)
    assert verifier.represented(caller, PAYMENT) == LI
    successor = Ed25519PrivateKey.generate().public_key()
    for trust in (
        Trust(keys, revoked_tokens=frozenset({token_id})),
        Trust(keys, revoked_callers=frozenset({"cashier:li"})),
        Trust({key_id(successor): successor}),
    ):
        now[0] = trust
        assert verifier.represented(caller, PAYMENT) == PAYMENT
    now[0] = Trust(keys, revoked_tokens=frozenset({"another"}), revoked_callers=frozenset({"customer:li"}))
    assert verifier.represented(caller, PAYMENT) == LI


def _changed(**claims: Any) -> Callable[[str, Ed25519PrivateKey], str]:
    def change(delegation: str, key: Ed25519PrivateKey) -> str:
        read = jwt.decode(delegation, options={"verify_signature": False}) | claims
        kept = {name: value for name, value in read.items() if value is not None}
        header = jwt.get_unverified_header(delegation)
        return jwt.encode(kept, key, algorithm="EdDSA", headers={"kid": header["kid"], "typ": header["typ"]})

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda delegation, _: delegation[:-4] + "AAAA", id="signature"),
        pytest.param(lambda *_: "rubbish", id="rubbish"),
        pytest.param(lambda delegation, _: _changed()(delegation, Ed25519PrivateKey.generate()), id="another key"),
        pytest.param(_changed(act=None), id="without an actor"),
        pytest.param(_changed(act={"sub": "order-service"}), id="another actor"),
        pytest.param(_changed(act="payment-service"), id="an actor that is text"),
        pytest.param(_changed(aud=["countinghouse-payment"]), id="another audience"),
        pytest.param(_changed(iss="another"), id="another issuer"),
        pytest.param(_changed(sub="two words"), id="no name"),
        pytest.param(_changed(role="emperor"), id="no role"),
        pytest.param(_changed(jti=None), id="without the id of its token"),
    ],
)
def test_delegation_that_is_not_right_records_the_service(
    key: Ed25519PrivateKey,
    signer: TokenSigner,
    verifier: DelegationVerifier,
    clock: ManualClock,
    change: Callable[[str, Ed25519PrivateKey], str],
) -> None:
    caller = caller_with(signer, clock)
    assert verifier.represented(replace(caller, delegation=_changed()(caller.delegation, key)), PAYMENT) == LI
    assert verifier.represented(replace(caller, delegation=change(caller.delegation, key)), PAYMENT) == PAYMENT


def test_token_is_no_delegation(signer: TokenSigner, verifier: DelegationVerifier) -> None:
    """Even one that is good at the service."""
    token = signer.sign(LI, 60, audience_of("order"))
    assert verifier.represented(replace(LI, delegation=token), PAYMENT) == PAYMENT


@pytest.mark.parametrize("service", ["order", "ledger", "payment"])
def test_delegation_is_no_token(signer: TokenSigner, clock: ManualClock, service: str) -> None:
    """A service that has seen one cannot call in the person's name."""
    caller = caller_with(signer, clock)
    with pytest.raises(Unauthenticated):
        verifier_of(signer, clock, service).verify(caller.delegation)


def test_delegation_that_lives_as_short_as_a_token_is_no_token(
    key: Ed25519PrivateKey, signer: TokenSigner, clock: ManualClock
) -> None:
    """Its life is not the only thing by which a server tells it from a token."""
    short = _changed(exp=clock.now_ms() // 1000 + 60)(caller_with(signer, clock).delegation, key)
    with pytest.raises(Unauthenticated):
        verifier_of(signer, clock, "order").verify(short)


@pytest.mark.parametrize("machine", [PAYMENT, Principal("acquirer", Role.ACQUIRER)])
def test_token_of_a_machine_has_no_delegation(signer: TokenSigner, clock: ManualClock, machine: Principal) -> None:
    token = signer.sign(machine, 60, audience_of("payment"))
    assert verifier_of(signer, clock, "payment").verify(token).delegation == ""


def test_token_for_another_house_has_no_delegation(signer: TokenSigner) -> None:
    """The acquirer is outside, and gets nothing by which a person could be named here."""
    assert "delegation" not in jwt.decode(signer.sign(LI, 60, "acquirer"), options={"verify_signature": False})


def test_delegation_is_no_part_of_who_a_caller_is(signer: TokenSigner, clock: ManualClock) -> None:
    """Requests are kept apart by caller; it is printed nowhere."""
    caller = caller_with(signer, clock)
    assert (caller, hash(caller)) == (LI, hash(LI))
    assert caller.delegation not in f"{caller} {caller!r}"
