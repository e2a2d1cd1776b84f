"""Whose card each token is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import refuse

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "card_owners",
        sa.Column("card", sa.String(64), primary_key=True),
        sa.Column("customer_id", sa.String(64), nullable=False),
        sa.Column("payment_id", sa.String(64), nullable=False),
        sa.Column("bound_at_ms", sa.BigInteger, nullable=False),
    )
    # A card that several customers have used so far is the next one's: its owner is not known.
    op.execute(
        "INSERT INTO card_owners (card, customer_id, payment_id, bound_at_ms) "
        "SELECT card, MIN(customer_id), MIN(payment_id), MIN(created_at_ms) FROM payments "
        "WHERE card <> '' AND customer_id <> '' AND attempt > 0 GROUP BY card HAVING COUNT(DISTINCT customer_id) = 1"
    )
    refuse("card_owners", "UPDATE", "DELETE")
