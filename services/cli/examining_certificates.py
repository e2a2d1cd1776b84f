"""What `countinghouse doctor` finds of the authority and the certificates of a data directory."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography import x509

from services.devstack import state
from services.devstack.keys import identity_file
from services.kernel.clock import Clock

#: Less than this of a certificate's life is left only if nothing renews it.
_LATE_S = 3600


def faults(data: Path, clock: Clock) -> Iterator[str]:
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
