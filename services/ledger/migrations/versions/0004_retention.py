"""How far old requests were removed."""

from __future__ import annotations

from services.runtime.database.migrations import create_removals

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    create_removals()
