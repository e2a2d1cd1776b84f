"""Tokens: who is calling, signed. JSON Web Tokens (RFC 7519) with Ed25519 signatures (RFC 8037).

    {"alg": "EdDSA", "kid": "<thumbprint of the key>"}
    {"iss": "countinghouse", "aud": ["countinghouse"], "sub": "li", "role": "cashier", "jti": "…", "iat": …, "exp": …,
     "delegation": "<a person's: see delegations.py>"}

Signing and verifying use different keys, so that a service can check a cashier's token but never make one.

| bearer | audience: where the token is good | life at most |
|---|---|---|
| a person | `countinghouse`: every service of the house | 12 hours; an operator's 1 hour |
| a service | the one service that it calls, like `countinghouse-ledger` | 15 minutes |
| the acquirer, which is outside | `countinghouse-payment` | 15 minutes |

Invariants
1. A token is good at one audience: a server that receives it cannot use it elsewhere, unless a person sent it.
2. A token that was signed for longer than its role's limit is not taken, whichever key signed it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from coordination.files import sync_directory
from services.kernel.card_numbers import refuse_card_number
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, InvalidArgument, Unauthenticated
from services.kernel.ids import RandomIds, check_name
from services.kernel.principal import MAX_DELEGATION_CHARS, Principal, Role
from services.runtime.grpc import delegations
from services.runtime.grpc.identity import Identity
from services.runtime.grpc.trust import Trust, key_id

#: How a revoked process stands in the list of revoked callers: `instance:<name>`.
INSTANCE: Final = "instance"
#: The audience of the tokens of people: all services of the house.
HOUSE: Final = "countinghouse"
#: How long a token may be good for, in seconds, by the role of its bearer.
MAX_TTL_S: Final = {
    Role.CUSTOMER: 12 * 3600,
    Role.CASHIER: 12 * 3600,
    Role.ACCOUNTANT: 12 * 3600,
    Role.AUDITOR: 12 * 3600,
    Role.OPERATOR: 3600,
    Role.SERVICE: 900,
    Role.ACQUIRER: 900,
}

_ISSUER = "countinghouse"
_ALGORITHM = "EdDSA"
_KNOWN_TOKENS = 1024
#: By which the signer's clock may be ahead of ours.
_CLOCK_SKEW_S = 60
#: Whose tokens are good at one service only.
_MACHINES = frozenset({Role.SERVICE, Role.ACQUIRER})
#: What reading a key that is none raises: rubbish, one with a password, one of an unknown kind.
_NO_KEY = (ValueError, TypeError, UnsupportedAlgorithm)


def audience_of(service: str) -> str:
    """Return the audience of tokens that are good at one service."""
    return f"{HOUSE}-{service}"


def service_principal(service: str) -> Principal:
    """Return as whom a service calls."""
    return Principal(f"{service}-service", Role.SERVICE)


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

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The public half, for those who verify."""
        return self._key.public_key()

    def sign(self, principal: Principal, ttl_s: int, *audiences: str) -> str:
        """Return a token for `principal` that is good for `ttl_s` seconds.

        Args:
            audiences: Where it is good; none: in the house.

        Raises:
            InvalidArgument: TTL_TOO_LONG, of this role; or FIELD_MALFORMED: it is not a name.
        """
        refuse_card_number(check_name(principal.name, "name"), "name")
        limit_s = MAX_TTL_S[principal.role]
        if ttl_s > limit_s:
            raise InvalidArgument(
                "TTL_TOO_LONG",
                f"a token of a {principal.role} is good for {limit_s} seconds at most, not {ttl_s}",
                fields=(("ttl_s", f"is at most {limit_s}"),),
            )
        now_s, token_id = self._clock.now_ms() // 1000, RandomIds().new("tok")
        claims: dict[str, Any] = {
            "iss": _ISSUER,
            "aud": audiences or (HOUSE,),
            "sub": principal.name,
            "role": str(principal.role),
            "jti": token_id,
            "iat": now_s,
            "exp": now_s + ttl_s,
        }
        if principal.role not in _MACHINES and HOUSE in claims["aud"]:
            claims["delegation"] = delegations.signed(self._key, principal, token_id, now_s)
        return jwt.encode(claims, self._key, algorithm=_ALGORITHM, headers={"kid": key_id(self.public_key)})


class TokenVerifier:
    """Reads tokens.

    Args:
        trust: Returns the keys and revocations that hold now.
        audience: Of the server that reads them.
        house: Whether tokens of people for the whole house are good here.
    """

    def __init__(self, trust: Callable[[], Trust], audience: str, clock: Clock, *, house: bool = True) -> None:
        self._trust = trust
        self._audiences = frozenset({audience, HOUSE} if house else {audience})
        self._audience = audience
        self._clock = clock
        self._known = lru_cache(maxsize=_KNOWN_TOKENS)(self._read)  # a signature costs 0.2 ms; refusals are not kept

    def verify(self, token: str) -> Principal:
        """Return the caller that the token names.

        Raises:
            Unauthenticated: TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED or TOKEN_FOR_ANOTHER.
        """
        trust = self._trust()
        principal, signed_by, identity, expires_s = self._known(token)
        if signed_by not in trust.keys:
            raise _invalid()
        if expires_s <= self._clock.now_ms() // 1000:
            raise Unauthenticated("TOKEN_EXPIRED", "the token has expired; get a new one with `countinghouse token`")
        if identity in trust.revoked_tokens or f"{principal.role}:{principal.name}" in trust.revoked_callers:
            raise Unauthenticated("TOKEN_REVOKED", "the token, or its bearer, was revoked; ask an operator")
        return principal

    def check_certificate(self, principal: Principal, shown: Identity | None) -> None:
        """Check that a service which sends a token has the certificate of that service.

        Args:
            shown: By the connection; None: it shows none.

        Raises:
            Unauthenticated: CERTIFICATE_REQUIRED, CERTIFICATE_FOR_ANOTHER, CERTIFICATE_REVOKED.
        """
        if shown is None:
            raise Unauthenticated(
                "CERTIFICATE_REQUIRED", f"{principal.name} is known by its certificate; call the internal port with it"
            )
        if principal.name != service_principal(shown.service).name:
            raise Unauthenticated(
                "CERTIFICATE_FOR_ANOTHER", f"a token of {principal.name} came with a certificate of {shown.service}"
            )
        if f"{INSTANCE}:{shown.instance}" in self._trust().revoked_callers:
            raise Unauthenticated("CERTIFICATE_REVOKED", f"the certificate of {shown.instance} was revoked")

    def _read(self, token: str) -> tuple[Principal, str, str, int]:
        """Return the bearer of a token, the id of the key that signed it, its own id, and when it expires."""
        try:
            signed_by = str(jwt.get_unverified_header(token).get("kid", ""))
            key = self._trust().keys.get(signed_by)
            if key is None:
                raise _invalid()
            claims = jwt.decode(
                token,
                key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                audience=self._audiences,
                options={
                    "require": ["sub", "aud", "exp", "iat", "role", "jti"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            delegation = str(claims.get("delegation", ""))
            principal = Principal(check_name(str(claims["sub"]), "sub"), Role(claims["role"]), delegation)
            issued_s, expires_s = int(claims["iat"]), int(claims["exp"])
        except jwt.InvalidAudienceError as error:
            raise _for_another(self._audience) from error
        except (jwt.InvalidTokenError, ValueError, CountinghouseError) as error:
            raise _invalid() from error
        audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        if principal.role in _MACHINES and self._audience not in audiences:
            raise _for_another(self._audience)
        limit_s = MAX_TTL_S[principal.role]
        now_s = self._clock.now_ms() // 1000
        if expires_s - issued_s > limit_s or expires_s - now_s > limit_s + _CLOCK_SKEW_S:
            raise _invalid()
        if len(delegation) > MAX_DELEGATION_CHARS or "act" in claims:
            raise _invalid()
        return principal, signed_by, str(claims["jti"]), expires_s


def _invalid() -> Unauthenticated:
    return Unauthenticated("TOKEN_INVALID", "the token is not one of ours; get one with `countinghouse token`")


def _for_another(audience: str) -> Unauthenticated:
    return Unauthenticated("TOKEN_FOR_ANOTHER", f"the token is not for {audience}; send one that is")


class TokenFile:
    """A service's token for one other service, read again whenever the file has changed."""

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
