"""Accounts say who opened them. Those that are open already do not know."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_OPENER_CHANGES = "OLD.opened_by_name <> NEW.opened_by_name OR OLD.opened_by_role <> NEW.opened_by_role"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("opened_by_name", sa.String(64), nullable=False, server_default=""))
    op.add_column("accounts", sa.Column("opened_by_role", sa.String(16), nullable=False, server_default=""))
    if op.get_bind().dialect.name == "sqlite":
        op.execute(
            f"CREATE TRIGGER accounts_refuse_change_of_opener BEFORE UPDATE ON accounts WHEN {_OPENER_CHANGES} "
            "BEGIN SELECT RAISE(ABORT, 'accounts are never changed'); END"
        )
    else:
        op.execute(
            "CREATE TRIGGER accounts_refuse_change_of_opener BEFORE UPDATE ON accounts "
            f"FOR EACH ROW WHEN ({_OPENER_CHANGES}) EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    raise NotImplementedError("a downgrade would forget who opened accounts; restore a backup instead")
