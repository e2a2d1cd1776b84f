"""Migrations: a service's database is brought to this version's schema; one that this version does not know is refused.

Each service keeps its revisions under `migrations/versions`; Alembic runs them in one transaction, under a lock, so
that instances may start together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import BigInteger, Boolean, Column, Connection, Integer, LargeBinary, String, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from coordination.files import write_whole
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.sqlite import made_note

#: Any constant: processes that change the schema or the privileges of one PostgreSQL database take turns by it.
ADVISORY_LOCK = 0x636F756E74

log = structlog.get_logger()


async def bring_up_to_date(database: Database, package: Path, *, migrate: bool) -> None:
    """Leave the database at the newest revision of `package`/migrations.

    Args:
        package: Folder of the service.
        migrate: Whether to change the schema; otherwise one that is behind is refused.

    Raises:
        DatabaseRefused: DATABASE_NEWER, DATABASE_BEHIND, DATABASE_FOREIGN or DATABASE_CORRUPT. DATABASE_LOST: it was
            made before, and its file is missing or empty.
    """
    note = made_note(database.file) if database.file is not None else None
    made = note is not None and note.exists()  # read first: another instance may be making it
    if made and database.file is not None and not database.file.exists():
        raise _lost(database.file)
    known = _revisions(package / "migrations" / "versions")
    newest = known[-1]

    async def look(connection: AsyncConnection) -> tuple[str | None, list[str]]:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        if "alembic_version" not in tables:
            return None, tables
        return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none(), tables

    current, tables = await database.inspect_schema(look)
    if current is None and not tables and made and database.file is not None:
        raise _lost(database.file)
    if current == newest:
        _write_note(note)
        return
    if current is not None and current not in known:
        raise DatabaseRefused(
            "DATABASE_NEWER",
            f"{database.name} is at revision {current}, which this version does not know; install the newer version",
        )
    if current is None and tables:
        raise DatabaseRefused(
            "DATABASE_FOREIGN",
            f"{database.name} has tables that are not ours; give {package.name} a database of its own",
        )
    if not migrate:
        raise DatabaseRefused(
            "DATABASE_BEHIND",
            f"{database.name} is at revision {current or 'none'}, not {newest}; "
            f"run `python -m services.{package.name}.main migrate`",
        )

    async def upgrade(connection: AsyncConnection) -> None:
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        await connection.run_sync(_upgrade, package)

    await database.change_schema(upgrade)
    _write_note(note)


def _lost(file: Path) -> DatabaseRefused:
    note = made_note(file)
    return DatabaseRefused(
        "DATABASE_LOST",
        f"{file} was made before and is missing or empty; put it back, or a backup in place of it and of {file}-wal, "
        f"or remove {note} to begin with an empty database",
    )


def _write_note(note: Path | None) -> None:
    """Write down that the database was made; on a full disk the next start does."""
    if note is None or note.exists():
        return
    try:
        write_whole(note, b"The database beside this file was made. Without its file no service starts.\n", mode=0o600)
    except OSError as error:
        log.warning("the note that the database was made cannot be written", note=str(note), why=error.strerror)


def _revisions(folder: Path) -> list[str]:
    """Return the revisions in order: files are named `<revision>_<what>.py`, revisions are numbered."""
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


def _upgrade(connection: Connection, package: Path) -> None:
    from alembic import command  # noqa: PLC0415  0.3 s, and only a database that is behind needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(package / "migrations"))
    command.upgrade(config, "head")


def run_revisions() -> None:
    """Run the migrations; called by each service's `migrations/env.py`."""
    from alembic import context  # noqa: PLC0415

    connection: Any = context.config.attributes["connection"]
    context.configure(connection=connection, transactional_ddl=False, transaction_per_migration=False)
    context.run_migrations()


# What revisions are made of; frozen, like the revisions that call them.


def create_shared_tables() -> None:
    """Create the tables that every service has: `requests` and `ensemble`."""
    from alembic import op  # noqa: PLC0415

    op.create_table(
        "requests",
        Column("caller", String(64), primary_key=True),
        Column("method", String(32), primary_key=True),
        Column("key", String(64), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("fingerprint", String(64), nullable=False),
        Column("attempt", BigInteger, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("lease_until_ms", BigInteger, nullable=False),
        Column("expires_at_ms", BigInteger, nullable=False),
        Column("order_id", String(64), nullable=False),
        Column("response_ok", Boolean, nullable=True),
        Column("response", LargeBinary, nullable=True),
        Column("created_at_ms", BigInteger, nullable=False),
        Column("updated_at_ms", BigInteger, nullable=False),
    )
    op.create_index("requests_by_state", "requests", ["state", "lease_until_ms"])
    op.create_table(
        "ensemble", Column("id", Integer, primary_key=True), Column("generation", BigInteger, nullable=False)
    )


def create_removals() -> None:
    """Create the table that says how far old requests were removed, `runtime/database/retention.py`."""
    from alembic import op  # noqa: PLC0415

    op.create_table(
        "removals", Column("id", Integer, primary_key=True), Column("before_ms", BigInteger, nullable=False)
    )


def add_caller_roles(known: Sequence[str], possible: Mapping[str, Sequence[str]]) -> None:
    """Make the caller's role part of the key of `requests`, whose rows so far have the caller's name only.

    A row is kept under every role that its caller may have had, so that the sender of a request finds it again, and it
    is never executed a second time.

    Args:
        known: SELECTs of caller, method, key, role from rows that tell the role, and from `requests_before` if need be.
            Each is for the requests of which those before it tell nothing.
        possible: For each method the roles that might call it, for the requests of which no row tells.
    """
    from alembic import op  # noqa: PLC0415

    if op.get_bind().dialect.name != "sqlite":  # there the index of a primary key lives in the same space as tables
        op.execute("ALTER TABLE requests RENAME CONSTRAINT requests_pkey TO requests_before_pkey")
    op.rename_table("requests", "requests_before")
    others = (
        *("state", "fingerprint", "attempt", "owner", "lease_until_ms", "expires_at_ms", "order_id"),
        *("response_ok", "response", "created_at_ms", "updated_at_ms"),
    )
    op.create_table(
        "requests",
        Column("caller", String(64), primary_key=True),
        Column("caller_role", String(16), primary_key=True),
        Column("method", String(32), primary_key=True),
        Column("key", String(64), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("fingerprint", String(64), nullable=False),
        Column("attempt", BigInteger, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("lease_until_ms", BigInteger, nullable=False),
        Column("expires_at_ms", BigInteger, nullable=False),
        Column("order_id", String(64), nullable=False),
        Column("response_ok", Boolean, nullable=True),
        Column("response", LargeBinary, nullable=True),
        Column("created_at_ms", BigInteger, nullable=False),
        Column("updated_at_ms", BigInteger, nullable=False),
    )
    by_method = " UNION ALL ".join(
        f"SELECT '{method}' AS method, '{role}' AS role" for method, roles in possible.items() for role in roles
    )
    guesses = f"SELECT r.caller, r.method, r.key, p.role FROM requests_before r JOIN ({by_method}) p USING (method)"  # noqa: S608
    for select in (*known, guesses):
        op.execute(
            f"INSERT INTO requests (caller, caller_role, method, key, {', '.join(others)}) "  # noqa: S608
            f"SELECT r.caller, told.role, r.method, r.key, {', '.join(f'r.{name}' for name in others)} "
            "FROM requests_before r "
            f"JOIN (SELECT DISTINCT caller, method, key, role FROM ({select}) each_one) told "
            "ON told.caller = r.caller AND told.method = r.method AND told.key = r.key "
            "WHERE NOT EXISTS (SELECT 1 FROM requests n "
            "WHERE n.caller = r.caller AND n.method = r.method AND n.key = r.key)"
        )
    op.drop_table("requests_before")
    op.create_index("requests_by_state", "requests", ["state", "lease_until_ms"])


def add_write_probe(table: str = "ensemble") -> None:
    """Add a column to a table of one row, which is written to see whether writing works and takes its space at once."""
    from alembic import op  # noqa: PLC0415

    op.add_column(table, Column("probe", LargeBinary, nullable=True))
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"ALTER TABLE {table} ALTER COLUMN probe SET STORAGE EXTERNAL")


def refuse(table: str, *statements: str) -> None:
    """Create triggers that refuse UPDATE and DELETE on `table` to every role; on PostgreSQL TRUNCATE as well."""
    from alembic import op  # noqa: PLC0415

    if op.get_bind().dialect.name == "sqlite":
        for statement in statements:
            op.execute(
                f"CREATE TRIGGER {table}_refuses_{statement.lower()} BEFORE {statement} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} refuses {statement}'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} refuses %', TG_OP USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_refuses BEFORE {' OR '.join(statements)} ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {table}_refuse()"
    )
    op.execute(
        f"CREATE TRIGGER {table}_refuses_truncate BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_refuse()"
    )
