"""The newest fence is found at once, and a row can be written to see whether writing works."""

from __future__ import annotations

from alembic import op

from services.runtime.database.migrations import add_write_probe

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("payments_by_fence", "payments", ["fence_generation", "fence_token"])
    add_write_probe()
