"""Callers: a name and a role, with the token that proves them."""

from __future__ import annotations

from dataclasses import dataclass, field

from countinghouse.payment.v1 import payment_pb2
from services.kernel.principal import Role

#: The customer who owns an order unless a test names another.
CUSTOMER = "mei"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller.

    Args:
        token: For the services.
        outside: For the acquirer; empty: the caller has nothing to do with it.
    """

    name: str
    role: Role
    token: str = field(repr=False)
    outside: str = field(default="", repr=False)

    @property
    def source(self) -> payment_pb2.Source.ValueType:
        """Where the money of this caller's payments comes from, unless a card is named."""
        return payment_pb2.SOURCE_DRAWER if self.role is Role.CASHIER else payment_pb2.SOURCE_BANK
