"""What lets the payment service name the clerk of a payment, of its reversal and of its parking to other services."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("clerk_delegation", "reversal_delegation", "parking_delegation"):
        op.add_column("payments", sa.Column(name, sa.String(1024), nullable=False, server_default=""))
