"""Parsing of requests, after the door has looked at the token.

grpc.aio parses a request before its handler runs, and answers UNKNOWN with the parser's words if it cannot. So our
methods are registered without a deserializer, and the interceptor calls `parse`. Health and reflection have no token
to look at; `tolerant` only answers them INVALID_ARGUMENT.

Unknown fields are no error: a newer client may send them. A known field with another wire type counts as unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio

from services.kernel.errors import InvalidArgument

Deserializer = Callable[[bytes], Any]
_Context = aio.ServicerContext[Any, Any]
_TEXT = "the request is malformed: it is no protobuf message of the type that this method takes"

log = structlog.get_logger()


def parse(deserializer: Deserializer, body: bytes) -> Any:
    """Return the message in `body`.

    Raises:
        InvalidArgument: MALFORMED_REQUEST.
    """
    try:
        return deserializer(body)
    except DecodeError as error:
        raise InvalidArgument("MALFORMED_REQUEST", _TEXT) from error


def tolerant(method: str, handler: Any) -> Any:
    """Return `handler` such that a malformed request ends its call with INVALID_ARGUMENT, and is logged without a
    traceback. For the shapes that health and reflection have."""

    def deserialize(body: bytes) -> Any:
        try:
            return parse(handler.request_deserializer, body)
        except InvalidArgument:
            return None

    async def checked(request: Any, context: _Context) -> Any:
        if request is None:
            log.info("malformed request", method=method)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _TEXT)
        return request

    async def unary_unary(request: Any, context: _Context) -> Any:
        return await handler.unary_unary(await checked(request, context), context)

    async def unary_stream(request: Any, context: _Context) -> None:
        await handler.unary_stream(await checked(request, context), context)

    async def stream_stream(requests: AsyncIterable[Any], context: _Context) -> AsyncIterator[Any]:
        async def each() -> AsyncIterator[Any]:
            async for request in requests:
                yield await checked(request, context)

        async for response in handler.stream_stream(each(), context):
            yield response

    serialize = handler.response_serializer
    if handler.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(unary_unary, deserialize, serialize)
    if handler.unary_stream is not None:
        return grpc.unary_stream_rpc_method_handler(unary_stream, deserialize, serialize)
    return grpc.stream_stream_rpc_method_handler(stream_stream, deserialize, serialize)
