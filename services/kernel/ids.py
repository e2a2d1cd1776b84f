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
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: nothing that is read as something else
#: Letters and symbols by their category, and nothing is drawn: Hangul fillers, the Braille pattern without dots.
_EMPTY_LETTERS = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_LENGTH = 16  # 80 bits


class IdSource(Protocol):
    """What makes new ids."""

    def new(self, prefix: str) -> str:
        """A fresh id like `pay_7d0q…`."""
        ...


class RandomIds:
    """Ids nobody can guess."""

    def new(self, prefix: str) -> str:
        return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))


class SeededIds:
    """The same ids for the same seed, so that a run can be repeated."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def new(self, prefix: str) -> str:
        return f"{prefix}_" + "".join(self._random.choice(_ALPHABET) for _ in range(_LENGTH))


def dice() -> random.Random:
    """Randomness for choices that need not be secret, such as which of two instances to ask."""
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
    """Returns `value` if it can be an id or a name.

    Raises:
        InvalidArgument: FIELD_REQUIRED or FIELD_MALFORMED.
    """
    return _check(_NAME, value, field, 64)


def check_account(value: str, field: str) -> str:
    """Returns `value` if it can name a ledger account; raises as `check_name`."""
    return _check(_ACCOUNT, value, field, 100)


def check_business_key(value: str, field: str) -> str:
    """Returns `value` if it can be a journal's business key; raises as `check_name`."""
    return _check(_BUSINESS_KEY, value, field, 160)


def is_blank(text: str) -> bool:
    """Return whether nothing can be seen of `text`: blanks, marks without a letter, letters that are drawn empty."""
    return all(character in _EMPTY_LETTERS or unicodedata.category(character)[0] in "ZCM" for character in text)


def check_reason(value: str, field: str) -> str:
    """Returns `value` if it says why something is done.

    Raises:
        InvalidArgument: FIELD_REQUIRED: there is nothing to be seen of it; FIELD_TOO_LONG or FIELD_MALFORMED.
    """
    if is_blank(value):
        raise InvalidArgument.of_field("FIELD_REQUIRED", field, f"{field} is required: say why, in at least a word")
    return check_text(value, field)


def check_text(value: str, field: str, *, limit: int = 200, required: bool = False) -> str:
    """Returns `value` if it is printable and no longer than `limit` characters.

    Raises:
        InvalidArgument: FIELD_REQUIRED, FIELD_TOO_LONG or FIELD_MALFORMED.
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
