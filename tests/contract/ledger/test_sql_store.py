"""The ledger store on SQLite and PostgreSQL: the suite, and what only a database can be asked."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Select, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

import services.ledger
from services.kernel.errors import CountinghouseError
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.ledger.chain import ChainReport
from services.ledger.model import NO_HASH, Account, AccountKind, Leg, Posted, house_accounts
from services.ledger.ports import JournalFilter
from services.ledger.schema import METADATA, ORDER_FENCES
from services.ledger.store import SqlLedgerStore, journals_of
from services.ledger.trial import rows_of
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf
from tests.contract.ledger.store_contract import (
    NOW_MS,
    WALLET,
    LedgerStoreContract,
    Make,
    balance,
    close_account,
    draft,
    entry,
    open_account,
    operations,
    post,
    posted,
    top_up,
)

PACKAGE = Path(services.ledger.__file__).parent
TABLES = ("journals", "postings", "refusals", "accounts")


@pytest.fixture
def make(fresh_database: FreshDatabase, owner_of: OwnerOf) -> Make:
    """Stores on empty, migrated databases; without the guard `unique` under their owner, who may drop its indexes."""

    async def make(guards: Guards) -> SqlLedgerStore:
        database = await fresh_database(PACKAGE)
        store = SqlLedgerStore(database if guards.unique else owner_of(database), guards)
        await store.prepare()
        return store

    return make


class TestSqlLedgerStore(LedgerStoreContract):
    """The suite on the databases."""


@pytest.fixture
async def store(database: Database) -> SqlLedgerStore:
    """A store with the house accounts open."""
    store = SqlLedgerStore(database, Guards())
    await store.prepare()
    await store.open_missing(house_accounts(("CNY",), NOW_MS))
    return store


async def execute(database: Database, *statements: str, **values: str | int) -> None:
    """Does behind the store's back what it is told; `:name` in a statement stands for a value."""

    async def step(tx: Transaction) -> None:
        for statement in statements:
            named = {name: value for name, value in values.items() if f":{name}" in statement}
            await tx.execute(text(statement), named)

    await database.run(step)


async def disarm(database: Database) -> None:
    """Drops the triggers, as somebody would who wants to cook the books."""
    if not database.is_sqlite:
        await execute(database, *(f"ALTER TABLE {table} DISABLE TRIGGER USER" for table in TABLES))
        return

    async def names(tx: Transaction) -> list[str]:
        return list((await tx.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'"))).scalars())

    await execute(database, *(f"DROP TRIGGER {name}" for name in await database.read(names)))


# The schema


async def test_migrations_make_the_tables_the_store_knows(database: Database) -> None:
    """Alembic finds no difference between a migrated database and schema.py."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async def step(connection: AsyncConnection) -> list[object]:
        return await connection.run_sync(differences)

    assert await database.inspect_schema(step) == []


async def test_migrating_again_changes_nothing(database: Database, store: SqlLedgerStore) -> None:
    """A restart finds its books as they were."""
    await posted(store, draft())
    await bring_up_to_date(database, PACKAGE, migrate=True)
    assert (await store.head()).sequence == 1


async def test_newer_database_is_refused(database: Database, owner: Database) -> None:
    """By name, whether or not it may be migrated."""
    await execute(owner, "UPDATE alembic_version SET version_num = '0999'")
    for migrate in (True, False):
        with pytest.raises(DatabaseRefused, match="0999") as refusal:
            await bring_up_to_date(database, PACKAGE, migrate=migrate)
        assert refusal.value.reason == "DATABASE_NEWER"
        assert database.name in refusal.value.message


async def test_corrupt_file_is_refused(tmp_path: Path) -> None:
    """By name: it is left as it is for whoever can mend it."""
    file = tmp_path / "ledger.db"
    rubbish = b"this is not a database\n" * 400
    file.write_bytes(rubbish)
    async with Database(f"sqlite:///{file}") as database:
        with pytest.raises(DatabaseRefused) as refusal:
            await bring_up_to_date(database, PACKAGE, migrate=True)
    assert refusal.value.reason == "DATABASE_CORRUPT"
    assert str(file) in refusal.value.message
    assert file.read_bytes() == rubbish


# What must not change


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journals SET memo = 'another'",
        "UPDATE journals SET hash = hash",
        "DELETE FROM journals",
        "UPDATE postings SET amount = amount * 2",
        "DELETE FROM postings",
        "UPDATE refusals SET error = '{}'",
        "DELETE FROM refusals",
        "UPDATE accounts SET kind = 'ASSET'",
        "UPDATE accounts SET currency_code = 'USD'",
        "UPDATE accounts SET account_id = 'drawer:XXX' WHERE account_id = 'bank:CNY'",
        "UPDATE accounts SET created_at_ms = 0",
        "UPDATE accounts SET opened_by_name = 'li' WHERE account_id = 'drawer:CNY'",
        "UPDATE accounts SET opened_by_role = 'CASHIER' WHERE account_id = 'drawer:CNY'",
        "DELETE FROM accounts WHERE account_id = 'bank:CNY'",
        "UPDATE accounts SET closed_at_ms = 1 WHERE account_id = 'drawer:CNY'",
        "UPDATE accounts SET closed_at_ms = 0 WHERE account_id = 'bank:CNY'",
        "UPDATE accounts SET balance = 1 WHERE account_id = 'bank:CNY'",
    ],
)
async def test_append_only_rows_are_protected(owner: Database, store: SqlLedgerStore, statement: str) -> None:
    """By the database itself, whoever asks it."""
    await posted(store, draft())
    await post(store, draft(2, payer="wallet:nobody:CNY"))
    await close_account(store, "r1", "bank:CNY")
    before = await operations(store).verify(0, 0)
    with pytest.raises(DBAPIError, match="never changed"):
        await execute(owner, statement)
    assert await operations(store).verify(0, 0) == before


async def test_row_is_not_replaced(database: Database, owner: Database, store: SqlLedgerStore) -> None:
    """SQLite's INSERT OR REPLACE deletes without asking the delete trigger; PostgreSQL's TRUNCATE likewise."""
    journal = await posted(store, draft())
    statement = (
        "INSERT OR REPLACE INTO postings VALUES (:journal, 0, 'drawer:CNY', 99, 1)"
        if database.is_sqlite
        else "TRUNCATE postings"
    )
    with pytest.raises(DBAPIError, match="never changed"):
        await execute(owner, statement, journal=journal.journal_id)


async def test_balance_limit_holds_for_any_statement(owner: Database, store: SqlLedgerStore) -> None:
    """The statement itself is refused that would break it."""
    with pytest.raises(IntegrityError, match="accounts_within_limits"):
        await execute(owner, "UPDATE accounts SET balance = -1 WHERE account_id = 'drawer:CNY'")


# Tampering


async def cooked(owner: Database, store: SqlLedgerStore, *statements: str, **values: str | int) -> ChainReport:
    """What a walk along five journals finds after `statements`."""
    for number in range(1, 6):
        await posted(store, draft(number))
    assert await operations(store).verify(0, 0) == ChainReport(5, 0, "", (await store.head()).hash)
    await disarm(owner)
    await execute(owner, *statements, **values)
    return await operations(store).verify(0, 0)


@pytest.mark.parametrize(
    ("statement", "broken_at", "problem"),
    [
        ("UPDATE journals SET memo = 'nothing' WHERE sequence = 3", 3, "altered"),
        ("UPDATE journals SET payment_id = 'p9' WHERE sequence = 4", 4, "altered"),
        ("UPDATE journals SET clerk_name = 'wang' WHERE sequence = 1", 1, "altered"),
        ("UPDATE journals SET clerk_role = 'emperor' WHERE sequence = 2", 2, "cannot be read"),
        ("UPDATE journals SET posted_at_ms = 0 WHERE sequence = 5", 5, "altered"),
        ("UPDATE journals SET previous_hash = :none WHERE sequence = 2", 2, "previous_hash"),
        ("UPDATE journals SET hash = :none WHERE sequence = 3", 3, "altered"),
        ("UPDATE postings SET amount = amount * 2 WHERE journal_id LIKE 'jnl_settle_o3%'", 3, "altered"),
        (
            "UPDATE postings SET account_id = 'bank:CNY' WHERE journal_id LIKE 'jnl_settle_o2%' AND leg = 0",
            2,
            "altered",
        ),
        ("DELETE FROM postings WHERE journal_id LIKE 'jnl_settle_o4%'", 4, "altered"),
        ("UPDATE chain_head SET sequence = 6", 6, "missing"),
        ("UPDATE chain_head SET sequence = 4", 4, "head of the chain names"),
        ("UPDATE chain_head SET hash = :none", 5, "head of the chain names"),
    ],
)
async def test_verify_finds_what_was_altered(
    owner: Database, store: SqlLedgerStore, statement: str, broken_at: int, problem: str
) -> None:
    """By its sequence, although the triggers were dropped first."""
    verdict = await cooked(owner, store, statement, none=NO_HASH)
    assert verdict.broken_at == broken_at
    assert problem in verdict.problem


@pytest.mark.parametrize("gone", [1, 3, 5])
async def test_verify_finds_a_journal_that_is_gone(owner: Database, store: SqlLedgerStore, gone: int) -> None:
    """At the beginning, in the middle and at the end of the chain."""
    verdict = await cooked(
        owner,
        store,
        "DELETE FROM postings WHERE journal_id LIKE :like",
        "DELETE FROM journals WHERE sequence = :gone",
        like=f"jnl_settle_o{gone}_%",
        gone=gone,
    )
    assert verdict.broken_at == gone
    assert "missing" in verdict.problem


async def test_verify_finds_a_journal_beyond_the_head(owner: Database, store: SqlLedgerStore) -> None:
    """The head was set back, hash and all, to hide the last journal."""
    for number in range(1, 4):
        await posted(store, draft(number))
    [link] = await store.links(first=2, last=2, limit=1)
    assert link.journal is not None
    await execute(owner, "UPDATE chain_head SET sequence = 2, hash = :hash", hash=link.journal.hash)
    verdict = await operations(store).verify(0, 0)
    assert (verdict.broken_at, verdict.examined) == (3, 2)
    assert "beyond" in verdict.problem


async def test_verify_finds_an_unbalanced_journal_though_its_hash_is_right(
    owner: Database, store: SqlLedgerStore
) -> None:
    """Whoever can drop triggers can also compute hashes."""
    journal = await posted(store, draft())
    legs = (Leg("drawer:CNY", 11), Leg("sales:CNY", -10))
    forged = replace(journal, draft=replace(journal.draft, legs=legs))
    await disarm(owner)
    await execute(
        owner,
        "UPDATE postings SET amount = 11 WHERE leg = 0",
        "UPDATE journals SET hash = :hash",
        "UPDATE chain_head SET hash = :hash",
        hash=forged.recomputed_hash(),
    )
    verdict = await operations(store).verify(0, 0)
    assert (verdict.broken_at, verdict.problem) == (
        1,
        "the postings sum to 0.01 CNY, not 0; debits are positive, credits negative",
    )


async def test_trial_balance_finds_what_was_altered(owner: Database, store: SqlLedgerStore) -> None:
    """A stored balance that its postings do not explain, and postings that do not sum to zero."""
    await posted(store, draft())
    assert (await operations(store).trial_balance("")).balanced
    await execute(owner, "UPDATE accounts SET balance = 11 WHERE account_id = 'drawer:CNY'")
    cooked_balance = await operations(store).trial_balance("")
    assert (cooked_balance.balanced, cooked_balance.differences) == (False, (("CNY", 0),))
    await disarm(owner)
    await execute(owner, "UPDATE postings SET amount = 11 WHERE leg = 0")
    cooked_posting = await operations(store).trial_balance("")
    assert (cooked_posting.balanced, cooked_posting.differences) == (False, (("CNY", 1),))


async def test_sums_of_one_account_beyond_64_bits_are_numbers(owner: Database, store: SqlLedgerStore) -> None:
    """20,000 postings of the largest amount, half of them back: no statement gives up on them."""
    journal = await posted(store, draft())
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19999) "
    rows = f"SELECT '{journal.journal_id}', 10 + i, 'bank:CNY', (1 - 2 * (i % 2)) * 1000000000000000, 1 FROM n"  # noqa: S608
    insert = "INSERT INTO postings (journal_id, leg, account_id, amount, sequence) "
    await execute(owner, numbers + insert + rows if owner.is_sqlite else insert + numbers + rows)
    last, totals = await store.trial_totals("CNY")
    [row] = [row for row in await store.trial("CNY", last=last, after="", limit=9) if row.debits > 10]
    assert (row.account.account_id, row.debits, row.credits) == ("bank:CNY", 10**19, 10**19)
    assert row.right
    assert (totals[0].debits, totals[0].credits, totals[0].unexplained) == (10**19 + 10, 10**19 + 10, 0)


# How it is read


async def plan_of(database: Database, query: Select[Any]) -> str:
    """How the database means to answer; PostgreSQL as if its tables were large."""

    statement = query.compile(database.sync_engine, compile_kwargs={"literal_binds": True})

    async def step(tx: Transaction) -> str:
        if database.is_sqlite:
            rows = await tx.execute(text(f"EXPLAIN QUERY PLAN {statement}"))
            return "\n".join(row.detail for row in rows)
        await tx.execute(text("SET LOCAL enable_seqscan = off"))
        await tx.execute(text("SET LOCAL enable_bitmapscan = off"))
        return "\n".join((await tx.execute(text(f"EXPLAIN {statement}"))).scalars())

    return await database.read(step)


@pytest.mark.parametrize("before", [None, 7])
async def test_journals_of_an_account_are_read_along_an_index(
    database: Database, store: SqlLedgerStore, before: int | None
) -> None:
    """A page costs its own rows: nothing is sorted, and no list of all the account's journals is made."""
    await posted(store, draft())
    plan = await plan_of(database, journals_of("drawer:CNY", before=before, limit=51))
    assert "postings_by_account" in plan
    assert not re.search(r"sort|temp b-tree|seq scan|scan journals|scan postings|list subquery", plan, re.IGNORECASE)


async def test_rows_of_a_trial_balance_are_summed_along_an_index(database: Database, store: SqlLedgerStore) -> None:
    """A page costs the postings of its accounts, not all of them."""
    await posted(store, draft())
    plan = await plan_of(database, rows_of("", last=1, after="", limit=51))
    assert "postings_by_account" in plan
    assert not re.search(r"seq scan|scan postings\b(?! using index)", plan, re.IGNORECASE)


async def test_journals_of_an_account_and_an_order_are_those_of_both(store: SqlLedgerStore) -> None:
    """Across pages, with the order's other journals left out."""
    await store.open_missing([Account(WALLET, AccountKind.LIABILITY, "CNY")])
    await top_up(store, 50)
    for number in range(1, 4):
        await posted(store, draft(number, payer=WALLET, order_id="o1", key=f"k{number}"))
    await posted(store, draft(9, order_id="o1", key="k9"))
    which = JournalFilter(account_id=WALLET, order_id="o1")
    first = await store.journals(which, before=None, limit=2)
    rest = await store.journals(which, before=first[-1].sequence, limit=2)
    assert [journal.sequence for journal in (*first, *rest)] == [4, 3, 2]


# More than one instance


async def test_account_is_closed_or_posted_to_and_never_both(database: Database, store: SqlLedgerStore) -> None:
    """Two instances at once: whoever comes second is refused, and a closed account is empty."""
    async with Database(database.url) as second:
        await _race_closing_against_posting(store, SqlLedgerStore(second, Guards()))


async def _race_closing_against_posting(store: SqlLedgerStore, other: SqlLedgerStore) -> None:
    for number in range(20):
        name = f"extra{number}"
        await store.open_missing([Account(name, AccountKind.REVENUE, "CNY", created_at_ms=NOW_MS)])
        outcome, answer = await asyncio.gather(
            post(store, draft(number, payee=name)), close_account(other, f"r{number}", name)
        )
        account = await store.account(name)
        assert account is not None
        assert isinstance(outcome, Posted) != answer.response.ok
        assert (account.closing is not None) == answer.response.ok
        assert (account.balance == 0) == answer.response.ok


async def test_two_instances_share_a_database(database: Database, store: SqlLedgerStore) -> None:
    """Posts of two processes' stores at once: each key once, twenty replays, one unbroken chain."""
    async with Database(database.url) as other:
        stores = [store, SqlLedgerStore(other, Guards())]
        orders = [draft(number, 10) for number in range(1, 21)]
        outcomes = await asyncio.gather(*(post(stores[n % 2], order) for order in orders for n in range(2)))
        assert sum(isinstance(outcome, Posted) and not outcome.replayed for outcome in outcomes) == 20
        assert sum(isinstance(outcome, Posted) and outcome.replayed for outcome in outcomes) == 20
    verdict = await operations(store).verify(0, 0)
    assert (verdict.examined, verdict.problem) == (20, "")
    assert (await operations(store).trial_balance("")).balanced


async def test_rising_fences_at_once_leave_the_highest(database: Database, store: SqlLedgerStore) -> None:
    """Ten holders write at once: the row ends at the highest fence, and the highest was not refused."""
    tokens = (7, 3, 20, 11, 5, 19, 2, 13, 17, 1)
    outcomes = await asyncio.gather(*(post(store, draft(), fence=token) for token in tokens))
    assert isinstance(outcomes[2], Posted)

    async def step(tx: Transaction) -> Fence:
        row = (await tx.execute(select(ORDER_FENCES))).one()
        return Fence(row.generation, row.token)

    assert await database.read(step) == Fence(1, 20)


async def test_lists_at_once_do_not_wait_in_a_circle(store: SqlLedgerStore) -> None:
    """Lists of the same orders, in opposite order, many at a time."""
    orders = [entry(draft(number)) for number in range(1, 21)]
    lists = [orders if n % 2 else orders[::-1] for n in range(10)]
    outcomes = await asyncio.gather(*(store.post(each) for each in lists))
    assert all(isinstance(outcome, Posted) for each in outcomes for outcome in each)
    assert (await store.head()).sequence == 20


# The guard `unique`


async def index_names(database: Database) -> set[str | None]:
    async def step(connection: AsyncConnection) -> set[str | None]:
        found = await connection.run_sync(lambda sync: inspect(sync).get_indexes("journals"))
        return {index["name"] for index in found if index["unique"]}

    return await database.inspect_schema(step)


async def test_guard_makes_and_drops_its_indexes(owner: Database) -> None:
    """At start, by its setting; two instances that start at once do it once."""
    unique = {"journals_by_business_key", "journals_by_reversal_of"}
    for off in (["unique"], [], ["unique"], []):
        stores = [SqlLedgerStore(owner, Guards.without(off)) for _ in range(3)]
        await asyncio.gather(*(store.prepare() for store in stores))
        assert (await index_names(owner) & unique) == (set() if off else unique)


async def test_unique_index_refuses_what_the_lookup_missed(owner: Database, store: SqlLedgerStore) -> None:
    """A second journal under a key is refused by the database, whoever writes it."""
    await posted(store, draft())
    with pytest.raises(IntegrityError, match="business_key"):
        await execute(
            owner,
            "INSERT INTO journals SELECT 'jnl_2', 2, business_key, currency_code, memo, order_id, payment_id, "
            "reversal_of, previous_hash, hash, posted_at_ms, clerk_name, clerk_role FROM journals",
        )


async def test_start_with_unique_guard_refuses_duplicate_journals(owner: Database) -> None:
    """A round that was settled twice is not passed over in silence."""
    careless = SqlLedgerStore(owner, Guards.without(["unique"]))
    await careless.prepare()
    await careless.open_missing(house_accounts(("CNY",), NOW_MS))
    await posted(careless, draft())
    await posted(careless, draft(payment_id="p2"))
    with pytest.raises(DatabaseRefused) as refusal:
        await SqlLedgerStore(owner, Guards()).prepare()
    assert refusal.value.reason == "DATABASE_DUPLICATES"
    assert await balance(careless, "drawer:CNY") == 20


async def test_kept_refusal_outlives_the_process(database: Database, store: SqlLedgerStore) -> None:
    """Another instance, later, refuses the late duplicate too."""
    what = draft(payer=WALLET)
    assert not isinstance(await post(store, what), Posted)
    later = SqlLedgerStore(database, Guards())
    await later.open_missing([Account(WALLET, AccountKind.LIABILITY, "CNY")])
    await top_up(later, 50)
    assert not isinstance(await post(later, what), Posted)
    assert isinstance(await post(later, what, attempt="new"), Posted)


async def test_entry_that_is_refused_fails_alone_among_many_at_once(database: Database) -> None:
    """Two hundred callers post at once; one of them asks for more than the wallet has."""
    store = SqlLedgerStore(database, Guards())
    await store.open_missing(house_accounts(("CNY",), NOW_MS))
    await open_account(store, Account(WALLET, AccountKind.LIABILITY, "CNY", created_at_ms=NOW_MS))
    drafts = [draft(number, payer=WALLET if number == 77 else "drawer:CNY") for number in range(200)]
    outcomes = await asyncio.gather(*(post(store, one) for one in drafts))
    assert [number for number, outcome in enumerate(outcomes) if isinstance(outcome, CountinghouseError)] == [77]
    sequences = sorted(outcome.journal.sequence for outcome in outcomes if isinstance(outcome, Posted))
    assert sequences == list(range(1, 200))
