"""Where the services of an embedded stack keep their data: files, or PostgreSQL.

    sqlite                              <data>/<service>.db; each instance brings its schema up to date itself
    postgresql                          a server of the stack's own, under <data>/postgresql
    postgresql://superuser@host/house   one that runs elsewhere; `house` begins the names of its databases and roles

On PostgreSQL everything is as in a deployment: a database, an owner and a role for each service (`postgres_roles.py`),
migrated by its owner before its instances start under the role that may not change the schema. With the guard `unique`
off they run as the owner, since that guard's indexes are dropped at start.

<data>/databases.json holds the URLs of the books, so that a data directory never changes from one kind to the other
unnoticed.
"""

from __future__ import annotations

import asyncio
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from services.devstack.child import Child, Command
from services.devstack.components.component import Component, Context
from services.devstack.components.postgresql import SUPERUSER, PostgreSQL
from services.devstack.files import database_url, databases_elsewhere, remember_databases
from services.devstack.keys import Keys
from services.devstack.options import SQLITE
from services.devstack.state import InstanceState, StackRefused
from services.kernel.guards import Guards
from services.runtime.database.pgpass import Roles

if TYPE_CHECKING:
    from sqlalchemy import URL

HOUSE = "countinghouse"


def check_kind(data: Path, choice: str, services: Sequence[str]) -> None:
    """Refuse a choice of database that is not the one of this data directory.

    Raises:
        StackRefused: DATABASE_OTHER.
    """
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


class Databases(Component):
    """Where each service keeps its data."""

    @abstractmethod
    def settings(self, service: str) -> dict[str, object]:
        """Return the settings by which the instances of a service find their database."""

    def owner_settings(self, service: str) -> dict[str, object]:
        """Return the same, for a job of the owner of its tables."""
        return self.settings(service)


class FileDatabases(Databases):
    """SQLite files in the data directory."""

    async def start(self) -> None:
        """Do nothing: each instance makes its file."""

    def settings(self, service: str) -> dict[str, object]:
        """Return the URL of a file."""
        return {"database_url": database_url(self._context.data, service)}


class ServerDatabases(Databases):
    """Databases on a PostgreSQL server.

    Args:
        server: The stack's own server, or the URL of a superuser of one that runs elsewhere.
        house: What the names of the databases and roles begin with.
        services: Whose databases.
    """

    def __init__(self, context: Context, server: PostgreSQL | URL, house: str, services: Sequence[str]) -> None:
        super().__init__(context)
        self._server = server
        self._house = house
        self._services = tuple(services)
        self._open = False
        self._as_owner = not Guards.without(context.options.guards_off).unique

    async def start(self) -> None:
        """Make what is missing and bring every schema up to date.

        Raises:
            StackRefused: PROCESS_REFUSED: a migration's own last line. DATABASE_REFUSED: the server's message.
        """
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  a stack on files does without

        from services.runtime.database.errors import said  # noqa: PLC0415
        from services.runtime.database.postgres_roles import prepare  # noqa: PLC0415

        if isinstance(self._server, PostgreSQL):
            await self._server.wait_ready()
        every = [self._roles(service) for service in self._services]
        names = {name for roles in every for name in (roles.owner, roles.user, roles.checker)}
        passwords = {name: self._context.keys.password(name) for name in names}
        try:
            await prepare(self._url, self._house, self._services, passwords)
        except (OSError, SQLAlchemyError) as error:
            shown = self._url.render_as_string(hide_password=True)
            raise StackRefused("DATABASE_REFUSED", f"{shown} cannot be used: {said(error)}") from error
        remember_databases(self._context.data, {roles.service: self._url_of(roles, roles.checker) for roles in every})
        await asyncio.gather(*(self._migrate(roles) for roles in every))
        self._open = True

    @property
    def state(self) -> InstanceState:
        """SERVING when the databases are open."""
        return InstanceState.SERVING if self._open else InstanceState.STARTING

    def explain(self) -> str:
        """Return what is not open yet; empty: nothing."""
        return "" if self._open else f"its databases are not open yet, see {self._context.data / 'logs'}"

    def settings(self, service: str) -> dict[str, object]:
        """Return the URL for the role that may not change the schema."""
        roles = self._roles(service)
        return {"database_url": self._url_of(roles, roles.owner if self._as_owner else roles.user), "migrate": False}

    def owner_settings(self, service: str) -> dict[str, object]:
        """Return the URL for the owner of the tables."""
        roles = self._roles(service)
        return {"database_url": self._url_of(roles, roles.owner)}

    @property
    def _url(self) -> URL:
        return self._server.url if isinstance(self._server, PostgreSQL) else self._server

    async def _migrate(self, roles: Roles) -> None:
        settings = {
            "COUNTINGHOUSE_DATABASE_URL": self._url_of(roles, roles.owner),
            "COUNTINGHOUSE_SERVICE_ROLE": roles.user,
            "COUNTINGHOUSE_CHECKER_ROLE": roles.checker,
        }
        arguments = (sys.executable, "-P", "-m", f"services.{roles.service}.main", "migrate")
        log = self._context.data / "logs" / f"{roles.service}-migrate.log"
        child = Child.spawn(Command(arguments, {**self._context.environment, **settings}, log))
        try:
            code = await child.wait()
        finally:
            await child.stop(0)
        if code != 0:
            words = child.last_log_line(f"{roles.service}: ") or f"its migration ended with {code}; see {log}"
            raise StackRefused("PROCESS_REFUSED", words)

    def _roles(self, service: str) -> Roles:
        return Roles(self._house, service)

    def _url_of(self, roles: Roles, role: str) -> str:
        return url_of(self._url, roles, role, self._context.keys).render_as_string()


def url_of(server: URL, roles: Roles, role: str, keys: Keys) -> URL:
    """Return the URL under which a role finds its database on a server, verified as the server's own URL says."""
    from services.runtime.database.postgresql_tls import libpq_parameters  # noqa: PLC0415  as in `start`

    url = server.set(username=role, password=None, database=roles.database)
    return url.set(query={**libpq_parameters(server), "passfile": str(keys.passfile(role))})


def server_and_house(choice: str) -> tuple[URL, str]:
    """Return the server that a URL names, and the prefix of its databases' names."""
    from services.runtime.database.postgresql_tls import parse_url  # noqa: PLC0415  as in `start`

    url = parse_url(choice).set(drivername="postgresql+asyncpg")
    return url.set(database=SUPERUSER), url.database or HOUSE
