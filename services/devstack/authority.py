"""The private certificate authority of a house: who a process is, signed for a day.

    <folder>/ca.pem             the certificates of the authorities that are believed, the newest first; public
    <folder>/ca.<serial>.key    the private key of each, mode 0600: its reader can be any service

    signing ──rotate()──▶ signing, successor published ──PUBLISHED_S later──▶ the successor signs
            ──advance(), a quarter of its life is over──▶ the same, and the successor signs half a life later
                                 the old one is believed until the last certificate that it signed has expired

All that is decided from the certificates themselves and the time, so that a death in the middle changes nothing.

Invariants
1. An authority is in `ca.pem` for PUBLISHED_S before it signs: every process has read it by then.
2. An authority that has signed stays in `ca.pem` until its last certificate has expired; unless it was replaced at
   once, because a stranger may have its key.
3. Unless the authority is rotated by hand, a copy of `ca.pem` is good for COPY_GOOD_S: so much earlier is a successor
   published.
4. A certificate is good for one process of one service, and its authority for leaves only.
5. An authority that is not valid now, since a clock was wrong or a stack was down for long, is replaced.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coordination.files import write_whole
from services.devstack.signing_keys import PUBLISHED_S, ListedKey
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError

#: How long a process's certificate is good for. The holder of a stolen key is a process of the house for so long at
#: most; and clocks that are wrong by hours (CLOCK_SKEW_S) leave enough of it.
LIFE_S: Final = 24 * 3600
#: By which the clocks of processes may be behind the authority's.
CLOCK_SKEW_S: Final = 2 * 3600
_AUTHORITY_LIFE_S: Final = 365 * 24 * 3600
#: How long a copy of the authorities is good, unless they are rotated by hand: half a year.
COPY_GOOD_S: Final = _AUTHORITY_LIFE_S // 2
_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


class Authority:
    """See the module.

    Args:
        folder: Must be there; gets a first authority if it has none.
        name: In its certificates, like `countinghouse`.

    Raises:
        CountinghouseError: AUTHORITY_INVALID: the files are damaged.
    """

    def __init__(self, folder: Path, name: str, clock: Clock) -> None:
        self._folder = folder
        self._name = name
        self._clock = clock
        self.file = folder / "ca.pem"
        with self._alone():
            self._ensure()

    def listed(self) -> list[ListedKey]:
        """Return the authorities that are believed."""
        known = self._authorities()
        place = known.index(self._signing(known))
        return [
            ListedKey(
                f"{each.serial_number:x}",
                _from_s(each) + PUBLISHED_S if number < place else 0,
                _from_s(known[number - 1]) + PUBLISHED_S + LIFE_S if number > place else 0,
            )
            for number, each in enumerate(known)
        ]

    def rotate(self) -> None:
        """Make a successor and publish it. One that is on its way stays."""
        with self._alone():
            known = self._authorities()
            while len(known) > 1 and _from_s(known[0]) > self._now_s():
                del known[0]  # it was to sign in some months
            if len(known) == 1 or self._signs(known[0]):
                self._publish([self._make(self._now_s()), *known])

    def replace_now(self) -> None:
        """Let a new authority sign at once, and believe no other: every certificate there is becomes invalid."""
        with self._alone():
            self._publish([self._make(self._now_s())])

    def advance(self) -> None:
        """Do what is due: make a successor in the middle of an authority's life, and drop one whose time is over."""
        with self._alone():
            self._ensure()
            known = self._authorities()
            if self._now_s() - _from_s(known[0]) > _AUTHORITY_LIFE_S // 4:
                known = [self._make(_from_s(known[0]) + _AUTHORITY_LIFE_S * 3 // 4), *known]
                self._publish(known)
            place = known.index(self._signing(known))
            believed = [*known[: place + 1], *self._still_believed(known[place:])]
            if believed != known:
                self._publish(believed)
            for file in set(self._folder.glob("ca.*.key")) - set(map(self._key_file, known[: place + 1])):
                file.unlink()  # of one that signs no more

    def issue(self, names: Sequence[str], uri: str = "", *, life_s: int = LIFE_S, common_name: str = "") -> bytes:
        """Return a new key with a certificate for a process, PEM.

        Args:
            names: Names and addresses under which it is called.
            uri: Which service it is; empty: it is known by its names alone, and is called by those of this machine too.
                A service has none of these: its certificate must not pass for that of a database on this machine.
            life_s: How long it is good for.
            common_name: As what PostgreSQL and ZooKeeper know its owner, who shows them the certificate; empty: they
                do not know it.
        """
        signing = self._signing(self._authorities())
        key = ec.generate_private_key(ec.SECP256R1())
        authority_key_id = signing.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        certificate = (
            self._builder(key, x509.random_serial_number(), self._now_s(), life_s)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []))
            .issuer_name(signing.subject)
            # Critical where there is no other name (RFC 5280, section 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(list(_names(names, uri))), critical=not common_name)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority_key_id), critical=False
            )
            .sign(self._key(signing), hashes.SHA256())
        )
        return _pem_of_key(key) + certificate.public_bytes(serialization.Encoding.PEM)

    def needs_renewal(self, identity_file: Path, *, life_s: int = LIFE_S, patient: bool = False) -> bool:
        """Tell whether the certificate in a file has half its life left or less, or is of an older authority.

        Args:
            life_s: How long it was good for.
            patient: Whether one of an older authority will do for half the time for which that is still believed.
        """
        known = self._authorities()
        try:
            certificate = x509.load_pem_x509_certificates(identity_file.read_bytes())[0]
        except (OSError, ValueError, IndexError):
            return True
        signing = known.index(self._signing(known))
        issuer = next((place for place in range(signing, len(known)) if _issued(known[place], certificate)), None)
        if issuer is None or (issuer > signing and not patient):
            return True
        if issuer > signing and self._now_s() > _from_s(known[issuer - 1]) + PUBLISHED_S + LIFE_S // 2:
            return True
        left_s = certificate.not_valid_after_utc.timestamp() - self._now_s()
        return not life_s / 2 < left_s <= life_s

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from changing the authorities meanwhile."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _ensure(self) -> None:
        """Make an authority where there is none, or none that is valid now."""
        if not self.file.exists():
            self._publish([self._make(self._now_s())])
            return
        signing = self._signing(self._authorities())
        from_s, until_s = signing.not_valid_before_utc.timestamp(), signing.not_valid_after_utc.timestamp()
        if not from_s <= self._now_s() <= until_s - LIFE_S:
            self._publish([self._make(self._now_s())])

    def _make(self, from_s: int) -> x509.Certificate:
        """Make an authority; its key is written, its certificate not yet.

        Args:
            from_s: From when it counts, Unix seconds.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        # A name of its own: where two authorities have one name, the one that signed is looked for by trying.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self._name} {serial:x}"[:64])])
        certificate = (
            self._builder(key, serial, from_s, _AUTHORITY_LIFE_S)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        write_whole(self._key_file(certificate), _pem_of_key(key), mode=0o600)
        return certificate

    def _builder(
        self, key: ec.EllipticCurvePrivateKey, serial: int, from_s: int, life_s: int
    ) -> x509.CertificateBuilder:
        start = datetime.fromtimestamp(from_s, UTC)
        return (
            x509.CertificateBuilder()
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(start - timedelta(seconds=CLOCK_SKEW_S))
            .not_valid_after(start + timedelta(seconds=life_s))
        )

    def _authorities(self) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(self.file.read_bytes())
        except ValueError as error:
            raise CountinghouseError(
                "AUTHORITY_INVALID", f"{self.file} has no certificate; remove it to have an authority made"
            ) from error

    def _signing(self, known: list[x509.Certificate]) -> x509.Certificate:
        """Return the one that signs: the newest that has been published long enough, or the only one."""
        return next(filter(self._signs, known), known[-1])

    def _signs(self, authority: x509.Certificate) -> bool:
        return self._now_s() >= _from_s(authority) + PUBLISHED_S

    def _still_believed(self, from_signing: list[x509.Certificate]) -> list[x509.Certificate]:
        """Return those after the one that signs whose last certificate may not have expired."""
        return [
            older for newer, older in pairwise(from_signing) if self._now_s() <= _from_s(newer) + PUBLISHED_S + LIFE_S
        ]

    def _publish(self, authorities: list[x509.Certificate]) -> None:
        content = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in authorities)
        write_whole(self.file, content, mode=0o644)

    def _key_file(self, authority: x509.Certificate) -> Path:
        return self._folder / f"ca.{authority.serial_number:x}.key"

    def _key(self, authority: x509.Certificate) -> ec.EllipticCurvePrivateKey:
        try:
            key = serialization.load_pem_private_key(self._key_file(authority).read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise CountinghouseError(
                "AUTHORITY_INVALID", f"{self._key_file(authority)} is not the authority's key; replace the authority"
            ) from error
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101  of ours
        return key

    def _now_s(self) -> int:
        return self._clock.now_ms() // 1000


def _issued(authority: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _from_s(authority: x509.Certificate) -> int:
    return int(authority.not_valid_before_utc.timestamp()) + CLOCK_SKEW_S


def _names(names: Sequence[str], uri: str) -> Iterator[x509.GeneralName]:
    if uri:
        yield x509.UniformResourceIdentifier(uri)
    for host in dict.fromkeys(names if uri else (*names, *_LOCAL)):
        try:
            yield x509.IPAddress(ip_address(host))
        except ValueError:
            yield x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
