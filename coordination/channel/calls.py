"""The calls of a channel over several endpoints, as stubs and their callers see them.

A unary call goes through as many attempts as its policy makes (see `execution`); `code()` and the metadata are
those of the attempt that decided it. A stream is opened on one endpoint and never moved to another.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from grpc.aio import AioRpcError, Metadata

from coordination.channel.connection import EndpointConnection
from coordination.channel.endpoint_pool import EndpointPool
from coordination.channel.execution import CallExecution
from coordination.channel.invocation import Invocation, Method
from coordination.channel.outcomes import endpoint_failed, from_another_program
from coordination.channel.policies import Idempotency, Policy
from coordination.deadline import Deadline
from coordination.quoting import quoted

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class Callee:
    """A method of a pool's endpoints, and how it is called.

    Attributes:
        refusal: why the policy refuses the method; empty if it does not.
        hash_key: returns the key of a request (full method name, request).
        default_timeout_s: deadline of unary calls that give none, seconds; None for no deadline.
    """

    pool: EndpointPool
    method: Method
    idempotency: Idempotency
    policy: Policy
    refusal: str
    hash_key: Callable[[str, Any], str]
    default_timeout_s: float | None


class _Call(grpc.aio.Call):
    """The base of the four kinds of call: a task that finds an endpoint, and grpc.aio's call on it.

    `_task` ends with `_inner` set, or with the error that kept it from being set.
    """

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation
        self._inner: Any = None
        self._task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(_retrieved)

    async def _run(self) -> Any:
        """Find an endpoint and set `_inner`; the result depends on the kind of call."""
        raise NotImplementedError

    async def _opened(self) -> Any:
        """Return grpc.aio's call, or raise what kept it from being made."""
        await asyncio.wait({self._task})
        if self._inner is None:
            self._task.result()
        return self._inner

    def cancel(self) -> bool:
        """Cancel the call, wherever it is."""
        searching = self._task.cancel()
        sent = self._inner is not None and bool(self._inner.cancel())
        return searching or sent

    def cancelled(self) -> bool:
        """See grpc.aio."""
        return self._task.cancelled() or (self._inner is not None and bool(self._inner.cancelled()))

    def done(self) -> bool:
        """See grpc.aio."""
        return self._task.done() and (self._inner is None or bool(self._inner.done()))

    def time_remaining(self) -> float | None:
        """Return seconds left for all attempts together."""
        return self._invocation.deadline.remaining_s()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Have `callback` called with this call when it has ended."""

        def searched(_: asyncio.Task[Any]) -> None:
            if self._inner is None:
                callback(self)
            else:
                self._inner.add_done_callback(lambda _: callback(self))

        self._task.add_done_callback(searched)

    async def wait_for_connection(self) -> None:
        """See grpc.aio."""
        await (await self._opened()).wait_for_connection()

    async def initial_metadata(self) -> Metadata:
        """Return the metadata the server began with; empty if no server was reached."""
        error = await self._error()
        return error.initial_metadata() if error else await self._inner.initial_metadata()

    async def trailing_metadata(self) -> Metadata:
        """Return the metadata the server ended with; empty if no server was reached."""
        error = await self._error()
        return error.trailing_metadata() if error else await self._inner.trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """Return the call's status code, once it has ended."""
        error = await self._error()
        return error.code() if error else await self._inner.code()

    async def details(self) -> str:
        """Return the details of the call's status, once it has ended."""
        error = await self._error()
        return (error.details() or "") if error else await self._inner.details()

    async def _error(self) -> AioRpcError | None:
        """Wait for the task to end; return the error it ended with, or None if `_inner` has the outcome."""
        await asyncio.wait({self._task})
        if self._task.cancelled():
            return _ended(grpc.StatusCode.CANCELLED, "cancelled by the caller")
        error = self._task.exception()
        if error is None or isinstance(error, AioRpcError):
            return error
        return _ended(grpc.StatusCode.UNKNOWN, repr(error))


class _UnaryCall(_Call, grpc.aio.UnaryUnaryCall[Request, Response], Generic[Request, Response]):
    """A unary call: its task goes through the attempts and ends with the response."""

    def __init__(self, callee: Callee, invocation: Invocation) -> None:
        self._policy = callee.policy
        self._execution = CallExecution(callee.pool, invocation, callee.idempotency)
        super().__init__(invocation)

    def __await__(self) -> Generator[Any, None, Response]:
        response: Response = yield from self._task.__await__()
        return response

    async def _run(self) -> Response:
        response: Response = await self._execution.run(self._policy)
        self._inner = self._execution.decisive
        return response

    async def _error(self) -> AioRpcError | None:
        return await super()._error() or self._execution.swallowed


class _StreamCall(_Call):
    """A call with a stream in it: its task ends when an endpoint was found and the call is open there."""

    def __init__(self, callee: Callee, invocation: Invocation) -> None:
        self._pool = callee.pool
        self._judging: asyncio.Task[None] | None = None
        super().__init__(invocation)

    async def _run(self) -> None:
        connection, _ = await self._pool.connect(self._invocation, set())
        self._inner = connection.open(self._invocation)
        self._judging = asyncio.get_running_loop().create_task(self._judge(connection))

    async def _judge(self, connection: EndpointConnection) -> None:
        """Count a failure against the endpoint if it ended the stream by its own fault."""
        code, details = await self._inner.code(), await self._inner.details()
        error = AioRpcError(code, Metadata(), await self._inner.trailing_metadata(), details=details)
        if endpoint_failed(error):
            why = f"{code.name}: {quoted(details or '')}"
            self._pool.failed(connection, code, why, another_program=from_another_program(error))

    async def read(self) -> Any:
        """See grpc.aio."""
        return await (await self._opened()).read()

    async def write(self, request: Any) -> None:
        """See grpc.aio."""
        await (await self._opened()).write(request)

    async def done_writing(self) -> None:
        """See grpc.aio."""
        await (await self._opened()).done_writing()

    async def _responses(self) -> AsyncIterator[Any]:
        async for response in await self._opened():
            yield response


class _UnaryStreamCall(_StreamCall, grpc.aio.UnaryStreamCall[Request, Response], Generic[Request, Response]):
    def __aiter__(self) -> AsyncIterator[Response]:
        return self._responses()


class _StreamStreamCall(_StreamCall, grpc.aio.StreamStreamCall[Request, Response], Generic[Request, Response]):
    def __aiter__(self) -> AsyncIterator[Response]:
        return self._responses()


class _StreamUnaryCall(_StreamCall, grpc.aio.StreamUnaryCall[Request, Response], Generic[Request, Response]):
    def __await__(self) -> Generator[Any, None, Response]:
        return self._response().__await__()

    async def _response(self) -> Response:
        response: Response = await (await self._opened())
        return response


class _MultiCallable:
    """What a stub calls: makes the call of its kind."""

    def __init__(self, callee: Callee) -> None:
        self._callee = callee

    @property
    def method(self) -> str:
        """The full method name, ``/pkg.Service/Method``."""
        return self._callee.method.name


class UnaryUnary(_MultiCallable, grpc.aio.UnaryUnaryMultiCallable[Request, Response], Generic[Request, Response]):
    """See grpc.aio. Raises ValueError for a method that its policy refuses."""

    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.UnaryUnaryCall[Request, Response]:
        callee = self._callee
        if callee.refusal:
            raise ValueError(f"{callee.method.name}: {callee.refusal}")
        invocation = Invocation(
            callee.method,
            request,
            Deadline.after(callee.default_timeout_s if timeout is None else timeout),
            metadata,
            credentials,
            wait_for_ready,
            compression,
            key=callee.hash_key(callee.method.name, request),
            governed=timeout is not None,
        )
        return _UnaryCall(callee, invocation)


class UnaryStream(_MultiCallable, grpc.aio.UnaryStreamMultiCallable[Request, Response], Generic[Request, Response]):
    """See grpc.aio."""

    def __call__(
        self,
        request: Request,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.UnaryStreamCall[Request, Response]:
        method, deadline = self._callee.method, Deadline.after(timeout)
        invocation = Invocation(
            method,
            request,
            deadline,
            metadata,
            credentials,
            wait_for_ready,
            compression,
            key=self._callee.hash_key(method.name, request),
        )
        return _UnaryStreamCall(self._callee, invocation)


class StreamUnary(_MultiCallable, grpc.aio.StreamUnaryMultiCallable[Request, Response], Generic[Request, Response]):
    """See grpc.aio."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamUnaryCall[Request, Response]:
        method, deadline = self._callee.method, Deadline.after(timeout)
        return _StreamUnaryCall(
            self._callee,
            Invocation(method, request_iterator, deadline, metadata, credentials, wait_for_ready, compression),
        )


class StreamStream(_MultiCallable, grpc.aio.StreamStreamMultiCallable[Request, Response], Generic[Request, Response]):
    """See grpc.aio."""

    def __call__(
        self,
        request_iterator: Any = None,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> grpc.aio.StreamStreamCall[Request, Response]:
        method, deadline = self._callee.method, Deadline.after(timeout)
        return _StreamStreamCall(
            self._callee,
            Invocation(method, request_iterator, deadline, metadata, credentials, wait_for_ready, compression),
        )


def _ended(code: grpc.StatusCode, details: str) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Mark the result as retrieved: a call that is not awaited is no error."""
    if not task.cancelled():
        task.exception()
