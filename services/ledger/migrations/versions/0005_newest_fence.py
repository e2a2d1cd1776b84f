"""The newest fence is found at once, and a row can be written to see whether writing works."""

from __future__ import annotations

from alembic import op

from services.runtime.database.migrations import add_write_probe

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("order_fences_by_fence", "order_fences", ["generation", "token"])
    add_write_probe()
