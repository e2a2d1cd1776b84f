"""A call's way through its attempts, with endpoints that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from coordination.channel import Failover, Idempotency
from coordination.channel.endpoint_pool import EndpointPool
from coordination.channel.execution import CallExecution
from coordination.channel.invocation import Invocation, Method
from coordination.channel.load import Load
from coordination.channel.outcomes import DETAILS_KEY, NEVER_CONNECTED, NeverSent, maybe_sent_before, never_sent, sends
from coordination.deadline import Deadline

BROKE_BEFORE = AioRpcError(
    grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=f"{NEVER_CONNECTED}; last error: refused"
)
LOST = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="Socket closed")
NOT_NOW = AioRpcError(
    grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata((DETAILS_KEY, b"nothing was done")), details="not now"
)


NO_SUCH_METHOD = AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata(), details="Method not found!")


class ScriptedConnection:
    """A connected endpoint whose next call comes to what it is told to."""

    def __init__(self, number: int, outcome: AioRpcError | str | None) -> None:
        self.address = self.key = f"h:{number}"
        self.load = Load()
        self.endpoint = self
        self._outcome = outcome

    def timeout_s(self, _method: str) -> float | None:
        return None

    def open(self, _invocation: Invocation) -> Any:
        return _Attempt(self._outcome)


class _Attempt:
    def __init__(self, outcome: AioRpcError | str | None) -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, str | None]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._outcome, AioRpcError):
            raise self._outcome
        return self._outcome


class ScriptedPool:
    """Endpoints in order, and what is said of them."""

    def __init__(self, *outcomes: AioRpcError | str | None) -> None:
        self.connections = [ScriptedConnection(number, outcome) for number, outcome in enumerate(outcomes)]
        self.said: list[str] = []
        self._left = list(self.connections)
        self.metrics = self

    async def connect(
        self, _invocation: Invocation, tried: set[str], _others: set[str]
    ) -> tuple[ScriptedConnection, int]:
        if not self._left:
            raise NeverSent("no endpoint is left")
        connection = self._left.pop(0)
        tried.add(connection.address)
        return connection, len(self._left)

    def __getattr__(self, what: str) -> Any:
        return lambda *_, **__: self.said.append(what)


async def run(idempotency: Idempotency, pool: ScriptedPool) -> Any:
    """Carry a call out."""
    invocation = Invocation(
        Method("unary_unary", "/a.B/C", None, None), b"", Deadline.after(5.0), None, None, None, None
    )
    try:
        return await CallExecution(cast(EndpointPool, pool), invocation, idempotency).run(Failover())
    finally:
        assert [connection.load.in_flight for connection in pool.connections] == [0] * len(pool.connections)


async def failure(idempotency: Idempotency, *outcomes: AioRpcError | str | None) -> AioRpcError:
    """Return the error a call ends with."""
    with pytest.raises(AioRpcError) as caught:
        await run(idempotency, ScriptedPool(*outcomes))
    return caught.value


async def test_connection_that_breaks_before_anything_is_sent() -> None:
    """Ready when looked at, gone when used: gRPC proves that nobody saw the call, and another endpoint is asked
    whatever the method is. Nothing is held against the endpoint."""
    pool = ScriptedPool(BROKE_BEFORE, "OK")
    assert await run(Idempotency.UNKNOWN, pool) == "OK"
    assert pool.said == ["unreachable", "retried", "answered", "call_ended"]


async def test_sends_count_attempts_that_a_server_may_have_seen() -> None:
    """Not what provably nobody saw."""
    assert sends(await failure(Idempotency.IDEMPOTENT, BROKE_BEFORE, LOST, BROKE_BEFORE)) == 1
    error = await failure(Idempotency.IDEMPOTENT, BROKE_BEFORE, BROKE_BEFORE)
    assert never_sent(error)
    assert sends(error) == 0


async def test_lost_reply_matters_more_than_what_came_after_and_was_not_sent() -> None:
    """The error is that of the last attempt which may have been seen."""
    error = await failure(Idempotency.IDEMPOTENT, LOST, BROKE_BEFORE)
    assert error.details() == "Socket closed"
    assert not never_sent(error)
    assert not maybe_sent_before(error)


@pytest.mark.parametrize(
    ("outcomes", "before"),
    [((LOST, NOT_NOW), True), ((NOT_NOW, NOT_NOW), False), ((NOT_NOW, LOST), False), ((BROKE_BEFORE, NOT_NOW), False)],
    ids=["lost, not now", "not now twice", "not now, lost", "never sent, not now"],
)
async def test_error_shows_whether_another_attempt_may_have_been_done(
    outcomes: tuple[AioRpcError, ...], before: bool
) -> None:
    """Only one that was sent and not answered may have."""
    assert maybe_sent_before(await failure(Idempotency.IDEMPOTENT, *outcomes)) is before


async def test_each_attempt_is_counted_once() -> None:
    """By how it ended; a refusal in the server's own words takes nobody out."""
    pool = ScriptedPool(LOST, NOT_NOW, "OK")
    assert await run(Idempotency.IDEMPOTENT, pool) == "OK"
    assert pool.said == ["failed", "retried", "given_up", "retried", "answered", "call_ended"]


async def test_another_program_is_no_attempt_whatever_the_method() -> None:
    """UNIMPLEMENTED without details: the next is asked, as often as there is one; it is held against the endpoint."""
    pool = ScriptedPool(*[NO_SUCH_METHOD] * 4, "OK")
    assert await run(Idempotency.UNKNOWN, pool) == "OK"
    assert pool.said == [*["failed", "retried"] * 4, "answered", "call_ended"]
    assert [connection.load.failures(0.0) > 0 for connection in pool.connections] == [True] * 4 + [False]


async def test_only_other_programs_is_never_sent() -> None:
    """Nothing was done, and the caller is told so."""
    error = await failure(Idempotency.UNKNOWN, NO_SUCH_METHOD, NO_SUCH_METHOD)
    assert (error.code(), never_sent(error), sends(error)) == (grpc.StatusCode.UNAVAILABLE, True, 0)


async def test_lost_reply_matters_more_than_another_program_asked_after_it() -> None:
    """That one may have carried the call out."""
    error = await failure(Idempotency.IDEMPOTENT, LOST, NO_SUCH_METHOD)
    assert error.details() == "Socket closed"
    assert not never_sent(error)


async def test_unimplemented_with_details_is_an_answer() -> None:
    """The server has the method and says why it does not do it: nobody else is asked."""
    refusal = AioRpcError(grpc.StatusCode.UNIMPLEMENTED, Metadata(), Metadata((DETAILS_KEY, b"why")), details="no")
    pool = ScriptedPool(refusal, "OK")
    with pytest.raises(AioRpcError):
        await run(Idempotency.IDEMPOTENT, pool)
    assert pool.said == ["answered", "call_ended"]


@pytest.mark.parametrize(
    ("code", "with_details", "without"),
    [
        (grpc.StatusCode.INTERNAL, "failed", "failed"),
        (grpc.StatusCode.UNKNOWN, "failed", "failed"),
        (grpc.StatusCode.DATA_LOSS, "failed", "failed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "given_up", "failed"),
        (grpc.StatusCode.UNAUTHENTICATED, "given_up", "failed"),
        (grpc.StatusCode.PERMISSION_DENIED, "given_up", "failed"),
        (grpc.StatusCode.NOT_FOUND, "answered", "answered"),
        (grpc.StatusCode.FAILED_PRECONDITION, "answered", "answered"),
        (grpc.StatusCode.ABORTED, "answered", "answered"),
    ],
    ids=lambda value: value.name if isinstance(value, grpc.StatusCode) else "",
)
async def test_answer_decides_whether_its_endpoint_failed(
    code: grpc.StatusCode, with_details: str, without: str
) -> None:
    """One that broke, or refuses without details, failed; one that refuses in its own words is only dearer."""
    for details, said in (((DETAILS_KEY, b"why"),), with_details), ((), without):
        pool = ScriptedPool(AioRpcError(code, Metadata(), Metadata(*details), details="no"))
        with pytest.raises(AioRpcError):
            await run(Idempotency.UNKNOWN, pool)
        assert pool.said == [said, "call_ended"]
        assert (pool.connections[0].load.failures(0.0) > 0) == (said != "answered")


async def test_message_over_the_limit_is_not_the_endpoints_fault() -> None:
    """gRPC core says RESOURCE_EXHAUSTED of it without details, on either side."""
    too_large = AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        Metadata(),
        Metadata(),
        details="CLIENT: Received message larger than max (5 vs. 4)",
    )
    pool = ScriptedPool(too_large)
    with pytest.raises(AioRpcError):
        await run(Idempotency.UNKNOWN, pool)
    assert pool.said == ["answered", "call_ended"]


async def test_ok_without_a_message_is_a_failure() -> None:
    """grpc.aio returns None for it, which no caller expects."""
    pool = ScriptedPool(None)
    with pytest.raises(AioRpcError) as caught:
        await run(Idempotency.UNKNOWN, pool)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert pool.said == ["failed", "call_ended"]
