"""Servers of tests believe one key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.kernel.clock import Clock
from services.runtime.grpc.tokens import TokenSigner, TokenVerifier, audience_of
from services.runtime.grpc.trust import Trust, key_id, key_set


def believing(signer: TokenSigner) -> Callable[[], Trust]:
    """The trust of a server that believes this signer, and nothing else."""
    trust = Trust({key_id(signer.public_key): signer.public_key})
    return lambda: trust


def verifier_of(signer: TokenSigner, clock: Clock, service: str = "order") -> TokenVerifier:
    """What a service of the house verifies with."""
    return TokenVerifier(believing(signer), audience_of(service), clock)


def write_key_set(folder: Path, signer: TokenSigner) -> Path:
    """Writes the file by which a process verifies this signer's tokens."""
    file = folder / "verify.jwks"
    file.write_bytes(key_set([signer.public_key]))
    return file
