"""Receive a request's bytes within a time limit.

grpc.aio calls the handler of a unary method only when its request has arrived, and waits for that without end. So all
methods are registered as streams of requests, whose handlers are called when the headers arrive, and read one request
here. A client notices no difference.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from grpc import aio

from services.kernel.errors import Aborted, InvalidArgument

#: Calls that wait for their request at once. A request usually arrives with its headers.
_MOST_WAITING: Final = 256

_Context = aio.ServicerContext[Any, Any]


class Receiver:
    """Receives requests; for handlers of streams without a deserializer.

    At most `_MOST_WAITING` calls wait at once: when one more comes, the one that waited longest is refused.

    Args:
        timeout_s: Within which a request must arrive as a whole.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waiting: dict[asyncio.Timeout, None] = {}  # the longest first

    async def receive(self, context: _Context) -> bytes:
        """Return the bytes of the next request.

        Raises:
            Aborted: REQUEST_NOT_RECEIVED: it did not come in time.
            InvalidArgument: REQUEST_REQUIRED: the client sent none and will not.
        """
        body = await self.receive_or_end(context)
        if body is None:
            raise InvalidArgument("REQUEST_REQUIRED", "the call ended without a request; send one")
        return body

    async def receive_or_end(self, context: _Context) -> bytes | None:
        """Receive as `receive`; return None if the client sent none and will not."""
        try:
            async with asyncio.timeout(self._timeout_s) as timeout:
                self._waiting[timeout] = None
                if len(self._waiting) > _MOST_WAITING:
                    next(iter(self._waiting)).reschedule(asyncio.get_running_loop().time())
                try:
                    body = await context.read()
                finally:
                    del self._waiting[timeout]
        except TimeoutError:
            raise Aborted(
                "REQUEST_NOT_RECEIVED",
                f"no request arrived within {self._timeout_s:g} s; send it with the call",
                retry_after_ms=100,
            ) from None
        if body is not aio.EOF:
            return bytes(body)
        await asyncio.sleep(0)  # the client hung up, or its request was too large: the call is cancelled here
        if context.time_remaining() == 0:
            raise asyncio.CancelledError  # the call cannot be answered any more
        return None
