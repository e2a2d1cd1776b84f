"""Who changed a payment and why, beside what and when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, length in (("actor_name", 64), ("actor_role", 16), ("reason", 200)):
        op.add_column("payment_events", sa.Column(name, sa.String(length), nullable=False, server_default=""))
