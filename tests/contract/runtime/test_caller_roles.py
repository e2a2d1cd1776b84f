"""Request ids of the release before, whose rows know their caller's name only, after the migration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

import services
from services.kernel.errors import FailedPrecondition, NotFound
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, Lease, RequestKey, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind
from services.ledger.store import SqlLedgerStore
from services.order.model import Order
from services.order.store import SqlOrderStore
from services.payment.model import PAY, REVERSE, SETTLE, Accepted, Payment, Source
from services.payment.request_records import SqlRequestRecords
from services.payment.store import SqlPaymentStore
from services.runtime.database.database import Database
from services.runtime.database.migrations import bring_up_to_date
from services.runtime.database.transaction import Transaction

SERVICES = Path(services.__path__[0])
NOW_MS = 50_000
LI, CUSTOMER_LI = Principal("li", Role.CASHIER), Principal("li", Role.CUSTOMER)
MEI, WANG = Principal("mei", Role.CUSTOMER), Principal("wang", Role.ACCOUNTANT)
DONE = StoredResponse(True, b"done")
PAYERS = (Role.CUSTOMER, Role.CASHIER, Role.ACCOUNTANT)


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    async with Database(database_url) as database:
        yield database


async def migrate(database: Database, service: str, revision: str) -> None:
    """Bring an empty database to the schema of an earlier release."""

    def upgrade(connection: Connection) -> None:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(SERVICES / service / "migrations"))
        command.upgrade(config, revision)

    async def step(connection: AsyncConnection) -> None:
        await connection.run_sync(upgrade)

    await database.change_schema(step)


async def insert(database: Database, table: str, row: Mapping[str, Any]) -> None:
    async def step(tx: Transaction) -> None:
        names = ", ".join(row)
        values = ", ".join(f":{name}" for name in row)
        await tx.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), dict(row))  # noqa: S608

    await database.run(step)


def request(caller: str, method: str, key: str, state: str = "DONE", **changes: Any) -> dict[str, Any]:
    """Return a row of the release before."""
    done = state == "DONE"
    row = {
        "caller": caller,
        "method": method,
        "key": key,
        "state": state,
        "fingerprint": "f" if state in {"DONE", "IN_PROGRESS"} else "",
        "attempt": 1,
        "owner": "payment-1",
        "lease_until_ms": 1,
        "expires_at_ms": 10 * NOW_MS,
        "order_id": "",
        "response_ok": True if done else None,
        "response": b"done" if done else None,
        "created_at_ms": 7,
        "updated_at_ms": 7,
    }
    return row | changes


def payment(payment_id: str, clerk: Principal, method: str, key: str, **changes: Any) -> dict[str, Any]:
    """Return a row of the release before."""
    empty = (
        *("currency", "payer_account_id", "payee_account_id", "memo", "journal_id", "decline_reason"),
        *("reversal_caller", "reversal_role", "reversal_key", "reversal_reason", "reversal_journal_id"),
    )
    none = ("round", "amount_minor", "fence_generation", "fence_token", "settled_at_ms")
    row = dict.fromkeys(empty, "") | dict.fromkeys(none, 0)
    row |= {"payment_id": payment_id, "request_caller": clerk.name, "request_method": method, "request_key": key}
    row |= {"order_id": payment_id, "state": "CREATED", "source": "DRAWER", "customer_id": "mei", "version": 1}
    row |= {"clerk_name": clerk.name, "clerk_role": str(clerk.role), "created_at_ms": 7, "updated_at_ms": 7}
    return row | changes


def lease() -> Lease:
    return Lease("payment-1", NOW_MS, NOW_MS + 5_000)


def draft(payment_id: str, clerk: Principal, method: str, key: str) -> Payment:
    return Payment.created(payment_id, RequestKey(clerk, method, key), "", Source.DRAWER, clerk, "", NOW_MS)


class TestPayment:
    """The payment service's requests and tickets."""

    @pytest.fixture
    async def store(self, empty: Database) -> SqlPaymentStore:
        await migrate(empty, "payment", "0002")
        undone = {"reversal_caller": "wang", "reversal_role": "accountant", "reversal_key": "v1", "state": "REVERSED"}
        for row in (
            payment("p1", LI, SETTLE, "s1", **undone),
            payment("p2", LI, SETTLE, "s2"),
            payment("p3", MEI, PAY, "t1"),
            payment("p4", WANG, SETTLE, "s4", state="DECLINED"),
            payment("p5", LI, PAY, "t5"),
        ):
            await insert(empty, "payments", row)
        for row in (
            request("li", SETTLE, "s1"),
            request("wang", REVERSE, "v1"),
            request("wang", REVERSE, "refused", response_ok=False),
            request("li", SETTLE, "s2", "IN_PROGRESS"),
            request("mei", PAY, "t1"),
            request("li", "IssueTicket", "i1"),
            request("wang", PAY, "unused", "ISSUED", order_id="o9"),
            request("tom", PAY, "whose", "ISSUED"),
            request("li", PAY, "t5", "ISSUED", fingerprint="f"),
        ):
            await insert(empty, "requests", row)
        await bring_up_to_date(empty, SERVICES / "payment", migrate=True)
        return SqlPaymentStore(empty, Guards())

    @pytest.fixture
    def requests(self, store: SqlPaymentStore, empty: Database) -> SqlRequestRecords:
        """Those beside the payments of `store`."""
        return SqlRequestRecords(empty, Guards())

    async def test_migrated_settle_is_replayed_to_its_clerk_and_new_to_a_customer_of_the_same_name(
        self, store: SqlPaymentStore
    ) -> None:
        assert await store.accept(draft("p9", LI, SETTLE, "s1"), "f", lease()) == DONE
        theirs = await store.accept(draft("p9", CUSTOMER_LI, SETTLE, "s1"), "other", lease())
        assert isinstance(theirs, Accepted)
        assert theirs.payment.payment_id == "p9"

    async def test_migrated_pay_is_replayed_to_its_customer_alone(self, store: SqlPaymentStore) -> None:
        assert await store.accept(draft("p9", MEI, PAY, "t1"), "f", lease()) == DONE
        with pytest.raises(NotFound):
            await store.accept(draft("p9", replace(MEI, role=Role.CASHIER), PAY, "t1"), "f", lease())

    @pytest.mark.parametrize(("key", "ok"), [("v1", True), ("refused", False)])
    async def test_migrated_reversal_is_replayed_to_its_accountant(
        self, requests: SqlRequestRecords, key: str, ok: bool
    ) -> None:
        """Also one that no payment tells of: only accountants reverse."""
        stored = await requests.begin(RequestKey(WANG, REVERSE, key), "f", lease())
        assert stored == StoredResponse(ok, b"done")

    async def test_migrated_execution_is_carried_on(self, store: SqlPaymentStore, requests: SqlRequestRecords) -> None:
        """By the worker, with the payment that it began."""
        (row,) = await requests.overdue(now_ms=NOW_MS, limit=9)
        assert row.key == RequestKey(LI, SETTLE, "s2")
        carried_on = await store.of_request(row.key)
        assert carried_on is not None
        assert (carried_on.payment_id, carried_on.key.caller) == ("p2", LI)

    async def test_migrated_reversal_is_found_by_its_key(self, store: SqlPaymentStore) -> None:
        undone = await store.of_request(RequestKey(WANG, REVERSE, "v1"))
        assert undone is not None
        assert undone.reversal is not None
        assert (undone.payment_id, undone.reversal.key.caller) == ("p1", WANG)

    @pytest.mark.parametrize("role", PAYERS)
    async def test_migrated_request_of_an_unknown_role_is_replayed_to_every_role_of_that_name(
        self, requests: SqlRequestRecords, role: Role
    ) -> None:
        """Its caller is one of them, and must not execute it a second time."""
        key = RequestKey(Principal("li", role), "IssueTicket", "i1")
        assert await requests.begin(key, "f", lease()) == DONE

    async def test_migrated_ticket_is_that_of_the_one_person_who_paid_under_its_name(
        self, store: SqlPaymentStore, requests: SqlRequestRecords
    ) -> None:
        assert await requests.ticket_order(RequestKey(WANG, PAY, "unused")) == "o9"
        assert isinstance(await store.accept(draft("p9", WANG, PAY, "unused"), "f", lease()), Accepted)
        with pytest.raises(NotFound):
            await requests.ticket_order(RequestKey(replace(WANG, role=Role.CUSTOMER), PAY, "unused"))

    async def test_migrated_ticket_that_was_given_back_keeps_its_payment(self, store: SqlPaymentStore) -> None:
        carried_on = await store.accept(draft("p9", LI, PAY, "t5"), "f", lease())
        assert isinstance(carried_on, Accepted)
        assert carried_on.payment.payment_id == "p5"

    @pytest.mark.parametrize("role", PAYERS)
    async def test_migrated_unused_ticket_of_an_unknown_person_has_expired(
        self, store: SqlPaymentStore, role: Role
    ) -> None:
        """Nobody can tell whose it is, and it must not be three persons'."""
        tom = Principal("tom", role)
        with pytest.raises(FailedPrecondition) as refusal:
            await store.accept(draft("p9", tom, PAY, "whose"), "f", lease())
        assert refusal.value.reason == "TICKET_EXPIRED"


async def test_migrated_card_is_that_of_the_one_customer_who_used_it(empty: Database) -> None:
    """One that several have used is the next one's."""
    await migrate(empty, "payment", "0002")
    for number, (card, customer_id) in enumerate(
        (("tok-a", "mei"), ("tok-a", "mei"), ("tok-b", "mei"), ("tok-b", "tom"))
    ):
        by_card = {"source": "CARD", "card": card, "customer_id": customer_id, "attempt": 1, "state": "DECLINED"}
        await insert(empty, "payments", payment(f"p{number}", LI, SETTLE, f"s{number}", **by_card))
    await bring_up_to_date(empty, SERVICES / "payment", migrate=True)

    async def step(tx: Transaction) -> list[tuple[str, str]]:
        rows = await tx.execute(text("SELECT card, customer_id FROM card_owners"))
        return [(row.card, row.customer_id) for row in rows]

    assert await empty.read(step) == [("tok-a", "mei")]


class TestOrder:
    """The order service's requests."""

    @pytest.fixture
    async def store(self, empty: Database) -> SqlOrderStore:
        await migrate(empty, "order", "0001")
        order = {"order_id": "o1", "customer_id": "li", "state": "CANCELLED", "amount_minor_units": 300}
        order |= {"currency_code": "CNY", "line_count": 0, "version": 2, "round": 1, "payment_id": ""}
        order |= {"settled_by_name": "", "settled_by_role": "", "settled_at_ms": 0, "created_at_ms": 7}
        await insert(empty, "orders", order | {"fence_generation": 0, "fence_token": 0, "updated_at_ms": 8})
        for version, to_state, role, at_ms in ((1, "UNPAID", "customer", 7), (2, "CANCELLED", "cashier", 8)):
            event = {"order_id": "o1", "version": version, "from_state": "", "to_state": to_state, "round": 1}
            event |= {"payment_id": "", "fence_generation": 0, "fence_token": 0, "actor_name": "li"}
            await insert(empty, "order_events", event | {"actor_role": role, "at_ms": at_ms})
        for row in (
            request("li", "CreateOrder", "c1"),
            request("li", "CancelOrder", "x1", created_at_ms=8),
            request("li", "CreateOrder", "refused", response_ok=False, created_at_ms=9),
        ):
            await insert(empty, "requests", row)
        await bring_up_to_date(empty, SERVICES / "order", migrate=True)
        return SqlOrderStore(empty, Guards())

    @pytest.mark.parametrize(
        ("method", "key", "owner"), [("CreateOrder", "c1", CUSTOMER_LI), ("CancelOrder", "x1", LI)]
    )
    async def test_migrated_change_is_its_actors_alone(
        self, store: SqlOrderStore, method: str, key: str, owner: Principal
    ) -> None:
        for principal in (LI, CUSTOMER_LI):
            stored = await store.answered(KeyedRequest(RequestKey(principal, method, key), "f", NOW_MS))
            assert stored == (Answer(DONE, replayed=True) if principal == owner else None)

    @pytest.mark.parametrize("role", PAYERS)
    async def test_migrated_refusal_of_an_unknown_role_is_replayed(self, store: SqlOrderStore, role: Role) -> None:
        clerk = Principal("li", role)
        order = Order("o2", "li", Money(300, "CNY"), (), NOW_MS, NOW_MS)
        answer = await store.create(
            KeyedRequest(RequestKey(clerk, "CreateOrder", "refused"), "f", NOW_MS), order, StoredResponse(True, b"new")
        )
        assert answer == Answer(StoredResponse(False, b"done"), replayed=True)
        assert await store.get("o2") is None


@pytest.mark.parametrize("role", [Role.ACCOUNTANT, Role.OPERATOR])
async def test_migrated_opening_of_an_account_is_replayed(empty: Database, role: Role) -> None:
    """To whoever of that name may open one."""
    await migrate(empty, "ledger", "0001")
    await insert(empty, "requests", request("wang", "OpenAccount", "a1"))
    await bring_up_to_date(empty, SERVICES / "ledger", migrate=True)
    store = SqlLedgerStore(empty, Guards())
    asked = KeyedRequest(RequestKey(Principal("wang", role), "OpenAccount", "a1"), "f", NOW_MS)
    account = Account("x", AccountKind.LIABILITY, "CNY")
    assert await store.open_account(asked, account, StoredResponse(True, b"new")) == Answer(DONE, replayed=True)
    assert await store.account("x") is None
