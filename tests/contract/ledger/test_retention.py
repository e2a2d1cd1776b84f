"""Old request ids of the ledger: openings of accounts, which can be repeated."""

from __future__ import annotations

from services.kernel.guards import Guards
from services.ledger.model import Account, AccountKind
from services.ledger.schema import RETENTION
from services.ledger.store import SqlLedgerStore
from services.runtime.database.database import Database
from services.runtime.database.retention import DAY_MS, remove_old_requests
from tests.contract.ledger.store_contract import NOW_MS, WALLET, open_account


async def test_opening_is_removed_and_its_repeat_finds_the_account_open(database: Database, owner: Database) -> None:
    """One account, with the balance it has."""
    store = SqlLedgerStore(database, Guards())
    account = Account(WALLET, AccountKind.LIABILITY, "CNY", 0, created_at_ms=NOW_MS)
    first = await open_account(store, account)
    assert await remove_old_requests(owner, RETENTION, before_ms=NOW_MS) == 0
    assert await remove_old_requests(owner, RETENTION, before_ms=NOW_MS + DAY_MS) == 1
    again = await open_account(store, account)
    assert again.response == first.response
    assert not again.replayed
