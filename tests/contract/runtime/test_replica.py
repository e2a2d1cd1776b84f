"""PostgreSQL servers of which none is the primary, as between the death of one and the promotion of another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.kernel.errors import Unavailable
from services.order.schema import ENSEMBLE
from services.runtime.database.database import Database, write_generation
from tests.postgresql import PostgresServer, replica


@pytest.fixture(scope="module")
def own_replica() -> Iterator[PostgresServer]:
    with replica() as running:
        yield running


def of_two(server: PostgresServer) -> str:
    """The URL of a database of two servers, both of which are this one."""
    place = f"{server.url.host}:{server.url.port}"
    return f"postgresql+asyncpg://postgres@/postgres?host={place}&host={place}"


async def test_database_without_a_primary_is_away(own_replica: PostgresServer) -> None:
    """A caller tries again, as with a server that is down: by then one of them may be the primary."""
    async with Database(of_two(own_replica)) as database:
        with pytest.raises(Unavailable) as refused:
            await database.ping()
        assert refused.value.reason == "DATABASE_UNAVAILABLE"
        with pytest.raises(Unavailable) as refused:
            await write_generation(database, ENSEMBLE, 7)
        assert refused.value.reason == "DATABASE_UNAVAILABLE"


async def test_migrations_without_a_primary_find_the_database_away(own_replica: PostgresServer) -> None:
    """They connect in another way."""
    async with Database(of_two(own_replica)) as database:
        with pytest.raises(Unavailable) as refused:
            await database.change_schema(write_nothing)
    assert refused.value.reason == "DATABASE_UNAVAILABLE"


async def write_nothing(_: object) -> None:
    raise AssertionError("there is no primary to write to")
