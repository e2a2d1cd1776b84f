"""Sizes of messages: whatever may be stored can be read back, alone and in a page."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import clerk_pb2, money_pb2
from services.kernel.money import MAX_MINOR_UNITS, Money
from services.ledger.model import MAX_LEGS
from services.order.model import MAX_LINES, MAX_QUANTITY, OrderLine, total
from services.runtime.grpc.pagination import PAGE_BYTES
from services.runtime.settings import Settings

#: A character of four bytes, of which a text may have 200; and the longest ids.
TEXT, NAME, ACCOUNT, KEY = "𠮷" * 200, "x" * 64, "x" * 100, "x" * 160
LARGE = 2**63 - 1
AMOUNT = money_pb2.Money(minor_units=MAX_MINOR_UNITS, currency_code="CNY")
CLERK = clerk_pb2.Clerk(name=NAME, role=clerk_pb2.ROLE_ACCOUNTANT)

#: The largest row of each list, in fields that other tests hold to their limits.
LARGEST: dict[str, Any] = {
    "order": order_pb2.Order(
        order_id=NAME,
        customer_id=NAME,
        state=order_pb2.ORDER_STATE_PAID,
        amount=AMOUNT,
        lines=[order_pb2.OrderLine(description=TEXT, quantity=MAX_QUANTITY, unit_price=AMOUNT)] * MAX_LINES,
        version=LARGE,
        round=2**31 - 1,
        payment_id=NAME,
        settled_by=CLERK,
        settled_at_ms=LARGE,
        created_at_ms=LARGE,
        updated_at_ms=LARGE,
    ),
    "payment": payment_pb2.Payment(
        payment_id=NAME,
        order_id=NAME,
        amount=AMOUNT,
        payer_account_id=ACCOUNT,
        payee_account_id=ACCOUNT,
        clerk=CLERK,
        journal_id=NAME,
        reversal_journal_id=NAME,
        decline_reason=TEXT * 10,
        memo=TEXT,
        ticket_id=NAME,
        card=NAME,
        acquirer_key=NAME,
        attention=TEXT * 10,
    ),
    "journal": ledger_pb2.Journal(
        journal_id=NAME,
        business_key=KEY,
        postings=[ledger_pb2.Posting(account_id=ACCOUNT, amount=-MAX_MINOR_UNITS)] * MAX_LEGS,
        memo=TEXT,
        order_id=NAME,
        payment_id=NAME,
        reversal_of=NAME,
        previous_hash=NAME,
        hash=NAME,
        posted_by=CLERK,
    ),
    "account": ledger_pb2.Account(account_id=ACCOUNT, currency_code="CNY", balance=-LARGE),
    "charge": acquirer_pb2.Charge(key=NAME, amount=AMOUNT, card=NAME, reference=NAME, decline_reason=NAME),
    "log entry": acquirer_pb2.LogEntry(key=NAME, amount=AMOUNT, card=NAME, reference=NAME, caller=NAME),
}


@pytest.mark.parametrize("row", LARGEST.values(), ids=LARGEST)
def test_largest_row_fits_a_page_several_times(row: Any) -> None:
    """So a page always has a row, and GetOrder, Settle and all other answers with one row fit a message."""
    assert row.ByteSize() * 4 < PAGE_BYTES


def test_page_fits_the_smallest_message_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it is left for the rest of an answer; a smaller limit is refused at start."""
    smallest = 2 * PAGE_BYTES
    assert Settings(max_message_bytes=smallest).max_message_bytes == smallest
    monkeypatch.setenv("COUNTINGHOUSE_MAX_MESSAGE_BYTES", str(smallest - 1))
    with pytest.raises(ValidationError, match="max_message_bytes"):
        Settings()


def test_largest_order_can_be_created() -> None:
    """The row above is no larger than what is taken."""
    price = Money(MAX_MINOR_UNITS // MAX_LINES, "CNY")
    lines = [OrderLine(TEXT, 1, price)] * MAX_LINES
    assert total(None, lines).minor_units == price.minor_units * MAX_LINES
