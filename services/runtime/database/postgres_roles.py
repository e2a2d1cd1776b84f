"""Roles on a PostgreSQL server: which one owns a service's tables, which one uses them, which one only reads.

| role | used by | may |
|---|---|---|
| `<house>_<service>_owner` | `python -m services.<service>.main migrate`, `prune` | everything in its own database |
| `<house>_<service>` | the service's instances | read and add rows, change rows that may change; no DELETE, no DDL |
| `<house>_checker` | `countinghouse check` | read every table of every database |

Each service has the database `<house>_<service>`, to which no other may connect. The prefix `house` separates
the deployments on one server.

    prepare()   by a superuser, before the first migration; again whenever a service or a password is new
    grant()     by the owner, after every migration

Both are idempotent. Rows that must not change are protected twice: by triggers, which stop the owner too, and by
privileges, which the service's role cannot give itself.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, inspect, make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.kernel.errors import CountinghouseError
from services.runtime.database.database import Database
from services.runtime.database.errors import said
from services.runtime.database.migrations import ADVISORY_LOCK
from services.runtime.database.pgpass import Roles, passwords_in
from services.runtime.database.postgresql_tls import ServerTls

#: What the tables of Alembic and their like are to the service: read-only.
_LOOKED_AT = ("alembic_version",)
_CONNECT_TIMEOUT_S = 10.0
_PRIMARY_WITHIN_S = 90.0
_LOOK_S = 0.5


async def prepare(server: URL, house: str, services: Iterable[str], passwords: Mapping[str, str]) -> None:
    """Make the roles and the databases of these services, with these passwords.

    Args:
        server: Of a superuser, at any database.
        passwords: By role; a role that is not named keeps the one it has, or has none.
    """
    wanted = [Roles(house, service) for service in services]
    async with _administrating(server) as connection:
        names = dict.fromkeys(name for roles in wanted for name in (roles.owner, roles.user, roles.checker))
        for name in names:
            await _make_role(connection, name, passwords.get(name))
        for roles in wanted:
            await _make_database(connection, roles)
    for roles in wanted:
        async with _administrating(server.set(database=roles.database)) as connection:
            await _say(connection, "ALTER SCHEMA public OWNER TO %I", roles.owner)
            await _say(connection, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
            await _say(connection, "GRANT USAGE ON SCHEMA public TO %I, %I", roles.user, roles.checker)


async def grant(database: Database, append_only: Iterable[str], *, user: str, checker: str) -> None:
    """Give the roles what they need of every table there is, and take from them what they do not need.

    Args:
        database: Connected to as the owner.
        append_only: Tables of which no row may be changed.
        user: The role of the service; empty: none.
        checker: The role that only reads; empty: none.
    """
    fixed = {*append_only, *_LOOKED_AT}

    async def step(connection: AsyncConnection) -> None:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        tables = sorted(await connection.run_sync(lambda sync: inspect(sync).get_table_names()))
        missing = fixed - set(tables)
        if missing:
            raise AssertionError(f"there is no table {', '.join(sorted(missing))} to be protected")
        for role in filter(None, (user, checker)):
            await _say(connection, "REVOKE ALL ON ALL TABLES IN SCHEMA public FROM %I", role)
            await _say(connection, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO %I", role)
        if user:
            await _say(connection, "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO %I", user)
            for table in tables:
                if table not in _LOOKED_AT:
                    await _say(connection, "GRANT INSERT ON TABLE %I TO %I", table, user)
                if table not in fixed:
                    await _say(connection, "GRANT UPDATE ON TABLE %I TO %I", table, user)

    await database.change_schema(step)


async def primary_of(servers: Sequence[URL], within_s: float = _PRIMARY_WITHIN_S) -> URL:
    """Return the server that is the primary, once one is.

    Raises:
        CountinghouseError: DATABASE_NO_PRIMARY: none was, for so many seconds.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                for server in servers:
                    with suppress(OSError, SQLAlchemyError):
                        async with _administrating(server) as connection:
                            if not (await connection.execute(text("SELECT pg_is_in_recovery()"))).scalar_one():
                                return server
                await asyncio.sleep(_LOOK_S)
    raise CountinghouseError("DATABASE_NO_PRIMARY", f"none of {len(servers)} servers is the primary; see their logs")


async def _make_role(connection: AsyncConnection, name: str, password: str | None) -> None:
    if not await _found(connection, "SELECT 1 FROM pg_roles WHERE rolname = :name", name):
        await _say(connection, "CREATE ROLE %I", name)
    await _say(connection, "ALTER ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION", name)
    if password is not None:
        await _say(connection, "ALTER ROLE %I PASSWORD %L", name, password)


async def _make_database(connection: AsyncConnection, roles: Roles) -> None:
    if not await _found(connection, "SELECT 1 FROM pg_database WHERE datname = :name", roles.database):
        await _say(
            connection, "CREATE DATABASE %I OWNER %I TEMPLATE template0 ENCODING 'UTF8'", roles.database, roles.owner
        )
    await _say(connection, "ALTER DATABASE %I OWNER TO %I", roles.database, roles.owner)
    await _say(connection, "REVOKE ALL ON DATABASE %I FROM PUBLIC", roles.database)
    await _say(connection, "GRANT CONNECT ON DATABASE %I TO %I, %I", roles.database, roles.user, roles.checker)


@asynccontextmanager
async def _administrating(server: URL) -> AsyncIterator[AsyncConnection]:
    tls = ServerTls(server)
    arguments = {"timeout": _CONNECT_TIMEOUT_S, **tls.connect_args()}
    engine = create_async_engine(tls.url, isolation_level="AUTOCOMMIT", connect_args=arguments)
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


async def _found(connection: AsyncConnection, query: str, name: str) -> bool:
    return (await connection.execute(text(query), {"name": name})).first() is not None


async def _say(connection: AsyncConnection, statement: str, *names: str) -> None:
    """Execute a statement that takes no parameters: the server's own `format` quotes the names in it."""
    values = {f"n{place}": name for place, name in enumerate(names)}
    listed = "".join(f", CAST(:{name} AS text)" for name in values)
    query = text(f"SELECT format(CAST(:statement AS text){listed})")
    quoted = (await connection.execute(query, {"statement": statement, **values})).scalar_one()
    await connection.exec_driver_sql(quoted)


def main() -> None:
    """`python -m services.runtime.database.postgres_roles --server URL --passfile FILE SERVICE…`: as `prepare`.

    With several `--server`, on the one of them that is the primary.
    """
    parser = argparse.ArgumentParser(
        prog="python -m services.runtime.database.postgres_roles", description=prepare.__doc__
    )
    parser.add_argument(
        "--server", required=True, action="append", help="postgresql+asyncpg://superuser@host/postgres; may be repeated"
    )
    parser.add_argument("--passfile", required=True, type=Path, help="the password of each role, as in ~/.pgpass")
    parser.add_argument("--house", default="countinghouse", help="what all names begin with")
    parser.add_argument("services", nargs="+", metavar="SERVICE")
    given = parser.parse_args()
    try:
        passwords = passwords_in(given.passfile.read_text())
        asyncio.run(_prepare_primary(list(map(make_url, given.server)), given.house, given.services, passwords))
    except (OSError, SQLAlchemyError, CountinghouseError) as error:
        print(f"roles: {said(error)}", file=sys.stderr)  # noqa: T201  the last line of a program
        raise SystemExit(1) from error


async def _prepare_primary(
    servers: Sequence[URL], house: str, services: Iterable[str], passwords: Mapping[str, str]
) -> None:
    server = await primary_of(servers) if len(servers) > 1 else servers[0]
    await prepare(server, house, services, passwords)


if __name__ == "__main__":
    main()
