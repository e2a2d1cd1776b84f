"""What a step may do with statements, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, MetaData, String, Table, bindparam, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.sql.dml import Update

import services.payment
from services.payment.schema import OUTBOX
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import insert_each_if_absent
from services.runtime.database.transaction import Parameters, Rows, Transaction
from tests.contract.conftest import FreshDatabase

COLUMNS = OUTBOX.c
INSERT = insert(OUTBOX)
BY_ID = select(OUTBOX).where(COLUMNS.payment_id == bindparam("wanted"))


def delivering() -> Update:
    purposes = [literal("COMPLETE"), literal("RELEASE")]
    is_wanted = (COLUMNS.payment_id == bindparam("wanted"), COLUMNS.purpose.in_(purposes))
    return update(OUTBOX).where(*is_wanted).values(delivered_at_ms=bindparam("at_ms"))


DELIVER = delivering()


@pytest.fixture
async def database(fresh_database: FreshDatabase) -> Database:
    """The payment service's database, with notifications of three payments."""
    database = await fresh_database(Path(services.payment.__file__).parent)
    rows = [row(f"p{number}", purpose) for number in range(3) for purpose in ("COMPLETE", "REOPEN")]
    await database.run(lambda tx: tx.execute_each(INSERT, rows))
    return database


def row(payment_id: str, purpose: str) -> dict[str, Any]:
    return {
        "payment_id": payment_id,
        "purpose": purpose,
        "order_id": "o1",
        "created_at_ms": 2**62,
        "delivered_at_ms": None,
    }


async def test_row_names_its_columns_and_keeps_its_values(database: Database) -> None:
    """By name, by place and in order; None and large numbers stay what they are."""
    first = (await database.select(BY_ID.order_by(COLUMNS.purpose), {"wanted": "p1"})).first()
    assert first is not None
    assert (first.payment_id, first[2], first.created_at_ms, first.delivered_at_ms) == ("p1", "o1", 2**62, None)
    assert tuple(first) == ("p1", "COMPLETE", "o1", 2**62, None)


async def test_each_row_of_parameters_writes_and_answers_by_itself(database: Database) -> None:
    """One that matches nothing answers with no row, and the others are written."""
    returning = delivering().returning(COLUMNS.payment_id)

    async def step(tx: Transaction) -> list[Rows]:
        wanted: list[Parameters] = [{"wanted": name, "at_ms": 7} for name in ("p0", "p9", "p2")]
        return [await tx.execute_each(returning, wanted), await tx.execute_each(DELIVER, wanted)]

    answered, written = await database.run(step)
    assert (answered.scalars(), answered.rowcount) == (["p0", "p2"], 2)
    assert written.all() == []
    delivered = select(COLUMNS.payment_id).where(COLUMNS.delivered_at_ms == 7).order_by(COLUMNS.payment_id)
    assert (await database.select(delivered, {})).scalars() == ["p0", "p2"]


async def test_no_parameters_are_no_statement(database: Database) -> None:
    async def step(tx: Transaction) -> Rows:
        return await tx.execute_each(DELIVER, [])

    assert (await database.run(step)).all() == []


async def test_row_count_is_that_of_the_rows_written(database: Database) -> None:
    async def step(tx: Transaction) -> list[int]:
        return [(await tx.execute(DELIVER, {"wanted": name, "at_ms": 7})).rowcount for name in ("p0", "p9")]

    assert await database.run(step) == [1, 0]


async def test_list_of_parameters_may_have_any_length(database: Database) -> None:
    """The same statement object, with another number of values each time."""
    among = select(COLUMNS.payment_id).distinct().where(COLUMNS.payment_id.in_(bindparam("ids", expanding=True)))
    for ids in (["p0"], ["p0", "p1", "p2"], [], ["p2", "p9"]):
        found = await database.select(among.order_by(COLUMNS.payment_id), {"ids": ids})
        assert found.scalars() == [payment_id for payment_id in ids if payment_id != "p9"]


async def test_rows_that_stand_already_are_left_out_of_an_insert(database: Database) -> None:
    """Those that stand in the table, and those that the same INSERT has named before."""
    rows = [
        row(payment_id, "COMPLETE") | {"created_at_ms": at_ms}
        for at_ms, payment_id in enumerate(["p7", "p1", "p8", "p7"])
    ]
    inserted = await database.run(lambda tx: insert_each_if_absent(tx, OUTBOX, rows))
    assert inserted.all() == [("p7", "COMPLETE"), ("p8", "COMPLETE")]
    assert inserted.rowcount == 2
    assert [one.created_at_ms for one in await database.select(BY_ID, {"wanted": "p7"})] == [0]


async def test_row_that_breaks_a_constraint_undoes_the_whole_step(database: Database) -> None:
    rows = [row("p7", "COMPLETE"), row("p1", "COMPLETE"), row("p8", "COMPLETE")]
    with pytest.raises(IntegrityError):
        await database.run(lambda tx: tx.execute_each(INSERT, rows))
    assert (await database.select(BY_ID, {"wanted": "p7"})).all() == []


@pytest.mark.parametrize("wrong", [{"created_at_ms": 2**63}, {"order_id": "o\ud800"}, {"created_at_ms": "soon"}])
async def test_value_that_cannot_be_stored_undoes_the_whole_step(database: Database, wrong: dict[str, Any]) -> None:
    """With and without RETURNING; the database can be used afterwards."""
    rows = [row(f"p{number}", "COMPLETE") for number in range(7, 12)]
    rows[3] |= wrong
    if database.is_sqlite and wrong == {"created_at_ms": "soon"}:
        return  # SQLite stores any text in any column
    for statement in (INSERT, insert(OUTBOX).returning(COLUMNS.payment_id)):
        with pytest.raises((DBAPIError, OverflowError, UnicodeError)):
            await database.run(lambda tx, statement=statement: tx.execute_each(statement, rows))  # type: ignore[misc]
        assert (await database.select(BY_ID, {"wanted": "p7"})).all() == []


async def test_column_is_named_by_its_key_also_after_an_answer_without_rows(database: Database) -> None:
    renamed = Table("outbox", MetaData(), Column("payment_id", String(64), key="of_payment"))
    query = select(renamed.c.of_payment).where(renamed.c.of_payment == bindparam("wanted")).limit(1)
    assert (await database.select(query, {"wanted": "p9"})).first() is None
    found = (await database.select(query, {"wanted": "p1"})).one()
    assert found.of_payment == "p1"


async def test_more_rows_than_asked_for_are_an_error(database: Database) -> None:
    rows = await database.select(BY_ID, {"wanted": "p1"})
    assert len(rows.all()) == 2
    for ask in (rows.one, rows.one_or_none, rows.scalar_one, rows.scalar_one_or_none):
        with pytest.raises(ValueError, match="2 rows"):
            ask()
    none = await database.select(BY_ID, {"wanted": "p9"})
    assert (none.first(), none.one_or_none(), none.scalar_one_or_none()) == (None, None, None)
    with pytest.raises(ValueError, match="0 rows"):
        none.one()


async def test_text_answers_with_the_names_that_the_server_gives(database: Database) -> None:
    counted = text("SELECT payment_id AS named, COUNT(*) AS many FROM outbox GROUP BY payment_id ORDER BY 1")
    assert (await database.select(counted, {})).mappings() == [
        {"named": f"p{number}", "many": 2} for number in range(3)
    ]


async def test_returning_that_sqlalchemy_would_not_name_is_refused(database: Database) -> None:
    """SQLAlchemy remembers of a statement that was compiled that it returns nothing, also in what is made of it."""
    statement = delivering()
    await database.run(lambda tx: tx.execute(statement, {"wanted": "p1", "at_ms": 7}))
    with pytest.raises(AssertionError, match="new statement"):
        await database.run(lambda tx: tx.execute(statement.returning(COLUMNS.payment_id), {"wanted": "p1", "at_ms": 8}))
