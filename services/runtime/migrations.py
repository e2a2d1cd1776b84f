"""Bringing a service's database to the schema this version knows, and refusing one it does not know.

Each service keeps its revisions under `migrations/versions`; Alembic runs them in one transaction, under a lock, so
that instances may start together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.database import Database, DatabaseRefused

#: Any constant: instances of all services that migrate in one PostgreSQL take turns by it.
_ADVISORY_LOCK = 0x636F756E74


async def bring_up_to_date(database: Database, package: Path, *, migrate: bool) -> None:
    """Leaves the database at the newest revision of `package`/migrations.

    Args:
        package: Folder of the service.
        migrate: Whether to change the schema; otherwise one that is behind is refused.

    Raises:
        DatabaseRefused: DATABASE_NEWER, DATABASE_BEHIND, DATABASE_FOREIGN or DATABASE_CORRUPT.
    """
    known = _revisions(package / "migrations" / "versions")
    newest = known[-1]

    async def look(connection: AsyncConnection) -> tuple[str | None, list[str]]:
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        if "alembic_version" not in tables:
            return None, tables
        return (await connection.execute(text("SELECT version_num FROM alembic_version"))).scalar_one_or_none(), tables

    current, tables = await database.read(look)
    if current == newest:
        return
    if current is not None and current not in known:
        raise DatabaseRefused(
            "DATABASE_NEWER",
            f"{database.name} is at revision {current}, which this version of {package.name} does not know; install the newer version",
        )
    if current is None and tables:
        raise DatabaseRefused(
            "DATABASE_FOREIGN", f"{database.name} has tables that are not ours; give {package.name} a database of its own"
        )
    if not migrate:
        raise DatabaseRefused(
            "DATABASE_BEHIND",
            f"{database.name} is at revision {current or 'none'}, not {newest}; run `python -m services.{package.name}.main migrate`",
        )

    async def upgrade(connection: AsyncConnection) -> None:
        if not database.is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        await connection.run_sync(_upgrade, package)

    await database.run(upgrade)


def _revisions(folder: Path) -> list[str]:
    """The revisions in order: files are named `<revision>_<what>.py`, revisions are numbered."""
    return sorted(path.name.partition("_")[0] for path in folder.glob("[0-9]*.py"))


def _upgrade(connection: Connection, package: Path) -> None:
    from alembic import command  # noqa: PLC0415  0.3 s, and only a database that is behind needs it
    from alembic.config import Config  # noqa: PLC0415

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(package / "migrations"))
    command.upgrade(config, "head")


def run_revisions() -> None:
    """What each service's `migrations/env.py` calls."""
    from alembic import context  # noqa: PLC0415

    connection: Any = context.config.attributes["connection"]
    context.configure(connection=connection, transactional_ddl=False, transaction_per_migration=False)
    context.run_migrations()
