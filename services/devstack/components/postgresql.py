"""A PostgreSQL server for the embedded stack: where this machine has one, how it is made and started.

Looked for in this order
1. the folder of an `initdb` on PATH
2. Debian's packages: /usr/lib/postgresql/<version>/bin, the newest; for data that are there already, their version

It listens on 127.0.0.1 only, over TLS unless the stack is in plain text; every role needs its password, and fsync stays
on. PostgreSQL refuses to be root: run by
root it becomes the user `postgres` or `nobody`, who must be able to pass through the folders above its data.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from coordination.files import write_whole
from services.devstack.child import Child, Command, identity
from services.devstack.components.component import Component
from services.devstack.managed_process import ManagedProcess
from services.devstack.options import POSTGRESQL
from services.devstack.ports import HOST
from services.devstack.state import StackRefused
from services.kernel.errors import Unavailable

if TYPE_CHECKING:
    from sqlalchemy import URL

SUPERUSER = "postgres"
#: 16 instances of each service, at their default pool of 8, are more than one machine starts.
_MAX_CONNECTIONS = 200
_PROGRAMS = ("initdb", "postgres")
_UNPRIVILEGED = ("postgres", "nobody")
_INITDB_TIMEOUT_S = 60.0
_RETRY_S = 0.05
_GRACE_S = 5.0

_SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",  # a path below a data directory may be too long for one
    "max_connections": str(_MAX_CONNECTIONS),
    "shared_buffers": "32MB",
    "log_min_messages": "warning",
    "log_error_verbosity": "terse",  # its details quote rows
}


#: Its key and certificate in one file, and who may connect.
_CERTIFICATE, _HBA = "server.pem", "pg_hba.conf"
_HBA_TLS = "# Over TLS alone, and with a password.\nhostssl all all 127.0.0.1/32 scram-sha-256\n"


class PostgresqlMissing(StackRefused):
    """This machine has nothing from which a PostgreSQL could be started."""


@dataclass(frozen=True, slots=True)
class Installation:
    """PostgreSQL's programs, and the user to run them as; None: the current one."""

    programs: Path
    user: str | None

    @property
    def version(self) -> str:
        """Its major version, by Debian's path; empty: not known."""
        name = self.programs.parent.name
        return name if name.isdigit() else ""


def find(environment: Mapping[str, str], root: Path = Path("/"), version: str = "") -> Installation:
    """Return what a server can be started from, the first of the module's list.

    Args:
        root: Where Debian's packages are installed.
        version: The major version that made the data; empty: any.

    Raises:
        PostgresqlMissing: POSTGRESQL_MISSING, naming what to install.
    """
    user = _unprivileged_user() if os.geteuid() == 0 else None
    for folder in _folders(environment, root):
        found = Installation(folder, user)
        if all((folder / program).exists() for program in _PROGRAMS) and found.version in (
            version or found.version,
            "",
        ):
            return found
    raise PostgresqlMissing(
        "POSTGRESQL_MISSING",
        f"no PostgreSQL {version or 'server'} can be started: `apt install postgresql{version and f'-{version}'}`, run "
        "deploy/setup-postgresql.sh, or name a running one by --database postgresql://superuser@host/countinghouse",
    )


def version_of(directory: Path) -> str:
    """Return the major version that made the data under `directory`; empty: there are none yet."""
    try:
        return (directory / "data" / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return ""


async def make(installation: Installation, directory: Path, password: str) -> None:
    """Make `directory` and the data in it, unless they are there.

    Args:
        password: Of the superuser.

    Raises:
        StackRefused: DATA_UNUSABLE: the user it has to run as cannot get there. POSTGRESQL_NOT_MADE: initdb's message.
    """
    _make_room(installation, directory)
    if version_of(directory):
        return
    draft = directory / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    secret = directory / "superuser"
    secret.touch(mode=0o600)
    try:
        secret.write_text(password)
        if installation.user is not None:
            shutil.chown(secret, installation.user)
        await _initdb(installation, draft, secret)
    finally:
        secret.unlink()
    draft.rename(directory / "data")


def command(
    installation: Installation, directory: Path, port: int, environment: Mapping[str, str], *, tls: bool = False
) -> Command:
    """Return how to start the server whose data are under `directory`, on `port`.

    Args:
        tls: Whether it takes connections over TLS alone, with the certificate in `directory`.
    """
    settings = _SETTINGS | {"port": str(port)}
    if tls:
        file = str(directory / _CERTIFICATE)
        settings |= {"ssl": "on", "ssl_cert_file": file, "ssl_key_file": file, "hba_file": str(directory / _HBA)}
    options = [f"--{name}={value}" for name, value in settings.items()]
    arguments = (str(installation.programs / "postgres"), "-D", str(directory / "data"), *options)
    log = directory.parent / "logs" / "postgresql.log"
    return Command(arguments, _own(environment), log, user=installation.user, stop_signal=signal.SIGINT)


async def until_answering(server: URL) -> None:
    """Wait until a server lets its superuser in."""
    from services.runtime.database.database import Database  # noqa: PLC0415  a stack on files does without

    async with Database(server.render_as_string(), pool=1) as database:
        while True:
            try:
                return await database.ping()
            except Unavailable:
                await asyncio.sleep(_RETRY_S)


class PostgreSQL(Component):
    """A server of the stack's own.

    Attributes:
        url: Of its superuser, once it was started.
    """

    url: URL

    async def start(self) -> None:
        """Make its data if they are not there, and start it.

        Raises:
            PostgresqlMissing: There is none to start.
            StackRefused: As `make`.
        """
        from sqlalchemy import URL  # noqa: PLC0415  a stack on files does without

        keys, directory = self._context.keys, self._context.data / "postgresql"
        installation = find(self._context.environment, version=version_of(directory))
        await make(installation, directory, keys.password(SUPERUSER))
        tls = not self._context.options.plaintext
        if tls:
            hba = self._context.data / "keys" / _HBA  # made where the server's user cannot enter, as in `_take`
            write_whole(hba, _HBA_TLS.encode(), mode=0o644)
            hba.replace(directory / _HBA)
            keys.certify(POSTGRESQL, POSTGRESQL, partial(self._take, directory / _CERTIFICATE, installation))
        port = self._reserve_port(directory).port
        self.url = URL.create(
            "postgresql+asyncpg",
            username=SUPERUSER,
            host=HOST,
            port=port,
            database=SUPERUSER,
            query=self._secured() | {"passfile": str(keys.passfile(SUPERUSER))},
        )
        self._run(
            ManagedProcess(
                self._supervision,
                "postgresql",
                service="postgresql",
                interface="",
                command=command(installation, directory, port, self._context.environment, tls=tls),
                ready=self._ready,
                grace_s=_GRACE_S,
            )
        )

    def _secured(self) -> dict[str, str]:
        if self._context.options.plaintext:
            return {}
        return {"sslrootcert": str(self._context.keys.ca_file(POSTGRESQL))}

    def _take(self, file: Path, installation: Installation, identity_file: Path) -> None:
        """Give the server a new key and certificate, which it reads at its start and when it is told to.

        They are made in a folder that the server's user cannot enter: in its own a link could lead us elsewhere.
        """
        draft = identity_file.with_suffix(".draft")
        write_whole(draft, identity_file.read_bytes(), mode=0o600)
        if installation.user is not None:
            shutil.chown(draft, installation.user)
        draft.replace(file)
        for process in self.processes:
            process.signal(signal.SIGHUP)

    async def _ready(self, _child: Child) -> str:
        await until_answering(self.url)
        return f"{self.url.host}:{self.url.port}"


async def _initdb(installation: Installation, data: Path, secret: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(installation.programs / "initdb"),
        *(f"--pgdata={data}", f"--username={SUPERUSER}", f"--pwfile={secret}"),
        *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=data.parent,
        env=_own(os.environ),
        **identity(installation.user),
    )
    try:
        async with asyncio.timeout(_INITDB_TIMEOUT_S):
            said, _ = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        words = said.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise StackRefused("POSTGRESQL_NOT_MADE", f"no PostgreSQL could be made in {data.parent}: {words[-1]}")


def _make_room(installation: Installation, directory: Path) -> None:
    """Make `directory` the user's, and let them pass, without looking, through the data directory above it.

    Raises:
        StackRefused: DATA_UNUSABLE: a folder further up is closed to them.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    user = installation.user
    if user is None:
        return
    shutil.chown(directory, user)
    data = directory.resolve().parent
    data.chmod(data.stat().st_mode | 0o001)
    closed = [folder for folder in data.parents if not folder.stat().st_mode & 0o001]
    if closed:
        raise StackRefused(
            "DATA_UNUSABLE",
            f"PostgreSQL refuses to run as root, and the user {user} may not pass through {closed[-1]}; "
            "choose a --data where they can, or start the stack as another user",
        )


def _folders(environment: Mapping[str, str], root: Path) -> Iterator[Path]:
    if found := shutil.which("initdb", path=environment.get("PATH", "")):
        yield Path(found).resolve().parent
    versions = root.glob("usr/lib/postgresql/*/bin")
    yield from sorted(versions, key=lambda folder: float(folder.parent.name), reverse=True)


def _unprivileged_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    for name in _UNPRIVILEGED:
        if name in known:
            return name
    raise PostgresqlMissing(
        "POSTGRESQL_MISSING",
        f"PostgreSQL refuses to run as root, and there is no user {' or '.join(_UNPRIVILEGED)} to run it as",
    )


def _own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without what PostgreSQL's programs would take for settings."""
    return {name: value for name, value in environment.items() if not name.startswith("PG")}
