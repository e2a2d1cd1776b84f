"""The authority of a house: what it signs, how one follows another, and what becomes of the old one."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from services.devstack.authority import CLOCK_SKEW_S, COPY_GOOD_S, LIFE_S, Authority
from services.devstack.signing_keys import PUBLISHED_S
from services.kernel.errors import CountinghouseError
from services.runtime.grpc.identity import Identity
from tests.fakes.clock import ManualClock

ORDER = Identity("order", "order-1")
NAMES = ("order.countinghouse", "order-1")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def authority(tmp_path: Path, clock: ManualClock) -> Authority:
    return Authority(tmp_path, "ours", clock)


def issued(authority: Authority) -> x509.Certificate:
    return x509.load_pem_x509_certificates(authority.issue(NAMES, ORDER.spiffe_id))[0]


def believed(authority: Authority) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(authority.file.read_bytes())


def signer_of(certificate: x509.Certificate, authority: Authority) -> int:
    """The place in the file of the authority that signed a certificate."""
    (place,) = [number for number, each in enumerate(believed(authority)) if each.subject == certificate.issuer]
    certificate.verify_directly_issued_by(believed(authority)[place])
    return place


def test_server_that_is_known_by_its_host_is_called_on_this_machine_too(authority: Authority) -> None:
    """Only a server that is no service: a service's certificate must not pass for a database's."""
    certificate = x509.load_pem_x509_certificates(authority.issue(("postgres",)))[0]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["postgres", "localhost"]
    assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}


def test_certificate_names_the_process_and_nothing_else(authority: Authority, clock: ManualClock) -> None:
    certificate = issued(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == [ORDER.spiffe_id]
    assert names.value.get_values_for_type(x509.DNSName) == list(NAMES)
    assert names.value.get_values_for_type(x509.IPAddress) == []
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    now_s = clock.now_ms() // 1000
    assert certificate.not_valid_after_utc.timestamp() == now_s + LIFE_S
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lasts == timedelta(seconds=LIFE_S + CLOCK_SKEW_S)


def test_authority_signs_leaves_only(authority: Authority) -> None:
    """One of them cannot sign for another."""
    constraints = believed(authority)[0].extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_key_is_readable_by_its_owner_only_and_stays_the_same(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    (key,) = tmp_path.glob("ca.*.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = authority.file.read_bytes()
    Authority(tmp_path, "ours", clock).advance()
    assert authority.file.read_bytes() == before


def test_successor_is_published_before_it_signs(authority: Authority, clock: ManualClock) -> None:
    first = issued(authority)
    authority.rotate()
    assert len(believed(authority)) == 2
    assert signer_of(issued(authority), authority) == 1
    authority.rotate()
    assert len(believed(authority)) == 2, "the one that is on its way stays"
    clock.advance(PUBLISHED_S * 1000)
    assert signer_of(issued(authority), authority) == 0
    assert signer_of(first, authority) == 1


def test_old_authority_is_believed_until_its_last_certificate_has_expired(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    authority.rotate()
    clock.advance(PUBLISHED_S * 1000)
    clock.advance(LIFE_S * 1000)
    authority.advance()
    assert len(believed(authority)) == 2
    clock.advance(1000)
    authority.advance()
    assert len(believed(authority)) == 1
    assert len(list(tmp_path.glob("ca.*.key"))) == 1
    issued(authority).verify_directly_issued_by(believed(authority)[0])


def test_authorities_follow_one_another_before_they_expire(authority: Authority, clock: ManualClock) -> None:
    (first,) = believed(authority)
    for _ in range(370):
        clock.advance(24 * 3600 * 1000)
        authority.advance()
        now_s = clock.now_ms() / 1000
        assert any(each.not_valid_after_utc.timestamp() - now_s > LIFE_S for each in believed(authority))
        assert issued(authority).not_valid_after_utc.timestamp() > now_s
        assert all(each.not_valid_after_utc.timestamp() > now_s for each in believed(authority))
    assert first not in believed(authority)


def test_copy_of_the_authorities_is_good_for_half_a_year(authority: Authority, clock: ManualClock) -> None:
    """Whenever it was made: a successor is in it so long before it signs."""
    copies: list[tuple[int, list[x509.Certificate]]] = []
    for day in range(800):
        copies.append((day, believed(authority)))
        leaf = issued(authority)
        for made, copy in copies[-COPY_GOOD_S // (24 * 3600) :]:
            assert any(each.subject == leaf.issuer for each in copy), (
                f"the copy of day {made} is of no use on day {day}"
            )
        clock.advance(24 * 3600 * 1000)
        authority.advance()


def test_rotation_by_hand_does_not_wait_for_the_successor_of_some_months_later(
    authority: Authority, clock: ManualClock
) -> None:
    clock.advance(120 * 24 * 3600 * 1000)
    authority.advance()
    assert len(believed(authority)) == 2
    first = issued(authority).issuer
    authority.rotate()
    clock.advance(PUBLISHED_S * 1000)
    assert issued(authority).issuer != first


@pytest.mark.parametrize("days", [-30, 400])
def test_authority_that_is_not_valid_now_is_replaced(
    tmp_path: Path, authority: Authority, clock: ManualClock, days: int
) -> None:
    """It was made while the clock was ahead, or the stack was down for a year."""
    clock.advance(days * 24 * 3600 * 1000)
    Authority(tmp_path, "ours", clock)
    now_s = clock.now_ms() / 1000
    (only,) = believed(authority)
    assert only.not_valid_before_utc.timestamp() <= now_s < only.not_valid_after_utc.timestamp() - LIFE_S
    assert signer_of(issued(authority), authority) == 0


def test_authority_that_was_removed_is_made_anew(authority: Authority) -> None:
    """By the stack that runs: the message about a damaged one says to remove it."""
    authority.file.unlink()
    authority.advance()
    assert signer_of(issued(authority), authority) == 0


def test_authority_that_is_replaced_at_once_is_believed_no_more(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    (first,) = believed(authority)
    authority.replace_now()
    assert first not in believed(authority)
    assert signer_of(issued(authority), authority) == 0
    authority.advance()
    assert len(list(tmp_path.glob("ca.*.key"))) == 1


def test_certificate_is_due_after_half_its_life_and_after_a_rotation(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    file = tmp_path / "order-1.pem"
    assert authority.needs_renewal(file), "it is not there"
    file.write_bytes(authority.issue(NAMES))
    assert not authority.needs_renewal(file)
    clock.advance(LIFE_S * 500 - 1000)
    assert not authority.needs_renewal(file)
    clock.advance(1000)
    assert authority.needs_renewal(file)
    file.write_bytes(authority.issue(NAMES))
    authority.rotate()
    assert not authority.needs_renewal(file), "the successor does not sign yet"
    clock.advance(PUBLISHED_S * 1000)
    assert authority.needs_renewal(file)
    file.write_text("rubbish")
    assert authority.needs_renewal(file)


def test_certificate_of_an_older_authority_will_do_for_a_patient_server_while_that_is_believed(
    tmp_path: Path, authority: Authority, clock: ManualClock
) -> None:
    """For half that time: clients then still believe the older one."""
    file, life_s = tmp_path / "zookeeper.pem", 90 * LIFE_S
    file.write_bytes(authority.issue(NAMES, life_s=life_s))
    authority.rotate()
    clock.advance(PUBLISHED_S * 1000)
    assert authority.needs_renewal(file, life_s=life_s)
    assert not authority.needs_renewal(file, life_s=life_s, patient=True)
    clock.advance(LIFE_S * 500)
    assert not authority.needs_renewal(file, life_s=life_s, patient=True)
    clock.advance(1000)
    assert authority.needs_renewal(file, life_s=life_s, patient=True)
    authority.advance()
    file.write_bytes(authority.issue(NAMES, life_s=life_s))
    authority.replace_now()
    assert authority.needs_renewal(file, life_s=life_s, patient=True)


def test_certificate_from_a_clock_far_ahead_is_due(tmp_path: Path, authority: Authority, clock: ManualClock) -> None:
    file = tmp_path / "order-1.pem"
    file.write_bytes(authority.issue(NAMES))
    clock.advance(-3600 * 1000)
    assert authority.needs_renewal(file)


@pytest.mark.parametrize("damage", ["", "rubbish"])
def test_damaged_authorities_are_refused_with_the_remedy(
    tmp_path: Path, authority: Authority, clock: ManualClock, damage: str
) -> None:
    authority.file.write_text(damage)
    with pytest.raises(CountinghouseError, match="has no certificate; remove it") as refused:
        Authority(tmp_path, "ours", clock).issue(NAMES)
    assert refused.value.reason == "AUTHORITY_INVALID"


def test_key_that_is_lost_is_refused_with_the_remedy(tmp_path: Path, authority: Authority) -> None:
    (key,) = tmp_path.glob("ca.*.key")
    key.unlink()
    with pytest.raises(CountinghouseError, match="replace the authority"):
        authority.issue(NAMES)
    authority.replace_now()
    issued(authority)


def test_listing_tells_which_signs_and_until_when_the_old_one_is_believed(
    authority: Authority, clock: ManualClock
) -> None:
    def times() -> list[tuple[int, int]]:
        return [(each.signs_from_s, each.believed_until_s) for each in authority.listed()]

    signs_s = clock.now_ms() // 1000 + PUBLISHED_S
    authority.rotate()
    assert times() == [(signs_s, 0), (0, 0)]
    clock.advance(PUBLISHED_S * 1000)
    assert times() == [(0, 0), (0, signs_s + LIFE_S)]
