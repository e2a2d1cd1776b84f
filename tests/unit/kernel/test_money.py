"""Money: only payable amounts can be made, and only like is added to like."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from services.kernel.errors import InvalidArgument
from services.kernel.money import MAX_BALANCE, MAX_MINOR_UNITS, Money, check_currency

PAYABLE = st.integers(1, MAX_MINOR_UNITS)


@given(PAYABLE, PAYABLE)
def test_a_sum_is_exact_or_refused(left: int, right: int) -> None:
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


@pytest.mark.parametrize("code", ["", "cny", "CN", "CNYY", "C1Y", "CNY\n", "¥¥¥", "ＣＮＹ"])
def test_what_is_no_currency_is_refused(code: str) -> None:
    """Three upper-case ASCII letters and nothing else."""
    with pytest.raises(InvalidArgument) as refusal:
        check_currency(code, "currency_code")
    assert refusal.value.reason == "CURRENCY_INVALID"


def test_two_currencies_are_never_added() -> None:
    """CURRENCY_MISMATCH."""
    with pytest.raises(InvalidArgument) as refusal:
        Money(1, "CNY") + Money(1, "EUR")
    assert refusal.value.reason == "CURRENCY_MISMATCH"


def test_a_multiple_is_payable_too() -> None:
    """Or refused."""
    assert Money(7, "JPY").times(3) == Money(21, "JPY")
    for quantity in (0, -1, MAX_MINOR_UNITS):
        with pytest.raises(InvalidArgument):
            Money(7, "JPY").times(quantity)


def test_nothing_that_fits_overflows_an_int64() -> None:
    """100 legs of the largest amount, and the largest balance twice."""
    assert 100 * MAX_MINOR_UNITS < 2**63
    assert 2 * MAX_BALANCE < 2**63
