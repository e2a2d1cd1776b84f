"""Parked card payments: who parked one, under which request and why."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, length in (
        ("parking_caller", 64),
        ("parking_role", 16),
        ("parking_key", 64),
        ("parking_reason", 200),
    ):
        op.add_column("payments", sa.Column(name, sa.String(length), nullable=False, server_default=""))
    parked = sa.text("state = 'PARKED'")
    op.create_index("payments_parked", "payments", ["ask_at_ms"], sqlite_where=parked, postgresql_where=parked)
