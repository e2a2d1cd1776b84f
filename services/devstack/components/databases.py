"""Where the services of an embedded stack keep their data: files, or PostgreSQL.

    sqlite                              <data>/<service>.db; each instance brings its schema up to date itself
    postgresql                          a server of the stack's own, under <data>/postgresql
    postgresql://superuser@host/house   one that runs elsewhere; `house` begins the names of its databases and roles

On PostgreSQL everything is as in a deployment: a database, an owner and a role for each service (`postgres_roles.py`),
migrated by its owner before its instances start under the role that may not change the schema. With the guard `unique`
off they run as the owner, since that guard's indexes are dropped at start.

<data>/databases.json says where the books are, so that a data directory never changes from one kind to the other
unnoticed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.devstack.child import Child, Command
from services.devstack.components.postgresql import SUPERUSER
from services.devstack.files import database_url, databases_elsewhere, remember_databases
from services.devstack.keys import Keys
from services.devstack.state import StackRefused
from services.kernel.errors import InvalidArgument
from services.runtime.database.pgpass import Roles

if TYPE_CHECKING:
    from sqlalchemy import URL

SQLITE, POSTGRESQL = "sqlite", "postgresql"
HOUSE = "countinghouse"
_SCHEMES = ("postgresql", "postgresql+asyncpg")


def check_choice(choice: str) -> None:
    """Raises InvalidArgument if `choice` is none of the module's list."""
    if choice in (SQLITE, POSTGRESQL):
        return
    if choice.partition("://")[0] not in _SCHEMES or "@" not in choice:  # a URL may hold a password: not repeated
        raise InvalidArgument(
            "DATABASE_UNKNOWN", "a database is sqlite, postgresql, or like postgresql://superuser@host:5432/house"
        )


def check_kind(data: Path, choice: str, services: Sequence[str]) -> None:
    """Raises StackRefused: DATABASE_OTHER: the books of this data directory are kept in the other way."""
    elsewhere = bool(set(services) & databases_elsewhere(data).keys())
    files = any((data / f"{service}.db").exists() for service in services)
    if elsewhere and choice == SQLITE:
        raise StackRefused(
            "DATABASE_OTHER", f"the books of {data} are in PostgreSQL; give --database as before, or another --data"
        )
    if files and choice != SQLITE:
        raise StackRefused(
            "DATABASE_OTHER", f"the books of {data} are in SQLite files; leave --database out, or name another --data"
        )


class FileDatabases:
    """SQLite files in the data directory."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def settings(self, service: str) -> dict[str, object]:
        """What the instances of a service are to be told."""
        return {"database_url": database_url(self._data, service)}

    def owner_settings(self, service: str) -> dict[str, object]:
        """The same, for a job of the owner of its tables."""
        return self.settings(service)


class ServerDatabases:
    """Databases on a PostgreSQL server, prepared by `open`.

    Args:
        server: URL of a superuser.
        owned: Whether the services run as the owners of their tables.
    """

    def __init__(self, data: Path, keys: Keys, server: URL, house: str, *, owned: bool) -> None:
        self._data = data
        self._keys = keys
        self._server = server
        self._house = house
        self._owned = owned

    def settings(self, service: str) -> dict[str, object]:
        """What the instances of a service are to be told."""
        roles = self._roles(service)
        return {"database_url": self._url(roles, roles.owner if self._owned else roles.user), "migrate": False}

    def owner_settings(self, service: str) -> dict[str, object]:
        """The same, for a job of the owner of its tables."""
        roles = self._roles(service)
        return {"database_url": self._url(roles, roles.owner)}

    async def open(self, services: Sequence[str], environment: Mapping[str, str]) -> None:
        """Makes what is missing and brings every schema up to date.

        Raises:
            StackRefused: PROCESS_REFUSED: a migration's own last line. DATABASE_REFUSED: the server's words.
        """
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  a stack on files does without

        from services.runtime.database.errors import said  # noqa: PLC0415
        from services.runtime.database.postgres_roles import prepare  # noqa: PLC0415

        every = [self._roles(service) for service in services]
        names = {name for roles in every for name in (roles.owner, roles.user, roles.checker)}
        try:
            await prepare(self._server, self._house, services, {name: self._keys.password(name) for name in names})
        except (OSError, SQLAlchemyError) as error:
            shown = self._server.render_as_string(hide_password=True)
            raise StackRefused("DATABASE_REFUSED", f"{shown} cannot be used: {said(error)}") from error
        remember_databases(self._data, {roles.service: self._url(roles, roles.checker) for roles in every})
        await asyncio.gather(*(self._migrate(roles, environment) for roles in every))

    async def _migrate(self, roles: Roles, environment: Mapping[str, str]) -> None:
        settings = {
            "COUNTINGHOUSE_DATABASE_URL": self._url(roles, roles.owner),
            "COUNTINGHOUSE_SERVICE_ROLE": roles.user,
            "COUNTINGHOUSE_CHECKER_ROLE": roles.checker,
        }
        arguments = (sys.executable, "-P", "-m", f"services.{roles.service}.main", "migrate")
        log = self._data / "logs" / f"{roles.service}-migrate.log"
        child = Child.spawn(Command(arguments, {**environment, **settings}, log))
        try:
            code = await child.wait()
        finally:
            await child.stop(0)
        if code != 0:
            words = child.last_log_line(f"{roles.service}: ") or f"its migration ended with {code}; see {log}"
            raise StackRefused("PROCESS_REFUSED", words)

    def _roles(self, service: str) -> Roles:
        return Roles(self._house, service)

    def _url(self, roles: Roles, role: str) -> str:
        url = self._server.set(username=role, password=None, database=roles.database)
        return url.set(query={"passfile": str(self._keys.passfile(role))}).render_as_string()


def server_and_house(choice: str) -> tuple[URL, str]:
    """The server that a URL names, and what the names of its databases are to begin with."""
    from sqlalchemy import make_url  # noqa: PLC0415

    url = make_url(choice).set(drivername="postgresql+asyncpg")
    return url.set(database=SUPERUSER), url.database or HOUSE
