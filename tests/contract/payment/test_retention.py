"""Old tickets and request ids of the payment service: which are removed, and that no money moves because they are."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from services.kernel.errors import NotFound
from services.kernel.guards import Guards
from services.kernel.idempotency import RequestKey, RequestState, StoredResponse
from services.payment.model import ISSUE_TICKET, PAY
from services.payment.request_records import SqlRequestRecords
from services.payment.schema import REMOVALS, REQUESTS, RETENTION
from services.payment.store import SqlPaymentStore
from services.runtime.database.database import Database
from services.runtime.database.retention import remove_old_requests
from services.runtime.database.transaction import Transaction
from tests.contract.payment.subject import (
    LI,
    RESPONSES,
    T0,
    accepted,
    draft,
    issued,
    lease,
    settle_key,
    succeeded,
)
from tests.contract.payment.test_sql_store import InDatabase

LATER = T0 + 60_000
EXPIRED_AT = T0 + 5_000


@pytest.fixture
def subject(database: Database) -> InDatabase:
    return InDatabase(SqlPaymentStore(database, Guards()), SqlRequestRecords(database, Guards()), database)


async def keys(subject: InDatabase) -> set[tuple[str, str]]:
    """Method and key of every row."""

    async def step(tx: Transaction) -> set[tuple[str, str]]:
        return {(row.method, row.key) for row in await tx.execute(select(REQUESTS.c.method, REQUESTS.c.key))}

    return await subject.database.read(step)


async def removed_before(subject: InDatabase) -> int | None:
    async def step(tx: Transaction) -> int | None:
        return (await tx.execute(select(REMOVALS.c.before_ms))).scalar_one_or_none()

    return await subject.database.read(step)


async def test_unused_ticket_and_its_request_are_removed(subject: InDatabase, owner: Database) -> None:
    """It pays nothing afterwards, as before; the request gets a new one."""
    ticket = await issued(subject)
    await subject.store.expire(now_ms=EXPIRED_AT)
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 2
    assert await keys(subject) == set()
    assert await removed_before(subject) == LATER
    with pytest.raises(NotFound):
        await subject.store.accept(draft("p1", ticket, ""), "f", lease())
    await issued(subject)


async def test_nothing_younger_or_unended_is_removed(subject: InDatabase, owner: Database) -> None:
    """An open ticket with its request, one that is being paid with, and what ended a moment ago."""
    await issued(subject, "open", ttl_ms=10 * LATER)
    running = await issued(subject, "running", ttl_ms=10 * LATER)
    await subject.store.accept(draft("p1", running, ""), "f", lease())
    await issued(subject, "young")
    await subject.store.expire(now_ms=LATER)
    before = await keys(subject)
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 1
    assert before - await keys(subject) == {(ISSUE_TICKET, "ask-young")}
    assert await subject.request(running) == (RequestState.IN_PROGRESS, 1)


async def test_requests_that_paid_an_order_are_kept(subject: InDatabase, owner: Database) -> None:
    """By ticket or by request id; both are answered with what is stored."""
    ticket = await issued(subject, order_id="o1")
    paid = draft("p1", ticket, "o1")
    settled = draft("p2", settle_key(), "o2")
    await succeeded(subject, paid)
    await succeeded(subject, settled)
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 0
    for again in (paid, settled):
        assert isinstance(await subject.store.accept(again, "f", lease(LATER)), StoredResponse)


async def test_ticket_that_paid_no_order_is_removed_and_never_paid_with_again(
    subject: InDatabase, owner: Database
) -> None:
    """Its request stays, and is answered with the ticket that is gone: a caller who repeats both pays nothing."""
    ticket = await issued(subject)
    await succeeded(subject, draft("p1", ticket, ""))
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 1
    stored = await subject.requests.issue(
        RequestKey(LI, ISSUE_TICKET, "ask-t1"),
        "f",
        RequestKey(LI, PAY, "another"),
        lease=lease(LATER),
        expires_at_ms=LATER + 1_000,
        order_id="",
        answer=RESPONSES.ticket("another", "", 0),
        quota=None,
    )
    assert stored == RESPONSES.ticket("t1", "", T0 + 1_000)
    with pytest.raises(NotFound):
        await subject.store.accept(draft("p2", ticket, ""), "f", lease(LATER))
    assert await keys(subject) == {(ISSUE_TICKET, "ask-t1")}


async def test_refused_settle_is_kept(subject: InDatabase, owner: Database) -> None:
    """The same id must not settle an order that was refused to it once."""
    made = await accepted(subject)
    await made.decline()
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER) == 0
    assert isinstance(await subject.store.accept(draft("p9"), "f", lease(LATER)), StoredResponse)


async def test_removal_goes_batch_by_batch_through_all_rows(subject: InDatabase, owner: Database) -> None:
    """Also past those that stay."""
    for number in range(23):
        ticket = await issued(subject, f"t{number:02}", order_id="o" if number % 3 else "")
        if number % 3 == 1:
            await subject.store.accept(draft(f"p{number}", ticket, "o"), "f", lease())
    await subject.store.expire(now_ms=EXPIRED_AT)
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER, batch=4) == 2 * 15
    assert len(await keys(subject)) == 2 * 8
    assert await remove_old_requests(owner, RETENTION, before_ms=LATER - 1, batch=4) == 0
    assert await removed_before(subject) == LATER
