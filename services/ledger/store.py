"""The ledger in a database: each step as one transaction. SQL is here, in `schema.py` and in `trial.py`.

How the entries of concurrent callers are written, in one transaction (guard in brackets):

    1. raise the fences of their orders: one conditional upsert, before anything is read            [fence]
    2. lock the head of the chain: from here on no other writer appends
    3. read what stands, was undone or was refused under their keys                                [unique]
    4. lock their accounts, in sorted order
    5. decide: `model.PostingBatch.write`, one entry after the other
    6. write: balances, the head, journals, postings, refusals; each one statement however many entries there are

The chain makes writers take turns in any case, so its head is the one lock, and step 5 decides on what cannot change
under it. Hence an entry is refused before anything of it is written: no savepoint is needed, and the raised fence and
the kept refusal are committed with the rest.

Invariants of the tables, beyond those of the model
1. (generation, token) of an order's fence never falls.
2. journals, postings and refusals only grow; an account is never removed, and never changes its id, kind, currency,
   date or opener; a closed one changes no more (triggers).
3. A balance within its limits is also a CHECK: whatever is written past `PostingBatch` is refused by the statement.
4. With the guard `unique` on, business_key and reversal_of have unique indexes; `prepare` sees to it at start. With it
   off they are dropped, and every entry is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Row, Select, bindparam, insert, inspect, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import StaleFence
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.ledger import trial
from services.ledger.chain import ChainLink
from services.ledger.model import (
    Account,
    Entry,
    Head,
    Journal,
    JournalDraft,
    Leg,
    PostingBatch,
    PostOutcome,
    TrialRow,
    TrialTotal,
)
from services.ledger.ports import JournalFilter, LedgerStore
from services.ledger.schema import (
    ACCOUNTS,
    CHAIN_HEAD,
    JOURNALS,
    ORDER_FENCES,
    POSTINGS,
    REFUSALS,
    REQUESTS,
    UNIQUE_INDEXES,
    account_row,
    closing_columns,
    journal_row,
    posting_rows,
    refusal_row,
    to_account,
    to_error,
    to_journal,
    to_link,
)
from services.runtime.database.database import Database, DatabaseRefused
from services.runtime.database.group_commit import GroupCommit
from services.runtime.database.idempotency_table import DecisionOverturned, Requests, SqlAnswerStore, insert_if_absent
from services.runtime.database.transaction import Transaction
from services.runtime.ports import NO_FAILPOINTS, Failpoints

#: Sorts after every character an id may have.
_LAST_CHARACTER = "\x7f"

_LOCK_HEAD = select(CHAIN_HEAD.c.sequence, CHAIN_HEAD.c.hash).with_for_update()
_MOVE_HEAD = (
    update(CHAIN_HEAD)
    .where(CHAIN_HEAD.c.sequence == bindparam("before"))
    .values(sequence=bindparam("after"), hash=bindparam("sealed"))
)
_LOCK_ACCOUNTS = (
    select(ACCOUNTS)
    .where(ACCOUNTS.c.account_id.in_(bindparam("ids", expanding=True)))
    .order_by(ACCOUNTS.c.account_id)
    .with_for_update()
)
_MOVE_BALANCE = (
    update(ACCOUNTS)
    .where(ACCOUNTS.c.account_id == bindparam("id"))
    .values(balance=ACCOUNTS.c.balance + bindparam("change"), version=ACCOUNTS.c.version + bindparam("postings"))
)
_BY_KEY = select(JOURNALS).where(JOURNALS.c.business_key.in_(bindparam("keys", expanding=True)))
_BY_KEY_OR_REVERSAL = select(JOURNALS).where(
    or_(
        JOURNALS.c.business_key.in_(bindparam("keys", expanding=True)),
        JOURNALS.c.reversal_of.in_(bindparam("undone", expanding=True)),
    )
)
_REFUSED = select(REFUSALS.c.business_key, REFUSALS.c.attempt, REFUSALS.c.error).where(
    REFUSALS.c.business_key.in_(bindparam("keys", expanding=True))
)
_LEGS = (
    select(POSTINGS.c.journal_id, POSTINGS.c.account_id, POSTINGS.c.amount_minor)
    .where(POSTINGS.c.journal_id.in_(bindparam("ids", expanding=True)))
    .order_by(POSTINGS.c.journal_id, POSTINGS.c.leg)
)
_INSERT_JOURNALS = insert(JOURNALS)
_INSERT_POSTINGS = insert(POSTINGS)
_INSERT_REFUSALS = insert(REFUSALS)


class SqlLedgerStore(SqlAnswerStore, LedgerStore):
    """`ports.LedgerStore` on SQLite or PostgreSQL."""

    def __init__(self, database: Database, guards: Guards, failpoints: Failpoints = NO_FAILPOINTS) -> None:
        self._failpoints = failpoints
        super().__init__(database, Requests(REQUESTS, guards))
        self._guards = guards
        self._posts = GroupCommit(self._post, committed=database.metrics.committed)
        upsert = (sqlite if database.is_sqlite else postgresql).insert(ORDER_FENCES)
        seen = tuple_(ORDER_FENCES.c.generation, ORDER_FENCES.c.token)
        self._raise_fence = upsert.on_conflict_do_update(
            index_elements=["order_id"],
            set_={"generation": upsert.excluded.generation, "token": upsert.excluded.token},
            where=seen <= tuple_(upsert.excluded.generation, upsert.excluded.token),
        ).returning(ORDER_FENCES.c.order_id)

    async def prepare(self) -> None:
        """Make the unique indexes agree with the guard `unique`. Called once, before the first call is served.

        Raises:
            DatabaseRefused: DATABASE_DUPLICATES: the guard is on, and what was written without it stands twice.
        """

        async def look(connection: AsyncConnection) -> set[str | None]:
            found = await connection.run_sync(lambda sync: inspect(sync).get_indexes(JOURNALS.name))
            return {index["name"] for index in found}

        async def change(connection: AsyncConnection) -> None:
            await connection.execute(_LOCK_HEAD)  # instances that start together take turns
            for index in UNIQUE_INDEXES:
                await connection.run_sync(index.create if self._guards.unique else index.drop, checkfirst=True)

        present = await self._database.inspect_schema(look)
        if all((index.name in present) == self._guards.unique for index in UNIQUE_INDEXES):
            return
        try:
            await self._database.change_schema(change)
        except IntegrityError as error:
            raise DatabaseRefused(
                "DATABASE_DUPLICATES",
                f"{self._database.name} has journals that stand twice, written while the guard unique was off; "
                "put a backup in its place, or go on without that guard",
            ) from error

    async def post(self, entries: Sequence[Entry]) -> list[PostOutcome]:
        return await self._posts.run_all(entries)

    async def _post(self, entries: Sequence[Entry]) -> list[PostOutcome]:
        subjects = [name for entry in entries for name in (entry.draft.order_id, entry.draft.payment_id)]

        async def step(tx: Transaction) -> list[PostOutcome]:
            stale = await self._raise_fences(tx, entries)
            live = [entry for place, entry in enumerate(entries) if place not in stale]
            if not live:
                return [stale[place] for place in range(len(entries))]
            books = await self._lock(tx, [entry.draft for entry in live], look_up=self._guards.unique)
            before = dict(books.accounts)
            outcomes = [stale[place] if place in stale else books.write(entry) for place, entry in enumerate(entries)]
            await self._write(tx, books, before)
            await self._failpoints.hit("committing", None, *subjects)
            return outcomes

        outcomes = await self._database.run(step)
        await self._failpoints.hit("committed", None, *subjects)
        return outcomes

    async def void(self, entry: Entry) -> Journal | None:
        async def step(tx: Transaction) -> Journal | StaleFence | None:
            stale = await self._raise_fences(tx, [entry])
            if stale:
                return stale[0]
            books = await self._lock(tx, [entry.draft], look_up=True)
            standing = books.void(entry)
            await self._write(tx, books, {})
            return standing

        outcome = await self._database.run(step)
        if isinstance(outcome, StaleFence):
            raise outcome
        return outcome

    async def open_account(self, request: KeyedRequest, account: Account, response: StoredResponse) -> Answer | None:
        async def effect(tx: Transaction) -> None:
            if not await insert_if_absent(tx, ACCOUNTS, account_row(account)):
                raise DecisionOverturned

        return await self._answer_once(request, response, effect)

    async def close_account(self, request: KeyedRequest, closed: Account, response: StoredResponse) -> Answer | None:
        is_as_read = (ACCOUNTS.c.version == closed.version, ACCOUNTS.c.closed_at_ms == 0)
        write = update(ACCOUNTS).where(ACCOUNTS.c.account_id == closed.account_id, *is_as_read)

        async def effect(tx: Transaction) -> None:
            if (await tx.execute(write.values(closing_columns(closed)))).rowcount != 1:
                raise DecisionOverturned

        return await self._answer_once(request, response, effect)

    async def open_missing(self, accounts: Sequence[Account]) -> None:
        wanted = select(ACCOUNTS).where(ACCOUNTS.c.account_id.in_([account.account_id for account in accounts]))

        async def look(tx: Transaction) -> dict[str, Account]:
            return {row.account_id: to_account(row) for row in await tx.execute(wanted)}

        async def step(tx: Transaction) -> dict[str, Account]:
            for account in accounts:
                await insert_if_absent(tx, ACCOUNTS, account_row(account))
            return await look(tx)

        present = await self._database.read(look)
        if len(present) < len(accounts):
            present = await self._database.run(step)
        for account in accounts:
            present[account.account_id].check_terms(account)

    async def account(self, account_id: str) -> Account | None:
        async def step(tx: Transaction) -> Account | None:
            return await _find_account(tx, account_id)

        return await self._database.read(step)

    async def accounts(self, *, prefix: str, after: str, limit: int) -> list[Account]:
        query = select(ACCOUNTS).where(ACCOUNTS.c.account_id > after).order_by(ACCOUNTS.c.account_id).limit(limit)
        if prefix:
            query = query.where(ACCOUNTS.c.account_id >= prefix, ACCOUNTS.c.account_id < prefix + _LAST_CHARACTER)

        async def step(tx: Transaction) -> list[Account]:
            return [to_account(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    async def journal(self, *, journal_id: str = "", business_key: str = "") -> Journal | None:
        query = select(JOURNALS).order_by(JOURNALS.c.sequence).limit(1)
        if journal_id:
            query = query.where(JOURNALS.c.journal_id == journal_id)
        if business_key:
            query = query.where(JOURNALS.c.business_key == business_key)

        async def step(tx: Transaction) -> Journal | None:
            return next(iter(await _find_journals(tx, query)), None)

        return await self._database.read(step)

    async def journals(self, which: JournalFilter, *, before: int | None, limit: int) -> list[Journal]:
        query = select(JOURNALS).order_by(JOURNALS.c.sequence.desc()).limit(limit)
        if before is not None:
            query = query.where(JOURNALS.c.sequence < before)
        if which.order_id:
            query = query.where(JOURNALS.c.order_id == which.order_id)
            if which.account_id:  # few journals, whose legs are looked up
                legs = select(POSTINGS.c.leg).where(POSTINGS.c.journal_id == JOURNALS.c.journal_id)
                query = query.where(legs.where(POSTINGS.c.account_id == which.account_id).exists())
        elif which.account_id:
            query = journals_of(which.account_id, before=before, limit=limit)

        async def step(tx: Transaction) -> list[Journal]:
            return await _find_journals(tx, query)

        return await self._database.read(step)

    async def head(self) -> Head:
        async def step(tx: Transaction) -> Head:
            row = (await tx.execute(select(CHAIN_HEAD.c.sequence, CHAIN_HEAD.c.hash))).one()
            return Head(row.sequence, row.hash)

        return await self._database.read(step)

    async def links(self, *, first: int, last: int, limit: int) -> list[ChainLink]:
        query = (
            select(JOURNALS)
            .where(JOURNALS.c.sequence >= first, JOURNALS.c.sequence <= last)
            .order_by(JOURNALS.c.sequence)
            .limit(limit)
        )

        async def step(tx: Transaction) -> list[ChainLink]:
            rows = (await tx.execute(query)).all()
            legs = await _find_legs(tx, rows)
            return [to_link(row, legs.get(row.journal_id, ())) for row in rows]

        return await self._database.read(step)

    async def trial_totals(self, currency: str) -> tuple[int, list[TrialTotal]]:
        async def step(tx: Transaction) -> tuple[int, list[TrialTotal]]:
            rows = (await tx.execute(trial.totals_of(currency))).all()
            last = rows[0].last if rows else (await tx.execute(select(CHAIN_HEAD.c.sequence))).scalar_one()
            return last, [trial.to_total(row) for row in rows]

        return await self._database.read(step)

    async def trial(self, currency: str, *, last: int, after: str, limit: int) -> list[TrialRow]:
        query = trial.rows_of(currency, last=last, after=after, limit=limit)

        async def step(tx: Transaction) -> list[TrialRow]:
            return [trial.to_row(row) for row in await tx.execute(query)]

        return await self._database.read(step)

    async def _raise_fences(self, tx: Transaction, entries: Sequence[Entry]) -> dict[int, StaleFence]:
        """Raise the fence of each entry's order; return the entries, by place, whose fence is behind.

        Orders are raised in sorted order and before the head is locked, so that no two steps wait in a circle.
        """
        newest: dict[str, Fence] = {}
        for entry in entries:
            order_id = entry.draft.order_id
            if order_id and self._guards.fence:
                newest[order_id] = max(newest.get(order_id, entry.fence), entry.fence)
        if not newest:
            return {}
        rows = [
            {"order_id": order_id, "generation": fence.generation, "token": fence.token}
            for order_id, fence in sorted(newest.items())
        ]
        raised = await tx.execute_each(self._raise_fence, rows)
        behind = newest.keys() - set(raised.scalars())
        if behind:
            for row in await tx.execute(select(ORDER_FENCES).where(ORDER_FENCES.c.order_id.in_(behind))):
                newest[row.order_id] = Fence(row.generation, row.token)
        return {
            place: StaleFence(entry.draft.order_id, entry.fence, newest[entry.draft.order_id])
            for place, entry in enumerate(entries)
            if entry.draft.order_id in newest and entry.fence < newest[entry.draft.order_id]
        }

    async def _lock(self, tx: Transaction, drafts: Sequence[JournalDraft], *, look_up: bool) -> PostingBatch:
        """Lock the end of the chain and the accounts, and read all that decides on `drafts`.

        Args:
            look_up: Whether to read what stands, was undone or was refused under their keys.
        """
        head = (await tx.execute(_LOCK_HEAD)).one()
        books = PostingBatch(Head(head.sequence, head.hash), {}, {}, {}, {}, unique=self._guards.unique)
        if look_up:
            keys = [draft.business_key for draft in drafts]
            undone = [draft.reversal_of for draft in drafts if draft.reversal_of]
            for journal in await (
                _find_journals(tx, _BY_KEY_OR_REVERSAL, keys=keys, undone=undone)
                if undone
                else _find_journals(tx, _BY_KEY, keys=keys)
            ):
                books.standing[journal.draft.business_key] = journal
                if journal.draft.reversal_of:
                    books.undone[journal.draft.reversal_of] = journal
            for row in await tx.execute(_REFUSED, {"keys": keys}):
                books.refusals[row.business_key, row.attempt] = to_error(row.error)
        ids = sorted({leg.account_id for draft in drafts for leg in draft.legs})
        for row in await tx.execute(_LOCK_ACCOUNTS, {"ids": ids}):
            books.accounts[row.account_id] = to_account(row)
        return books

    async def _write(self, tx: Transaction, books: PostingBatch, before: dict[str, Account]) -> None:
        """Write what `books` has changed since `before`."""
        if books.refused:
            await tx.execute_each(
                _INSERT_REFUSALS,
                [refusal_row(entry, books.refusals[key]) for key, entry in books.refused.items()],
            )
        if not books.written:
            return
        await tx.execute_each(
            _MOVE_BALANCE,
            [
                {
                    "id": id_,
                    "change": after.balance - before[id_].balance,
                    "postings": after.version - before[id_].version,
                }
                for id_, after in sorted(books.accounts.items())
                if after.version != before[id_].version
            ],
        )
        moved = await tx.execute(
            _MOVE_HEAD,
            {"before": books.written[0].sequence - 1, "after": books.head.sequence, "sealed": books.head.hash},
        )
        if moved.rowcount != 1:
            raise AssertionError("the head of the chain moved while it was locked")
        await tx.execute_each(_INSERT_JOURNALS, [journal_row(journal) for journal in books.written])
        await tx.execute_each(_INSERT_POSTINGS, [row for journal in books.written for row in posting_rows(journal)])


def journals_of(account_id: str, *, before: int | None, limit: int) -> Select[Any]:
    """Return the newest journals of one account, read along the index of its postings."""
    query = (
        select(JOURNALS)
        .join(POSTINGS, POSTINGS.c.journal_id == JOURNALS.c.journal_id)
        .where(POSTINGS.c.account_id == account_id)
        .order_by(POSTINGS.c.sequence.desc())
        .limit(limit)
    )
    return query if before is None else query.where(POSTINGS.c.sequence < before)


async def _find_account(tx: Transaction, account_id: str) -> Account | None:
    row = (await tx.execute(select(ACCOUNTS).where(ACCOUNTS.c.account_id == account_id))).one_or_none()
    return None if row is None else to_account(row)


async def _find_journals(tx: Transaction, query: Select[Any], **parameters: Sequence[str]) -> list[Journal]:
    """Return the journals of a query, in its order, each with its legs."""
    rows = (await tx.execute(query, parameters)).all()
    legs = await _find_legs(tx, rows)
    return [to_journal(row, legs.get(row.journal_id, ())) for row in rows]


async def _find_legs(tx: Transaction, rows: Iterable[Row[Any]]) -> dict[str, tuple[Leg, ...]]:
    """Return the legs of some journals, by journal id, in order."""
    ids = [row.journal_id for row in rows]
    legs: dict[str, tuple[Leg, ...]] = {}
    if ids:
        for row in await tx.execute(_LEGS, {"ids": ids}):
            legs[row.journal_id] = (*legs.get(row.journal_id, ()), Leg(row.account_id, row.amount_minor))
    return legs
