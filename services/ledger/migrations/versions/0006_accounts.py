"""Postings have their journal's sequence, so that one index lists an account's journals; accounts can be closed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_FILL = (
    "UPDATE postings SET sequence = "
    "COALESCE((SELECT sequence FROM journals WHERE journals.journal_id = postings.journal_id), 0)"
)
#: A closed account stays as it is, and only an empty one is closed.
_CLOSED_CHANGES = "OLD.closed_at_ms <> 0 OR (NEW.closed_at_ms <> 0 AND NEW.balance <> 0)"


def upgrade() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    op.add_column("postings", sa.Column("sequence", sa.BigInteger, nullable=False, server_default="0"))
    if sqlite:
        op.execute("DROP TRIGGER postings_refuse_update")
        op.execute(_FILL)
        op.execute(
            "CREATE TRIGGER postings_refuse_update BEFORE UPDATE ON postings WHEN 1 "
            "BEGIN SELECT RAISE(ABORT, 'postings are never changed'); END"
        )
    else:
        op.execute("ALTER TABLE postings DISABLE TRIGGER postings_refuse_change")
        op.execute(_FILL)
        op.execute("ALTER TABLE postings ENABLE TRIGGER postings_refuse_change")
    op.drop_index("postings_by_account", "postings")
    op.create_index("postings_by_account", "postings", ["account_id", "sequence"])

    op.add_column("accounts", sa.Column("closed_at_ms", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("accounts", sa.Column("closed_by_name", sa.String(64), nullable=False, server_default=""))
    op.add_column("accounts", sa.Column("closed_by_role", sa.String(16), nullable=False, server_default=""))
    op.add_column("accounts", sa.Column("close_reason", sa.String(200), nullable=False, server_default=""))
    if sqlite:
        op.execute(
            f"CREATE TRIGGER accounts_refuse_change_of_closed BEFORE UPDATE ON accounts WHEN {_CLOSED_CHANGES} "
            "BEGIN SELECT RAISE(ABORT, 'closed accounts are never changed'); END"
        )
    else:
        op.execute(
            "CREATE TRIGGER accounts_refuse_change_of_closed BEFORE UPDATE ON accounts "
            f"FOR EACH ROW WHEN ({_CLOSED_CHANGES}) EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    raise NotImplementedError("a downgrade would open closed accounts; restore a backup instead")
