"""The ledger's tables, and an account's row as what it stands for. Known to `store.py` and `trial.py` only."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    VARCHAR,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
)

from services.kernel.money import MAX_BALANCE
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind, Closing
from services.runtime.database.database import ensemble_table
from services.runtime.database.idempotency_table import request_table
from services.runtime.database.retention import Retention, removals_table

#: Account ids are compared byte by byte, on PostgreSQL too, whatever the locale: pages and prefixes rely on it.
_ACCOUNT_ID = String(100).with_variant(VARCHAR(100, collation="C"), "postgresql")

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("account_id", _ACCOUNT_ID, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("overdraft_limit", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("closed_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("closed_by_name", String(64), nullable=False, server_default=""),
    Column("closed_by_role", String(16), nullable=False, server_default=""),
    Column("close_reason", String(200), nullable=False, server_default=""),
    CheckConstraint(f"balance >= -overdraft_limit AND balance <= {MAX_BALANCE}", name="accounts_within_limits"),
    CheckConstraint("overdraft_limit >= 0", name="accounts_limit_is_not_negative"),
)

#: reversal_of is null, and not empty, where nothing is undone, so that its unique index leaves those rows alone.
journals = Table(
    "journals",
    metadata,
    Column("journal_id", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("business_key", String(160), nullable=False),
    Column("currency_code", String(3), nullable=False),
    Column("memo", String(200), nullable=False),
    Column("order_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("reversal_of", String(64), nullable=True),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("posted_at_ms", BigInteger, nullable=False),
    Column("clerk_name", String(64), nullable=False),
    Column("clerk_role", String(16), nullable=False),
    CheckConstraint("sequence >= 1", name="journals_count_from_one"),
)
Index("journals_by_order", journals.c.order_id, journals.c.sequence)

#: The guard `unique`.
unique_indexes = (
    Index("journals_by_business_key", journals.c.business_key, unique=True),
    Index("journals_by_reversal_of", journals.c.reversal_of, unique=True),
)

#: `leg` counts from 0 in the order in which the legs were asked for; `sequence` is the journal's, repeated so that one
#: index lists an account's journals in their order.
postings = Table(
    "postings",
    metadata,
    Column("journal_id", String(64), ForeignKey("journals.journal_id"), primary_key=True),
    Column("leg", Integer, primary_key=True),
    Column("account_id", _ACCOUNT_ID, ForeignKey("accounts.account_id"), nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("amount <> 0", name="postings_are_not_zero"),
)
Index("postings_by_account", postings.c.account_id, postings.c.sequence)

#: What was definitively refused: `error` is JSON of the error's kind, reason, message, metadata and fields.
refusals = Table(
    "refusals",
    metadata,
    Column("business_key", String(160), primary_key=True),
    Column("attempt", String(64), primary_key=True),
    Column("order_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("error", Text, nullable=False),
    Column("refused_at_ms", BigInteger, nullable=False),
)

order_fences = Table(
    "order_fences",
    metadata,
    Column("order_id", String(64), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
)

Index("order_fences_by_fence", order_fences.c.generation, order_fences.c.token)

#: One row, with id 1: the last journal's sequence and hash, and the lock of those who write the next.
chain_head = Table(
    "chain_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

requests = request_table(metadata)
ensemble = ensemble_table(metadata)
#: Whoever opens an account again on the same terms finds it open. See runtime/database/retention.py.
retention = Retention(requests, removals_table(metadata), requests.c.method == "OpenAccount")


def to_account(row: Row[*tuple[Any, ...]]) -> Account:
    """An account as its row has it."""
    return Account(
        row.account_id,
        AccountKind(row.kind),
        row.currency_code,
        row.overdraft_limit,
        row.balance,
        row.version,
        row.created_at_ms,
        Closing(Principal(row.closed_by_name, Role(row.closed_by_role)), row.close_reason, row.closed_at_ms)
        if row.closed_at_ms
        else None,
    )


def closing_columns(closing: Closing) -> dict[str, Any]:
    """What a closing changes in an account's row."""
    return {
        "closed_at_ms": closing.at_ms,
        "closed_by_name": closing.by.name,
        "closed_by_role": closing.by.role,
        "close_reason": closing.reason,
    }
