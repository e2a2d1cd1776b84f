"""The payment store on SQLite and PostgreSQL: the suite, and what only a database can be asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import RequestInProgress, StaleFence, Unavailable
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import RequestKey, RequestState
from services.payment.model import Accepted, ConflictingPayment, OutboxAction, Payment, PaymentState
from services.payment.request_records import SqlRequestRecords
from services.payment.schema import EVENTS, METADATA, ONE_ACTIVE_PER_ORDER, OUTBOX, REQUESTS
from services.payment.store import SqlPaymentStore
from services.runtime.database import errors
from services.runtime.database.database import Database
from services.runtime.database.transaction import Transaction
from tests.contract.conftest import FreshDatabase, OwnerOf
from tests.contract.payment.store_contract import PaymentStoreContract
from tests.contract.payment.subject import (
    LI,
    Made,
    Make,
    accepted,
    draft,
    issued,
    lease,
    refused,
    settle_key,
    succeeded,
)
from tests.fakes.payment_store import Event, OutboxMessage


@dataclass(frozen=True, slots=True)
class InDatabase:
    """The real store as a subject."""

    store: SqlPaymentStore
    requests: SqlRequestRecords
    database: Database

    async def history(self, payment_id: str) -> list[Event]:
        columns = EVENTS.c

        async def step(tx: Transaction) -> list[Event]:
            rows = await tx.execute(select(EVENTS).where(columns.payment_id == payment_id).order_by(columns.version))
            return [
                Event(
                    row.payment_id,
                    row.version,
                    PaymentState(row.state),
                    Fence(row.fence_generation, row.fence_token),
                    row.at_ms,
                )
                for row in rows
            ]

        return await self.database.read(step)

    async def messages(self) -> list[OutboxMessage]:
        columns = OUTBOX.c

        async def step(tx: Transaction) -> list[OutboxMessage]:
            rows = await tx.execute(select(OUTBOX).order_by(columns.payment_id, columns.purpose))
            return [
                OutboxMessage(
                    row.payment_id, OutboxAction(row.purpose), row.order_id, row.created_at_ms, row.delivered_at_ms
                )
                for row in rows
            ]

        return await self.database.read(step)

    async def request(self, key: RequestKey) -> tuple[RequestState, int]:
        columns = REQUESTS.c

        async def step(tx: Transaction) -> tuple[RequestState, int]:
            found = await tx.execute(
                select(columns.state, columns.attempt).where(
                    columns.caller == key.caller.name,
                    columns.caller_role == key.caller.role,
                    columns.method == key.method,
                    columns.key == key.key,
                )
            )
            row = found.one()
            return RequestState(row.state), row.attempt

        return await self.database.read(step)


async def in_database(database: Database, guards: Guards | None = None) -> InDatabase:
    guards = guards or Guards()
    store = SqlPaymentStore(database, guards)
    await store.prepare()
    return InDatabase(store, SqlRequestRecords(database, guards), database)


@pytest.fixture
def make(fresh_database: FreshDatabase, owner_of: OwnerOf, service_package: Path) -> Make:
    """Stores on empty, migrated databases; without the guard `unique` under their owner, who may drop its index."""

    async def make(guards: Guards | None = None) -> InDatabase:
        database = await fresh_database(service_package)
        return await in_database(database if guards is None or guards.unique else owner_of(database), guards)

    return make


class TestSqlPaymentStore(PaymentStoreContract):
    """The suite on the databases."""


async def test_migrations_make_the_tables_the_store_knows(database: Database) -> None:
    """Alembic finds no difference between a migrated database and store.py."""

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))

    async def step(connection: AsyncConnection) -> list[object]:
        return await connection.run_sync(differences)

    assert await database.inspect_schema(step) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE payment_events SET at_ms = 0",
        "DELETE FROM payment_events",
        "DELETE FROM payments",
    ],
)
async def test_append_only_rows_are_protected(database: Database, owner: Database, statement: str) -> None:
    """By the database itself, whoever asks it."""
    subject = await in_database(database)
    made = await succeeded(subject)
    before = await made.now()

    async def step(tx: Transaction) -> None:
        await tx.execute(text(statement))

    with pytest.raises(DBAPIError, match="refuses"):
        await owner.run(step)
    assert await made.now() == before
    assert [event.version for event in await subject.history("p1")] == [1, 2, 3]


async def test_unique_index_is_dropped_and_made_again_with_its_guard(owner: Database) -> None:
    """With the guard off it is dropped at start, and with it on it is made again: each as often as one likes."""

    def names(connection: Connection) -> set[str | None]:
        return {str(index["name"]) for index in inspect(connection).get_indexes("payments")}

    async def step(connection: AsyncConnection) -> set[str | None]:
        return await connection.run_sync(names)

    for guards, stands in (
        (Guards(), True),
        (Guards.without(["unique"]), False),
        (Guards.without(["unique"]), False),
        (Guards(), True),
        (Guards(), True),
    ):
        await in_database(owner, guards)
        assert (str(ONE_ACTIVE_PER_ORDER.name) in await owner.inspect_schema(step)) is stands
    subject = await in_database(owner)
    await (await accepted(subject)).submit()
    assert isinstance(await (await accepted(subject, draft("p2", settle_key("s2")))).submit(), ConflictingPayment)


async def test_two_instances_share_a_database(database: Database) -> None:
    """One ticket and one order, at two processes' stores at once: one payment is begun, one is active, nobody fails."""
    async with Database(database.url) as other:
        subjects = [await in_database(each) for each in (database, other)]
        ticket = await issued(subjects[0])
        outcomes = await asyncio.gather(
            *(subjects[n % 2].store.accept(draft(f"t{n}", ticket, ""), "f", lease()) for n in range(20)),
            return_exceptions=True,
        )
        assert refused(outcomes, RequestInProgress) == 19
        assert sum(isinstance(outcome, Accepted) for outcome in outcomes) == 1
        for n in range(20):
            await accepted(subjects[0], draft(f"p{n}", settle_key(f"s{n}")))
        submitted = await asyncio.gather(*(Made(subjects[n % 2], f"p{n}").submit() for n in range(20)))
        assert sum(isinstance(outcome, Payment) for outcome in submitted) == 1
        assert len({_winner(outcome) for outcome in submitted}) == 1


async def test_submit_that_conflicts_fails_alone_among_many_at_once(make: Make) -> None:
    """Two hundred payments are submitted at once, two of them of one order: the other orders' do not notice."""
    subject = await make()
    made = [
        await accepted(subject, draft(f"p{number}", settle_key(f"s{number}"), f"o{max(number, 1)}"))
        for number in range(200)
    ]
    outcomes = await asyncio.gather(*(one.submit() for one in made))
    conflicts = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, ConflictingPayment)]
    assert conflicts in ([0], [1])
    states = [(await one.now()).state for number, one in enumerate(made) if number not in conflicts]
    assert set(states) == {PaymentState.SUBMITTED}
    assert (await made[conflicts[0]].now()).state is PaymentState.CREATED


async def test_many_requests_at_once_are_accepted_once_each(make: Make) -> None:
    """Each of fifty requests comes twice at the same time: one is executed, the other is in progress."""
    subject = await make()
    drafts = [draft(f"p{number}", settle_key(f"s{number // 2}"), f"o{number // 2}") for number in range(100)]
    outcomes = await asyncio.gather(
        *(subject.store.accept(one, "f", lease()) for one in drafts), return_exceptions=True
    )
    assert refused(outcomes, RequestInProgress) == 50
    assert len([outcome for outcome in outcomes if isinstance(outcome, Accepted)]) == 50


async def test_changes_at_once_of_stale_and_newer_holders_are_told_apart(make: Make) -> None:
    """In one batch: each stale holder is refused, and each newer one's change is written with its event and answer."""
    subject = await make()
    made = [
        await accepted(subject, draft(f"p{number}", settle_key(f"s{number}"), f"o{number}")) for number in range(20)
    ]
    for one in made:
        await one.submit(Fence(1, 5))
    outcomes = await asyncio.gather(
        *(one.record(Fence(1, 4 + number % 2)) for number, one in enumerate(made)), return_exceptions=True
    )
    assert refused(outcomes, StaleFence) == 10
    for number, one in enumerate(made):
        newer = number % 2 == 1
        assert (await one.states())[-1] is (PaymentState.SUCCEEDED if newer else PaymentState.SUBMITTED)
        assert (await subject.request(settle_key(f"s{number}")))[0] is (
            RequestState.DONE if newer else RequestState.IN_PROGRESS
        )
    assert len(await subject.messages()) == 10


async def test_row_that_another_transaction_holds_fails_alone(database: Database) -> None:
    """The other changes of its batch are committed; it is not waited for longer than a statement may take."""
    if database.is_sqlite:
        return  # it has no lock of a row
    async with Database(database.url, statement_timeout_s=0.5) as hasty:
        subject, other = await in_database(database), await in_database(hasty)
        made = [
            await accepted(subject, draft(f"p{number}", settle_key(f"s{number}"), f"o{number}")) for number in range(5)
        ]
        held, done = asyncio.Event(), asyncio.Event()

        async def hold(tx: Transaction) -> None:
            await tx.execute(text("UPDATE payments SET asks = asks WHERE payment_id = 'p3'"))
            held.set()
            await done.wait()

        holding = asyncio.create_task(database.run(hold))
        await held.wait()
        outcomes = await asyncio.gather(*(Made(other, one.payment_id).submit() for one in made), return_exceptions=True)
        done.set()
        await holding
    assert isinstance(outcomes[3], Unavailable)
    assert [isinstance(outcome, Payment) for outcome in outcomes] == [True, True, True, False, True]


async def test_two_instances_that_accept_in_opposite_orders_do_not_deadlock(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of a batch are inserted in one order, whichever came first."""
    ended: list[str] = []
    translate = errors.wrapped

    def noting(error: Exception, *, invalidated: bool) -> DBAPIError:
        ended.append(type(error).__name__)
        return translate(error, invalidated=invalidated)

    monkeypatch.setattr("services.runtime.database.postgresql.wrapped", noting)
    async with Database(database.url) as elsewhere:
        stores = [(await in_database(one)).store for one in (database, elsewhere)]
        for turn in range(4):
            drafts = [draft(f"{turn}p{n}", settle_key(f"{turn}s{n}"), f"{turn}o{n}") for n in range(40)]
            others = [draft(f"{turn}q{n}", settle_key(f"{turn}s{n}"), f"{turn}o{n}") for n in reversed(range(40))]
            outcomes = await asyncio.gather(
                *(stores[0].accept(one, "f", lease()) for one in drafts),
                *(stores[1].accept(one, "f", lease()) for one in others),
                return_exceptions=True,
            )
            assert refused(outcomes, RequestInProgress) == 40
    assert "DeadlockDetectedError" not in ended


async def test_rising_fences_at_once_leave_the_highest(database: Database) -> None:
    """Ten holders write at once: the row ends at the highest fence, whoever came last, with one event a version."""
    subject = await in_database(database)
    made = await accepted(subject)
    tokens = (7, 3, 20, 11, 5, 19, 2, 13, 17, 1)
    outcomes = await asyncio.gather(*(made.submit(Fence(1, token)) for token in tokens), return_exceptions=True)
    assert isinstance(outcomes[2], Payment)
    assert (await made.now()).fence == Fence(1, 20)
    assert [event.version for event in await subject.history("p1")] == [1, 2]


async def test_clerk_is_kept_with_the_role(database: Database) -> None:
    """`settled_by` is what the token said, both halves of it."""
    made = await succeeded(await in_database(database))
    assert (await made.now()).clerk == LI


def _winner(outcome: Payment | ConflictingPayment) -> str:
    return (outcome.payment if isinstance(outcome, ConflictingPayment) else outcome).payment_id
