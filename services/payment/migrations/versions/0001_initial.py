"""Payments, their history, the outbox, tickets and requests, and the ensemble's generation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import create_shared_tables, refuse

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_shared_tables()
    op.create_table(
        "payments",
        sa.Column("payment_id", sa.String(64), primary_key=True),
        sa.Column("request_caller", sa.String(64), nullable=False),
        sa.Column("request_method", sa.String(32), nullable=False),
        sa.Column("request_key", sa.String(64), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("source", sa.String(16), nullable=False),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.String(3), nullable=False),
        sa.Column("payer_account_id", sa.String(100), nullable=False),
        sa.Column("payee_account_id", sa.String(100), nullable=False),
        sa.Column("clerk_name", sa.String(64), nullable=False),
        sa.Column("clerk_role", sa.String(16), nullable=False),
        sa.Column("memo", sa.String(200), nullable=False),
        sa.Column("journal_id", sa.String(64), nullable=False),
        sa.Column("reversal_caller", sa.String(64), nullable=False),
        sa.Column("reversal_role", sa.String(16), nullable=False),
        sa.Column("reversal_key", sa.String(64), nullable=False),
        sa.Column("reversal_reason", sa.String(200), nullable=False),
        sa.Column("reversal_journal_id", sa.String(64), nullable=False),
        sa.Column("decline_reason", sa.String(64), nullable=False),
        sa.Column("fence_generation", sa.BigInteger, nullable=False),
        sa.Column("fence_token", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("payments_by_age", "payments", ["created_at_ms", "payment_id"])
    op.create_index("payments_by_order", "payments", ["order_id"])
    op.create_index("payments_by_request", "payments", ["request_caller", "request_method", "request_key"])
    op.create_index("payments_by_reversal", "payments", ["reversal_caller", "reversal_key"])
    active = sa.text("order_id <> '' AND state IN ('SUBMITTED', 'UNKNOWN', 'SUCCEEDED', 'REVERSING')")
    op.create_index(
        "payments_one_active_per_order",
        "payments",
        ["order_id"],
        unique=True,
        sqlite_where=active,
        postgresql_where=active,
    )
    op.create_table(
        "payment_events",
        sa.Column("payment_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("fence_generation", sa.BigInteger, nullable=False),
        sa.Column("fence_token", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("payment_id", sa.String(64), primary_key=True),
        sa.Column("purpose", sa.String(16), primary_key=True),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("delivered_at_ms", sa.BigInteger, nullable=True),
    )
    op.create_index("outbox_undelivered", "outbox", ["delivered_at_ms", "created_at_ms"])
    refuse("payments", "DELETE")
    refuse("payment_events", "UPDATE", "DELETE")
