"""Money: an int64 of minor units and an ISO 4217 code.

Invariants
1. A `Money` is payable: 1 ≤ minor_units ≤ MAX_MINOR_UNITS. Zero, negative and overflowing amounts cannot be made.
2. Amounts of different currencies are never added or compared.

Units and nanos (google.type.Money) were weighed and left: four bugs in one demo's changelog came from carrying
between the two fields.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.kernel.errors import InvalidArgument

#: The largest payable amount. 9,000 of them still fit an int64, so no sum of one journal can overflow.
MAX_MINOR_UNITS = 10**15
#: The largest magnitude a balance may reach; a quarter of int64, so that a sum of two still fits.
MAX_BALANCE = 2**61

_CURRENCY = re.compile(r"[A-Z]{3}")


def check_currency(code: str, field: str = "currency_code") -> str:
    """Returns `code` if it has the form of ISO 4217.

    Raises:
        InvalidArgument: CURRENCY_INVALID.
    """
    if not _CURRENCY.fullmatch(code):
        raise InvalidArgument.of_field(
            "CURRENCY_INVALID",
            field,
            f"{code!r} is not a currency: send three upper-case letters of ISO 4217, like CNY",
        )
    return code


@dataclass(frozen=True, slots=True)
class Money:
    """A payable amount.

    Args:
        minor_units: Cents, fen, yen: the currency's smallest unit.
        currency: ISO 4217 code.

    Raises:
        InvalidArgument: AMOUNT_OUT_OF_RANGE or CURRENCY_INVALID.
    """

    minor_units: int
    currency: str

    def __post_init__(self) -> None:
        check_currency(self.currency, "amount.currency_code")
        if not 1 <= self.minor_units <= MAX_MINOR_UNITS:
            raise InvalidArgument.of_field(
                "AMOUNT_OUT_OF_RANGE",
                "amount.minor_units",
                f"an amount must be from 1 to {MAX_MINOR_UNITS} minor units, not {self.minor_units}",
            )

    def __add__(self, other: Money) -> Money:
        if other.currency != self.currency:
            raise InvalidArgument.of_field(
                "CURRENCY_MISMATCH", "amount.currency_code", f"cannot add {other.currency} to {self.currency}"
            )
        return Money(self.minor_units + other.minor_units, self.currency)

    def times(self, quantity: int) -> Money:
        """This amount `quantity` times."""
        return Money(self.minor_units * quantity, self.currency)

    def __str__(self) -> str:
        return f"{self.minor_units} {self.currency}"
