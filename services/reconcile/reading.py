"""Asks the acquirer, the payment service, the ledger and the order service, page by page.

The four are not read at one moment, and payments go on meanwhile. So what differs is looked at twice, with a pause in
between, and only what still differs in the same way is told.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Protocol

from google.protobuf.message import Message

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.ledger.v1 import ledger_pb2 as ledger
from countinghouse.order.v1 import order_pb2 as order
from countinghouse.payment.v1 import payment_pb2 as payment
from countinghouse.type.v1 import money_pb2
from services.reconcile.matching import Amount, Bill, Discrepancy, Ours, Sides, Theirs, compare

#: Rows to a page; a bill has up to 100 lines, and an answer 1 MiB.
_PAGE, _BILLS_PAGE = 500, 100
_OWED_BY_ACQUIRER = "acquirer:"


class Desk(Protocol):
    """A way to the services and to the acquirer, as an accountant."""

    async def read(self, service: str, method: str, request: Message) -> Any:
        """Asks for something; raises CountinghouseError."""
        ...

    async def change(self, service: str, method: str, request: Message, key: str) -> Any:
        """Changes something under `key`, asking again while that may help; raises CountinghouseError."""
        ...


async def find(desk: Desk, settle_s: float) -> tuple[Sides, list[Discrepancy]]:
    """What was read last, and what differs in it and differed before.

    Args:
        settle_s: Seconds between the two readings; the second is left out where nothing differs.
    """
    sides = await read(desk)
    first = compare(sides)
    if not first:
        return sides, []
    await asyncio.sleep(settle_s)
    sides = await read(desk)
    return sides, [discrepancy for discrepancy in compare(sides) if discrepancy in first]


async def read(desk: Desk) -> Sides:
    """Everything, once."""
    theirs = [charge async for charge in _theirs(desk)]
    paid = {row.order_id: Bill(row.payment_id, _amount(row.amount)) async for row in _paid(desk)}
    ours = [_ours(row) async for row in _payments(desk)]
    return Sides(tuple(theirs), tuple(ours), await _owed(desk), paid)


async def _theirs(desk: Desk) -> AsyncIterator[Theirs]:
    request = acquirer.ListChargesRequest(page_size=_PAGE)
    async for page in _pages(desk, "acquirer", "ListCharges", request):
        for row in page.charges:
            state = acquirer.ChargeState.Name(row.state).removeprefix("CHARGE_STATE_")
            yield Theirs(row.key, state, _amount(row.amount) if row.HasField("amount") else None, row.reference)


async def _payments(desk: Desk) -> AsyncIterator[payment.Payment]:
    request = payment.ListPaymentsRequest(page_size=_PAGE, source=payment.SOURCE_CARD)
    async for page in _pages(desk, "payment", "ListPayments", request):
        for row in page.payments:
            yield row


async def _paid(desk: Desk) -> AsyncIterator[order.Order]:
    request = order.ListOrdersRequest(page_size=_BILLS_PAGE, state=order.ORDER_STATE_PAID)
    async for page in _pages(desk, "order", "ListOrders", request):
        for row in page.orders:
            yield row


async def _owed(desk: Desk) -> dict[tuple[str, str], int]:
    owed: Counter[tuple[str, str]] = Counter()
    accounts = ledger.ListAccountsRequest(page_size=_PAGE, prefix=_OWED_BY_ACQUIRER)
    async for page in _pages(desk, "ledger", "ListAccounts", accounts):
        for account in page.accounts:
            journals = ledger.ListJournalsRequest(page_size=_PAGE, account_id=account.account_id)
            async for journal_page in _pages(desk, "ledger", "ListJournals", journals):
                for journal in journal_page.journals:
                    legs = [leg.amount for leg in journal.postings if leg.account_id == account.account_id]
                    owed[journal.payment_id, journal.currency_code] += sum(legs)
    return {of: sum_ for of, sum_ in owed.items() if sum_}


async def _pages(desk: Desk, service: str, method: str, request: Any) -> AsyncIterator[Any]:
    while True:
        page = await desk.read(service, method, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _ours(row: payment.Payment) -> Ours:
    return Ours(
        payment_id=row.payment_id,
        order_id=row.order_id,
        state=payment.PaymentState.Name(row.state).removeprefix("PAYMENT_STATE_"),
        key=row.acquirer_key,
        amount=_amount(row.amount) if row.HasField("amount") else None,
        card=row.card,
        attention=row.attention,
    )


def _amount(money: money_pb2.Money) -> Amount:
    return Amount(money.minor_units, money.currency_code)
