"""Archives of PostgreSQL databases that hold the state of one moment, made by pg_dump beside the services' writes.

A snapshot of PostgreSQL is one database's. So for a moment every table of every database is locked against writing, a
snapshot is exported from each (`pg_export_snapshot`), and the locks are given up; pg_dump then reads those snapshots.
What the archives hold is what `kill -9` of every process at that moment would have left.

The locks are waited for and held for a shorter time in all than PostgreSQL lets pass before it looks for deadlocks, so
that no transaction of a service is ended for one; taking them is tried again instead.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from string import ascii_lowercase

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from services.devstack.components.postgresql import PostgresqlMissing
from services.devstack.state import StackFailed
from services.kernel.errors import Unavailable
from services.runtime.database.postgresql_tls import ServerTls, libpq_parameters

#: Less than PostgreSQL's deadlock_timeout, a second: for one lock, and for all of them.
_LOCK_TIMEOUT_MS = 300
_LOCKS_TIMEOUT_S = 0.8
_LOCK_ATTEMPTS = 20
_LOCK_PAUSE_S = 0.2
_LOCK_NOT_AVAILABLE = "55P03"
_CONNECT_TIMEOUT_S = 10
#: PostgreSQL cuts longer names off.
_MAX_NAME = 63
#: Keeps every write out until the transaction ends. Reads go on, those that lock rows as well.
_MODE = "SHARE"
_TABLES = text(
    "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename"
)


async def dump(
    databases: Mapping[Path, URL],
    environment: Mapping[str, str],
    now_ms: Callable[[], int],
    dumped: Callable[[Path], None],
) -> int:
    """Write archives of databases; return the moment whose state they hold, Unix milliseconds.

    Args:
        databases: By the file of its archive, the URL of a database's owner, with `?passfile=…`.
        now_ms: Called while nothing can be written; returns that moment.
        dumped: Called with a file when it is on the disk.

    Raises:
        PostgresqlMissing: This machine has no pg_dump.
        Unavailable: DATABASE_BUSY: the tables could not be locked.
        StackFailed: ARCHIVE_FAILED, with pg_dump's last line.
        SQLAlchemyError, OSError: A database cannot be reached.
    """
    async with AsyncExitStack() as readers:
        connections = {file: await _connect(url, readers) for file, url in databases.items()}
        program = find_program("pg_dump", environment, _major_version(next(iter(connections.values()))))
        snapshots, moment_ms = await _snapshots(databases, connections, now_ms)
        for file, snapshot in snapshots.items():
            options = ("--format=custom", "--no-owner", "--no-acl", f"--snapshot={snapshot}", f"--file={file}")
            await _run(program, environment, *options, f"--dbname={_conninfo(databases[file])}")
            _sync(file)
            dumped(file)
    return moment_ms


async def load(archive: Path, database: URL, environment: Mapping[str, str]) -> None:
    """Load an archive into an empty database, all of it or nothing.

    Args:
        database: The URL of its owner.

    Raises:
        PostgresqlMissing, StackFailed, SQLAlchemyError, OSError: As `dump`.
    """
    async with AsyncExitStack() as resources:
        major = _major_version(await _connect(database, resources))
    program = find_program("pg_restore", environment, major)
    options = ("--no-owner", "--no-acl", "--single-transaction", "--exit-on-error")
    await _run(program, environment, *options, f"--dbname={_conninfo(database)}", str(archive))


async def set_aside(server: URL, names: Sequence[str], suffix: str) -> list[str]:
    """Rename those of the named databases that there are; return their new names.

    Args:
        server: Of a superuser.
    """
    renamed = []
    async with AsyncExitStack() as resources:
        connection = await _connect(server, resources, isolation_level="AUTOCOMMIT")
        quote = connection.dialect.identifier_preparer.quote
        for name in names:
            found = text("SELECT 1 FROM pg_database WHERE datname = :name")
            if (await connection.execute(found, {"name": name})).first() is not None:
                new = await _unused(connection, f"{name[: _MAX_NAME - len(suffix) - 2]}{suffix}")
                await connection.exec_driver_sql(f"ALTER DATABASE {quote(name)} RENAME TO {quote(new)}")
                renamed.append(new)
    return renamed


async def _unused(connection: AsyncConnection, name: str) -> str:
    """Return a name of a database that there is not: this one, or with a letter behind it after an earlier try."""
    taken = (await connection.execute(text("SELECT datname FROM pg_database"))).scalars().all()
    return next(new for new in (name, *(f"{name}_{letter}" for letter in ascii_lowercase)) if new not in taken)


def find_program(name: str, environment: Mapping[str, str], major: int, root: Path = Path("/")) -> str:
    """Return PostgreSQL's program of this name: the server's own version, else the newest, else that on PATH.

    Raises:
        PostgresqlMissing: There is none, or only older ones, which refuse the server.
    """
    found = {int(path.parts[-3]): path for path in root.glob(f"usr/lib/postgresql/[0-9]*/bin/{name}")}
    for version in (major, max(found, default=0)):
        if version >= major and version in found:
            return str(found[version])
    if on_path := shutil.which(name, path=environment.get("PATH", "")):
        return on_path
    raise PostgresqlMissing(
        "POSTGRESQL_MISSING", f"there is no {name} of PostgreSQL {major} or newer: `apt install postgresql-client`"
    )


async def _snapshots(
    databases: Mapping[Path, URL], readers: Mapping[Path, AsyncConnection], now_ms: Callable[[], int]
) -> tuple[dict[Path, str], int]:
    """Export a snapshot from each reader's transaction, all of one moment, in which nothing is being written."""
    for _ in range(_LOCK_ATTEMPTS):
        async with AsyncExitStack() as locks:
            try:
                connections = [await _connect(url, locks) for url in databases.values()]
                async with asyncio.timeout(_LOCKS_TIMEOUT_S):
                    for connection in connections:
                        await _lock(connection)
            except TimeoutError:
                pass
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", "") != _LOCK_NOT_AVAILABLE:
                    raise
            else:
                export = text("SELECT pg_export_snapshot()")
                found = {file: str((await each.execute(export)).scalar_one()) for file, each in readers.items()}
                return found, now_ms()
        await asyncio.sleep(_LOCK_PAUSE_S)
    raise Unavailable("DATABASE_BUSY", "the tables could not be locked: other transactions stay open; try again")


async def _lock(connection: AsyncConnection) -> None:
    """Lock every table against writing, until the connection is closed."""
    await connection.exec_driver_sql(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
    tables = (await connection.execute(_TABLES)).scalars().all()
    await connection.exec_driver_sql(f"LOCK TABLE {', '.join(tables)} IN {_MODE} MODE")


async def _connect(url: URL, resources: AsyncExitStack, isolation_level: str = "REPEATABLE READ") -> AsyncConnection:
    tls = ServerTls(url)
    engine = create_async_engine(
        tls.url,
        isolation_level=isolation_level,
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={"timeout": _CONNECT_TIMEOUT_S, **tls.connect_args()},
    )
    resources.push_async_callback(engine.dispose)
    return await resources.enter_async_context(engine.connect())


def _major_version(connection: AsyncConnection) -> int:
    """Return the server's major version, which was asked for when the connection was opened."""
    return int((connection.dialect.server_version_info or (0,))[0])


def _conninfo(url: URL) -> str:
    """Return a URL as libpq's keywords and values. A password in it is left out: other users see the arguments."""
    values = {
        "host": url.host or url.query.get("host"),
        "port": url.port,
        "dbname": url.database,
        "user": url.username,
        "passfile": url.query.get("passfile"),
        "connect_timeout": _CONNECT_TIMEOUT_S,
        **libpq_parameters(url),
    }
    if "sslrootcert" in values and values["host"] == "127.0.0.1":
        # libpq finds an address in a certificate since version 15, and a name since ever.
        values |= {"host": "localhost", "hostaddr": "127.0.0.1"}
    return " ".join(f"{name}='{_escaped(str(value))}'" for name, value in values.items() if value)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")


async def _run(program: str, environment: Mapping[str, str], *arguments: str) -> None:
    """Run one of PostgreSQL's programs to its end; it is killed if we are cancelled."""
    own = {name: value for name, value in environment.items() if not name.startswith("PG")}
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=own | {"PGOPTIONS": "-c statement_timeout=0"},
    )
    try:
        _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise StackFailed("ARCHIVE_FAILED", f"{Path(program).name} failed: {lines[-1]}")


def _sync(file: Path) -> None:
    file.chmod(0o600)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
