"""Money: only payable amounts can be made, and only like is added to like."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.kernel.currency import DECIMALS, format_number
from services.kernel.errors import InvalidArgument
from services.kernel.money import (
    MAX_BALANCE,
    MAX_MINOR_UNITS,
    Money,
    check_currency,
    check_currency_form,
    parse_amount,
)

PAYABLE = st.integers(1, MAX_MINOR_UNITS)


@given(PAYABLE, PAYABLE)
def test_sum_is_exact_or_refused(left: int, right: int) -> None:
    """Never wrapped, never rounded."""
    if left + right <= MAX_MINOR_UNITS:
        assert Money(left, "CNY") + Money(right, "CNY") == Money(left + right, "CNY")
        return
    with pytest.raises(InvalidArgument) as refusal:
        Money(left, "CNY") + Money(right, "CNY")
    assert refusal.value.reason == "AMOUNT_OUT_OF_RANGE"


@pytest.mark.parametrize("minor_units", [0, -1, MAX_MINOR_UNITS + 1, 2**63, -(2**63)])
def test_unpayable_amounts_cannot_be_made(minor_units: int) -> None:
    """Zero, negative and overflowing amounts are refused with the field at fault."""
    with pytest.raises(InvalidArgument) as refusal:
        Money(minor_units, "CNY")
    assert refusal.value.reason == "AMOUNT_OUT_OF_RANGE"
    assert refusal.value.fields[0][0] == "amount.minor_units"


@pytest.mark.parametrize("code", ["RMB", "XXX", "XTS", "XAU", "DEM", "ZZZ"])
def test_currency_outside_iso_4217_is_refused_and_its_money_stays_usable(code: str) -> None:
    """Nothing new is in it; what earlier releases stored in it can be read, added up and paid back."""
    with pytest.raises(InvalidArgument) as refusal:
        check_currency(code)
    assert refusal.value.reason == "CURRENCY_INVALID"
    assert check_currency_form(code) == code
    assert (Money(1, code) + Money(2, code)).minor_units == 3


def test_code_in_lower_case_is_refused_with_the_one_that_was_meant() -> None:
    """A code is not changed silently: it is part of what a request id stands for."""
    with pytest.raises(InvalidArgument, match="'cny' is not a currency of ISO 4217; give CNY"):
        check_currency("cny")


def test_refusal_of_a_currency_repeats_little_of_it() -> None:
    """A refusal travels in a trailer, which has little room."""
    with pytest.raises(InvalidArgument) as refusal:
        check_currency("x" * 100_000)
    assert len(refusal.value.message) < 200


@pytest.mark.parametrize("code", ["", "cny", "eur", "CN", "CNYY", "C1Y", "CNY\n", "¥¥¥", "ＣＮＹ"])
def test_malformed_currency_is_refused(code: str) -> None:
    """Three upper-case ASCII letters and nothing else."""
    with pytest.raises(InvalidArgument):
        check_currency_form(code)
    with pytest.raises(InvalidArgument) as refusal:
        check_currency(code, "currency_code")
    assert refusal.value.reason == "CURRENCY_INVALID"


def test_two_currencies_are_never_added() -> None:
    """CURRENCY_MISMATCH."""
    with pytest.raises(InvalidArgument) as refusal:
        Money(1, "CNY") + Money(1, "EUR")
    assert refusal.value.reason == "CURRENCY_MISMATCH"


def test_multiple_is_payable_too() -> None:
    """Or refused."""
    assert Money(7, "JPY").times(3) == Money(21, "JPY")
    for quantity in (0, -1, MAX_MINOR_UNITS):
        with pytest.raises(InvalidArgument):
            Money(7, "JPY").times(quantity)


def test_nothing_that_fits_overflows_an_int64() -> None:
    """100 legs of the largest amount, and the largest balance twice."""
    assert 100 * MAX_MINOR_UNITS < 2**63
    assert 2 * MAX_BALANCE < 2**63


@pytest.mark.parametrize(
    ("text", "currency", "minor_units"),
    [
        ("12.50", "CNY", 1250),
        ("12.5", "CNY", 1250),
        ("12", "CNY", 1200),
        ("0.05", "CNY", 5),
        ("1250", "JPY", 1250),
        ("1.250", "KWD", 1250),
        ("0", "CNY", 0),
        ("10000000000000.00", "CNY", MAX_MINOR_UNITS),
    ],
)
def test_amount_in_major_units_is_parsed_exactly(text: str, currency: str, minor_units: int) -> None:
    """With the currency's own number of decimals."""
    assert parse_amount(text, currency) == minor_units


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1,000", "1.000,00", "1 000", "1_0", "1e3", "0x10", "NaN", "inf", "-1", "-0", "+1"),
        *("12.", ".5", "12.5.0", "12.505", "12.500", "12\n", "１２", "٣", "梅"),
    ],
)
def test_ambiguous_amount_is_refused(text: str) -> None:
    """In a sentence that repeats what was typed, cut short and escaped."""
    with pytest.raises(InvalidArgument) as refusal:
        parse_amount(text, "CNY", "--amount")
    assert refusal.value.reason == "AMOUNT_MALFORMED"
    assert refusal.value.fields[0][0] == "--amount"
    assert len(refusal.value.message) < 160
    assert refusal.value.message.isprintable()


def test_decimals_of_a_currency_without_any_are_refused() -> None:
    """1250.00 JPY would be read as 125000 by somebody."""
    with pytest.raises(InvalidArgument, match="JPY has no decimals"):
        parse_amount("1250.00", "JPY")


def test_amount_beyond_the_largest_is_refused_in_major_units() -> None:
    """However many digits it has."""
    for text in ("10000000000000.01", "9" * 20, "9" * 5_000, "9" * 5_000 + ".99"):
        with pytest.raises(InvalidArgument, match=r"more than 10000000000000\.00 CNY") as refusal:
            parse_amount(text, "CNY")
        assert refusal.value.reason == "AMOUNT_OUT_OF_RANGE"
        assert len(refusal.value.message) < 160
    assert parse_amount("0" * 5_000 + "5", "CNY") == 500


def test_amount_in_an_unknown_currency_is_refused() -> None:
    """Nobody knows its decimals."""
    with pytest.raises(InvalidArgument) as refusal:
        parse_amount("12.50", "RMB")
    assert refusal.value.reason == "CURRENCY_INVALID"


@given(st.integers(0, MAX_MINOR_UNITS), st.sampled_from(sorted(DECIMALS)))
def test_amount_shown_is_parsed_as_the_same_amount(minor_units: int, currency: str) -> None:
    """In every currency."""
    assert parse_amount(format_number(minor_units, currency), currency) == minor_units


def test_money_is_shown_in_major_units_in_refusals_too() -> None:
    """Nobody reads 1250 CNY as 12.50 CNY."""
    assert str(Money(1250, "CNY")) == "12.50 CNY"
    with pytest.raises(InvalidArgument, match=r"from 0\.01 CNY to 10000000000000\.00 CNY, not 0\.00 CNY"):
        Money(0, "CNY")
