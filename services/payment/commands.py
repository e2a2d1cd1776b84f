"""What callers ask for, once its form is right."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.kernel.errors import InvalidArgument, PermissionDenied
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.model import Payment, Source, check_payee, payer_account


@dataclass(frozen=True, slots=True)
class PayCommand:
    """A direct payment, or one for the order that the ticket names."""

    ticket_id: str
    source: Source
    amount: Money | None
    payee_account_id: str
    customer_id: str
    memo: str
    fingerprint: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class SettleCommand:
    """A clerk presses Settle."""

    request_id: str
    order_id: str
    source: Source
    memo: str
    fingerprint: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class ReverseCommand:
    """An accountant undoes a payment."""

    request_id: str
    payment_id: str
    reason: str
    fingerprint: str


def direct(draft: Payment, principal: Principal, command: PayCommand) -> Payment:
    """The payment of a ticket that names no order.

    Raises:
        InvalidArgument: FIELD_REQUIRED or PAYEE_INVALID.
        PermissionDenied: NOT_YOUR_WALLET.
    """
    if command.amount is None:
        raise InvalidArgument.of_field("FIELD_REQUIRED", "amount", "amount is required: the ticket names no order")
    if not command.payee_account_id:
        raise InvalidArgument.of_field(
            "FIELD_REQUIRED", "payee_account_id", "payee_account_id is required: the ticket names no order"
        )
    customer_id = command.customer_id or (principal.name if principal.role is Role.CUSTOMER else "")
    if principal.role is Role.CUSTOMER and not principal.is_customer(customer_id):
        raise PermissionDenied("NOT_YOUR_WALLET", "a customer pays from their own wallet only; leave customer_id out")
    if command.source is Source.WALLET and not customer_id:
        raise InvalidArgument.of_field("FIELD_REQUIRED", "customer_id", "customer_id is required: whose wallet pays?")
    payer = payer_account(command.source, customer_id, command.amount.currency)
    check_payee(command.payee_account_id, payer)
    return replace(
        draft,
        customer_id=customer_id,
        amount=command.amount,
        payer_account_id=payer,
        payee_account_id=command.payee_account_id,
    )
