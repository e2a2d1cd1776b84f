"""Statements as text: lists among their parameters."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    column,
    insert,
    literal,
    or_,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect

from services.runtime.database.statements import Statements

THINGS = Table("things", MetaData(), Column("name", String), Column("size", Integer))
QUERY = select(THINGS).where(
    or_(
        THINGS.c.name.in_(bindparam("names", expanding=True)),
        tuple_(THINGS.c.name, THINGS.c.size).in_(bindparam("pairs", expanding=True)),
    ),
    THINGS.c.size > bindparam("least"),
    THINGS.c.name.in_(["always", "there"]),
    THINGS.c.size != 7,
)


#: As the drivers are used here.
DIALECTS: dict[str, Any] = {"postgresql": postgresql.asyncpg.dialect, "sqlite": sqlite.dialect}


@pytest.mark.parametrize("driver", DIALECTS)
def test_lists_of_any_length_have_their_places(driver: str) -> None:
    """As SQLAlchemy has them; asked twice, the second time from what was kept."""
    dialect: Dialect = DIALECTS[driver]()
    statements = Statements(dialect)
    asked: list[dict[str, Any]] = [
        {"names": names, "pairs": pairs, "least": least}
        for names, pairs, least in (
            (["a", "b"], [("x", 1)], 5),
            (["c"], [("x", 1), ("y", 2), ("z", 3)], 6),
            ([], [("x", 4)], 7),
            (["d", "e"], [("y", 9)], 8),
        )
    ]
    for parameters in [*asked, *reversed(asked)]:
        text, values = statements.compiled(QUERY, parameters).with_values(parameters)
        compiled: Any = QUERY.compile(dialect=dialect, column_keys=list(parameters))
        expected = compiled.construct_expanded_state(parameters)
        assert (text, list(values)) == (expected.statement, list(expected.positional_parameters))


def test_list_is_one_array_on_postgresql() -> None:
    """A statement is prepared once, however long its lists are; the other places keep their numbers."""
    among = select(THINGS.c.name).where(
        or_(THINGS.c.name.in_(bindparam("names", expanding=True)), THINGS.c.size.in_(bindparam("numbers"))),
        THINGS.c.size > bindparam("least"),
    )
    compiled = Statements(DIALECTS["postgresql"]()).compiled(among, ("names", "numbers", "least"))
    for names, numbers in ((["a", "b"], (1,)), ([], (1, 2, 3))):
        text, values = compiled.with_values({"names": names, "numbers": numbers, "least": 5})
        assert text.replace("\n", "") == (
            "SELECT things.name FROM things"
            " WHERE (things.name = ANY ($2::VARCHAR[]) OR things.size = ANY ($3::INTEGER[]))"
            " AND things.size > $1::INTEGER"
        )
        assert list(values) == [5, names, list(numbers)]


def test_insert_of_many_rows_is_one_statement_on_postgresql() -> None:
    returning = postgresql.insert(THINGS).on_conflict_do_nothing().returning(THINGS.c.name)
    compiled = Statements(DIALECTS["postgresql"]()).compiled(returning, ("name", "size"))
    assert compiled.insert_many == (
        "INSERT INTO things (name, size)"
        " SELECT each.p1, each.p2 FROM unnest($1::VARCHAR[], $2::INTEGER[]) AS each (p1, p2)"
        " ON CONFLICT DO NOTHING RETURNING things.name"
    )


def test_insert_of_many_rows_needs_a_parameter_of_a_type_for_each_column() -> None:
    """A column that the statement sets itself, or one of an unknown type, leaves one statement for each row."""
    fixed = insert(THINGS).values(name=literal("a") + bindparam("more"), size=bindparam("size"))
    untyped = insert(table("things", column("name")))
    statements = Statements(DIALECTS["postgresql"]())
    assert statements.compiled(fixed, ("more",)).insert_many is None
    assert statements.compiled(untyped, ("name",)).insert_many is None
    assert statements.compiled(select(THINGS), ()).insert_many is None
