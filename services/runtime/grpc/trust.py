"""Whom a server believes: the keys that sign tokens, and the tokens and callers that are revoked. From two files.

    verify.jwks     the public keys as a JSON Web Key Set (RFC 7517, RFC 8037); each token names its key by `kid`
    revoked.json    {"tokens": {"<jti>": <exp>}, "callers": ["cashier:li"]}; times are Unix seconds

Both are read again when they change, so that keys are rotated, and callers revoked, without a restart. The new and the
old key stand in the set side by side until the last token of the old one has expired.

Invariants
1. A file that cannot be read, or says nothing that makes sense, changes nothing: what was known goes on to hold.
2. A key's id is its thumbprint (RFC 7638): a set cannot give one key the id of another.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from services.kernel.errors import CountinghouseError
from services.kernel.json_input import parse_json
from services.runtime.file_stamp import file_stamp

#: Keys in a set, and entries in a list of what is revoked: a file of ours is far smaller.
_MAX_KEYS = 16
_MAX_REVOKED = 100_000

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Trust:
    """See the module.

    Args:
        keys: By key id.
        revoked_tokens: Their ids.
        revoked_callers: As `role:name`.
    """

    keys: Mapping[str, Ed25519PublicKey]
    revoked_tokens: frozenset[str] = field(default_factory=frozenset)
    revoked_callers: frozenset[str] = field(default_factory=frozenset)


def key_id(key: Ed25519PublicKey) -> str:
    """Return the thumbprint of a key (RFC 7638, section 3; RFC 8037, appendix A.3)."""
    canonical = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": _coordinate(key)}, separators=(",", ":"))
    return _unpadded(hashlib.sha256(canonical.encode()).digest())


def key_set(keys: Iterable[Ed25519PublicKey]) -> bytes:
    """Return keys as a JSON Web Key Set."""
    listed = [
        {"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": key_id(key), "x": _coordinate(key)}
        for key in keys
    ]
    return json.dumps({"keys": listed}, indent=1).encode()


def keys_in(key_set_document: bytes) -> dict[str, Ed25519PublicKey]:
    """Return the Ed25519 keys of a JSON Web Key Set, by their thumbprints; keys of other kinds are passed over.

    Raises:
        CountinghouseError: VERIFY_KEY_INVALID: it is no such set, or has no such key.
    """
    found: dict[str, Ed25519PublicKey] = {}
    try:
        listed = parse_json(key_set_document)["keys"]
        for each in listed[:_MAX_KEYS]:
            if each["kty"] == "OKP" and each.get("crv") == "Ed25519":
                key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(each["x"] + "=="))
                found[key_id(key)] = key
    except (ValueError, TypeError, KeyError, AttributeError):
        found = {}
    if not found:
        raise CountinghouseError("VERIFY_KEY_INVALID", "the verification keys are no JSON Web Key Set of Ed25519 keys")
    return found


def revoked_in(document: bytes) -> tuple[frozenset[str], frozenset[str]]:
    """Return the ids of the revoked tokens, and the revoked callers, of a `revoked.json`.

    Raises:
        CountinghouseError: REVOKED_INVALID: it is none.
    """
    try:
        read: Any = parse_json(document)
        tokens, callers = frozenset(map(str, read["tokens"])), frozenset(map(str, read["callers"]))
    except (ValueError, TypeError, KeyError) as error:
        raise CountinghouseError("REVOKED_INVALID", "the list of revoked tokens and callers makes no sense") from error
    if len(tokens) + len(callers) > _MAX_REVOKED:
        raise CountinghouseError("REVOKED_INVALID", f"more than {_MAX_REVOKED} tokens and callers are revoked")
    return tokens, callers


class TrustFiles:
    """The two files, read again whenever one has changed. Threads may share them.

    Args:
        keys: The key set.
        revoked: What is revoked; None, or a file that there is not: nothing.

    Raises:
        OSError: The key set cannot be read.
        CountinghouseError: VERIFY_KEY_INVALID or REVOKED_INVALID.
    """

    def __init__(self, keys: Path, revoked: Path | None = None) -> None:
        self._keys = keys
        self._revoked = revoked
        self._seen = self._stamps()
        self._trust = self._read()
        self._usable = True
        self._reading = threading.Lock()

    def current(self) -> Trust:
        """Return what holds now."""
        if self._stamps() != self._seen:
            with self._reading:  # so that no thread sets what was read before another thread's
                self._read_again()
        return self._trust

    def usable(self) -> bool:
        """Tell whether the files as they are now hold; False: they cannot be read, and those from before hold."""
        self.current()
        return self._usable

    def _read_again(self) -> None:
        stamps = self._stamps()
        if stamps == self._seen:
            return  # another thread has read them
        try:
            self._trust, self._usable = self._read(), True
        except (OSError, CountinghouseError) as error:
            self._usable = False
            log.error("the changed keys or revocations cannot be read; those from before hold", why=str(error))
        self._seen = stamps

    def _read(self) -> Trust:
        keys = keys_in(self._keys.read_bytes())
        if self._revoked is None:
            return Trust(keys)
        try:
            return Trust(keys, *revoked_in(self._revoked.read_bytes()))
        except FileNotFoundError:
            return Trust(keys)

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple(file_stamp(file) for file in (self._keys, self._revoked) if file is not None)


def _coordinate(key: Ed25519PublicKey) -> str:
    return _unpadded(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))


def _unpadded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
