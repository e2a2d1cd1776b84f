"""Money: an int64 of minor units and an ISO 4217 code.

Invariants
1. A `Money` is payable: 1 ≤ minor_units ≤ MAX_MINOR_UNITS. Zero, negative and overflowing amounts cannot be made.
2. Amounts of different currencies are never added or compared.

Units and nanos (google.type.Money) were considered and rejected: four bugs in one demo's changelog came from carrying
between the two fields.

The wire, the databases and JSON carry minor units. People write major units (`parse_amount`)
and read them (`kernel/currency.py`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from services.kernel.currency import DECIMALS, format_amount, format_number
from services.kernel.errors import InvalidArgument

#: The largest payable amount. 9,000 of them still fit an int64, so no sum of one journal can overflow.
MAX_MINOR_UNITS = 10**15
#: The largest magnitude a balance may reach; a quarter of int64, so that a sum of two still fits.
MAX_BALANCE = 2**61

_CURRENCY = re.compile(r"[A-Z]{3}")
#: Major units: ASCII digits, no sign, no exponent, no grouping; what 1,000 means is never guessed.
_MAJOR_UNITS = re.compile(r"([0-9]+)(?:\.([0-9]+))?")
#: No amount has more digits before its point, and no more of them are made a number.
_MOST_DIGITS = 19
#: How much of what was typed is repeated in a refusal.
_SHOWN_LENGTH = 40


def check_currency(code: str, field: str = "currency_code") -> str:
    """Return `code` if ISO 4217 has it, with minor units: what new orders, payments and accounts may be in.

    Raises:
        InvalidArgument: CURRENCY_INVALID.
    """
    if code not in DECIMALS:
        raise _not_a_currency(code, field)
    return code


def check_currency_form(code: str, field: str = "currency_code") -> str:
    """Return `code` if it has the form of ISO 4217: earlier releases took any such code, and its money stays usable.

    Raises:
        InvalidArgument: CURRENCY_INVALID.
    """
    if not _CURRENCY.fullmatch(code):
        raise _not_a_currency(code, field)
    return code


def _not_a_currency(code: str, field: str) -> InvalidArgument:
    meant = code.upper() if code.upper() in DECIMALS else "a code like CNY"
    return InvalidArgument.of_field(
        "CURRENCY_INVALID", field, f"{code[:_SHOWN_LENGTH]!r} is not a currency of ISO 4217; give {meant}"
    )


def parse_amount(text: str, currency: str, field: str = "amount") -> int:
    """Return the minor units of an amount that a person wrote in major units: 12.50 of CNY are 1250.

    Zero is read as zero; whether it may be paid is for `Money` to say.

    Args:
        text: ASCII digits with at most one decimal point, and no more decimals than the currency has.
        currency: ISO 4217 code.
        field: Where the text was given, to be named in a refusal.

    Raises:
        InvalidArgument: AMOUNT_MALFORMED, AMOUNT_OUT_OF_RANGE or CURRENCY_INVALID.
    """
    decimals = DECIMALS[check_currency(currency)]
    shown = f"{text[:_SHOWN_LENGTH]!r}"
    found = _MAJOR_UNITS.fullmatch(text)
    if found is None:
        raise InvalidArgument.of_field(
            "AMOUNT_MALFORMED",
            field,
            f"{shown} is not an amount; write digits with at most one point, like {format_number(1250, currency)}",
        )
    whole, fraction = found[1].lstrip("0"), found[2] or ""
    if len(fraction) > decimals:
        has = f"{decimals} decimals" if decimals else "no decimals"
        raise InvalidArgument.of_field(
            "AMOUNT_MALFORMED", field, f"{shown} has too many decimals: {currency} has {has}"
        )
    is_long = len(whole) > _MOST_DIGITS
    minor_units = 0 if is_long else int((whole + fraction.ljust(decimals, "0")) or "0")
    if is_long or minor_units > MAX_MINOR_UNITS:
        limit = format_amount(MAX_MINOR_UNITS, currency)
        raise InvalidArgument.of_field(
            "AMOUNT_OUT_OF_RANGE", field, f"{shown} is more than {limit}, the largest amount"
        )
    return minor_units


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
        check_currency_form(self.currency, "amount.currency_code")
        if not 1 <= self.minor_units <= MAX_MINOR_UNITS:
            least, most = format_amount(1, self.currency), format_amount(MAX_MINOR_UNITS, self.currency)
            raise InvalidArgument.of_field(
                "AMOUNT_OUT_OF_RANGE", "amount.minor_units", f"an amount must be from {least} to {most}, not {self}"
            )

    def __add__(self, other: Money) -> Money:
        if other.currency != self.currency:
            raise InvalidArgument.of_field(
                "CURRENCY_MISMATCH", "amount.currency_code", f"cannot add {other.currency} to {self.currency}"
            )
        return Money(self.minor_units + other.minor_units, self.currency)

    def times(self, quantity: int) -> Money:
        """Return this amount `quantity` times."""
        return Money(self.minor_units * quantity, self.currency)

    def __str__(self) -> str:
        return format_amount(self.minor_units, self.currency)
