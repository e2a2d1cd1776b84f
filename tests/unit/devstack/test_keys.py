"""The keys of a data directory."""

from __future__ import annotations

import stat
from pathlib import Path

from services.devstack.files import signing_key
from services.devstack.keys import SERVICE_TOKEN_TTL_S, Keys
from services.kernel.principal import Principal, Role
from services.runtime.grpc.tokens import TokenVerifier
from tests.fakes.clock import ManualClock


def test_keys_are_made_once_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    clock = ManualClock()
    Keys(tmp_path, clock)
    first = signing_key(tmp_path).read_bytes()
    Keys(tmp_path, clock)
    assert signing_key(tmp_path).read_bytes() == first
    assert stat.S_IMODE(signing_key(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_services_token_names_it_and_is_its_own(tmp_path: Path) -> None:
    clock = ManualClock()
    keys = Keys(tmp_path, clock)
    file = keys.service_token("payment")
    verifier = TokenVerifier(keys.verify_file.read_bytes(), clock)
    assert verifier.verify(file.read_text()) == Principal("payment-service", Role.SERVICE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_acquirers_token_is_no_services(tmp_path: Path) -> None:
    """A bank outside may do next to nothing here."""
    clock = ManualClock()
    keys = Keys(tmp_path, clock)
    verifier = TokenVerifier(keys.verify_file.read_bytes(), clock)
    assert verifier.verify(keys.service_token("acquirer").read_text()) == Principal("acquirer", Role.ACQUIRER)


def test_tokens_are_renewed_before_they_expire(tmp_path: Path) -> None:
    """By the wall clock: a machine that slept for half a token's life renews it as soon as it wakes."""
    clock = ManualClock()
    keys = Keys(tmp_path, clock)
    file = keys.service_token("payment")
    old = file.read_text()
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 // 2 - 1)
    assert keys.renew() == []
    clock.advance(1)
    assert keys.renew() == ["payment"]
    assert file.read_text() != old
    clock.advance(SERVICE_TOKEN_TTL_S * 1000 - 1000)
    assert TokenVerifier(keys.verify_file.read_bytes(), clock).verify(file.read_text()).name == "payment-service"
