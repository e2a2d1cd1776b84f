"""Databases for the contract tests: each test runs on SQLite, and on PostgreSQL when one is at hand.

On PostgreSQL a migrated database is what a deployment has: a store works under the service's own role, which may change
no schema and no journal. `owner_of` gives the connection of who may.

A folder of tests uses `database`, the migrated database of the service it is named after, or `fresh_database`, which
makes as many as a test wants.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import services
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from tests.postgresql import PostgresServer, server

FreshDatabase = Callable[[Path], Awaitable[Database]]
OwnerOf = Callable[[Database], Database]
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole run; skips whoever asks for it if there is none."""
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def server_or_none(request: pytest.FixtureRequest) -> PostgresServer | None:
    """The PostgreSQL; None: this is the run on SQLite."""
    return request.getfixturevalue("postgres_server") if request.param == "postgresql" else None


@pytest.fixture
async def new_database_url(
    server_or_none: PostgresServer | None, tmp_path: Path
) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Makes empty databases; each call returns the URL of another."""
    made: list[str] = []

    async def make() -> str:
        if server_or_none is None:
            return f"sqlite:///{tmp_path / f'test{next(_NUMBERS)}'}.db"
        made.append(await server_or_none.create())
        return made[-1]

    yield make
    if server_or_none is not None:
        for url in made:
            await server_or_none.drop(url)


@pytest.fixture
async def database_url(new_database_url: Callable[[], Awaitable[str]]) -> str:
    """The URL of one empty database."""
    return await new_database_url()


@pytest.fixture
async def _owners(server_or_none: PostgresServer | None) -> AsyncIterator[dict[str, Database]]:
    """The databases on PostgreSQL, as their owners see them, by the URL of who works with them."""
    owners: dict[str, Database] = {}
    yield owners
    for owner in owners.values():
        await owner.close()
        if server_or_none is not None:
            await server_or_none.drop(owner.url)


@pytest.fixture(scope="session")
def _sqlite_templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the migrated databases on SQLite lie that those of the tests are copies of."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
async def fresh_database(
    server_or_none: PostgresServer | None,
    new_database_url: Callable[[], Awaitable[str]],
    _owners: dict[str, Database],
    _sqlite_templates: Path,
) -> AsyncIterator[FreshDatabase]:
    """Makes databases that are migrated for the service in a given folder; closes them when the test ends."""
    async with AsyncExitStack() as stack:

        async def make(package: Path) -> Database:
            if server_or_none is not None:
                url, owner = await server_or_none.migrated(package)
                _owners[url] = Database(owner)
                return await stack.enter_async_context(Database(url))
            database = await stack.enter_async_context(Database(await new_database_url()))
            template = _sqlite_templates / f"{package.name}.db"
            if not template.exists():
                async with Database(f"sqlite:///{template}") as migrated:
                    await bring_up_to_date(migrated, package, migrate=True)
            assert database.file is not None
            shutil.copyfile(template, database.file)
            await bring_up_to_date(database, package, migrate=False)
            return database

        yield make


@pytest.fixture
def owner_of(_owners: dict[str, Database]) -> OwnerOf:
    """The same database under the role that owns its tables; on SQLite whoever has the file does."""
    return lambda database: _owners.get(database.url, database)


@pytest.fixture
def owner(database: Database, owner_of: OwnerOf) -> Database:
    """`database` under the role that owns its tables."""
    return owner_of(database)


@pytest.fixture
def service_package(request: pytest.FixtureRequest) -> Path:
    """The folder of the service after which the folder of the test is named."""
    return Path(services.__path__[0]) / request.path.parent.name


@pytest.fixture
async def database(fresh_database: FreshDatabase, service_package: Path) -> Database:
    """One database, migrated for `service_package`."""
    return await fresh_database(service_package)
