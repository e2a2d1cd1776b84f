"""The order service's tables, and their rows to and from the types of `model.py`. For `store.py` and `main.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
)

from services.kernel.fence import Fence
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import Change, Order, OrderEvent, OrderLine, OrderState
from services.runtime.database.database import ensemble_table
from services.runtime.database.idempotency_table import request_table
from services.runtime.database.retention import Retention, removals_table

METADATA = MetaData()

#: `seq` orders the orders by when they were made, for paging; SQLite counts only plain INTEGER keys by itself.
ORDERS = Table(
    "orders",
    METADATA,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("order_id", String(64), nullable=False, unique=True),
    Column("customer_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("amount_minor_units", BigInteger, key="amount_minor", nullable=False),
    Column("currency_code", String(3), key="currency", nullable=False),
    Column("line_count", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("round", Integer, nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("settled_by_name", String(64), nullable=False),
    Column("settled_by_role", String(16), nullable=False),
    Column("settled_at_ms", BigInteger, nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    CheckConstraint("amount_minor_units > 0", name="orders_amount_is_payable"),
    CheckConstraint(
        "(state IN ('PAYING', 'PAID')) = (payment_id <> '')", name="orders_payment_is_named_while_it_holds"
    ),
    CheckConstraint("(state = 'PAID') = (settled_at_ms > 0)", name="orders_settled_when_paid"),
)
Index("orders_by_customer", ORDERS.c.customer_id, ORDERS.c.seq)
Index("orders_by_state", ORDERS.c.state, ORDERS.c.seq)
Index("orders_by_fence", ORDERS.c.fence_generation, ORDERS.c.fence_token)

ORDER_LINES = Table(
    "order_lines",
    METADATA,
    Column("order_id", String(64), ForeignKey("orders.order_id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("description", String(200), nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("unit_minor_units", BigInteger, key="unit_price_minor", nullable=False),
)

#: The history. `from_state` is empty for an order's first event; `payment_id` is the payment that made the move,
#: empty for none; the fence is the one it was made under, 0.0 for none.
ORDER_EVENTS = Table(
    "order_events",
    METADATA,
    Column("order_id", String(64), ForeignKey("orders.order_id"), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("from_state", String(16), nullable=False),
    Column("to_state", String(16), nullable=False),
    Column("round", Integer, nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("fence_generation", BigInteger, nullable=False),
    Column("fence_token", BigInteger, nullable=False),
    Column("actor_name", String(64), nullable=False),
    Column("actor_role", String(16), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("reason", String(200), nullable=False, server_default=""),
)

REQUESTS = request_table(METADATA)
ENSEMBLE = ensemble_table(METADATA)
#: A refusal changed nothing; what made or cancelled an order is kept with it. See runtime/database/retention.py.
RETENTION = Retention(REQUESTS, removals_table(METADATA), REQUESTS.c.response_ok.is_(False))


def changing_columns(order: Order) -> dict[str, Any]:
    """Return the columns that a move may change."""
    return {
        "state": order.state,
        "version": order.version,
        "round": order.round,
        "payment_id": order.payment_id,
        "settled_by_name": order.settled_by.name if order.settled_by else "",
        "settled_by_role": order.settled_by.role if order.settled_by else "",
        "settled_at_ms": order.settled_at_ms,
        "updated_at_ms": order.updated_at_ms,
    }


def order_row(order: Order) -> dict[str, Any]:
    return changing_columns(order) | {
        "order_id": order.order_id,
        "customer_id": order.customer_id,
        "amount_minor": order.amount.minor_units,
        "currency": order.amount.currency,
        "line_count": len(order.lines),
        "fence_generation": 0,
        "fence_token": 0,
        "created_at_ms": order.created_at_ms,
    }


def line_rows(order: Order) -> list[dict[str, Any]]:
    return [
        {
            "order_id": order.order_id,
            "number": number,
            "description": line.description,
            "quantity": line.quantity,
            "unit_price_minor": line.unit_price.minor_units,
        }
        for number, line in enumerate(order.lines, start=1)
    ]


def event_row(
    before: Order | None, after: Order, actor: Principal, at_ms: int, change: Change | None = None, *, reason: str = ""
) -> dict[str, Any]:
    return {
        "order_id": after.order_id,
        "version": after.version,
        "from_state": before.state if before else "",
        "to_state": after.state,
        "round": after.round,
        "payment_id": change.payment_id if change else "",
        "fence_generation": change.fence.generation if change else 0,
        "fence_token": change.fence.token if change else 0,
        "actor_name": actor.name,
        "actor_role": actor.role,
        "at_ms": at_ms,
        "reason": reason,
    }


def to_event(row: Row[Any]) -> OrderEvent:
    return OrderEvent(
        order_id=row.order_id,
        version=row.version,
        from_state=OrderState(row.from_state) if row.from_state else None,
        to_state=OrderState(row.to_state),
        round=row.round,
        payment_id=row.payment_id,
        fence=Fence(row.fence_generation, row.fence_token),
        actor=Principal(row.actor_name, Role(row.actor_role)),
        at_ms=row.at_ms,
        reason=row.reason,
    )


def to_order(row: Row[Any], lines: Iterable[Row[Any]]) -> Order:
    currency = row.currency
    return Order(
        order_id=row.order_id,
        customer_id=row.customer_id,
        amount=Money(row.amount_minor, currency),
        lines=tuple(
            OrderLine(line.description, line.quantity, Money(line.unit_price_minor, currency)) for line in lines
        ),
        created_at_ms=row.created_at_ms,
        updated_at_ms=row.updated_at_ms,
        state=OrderState(row.state),
        version=row.version,
        round=row.round,
        payment_id=row.payment_id,
        settled_by=Principal(row.settled_by_name, Role(row.settled_by_role)) if row.settled_by_name else None,
        settled_at_ms=row.settled_at_ms,
    )
