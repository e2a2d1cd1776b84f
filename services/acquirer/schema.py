"""The acquirer's tables, and their rows to and from the types of `model.py`. For `store.py` and `main.py`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, LargeBinary, MetaData, Row, String, Table

from services.acquirer.model import Charge, ChargeState, LogEntry, LoggedRequest, Payload
from services.kernel.money import Money

METADATA = MetaData()

#: Of a tombstone, card, amount, currency and reference are empty.
CHARGES = Table(
    "charges",
    METADATA,
    Column("key", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("card", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("reference", String(64), nullable=False),
    Column("decline_reason", String(64), nullable=False),
    Column("number", BigInteger, nullable=False, unique=True),
    Column("decided_at_ms", BigInteger, nullable=False),
    Column("refunded_at_ms", BigInteger, nullable=False),
)

LOG = Table(
    "log",
    METADATA,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("method", String(32), nullable=False),
    Column("caller", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("word", String(16), nullable=False),
    Column("card", String(64), nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", String(3), nullable=False),
    Column("reference", String(64), nullable=False),
)
Index("log_by_key", LOG.c.key, LOG.c.number)

#: One row, with id 1: the number of the last entry in the log, and what readiness writes to see that writing works.
COUNTER = Table(
    "counter",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("probe", LargeBinary, nullable=True),
)


def entry_row(number: int, request: LoggedRequest, word: str) -> dict[str, Any]:
    return {
        "number": number,
        "at_ms": request.at_ms,
        "method": request.method,
        "caller": request.caller,
        "key": request.key,
        "word": word,
    } | _payload_columns(request.payload)


def charge_row(charge: Charge, number: int) -> dict[str, Any]:
    return {
        "key": charge.key,
        "state": charge.state,
        "decline_reason": charge.decline_reason,
        "number": number,
        "decided_at_ms": charge.decided_at_ms,
        "refunded_at_ms": charge.refunded_at_ms,
    } | _payload_columns(charge.payload)


def _payload_columns(payload: Payload | None) -> dict[str, Any]:
    return {
        "card": payload.card if payload else "",
        "amount_minor": payload.amount.minor_units if payload else 0,
        "currency": payload.amount.currency if payload else "",
        "reference": payload.reference if payload else "",
    }


def _to_payload(row: Row[Any]) -> Payload | None:
    return Payload(row.card, Money(row.amount_minor, row.currency), row.reference) if row.card else None


def to_charge(row: Row[Any]) -> Charge:
    return Charge(
        key=row.key,
        state=ChargeState(row.state),
        payload=_to_payload(row),
        decline_reason=row.decline_reason,
        decided_at_ms=row.decided_at_ms,
        number=row.number,
        refunded_at_ms=row.refunded_at_ms,
    )


def to_entry(row: Row[Any]) -> LogEntry:
    return LogEntry(row.number, LoggedRequest(row.method, row.caller, row.key, _to_payload(row), row.at_ms), row.word)
