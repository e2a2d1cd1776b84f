"""Card payments: the card, the attempt and its key at the acquirer, and how often that kept silent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, kind, default in (
        ("card", sa.String(64), ""),
        ("attempt", sa.Integer, "0"),
        ("acquirer_key", sa.String(80), ""),
        ("asks", sa.Integer, "0"),
        ("ask_at_ms", sa.BigInteger, "0"),
        ("attention", sa.String(64), ""),
    ):
        op.add_column("payments", sa.Column(name, kind, nullable=False, server_default=default))
    needed = sa.text("attention <> ''")
    op.create_index(
        "payments_needing_attention",
        "payments",
        ["created_at_ms", "payment_id"],
        sqlite_where=needed,
        postgresql_where=needed,
    )
