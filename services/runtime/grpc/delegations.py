"""Delegations: signed statements that a service may act for a person at other services (RFC 8693, section 4.1).

    {"alg": "EdDSA", "kid": "<thumbprint of the key>", "typ": "delegation+jwt"}
    {"iss": "countinghouse", "aud": ["countinghouse-ledger", "countinghouse-order"], "sub": "li", "role": "cashier",
     "act": {"sub": "payment-service"}, "jti": "<id of the token>", "iat": …, "exp": …}

    signer ──token, with the delegation in it──▶ person ──token──▶ payment service ──delegation──▶ order, ledger service

The private key is where no service is, so the signer of a person's token puts the delegation into it. The payment
service keeps it with the payment, and shows it whenever it names the person; so does the recovery worker, when the
token has long expired.

Invariants
1. A service that names a person without a delegation that holds is recorded itself: no person is recorded who has not
   called it.
2. A delegation is good for the service in `act` alone, which shows its certificate, and it is no token.
3. It is not good once its token or its person is revoked, or the key that signed it is believed no more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, PermissionDenied
from services.kernel.ids import check_name
from services.kernel.principal import Principal, Role
from services.runtime.grpc.trust import Trust, key_id

#: How long a service may act for a person after their token was signed: a card's outcome can take days to be known.
TTL_S: Final = 7 * 24 * 3600

_ACTOR: Final = "payment-service"
_AUDIENCES: Final = ("countinghouse-ledger", "countinghouse-order")
_ISSUER: Final = "countinghouse"
_ALGORITHM: Final = "EdDSA"
_TYPE: Final = "delegation+jwt"
_KNOWN: Final = 1024


def signed(key: Ed25519PrivateKey, person: Principal, token_id: str, now_s: int) -> str:
    """Return the delegation for a person's token.

    Args:
        token_id: Of the token; who revokes that revokes the delegation.
        now_s: Unix time in seconds.
    """
    claims = {
        "iss": _ISSUER,
        "aud": _AUDIENCES,
        "sub": person.name,
        "role": str(person.role),
        "act": {"sub": _ACTOR},
        "jti": token_id,
        "iat": now_s,
        "exp": now_s + TTL_S,
    }
    return jwt.encode(claims, key, algorithm=_ALGORITHM, headers={"kid": key_id(key.public_key()), "typ": _TYPE})


class DelegationVerifier:
    """Reads delegations.

    Args:
        trust: Returns the keys and revocations that hold now.
        audience: Of the server that reads them.
    """

    def __init__(self, trust: Callable[[], Trust], audience: str, clock: Clock) -> None:
        self._trust = trust
        self._audience = audience
        self._clock = clock
        self._known = lru_cache(maxsize=_KNOWN)(self._read)  # only what is signed by a key of ours is kept

    def represented(self, named: Principal, caller: Principal) -> Principal:
        """Return for whom a service acts: the person whom it names, if it may; otherwise itself.

        Args:
            named: In its request, with the delegation that it shows.
            caller: The service, as its token and certificate say.

        Raises:
            PermissionDenied: DELEGATION_FOR_ANOTHER: the delegation is another person's.
        """
        if not named.delegation:
            return caller
        trust = self._trust()
        try:
            person, actor, signed_by, token_id, expires_s = self._known(named.delegation)
        except (jwt.InvalidTokenError, ValueError, TypeError, CountinghouseError):
            return caller
        if person != named:
            raise PermissionDenied("DELEGATION_FOR_ANOTHER", f"{named} is named with the delegation of {person}")
        holds = (
            actor == caller.name
            and signed_by in trust.keys
            and expires_s > self._clock.now_ms() // 1000
            and token_id not in trust.revoked_tokens
            and f"{person.role}:{person.name}" not in trust.revoked_callers
        )
        return person if holds else caller

    def _read(self, delegation: str) -> tuple[Principal, str, str, str, int]:
        """Return the person, the actor, the id of the key that signed, the token's id, and when it expires."""
        header = jwt.get_unverified_header(delegation)
        signed_by = str(header.get("kid", ""))
        key = self._trust().keys.get(signed_by)
        if key is None or header.get("typ") != _TYPE:
            raise ValueError("it is signed by no key of ours, or is no delegation")
        claims = jwt.decode(
            delegation,
            key,
            algorithms=[_ALGORITHM],
            issuer=_ISSUER,
            audience=self._audience,
            options={
                "require": ["sub", "aud", "exp", "iat", "role", "jti", "act"],
                "verify_exp": False,
                "verify_iat": False,
            },
        )
        person = Principal(check_name(str(claims["sub"]), "sub"), Role(claims["role"]))
        return person, str(claims["act"]["sub"]), signed_by, str(claims["jti"]), int(claims["exp"])
