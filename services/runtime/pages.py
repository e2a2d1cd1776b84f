"""Page tokens (AIP-158): opaque to callers, the last key of the page before to us."""

from __future__ import annotations

import base64

from services.kernel.errors import InvalidArgument

_DEFAULT, _MAX = 50, 1_000


def page_size(asked: int) -> int:
    """How many rows a page has.

    Raises:
        InvalidArgument: PAGE_SIZE_OUT_OF_RANGE.
    """
    if not 0 <= asked <= _MAX:
        raise InvalidArgument.of_field("PAGE_SIZE_OUT_OF_RANGE", "page_size", f"page_size is 0 to {_MAX}, not {asked}")
    return asked or _DEFAULT


def encode(*key: str | int) -> str:
    """The token of a page that begins after `key`."""
    return base64.urlsafe_b64encode("\n".join(map(str, key)).encode()).decode().rstrip("=")


def decode(token: str, parts: int) -> tuple[str, ...] | None:
    """The key after which a page begins; None: at the start.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    if not token:
        return None
    try:
        key = tuple(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().split("\n"))
    except ValueError as error:  # not base64, not ASCII, or not UTF-8
        raise _invalid() from error
    if len(key) != parts or encode(*key) != token:  # the decoder skips what is not base64
        raise _invalid()
    return key


def decode_number(token: str) -> int | None:
    """As `decode`, for a key that is one number."""
    key = decode(token, 1)
    return None if key is None else number(key[0])


def number(part: str) -> int:
    """A part of a key that is a number.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    if not part.isascii() or not part.isdigit() or len(part) > 18:
        raise _invalid()
    return int(part)


def _invalid() -> InvalidArgument:
    return InvalidArgument.of_field(
        "PAGE_TOKEN_INVALID", "page_token", "page_token is not one we gave out; leave it empty to begin"
    )
