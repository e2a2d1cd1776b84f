"""Old request ids of the order service: which are removed, and that no order is made or cancelled twice for it."""

from __future__ import annotations

import pytest

from services.kernel.guards import Guards
from services.order.model import OrderState
from services.order.schema import RETENTION
from services.order.store import SqlOrderStore
from services.runtime.database.database import Database
from services.runtime.database.retention import remove_old_requests
from tests.contract.order.store_contract import create, created, new_order, request
from tests.contract.order.test_sql_store import InDatabase

LATER = 60_000


@pytest.fixture
def subject(database: Database) -> InDatabase:
    return InDatabase(SqlOrderStore(database, Guards()), database)


async def test_requests_that_made_or_cancelled_an_order_are_kept(subject: InDatabase, owner: Database) -> None:
    """The same ids are answered with what is stored."""
    made = await created(subject)
    cancelled = await made.cancel("c1")
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 0
    again = await create(subject.store, request("CreateOrder", "o1"), new_order("o2"))
    assert (again.replayed, again.response.ok) == (True, True)
    assert (await made.cancel("c1")).response == cancelled.response
    assert await subject.store.get("o2") is None


async def test_removed_refusals_are_decided_anew(subject: InDatabase, owner: Database) -> None:
    """A refused creation and a refused cancellation are refused again, for the same reasons."""
    made = await created(subject)
    await made.claim()
    for removed in (2, 2):
        exists = await create(subject.store, request("CreateOrder", "r2"), new_order("o1"))
        illegal = await made.cancel("c1")
        assert (exists.replayed, exists.response.ok) == (illegal.replayed, illegal.response.ok) == (False, False)
        assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == removed
    assert (await made.now()).state is OrderState.PAYING
