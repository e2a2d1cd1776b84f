"""Asks the acquirer, the ledger, the order service and the payment service, page by page.

The four are not read at one moment, and payments go on meanwhile. So what differs is looked at twice, with a pause in
between, and only what differs in both readings is a discrepancy, as only what has no outcome in both is undecided.
Payments are read last, so that whatever the others have of a payment, the payment is there as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.ledger.v1 import ledger_pb2 as ledger
from countinghouse.order.v1 import order_pb2 as order
from countinghouse.payment.v1 import payment_pb2 as payment
from countinghouse.type.v1 import money_pb2
from services.reconcile.matching import (
    ALL_TIME,
    Amount,
    Comparison,
    ControlAccount,
    Journal,
    Ours,
    PaidOrder,
    Period,
    Sides,
    Theirs,
    compare,
)
from services.runtime.grpc.enum_names import name_of

#: Rows to a page; an order has up to 100 lines, and an answer 1 MiB.
_PAGE, _ORDERS_PAGE = 500, 100
_OWED_BY_ACQUIRER = "acquirer:"
_GROWS_BY_DEBITS = (ledger.ACCOUNT_KIND_ASSET, ledger.ACCOUNT_KIND_EXPENSE)


class Reader(Protocol):
    """A way to ask the services and the acquirer, as an accountant."""

    async def read(self, service: str, method: str, request: Message) -> Any:
        """Read something; raise CountinghouseError."""
        ...


class Writer(Reader, Protocol):
    """A way to change something there as well."""

    async def change(self, service: str, method: str, request: Message, key: str) -> Any:
        """Change something under `key`, asking again while that may help; raise CountinghouseError."""
        ...


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What was read last, and how it compares."""

    sides: Sides
    compared: Comparison


async def find(reader: Reader, settle_s: float, period: Period = ALL_TIME) -> Reconciliation:
    """Read everything and compare it.

    Args:
        settle_s: Seconds between the two readings; the second is left out where nothing is open.
    """
    first = await read(reader)
    compared = compare(first, period)
    if not compared.open:
        return Reconciliation(first, compared)
    await asyncio.sleep(settle_s)
    second = await read(reader)
    return Reconciliation(second, compare(second, period, before=first))


async def read(reader: Reader) -> Sides:
    """Everything, once."""
    accounts = [account async for account in _accounts(reader)]
    theirs = [charge async for charge in _theirs(reader)]
    journals = [journal async for journal in _journals(reader)]
    orders = [paid async for paid in _paid_orders(reader)]
    ours = [row async for row in _payments(reader)]
    return Sides(tuple(theirs), tuple(ours), tuple(journals), tuple(orders), tuple(accounts))


async def _accounts(reader: Reader) -> AsyncIterator[ControlAccount]:
    """Return the accounts that have a counterpart at the acquirer, one for each currency."""
    request = ledger.ListAccountsRequest(page_size=_PAGE, prefix=_OWED_BY_ACQUIRER)
    async for page in _pages(reader, "ledger", "ListAccounts", request):
        for row in page.accounts:
            if row.account_id == f"{_OWED_BY_ACQUIRER}{row.currency_code}":
                balance = row.balance if row.kind in _GROWS_BY_DEBITS else -row.balance
                yield ControlAccount(row.account_id, row.currency_code, balance, row.version - 1)


async def _theirs(reader: Reader) -> AsyncIterator[Theirs]:
    request = acquirer.ListChargesRequest(page_size=_PAGE)
    async for page in _pages(reader, "acquirer", "ListCharges", request):
        for row in page.charges:
            amount = _amount(row.amount) if row.HasField("amount") else None
            yield Theirs(row.key, charge_state(row), amount, row.reference, row.decided_at_ms)


async def _journals(reader: Reader) -> AsyncIterator[Journal]:
    request = ledger.ListJournalsRequest(page_size=_PAGE)
    async for page in _pages(reader, "ledger", "ListJournals", request):
        for row in page.journals:
            yield _journal(row)


async def _paid_orders(reader: Reader) -> AsyncIterator[PaidOrder]:
    request = order.ListOrdersRequest(page_size=_ORDERS_PAGE, state=order.ORDER_STATE_PAID)
    async for page in _pages(reader, "order", "ListOrders", request):
        for row in page.orders:
            yield PaidOrder(row.order_id, row.payment_id, _amount(row.amount), row.settled_at_ms)


async def _payments(reader: Reader) -> AsyncIterator[Ours]:
    request = payment.ListPaymentsRequest(page_size=_PAGE)
    async for page in _pages(reader, "payment", "ListPayments", request):
        for row in page.payments:
            yield _ours(row)


async def _pages(reader: Reader, service: str, method: str, request: Any) -> AsyncIterator[Any]:
    while True:
        page = await reader.read(service, method, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _journal(row: ledger.Journal) -> Journal:
    debits = sum(leg.amount for leg in row.postings if leg.amount > 0)
    owed = sum(leg.amount for leg in row.postings if leg.account_id == f"{_OWED_BY_ACQUIRER}{row.currency_code}")
    return Journal(
        journal_id=row.journal_id,
        payment_id=row.payment_id,
        order_id=row.order_id,
        sequence=row.sequence,
        posted_at_ms=row.posted_at_ms,
        amount=Amount(-debits if row.reversal_of else debits, row.currency_code),
        owed=owed,
    )


def _ours(row: payment.Payment) -> Ours:
    return Ours(
        payment_id=row.payment_id,
        order_id=row.order_id,
        state=payment_state(row),
        by_card=row.source == payment.SOURCE_CARD,
        key=row.acquirer_key,
        amount=_amount(row.amount) if row.HasField("amount") else None,
        journal_id=row.journal_id,
        created_at_ms=row.created_at_ms,
        attention=row.attention,
    )


def _amount(money: money_pb2.Money) -> Amount:
    return Amount(money.minor_units, money.currency_code)


def payment_state(row: payment.Payment) -> str:
    """Return where a payment stands, like SUCCEEDED; a number if this program is too old to know it."""
    return name_of(payment.PaymentState, row.state, "PAYMENT_STATE_")


def charge_state(row: acquirer.Charge) -> str:
    """Return where a key stands at the acquirer, like CHARGED; a number if this program is too old to know it."""
    return name_of(acquirer.ChargeState, row.state, "CHARGE_STATE_")
