"""Make the keys of a deployment once, give each container its own in a folder of its own, and renew the tokens.

    python -m services.devstack.secret_distributor --ensemble zoo1,zoo2,zoo3 --databases postgres1,postgres2,postgres3
        --ready /tmp/handed-out /secrets order=2 payment=2 acquirer

    /secrets/operator/           a data directory: the signing key, the authority, every password, where the databases
                                 are
    /secrets/<service>/          verify.jwks, revoked.json, the authorities' `…ca.pem`, `<name>.token` for each service
                                 that it calls, pgpass: the password of the role it works under, and
                                 zookeeper-user: the name and password of its user there
    /secrets/<instance>/         identity.pem: the key and certificate of one instance
    /secrets/<service>-owner/    pgpass: the password of the owner of its tables, for `migrate` and `prune`;
                                 database-ca.pem
    /secrets/<database>/         server.pem: the key and certificate of a PostgreSQL server, whose name is its common
                                 name; ca.pem: the authorities of the others and of ZooKeeper
    /secrets/roles/              pgpass: every role's password, for `services.runtime.database.postgres_roles`
    /secrets/<zookeeper>/        server.pem and ca.pem for its clients, quorum.pem and quorum-ca.pem for the ensemble's
                                 own traffic, superuser: the line of its configuration about the superuser
    /secrets/tree/               ca.pem, and the users of ZooKeeper, for `services.devstack.zookeeper_tree`

Each folder is a volume of its own, mounted read-only by its reader. It is a folder and not a file, since tokens and
certificates are written anew well before they expire, and a file that is mounted by itself stays the old one. Only this
process signs tokens and certificates.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from coordination.files import write_whole
from services.devstack.components.databases import HOUSE
from services.devstack.files import SUPERUSER, remember_databases, remote_database_url
from services.devstack.keys import ENSEMBLE, LOOK_S, ZOOKEEPER, Keys
from services.devstack.options import GATEWAY, POSTGRESQL
from services.devstack.state import INTERFACES
from services.devstack.zookeeper_tree import digest
from services.kernel.clock import Clock, SystemClock
from services.runtime.database.pgpass import Roles

#: Where the containers find the servers of PostgreSQL.
_PORT = 5432
_TREE = "tree"
#: Of files that another user has to read; only the container of that user mounts the volume.
_FOREIGN = 0o644
#: Longer than it takes until every process has read a file that has changed.
_READ_S = 2.0


class SecretDistributor:
    """What each reader of a deployment's keys gets.

    Args:
        root: Where the readers' folders are.
        services: How many instances of each there are; of an instance `order-1` the service is `order`.
        ensemble: The servers of ZooKeeper.
        databases: The servers of PostgreSQL.
    """

    def __init__(
        self,
        root: Path,
        services: Mapping[str, int],
        clock: Clock,
        *,
        ensemble: Sequence[str] = (),
        databases: Sequence[str] = ("postgres",),
    ) -> None:
        self._root = root
        self._services = dict(services)
        self._ensemble = tuple(ensemble)
        self._databases = tuple(databases)
        self._keys = Keys(root / "operator", clock)

    def distribute(self) -> None:
        """Hand out everything; what was made before is handed out again, only tokens and certificates are new."""
        passfiles: dict[str, bytes] = {}
        urls: dict[str, str] = {}
        for service, instances in self._services.items():
            roles = Roles(HOUSE, service)
            for role in (roles.owner, roles.user, roles.checker):
                passfiles[role] = self._keys.passfile(role).read_bytes()
            self._keys.issue(service)
            for number in range(1, instances + 1):
                self._keys.certify(service, f"{service}-{number}")
            self._write(service, "pgpass", passfiles[roles.user])
            self._write(f"{service}-owner", "pgpass", passfiles[roles.owner])
            parameters = {
                "passfile": self._keys.passfile(roles.checker),
                "sslrootcert": self._keys.ca_file(POSTGRESQL),
            }
            servers = [f"{server}:{_PORT}" for server in self._databases]
            urls[service] = remote_database_url(servers, roles.checker, roles.database, parameters)
        for server in self._databases:
            self._keys.certify(POSTGRESQL, server)
        for server in self._ensemble:
            self._keys.certify(ZOOKEEPER, server)
            self._keys.certify(ENSEMBLE, server)
        self._write_users()
        self._hand_out()
        self._write("roles", "pgpass", b"".join(passfiles.values()))
        remember_databases(self._root / "operator", urls)

    def renew(self) -> list[str]:
        """Hand out what has changed: keys, revocations, and what is renewed; return whose tokens or certificates."""
        try:
            return self._keys.renew()
        finally:
            self._hand_out()  # what was renewed all the same, and revocations

    def _write_users(self) -> None:
        """Write the users of ZooKeeper for their readers; a server needs a digest of its superuser's alone."""
        for service in self._services:
            if service in INTERFACES:
                self._hand(service, "zookeeper-user", self._keys.zookeeper_user(service))
        if not self._ensemble:
            return
        for user in (SUPERUSER, *INTERFACES):
            self._hand(_TREE, user, self._keys.zookeeper_user(user))
        line = f"DigestAuthenticationProvider.superDigest={digest(self._keys.zookeeper_user(SUPERUSER).read_text())}"
        for server in self._ensemble:
            self._write(server, "superuser", line.encode(), mode=_FOREIGN)

    def _hand_out(self) -> None:
        """Write what each reader gets, where it differs: also what could not be written before.

        What is believed goes first, to all: a certificate of a new authority is of no use to a reader of the old one.
        """
        believed = [self._hand(*each, mode=self._mode(each[0])) for each in self._believed()]
        if any(believed):
            time.sleep(_READ_S)
        for service in self._services:
            for file in self._keys.token_folder(service).iterdir():
                self._hand(service, file.name, file)
            for file in self._keys.identity_files(service):
                self._hand(file.stem, "identity.pem", file)
        for service, name in ((POSTGRESQL, "server.pem"), (ZOOKEEPER, "server.pem"), (ENSEMBLE, "quorum.pem")):
            for file in self._keys.identity_files(service):
                self._hand(file.stem.removesuffix(f"-{ENSEMBLE}"), name, file, mode=_FOREIGN)

    def _believed(self) -> Iterator[tuple[str, str, Path]]:
        database = self._keys.ca_file(POSTGRESQL)
        for service in self._services:
            yield f"{service}-owner", "database-ca.pem", database
            yield service, "database-ca.pem", database
            yield service, "ca.pem", self._keys.ca_file(service)
            yield service, "outside-ca.pem", self._keys.outside_ca_file(service)
            yield service, "verify.jwks", self._keys.verify_file(service)
            yield service, "revoked.json", self._keys.revoked_file
        for server in self._databases:
            yield server, "ca.pem", database
        for server in self._ensemble:
            yield server, "ca.pem", self._keys.ca_file(ZOOKEEPER)
            yield server, "quorum-ca.pem", self._keys.ca_file(ENSEMBLE)
        if self._ensemble:
            yield _TREE, "ca.pem", self._keys.ca_file(ZOOKEEPER)
        yield GATEWAY, "ca.pem", self._keys.ca_file(GATEWAY)

    def _hand(self, reader: str, name: str, file: Path, *, mode: int = 0o600) -> bool:
        """Write a file where it differs; return whether it did."""
        there = self._root / reader / name
        if not file.exists() or (there.exists() and there.read_bytes() == file.read_bytes()):
            return False
        self._write(reader, name, file.read_bytes(), mode=mode)
        return True

    def _write(self, reader: str, name: str, content: bytes, *, mode: int = 0o600) -> None:
        folder = self._root / reader
        folder.mkdir(mode=0o755 if self._mode(reader) == _FOREIGN else 0o700, exist_ok=True)
        write_whole(folder / name, content, mode=mode)

    def _mode(self, reader: str) -> int:
        return _FOREIGN if reader in (*self._databases, *self._ensemble) else 0o600


async def _keep(distributor: SecretDistributor) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set():
        try:
            async with asyncio.timeout(LOOK_S):
                await stop.wait()
        except TimeoutError:
            try:
                distributor.renew()
            except Exception as error:  # of a full disk, say: what is out has half its life left
                print(f"secret_distributor: {error}: nothing can be renewed; trying again", file=sys.stderr)  # noqa: T201


def _counted(given: str) -> tuple[str, int]:
    service, _, count = given.partition("=")
    return service, int(count or 1)


def main() -> None:
    """Hand out everything, and then what is renewed, until a signal."""
    parser = argparse.ArgumentParser(prog="python -m services.devstack.secret_distributor", description=main.__doc__)
    parser.add_argument("root", type=Path, help="where the readers' folders are")
    parser.add_argument("services", nargs="+", metavar="SERVICE[=INSTANCES]", type=_counted)
    parser.add_argument("--ready", type=Path, required=True, help="file that is made when all has been handed out")
    parser.add_argument("--ensemble", default="", help="the servers of ZooKeeper, like zoo1,zoo2,zoo3")
    parser.add_argument("--databases", default="postgres", help="the servers of PostgreSQL; [default: %(default)s]")
    given = parser.parse_args()
    ensemble, databases = (list(filter(None, each.split(","))) for each in (given.ensemble, given.databases))
    distributor = SecretDistributor(
        given.root, dict(given.services), SystemClock(), ensemble=ensemble, databases=databases
    )
    distributor.distribute()
    given.ready.touch()
    asyncio.run(_keep(distributor))


if __name__ == "__main__":
    main()
