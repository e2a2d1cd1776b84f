"""Databases for the contract tests: each test runs on SQLite, and on PostgreSQL when one is at hand.

PostgreSQL is, in this order: the server that COUNTINGHOUSE_TEST_POSTGRES names by a URL (its user must be allowed to
create databases); else a temporary cluster made from the binaries found here; else that half is skipped, and says why.

A folder of tests uses `database`, the migrated database of the service it is named after, or `fresh_database`, which
makes as many as a test wants.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

import services
from services.runtime.database import Database
from services.runtime.migrations import bring_up_to_date

FreshDatabase = Callable[[Path], Awaitable[Database]]
_PROGRAMS = ("initdb", "pg_ctl", "postgres")
_NUMBERS = itertools.count(1)


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A server on which databases can be made."""

    url: URL

    async def create(self, name: str) -> str:
        """Makes an empty database; returns its URL."""
        await self._say(f'CREATE DATABASE "{name}"')
        return self.url.set(database=name).render_as_string(hide_password=False)

    async def drop(self, name: str) -> None:
        """Removes a database, whoever is still connected to it."""
        await self._say(f'DROP DATABASE "{name}" WITH (FORCE)')

    async def _say(self, statement: str) -> None:
        engine = create_async_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            async with engine.connect() as connection:
                await connection.execute(text(statement))
        finally:
            await engine.dispose()


class _Cluster:
    """A temporary PostgreSQL: its own directory, its own port, no durability."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._directory = Path(tempfile.mkdtemp(prefix="countinghouse-postgres-"))
        self._user = _unprivileged_user()
        if self._user is not None:
            shutil.chown(self._directory, self._user)

    def start(self) -> PostgresServer:
        data = self._directory / "data"
        self._run("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        options = f"-p {port} -k {self._directory} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-D", str(data), "-w", "-l", str(self._directory / "log"), "-o", options, "start")
        return PostgresServer(make_url(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"))

    def stop(self) -> None:
        data = self._directory / "data"
        if (data / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
        shutil.rmtree(self._directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        with (self._directory / f"{program}.out").open("ab") as output:
            done = subprocess.run(
                [str(self._programs / program), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._directory,
                user=self._user,
                timeout=60,
                check=False,
            )
        if done.returncode != 0:
            said = (self._directory / f"{program}.out").read_text(errors="replace")[-1000:]
            raise RuntimeError(f"{program} failed: {said}")


def _unprivileged_user() -> str | None:
    """As whom PostgreSQL is to run, which refuses to be root; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)


def _programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest if there are several."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    return next((folder for folder in folders if all((folder / program).exists() for program in _PROGRAMS)), None)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole run; skips whoever asks for it if there is none."""
    named = os.environ.get("COUNTINGHOUSE_TEST_POSTGRES")
    if named:
        yield PostgresServer(make_url(named).set(drivername="postgresql+asyncpg"))
        return
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL: set COUNTINGHOUSE_TEST_POSTGRES or install initdb, pg_ctl and postgres")
    if os.geteuid() == 0 and _unprivileged_user() is None:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user postgres or nobody to run it as")
    cluster = _Cluster(programs)
    try:
        yield cluster.start()
    finally:
        cluster.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
async def new_database_url(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes empty databases; each call returns the URL of another."""
    made: list[str] = []
    server: PostgresServer | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres_server")

    async def make() -> str:
        name = f"countinghouse_test_{os.getpid()}_{next(_NUMBERS)}"
        if server is None:
            return f"sqlite:///{tmp_path / name}.db"
        made.append(name)
        return await server.create(name)

    yield make
    if server is not None:
        for name in made:
            await server.drop(name)


@pytest.fixture
async def database_url(new_database_url: Callable[[], Awaitable[str]]) -> str:
    """The URL of one empty database."""
    return await new_database_url()


@pytest.fixture
async def fresh_database(new_database_url: Callable[[], Awaitable[str]]) -> AsyncIterator[FreshDatabase]:
    """Makes databases that are migrated for the service in a given folder; closes them when the test ends."""
    async with AsyncExitStack() as stack:

        async def make(package: Path) -> Database:
            database = await stack.enter_async_context(Database(await new_database_url()))
            await bring_up_to_date(database, package, migrate=True)
            return database

        yield make


@pytest.fixture
def service_package(request: pytest.FixtureRequest) -> Path:
    """The folder of the service after which the folder of the test is named."""
    return Path(services.__path__[0]) / request.path.parent.name


@pytest.fixture
async def database(fresh_database: FreshDatabase, service_package: Path) -> Database:
    """One database, migrated for `service_package`."""
    return await fresh_database(service_package)
