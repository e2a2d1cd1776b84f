"""Make the keys of a deployment once, give each container its own in a folder of its own, and renew the tokens.

    python -m services.devstack.secret_distributor /secrets order payment ledger

    /secrets/operator/           a data directory: the signing key, every password, where the databases are
    /secrets/<service>/          verify.jwks, revoked.json, `<name>.token` for each service that it calls, and pgpass:
                                 the password of the role it works under
    /secrets/<service>-owner/    pgpass: the password of the owner of its tables, for `migrate` alone
    /secrets/roles/              pgpass: every role's password, for `services.runtime.database.postgres_roles`

Each folder is a volume of its own, mounted read-only by its reader. It is a folder and not a file, since tokens are
written anew well before they expire, and a file that is mounted by itself stays the old one. Only this process
signs tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from coordination.files import write_whole
from services.devstack.components.databases import HOUSE
from services.devstack.files import remember_databases
from services.devstack.keys import LOOK_S, Keys
from services.kernel.clock import Clock, SystemClock
from services.runtime.database.pgpass import Roles

#: Where the containers find the server.
_SERVER = "postgres:5432"


class SecretDistributor:
    """What each reader of a deployment's keys gets.

    Args:
        root: Where the readers' folders are.
    """

    def __init__(self, root: Path, services: Sequence[str], clock: Clock) -> None:
        self._root = root
        self._services = tuple(services)
        self._keys = Keys(root / "operator", clock)

    def distribute(self) -> None:
        """Hand out everything; what was made before is handed out again, only tokens are new."""
        passfiles: dict[str, bytes] = {}
        urls: dict[str, str] = {}
        for service in self._services:
            roles = Roles(HOUSE, service)
            for role in (roles.owner, roles.user, roles.checker):
                passfiles[role] = self._keys.passfile(role).read_bytes()
            self._keys.issue(service)
            self._hand_out(service)
            self._write(service, "pgpass", passfiles[roles.user])
            self._write(f"{service}-owner", "pgpass", passfiles[roles.owner])
            passfile = self._keys.passfile(roles.checker)
            urls[service] = f"postgresql+asyncpg://{roles.checker}@{_SERVER}/{roles.database}?passfile={passfile}"
        self._write("roles", "pgpass", b"".join(passfiles.values()))
        remember_databases(self._root / "operator", urls)

    def renew(self) -> list[str]:
        """Hand out what has changed: keys, revocations, and tokens that are renewed; return whose tokens are new."""
        renewed = self._keys.renew()
        for service in self._services:
            self._hand_out(service)
        return renewed

    def _hand_out(self, service: str) -> None:
        """Write what a service verifies and calls with, where it differs: also what could not be written before."""
        wanted = {"verify.jwks": self._keys.verify_file(service), "revoked.json": self._keys.revoked_file}
        wanted |= {file.name: file for file in self._keys.token_folder(service).iterdir()}
        for name, file in wanted.items():
            there = self._root / service / name
            if file.exists() and not (there.exists() and there.read_bytes() == file.read_bytes()):
                self._write(service, name, file.read_bytes())

    def _write(self, reader: str, name: str, content: bytes) -> None:
        folder = self._root / reader
        folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(folder / name, content, mode=0o600)


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
            except OSError as error:  # of a full disk: the tokens have half their lives left
                print(f"secret_distributor: tokens cannot be renewed: {error}; trying again", file=sys.stderr)  # noqa: T201


def main() -> None:
    """Hand out everything, and then what is renewed, until a signal."""
    parser = argparse.ArgumentParser(prog="python -m services.devstack.secret_distributor", description=main.__doc__)
    parser.add_argument("root", type=Path, help="where the readers' folders are")
    parser.add_argument("services", nargs="+", metavar="SERVICE")
    parser.add_argument("--ready", type=Path, required=True, help="file that is made when all has been handed out")
    given = parser.parse_args()
    distributor = SecretDistributor(given.root, given.services, SystemClock())
    distributor.distribute()
    given.ready.touch()
    asyncio.run(_keep(distributor))


if __name__ == "__main__":
    main()
