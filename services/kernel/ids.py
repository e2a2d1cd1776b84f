"""Ids: how they look and where they come from. The only module of the services that uses randomness."""

from __future__ import annotations

import random
import re
import secrets
import unicodedata
from typing import Protocol

from services.kernel.errors import InvalidArgument

#: Order, payment, ticket and request ids, and the names of people.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_BUSINESS_KEY = re.compile(r"[A-Za-z0-9_.:-]{1,160}")
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that is read as something else
#: Letters without a glyph that Unicode lets be ignored (Default_Ignorable_Code_Point): the Hangul fillers.
_IGNORABLE_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")
#: Letters and symbols whose glyph is blank: the Braille pattern without dots, the null notehead, the full and the half
#: blank of hieroglyphs. Unicode has no property that tells.
_BLANK_GLYPHS = frozenset("\u2800\U0001d159\U00013441\U00013442")
#: Ignorable letters, and marks that are never drawn.
_NEVER_DRAWN = _IGNORABLE_LETTERS | frozenset("\u034f\u17b4\u17b5")
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
#: Format characters that are drawn: the signs before Arabic, Syriac and Kaithi numbers.
_DRAWN_FORMAT = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
_JOINERS = frozenset("\u200c\u200d")
LENGTH = 16  # 80 bits


class IdSource(Protocol):
    """What makes new ids."""

    def new(self, prefix: str) -> str:
        """Return a fresh id like `pay_7d0q…`."""
        ...


class RandomIds:
    """Ids that cannot be guessed."""

    def new(self, prefix: str) -> str:
        return f"{prefix}_" + "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def new_rng() -> random.Random:
    """Return randomness for choices that need not be secret, such as which of two instances to ask."""
    return random.Random()


def _check(pattern: re.Pattern[str], value: str, field: str, limit: int) -> str:
    if pattern.fullmatch(value):
        return value
    if not value:
        raise InvalidArgument.of_field("FIELD_REQUIRED", field, f"{field} is required")
    raise InvalidArgument.of_field(
        "FIELD_MALFORMED", field, f"{field} must be 1 to {limit} characters of A-Z a-z 0-9 _ . : -"
    )


def check_name(value: str, field: str) -> str:
    """Return `value` if it can be an id or a name.

    Raises:
        InvalidArgument: FIELD_REQUIRED or FIELD_MALFORMED.
    """
    return _check(_NAME, value, field, 64)


def check_account(value: str, field: str) -> str:
    """Return `value` if it can name a ledger account; raises as `check_name`."""
    return _check(_ACCOUNT, value, field, 100)


def check_business_key(value: str, field: str) -> str:
    """Return `value` if it can be a journal's business key; raises as `check_name`."""
    return _check(_BUSINESS_KEY, value, field, 160)


def is_blank(text: str) -> bool:
    """Return whether nothing can be seen of `text`.

    It has only blanks (Z), controls, formats and unassigned code points (C), marks without a letter (M), and letters
    and symbols that are not drawn. That is all of Unicode's White_Space and Default_Ignorable_Code_Point, and more.
    """
    return all(
        character in _IGNORABLE_LETTERS or character in _BLANK_GLYPHS or unicodedata.category(character)[0] in "ZCM"
        for character in text
    )


def check_reason(value: str, field: str) -> str:
    """Return `value` if it says why something is done.

    Raises:
        InvalidArgument: FIELD_REQUIRED: there is nothing to be seen of it; FIELD_TOO_LONG or FIELD_MALFORMED.
    """
    if is_blank(value):
        raise InvalidArgument.of_field("FIELD_REQUIRED", field, f"{field} is required: say why, in at least a word")
    return check_text(value, field)


def check_text(value: str, field: str, *, limit: int = 200, required: bool = False) -> str:
    """Return `value` if it is one line of text, all of it shown, and no longer than `limit` characters.

    Raises:
        InvalidArgument: FIELD_REQUIRED, FIELD_TOO_LONG or FIELD_MALFORMED.
    """
    check_text_form(value, field, limit=limit, required=required)
    place = _first_hidden(value)
    if place is not None:
        raise InvalidArgument.of_field(
            "FIELD_MALFORMED",
            field,
            f"{field} has a character that is not shown or changes how others are: U+{ord(value[place]):04X}",
        )
    return value


def check_text_form(value: str, field: str, *, limit: int = 200, required: bool = False) -> str:
    """Check as `check_text`, for a text that was stored before.

    Earlier releases refused only the controls of ASCII, and what they took stays usable.
    """
    if required and not value:
        raise InvalidArgument.of_field("FIELD_REQUIRED", field, f"{field} is required")
    if len(value) > limit:
        raise InvalidArgument.of_field(
            "FIELD_TOO_LONG", field, f"{field} has {len(value)} characters; at most {limit} are taken"
        )
    if any(ord(character) < 32 for character in value):
        raise InvalidArgument.of_field("FIELD_MALFORMED", field, f"{field} has control characters")
    return value


def _first_hidden(text: str) -> int | None:
    """Place of the first character that a line of text may not have; None: it has none.

    By Unicode's general category: controls (Cc), surrogates (Cs), private use (Co), unassigned code points (Cn), line
    and paragraph separators (Zl, Zp), and format characters (Cf), like the bidi controls and blanks without width.
    Letters and marks that are never drawn are refused as well. Taken are:
    - blanks that have a width (Zs), the ideographic and the no-break space among them;
    - the Arabic and Syriac number signs, which are Cf and drawn;
    - ZWJ and ZWNJ between letters, marks and symbols, where Persian and Indic scripts and emoji need them.

    The text is stored as it was sent, without Unicode normalisation, so that a repeat of a request has its fingerprint.
    """
    for place, character in enumerate(text):
        category = unicodedata.category(character)
        if character in _JOINERS:
            if _joins(text[place - 1 : place]) and _joins(text[place + 1 : place + 2]):
                continue
            return place
        if character in _NEVER_DRAWN or (category in _HIDDEN_CATEGORIES and character not in _DRAWN_FORMAT):
            return place
    return None


def _joins(character: str) -> bool:
    """Return whether a joiner may stand beside it."""
    return bool(character) and unicodedata.category(character)[0] in "LMS"
