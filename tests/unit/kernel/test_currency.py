"""The table of currencies: complete as far as a table can say so of itself, and right where mistakes cost most."""

from __future__ import annotations

import re

import pytest

from services.kernel.currency import DECIMALS, format_amount, format_number


def test_table_has_every_active_code_with_a_minor_unit() -> None:
    """ISO 4217 list one of 2026-01-01 has 165 of them."""
    assert len(DECIMALS) == 165
    assert all(re.fullmatch(r"[A-Z]{3}", code) for code in DECIMALS)


@pytest.mark.parametrize(
    ("code", "decimals"),
    [
        ("CNY", 2),
        ("EUR", 2),
        ("USD", 2),
        ("JPY", 0),
        ("KRW", 0),
        ("VND", 0),
        ("ISK", 0),
        ("KWD", 3),
        ("TND", 3),
        ("CLF", 4),
    ],
)
def test_decimals_are_those_of_the_standard(code: str, decimals: int) -> None:
    """The ones people get wrong."""
    assert DECIMALS[code] == decimals


@pytest.mark.parametrize("code", ["RMB", "eur", "EURO", "", "XXX", "XTS", "XAU", "XDR", "HRK", "BGN", "ZWL", "ANG"])
def test_table_has_no_retired_or_invented_codes(code: str) -> None:
    """Nor those without a minor unit."""
    assert code not in DECIMALS


@pytest.mark.parametrize(
    ("minor_units", "currency", "shown"),
    [
        (1250, "CNY", "12.50 CNY"),
        (5, "CNY", "0.05 CNY"),
        (0, "CNY", "0.00 CNY"),
        (-5, "CNY", "-0.05 CNY"),
        (1250, "JPY", "1250 JPY"),
        (1250, "KWD", "1.250 KWD"),
        (-(2**70), "CNY", "-11805916207174113034.24 CNY"),
        (1250, "RMB", "1250 minor units of RMB"),
    ],
)
def test_amount_is_shown_in_major_units(minor_units: int, currency: str, shown: str) -> None:
    """As people write it; an amount whose decimals nobody knows says that it is in minor units."""
    assert format_amount(minor_units, currency) == shown


def test_sign_is_shown_where_it_is_asked_for() -> None:
    """Postings are debits and credits."""
    assert [format_number(each, "CNY", sign="+") for each in (1250, -1250, 0)] == ["+12.50", "-12.50", "0.00"]
