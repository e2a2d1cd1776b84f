"""The list of revoked tokens and callers of a data directory, `keys/revoked.json` (`runtime/grpc/trust.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coordination.files import write_whole
from services.kernel.errors import CountinghouseError
from services.kernel.json_input import parse_json
from services.kernel.principal import Principal
from services.runtime.grpc.tokens import INSTANCE
from services.runtime.grpc.trust import revoked_in


@dataclass(frozen=True, slots=True)
class Revocations:
    """What is revoked.

    Args:
        tokens: By a token's id, when it expires anyhow, Unix seconds.
        callers: As `role:name`; none of their tokens is taken, and none is signed for them. A process whose certificate
            is not taken is `instance:name`.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    callers: frozenset[str] = field(default_factory=frozenset)

    def holds(self, principal: Principal) -> bool:
        """Return whether this caller is revoked."""
        return caller_of(principal) in self.callers

    @property
    def instances(self) -> frozenset[str]:
        """The names of the processes whose certificates are not taken."""
        return frozenset(name for kind, _, name in (each.partition(":") for each in self.callers) if kind == INSTANCE)


def caller_of(principal: Principal) -> str:
    """Return a caller as the list names it."""
    return f"{principal.role}:{principal.name}"


def read(file: Path) -> Revocations:
    """Return the list in a file; an empty one if there is no file.

    Raises:
        CountinghouseError: REVOKED_INVALID.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return Revocations()
    _, callers = revoked_in(content)
    try:
        tokens = {str(name): int(expires_s) for name, expires_s in parse_json(content)["tokens"].items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CountinghouseError("REVOKED_INVALID", f"{file} makes no sense; put it right, or remove it") from error
    return Revocations(tokens, callers)


def write(file: Path, revoked: Revocations, now_s: int) -> None:
    """Replace the list; tokens that have expired are left out."""
    document = {
        "tokens": {name: expires_s for name, expires_s in revoked.tokens.items() if expires_s > now_s},
        "callers": sorted(revoked.callers),
    }
    write_whole(file, json.dumps(document, indent=1).encode(), mode=0o644)
