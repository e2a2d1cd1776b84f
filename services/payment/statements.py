"""Statements on the payment service's tables that take some building. Known to `store.py` only."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.sql.dml import Update

from services.kernel.idempotency import RequestKey
from services.kernel.principal import Principal
from services.payment.ports import Filter
from services.payment.schema import PAYMENTS


def page_of(which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None) -> Select[Any]:
    """Return the query of a page of payments, newest first. Args as `PaymentStore.page`."""
    columns = PAYMENTS.c
    query = select(PAYMENTS).order_by(columns.created_at_ms.desc(), columns.payment_id.desc()).limit(limit)
    if after is not None:
        query = query.where(
            tuple_(columns.created_at_ms, columns.payment_id) < tuple_(literal(after[0]), literal(after[1]))
        )
    if which.state is not None:
        query = query.where(columns.state == which.state)
    if which.source is not None:
        query = query.where(columns.source == which.source)
    if which.order_id:
        query = query.where(columns.order_id == which.order_id)
    if which.needs_attention:
        query = query.where(columns.attention != "")
    if seen_by is not None:
        made = and_(columns.clerk_name == seen_by.name, columns.clerk_role == seen_by.role)
        asked = and_(columns.request_caller == seen_by.name, columns.request_role == seen_by.role)
        query = query.where(or_(columns.customer_id == seen_by.name, made, asked))
    return query


def made_by(key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the payment that a request made."""
    columns = PAYMENTS.c
    return (
        columns.request_caller == key.caller.name,
        columns.request_role == key.caller.role,
        columns.request_method == key.method,
        columns.request_key == key.key,
    )


def undone_for(key: RequestKey) -> tuple[ColumnElement[bool], ...]:
    """Return the conditions on the payment that a request reverses."""
    columns = PAYMENTS.c
    return (
        columns.reversal_caller == key.caller.name,
        columns.reversal_role == key.caller.role,
        columns.reversal_key == key.key,
    )


def raise_fence(*, guarded: bool) -> Update:
    """The statement that raises a payment's fence and gives its row; no row if the fence is behind.

    Args:
        guarded: Otherwise one that is behind is let through, and the larger one stays.
    """
    columns = PAYMENTS.c
    generation, token = bindparam("generation", type_=BigInteger), bindparam("token", type_=BigInteger)
    seen, carried = tuple_(columns.fence_generation, columns.fence_token), tuple_(generation, token)
    raised = update(PAYMENTS).where(columns.payment_id == bindparam("of_payment")).returning(*columns)
    if guarded:
        return raised.where(seen <= carried).values(fence_generation=generation, fence_token=token)
    return raised.values(
        fence_generation=case((seen < carried, generation), else_=columns.fence_generation),
        fence_token=case((seen < carried, token), else_=columns.fence_token),
    )


def earlier_attempts(payment_id: str, in_round: int) -> Select[Any]:
    """Count the other card payments that were attempted at a payment's order in a round."""
    earlier = PAYMENTS.alias()
    own = select(PAYMENTS.c.order_id).where(PAYMENTS.c.payment_id == payment_id).scalar_subquery()
    return select(func.count()).where(
        earlier.c.order_id == own,
        earlier.c.order_id != "",
        earlier.c.round == in_round,
        earlier.c.attempt > 0,
        earlier.c.payment_id != payment_id,
    )
