"""The accounts, the journals and their chain, the refusals, the fences, the request ids, the ensemble's generation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from services.runtime.database.migrations import create_shared_tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ACCOUNT_ID = sa.String(100).with_variant(sa.VARCHAR(100, collation="C"), "postgresql")
_MAX_BALANCE = 2**61

#: What is only ever added to: table → on what a row of it is the same row. SQLite's INSERT OR REPLACE deletes without
#: asking the delete trigger, so there a second row of the same key is refused as well.
_ADDED_TO = {
    "journals": "journal_id = NEW.journal_id OR sequence = NEW.sequence",
    "postings": "journal_id = NEW.journal_id AND leg = NEW.leg",
    "refusals": "business_key = NEW.business_key AND attempt = NEW.attempt",
}
#: What of an account never changes.
_ACCOUNT_IDENTITY = ("account_id", "kind", "currency_code", "created_at_ms")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_id", _ACCOUNT_ID, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("currency_code", sa.String(3), nullable=False),
        sa.Column("overdraft_limit", sa.BigInteger, nullable=False),
        sa.Column("balance", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint(f"balance >= -overdraft_limit AND balance <= {_MAX_BALANCE}", name="accounts_within_limits"),
        sa.CheckConstraint("overdraft_limit >= 0", name="accounts_limit_is_not_negative"),
    )
    op.create_table(
        "journals",
        sa.Column("journal_id", sa.String(64), primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False, unique=True),
        sa.Column("business_key", sa.String(160), nullable=False),
        sa.Column("currency_code", sa.String(3), nullable=False),
        sa.Column("memo", sa.String(200), nullable=False),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("payment_id", sa.String(64), nullable=False),
        sa.Column("reversal_of", sa.String(64), nullable=True),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("posted_at_ms", sa.BigInteger, nullable=False),
        sa.Column("clerk_name", sa.String(64), nullable=False),
        sa.Column("clerk_role", sa.String(16), nullable=False),
        sa.CheckConstraint("sequence >= 1", name="journals_count_from_one"),
    )
    op.create_index("journals_by_order", "journals", ["order_id", "sequence"])
    op.create_index("journals_by_business_key", "journals", ["business_key"], unique=True)
    op.create_index("journals_by_reversal_of", "journals", ["reversal_of"], unique=True)
    op.create_table(
        "postings",
        sa.Column("journal_id", sa.String(64), sa.ForeignKey("journals.journal_id"), primary_key=True),
        sa.Column("leg", sa.Integer, primary_key=True),
        sa.Column("account_id", _ACCOUNT_ID, sa.ForeignKey("accounts.account_id"), nullable=False),
        sa.Column("amount", sa.BigInteger, nullable=False),
        sa.CheckConstraint("amount <> 0", name="postings_are_not_zero"),
    )
    op.create_index("postings_by_account", "postings", ["account_id", "journal_id"])
    op.create_table(
        "refusals",
        sa.Column("business_key", sa.String(160), primary_key=True),
        sa.Column("attempt", sa.String(64), primary_key=True),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("payment_id", sa.String(64), nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("refused_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "order_fences",
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
    )
    head = op.create_table(
        "chain_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "sequence": 0, "hash": "0" * 64}])
    create_shared_tables()
    if op.get_bind().dialect.name == "sqlite":
        _protect_on_sqlite()
    else:
        _protect_on_postgresql()


def _protect_on_sqlite() -> None:
    for table, same_row in _ADDED_TO.items():
        for statement in ("UPDATE", "DELETE"):
            _trigger_on_sqlite(table, statement, "1")
        _trigger_on_sqlite(table, "INSERT", f"EXISTS (SELECT 1 FROM {table} WHERE {same_row})")  # noqa: S608
    changed = " OR ".join(f"NEW.{column} IS NOT OLD.{column}" for column in _ACCOUNT_IDENTITY)
    _trigger_on_sqlite("accounts", "UPDATE", changed)
    _trigger_on_sqlite("accounts", "DELETE", "1")


def _trigger_on_sqlite(table: str, statement: str, when: str) -> None:
    op.execute(
        f"CREATE TRIGGER {table}_refuse_{statement.lower()} BEFORE {statement} ON {table} WHEN {when} "
        f"BEGIN SELECT RAISE(ABORT, '{table} are never changed'); END"
    )


def _protect_on_postgresql() -> None:
    op.execute(
        "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '% are never changed', TG_TABLE_NAME USING ERRCODE = 'restrict_violation'; END $$"
    )
    for table in _ADDED_TO:
        op.execute(
            f"CREATE TRIGGER {table}_refuse_change BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
    changed = " OR ".join(f"NEW.{column} IS DISTINCT FROM OLD.{column}" for column in _ACCOUNT_IDENTITY)
    op.execute(
        f"CREATE TRIGGER accounts_refuse_update BEFORE UPDATE ON accounts "
        f"FOR EACH ROW WHEN ({changed}) EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER accounts_refuse_delete BEFORE DELETE ON accounts FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    for table in (*_ADDED_TO, "accounts"):
        op.execute(
            f"CREATE TRIGGER {table}_refuse_truncate BEFORE TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )


def downgrade() -> None:
    raise NotImplementedError("the books cannot be deleted, so there is no downgrade; restore a backup instead")
