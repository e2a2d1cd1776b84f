"""Tokens: who is calling, signed. JSON Web Tokens (RFC 7519) with Ed25519 signatures (RFC 8037).

Signing and verifying use different keys, so that a service can check a cashier's token but never make one.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordination.files import sync_directory
from services.kernel.card_numbers import refuse_card_number
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, Unauthenticated
from services.kernel.ids import check_name
from services.kernel.principal import Principal, Role

_ISSUER = "countinghouse"
_ALGORITHM = "EdDSA"
_KNOWN_TOKENS = 1024
#: What reading a key that is none raises: rubbish, one with a password, one of an unknown kind.
_NO_KEY = (ValueError, TypeError, UnsupportedAlgorithm)


class TokenSigner:
    """Make tokens. Lives where the private key lives: in the embedded stack, or with the operator of the deployment."""

    def __init__(self, key: Ed25519PrivateKey, clock: Clock) -> None:
        self._key = key
        self._clock = clock

    @classmethod
    def from_file(cls, path: Path, clock: Clock) -> TokenSigner:
        """Read the private key; make it first, with mode 0600, if there is none.

        Two processes that start at once end with the same key: the file appears whole or not at all.
        """
        if not path.exists():
            pem = Ed25519PrivateKey.generate().private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")  # mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(draft, path)
                sync_directory(path.parent)
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
        key = None
        with suppress(*_NO_KEY):
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise CountinghouseError(
                "SIGNING_KEY_INVALID", f"{path} is not an Ed25519 private key; remove it to have one made"
            )
        return cls(key, clock)

    def public_pem(self) -> bytes:
        """Return the public half, for those who verify."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, principal: Principal, ttl_s: int) -> str:
        """Return a token for `principal` that is good for `ttl_s` seconds."""
        refuse_card_number(check_name(principal.name, "name"), "name")
        now_s = self._clock.now_ms() // 1000
        claims = {
            "iss": _ISSUER,
            "sub": principal.name,
            "role": str(principal.role),
            "iat": now_s,
            "exp": now_s + ttl_s,
        }
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM)


class TokenVerifier:
    """Reads tokens."""

    def __init__(self, public_pem: bytes, clock: Clock) -> None:
        key = None
        with suppress(*_NO_KEY):
            key = serialization.load_pem_public_key(public_pem)
        if not isinstance(key, Ed25519PublicKey):
            raise CountinghouseError("VERIFY_KEY_INVALID", "the verification key is not an Ed25519 public key")
        self._key = key
        self._clock = clock
        self._known = lru_cache(maxsize=_KNOWN_TOKENS)(self._read)  # a signature costs 0.2 ms; refusals are not kept

    def verify(self, token: str) -> Principal:
        """Return the caller that the token names.

        Raises:
            Unauthenticated: TOKEN_INVALID or TOKEN_EXPIRED.
        """
        principal, expires_ms = self._known(token)
        if expires_ms <= self._clock.now_ms():
            raise Unauthenticated("TOKEN_EXPIRED", "the token has expired; get a new one with `countinghouse token`")
        return principal

    def _read(self, token: str) -> tuple[Principal, int]:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["sub", "exp", "role"], "verify_exp": False, "verify_iat": False},
            )
            return Principal(check_name(str(claims["sub"]), "sub"), Role(claims["role"])), int(claims["exp"]) * 1000
        except (jwt.InvalidTokenError, ValueError, CountinghouseError) as error:
            raise Unauthenticated(
                "TOKEN_INVALID", "the token is not one of ours; get one with `countinghouse token`"
            ) from error


class TokenFile:
    """A service's own token, read again whenever the file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_at_ns = -1
        self._token = ""

    def token(self) -> str:
        """Return the newest token."""
        changed_ns = self._path.stat().st_mtime_ns
        if changed_ns != self._read_at_ns:
            self._token = self._path.read_text().strip()
            self._read_at_ns = changed_ns
        return self._token
