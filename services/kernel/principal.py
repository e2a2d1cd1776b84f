"""The caller, as named by a verified token."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

#: Of a principal's delegation.
MAX_DELEGATION_CHARS: Final = 1024


class Role(StrEnum):
    """The role of a caller."""

    CUSTOMER = "customer"
    CASHIER = "cashier"
    ACCOUNTANT = "accountant"
    AUDITOR = "auditor"
    OPERATOR = "operator"
    SERVICE = "service"
    ACQUIRER = "acquirer"


@dataclass(frozen=True, slots=True)
class Principal:
    """A name and the role under which it acts. Customer li and cashier li are two principals.

    Nothing compares callers by name alone. What a customer owns (orders, wallets) is named after them without the role,
    so `is_customer` is how ownership is asked for.

    Args:
        delegation: What lets a service act for this caller at another service (`delegations.py`); empty: nothing does.
            It is no part of who the caller is.
    """

    name: str
    role: Role
    delegation: str = field(default="", compare=False, repr=False)

    def is_customer(self, customer_id: str) -> bool:
        """Return whether this is the customer whom orders and wallets name `customer_id`."""
        return self.role is Role.CUSTOMER and self.name == customer_id

    def __str__(self) -> str:
        return f"{self.name} ({self.role})"
