"""Pages of lists (AIP-158): every List method answers through `read_page`.

A page ends with the first of these: the rows that were asked for, PAGE_BYTES of messages, or the list. It has at least
one row unless the list has ended, for the largest row that can be stored is smaller than PAGE_BYTES
(`tests/unit/runtime/test_message_sizes.py`). A page shorter than asked for is not the last one: only an empty
next_page_token ends a list.

A page token is opaque to callers. It holds a fingerprint of the query, which is the type of the request and all its
fields but page_size and page_token, and the key of the last row of the page before. A token of another list, of another
filter or of a release before this one is refused: PAGE_TOKEN_INVALID.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from services.kernel.errors import InvalidArgument

DEFAULT_ROWS, MAX_ROWS = 50, 1_000
#: Size of a page's messages. Half of the smallest `max_message_bytes` that the settings take, so that the page's other
#: fields and the framing always fit.
PAGE_BYTES = 1 << 19
#: A default for lists that were once sent whole: a page of PAGE_BYTES, however many rows that are.
AS_MANY_AS_FIT = PAGE_BYTES
#: Rows read from the database at first, and at most at once. After the first rows as many are read as the page has room
#: for by their mean size, and at most _GROWTH times as many rows, for the next ones may be larger.
_FIRST_ROWS, _CHUNK_ROWS, _GROWTH = 16, 100, 3
#: Tag and length of a row in the answer.
_ROW_OVERHEAD = 6
_FINGERPRINT_LENGTH = 16
#: What a key may hold that is no number: the characters of ids and accounts.
_TEXT = re.compile(r"[A-Za-z0-9_.:-]{1,160}")
_NUMBER = re.compile(r"[0-9]{1,18}")

Row = TypeVar("Row")
Out = TypeVar("Out", bound=Message)
#: What orders a list and tells its rows apart: where a page ends and the next one begins.
Key = tuple[Any, ...]


def page_size(asked: int, default_rows: int = DEFAULT_ROWS) -> int:
    """Return how many rows a page has at most.

    Raises:
        InvalidArgument: PAGE_SIZE_OUT_OF_RANGE.
    """
    if not 0 <= asked <= MAX_ROWS:
        raise InvalidArgument.of_field(
            "PAGE_SIZE_OUT_OF_RANGE", "page_size", f"page_size is 0 to {MAX_ROWS}, not {asked}"
        )
    return asked or default_rows


@dataclass(frozen=True, slots=True)
class Page(Generic[Out]):
    """Rows as messages, and the token of the page after them.

    Args:
        next_page_token: Empty: the list has ended.
    """

    rows: list[Out]
    next_page_token: str


async def read_page(
    request: Any,
    *,
    key_types: tuple[type[int] | type[str], ...],
    fetch: Callable[[Any, int], Awaitable[Sequence[Row]]],
    key_of: Callable[[Row], Key],
    out: Callable[[Row], Out],
    default_rows: int = DEFAULT_ROWS,
) -> Page[Out]:
    """Read one page of a list.

    Args:
        request: The message that the List method takes; it has page_size and page_token, and the rest is the filter.
        key_types: Types of the parts of a row's key.
        fetch: Returns at most so many rows that come after a key, in the list's order; the key is None at the start.
        key_of: Key of a row.
        out: A row as a message; called once for each row that is looked at, of which the last may not be on the page.
        default_rows: Instead of a page_size of 0.

    Raises:
        InvalidArgument: PAGE_SIZE_OUT_OF_RANGE or PAGE_TOKEN_INVALID.
    """
    wanted = page_size(request.page_size, default_rows)
    after = key_in(request, key_types)
    rows: list[Out] = []
    size, chunk = 0, _FIRST_ROWS
    while True:
        limit = min(wanted + 1 - len(rows), chunk)  # the row behind a full page shows that the list goes on
        found = await fetch(after, limit)
        for row in found:
            if len(rows) == wanted:
                return Page(rows, token_of(request, after))
            message = out(row)
            size += message.ByteSize() + _ROW_OVERHEAD
            if rows and size > PAGE_BYTES:
                return Page(rows, token_of(request, after))
            rows.append(message)
            after = key_of(row)
        if len(found) < limit:
            return Page(rows, "")
        room = (PAGE_BYTES - size) * len(rows) // size + 1  # one more than fits ends the page
        chunk = max(1, min(room, _GROWTH * len(rows), _CHUNK_ROWS))


def token_of(request: Any, key: Key | None) -> str:
    """Return the token of the page of this query that begins after `key`."""
    parts = (_fingerprint(request), *(key or ()))
    return base64.urlsafe_b64encode("\n".join(map(str, parts)).encode()).decode().rstrip("=")


def key_in(request: Any, types: tuple[type[int] | type[str], ...]) -> Key | None:
    """Return the key after which the page asked for begins; None: at the start.

    Raises:
        InvalidArgument: PAGE_TOKEN_INVALID.
    """
    token: str = request.page_token
    if not token:
        return None
    try:
        fingerprint, *parts = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().split("\n")
    except ValueError as error:  # not base64, not ASCII, or not UTF-8
        raise _invalid() from error
    if fingerprint != _fingerprint(request) or len(parts) != len(types):
        raise _invalid()
    if not all((_NUMBER if kind is int else _TEXT).fullmatch(part) for kind, part in zip(types, parts, strict=True)):
        raise _invalid()
    key = tuple(kind(part) for kind, part in zip(types, parts, strict=True))
    if token_of(request, key) != token:  # the decoder skips what is not base64
        raise _invalid()
    return key


def _fingerprint(request: Any) -> str:
    """Return what tells one query from another: another type of request, or another filter."""
    query = type(request)()
    query.CopyFrom(request)
    query.ClearField("page_size")
    query.ClearField("page_token")
    content = query.DESCRIPTOR.full_name.encode() + b"\n" + query.SerializeToString(deterministic=True)
    return hashlib.sha256(content).hexdigest()[:_FINGERPRINT_LENGTH]


def _invalid() -> InvalidArgument:
    return InvalidArgument.of_field(
        "PAGE_TOKEN_INVALID",
        "page_token",
        "page_token is not of this list with this filter; send the filter it was given for, or leave it empty to begin",
    )
