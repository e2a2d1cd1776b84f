"""Fill the books with settled orders: one that was settled for real, multiplied.

Every row that the settled order left in the tables of the order, payment and ledger services is written again, for each
new order with ids of its own. An id keeps its length, so that stored responses stay valid messages. Journals are
sealed by the ledger's own code, one after the other, so the hash chain, the balances and the head of the chain are
those of real postings. What is not like real orders: all were settled by the same clerk at the same time, and the
fingerprints of their requests are those of the first one, so none of these can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from sqlalchemy import Table, insert, make_url, select, text, update

from services.kernel.fence import Fence
from services.ledger import schema as ledger
from services.ledger.model import Entry, Head, Journal, Leg, PostingBatch
from services.order import schema as order
from services.payment import schema as payment
from services.runtime.database.database import Database
from services.runtime.database.transaction import Transaction
from services.testkit.harness import Harness
from tests.bench.settles.peers import Server

#: Orders that one transaction writes.
_CHUNK: Final = 1_000
#: The end of an id that is replaced by a number of as many digits.
_DIGITS: Final = 8
#: Written in this order, so that a foreign key finds its row.
_TABLES: Final = {
    "order": (order.ORDERS, order.ORDER_LINES, order.ORDER_EVENTS, order.REQUESTS),
    "payment": (payment.PAYMENTS, payment.EVENTS, payment.OUTBOX, payment.REQUESTS),
    "ledger": (ledger.ORDER_FENCES,),
}
_HEAD = select(ledger.CHAIN_HEAD)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Settled:
    """An order that was settled for real, by its ids."""

    order_id: str
    payment_id: str
    journal_id: str

    def copy_of(self, value: Any, number: int) -> Any:
        """Return a value of one of its rows with the ids of its copy of this number; `value` itself, if it has none."""
        for id_ in (self.order_id, self.payment_id, self.journal_id):
            other = f"{id_[:-_DIGITS]}{number:0{_DIGITS}d}"
            if isinstance(value, str):
                value = value.replace(id_, other)
            elif isinstance(value, bytes):
                value = value.replace(id_.encode(), other.encode())
        return value

    def has(self, row: Row) -> bool:
        """Return whether a row is about it."""
        ids = (self.order_id, self.payment_id, self.journal_id)
        return any(isinstance(value, str) and id_ in value for value in row.values() for id_ in ids)


class Filler:
    """Multiplies one settled order in the books of a stack on which nothing else is done.

    Args:
        tell: Called with how many copies there are, now and then.
    """

    def __init__(self, settled: Settled, tell: Callable[[int], None]) -> None:
        self._settled = settled
        self._tell = tell
        self._copies = 0
        self._rows: dict[str, dict[Table, list[dict[str, Any]]]] = {}
        self._journal: Journal | None = None

    def copy_of(self, number: int) -> str:
        """Return the id of the copy of this number."""
        return str(self._settled.copy_of(self._settled.order_id, number))

    async def fill(self, databases: Mapping[str, Database], copies: int) -> None:
        """Have so many copies of the order in the books.

        Args:
            databases: The services' databases, by name.
        """
        if not self._rows:
            await self._read(databases)
        while self._copies < copies:
            numbers = range(self._copies + 1, 1 + min(copies, self._copies + _CHUNK))
            for service, tables in self._rows.items():
                await databases[service].run(partial(self._write, rows=tables, numbers=numbers))
            await databases["ledger"].run(partial(self._post, numbers=numbers))
            self._copies = numbers[-1]
            self._tell(self._copies)
        for database in databases.values():
            await database.run(lambda tx: tx.execute(text("ANALYZE")))

    async def _read(self, databases: Mapping[str, Database]) -> None:
        for service, tables in _TABLES.items():
            self._rows[service] = {table: await self._rows_of(databases[service], table) for table in tables}
        database = databases["ledger"]
        (row,) = (await database.select(_of_journal(ledger.JOURNALS, self._settled), {})).all()
        legs = await database.select(_of_journal(ledger.POSTINGS, self._settled).order_by(ledger.POSTINGS.c.leg), {})
        self._journal = ledger.to_journal(row, tuple(Leg(leg.account_id, leg.amount_minor) for leg in legs))

    async def _rows_of(self, database: Database, table: Table) -> list[dict[str, Any]]:
        """Return the rows of a table about the order, without the number that the database gives."""
        rows = (await database.select(select(table), {})).mappings()
        given = table.autoincrement_column if table is order.ORDERS else None
        found = [row for row in rows if self._settled.has(row)]
        return [{name: value for name, value in row.items() if given is None or name != given.key} for row in found]

    async def _write(self, tx: Transaction, rows: Mapping[Table, Sequence[Row]], numbers: Sequence[int]) -> None:
        for table, of_table in rows.items():
            copies = [
                {name: self._settled.copy_of(value, number) for name, value in row.items()}
                for number in numbers
                for row in of_table
            ]
            await tx.execute_each(_INSERTS[table], copies)

    async def _post(self, tx: Transaction, numbers: Sequence[int]) -> None:
        """Post the journals of some copies, as the ledger's store does."""
        if self._journal is None:
            raise AssertionError("read the order first")
        head = (await tx.execute(_HEAD)).one()
        accounts = {row.account_id: ledger.to_account(row) for row in await tx.execute(select(ledger.ACCOUNTS))}
        books = PostingBatch(Head(head.sequence, head.hash), dict(accounts), {}, {}, {})
        for number in numbers:
            books.write(self._entry(self._journal, number))
        await tx.execute_each(_INSERTS[ledger.JOURNALS], [ledger.journal_row(journal) for journal in books.written])
        postings = [row for journal in books.written for row in ledger.posting_rows(journal)]
        await tx.execute_each(_INSERTS[ledger.POSTINGS], postings)
        for id_, account in books.accounts.items():
            if account != accounts[id_]:
                changed = update(ledger.ACCOUNTS).where(ledger.ACCOUNTS.c.account_id == id_)
                await tx.execute(changed.values(balance=account.balance, version=account.version))
        await tx.execute(update(ledger.CHAIN_HEAD).values(sequence=books.head.sequence, hash=books.head.hash))

    def _entry(self, journal: Journal, number: int) -> Entry:
        draft = journal.draft
        names = ("business_key", "order_id", "payment_id", "memo")
        copied = {name: self._settled.copy_of(getattr(draft, name), number) for name in names}
        journal_id = self._settled.copy_of(journal.journal_id, number)
        return Entry(replace(draft, **copied), "", journal_id, journal.posted_at_ms, Fence(0, 0))


class Books:
    """The databases of a stack's services, as a superuser of PostgreSQL, while the filler writes to them."""

    def __init__(self, harness: Harness) -> None:
        self._urls = harness.databases
        if all(url.startswith("postgresql") for url in self._urls.values()):
            server = Server.of(harness.stack)
            self._urls = {name: _as_superuser(url, server) for name, url in self._urls.items()}
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Mapping[str, Database]:
        opened = {}
        for service in _TABLES:
            database = Database(self._urls[service], pool=2, statement_timeout_s=120.0)
            opened[service] = await self._resources.enter_async_context(database)
        return opened

    async def __aexit__(self, *_error: object) -> None:
        await self._resources.aclose()


def _as_superuser(url: str, server: Server) -> str:
    named = make_url(url).set(username=server.user).update_query_dict({"passfile": server.passfile})
    return named.render_as_string(hide_password=False)


def _of_journal(table: Table, settled: Settled) -> Any:
    return select(table).where(table.c.journal_id == settled.journal_id)


_INSERTS: Final = {
    table: insert(table) for tables in (*_TABLES.values(), (ledger.JOURNALS, ledger.POSTINGS)) for table in tables
}
