"""The queries of the trial balance: sums of postings, which may be larger than an integer of SQL."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Row, Select, and_, case, func, select, true, type_coerce

from services.ledger.model import AccountKind, TrialRow, TrialTotal
from services.ledger.schema import ACCOUNTS, CHAIN_HEAD, POSTINGS, to_account

#: A sum of amounts may exceed int64, where SQLite fails. So thousands of millions and the rest are summed apart; either
#: sum of 9,000 million postings fits.
_PART = 10**9


def _summed(amount: ColumnElement[Any], name: str) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """Return the sum of an amount that is not negative, in two parts; `_sum` puts them together."""
    amount = type_coerce(amount, BigInteger)
    return func.sum(amount // _PART).label(f"{name}_high"), func.sum(amount % _PART).label(f"{name}_low")


def _sum(row: Row[Any], name: str) -> int:
    return int(getattr(row, f"{name}_high") or 0) * _PART + int(getattr(row, f"{name}_low") or 0)


def _debit(condition: ColumnElement[bool] | None = None) -> ColumnElement[Any]:
    amount = POSTINGS.c.amount_minor
    return case((and_(true() if condition is None else condition, amount > 0), amount), else_=0)


def _credit(condition: ColumnElement[bool] | None = None) -> ColumnElement[Any]:
    amount = POSTINGS.c.amount_minor
    return case((and_(true() if condition is None else condition, amount < 0), -amount), else_=0)


def totals_of(currency: str) -> Select[Any]:
    """Return the query of a row for each currency with the head of the chain: one statement is one snapshot."""
    sums = (
        select(POSTINGS.c.account_id, *_summed(_debit(), "debits"), *_summed(_credit(), "credits"))
        .group_by(POSTINGS.c.account_id)
        .subquery()
    )
    parts = {name: func.coalesce(sums.c[name], 0) for name in sums.c.keys() if name != "account_id"}  # noqa: SIM118
    net = (parts["debits_high"] - parts["credits_high"]) * _PART + parts["debits_low"] - parts["credits_low"]
    debit_kinds = [kind for kind in AccountKind if kind.sign > 0]
    stored = case((ACCOUNTS.c.kind.in_(debit_kinds), ACCOUNTS.c.balance), else_=-ACCOUNTS.c.balance)
    query = (
        select(
            ACCOUNTS.c.currency,
            func.count().label("accounts"),
            *(func.sum(part).label(name) for name, part in parts.items()),
            func.sum(case((stored != net, 1), else_=0)).label("unexplained"),
            select(CHAIN_HEAD.c.sequence).scalar_subquery().label("last"),
        )
        .outerjoin_from(ACCOUNTS, sums, ACCOUNTS.c.account_id == sums.c.account_id)
        .group_by(ACCOUNTS.c.currency)
        .order_by(ACCOUNTS.c.currency)
    )
    return query.where(ACCOUNTS.c.currency == currency) if currency else query


def rows_of(currency: str, *, last: int, after: str, limit: int) -> Select[Any]:
    """Some accounts with their sums up to a journal, and with what was posted after it, in one statement."""
    page = select(ACCOUNTS).where(ACCOUNTS.c.account_id > after).order_by(ACCOUNTS.c.account_id).limit(limit)
    if currency:
        page = page.where(ACCOUNTS.c.currency == currency)
    shown = page.subquery()
    then, later = POSTINGS.c.sequence <= last, POSTINGS.c.sequence > last
    sums = (
        select(
            POSTINGS.c.account_id,
            *_summed(_debit(then), "debits"),
            *_summed(_credit(then), "credits"),
            *_summed(_debit(later), "later_debits"),
            *_summed(_credit(later), "later_credits"),
        )
        .where(POSTINGS.c.account_id.in_(select(shown.c.account_id)))
        .group_by(POSTINGS.c.account_id)
        .subquery()
    )
    return (
        select(shown, *(column for column in sums.c if column.name != "account_id"))
        .outerjoin_from(shown, sums, shown.c.account_id == sums.c.account_id)
        .order_by(shown.c.account_id)
    )


def to_total(row: Row[Any]) -> TrialTotal:
    """Return the total of a row of `totals_of`."""
    return TrialTotal(row.currency, row.accounts, _sum(row, "debits"), _sum(row, "credits"), row.unexplained)


def to_row(row: Row[Any]) -> TrialRow:
    """Return the account's line of a row of `rows_of`."""
    account = to_account(row)
    later = (_sum(row, "later_debits") - _sum(row, "later_credits")) * account.kind.sign
    return TrialRow(replace(account, balance=account.balance - later), _sum(row, "debits"), _sum(row, "credits"))
