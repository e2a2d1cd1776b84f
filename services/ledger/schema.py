"""The ledger's tables, and their rows to and from the types of `model.py`. For `store.py`, `trial.py` and `main.py`."""

from __future__ import annotations

import json
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

from services.kernel.errors import CountinghouseError, FailedPrecondition, InvalidArgument, NotFound
from services.kernel.money import MAX_BALANCE
from services.kernel.principal import Principal, Role
from services.ledger.chain import ChainLink
from services.ledger.model import Account, AccountKind, Closing, Entry, Journal, JournalDraft, Leg
from services.runtime.database.database import ensemble_table
from services.runtime.database.idempotency_table import request_table
from services.runtime.database.retention import Retention, removals_table

#: Account ids are compared byte by byte, on PostgreSQL too, whatever the locale: pages and prefixes rely on it.
_ACCOUNT_ID = String(100).with_variant(VARCHAR(100, collation="C"), "postgresql")

#: The errors that `PostingBatch.write` keeps, by name.
_KEPT_ERRORS: dict[str, type[CountinghouseError]] = {
    kind.__name__: kind for kind in (FailedPrecondition, InvalidArgument, NotFound)
}

METADATA = MetaData()

ACCOUNTS = Table(
    "accounts",
    METADATA,
    Column("account_id", _ACCOUNT_ID, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("currency_code", String(3), key="currency", nullable=False),
    Column("overdraft_limit", BigInteger, nullable=False),
    Column("balance", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("closed_at_ms", BigInteger, nullable=False, server_default="0"),
    Column("closed_by_name", String(64), nullable=False, server_default=""),
    Column("closed_by_role", String(16), nullable=False, server_default=""),
    Column("close_reason", String(200), nullable=False, server_default=""),
    Column("opened_by_name", String(64), nullable=False, server_default=""),
    Column("opened_by_role", String(16), nullable=False, server_default=""),
    CheckConstraint(f"balance >= -overdraft_limit AND balance <= {MAX_BALANCE}", name="accounts_within_limits"),
    CheckConstraint("overdraft_limit >= 0", name="accounts_limit_is_not_negative"),
)

#: reversal_of is null, and not empty, where nothing is undone, so that its unique index leaves those rows alone.
JOURNALS = Table(
    "journals",
    METADATA,
    Column("journal_id", String(64), primary_key=True),
    Column("sequence", BigInteger, nullable=False, unique=True),
    Column("business_key", String(160), nullable=False),
    Column("currency_code", String(3), key="currency", nullable=False),
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
Index("journals_by_order", JOURNALS.c.order_id, JOURNALS.c.sequence)

#: The guard `unique`.
UNIQUE_INDEXES = (
    Index("journals_by_business_key", JOURNALS.c.business_key, unique=True),
    Index("journals_by_reversal_of", JOURNALS.c.reversal_of, unique=True),
)

#: `leg` counts from 0 in the order in which the legs were asked for; `sequence` is the journal's, repeated so that one
#: index lists an account's journals in their order.
POSTINGS = Table(
    "postings",
    METADATA,
    Column("journal_id", String(64), ForeignKey("journals.journal_id"), primary_key=True),
    Column("leg", Integer, primary_key=True),
    Column("account_id", _ACCOUNT_ID, ForeignKey("accounts.account_id"), nullable=False),
    Column("amount", BigInteger, key="amount_minor", nullable=False),
    Column("sequence", BigInteger, nullable=False, server_default="0"),
    CheckConstraint("amount <> 0", name="postings_are_not_zero"),
)
Index("postings_by_account", POSTINGS.c.account_id, POSTINGS.c.sequence)

#: What was definitively refused: `error` is JSON of the error's kind, reason, message, metadata and fields.
REFUSALS = Table(
    "refusals",
    METADATA,
    Column("business_key", String(160), primary_key=True),
    Column("attempt", String(64), primary_key=True),
    Column("order_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("error", Text, nullable=False),
    Column("refused_at_ms", BigInteger, nullable=False),
)

ORDER_FENCES = Table(
    "order_fences",
    METADATA,
    Column("order_id", String(64), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("token", BigInteger, nullable=False),
)

Index("order_fences_by_fence", ORDER_FENCES.c.generation, ORDER_FENCES.c.token)

#: One row, with id 1: the last journal's sequence and hash, and the lock of those who write the next.
CHAIN_HEAD = Table(
    "chain_head",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, nullable=False),
    Column("hash", String(64), nullable=False),
)

REQUESTS = request_table(METADATA)
ENSEMBLE = ensemble_table(METADATA)
#: Opening an account again on the same terms finds it open. See runtime/database/retention.py.
RETENTION = Retention(REQUESTS, removals_table(METADATA), REQUESTS.c.method == "OpenAccount")


def to_account(row: Row[*tuple[Any, ...]]) -> Account:
    """Return the account of a row."""
    return Account(
        row.account_id,
        AccountKind(row.kind),
        row.currency,
        row.overdraft_limit,
        row.balance,
        row.version,
        row.created_at_ms,
        Closing(Principal(row.closed_by_name, Role(row.closed_by_role)), row.close_reason, row.closed_at_ms)
        if row.closed_at_ms
        else None,
        Principal(row.opened_by_name, Role(row.opened_by_role)) if row.opened_by_role else None,
    )


def account_row(account: Account) -> dict[str, Any]:
    """Return the row of an account as it is opened."""
    return {
        "account_id": account.account_id,
        "kind": account.kind,
        "currency": account.currency,
        "overdraft_limit": account.overdraft_limit,
        "balance": account.balance,
        "version": account.version,
        "created_at_ms": account.created_at_ms,
        "opened_by_name": account.opened_by.name if account.opened_by else "",
        "opened_by_role": account.opened_by.role if account.opened_by else "",
    }


def closing_columns(account: Account) -> dict[str, Any]:
    """Return what its closing changes in an account's row."""
    closing = account.closing
    return {
        "closed_at_ms": closing.at_ms if closing else 0,
        "closed_by_name": closing.by.name if closing else "",
        "closed_by_role": closing.by.role if closing else "",
        "close_reason": closing.reason if closing else "",
    }


def to_journal(row: Row[Any], legs: tuple[Leg, ...]) -> Journal:
    draft = JournalDraft(
        business_key=row.business_key,
        legs=legs,
        currency=row.currency,
        memo=row.memo,
        order_id=row.order_id,
        payment_id=row.payment_id,
        clerk=Principal(row.clerk_name, Role(row.clerk_role)),
        reversal_of=row.reversal_of or "",
    )
    return Journal(draft, row.journal_id, row.posted_at_ms, row.sequence, row.previous_hash, row.hash)


def to_link(row: Row[Any], legs: tuple[Leg, ...]) -> ChainLink:
    try:
        return ChainLink(row.sequence, to_journal(row, legs))
    except ValueError:  # a role that is none
        return ChainLink(row.sequence, None)


def to_error(text: str) -> CountinghouseError:
    kept = json.loads(text)
    kind = _KEPT_ERRORS[kept["kind"]]
    fields = tuple((field, problem) for field, problem in kept["fields"])
    return kind(kept["reason"], kept["message"], metadata=kept["metadata"], fields=fields)


def refusal_row(entry: Entry, error: CountinghouseError) -> dict[str, Any]:
    kept = {
        "kind": type(error).__name__,
        "reason": error.reason,
        "message": error.message,
        "metadata": error.metadata,
        "fields": error.fields,
    }
    return {
        "business_key": entry.draft.business_key,
        "attempt": entry.attempt,
        "order_id": entry.draft.order_id,
        "payment_id": entry.draft.payment_id,
        "error": json.dumps(kept, ensure_ascii=False),
        "refused_at_ms": entry.posted_at_ms,
    }


def journal_row(journal: Journal) -> dict[str, Any]:
    draft = journal.draft
    return {
        "journal_id": journal.journal_id,
        "sequence": journal.sequence,
        "business_key": draft.business_key,
        "currency": draft.currency,
        "memo": draft.memo,
        "order_id": draft.order_id,
        "payment_id": draft.payment_id,
        "reversal_of": draft.reversal_of or None,
        "previous_hash": journal.previous_hash,
        "hash": journal.hash,
        "posted_at_ms": journal.posted_at_ms,
        "clerk_name": draft.clerk.name,
        "clerk_role": draft.clerk.role,
    }


def posting_rows(journal: Journal) -> list[dict[str, Any]]:
    return [
        {
            "journal_id": journal.journal_id,
            "leg": place,
            "account_id": leg.account_id,
            "amount_minor": leg.amount,
            "sequence": journal.sequence,
        }
        for place, leg in enumerate(journal.draft.legs)
    ]
