"""Request ids belong to a role and a name."""

from __future__ import annotations

from services.runtime.database.migrations import add_caller_roles

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    add_caller_roles(known=[], possible={"OpenAccount": ("accountant", "operator")})
