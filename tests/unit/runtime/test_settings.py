"""Settings: from the environment, within bounds, and strict in production."""

from __future__ import annotations

import os

import pytest
from pydantic import ValidationError

from services.kernel.errors import InvalidArgument
from services.runtime.settings import Profile, Settings


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("COUNTINGHOUSE_"):
            monkeypatch.delenv(name)


def test_every_setting_has_a_default() -> None:
    """All guards on, no failpoints, loopback, and the strict profile."""
    settings = Settings()
    assert settings.guards.off == ()
    assert not settings.failpoints
    assert (settings.metrics_host, settings.metrics_port) == ("127.0.0.1", 0)
    assert (settings.listen_host, settings.profile) == ("127.0.0.1", Profile.PRODUCTION)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment, with or without spaces."""
    monkeypatch.setenv("COUNTINGHOUSE_CURRENCIES", "CNY, JPY,")
    monkeypatch.setenv("COUNTINGHOUSE_PROFILE", "development")
    monkeypatch.setenv("COUNTINGHOUSE_GUARDS_OFF", "fence,lock")
    settings = Settings()
    assert settings.currencies == ("CNY", "JPY")
    assert settings.guards.off == ("lock", "fence")


@pytest.mark.parametrize("codes", ["RMB", "CNY,eur", "XXX", "CNY,XTS"])
def test_currency_outside_iso_4217_is_refused_at_start(monkeypatch: pytest.MonkeyPatch, codes: str) -> None:
    """House accounts in it would be of no use to anybody."""
    monkeypatch.setenv("COUNTINGHOUSE_CURRENCIES", codes)
    with pytest.raises(InvalidArgument, match="is not a currency of ISO 4217"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"), [("COUNTINGHOUSE_GUARDS_OFF", "fence"), ("COUNTINGHOUSE_FAILPOINTS", "true")]
)
def test_production_refuses_guards_off_and_failpoints(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Unless told otherwise; the message names the variable to unset. In development the same setting is taken."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError, match=f"production profile refuses.*unset {name}"):
        Settings()
    monkeypatch.setenv("COUNTINGHOUSE_PROFILE", "development")
    assert Settings().profile is Profile.DEVELOPMENT


def test_strict_production_settings_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """All guards on and no failpoints."""
    monkeypatch.setenv("COUNTINGHOUSE_PROFILE", "production")
    assert Settings().profile is Profile.PRODUCTION


def test_guard_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """At start, not when it would be needed."""
    monkeypatch.setenv("COUNTINGHOUSE_GUARDS_OFF", "fense")
    with pytest.raises(InvalidArgument, match="fense"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LISTEN_PORT", "65536"),
        ("LISTEN_PORT", "x"),
        ("METRICS_PORT", "-2"),
        ("METRICS_PORT", "65536"),
        ("SESSION_TIMEOUT_S", "0"),
        ("DATABASE_POOL", "0"),
        ("LEASE_S", "-1"),
        ("MAX_MESSAGE_BYTES", "1"),
        ("MAX_MESSAGE_BYTES", "99999999999"),
        ("MAX_STREAMS_PER_CONNECTION", "99999999999"),
        ("IDLE_CONNECTION_S", "1e10"),
        ("PROFILE", "staging"),
    ],
)
def test_setting_out_of_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Every wait and size has a bound."""
    monkeypatch.setenv(f"COUNTINGHOUSE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


_NUMBERS = {name: kind.annotation for name, kind in Settings.model_fields.items() if kind.annotation in (int, float)}


@pytest.mark.parametrize("name", _NUMBERS)
def test_every_number_fits_what_takes_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """gRPC takes 32 bits, of milliseconds for waits; asyncio takes no infinity."""
    for value in ("inf", "-inf", "nan", "1e12", str(2**31), str(-(2**31))):
        monkeypatch.setenv(f"COUNTINGHOUSE_{name.upper()}", value)
        with pytest.raises(ValidationError, match=name):
            Settings()


@pytest.mark.parametrize("name", [name for name in _NUMBERS if name.endswith("_s")])
def test_every_wait_fits_32_bits_of_milliseconds(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"COUNTINGHOUSE_{name.upper()}", str(2**31 // 1000 + 1))
    with pytest.raises(ValidationError, match=name):
        Settings()


def test_zookeeper_address_is_kept_in_its_plain_spelling() -> None:
    assert Settings(zookeeper="zookeeper://h1?backup=h2, h3").zookeeper == "h1:2181,h2:2181,h3:2181"


def test_zookeeper_address_that_is_not_understood_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValidationError, match="separate its servers by commas"):
        Settings(zookeeper="h1:2181;h2:2181")
