"""The keys of a data directory, and how they follow one another."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from services.devstack import revocations
from services.devstack.files import signing_key
from services.devstack.keys import CALLEES, SERVICE_TOKEN_TTL_S, Keys, mint, revoked_file
from services.devstack.revocations import Revocations
from services.devstack.signing_keys import PUBLISHED_S, SigningKeys
from services.kernel.errors import PermissionDenied, Unauthenticated
from services.kernel.principal import Principal, Role
from services.runtime.grpc import access
from services.runtime.grpc.tokens import MAX_TTL_S, TokenVerifier, audience_of
from services.runtime.grpc.trust import TrustFiles
from tests.fakes.clock import ManualClock

LI = Principal("li", Role.CASHIER)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def keys(tmp_path: Path, clock: ManualClock) -> Keys:
    return Keys(tmp_path, clock)


def verifier(keys: Keys, service: str, clock: ManualClock) -> TokenVerifier:
    """How a service verifies; the acquirer takes no token of the house."""
    outside = service == "acquirer"
    trust = TrustFiles(keys.verify_file(service), keys.revoked_file).current
    return TokenVerifier(trust, "acquirer" if outside else audience_of(service), clock, house=not outside)


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    clock = ManualClock()
    Keys(tmp_path, clock)
    first = signing_key(tmp_path).read_bytes()
    Keys(tmp_path, clock)
    assert signing_key(tmp_path).read_bytes() == first
    for outside in (False, True):
        assert stat.S_IMODE(signing_key(tmp_path, outside=outside).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_service_has_a_token_for_each_service_that_it_calls_and_each_is_good_there_alone(
    keys: Keys, clock: ManualClock
) -> None:
    folder = keys.issue("payment")
    assert {file.name for file in folder.iterdir()} == {"order.token", "ledger.token", "acquirer.token"}
    for callee in ("order", "ledger", "acquirer"):
        file = folder / f"{callee}.token"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        for server in ("order", "ledger", "payment", "acquirer"):
            if server == callee:
                taken = verifier(keys, server, clock).verify(file.read_text())
                assert taken == Principal("payment-service", Role.SERVICE)
            else:
                with pytest.raises(Unauthenticated):
                    verifier(keys, server, clock).verify(file.read_text())


def test_services_that_call_nobody_have_no_token(keys: Keys) -> None:
    for service in ("order", "ledger"):
        assert list(keys.issue(service).iterdir()) == []


def test_tokens_are_for_what_the_table_of_methods_lets_a_service_call() -> None:
    called = {
        caller.removesuffix("-service"): {method.split(".")[1] for method in methods}
        for caller, methods in access.SERVICES_CALL.items()
    }
    assert called == {caller: set(callees) for caller, callees in CALLEES.items() if caller != "acquirer"}


def test_acquirer_has_next_to_no_rights(keys: Keys, clock: ManualClock) -> None:
    """It may tell the payment service of a charge; the key with which it issues credentials is not ours."""
    token = (keys.issue("acquirer") / "payment.token").read_text()
    assert verifier(keys, "payment", clock).verify(token) == Principal("acquirer", Role.ACQUIRER)
    with pytest.raises(Unauthenticated):
        verifier(keys, "order", clock).verify(token)


def test_token_of_the_house_is_of_no_use_at_the_acquirer_and_the_other_way_round(
    tmp_path: Path, keys: Keys, clock: ManualClock
) -> None:
    ours, theirs = (mint(tmp_path, LI, 60, clock, outside=outside) for outside in (False, True))
    assert verifier(keys, "order", clock).verify(ours) == LI
    assert verifier(keys, "acquirer", clock).verify(theirs) == LI
    for service, token in (("order", theirs), ("acquirer", ours)):
        with pytest.raises(Unauthenticated) as refusal:
            verifier(keys, service, clock).verify(token)
        assert refusal.value.reason == "TOKEN_INVALID"


def test_tokens_are_renewed_before_they_expire(keys: Keys, clock: ManualClock) -> None:
    """By the wall clock: a machine that slept for half a token's life renews it as soon as it wakes."""
    file = keys.issue("payment") / "order.token"
    old = file.read_text()
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 // 2 - 1)
    assert keys.renew() == []
    clock.advance(1)
    assert keys.renew() == ["payment"]
    assert file.read_text() != old
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 - 1000)
    assert verifier(keys, "order", clock).verify(file.read_text()).name == "payment-service"


def test_revoked_caller_gets_no_new_token(tmp_path: Path, keys: Keys, clock: ManualClock) -> None:
    revocations.write(revoked_file(tmp_path), Revocations(callers=frozenset({"cashier:li"})), 0)
    with pytest.raises(PermissionDenied) as refusal:
        mint(tmp_path, LI, 60, clock)
    assert refusal.value.reason == "CALLER_REVOKED"
    assert mint(tmp_path, Principal("li", Role.CUSTOMER), 60, clock)
    assert keys.revoked_file == revoked_file(tmp_path)


def test_revoked_instance_gets_no_certificate_until_that_is_taken_back(keys: Keys) -> None:
    """Neither in time nor at the next start of its stack."""
    revocations.write(keys.revoked_file, Revocations(callers=frozenset({"instance:payment-1"})), 0)
    with pytest.raises(PermissionDenied, match="--undo"):
        keys.certify("payment", "payment-1")
    keys.certify("payment", "payment-2")
    revocations.write(keys.revoked_file, Revocations(), 0)
    keys.certify("payment", "payment-1")


def test_certificate_that_its_server_did_not_take_is_made_again(keys: Keys) -> None:
    taken: list[bytes] = []

    def take(file: Path) -> None:
        taken.append(file.read_bytes())
        if len(taken) == 1:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        keys.certify("postgresql", "postgresql", take)
    assert keys.renew() == ["postgresql"]
    assert keys.renew() == []
    assert len(taken) == 2


class TestRotation:
    """Two keys follow one another, and no token that was good is refused before it expires."""

    def test_successor_is_published_before_it_signs(self, keys: Keys, clock: ManualClock) -> None:
        folder, server = keys.issue("payment"), verifier(keys, "order", clock)
        old, person = (folder / "order.token").read_text(), keys.sign(LI)
        assert keys.ours.rotate() == clock.now_ms() // 1000 + PUBLISHED_S
        assert keys.ours.rotate() == clock.now_ms() // 1000 + PUBLISHED_S, "the one that is on its way stays"
        clock.advance(PUBLISHED_S * 1000 - 1000)
        assert keys.renew() == []
        before = keys.sign(LI)
        clock.advance(1000)
        assert keys.renew() == ["payment"]
        new = (folder / "order.token").read_text()
        assert new != old
        for token in (old, person, before, new, keys.sign(LI)):
            assert server.verify(token)

    def test_old_key_is_dropped_when_its_last_token_has_expired(self, keys: Keys, clock: ManualClock) -> None:
        server = verifier(keys, "order", clock)
        last = keys.sign(LI, MAX_TTL_S[Role.CASHIER])
        keys.ours.rotate()
        clock.advance(PUBLISHED_S * 1000)
        keys.renew()
        assert len(json.loads(keys.ours.verify_file.read_bytes())["keys"]) == 2
        clock.advance((MAX_TTL_S[Role.CASHIER] - PUBLISHED_S) * 1000 - 1000)
        keys.renew()
        assert server.verify(last) == LI
        clock.advance(2 * PUBLISHED_S * 1000 + 1000)
        keys.renew()
        assert len(json.loads(keys.ours.verify_file.read_bytes())["keys"]) == 1

    def test_key_that_a_stranger_has_is_replaced_at_once(self, keys: Keys, clock: ManualClock) -> None:
        server, old = verifier(keys, "order", clock), keys.sign(LI)
        keys.ours.replace_now()
        with pytest.raises(Unauthenticated):
            server.verify(old)
        assert server.verify(keys.sign(LI)) == LI

    def test_another_process_that_replaced_the_key_is_noticed(
        self, tmp_path: Path, keys: Keys, clock: ManualClock
    ) -> None:
        """The operator's command does it beside the running stack."""
        folder, server = keys.issue("payment"), verifier(keys, "order", clock)
        SigningKeys(tmp_path / "keys", clock).replace_now()
        with pytest.raises(Unauthenticated):
            server.verify((folder / "order.token").read_text())
        assert keys.renew() == ["payment"]
        assert server.verify((folder / "order.token").read_text()).name == "payment-service"
        assert keys.renew() == []

    def test_death_between_publishing_and_the_new_key_is_made_good(
        self, tmp_path: Path, keys: Keys, clock: ManualClock
    ) -> None:
        """The set was written, and the file of the new key had not yet taken the place of the old one."""
        keys.ours.rotate()
        clock.advance(PUBLISHED_S * 1000)
        successor = (tmp_path / "keys" / "signing.next.key").read_bytes()
        former = signing_key(tmp_path).read_bytes()
        assert keys.ours.advance()
        (tmp_path / "keys" / "signing.next.key").write_bytes(successor)
        signing_key(tmp_path).write_bytes(former)
        again = Keys(tmp_path, clock)
        token, server = again.sign(LI), verifier(again, "order", clock)
        assert server.verify(token) == LI
        clock.advance(PUBLISHED_S * 1000)
        assert again.ours.advance()
        assert server.verify(token) == LI
        assert server.verify(again.sign(LI)) == LI
