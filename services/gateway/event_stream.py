"""Server-sent events (HTML standard, section 9.2) as a response of ASGI.

    event: orders
    id: orders%40127.0.0.1%3A7001=5f0c….17
    data: {"orders": […]}

What the reader does not take in time ends the response: the server closes the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway.messages import dumped
from services.gateway.problems import problem_of
from services.gateway.watching import Event
from services.kernel.errors import CountinghouseError

_TAKEN_WITHIN_S: Final = 15.0
#: After which a browser connects again, in milliseconds.
_AGAIN_MS: Final = 2_000


class EventStream(Response):
    """The response.

    Args:
        first: The events that are there already.
        events: Those that come; it is closed when the reader has left.
    """

    media_type = "text/event-stream"

    def __init__(self, first: Event, events: AsyncGenerator[Event, None]) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  as ASGI has it
        """Send the events until the reader leaves, or no more may be sent."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _write(send, b"retry: %d\n\n" % _AGAIN_MS + encoded(self._first))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            async with aclosing(self._events) as events:
                while True:
                    coming = asyncio.ensure_future(anext(events))
                    await asyncio.wait({coming, leaving}, return_when=asyncio.FIRST_COMPLETED)
                    if not coming.done():
                        coming.cancel()
                        await asyncio.gather(coming, return_exceptions=True)
                        return
                    await _write(send, encoded(coming.result()))
        except CountinghouseError as error:
            _, problem, _ = problem_of(error)
            await _write(send, encoded(Event("problem", problem, "")))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()


def encoded(event: Event) -> bytes:
    """Return an event as it is sent. JSON has no line breaks, and the ids have none."""
    identified = f"id: {event.event_id}\n" if event.event_id else ""
    return f"event: {event.name}\n{identified}data: ".encode() + dumped(event.data) + b"\n\n"


async def _write(send: Send, content: bytes) -> None:
    async with asyncio.timeout(_TAKEN_WITHIN_S):
        await send({"type": "http.response.body", "body": content, "more_body": True})


async def _left(receive: Receive) -> None:
    while True:
        message: Any = await receive()
        if message["type"] == "http.disconnect":
            return
