"""A real PostgreSQL for the tests, and databases on it as a deployment has them: an owner, and a role that is less.

It is, in this order: the server that COUNTINGHOUSE_TEST_POSTGRES names by a URL (its user must be a superuser); else a
temporary cluster made from the programs found here, without durability; else whoever asks for it is skipped.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from services.devstack.child import identity
from services.devstack.components import postgresql
from services.runtime.cluster_member import Service
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.pgpass import Roles
from services.runtime.database.postgres_roles import grant, prepare

_NUMBERS = itertools.count(1)
#: A temporary cluster lies in memory where there is enough: a database is a thousand files, to be made and removed.
_MEMORY, _ENOUGH_BYTES = Path("/dev/shm"), 2 << 30
_PASSWORD = "known-to-every-test"


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server on which databases can be made.

    Args:
        url: Of a superuser.
    """

    url: URL
    house: str = field(default_factory=lambda: f"test{os.getpid()}")
    _templates: dict[str, Roles] = field(default_factory=dict)

    async def create(self) -> str:
        """Makes an empty database; returns its URL, a superuser's."""
        url = self._new_url()
        await self._say(f'CREATE DATABASE "{url.database}"')
        return self._with_password(url)

    async def migrated(self, package: Path) -> tuple[str, str]:
        """Makes a database for the service in a folder; returns the URLs of its role and of its owner."""
        roles = self._templates.get(package.name) or await self._template(package)
        url = self._new_url()
        await self._say(
            f'CREATE DATABASE "{url.database}" TEMPLATE "{roles.database}" OWNER "{roles.owner}"',
            f'REVOKE ALL ON DATABASE "{url.database}" FROM PUBLIC',  # the one thing that is not copied
            f'GRANT CONNECT ON DATABASE "{url.database}" TO "{roles.user}", "{roles.checker}"',
        )
        user, owner = (url.set(username=role, password=_PASSWORD) for role in (roles.user, roles.owner))
        return self._with_password(user), self._with_password(owner)

    async def drop(self, url: str) -> None:
        """Removes a database, whoever is still connected to it."""
        name = make_url(url).database or ""
        await self._say(f'DROP DATABASE "{name}" WITH (FORCE)')

    def of_house(self, name: str) -> str:
        """The URL by which a stack of a test keeps its data here, under names of its own."""
        return self._with_password(self.url.set(database=f"{self.house}_{name}"))

    async def clear(self) -> None:
        """Removes what is left of all that was made here."""
        for name in await self._named("SELECT datname FROM pg_database WHERE datname LIKE :like"):
            await self._say(f'DROP DATABASE "{name}" WITH (FORCE)')
        for name in await self._named("SELECT rolname FROM pg_roles WHERE rolname LIKE :like"):
            await self._say(f'DROP ROLE "{name}"')

    async def _template(self, package: Path) -> Roles:
        """A database as `migrate` leaves it in a deployment, for others to be copied from."""
        service: Service = import_module(f"services.{package.name}.main").SERVICE
        roles = Roles(self.house, package.name)
        await prepare(
            self.url, self.house, [package.name], dict.fromkeys((roles.owner, roles.user, roles.checker), _PASSWORD)
        )
        url = self.url.set(database=roles.database, username=roles.owner, password=_PASSWORD)
        async with Database(self._with_password(url)) as database:
            await bring_up_to_date(database, package, migrate=True)
            append_only = [table.name for table in service.append_only]
            await grant(database, append_only, user=roles.user, checker=roles.checker)
        self._templates[package.name] = roles
        return roles

    def _new_url(self) -> URL:
        return self.url.set(database=f"{self.house}_{next(_NUMBERS)}")

    async def _say(self, *statements: str) -> None:
        engine = create_async_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                for statement in statements:
                    await connection.execute(text(statement))
        finally:
            await engine.dispose()

    async def _named(self, query: str) -> list[str]:
        engine = create_async_engine(self.url)
        try:
            async with engine.connect() as connection:
                return list((await connection.execute(text(query), {"like": f"{self.house}\\_%"})).scalars())
        finally:
            await engine.dispose()

    @staticmethod
    def _with_password(url: URL) -> str:
        return url.render_as_string(hide_password=False)


class _Cluster:
    """A temporary PostgreSQL: its own directory, its own port, no durability."""

    def __init__(self, installation: postgresql.Installation) -> None:
        self._installation = installation
        self._directory = Path(tempfile.mkdtemp(prefix="countinghouse-postgres-", dir=_place()))
        if installation.user is not None:
            shutil.chown(self._directory, installation.user)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, replica: bool = False) -> PostgresServer:
        data = self._directory / "data"
        made = self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        if made.wait(60) != 0:
            raise RuntimeError(f"initdb failed: {self._log()}")
        if replica:
            (data / "standby.signal").touch()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": "300",
            "min_wal_size": "32MB",
            "max_wal_size": "64MB",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._process = self._run("postgres", "-D", str(data), f"--port={port}", *options)
        url = make_url(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres")
        _apart(self._until_answering(url))
        return PostgresServer(url)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # at once; killed, it would leave its shared memory behind
            self._process.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    async def _until_answering(self, url: URL) -> None:
        async with asyncio.timeout(30):
            while True:
                try:
                    await PostgresServer(url)._say("SELECT 1")
                except Exception:  # whatever it says while it starts
                    if self._process is None or self._process.poll() is not None:
                        raise RuntimeError(f"postgres failed: {self._log()}") from None
                    await asyncio.sleep(0.05)
                else:
                    return

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._installation.programs / program), *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._directory,
                **identity(self._installation.user),
            )

    def _log(self) -> str:
        return (self._directory / "log").read_text(errors="replace")[-1000:]


def _place() -> Path | None:
    """Where the directory of a temporary cluster is made; None: where temporary files are."""
    try:
        return _MEMORY if shutil.disk_usage(_MEMORY).free >= _ENOUGH_BYTES and os.access(_MEMORY, os.W_OK) else None
    except OSError:
        return None


def _apart(work: Coroutine[Any, Any, None]) -> None:
    """Runs it to its end on a loop of its own, wherever we are."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@contextmanager
def server() -> Iterator[PostgresServer]:
    """A PostgreSQL for as long as the context lasts; skips whoever asks for it if there is none."""
    named = os.environ.get("COUNTINGHOUSE_TEST_POSTGRES")
    if named:
        given = PostgresServer(make_url(named).set(drivername="postgresql+asyncpg"))
        try:
            yield given
        finally:
            _apart(given.clear())
        return
    with _own_server(replica=False) as own:
        yield own


@contextmanager
def replica() -> Iterator[PostgresServer]:
    """A PostgreSQL that is a replica, of a primary that does not exist."""
    with _own_server(replica=True) as own:
        yield own


@contextmanager
def _own_server(*, replica: bool) -> Iterator[PostgresServer]:
    try:
        installation = postgresql.find(os.environ)
    except postgresql.PostgresqlMissing as error:
        pytest.skip(f"{error.message}; or set COUNTINGHOUSE_TEST_POSTGRES")
    cluster = _Cluster(installation)
    try:
        yield cluster.start(replica=replica)
    finally:
        cluster.stop()
