"""Calls that need no token: health and reflection.

They have small budgets of their own: a full server still answers them, and callers without a token cannot use up the
server's limit. A watch too many ends the oldest of the host that has the most: see `_Watches`.

| method | at once | ended when |
|---|---|---|
| Health.Check | any number: it waits for nothing but its request | the request does not come in time |
| Health.Watch | `_WATCHES` | the request does not come in time, a state is not read in time, or it gives up its place |
| ServerReflectionInfo | `_REFLECTIONS` | a question does not come in time, or an answer is not read in time |
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import grpc
import structlog
from grpc import aio

from services.kernel.errors import Aborted, CountinghouseError, ResourceExhausted
from services.runtime.grpc import parsing, status
from services.runtime.grpc.receiving import Receiver
from services.runtime.metrics import CallMetrics

_WATCHES: Final = 32
_REFLECTIONS: Final = 16
_RETRY_MS: Final = 1_000

_Context = aio.ServicerContext[Any, Any]
log = structlog.get_logger()


class PublicCalls:
    """Serves health and reflection within their bounds.

    Args:
        message_timeout_s: Within which a request must arrive, and an answer be taken.
        metrics: Counts the calls that are refused.
    """

    def __init__(self, *, message_timeout_s: float, metrics: CallMetrics) -> None:
        self._metrics = metrics
        self._message_timeout_s = message_timeout_s
        self._receiver = Receiver(message_timeout_s)
        self._watches = _Watches(_WATCHES)
        self._reflections = _Budget("reflections", _REFLECTIONS)

    def bounded(self, method: str, handler: Any) -> Any:
        """Return `handler`, of a method of health or reflection, within its bounds. None of them waits for a request
        before its own handler is called: that is done here, within a time."""

        async def next_request(context: _Context) -> Any:
            return parsing.parse(handler.request_deserializer, await self._receiver.receive(context))

        async def requests(context: _Context) -> AsyncIterator[Any]:
            while (body := await self._receiver.receive_or_end(context)) is not None:
                yield parsing.parse(handler.request_deserializer, body)

        async def one(_requests: object, context: _Context) -> Any:
            async with self._refusing(method, context):
                return await handler.unary_unary(await next_request(context), context)

        async def watch(_requests: object, context: _Context) -> None:
            async with self._refusing(method, context):
                request = await next_request(context)
                async with self._watches.taken(_host_of(context)):
                    await handler.unary_stream(request, _InTime(context, self._message_timeout_s))

        async def talk(_requests: object, context: _Context) -> None:
            async with self._refusing(method, context):
                with self._reflections.taken():
                    async for answer in handler.stream_stream(requests(context), context):
                        await _InTime(context, self._message_timeout_s).write(answer)

        serialize = handler.response_serializer
        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(one, response_serializer=serialize)
        behaviour = watch if handler.unary_stream is not None else talk
        return grpc.stream_stream_rpc_method_handler(behaviour, response_serializer=serialize)

    @asynccontextmanager
    async def _refusing(self, method: str, context: _Context) -> AsyncIterator[None]:
        """Log and count an error, and answer it with its status."""
        try:
            yield
        except CountinghouseError as error:
            code = status.code_of(error)
            self._metrics.public_refused(method.rpartition("/")[2], code)
            log.info("call", method=method, code=code.name, reason=error.reason)
            answer = status.to_status(error)
            await status.abort(context, answer, answer.SerializeToString())


class _Watches:
    """The watches that are open, by the hosts they come from.

    A host's many watches end no watch of a host that has fewer. Where each host has one, a new one ends the oldest of
    all, so that a caller with many addresses can end every watch. A client whose watch was ended watches again, or
    calls Check.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: dict[asyncio.Timeout, str] = {}  # the oldest first

    @asynccontextmanager
    async def taken(self, host: str) -> AsyncIterator[None]:
        """Take a place while inside; the oldest watch of the host that has the most gives up its own if there is none.

        Raises:
            ResourceExhausted: SERVER_LIMIT: the place was given to another.
        """
        try:
            async with asyncio.timeout(None) as place:
                self._open[place] = host
                if len(self._open) > self._most:
                    self._end_one()
                try:
                    yield
                finally:
                    self._open.pop(place, None)
        except TimeoutError:
            raise ResourceExhausted(
                "SERVER_LIMIT", "there are too many watches of this server's health", retry_after_ms=_RETRY_MS
            ) from None

    def _end_one(self) -> None:
        largest, _ = Counter(self._open.values()).most_common(1)[0]
        oldest = next(place for place, host in self._open.items() if host == largest)
        del self._open[oldest]
        oldest.reschedule(asyncio.get_running_loop().time())


def _host_of(context: _Context) -> str:
    """Return the address of a client without its port."""
    return str(context.peer()).rpartition(":")[0]


class _Budget:
    """How many calls of one kind are open at once."""

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._left = most

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take one while inside.

        Raises:
            ResourceExhausted: SERVER_LIMIT.
        """
        if not self._left:
            raise ResourceExhausted("SERVER_LIMIT", f"there are too many {self._what}", retry_after_ms=_RETRY_MS)
        self._left -= 1
        try:
            yield
        finally:
            self._left += 1


class _InTime:
    """As much of a context as `Health.Watch` uses; what is not taken by the client in time ends the call."""

    def __init__(self, context: _Context, timeout_s: float) -> None:
        self._context = context
        self._timeout_s = timeout_s

    async def write(self, message: Any) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._context.write(message)
        except TimeoutError:
            raise Aborted("ANSWER_NOT_TAKEN", "the answer was not read in time", retry_after_ms=_RETRY_MS) from None
