"""Whose card each token is: that of the customer for whom it was first charged. A row is never changed.

Without it a clerk, or a customer who has seen a token, could pay one customer's order with another's card.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, String, Table, bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.kernel.errors import FailedPrecondition
from services.payment.model import Payment
from services.payment.schema import METADATA
from services.runtime.database.idempotency_table import insert_if_absent

CARD_OWNERS = Table(
    "card_owners",
    METADATA,
    Column("card", String(64), primary_key=True),
    Column("customer_id", String(64), nullable=False),
    Column("payment_id", String(64), nullable=False),
    Column("bound_at_ms", BigInteger, nullable=False),
)
_OWNER = select(CARD_OWNERS.c.customer_id).where(CARD_OWNERS.c.card == bindparam("of_card"))


async def bind_card(tx: AsyncConnection, payment: Payment, *, now_ms: int) -> None:
    """Make a payment's card its customer's, unless it is already.

    Of two customers who bring one card at once, the second waits for the first one's commit. A payment that names no
    customer binds nothing, and may not use a card that is somebody's already.

    Raises:
        FailedPrecondition: CARD_NOT_YOURS: it is another customer's.
    """
    if not payment.card:
        return
    if not payment.customer_id:
        if (await tx.execute(_OWNER, {"of_card": payment.card})).first() is not None:
            raise card_not_yours("")
        return
    row = {
        "card": payment.card,
        "customer_id": payment.customer_id,
        "payment_id": payment.payment_id,
        "bound_at_ms": now_ms,
    }
    if await insert_if_absent(tx, CARD_OWNERS, row):
        return
    if (await tx.execute(_OWNER, {"of_card": payment.card})).scalar_one() != payment.customer_id:
        raise card_not_yours(payment.customer_id)


def card_not_yours(customer_id: str) -> FailedPrecondition:
    """The refusal of a card that another customer brought before, to a payment that names `customer_id`, or nobody."""
    if not customer_id:
        return FailedPrecondition(
            "CARD_NOT_YOURS",
            "declined: the card belongs to a customer, and the payment names none; name whose card it is",
        )
    return FailedPrecondition(
        "CARD_NOT_YOURS", f"declined: the card belongs to another customer than {customer_id}; pay otherwise"
    )
