"""The keys of an embedded stack, made on its first start.

<data>/keys/signing.key, …                 what signs tokens, and `verify.jwks` (`signing_keys.py`)
<data>/keys/revoked.json                   the tokens and callers that are revoked (`revocations.py`)
<data>/keys/tokens/<service>/<name>.token  a service's token for another service, mode 0600, written anew in time
<data>/keys/acquirer/signing.key, …        the acquirer's own: it issues the credential with which it is called
<data>/keys/<role>.pgpass                  the password of a role on a PostgreSQL server, mode 0600, as in ~/.pgpass
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coordination.files import write_whole
from services.devstack import revocations
from services.devstack.files import signing_key
from services.devstack.signing_keys import SigningKeys
from services.devstack.state import ACQUIRER, INTERFACES, SigningKeyMissing
from services.kernel.clock import Clock
from services.kernel.errors import PermissionDenied
from services.kernel.ids import RandomIds
from services.kernel.principal import Principal, Role
from services.runtime.database.pgpass import passfile_line, passwords_in
from services.runtime.grpc.tokens import HOUSE, MAX_TTL_S, TokenSigner, audience_of

#: A stolen token of a service is of use for this long at most, and at one other service.
SERVICE_TOKEN_TTL_S: Final = MAX_TTL_S[Role.SERVICE]
#: By the wall clock, since a machine that slept has aged its tokens too.
LOOK_S: Final = 20.0
#: What each service calls, and so needs a token for.
CALLEES: Final = {"payment": ("order", "ledger", ACQUIRER), ACQUIRER: ("payment",)}


def mint(data: Path, principal: Principal, ttl_s: int, clock: Clock, *, outside: bool = False) -> str:
    """Sign a token for `principal` with the key of a data directory.

    Args:
        outside: For the acquirer, with its own key; not for the services of the house.

    Raises:
        SigningKeyMissing: There is none here.
        InvalidArgument: FIELD_MALFORMED: it is not a name. TTL_TOO_LONG.
        PermissionDenied: CALLER_REVOKED.
    """
    key = signing_key(data, outside=outside)
    if not key.exists():
        whose, other = ("of the acquirer", "set COUNTINGHOUSE_ACQUIRER_TOKEN") if outside else ("", "send a --token")
        raise SigningKeyMissing(
            "SIGNING_KEY_MISSING",
            f"there is no signing key {whose}{' ' if whose else ''}in {data}; run `countinghouse up` first, name the "
            f"--data of the stack, or {other} made there",
        )
    if revocations.read(revoked_file(data)).holds(principal):
        raise PermissionDenied(
            "CALLER_REVOKED", f"{principal} is revoked; `countinghouse revoke --undo` takes that back"
        )
    return TokenSigner.from_file(key, clock).sign(principal, ttl_s, *_audiences(principal, outside))


def _audiences(principal: Principal, outside: bool) -> tuple[str, ...]:
    """Return where a token that an operator makes is good; one in the name of a service at each service."""
    if outside:
        return (ACQUIRER,)
    machine = principal.role in (Role.SERVICE, Role.ACQUIRER)
    return tuple(map(audience_of, INTERFACES)) if machine else (HOUSE,)


def revoked_file(data: Path) -> Path:
    """Return where the revoked tokens and callers of a data directory are listed."""
    return data / "keys" / "revoked.json"


class Keys:
    """The keys under one data directory.

    Args:
        data: The stack's data directory.
    """

    def __init__(self, data: Path, clock: Clock) -> None:
        self._folder = data / "keys"
        self._clock = clock
        self.ours = SigningKeys(self._folder, clock)
        self.acquirers = SigningKeys(self._folder / ACQUIRER, clock)
        self.revoked_file = revoked_file(data)
        if not self.revoked_file.exists():
            revocations.write(self.revoked_file, revocations.Revocations(), 0)
        self._issued_ms: dict[str, int] = {}

    def verify_file(self, service: str) -> Path:
        """Return the file with the public keys by which a service, or the acquirer, verifies tokens."""
        return self.acquirers.verify_file if service == ACQUIRER else self.ours.verify_file

    def token_folder(self, service: str) -> Path:
        """Return where the tokens of a service are."""
        return self._folder / "tokens" / service

    def issue(self, service: str) -> Path:
        """Sign fresh tokens for what a service calls; return their folder. `keep_fresh` keeps them fresh."""
        folder = self.token_folder(service)
        for each in (folder.parent, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        for callee in CALLEES.get(service, ()):
            write_whole(folder / f"{callee}.token", self._token(service, callee).encode(), mode=0o600)
        self._issued_ms[service] = self._clock.now_ms()
        return folder

    def sign(self, principal: Principal, ttl_s: int | None = None, *, outside: bool = False) -> str:
        """Return a token for a caller, good for an hour or as long as its role allows, unless `ttl_s` is given.

        Args:
            outside: As `mint`.
        """
        ttl_s = min(3600, MAX_TTL_S[principal.role]) if ttl_s is None else ttl_s
        signer = (self.acquirers if outside else self.ours).signer
        return signer.sign(principal, ttl_s, *_audiences(principal, outside))

    def passfile(self, role: str) -> Path:
        """Return the file with the password of a role on a PostgreSQL server; make the password first, if needed."""
        path = self._folder / f"{role}.pgpass"
        if not path.exists():
            write_whole(path, passfile_line(role, RandomIds().new("pw")).encode(), mode=0o600)
        return path

    def password(self, role: str) -> str:
        """Return the password of a role; see `passfile`."""
        return passwords_in(self.passfile(role).read_text())[role]

    def renew(self) -> list[str]:
        """Renew every token that has lived half its life, or whose key signs no more; return whose are new."""
        changed = [keys.advance() for keys in (self.ours, self.acquirers)]
        half_ms = SERVICE_TOKEN_TTL_S * 1000 // 2
        now_ms = self._clock.now_ms()
        old = [name for name, issued_ms in self._issued_ms.items() if any(changed) or now_ms - issued_ms >= half_ms]
        for service in old:
            self.issue(service)
        return old

    async def keep_fresh(self, tell: Callable[[str], None]) -> None:
        """Renew tokens in time; never ends by itself. One that cannot be written is reported, and tried again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.renew()
            except OSError as error:
                tell(f"tokens cannot be renewed in {self._folder} ({error.strerror}); trying again")

    def _token(self, service: str, callee: str) -> str:
        if service == ACQUIRER:
            acquirer = Principal(ACQUIRER, Role.ACQUIRER)
            return self.ours.signer.sign(acquirer, SERVICE_TOKEN_TTL_S, audience_of(callee))
        principal = Principal(f"{service}-service", Role.SERVICE)
        if callee == ACQUIRER:
            return self.acquirers.signer.sign(principal, SERVICE_TOKEN_TTL_S, ACQUIRER)
        return self.ours.signer.sign(principal, SERVICE_TOKEN_TTL_S, audience_of(callee))
