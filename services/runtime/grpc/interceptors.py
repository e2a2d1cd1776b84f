"""The interceptor of every server: each call passes it once on its way in and once on its way out.

In:  token → caller, and certificate → service; the access table; the client's deadline → ours; the caller's budget;
     bytes → message; the server's limit; then the servicer. All up to the bytes when the headers arrive, before a
     request is waited for.
Out: errors → statuses; a stored response → the trailer `x-replayed`; the unexpected → the log, and an opaque INTERNAL;
     and every call is counted and logged once, whatever became of it, and is a span of its caller's trace.

A call that changes something runs to its end in a task of its own even if its caller hangs up: a hang-up
must not decide in which state a payment is left. Health and reflection, which are not ours, are served to
every caller, within bounds of their own (`runtime/grpc/public.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from google.rpc import status_pb2
from grpc import aio

from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import Aborted, CountinghouseError, Unauthenticated
from services.kernel.idempotency import Answer
from services.kernel.principal import Principal, Role
from services.runtime import tracing
from services.runtime.grpc import access, methods, parsing, status
from services.runtime.grpc.admission import Admission, AdmittedCall
from services.runtime.grpc.context import Call, serving
from services.runtime.grpc.delegations import DelegationVerifier
from services.runtime.grpc.public import PublicCalls
from services.runtime.grpc.receiving import Receiver
from services.runtime.grpc.tls import TlsFiles
from services.runtime.grpc.tokens import TokenVerifier
from services.runtime.metrics import CallMetrics

_OURS = "/countinghouse."
#: Kept back from the caller's deadline, so that our answer still reaches them.
_REPLY_MARGIN_S = 0.02
_WATCH_AGAIN_MS = 1_000

Behaviour = Callable[[Any, Any], Awaitable[Any]]
log = structlog.get_logger()


class StoredRefusal(Exception):
    """A refusal is to be sent as it is stored."""

    def __init__(self, stored: bytes) -> None:
        super().__init__("stored refusal")
        self.stored = stored
        self.status = status_pb2.Status.FromString(stored)


def reply(call: Call, answer: Answer) -> Any:
    """Return a stored response as what a servicer returns: its bytes, which go on the wire as they are.

    Raises:
        StoredRefusal: The stored response is a refusal.
    """
    call.replayed = answer.replayed
    if not answer.response.ok:
        raise StoredRefusal(answer.response.body)
    return answer.response.body


class CallInterceptor(aio.ServerInterceptor):
    """See the module.

    Args:
        default_deadline_s: Deadline of a call that brings none.
        max_deadline_s: The longest that is honoured.
        message_timeout_s: Within which a call's request must arrive.
        admission: How much callers may have at once.
        metrics: Counts the calls; None: they are not read.
        tls: By which a service must show its certificate besides its token; None: it need not.
        delegations: Says for whom a service may act; None: for no person.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        clock: Clock,
        *,
        default_deadline_s: float,
        max_deadline_s: float,
        message_timeout_s: float,
        admission: Admission,
        metrics: CallMetrics | None = None,
        tls: TlsFiles | None = None,
        delegations: DelegationVerifier | None = None,
    ) -> None:
        self._verifier = verifier
        self._delegations = delegations
        self._clock = clock
        self._metrics = metrics or CallMetrics()
        self._tls = tls
        self._default_deadline_s = default_deadline_s
        self._max_deadline_s = max_deadline_s
        self._admission = admission
        self._message_timeout_s = message_timeout_s
        self._receiver = Receiver(message_timeout_s)
        self._public = PublicCalls(message_timeout_s=message_timeout_s, metrics=self._metrics)
        self._running: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if not method.startswith(_OURS):
            return self._public.bounded(method, handler)
        if handler.request_streaming:
            raise RuntimeError(f"{method} is a stream of requests, which CallInterceptor does not support")
        serve: Behaviour = self._streamed(handler.unary_stream) if handler.response_streaming else handler.unary_unary

        async def behave(_requests: object, context: aio.ServicerContext[Any, Any]) -> Any:
            with self._metrics.in_flight(), tracing.served(method, context.invocation_metadata):
                return await self._serve(method, serve, handler.request_deserializer, context)

        # A stream of requests, and without a deserializer: none is waited for or parsed before the token was looked at.
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(behave, response_serializer=_serialize)
        return grpc.stream_unary_rpc_method_handler(behave, response_serializer=_serialize)

    async def drained(self) -> None:
        """Wait until every call that changes something has come to its end."""
        while self._running:
            await asyncio.wait(self._running)

    async def _serve(
        self,
        method: str,
        serve: Behaviour,
        deserializer: parsing.Deserializer,
        context: aio.ServicerContext[Any, Any],
    ) -> Any:
        started_s = self._clock.monotonic_s()
        caller, code, reason = "", grpc.StatusCode.OK, ""
        call: Call | None = None
        try:
            call = self._identify(method, context)
            serving(call)
            caller = str(call.principal)
            admitted = self._admission.admit(method, call.principal)
            request = parsing.parse(deserializer, await self._receiver.receive(context))
            response = await self._run(call, admitted, serve, request, context)
            if call.replayed:
                context.set_trailing_metadata((("x-replayed", "true"),))
            return response
        except StoredRefusal as refusal:
            code, reason = status.code_of_status(refusal.status), status.from_status(refusal.status).reason
            answer, body = refusal.status, refusal.stored
        except CountinghouseError as error:
            code, reason = status.code_of(error), error.reason
            if call is None:
                self._metrics.refused(reason)
            answer = status.to_status(error)
            body = answer.SerializeToString()
        except (asyncio.CancelledError, aio.AbortError):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            code = grpc.StatusCode.INTERNAL
            log.exception("unexpected", method=method, caller=caller)
            answer = status.internal()
            body = answer.SerializeToString()
        finally:
            name, took_s = method.rpartition("/")[2], self._clock.monotonic_s() - started_s
            self._metrics.answered(name, code, took_s)
            if call is not None:
                call.decided(reason, call.replayed)
            tracing.answered(code.name, reason)
            log.info(
                "call",
                method=name,
                caller=caller,
                code=code.name,
                reason=reason,
                replayed=bool(call and call.replayed),
                ms=round(took_s * 1000, 1),
            )
        # The caller hears of the refusal after the log and the metrics have it.
        return await status.abort(context, answer, body, replayed=bool(call and call.replayed))

    def _streamed(self, stream: Callable[[Any, Any], AsyncGenerator[Any, None]]) -> Behaviour:
        """Return the behaviour that sends the messages of a stream, for as long as its caller may have them.

        The caller is identified again for each message, and one that does not read a message in time is refused.
        """

        async def behave(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
            async with aclosing(stream(request, context)) as sent:
                async for message in sent:
                    self._verifier.verify(_bearer(context))
                    await self._write(message, context)

        return behave

    async def _write(self, message: Any, context: aio.ServicerContext[Any, Any]) -> None:
        try:
            async with asyncio.timeout(self._message_timeout_s):
                await context.write(message)
        except TimeoutError:
            raise Aborted(
                "ANSWER_NOT_TAKEN", "the answer was not read in time", retry_after_ms=_WATCH_AGAIN_MS
            ) from None

    def _identify(self, method: str, context: aio.ServicerContext[Any, Any]) -> Call:
        remaining_s = context.time_remaining()
        seconds = min(self._default_deadline_s if remaining_s is None else remaining_s, self._max_deadline_s)
        token = _bearer(context)
        principal = self._verifier.verify(token)
        if self._tls is not None and principal.role is Role.SERVICE:
            shown = self._tls.identity_of(context.auth_context(), self._clock.now_ms() / 1000)
            self._verifier.check_certificate(principal, shown)
        access.check(method, principal)
        deadline = CallDeadline.after(seconds, self._clock).shaved(_REPLY_MARGIN_S)
        name = method.rpartition("/")[2]

        def decided(reason: str, replayed: bool) -> None:
            self._metrics.decided(name, reason, replayed=replayed)

        return Call(method, principal, deadline, represented=self._represented, decided=decided)

    def _represented(self, named: Principal, caller: Principal) -> Principal:
        found = caller
        try:
            if self._delegations is not None:
                found = self._delegations.represented(named, caller)
        finally:
            if found != named:
                self._metrics.undelegated()
        return found

    async def _run(
        self, call: Call, admitted: AdmittedCall, serve: Behaviour, request: Any, context: aio.ServicerContext[Any, Any]
    ) -> Any:
        async def run() -> Any:
            with self._admission.executing(admitted):
                return await serve(request, context)

        if methods.is_read(call.method):  # streams are reads
            return await run()
        task = asyncio.create_task(run())
        admitted.hold_until_done(task)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda ended: _log_unexpected(call, ended))  # the caller has gone
            raise
        finally:
            if call.reply_dropped and task.done():
                await asyncio.sleep(call.deadline.remaining_s() + 1)  # the caller's deadline ends this first

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as taken: the caller may have hung up


def _log_unexpected(call: Call, task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, (CountinghouseError, StoredRefusal)):
        log.error("unexpected", method=call.method, caller=str(call.principal), exc_info=error)


def _bearer(context: aio.ServicerContext[Any, Any]) -> str:
    sent = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
    if len(sent) > 1:  # which of them counts would depend on the reader, such as a proxy
        raise Unauthenticated("TOKEN_AMBIGUOUS", f"send `authorization` once, not {len(sent)} times")
    if sent and sent[0].lower().startswith("bearer "):
        return sent[0][7:].strip()
    raise Unauthenticated(
        "TOKEN_REQUIRED",
        "send a token as metadata `authorization: Bearer …`; get one with `countinghouse token`",
    )


def _serialize(response: Any) -> bytes:
    """Return the bytes of a message, or of a stored one as they are."""
    return response if isinstance(response, bytes) else bytes(response.SerializeToString())
