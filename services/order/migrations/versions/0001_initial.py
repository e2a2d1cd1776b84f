"""The orders, their lines and history, the request ids, and the ensemble's generation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import create_shared_tables, refuse

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("order_id", sa.String(64), nullable=False, unique=True),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("amount_minor_units", sa.BigInteger, nullable=False),
        sa.Column("currency_code", sa.String(3), nullable=False),
        sa.Column("line_count", sa.Integer, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("payment_id", sa.String(64), nullable=False),
        sa.Column("settled_by_name", sa.String(64), nullable=False),
        sa.Column("settled_by_role", sa.String(16), nullable=False),
        sa.Column("settled_at_ms", sa.BigInteger, nullable=False),
        sa.Column("fence_generation", sa.BigInteger, nullable=False),
        sa.Column("fence_token", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount_minor_units > 0", name="orders_amount_is_payable"),
        sa.CheckConstraint(
            "(state IN ('PAYING', 'PAID')) = (payment_id <> '')",
            name="orders_payment_is_named_while_it_holds",
        ),
        sa.CheckConstraint("(state = 'PAID') = (settled_at_ms > 0)", name="orders_settled_when_paid"),
    )
    op.create_index("orders_by_customer", "orders", ["customer_id", "seq"])
    op.create_index("orders_by_state", "orders", ["state", "seq"])
    op.create_table(
        "order_lines",
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("description", sa.String(200), nullable=False),
        sa.Column("quantity", sa.BigInteger, nullable=False),
        sa.Column("unit_minor_units", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "order_events",
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("from_state", sa.String(16), nullable=False),
        sa.Column("to_state", sa.String(16), nullable=False),
        sa.Column("round", sa.Integer, nullable=False),
        sa.Column("payment_id", sa.String(64), nullable=False),
        sa.Column("fence_generation", sa.BigInteger, nullable=False),
        sa.Column("fence_token", sa.BigInteger, nullable=False),
        sa.Column("actor_name", sa.String(64), nullable=False),
        sa.Column("actor_role", sa.String(16), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    create_shared_tables()
    refuse("orders", "DELETE")
    refuse("order_lines", "UPDATE", "DELETE")
    refuse("order_events", "UPDATE", "DELETE")


def downgrade() -> None:
    raise NotImplementedError("the history cannot be deleted, so there is no downgrade; restore a backup instead")
