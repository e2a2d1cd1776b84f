"""On PostgreSQL: what the role of a service may not do, and what the checker's may."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

import services
from services.devstack.state import ACQUIRER
from services.runtime.cluster_member import Service
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.pgpass import Roles, passfile_line, passwords_in
from services.runtime.database.postgres_roles import grant, prepare
from services.runtime.database.transaction import Transaction
from tests.architecture.code import SERVICES
from tests.postgresql import PostgresServer


@dataclass(frozen=True, slots=True)
class Seen:
    """One database as its three roles see it."""

    service: Service
    user: Database
    owner: Database
    checker: Database
    roles: Roles


@pytest.fixture(params=(*SERVICES, ACQUIRER))
async def seen(request: pytest.FixtureRequest, postgres_server: PostgresServer) -> AsyncIterator[Seen]:
    package = Path(services.__path__[0]) / request.param
    user, owner = await postgres_server.migrated(package)
    roles = Roles(postgres_server.house, request.param)
    checker = make_url(owner).set(username=roles.checker).render_as_string(hide_password=False)
    service: Service = import_module(f"services.{request.param}.main").SERVICE
    async with Database(user) as one, Database(owner) as two, Database(checker) as three:
        yield Seen(service, one, two, three, roles)
    await postgres_server.drop(user)


async def say(database: Database, statement: str) -> None:
    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    await database.run(step)


async def privileges(seen: Seen, role: str) -> dict[str, set[str]]:
    """What a role may do with each table."""
    kinds = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")

    async def step(tx: Transaction) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        tables = (await tx.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).scalars()
        for table in list(tables):
            asked = ", ".join(f"has_table_privilege(:role, :table, '{kind}')" for kind in kinds)
            row = (await tx.execute(text(f"SELECT {asked}"), {"role": role, "table": table})).one()
            found[table] = {kind for kind, may in zip(kinds, row, strict=True) if may}
        return found

    return await seen.owner.read(step)


async def test_service_may_delete_nothing_and_change_only_what_may_change(seen: Seen) -> None:
    """Every table there is, those to come included."""
    fixed = {table.name for table in seen.service.append_only}
    assert fixed
    for table, may in (await privileges(seen, seen.roles.user)).items():
        wanted = {"SELECT"}
        if table != "alembic_version":
            wanted |= {"INSERT"} if table in fixed else {"INSERT", "UPDATE"}
        assert may == wanted, table


async def test_checker_role_reads_everything_and_writes_nothing(seen: Seen) -> None:
    assert {frozenset(may) for may in (await privileges(seen, seen.roles.checker)).values()} == {frozenset({"SELECT"})}


@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}"])
async def test_append_only_table_is_not_changed_by_the_service_role(seen: Seen, statement: str) -> None:
    """It is refused before any trigger is asked, also where the triggers are gone."""
    for table in seen.service.append_only:
        column = table.columns[0].name
        await say(seen.owner, f"ALTER TABLE {table.name} DISABLE TRIGGER USER")
        with pytest.raises(DatabaseRefused, match=f"permission denied for table {table.name}") as refusal:
            await say(seen.user, statement.format(table.name, column, column))
        assert refusal.value.reason == "DATABASE_FORBIDDEN"


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE theirs (id INTEGER)",
        "CREATE TEMPORARY TABLE theirs (id INTEGER)",
        "CREATE SCHEMA theirs",
        "ALTER TABLE {table} ADD COLUMN theirs INTEGER",
        "ALTER TABLE {table} DISABLE TRIGGER USER",
        "DROP TABLE {table}",
        "DROP INDEX {table}_pkey",
        "CREATE INDEX theirs ON {table} ({column})",
        "CREATE FUNCTION theirs() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "UPDATE alembic_version SET version_num = '0000'",
        "SET ROLE {owner}",
        "SET SESSION AUTHORIZATION {owner}",
    ],
)
async def test_neither_the_service_nor_the_checker_changes_the_schema(seen: Seen, statement: str) -> None:
    table = seen.service.append_only[0]
    names = {"owner": seen.roles.owner, "table": table.name, "column": table.columns[0].name}
    for database in (seen.user, seen.checker):
        with pytest.raises(DatabaseRefused) as refusal:
            await say(database, statement.format(**names))
        assert refusal.value.reason == "DATABASE_FORBIDDEN"


async def test_service_does_not_get_into_the_database_of_another(seen: Seen, postgres_server: PostgresServer) -> None:
    """Nor does its owner; the checker gets into all."""
    name = next(name for name in SERVICES if name != seen.service.name)
    await prepare(postgres_server.url, seen.roles.house, [name], {})
    other = make_url(seen.user.url).set(database=Roles(seen.roles.house, name).database)
    for role in (seen.roles.user, seen.roles.owner):
        async with Database(other.set(username=role).render_as_string(hide_password=False)) as database:
            with pytest.raises(DatabaseRefused, match="permission denied for database"):
                await database.ping()
    async with Database(other.set(username=seen.roles.checker).render_as_string(hide_password=False)) as database:
        await database.ping()


async def test_preparing_and_granting_may_be_repeated(seen: Seen, postgres_server: PostgresServer) -> None:
    """A password given anew is the one that counts, and a privilege that somebody added is taken away again."""
    password = "SELECT rolpassword FROM pg_authid WHERE rolname = :role"

    async def read(tx: Transaction) -> str:
        return str((await tx.execute(text(password), {"role": seen.roles.user})).scalar_one())

    before = await privileges(seen, seen.roles.user)
    append_only = [table.name for table in seen.service.append_only]
    await say(seen.owner, f"GRANT UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {seen.roles.user}")
    superuser = postgres_server.url.render_as_string(hide_password=False)
    async with Database(superuser) as server:
        first = await server.read(read)
        await prepare(postgres_server.url, seen.roles.house, [seen.service.name], {seen.roles.user: "it's \\new:%s"})
        second = await server.read(read)
        await prepare(postgres_server.url, seen.roles.house, [seen.service.name], {})
        third = await server.read(read)
    assert first != second == third
    await grant(seen.owner, append_only, user=seen.roles.user, checker=seen.roles.checker)
    assert await privileges(seen, seen.roles.user) == before


async def test_table_that_is_not_there_cannot_be_protected(seen: Seen) -> None:
    """A name that was mistyped would leave a table open."""
    with pytest.raises(AssertionError, match="journal_s"):
        await grant(seen.owner, ["journal_s"], user=seen.roles.user, checker="")


def test_passfile_holds_each_roles_password() -> None:
    lines = passfile_line("one", "pw_1") + "\n# of nobody\n" + passfile_line("two", "pw_2")
    assert passwords_in(lines) == {"one": "pw_1", "two": "pw_2"}
