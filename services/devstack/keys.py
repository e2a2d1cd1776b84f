"""The keys of an embedded stack, made on its first start.

<data>/keys/signing.key            private, mode 0600: its reader can sign a token for any caller
<data>/keys/verify.pem             public: the services verify tokens with it
<data>/keys/<service>.token        each service's own token, mode 0600, written anew well before it expires; and that of
                                   the acquirer, an outside system with next to no rights
<data>/keys/<role>.pgpass          the password of a role on a PostgreSQL server, mode 0600, in the form of ~/.pgpass
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from coordination.files import write_whole
from services.devstack.files import signing_key
from services.devstack.state import ACQUIRER, SigningKeyMissing
from services.kernel.clock import Clock
from services.kernel.ids import RandomIds
from services.kernel.principal import Principal, Role
from services.runtime.database.pgpass import passfile_line, passwords_in
from services.runtime.grpc.tokens import TokenSigner

#: A stolen token is of use for this long at most.
SERVICE_TOKEN_TTL_S = 12 * 3600
#: By the wall clock, since a machine that slept has aged its tokens too.
LOOK_S = 20.0


def mint(data: Path, principal: Principal, ttl_s: int, clock: Clock) -> str:
    """Sign a token for `principal` with the key of a data directory.

    Raises:
        SigningKeyMissing: There is none here.
        InvalidArgument: FIELD_MALFORMED: it is not a name.
    """
    key = signing_key(data)
    if not key.exists():
        raise SigningKeyMissing(
            "SIGNING_KEY_MISSING",
            f"there is no signing key in {data}; run `countinghouse up` first, name the --data of the stack, "
            "or send a --token made there",
        )
    return TokenSigner.from_file(key, clock).sign(principal, ttl_s)


class Keys:
    """The keys under one data directory.

    Args:
        data: The stack's data directory.
    """

    def __init__(self, data: Path, clock: Clock) -> None:
        self._folder = data / "keys"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._clock = clock
        self.signer = TokenSigner.from_file(signing_key(data), clock)
        self.verify_file = self._folder / "verify.pem"
        write_whole(self.verify_file, self.signer.public_pem(), mode=0o644)
        self._issued_ms: dict[str, int] = {}

    def token_file(self, service: str) -> Path:
        """Return where the token of `<service>-service` is, once there is one."""
        return self._folder / f"{service}.token"

    def service_token(self, service: str) -> Path:
        """Return the file with a fresh token of `<service>-service`, or of the acquirer; kept fresh by `keep_fresh`."""
        path = self.token_file(service)
        outside = service == ACQUIRER
        principal = Principal(service, Role.ACQUIRER) if outside else Principal(f"{service}-service", Role.SERVICE)
        token = self.signer.sign(principal, SERVICE_TOKEN_TTL_S)
        write_whole(path, token.encode(), mode=0o600)
        self._issued_ms[service] = self._clock.now_ms()
        return path

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
        """Renew every token that has lived half its life; return the services whose tokens are new."""
        half_ms = SERVICE_TOKEN_TTL_S * 1000 // 2
        old = [name for name, issued_ms in self._issued_ms.items() if self._clock.now_ms() - issued_ms >= half_ms]
        for service in old:
            self.service_token(service)
        return old

    async def keep_fresh(self, tell: Callable[[str], None]) -> None:
        """Renew tokens in time; never ends by itself. One that cannot be written is reported, and tried again."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.renew()
            except OSError as error:
                tell(f"tokens cannot be renewed in {self._folder} ({error.strerror}); trying again")
