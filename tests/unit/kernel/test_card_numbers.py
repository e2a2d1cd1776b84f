"""Card numbers in what people write."""

from __future__ import annotations

import pytest

from services.kernel.card_numbers import has_card_number, refuse_bare_number, refuse_card_number
from services.kernel.errors import InvalidArgument


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424242",
        "4242-4242-4242-4242",
        "4242 4242 4242 4242",
        "4242.4242.4242.4242",
        "4242_4242_4242_4242",
        "4242 - 4242 - 4242 - 4242",
        "4 2 4 2 4 2 4 2 4 2 4 2 4 2 4 2",
        "pan:4242424242424242",
        *(f"4242{separator}4242{separator}4242{separator}4242" for separator in "·•‧*+#~='()、。，∶・−;&@"),
        "PAN4242424242424242x",
        "table 7, 4242 4242 4242 4242, exp 12/29",
        "4242–4242—4242‑4242",
        "4242\u30004242\u00a04242\u202f4242",
        "4242\u200b4242\u200b4242\ufeff4242",
        "4242\n4242\t4242\r4242",
        "４２４２４２４２４２４２４２４２",
        "４２４２－４２４２－４２４２－４２４２",
        "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢",
        "wallet:4242424242424242:CNY",
        "5555 5555 5555 4444",
        "2223 0031 2200 3222",
        "3782 822463 10005",
        "3056 930902 5904",
        "3530 1113 3330 0000",
        "6011 1111 1111 1117",
        "6200 0000 0000 0005",
        "6205 5000 0000 0000 004",
    ],
)
def test_has_card_number_with_any_separators_and_digits_is_true(text: str) -> None:
    """In each scheme, wherever in the text, in the digits of any script; the refusal does not repeat it."""
    assert has_card_number(text)
    with pytest.raises(InvalidArgument) as refusal:
        refuse_card_number(text, "memo")
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("CARD_NUMBER_REFUSED", "memo")
    assert "4242" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two teas, 25.50 CNY, table 12",
        "4242424242424241",
        "4242-4242-4242-4241",
        "0000 0000 0000 0000",
        "invoice 2026-11-28 1234 5678",
        "20261128123456789012345678901234567890",
        "+86 138 1234 5678",
        "1732752000000000",
        "424242424242",
        "4242 4242 and 4242 4242",
        "4242    4242    4242    4242",
        "茶 × 2, 一二三四五六七八九十一二三四",
    ],
)
def test_has_card_number_in_ordinary_long_numbers_is_false(text: str) -> None:
    """A wrong check digit, no scheme's beginning or length, or words between: it is some other number."""
    assert not has_card_number(text)
    assert refuse_card_number(text, "memo") == text


@pytest.mark.parametrize("token", ["123456789012", "1234-5678-9012", "4242424242424241", "1234567890123456789"])
def test_refuse_bare_number_of_digits_alone_is_refused(token: str) -> None:
    """Where only a token may stand, digits alone are no token, whatever their check digit."""
    with pytest.raises(InvalidArgument) as refusal:
        refuse_bare_number(token, "card")
    assert refusal.value.reason == "CARD_NUMBER_REFUSED"


def test_refuse_bare_number_token_passes() -> None:
    """Digits may be part of one."""
    for token in ("tok-mei", "tok_1234567890123", "12345678901", "pm_1Mq4x2"):
        assert refuse_bare_number(token, "card") == token
