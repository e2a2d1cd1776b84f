"""How one unary call is carried out: its attempts, one after the other, and the error that ends it.

    policy ── connect ──▶ an endpoint, connected ── send ──▶ OK, or an error ──▶ policy: another try, or the end
                                                     │                                      ▲
                                                     │ a read, and its share has passed     │ Slow
                                                     └──▶ another is connected ──▶ cancelled┘

Invariants
1. One deadline covers every attempt; what is left of it is what each attempt, and its server, gets.
2. Every attempt is counted once: in the endpoint's load, for it or against it, and in the metrics.
3. The error that ends a call is that of the last attempt that a server may have carried out: this matters more to the
   caller than that no endpoint was left afterwards.
4. An endpoint that does not have the method is asked once in a call. It cannot have carried the call out: another is
   asked whatever the method, and the attempt does not count.

Which function makes each move
    connect     finds an endpoint            _relieve    finds another and gives the attempt up
    send        sends, and counts the end    _final      makes the error for the caller
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from grpc.aio import AioRpcError, Metadata

from coordination.channel.connection import EndpointConnection
from coordination.channel.endpoint_pool import EndpointPool
from coordination.channel.invocation import Invocation
from coordination.channel.outcomes import (
    AnotherProgram,
    NeverSent,
    SentBefore,
    Slow,
    answered,
    endpoint_failed,
    from_another_program,
    never_sent,
    refused,
)
from coordination.channel.policies import LOST, Idempotency, Policy
from coordination.deadline import Deadline
from coordination.quoting import quoted

FAIR_TRIAL_S = 0.05  # an endpoint that had less time than this is not blamed for a deadline


class CallExecution:
    """Carries one call out under a policy; it is the policy's `CallContext`.

    Attributes:
        decisive: grpc.aio's call of the attempt that ended with OK; None until there is one.
        swallowed: the error that an empty response was given for.
    """

    def __init__(self, pool: EndpointPool, invocation: Invocation, idempotency: Idempotency) -> None:
        self.decisive: Any = None
        self.swallowed: AioRpcError | None = None
        self._pool = pool
        self._invocation = invocation
        self._idempotency = idempotency
        self._tried: set[str] = set()
        self._other_programs: set[str] = set()  # of those tried: they do not have the method
        self._others = 0
        self._next_connection: EndpointConnection | None = None
        self._why_again = ""  # how the last attempt ended, if it did not end the call
        self._sends = 0  # attempts that a server which has the method may have seen
        self._maybe_done = 0  # those of them that it may have carried out
        self._last: AioRpcError | None = None  # how the last of them ended, unless with OK

    async def run(self, policy: Policy) -> Any:
        """Carry the call out; return the response.

        Raises:
            AioRpcError: see `outcomes` for what it tells.
        """
        code = grpc.StatusCode.UNKNOWN
        try:
            response = await policy.run(self)
            code = grpc.StatusCode.OK if self.swallowed is None else self.swallowed.code()
            return response
        except AioRpcError as error:
            final = self._final(error)
            code = final.code()
            raise final from None
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        finally:
            self._pool.metrics.call_ended(code, time.monotonic() - self._invocation.began_s)

    # ---- what policies ask for -----------------------------------------------------------------------

    @property
    def method(self) -> str:
        """See `CallContext`."""
        return self._invocation.method.name

    @property
    def idempotency(self) -> Idempotency:
        """See `CallContext`."""
        return self._idempotency

    @property
    def deadline(self) -> Deadline:
        """See `CallContext`."""
        return self._invocation.deadline

    def others(self) -> int:
        """See `CallContext`."""
        return self._others

    async def all_connections(self) -> list[EndpointConnection]:
        """See `CallContext`."""
        return await self._pool.all_connections(self._invocation)

    async def connect(self) -> EndpointConnection:
        """See `CallContext`."""
        connection, self._next_connection = self._next_connection, None
        if connection is None:
            before = len(self._tried)
            connection, self._others = await self._pool.connect(self._invocation, self._tried, self._other_programs)
            if len(self._tried) > before + 1 and not self._why_again:
                self._why_again = "never_sent"
        return connection

    async def send(self, connection: EndpointConnection, *, attempts: int = 1, forked: bool = False) -> Any:
        """See `CallContext`."""
        if forked or self._why_again:
            self._pool.metrics.retried("forked" if forked else self._why_again)
        self._invocation.govern(connection.endpoint.timeout_s(self._invocation.method.bare_name))
        relieving: asyncio.Task[None] | None = None
        share: asyncio.TimerHandle | None = None
        began_s = time.monotonic()
        call = connection.open(self._invocation)
        connection.load.began()

        def share_passed() -> None:
            nonlocal relieving
            relieving = asyncio.ensure_future(self._switch_when_ready(call))

        if attempts > 1 and (left_s := self.deadline.remaining_s()) is not None:
            share = asyncio.get_running_loop().call_later(left_s / attempts, share_passed)
        try:
            response = _message(await call)
        except AioRpcError as error:
            self._failed(connection, error, began_s)
            if from_another_program(error):
                raise AnotherProgram(connection.address) from error
            raise
        except asyncio.CancelledError:
            slow = self._cancelled(connection, began_s)
            if slow is None:
                raise
            raise slow from None
        except Exception:  # what the caller gave cannot be sent, or what came cannot be read
            connection.load.given_up(began_s, 0.0)
            raise
        finally:
            if share is not None:
                share.cancel()
            if relieving is not None:
                relieving.cancel()
        self._succeeded(connection, call, began_s)
        return response

    def answer_empty(self, error: AioRpcError) -> Any:
        """See `CallContext`."""
        self.swallowed = self._final(error)
        deserialize = self._invocation.method.response_deserializer
        return b"" if deserialize is None else deserialize(b"")

    async def _switch_when_ready(self, call: Any) -> None:
        """Cancel an attempt as soon as another endpoint is connected; if none is, let it go on."""
        try:
            connection, self._others = await self._pool.connect(self._invocation, self._tried, self._other_programs)
        except NeverSent:
            return
        self._next_connection = connection
        call.cancel()

    # ---- how attempts end ----------------------------------------------------------------------------

    def _succeeded(self, connection: EndpointConnection, call: Any, began_s: float) -> None:
        now_s = time.monotonic()
        connection.load.ended(now_s, now_s - began_s, failed=False)
        self._pool.answered(connection, grpc.StatusCode.OK)
        self._sends += 1
        self._maybe_done += 1
        self.decisive = call

    def _failed(self, connection: EndpointConnection, error: AioRpcError, began_s: float) -> None:
        """Count an attempt that ended with an error, against its endpoint if the endpoint is to blame."""
        now_s, code = time.monotonic(), error.code()
        took_s = now_s - began_s
        if never_sent(error):
            self._why_again = "never_sent"
            connection.load.ended(now_s, took_s, failed=True)
            self._pool.unreachable(connection)
            return
        why = f"{code.name}: {quoted(error.details() or '')}"
        if from_another_program(error):
            self._why_again = "never_sent"
            self._other_programs.add(connection.key)
            connection.load.ended(now_s, took_s, failed=True)
            self._pool.failed(connection, code, why, another_program=True)
            return
        self._count_unanswered(error)
        self._why_again = "refused" if answered(error) else "lost"
        if refused(error) or (code in LOST and answered(error)):
            connection.load.ended(
                now_s, took_s, failed=True
            )  # costs more, but is not ejected: it may serve other calls
            self._pool.given_up(connection, code)
        elif code in LOST or endpoint_failed(error):
            connection.load.ended(now_s, took_s, failed=True)
            self._pool.failed(connection, code, why)
        elif code is grpc.StatusCode.DEADLINE_EXCEEDED and self.deadline.expired():
            if took_s < FAIR_TRIAL_S:
                connection.load.given_up(now_s, took_s)
                self._pool.given_up(connection, code)
            else:
                connection.load.ended(now_s, took_s, failed=True)
                self._pool.failed(connection, code, f"no answer within {took_s:.3f} s")
        else:
            connection.load.ended(now_s, took_s, failed=False)
            self._pool.answered(connection, code)

    def _cancelled(self, connection: EndpointConnection, began_s: float) -> Slow | None:
        """Count an attempt that was cancelled: by `_switch_when_ready`, whose error is returned, or by the caller."""
        now_s = time.monotonic()
        took_s = now_s - began_s
        task = asyncio.current_task()
        if self._next_connection is None or (task is not None and task.cancelling()):
            connection.load.given_up(now_s, took_s)
            self._pool.given_up(connection, grpc.StatusCode.CANCELLED)
            self._sends += 1
            self._maybe_done += 1
            return None
        self._why_again = "slow"
        slow = Slow(connection.address, took_s)
        self._count_unanswered(slow)
        connection.load.ended(now_s, took_s, failed=True)
        self._pool.failed(connection, grpc.StatusCode.CANCELLED, f"no answer within its share, {took_s:.3f} s")
        return slow

    def _count_unanswered(self, error: AioRpcError) -> None:
        self._sends += 1
        self._maybe_done += not answered(error)
        self._last = error

    def _final(self, error: AioRpcError) -> AioRpcError:
        """Return the error for the caller, which tells of the other attempts."""
        if never_sent(error):
            error = self._last or error
        own = 0 if never_sent(error) else 1
        if self._sends == own:
            return error
        return SentBefore(error, self._sends, self._maybe_done - (own and not answered(error)))


def _message(response: Any) -> Any:
    """Return a response.

    Raises:
        AioRpcError: INTERNAL: there is none. grpc.aio gives None for a status OK that came alone.
    """
    if response is None:
        details = "the server answered OK without a message"
        raise AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata(), details=details)
    return response
