"""What `countinghouse doctor` finds of authorities, certificates and revoked processes."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from services.cli.finding import Finding
from services.devstack import dialers, revocations, state
from services.devstack.files import ca_file
from services.devstack.keys import identity_file, revoked_file
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError

#: Less than this of a certificate's life is left only if nothing renews it.
_LATE_S = 3600


def of_data(data: Path, clock: Clock) -> Iterator[Finding]:
    """Return what is found in a data directory that can be read."""
    running, authority = state.read(data), ca_file(data)
    plaintext = running is not None and running.plaintext
    if authority.exists():
        found = list(_faults_of_certificates(data, clock))
        words = "not used: the stack runs in plain text" if plaintext else f"of {authority}"
        yield Finding("certificates", not found, "; ".join(found) or words)
    elif running is not None and not plaintext:
        yield Finding("certificates", False, f"{authority} is missing; `countinghouse down`, and `countinghouse up`")
    try:
        revoked = revocations.read(revoked_file(data)).instances
    except CountinghouseError as error:
        yield Finding("revoked", False, error.message)
        return
    serving = [each.name for each in running.instances if each.name in revoked] if running is not None else []
    if serving:
        names = ", ".join(serving)
        yield Finding("revoked", True, f"{names}: calls no service; `countinghouse registry offline` sends it no calls")


def of_environment(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Return what is found in the files of authorities that the environment names."""
    for variable in (dialers.CA_FILE, dialers.OUTSIDE_CA_FILE):
        if given := environment.get(variable, ""):
            yield _of_named_file(variable, Path(given))


def _of_named_file(variable: str, file: Path) -> Finding:
    try:
        known = x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        return Finding(variable, False, f"{file} cannot be read ({error.strerror}); {dialers.CA_FILE_REMEDY}")
    except ValueError:
        return Finding(variable, False, f"{file} has no certificates; {dialers.CA_FILE_REMEDY}")
    return Finding(variable, True, f"{file}, {len(known)} {'authority' if len(known) == 1 else 'authorities'}")


def _faults_of_certificates(data: Path, clock: Clock) -> Iterator[str]:
    """Return what is not as it should be, and what to do."""
    keys = data / "keys"
    for key in sorted(keys.glob("**/ca.*.key")):
        mode = 0
        with suppress(FileNotFoundError):  # it has just been replaced
            mode = stat.S_IMODE(key.stat().st_mode)
        if mode & 0o077:
            yield (
                f"others can read {key} (mode {mode:04o}): chmod 600, and if they did, "
                "`countinghouse key rotate --authority --now`"
            )
    running = state.read(data)
    if running is None:
        return  # the next start makes new certificates
    for file in (identity_file(keys, each.name) for each in running.instances):
        if not file.exists():
            continue  # revoked, or in plain text
        try:
            until = x509.load_pem_x509_certificates(file.read_bytes())[0].not_valid_after_utc
        except (OSError, ValueError) as error:
            yield f"{file} cannot be used ({error}); remove it, and start the stack again"
            continue
        if until.timestamp() - clock.now_ms() / 1000 < _LATE_S:
            yield (
                f"the certificate in {file} is good until {until:%Y-%m-%dT%H:%M:%SZ} and was not renewed: see whether "
                "the disk is full, and what the stack's supervisor says"
            )
