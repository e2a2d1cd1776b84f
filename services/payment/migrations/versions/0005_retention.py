"""How far old requests were removed, which ticket a request issued, and a customer's unused tickets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import create_removals

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_removals()
    op.add_column("requests", sa.Column("ticket_key", sa.String(64), nullable=False, server_default=""))
    unused = sa.text("method = 'Pay' AND state IN ('ISSUED', 'EXPIRED')")
    op.create_index(
        "requests_unused_tickets",
        "requests",
        ["caller", "caller_role"],
        sqlite_where=unused,
        postgresql_where=unused,
    )
