"""Card numbers: found in any text of a request, so that none is ever stored, logged or sent on.

A card number here is 13 to 19 digits that begin and are as long as those of a card scheme (ISO/IEC 7812), whose check
digit is right (Luhn). Digits of any script count, the full-width ones too. Between two groups of digits may stand up to
three separators: whatever is neither a letter nor a number. Both conditions together let ordinary long
numbers pass, an invoice's or a parcel's: of a hundred random numbers of 16 digits four are refused.
"""

from __future__ import annotations

import re
import unicodedata

from services.kernel.errors import InvalidArgument

_SCHEMES = re.compile(
    r"4(\d{12}|\d{15}|\d{18})|5\d{15}|2[2-7]\d{14}|3[47]\d{13}|3[0689]\d{12}|35\d{14}|6(\d{15}|\d{18})|62\d{15}|8[12]\d{14}"
)
_LONGEST = 19
_NUMBERS = re.compile(r"\d+(?: {1,3}\d+)*")
#: The fewest digits that can be a number to be refused where only a token may stand.
_BARE = re.compile(r"\d{12,19}")


def has_card_number(text: str) -> bool:
    """Return whether `text` contains a card number, with separators or without."""
    for numbers in _NUMBERS.finditer(_plain(text)):
        groups = numbers[0].split()
        for first in range(len(groups)):
            joined = ""
            for group in groups[first:]:
                joined += group
                if len(joined) > _LONGEST:
                    break
                if _SCHEMES.fullmatch(joined) and _luhn(joined):
                    return True
    return False


def refuse_card_number(value: str, field: str) -> str:
    """Return `value` if it contains no card number.

    Raises:
        InvalidArgument: CARD_NUMBER_REFUSED.
    """
    if has_card_number(value):
        raise _refused(field)
    return value


def refuse_bare_number(token: str, field: str) -> str:
    """Return `token` if it can be a card's token: neither a card number nor anything else of 12 to 19 digits alone.

    Raises:
        InvalidArgument: CARD_NUMBER_REFUSED.
    """
    if _BARE.fullmatch(_plain(token).replace(" ", "")):
        raise _refused(field)
    return refuse_card_number(token, field)


def _plain(text: str) -> str:
    """Return `text` with each digit as an ASCII digit, each separator as a blank, and anything else as `x`."""
    return "".join(map(_plain_character, text))


def _plain_character(character: str) -> str:
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return str(digit)
    return "x" if character.isalnum() else " "


def _luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(map(int, reversed(digits))):
        doubled = digit * (1 + place % 2)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


def _refused(field: str) -> InvalidArgument:
    return InvalidArgument.of_field(
        "CARD_NUMBER_REFUSED", field, f"{field} has a card number in it; send the card's token, never its number"
    )
