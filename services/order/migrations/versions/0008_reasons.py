"""The reason of each change of an order, beside its author and time."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("order_events", sa.Column("reason", sa.String(200), nullable=False, server_default=""))
