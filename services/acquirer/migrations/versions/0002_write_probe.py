"""What readiness writes to see that writing works."""

from __future__ import annotations

from services.runtime.database.migrations import add_write_probe

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_write_probe("counter")
