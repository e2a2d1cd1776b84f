"""The keys of an embedded stack, made on its first start.

<data>/keys/signing.key, …                 what signs tokens, and `verify.jwks` (`signing_keys.py`)
<data>/keys/revoked.json                   the tokens and callers that are revoked (`revocations.py`)
<data>/keys/tokens/<service>/<name>.token  a service's token for another service, mode 0600, written anew in time
<data>/keys/ca.pem, …                      the authority that certifies the house's processes (`authority.py`)
<data>/keys/tls/<instance>.pem             a process's key and certificate, mode 0600, written anew in time
<data>/keys/acquirer/signing.key, ca.pem … the acquirer's own: it issues the credential with which it is called
<data>/keys/zookeeper/<user>               a user of ZooKeeper, `name:password`, mode 0600; `super` may do everything
<data>/keys/ensemble/ca.pem, …             the authority of an ensemble's own traffic; it certifies its servers alone
<data>/keys/<role>.pgpass                  the password of a role on a PostgreSQL server, mode 0600, as in ~/.pgpass
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from coordination.files import write_whole
from services.devstack import revocations
from services.devstack.authority import LIFE_S, Authority
from services.devstack.files import signing_key, zookeeper_user_file
from services.devstack.options import POSTGRESQL
from services.devstack.signing_keys import SigningKeys
from services.devstack.state import ACQUIRER, INTERFACES, SigningKeyMissing
from services.kernel.clock import Clock
from services.kernel.errors import PermissionDenied
from services.kernel.ids import RandomIds
from services.kernel.principal import Principal, Role
from services.runtime.database.pgpass import passfile_line, passwords_in
from services.runtime.grpc.identity import Identity, server_name
from services.runtime.grpc.tokens import HOUSE, INSTANCE, MAX_TTL_S, TokenSigner, audience_of, service_principal

#: A stolen token of a service is of use for this long at most, and at one other service.
SERVICE_TOKEN_TTL_S: Final = MAX_TTL_S[Role.SERVICE]
#: By the wall clock, since a machine that slept has aged its tokens too.
LOOK_S: Final = 20.0
#: Of a server that has to be started again to take another certificate.
_LONG_LIFE_S: Final = 90 * 24 * 3600
ZOOKEEPER: Final = "zookeeper"
#: A server of the ensemble, as the others know it.
ENSEMBLE: Final = "ensemble"
#: What each service calls, and so needs a token for.
CALLEES: Final = {"payment": ("order", "ledger", ACQUIRER), ACQUIRER: ("payment",)}


def _life_s(service: str) -> int:
    return _LONG_LIFE_S if service in (ZOOKEEPER, ENSEMBLE) else LIFE_S


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


def _nothing(_file: Path) -> None:
    pass


def _audiences(principal: Principal, outside: bool) -> tuple[str, ...]:
    """Return where a token that an operator makes is good; one in the name of a service at each service."""
    if outside:
        return (ACQUIRER,)
    machine = principal.role in (Role.SERVICE, Role.ACQUIRER)
    return tuple(map(audience_of, INTERFACES)) if machine else (HOUSE,)


def identity_file(keys: Path, instance: str) -> Path:
    """Return where a process's key and certificate are in a folder of keys."""
    return keys / "tls" / f"{instance}.pem"


def revoked_file(data: Path) -> Path:
    """Return where the revoked tokens and callers of a data directory are listed."""
    return data / "keys" / "revoked.json"


class Keys:
    """The keys under one data directory.

    Args:
        data: The stack's data directory.
    """

    def __init__(self, data: Path, clock: Clock) -> None:
        self._data = data
        self._folder = data / "keys"
        self._clock = clock
        self.ours = SigningKeys(self._folder, clock)
        self.acquirers = SigningKeys(self._folder / ACQUIRER, clock)
        self.revoked_file = revoked_file(data)
        if not self.revoked_file.exists():
            revocations.write(self.revoked_file, revocations.Revocations(), 0)
        self.authority = Authority(self._folder, HOUSE, clock)
        self.acquirers_authority = Authority(self._folder / ACQUIRER, ACQUIRER, clock)
        self._issued_ms: dict[str, int] = {}
        self._certified: dict[Path, Identity] = {}
        self._renewed: dict[Path, Callable[[Path], None]] = {}

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

    def ca_file(self, service: str) -> Path:
        """Return the file with the authority of a service's, or the acquirer's, certificate."""
        return self._authority(service).file

    def outside_ca_file(self, service: str) -> Path:
        """Return the file with the authority of whom a service calls outside: the acquirer; and of its merchants."""
        return (self.authority if service == ACQUIRER else self.acquirers_authority).file

    def identity_files(self, service: str) -> list[Path]:
        """Return the files of `certify` for the instances of a service."""
        return [file for file, identity in self._certified.items() if identity.service == service]

    def certify(self, service: str, instance: str, renewed: Callable[[Path], None] | None = None) -> Path:
        """Make a process's key and certificate; return their file. `keep_fresh` keeps them fresh.

        Args:
            renewed: Called with the file whenever it is new, now as well.

        Raises:
            PermissionDenied: INSTANCE_REVOKED.
        """
        if self._revoked(instance):
            raise PermissionDenied(
                "INSTANCE_REVOKED",
                f"{instance} is revoked; `countinghouse revoke --instance {instance} --undo` takes that back",
            )
        file = identity_file(self._folder, f"{instance}-{ENSEMBLE}" if service == ENSEMBLE else instance)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        self._certified[file] = Identity(service, instance)
        if renewed is not None:
            self._renewed[file] = renewed
        self._write_certificate(file)
        return file

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

    def zookeeper_user(self, name: str) -> Path:
        """Return the file of a user of ZooKeeper; make the user first, if needed."""
        file = zookeeper_user_file(self._data, name)
        if not file.exists():
            file.parent.mkdir(mode=0o700, exist_ok=True)
            write_whole(file, f"{name}:{RandomIds().new('pw')}".encode(), mode=0o600)
        return file

    def password(self, role: str) -> str:
        """Return the password of a role; see `passfile`."""
        return passwords_in(self.passfile(role).read_text())[role]

    def renew(self) -> list[str]:
        """Renew every token and certificate that has lived half its life, or whose key signs no more.

        What fails keeps nothing else from being renewed.

        Returns:
            The services whose tokens, and the instances whose certificates, are new.

        Raises:
            Exception: The first failure.
        """
        failures: list[Exception] = []
        changed = [self._tried(keys.advance, failures) for keys in (self.ours, self.acquirers)]
        for authority in dict.fromkeys(map(self._authority, (*INTERFACES, ACQUIRER, *self._services()))):
            self._tried(authority.advance, failures)
        half_ms = SERVICE_TOKEN_TTL_S * 1000 // 2
        now_ms = self._clock.now_ms()
        old = [name for name, issued_ms in self._issued_ms.items() if any(changed) or now_ms - issued_ms >= half_ms]
        for service in old:
            self._tried(partial(self.issue, service), failures)
        due = [file for file in self._certified if self._is_due(file)]
        for file in due:
            self._tried(partial(self._write_certificate, file), failures)
        if failures:
            raise failures[0]
        return [*old, *(self._certified[file].instance for file in due)]

    def _is_due(self, file: Path) -> bool:
        identity = self._certified[file]
        return not self._revoked(identity.instance) and self._authority(identity.service).needs_renewal(
            file, life_s=_life_s(identity.service), patient=identity.service in (ZOOKEEPER, ENSEMBLE)
        )

    @staticmethod
    def _tried(step: Callable[[], Any], failures: list[Exception]) -> Any:
        try:
            return step()
        except Exception as error:
            failures.append(error)
            return None

    async def keep_fresh(self, tell: Callable[[str], None]) -> None:
        """Renew tokens and certificates in time; never ends by itself.

        One that cannot be written is reported, and tried again.
        """
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                self.renew()
            except Exception as error:  # the next look may find it mended
                tell(f"tokens and certificates cannot be renewed in {self._folder} ({error}); trying again")

    @cached_property
    def _ensembles_authority(self) -> Authority:
        folder = self._folder / ENSEMBLE
        folder.mkdir(mode=0o700, exist_ok=True)
        return Authority(folder, ENSEMBLE, self._clock)

    def _services(self) -> list[str]:
        return [identity.service for identity in self._certified.values()]

    def _authority(self, service: str) -> Authority:
        if service == ENSEMBLE:
            return self._ensembles_authority
        return self.acquirers_authority if service == ACQUIRER else self.authority

    def _write_certificate(self, file: Path) -> None:
        identity = self._certified[file]
        if identity.service == ACQUIRER:  # outside: known by its host
            content = self.acquirers_authority.issue((ACQUIRER,))
        elif identity.service not in INTERFACES:  # a database, or a ZooKeeper, calls no service
            names = (server_name(identity.service), identity.instance)
            common_name = identity.instance if identity.service == POSTGRESQL else ""
            content = self._authority(identity.service).issue(
                names, life_s=_life_s(identity.service), common_name=common_name
            )
        else:
            names = (server_name(identity.service), identity.instance)
            content = self.authority.issue(names, identity.spiffe_id)
        write_whole(file, content, mode=0o600)
        try:
            self._renewed.get(file, _nothing)(file)
        except BaseException:
            file.unlink()  # so that it is tried again
            raise

    def _revoked(self, instance: str) -> bool:
        return f"{INSTANCE}:{instance}" in revocations.read(self.revoked_file).callers

    def _token(self, service: str, callee: str) -> str:
        if service == ACQUIRER:
            acquirer = Principal(ACQUIRER, Role.ACQUIRER)
            return self.ours.signer.sign(acquirer, SERVICE_TOKEN_TTL_S, audience_of(callee))
        principal = service_principal(service)
        if callee == ACQUIRER:
            return self.acquirers.signer.sign(principal, SERVICE_TOKEN_TTL_S, ACQUIRER)
        return self.ours.signer.sign(principal, SERVICE_TOKEN_TTL_S, audience_of(callee))
