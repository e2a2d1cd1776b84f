"""Parsing of requests, after the interceptor has verified the token.

grpc.aio parses a request before its handler runs, and answers UNKNOWN with the parser's message if it cannot. So all
methods are registered without a deserializer, and `interceptors.py` and `public.py` call `parse`.

Unknown fields are no error: a newer client may send them. A known field with another wire type counts as unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from services.kernel.errors import InvalidArgument

Deserializer = Callable[[bytes], Any]
_TEXT = "the request is malformed: it is no protobuf message of the type that this method takes"


def parse(deserializer: Deserializer, body: bytes) -> Any:
    """Return the message in `body`.

    Raises:
        InvalidArgument: MALFORMED_REQUEST.
    """
    try:
        return deserializer(body)
    except DecodeError as error:
        raise InvalidArgument("MALFORMED_REQUEST", _TEXT) from error
