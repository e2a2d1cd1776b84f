"""What callers ask for, once its form is right."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.kernel.errors import InvalidArgument, PermissionDenied
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.model import Payment, Source, check_payee, payer_account, sales_account


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


@dataclass(frozen=True, slots=True)
class ParkCommand:
    """A clerk gives up waiting for the acquirer's answer about a payment."""

    request_id: str
    payment_id: str
    reason: str
    fingerprint: str


def ticket_owner(principal: Principal, command: PayCommand) -> Principal:
    """Return whose ticket this payment takes: the caller's own, and from a customer's wallet that customer's.

    A clerk who could pay from a wallet by themselves could empty it. The owner's ticket is the owner's consent, handed
    over at the counter; it is used up by one payment.

    Raises:
        InvalidArgument: FIELD_REQUIRED: a clerk pays from a wallet and does not say whose.
    """
    if command.source is not Source.WALLET or principal.role is Role.CUSTOMER:
        return principal
    if not command.customer_id:
        raise InvalidArgument.of_field("FIELD_REQUIRED", "customer_id", "customer_id is required: whose wallet pays?")
    return Principal(command.customer_id, Role.CUSTOMER)


def not_your_wallet(principal: Principal) -> PermissionDenied:
    """The refusal of a payment from a wallet to which its owner has not consented."""
    return PermissionDenied(
        "NOT_YOUR_WALLET",
        f"role {principal.role} pays from a customer's wallet by Pay only, with a ticket that the customer has fetched",
    )


def direct(draft: Payment, principal: Principal, command: PayCommand) -> Payment:
    """The payment of a ticket that names no order.

    Raises:
        InvalidArgument: FIELD_REQUIRED, or PAYEE_INVALID: from somebody else's wallet only the house is paid.
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
    payer = payer_account(command.source, customer_id, command.amount.currency)
    check_payee(command.payee_account_id, payer)
    house = sales_account(command.amount.currency)
    if command.source is Source.WALLET and principal.role is not Role.CUSTOMER and command.payee_account_id != house:
        raise InvalidArgument.of_field(
            "PAYEE_INVALID", "payee_account_id", f"from a customer's wallet a clerk pays {house} and nobody else"
        )
    return replace(
        draft,
        customer_id=customer_id,
        amount=command.amount,
        payer_account_id=payer,
        payee_account_id=command.payee_account_id,
    )
