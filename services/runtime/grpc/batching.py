"""Batched calls between services: the requests of concurrent callers travel in one message.

    caller 1 ──▶ alone ───────────────▶ answered
    caller 2 ─────▶ waits ┐
    caller 3 ───────▶ waits ┴▶ [2, 3] ─▶ both answered

A call costs its headers, its token and two event loops, and hardly more for thirty requests than for one. The service
that is called commits the requests of a batch together (`runtime/database/group_commit.py`).

Rules
1. No timer delays the first caller: a request that comes while none is on its way is sent at once. A single request is
   sent by the method for one.
2. A batch without an answer after `_PATIENCE_S` holds up no other: a paused instance delays the requests that it was
   sent. At most `_MOST_SENDING` batches are on their way.
3. Each request has its own outcome. A refusal of one concerns no other.
4. After a lost reply each request of the batch is sent again, alone, under its own key. What such an answer says of its
   own attempt only is no outcome (`status.after_silence`).
5. Each caller waits as long as the own deadline allows. A request whose caller has left before it was sent is not sent.
6. What sends the batches is a task of none of the callers: it has the context in which the object was made.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import grpc
import structlog
from google.rpc import status_pb2

from services.kernel.clock import CallDeadline
from services.kernel.errors import CountinghouseError, InvalidArgument, OutcomeUnknown, Unavailable
from services.runtime import tracing
from services.runtime.grpc import status
from services.runtime.grpc.context import current_call, serving
from services.runtime.grpc.interceptors import StoredRefusal

log = structlog.get_logger("batch")

#: Requests in one batch at most.
LIMIT: Final = 64
#: How long one batch delays the next, in seconds.
_PATIENCE_S: Final = 0.05
#: Batches on their way at most.
_MOST_SENDING: Final = 16
#: Requests that wait at most. The calls of a server are fewer (`admission.py`).
_MOST_WAITING: Final = 4096


class CallsPeers(Protocol):
    """`service_client.Peers`."""

    async def call(self, method: Callable[..., Any], request: Any, deadline: CallDeadline) -> Any:
        """Call a stub's method; see `Peers.call`."""
        ...


@dataclass(slots=True, eq=False)
class _Waiting:
    request: Any
    deadline: CallDeadline
    span: tracing.Span | None
    sent: bool = False
    outcome: asyncio.Future[Any] = field(default_factory=asyncio.Future)


class BatchedCalls:
    """Calls of one method, of which concurrent ones become a batch.

    Args:
        one: The method of a stub for one request.
        many: The stub's method for a batch.
        batch: The request type of `many`, whose field `requests` holds requests of `one`. Its response holds an
            `outcomes` for each, in their order: a `response` of `one`, or the bytes of a google.rpc.Status in `error`.
        name: Of a request and its wait, in traces.
    """

    def __init__(
        self,
        peers: CallsPeers,
        one: Callable[..., Any],
        many: Callable[..., Any],
        batch: Callable[..., Any],
        *,
        name: str,
    ) -> None:
        self._peers = peers
        self._one = one
        self._many = many
        self._batch = batch
        self._name = name
        self._batch_name = f"{name} batch"
        self._context = contextvars.copy_context()
        self._waiting: deque[_Waiting] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._sender: asyncio.Task[None] | None = None

    async def call(self, request: Any, deadline: CallDeadline) -> Any:
        """Return the response to one request.

        Raises:
            CountinghouseError: As `Peers.call`.
        """
        if len(self._waiting) >= _MOST_WAITING:
            raise Unavailable("PEER_BUSY", "too many requests wait for a service this needs; try again")
        with tracing.span(self._name):
            waiting = _Waiting(request, deadline, tracing.current())
            self._waiting.append(waiting)
            if self._sender is None:
                self._sender = asyncio.create_task(self._send_all(), context=self._context.copy())
            try:
                async with asyncio.timeout(max(deadline.remaining_s(), 0.0)):
                    return await waiting.outcome
            except TimeoutError:
                if waiting.sent:
                    raise OutcomeUnknown("OUTCOME_UNKNOWN", "no answer before the deadline") from None
                raise Unavailable(
                    "DEADLINE_TOO_SHORT", "too little was left of the deadline to ask on; allow more time"
                ) from None

    async def _send_all(self) -> None:
        """Send batch after batch until no request waits."""
        try:
            while self._waiting:
                batch = self._next_batch()
                sending = asyncio.create_task(self._send(batch))
                self._sending.add(sending)
                sending.add_done_callback(self._sending.discard)
                await asyncio.wait({sending}, timeout=_PATIENCE_S)
                while len(self._sending) >= _MOST_SENDING:
                    await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._sender = None

    def _next_batch(self) -> list[_Waiting]:
        """Take the requests that waited longest and whose callers still wait."""
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < LIMIT:
            waiting = self._waiting.popleft()
            if not waiting.outcome.done():
                waiting.sent = True
                batch.append(waiting)
        return batch

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        try:
            if len(batch) == 1:
                await self._send_alone(batch[0])
            elif batch:
                await self._send_batch(batch)
        except Exception as error:  # of the batch as a whole
            for waiting in batch:
                if not waiting.outcome.done():
                    waiting.outcome.set_exception(error)

    async def _send_batch(self, batch: Sequence[_Waiting]) -> None:
        latest = max((waiting.deadline for waiting in batch), key=CallDeadline.remaining_s)
        request = self._batch(requests=[waiting.request for waiting in batch])
        try:
            with tracing.batch(self._batch_name, batch):
                outcomes = (await self._peers.call(self._many, request, latest)).outcomes
        except OutcomeUnknown as silence:
            if _took_all_time(silence):
                raise
            await asyncio.gather(*(self._send_alone(waiting, again=True) for waiting in batch))
            return
        if len(outcomes) != len(batch):
            raise OutcomeUnknown("BATCH_MISMATCH", f"{len(outcomes)} answers came to {len(batch)} requests")
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.outcome.done():  # its caller has left
                continue
            if outcome.HasField("response"):
                waiting.outcome.set_result(outcome.response)
            else:
                waiting.outcome.set_exception(status.of_peer(status.from_bytes(outcome.error)))

    async def _send_alone(self, waiting: _Waiting, *, again: bool = False) -> None:
        """Send one request by itself.

        Args:
            again: It has been sent in a batch that was not answered.
        """
        try:
            with tracing.batch(self._name, (waiting,)):
                response = await self._peers.call(self._one, waiting.request, waiting.deadline)
        except CountinghouseError as error:
            if not waiting.outcome.done():
                waiting.outcome.set_exception(status.after_silence(error) if again else error)
        else:
            if not waiting.outcome.done():
                waiting.outcome.set_result(response)


def check_batch(requests: Sequence[Any]) -> None:
    """Check that a batch is not too large.

    Raises:
        InvalidArgument: BATCH_TOO_LARGE.
    """
    if len(requests) > LIMIT:
        raise InvalidArgument.of_field(
            "BATCH_TOO_LARGE", "requests", f"a batch has at most {LIMIT} requests, and not {len(requests)}"
        )


async def serve_each(
    requests: Sequence[Any], serve: Callable[[Any, Any], Awaitable[Any]], outcome: Callable[..., Any]
) -> list[Any]:
    """Serve each request of a batch as a call of its own, all at the same time; return the outcomes in their order.

    Args:
        serve: The servicer's method for one request.
        outcome: The message for one outcome; see `BatchedCalls`.

    Raises:
        InvalidArgument: As `check_batch`.
    """
    check_batch(requests)
    whole = current_call()
    calls = [replace(whole, in_batch=True) for _ in requests]

    async def serve_one(place: int, request: Any) -> Any:
        call = calls[place]
        serving(call)
        with tracing.item(whole.method, request, place, len(requests)) as span:
            refused: status_pb2.Status | None = None
            try:
                response = await serve(request, None)
            except StoredRefusal as refusal:
                refused, found = refusal.status, outcome(error=refusal.stored)
            except CountinghouseError as error:
                refused = status.to_status(error)
                found = outcome(error=refused.SerializeToString())
            except Exception:
                log.exception("unexpected", method=whole.method, caller=str(whole.principal))
                refused = status.internal()
                found = outcome(error=refused.SerializeToString())
            else:
                found = _answer(outcome, response)
            reason = "" if refused is None else status.reason_in(refused)
            if refused is not None and span.recording:
                span.answered(status.code_of_status(refused).name, reason)
            whole.decided(reason, call.replayed)
        if call.replayed and "replayed" in found.DESCRIPTOR.fields_by_name:
            found.replayed = True
        return found

    outcomes = await asyncio.gather(*(serve_one(place, request) for place, request in enumerate(requests)))
    whole.reply_dropped |= any(call.reply_dropped for call in calls)
    return outcomes


def _answer(outcome: Callable[..., Any], response: Any) -> Any:
    """Return the outcome with a response, which may be the bytes of a stored one."""
    if not isinstance(response, bytes):
        return outcome(response=response)
    found = outcome()
    found.response.MergeFromString(response)
    return found


def _took_all_time(silence: OutcomeUnknown) -> bool:
    """Return whether the deadline ended the call, so that no time is left to ask again."""
    cause = silence.__cause__
    return isinstance(cause, grpc.aio.AioRpcError) and cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED
