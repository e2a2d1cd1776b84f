"""The payment service's tables, and their rows to and from the types of `model.py`. For the stores and `main.py`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    and_,
    exists,
    not_,
    or_,
)

from services.kernel.fence import Fence
from services.kernel.idempotency import RequestKey, RequestState
from services.kernel.money import Money
from services.kernel.principal import MAX_DELEGATION_CHARS, Principal, Role
from services.payment.model import (
    ACTIVE,
    ISSUE_TICKET,
    PARK,
    PAY,
    REVERSE,
    AcquirerRetry,
    OutboxAction,
    Parking,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    Source,
    Transition,
)
from services.runtime.database.database import ensemble_table
from services.runtime.database.idempotency_table import request_table
from services.runtime.database.retention import Retention, removals_table

METADATA = MetaData()
ENSEMBLE = ensemble_table(METADATA)
#: `ticket_key` is the ticket that an IssueTicket issued; empty for others, and for those of before it was kept.
REQUESTS = request_table(METADATA, Column("ticket_key", String(64), nullable=False, server_default=""))
_IS_UNUSED_TICKET = and_(REQUESTS.c.method == "Pay", REQUESTS.c.state.in_(["ISSUED", "EXPIRED"]))
Index(
    "requests_unused_tickets",
    REQUESTS.c.caller,
    REQUESTS.c.caller_role,
    sqlite_where=_IS_UNUSED_TICKET,
    postgresql_where=_IS_UNUSED_TICKET,
)
REMOVALS = removals_table(METADATA)

PAYMENTS = Table(
    "payments",
    METADATA,
    Column("payment_id", String(64), primary_key=True),
    Column("request_caller", String(64), nullable=False),
    Column("request_role", String(16), nullable=False, server_default=""),
    Column("request_method", String(32), nullable=False),
    Column("request_key", String(64), nullable=False),
    Column("order_id", String(64), nullable=False),
    Column("round", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("source", String(16), nullable=False),
    Column("customer_id", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("payer_account_id", String(100), nullable=False),
    Column("payee_account_id", String(100), nullable=False),
    Column("clerk_name", String(64), nullable=False),
    Column("clerk_role", String(16), nullable=False),
    Column("clerk_delegation", String(MAX_DELEGATION_CHARS), nullable=False, server_default=""),
    Column("memo", String(200), nullable=False),
    Column("journal_id", String(64), nullable=False),
    Column("reversal_caller", String(64), nullable=False),
    Column("reversal_role", String(16), nullable=False),
    Column("reversal_delegation", String(MAX_DELEGATION_CHARS), nullable=False, server_default=""),
    Column("reversal_key", String(64), nullable=False),
    Column("reversal_reason", String(200), nullable=False),
    Column("reversal_journal_id", String(64), nullable=False),
    Column("decline_reason", String(64), nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Column("settled_at_ms", BigInteger, nullable=False),
    Column("card", String(64), nullable=False, server_default=""),
    Column("attempt", Integer, nullable=False, server_default="0"),
    Column("acquirer_key", String(80), nullable=False, server_default=""),
    Column("asks", Integer, nullable=False, server_default="0"),
    Column("ask_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("attention", String(64), nullable=False, server_default=""),
    Column("parking_caller", String(64), nullable=False, server_default=""),
    Column("parking_role", String(16), nullable=False, server_default=""),
    Column("parking_delegation", String(MAX_DELEGATION_CHARS), nullable=False, server_default=""),
    Column("parking_key", String(64), nullable=False, server_default=""),
    Column("parking_reason", String(200), nullable=False, server_default=""),
)
Index("payments_by_age", PAYMENTS.c.created_at_ms, PAYMENTS.c.payment_id)
Index("payments_by_order", PAYMENTS.c.order_id)
Index("payments_by_fence", PAYMENTS.c.fence_generation, PAYMENTS.c.fence_token)
Index("payments_by_request", PAYMENTS.c.request_caller, PAYMENTS.c.request_method, PAYMENTS.c.request_key)
Index("payments_by_reversal", PAYMENTS.c.reversal_caller, PAYMENTS.c.reversal_key)
_NEEDS_ATTENTION = PAYMENTS.c.attention != ""
Index(
    "payments_needing_attention",
    PAYMENTS.c.created_at_ms,
    PAYMENTS.c.payment_id,
    sqlite_where=_NEEDS_ATTENTION,
    postgresql_where=_NEEDS_ATTENTION,
)
_IS_PARKED = PAYMENTS.c.state == str(PaymentState.PARKED)
Index("payments_parked", PAYMENTS.c.ask_at_ms, sqlite_where=_IS_PARKED, postgresql_where=_IS_PARKED)
IS_ACTIVE = and_(PAYMENTS.c.order_id != "", PAYMENTS.c.state.in_([str(state) for state in ACTIVE]))
ONE_ACTIVE_PER_ORDER = Index(
    "payments_one_active_per_order",
    PAYMENTS.c.order_id,
    unique=True,
    sqlite_where=IS_ACTIVE,
    postgresql_where=IS_ACTIVE,
)

#: Every state a payment has been in; append-only.
EVENTS = Table(
    "payment_events",
    METADATA,
    Column("payment_id", String(64), primary_key=True),
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("state", String(16), nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor_name", String(64), nullable=False, server_default=""),
    Column("actor_role", String(16), nullable=False, server_default=""),
    Column("reason", String(200), nullable=False, server_default=""),
)

#: Notifications to the order service, delivered or not.
OUTBOX = Table(
    "outbox",
    METADATA,
    Column("payment_id", String(64), primary_key=True),
    Column("purpose", String(16), primary_key=True),
    Column("order_id", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("delivered_at_ms", BigInteger, nullable=True),
)
Index("outbox_undelivered", OUTBOX.c.delivered_at_ms, OUTBOX.c.created_at_ms)

#: Whose card each token is: that of the customer for whom it was first charged. A row is never changed. Without it a
#: clerk, or a customer who has seen a token, could pay one customer's order with another's card.
CARD_OWNERS = Table(
    "card_owners",
    METADATA,
    Column("card", String(64), primary_key=True),
    Column("customer_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("bound_at_ms", BigInteger, nullable=False),
)


def _of_payment(ticket: Column[str], *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return whether there is a payment with this ticket of a request's caller."""
    columns, request = PAYMENTS.c, REQUESTS.c
    return exists().where(
        columns.request_caller == request.caller,
        columns.request_role == request.caller_role,
        columns.request_method == PAY,
        columns.request_key == ticket,
        *conditions,
    )


def _is_open(ticket: Column[str]) -> ColumnElement[bool]:
    """Return whether this ticket of a request's caller may yet be paid with."""
    tickets, request = REQUESTS.alias(), REQUESTS.c
    return exists().where(
        tickets.c.caller == request.caller,
        tickets.c.caller_role == request.caller_role,
        tickets.c.method == PAY,
        tickets.c.key == ticket,
        tickets.c.state.in_((RequestState.ISSUED, RequestState.IN_PROGRESS)),
    )


#: A ticket that paid no order; a request for a ticket with which nothing was or will be paid. See retention.py.
RETENTION = Retention(
    REQUESTS,
    REMOVALS,
    or_(
        and_(REQUESTS.c.method == PAY, not_(_of_payment(REQUESTS.c.key, PAYMENTS.c.order_id != ""))),
        and_(
            REQUESTS.c.method == ISSUE_TICKET,
            REQUESTS.c.ticket_key != "",
            not_(_of_payment(REQUESTS.c.ticket_key)),
            not_(_is_open(REQUESTS.c.ticket_key)),
        ),
    ),
)


#: The fields of a payment that are not a column of the same name.
_COLUMNS = {
    "amount": ("amount_minor", "currency"),
    "reversal": ("reversal_caller", "reversal_role", "reversal_delegation", "reversal_key", "reversal_reason"),
    "parking": ("parking_caller", "parking_role", "parking_delegation", "parking_key", "parking_reason"),
    "retry": ("asks", "ask_at_ms", "attention"),
}


def to_row(payment: Payment) -> dict[str, Any]:
    """Return a payment as its row."""
    reversal, parking = payment.reversal, payment.parking
    return {
        "payment_id": payment.payment_id,
        "request_caller": payment.key.caller.name,
        "request_role": payment.key.caller.role,
        "request_method": payment.key.method,
        "request_key": payment.key.key,
        "order_id": payment.order_id,
        "round": payment.round,
        "state": payment.state,
        "source": payment.source,
        "customer_id": payment.customer_id,
        "amount_minor": payment.amount.minor_units if payment.amount else 0,
        "currency": payment.amount.currency if payment.amount else "",
        "payer_account_id": payment.payer_account_id,
        "payee_account_id": payment.payee_account_id,
        "clerk_name": payment.clerk.name,
        "clerk_role": payment.clerk.role,
        "clerk_delegation": payment.clerk.delegation,
        "memo": payment.memo,
        "journal_id": payment.journal_id,
        "reversal_caller": reversal.key.caller.name if reversal else "",
        "reversal_role": reversal.clerk.role if reversal else "",
        "reversal_delegation": reversal.clerk.delegation if reversal else "",
        "reversal_key": reversal.key.key if reversal else "",
        "reversal_reason": reversal.reason if reversal else "",
        "reversal_journal_id": payment.reversal_journal_id,
        "decline_reason": payment.decline_reason,
        "fence_generation": payment.fence.generation,
        "fence_token": payment.fence.token,
        "version": payment.version,
        "created_at_ms": payment.created_at_ms,
        "updated_at_ms": payment.updated_at_ms,
        "settled_at_ms": payment.settled_at_ms,
        "card": payment.card,
        "attempt": payment.attempt,
        "acquirer_key": payment.acquirer_key,
        "asks": payment.retry.asks,
        "ask_at_ms": payment.retry.ask_at_ms,
        "attention": payment.retry.attention,
        "parking_caller": parking.key.caller.name if parking else "",
        "parking_role": parking.clerk.role if parking else "",
        "parking_delegation": parking.clerk.delegation if parking else "",
        "parking_key": parking.key.key if parking else "",
        "parking_reason": parking.reason if parking else "",
    }


def columns_of(transition: Transition) -> tuple[str, ...]:
    """Return the columns that a transition writes, besides the fence's."""
    changed = [column for field in transition.sets for column in _COLUMNS.get(field, (field,))]
    return tuple(dict.fromkeys(["state", "version", "updated_at_ms", "attention", *changed]))


def to_outbox_row(payment: Payment, action: OutboxAction) -> dict[str, Any]:
    """Return the row that notifies the order service of a payment's latest change."""
    return {
        "payment_id": payment.payment_id,
        "purpose": action,
        "order_id": payment.order_id,
        "created_at_ms": payment.updated_at_ms,
    }


def to_event_row(payment: Payment) -> dict[str, Any]:
    """Return the row that records a payment's latest change."""
    actor, reason = payment.latest_change
    return {
        "payment_id": payment.payment_id,
        "version": payment.version,
        "state": payment.state,
        "fence_generation": payment.fence.generation,
        "fence_token": payment.fence.token,
        "at_ms": payment.updated_at_ms,
        "actor_name": actor.name,
        "actor_role": actor.role,
        "reason": reason,
    }


def to_event(row: Row[Any]) -> PaymentEvent:
    """Return a row as the change that it records."""
    return PaymentEvent(
        payment_id=row.payment_id,
        version=row.version,
        state=PaymentState(row.state),
        fence=Fence(row.fence_generation, row.fence_token),
        at_ms=row.at_ms,
        actor=Principal(row.actor_name, Role(row.actor_role)) if row.actor_name else None,
        reason=row.reason,
    )


def to_payment(row: Row[Any]) -> Payment:
    """Return a row as its payment."""
    reversal = None
    if row.reversal_key:
        clerk = Principal(row.reversal_caller, Role(row.reversal_role), row.reversal_delegation)
        reversal = Reversal(RequestKey(clerk, REVERSE, row.reversal_key), clerk, row.reversal_reason)
    parking = None
    if row.parking_key:
        clerk = Principal(row.parking_caller, Role(row.parking_role), row.parking_delegation)
        parking = Parking(RequestKey(clerk, PARK, row.parking_key), clerk, row.parking_reason)
    return Payment(
        payment_id=row.payment_id,
        key=RequestKey(Principal(row.request_caller, Role(row.request_role)), row.request_method, row.request_key),
        order_id=row.order_id,
        round=row.round,
        state=PaymentState(row.state),
        source=Source(row.source),
        customer_id=row.customer_id,
        amount=Money(row.amount_minor, row.currency) if row.amount_minor else None,
        payer_account_id=row.payer_account_id,
        payee_account_id=row.payee_account_id,
        clerk=Principal(row.clerk_name, Role(row.clerk_role), row.clerk_delegation),
        memo=row.memo,
        journal_id=row.journal_id,
        reversal=reversal,
        reversal_journal_id=row.reversal_journal_id,
        decline_reason=row.decline_reason,
        fence=Fence(row.fence_generation, row.fence_token),
        version=row.version,
        created_at_ms=row.created_at_ms,
        updated_at_ms=row.updated_at_ms,
        settled_at_ms=row.settled_at_ms,
        card=row.card,
        attempt=row.attempt,
        acquirer_key=row.acquirer_key,
        retry=AcquirerRetry(row.asks, row.ask_at_ms, row.attention),
        parking=parking,
    )
