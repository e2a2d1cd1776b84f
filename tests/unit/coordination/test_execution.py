"""A call's way through its attempts, with endpoints that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any, cast

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from coordination.attempts import DETAILS_KEY, NEVER_CONNECTED, NeverSent, maybe_sent_before, never_sent, sends
from coordination.cluster import Cluster
from coordination.deadline import Deadline
from coordination.execution import Execution
from coordination.invocation import Invocation, Method
from coordination.load import Load
from coordination.policies import Failover, Idempotency

BROKE_BEFORE = AioRpcError(
    grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=f"{NEVER_CONNECTED}; last error: refused"
)
LOST = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details="Socket closed")
NOT_NOW = AioRpcError(
    grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata((DETAILS_KEY, b"nothing was done")), details="not now"
)


class ScriptedLink:
    """A connected endpoint whose next call comes to what it is told to."""

    def __init__(self, number: int, outcome: AioRpcError | str) -> None:
        self.address = f"h:{number}"
        self.load = Load()
        self.endpoint = self
        self._outcome = outcome

    def timeout_s(self, _method: str) -> float | None:
        return None

    def open(self, _invocation: Invocation) -> Any:
        return _Attempt(self._outcome)


class _Attempt:
    def __init__(self, outcome: AioRpcError | str) -> None:
        self._outcome = outcome

    def __await__(self) -> Generator[Any, None, str]:
        yield from asyncio.sleep(0).__await__()
        if isinstance(self._outcome, AioRpcError):
            raise self._outcome
        return self._outcome


class ScriptedCluster:
    """Endpoints in order, and what is said of them."""

    def __init__(self, *outcomes: AioRpcError | str) -> None:
        self.links = [ScriptedLink(number, outcome) for number, outcome in enumerate(outcomes)]
        self.said: list[str] = []
        self._left = list(self.links)

    async def connect(self, _invocation: Invocation, tried: set[str]) -> tuple[ScriptedLink, int]:
        if not self._left:
            raise NeverSent("nobody is left")
        link = self._left.pop(0)
        tried.add(link.address)
        return link, len(self._left)

    def __getattr__(self, what: str) -> Any:
        return lambda *_: self.said.append(what)


async def run(idempotency: Idempotency, cluster: ScriptedCluster) -> Any:
    """Carry a call out."""
    invocation = Invocation(
        Method("unary_unary", "/a.B/C", None, None), b"", Deadline.after(5.0), None, None, None, None
    )
    try:
        return await Execution(cast(Cluster, cluster), invocation, idempotency).run(Failover())
    finally:
        assert [link.load.in_flight for link in cluster.links] == [0] * len(cluster.links)


async def failure(idempotency: Idempotency, *outcomes: AioRpcError | str) -> AioRpcError:
    """Return the error a call ends with."""
    with pytest.raises(AioRpcError) as caught:
        await run(idempotency, ScriptedCluster(*outcomes))
    return caught.value


async def test_a_connection_that_breaks_before_anything_is_sent() -> None:
    """Ready when looked at, gone when used: gRPC proves that nobody saw the call, and another endpoint is asked
    whatever the method is. Nothing is held against the endpoint."""
    cluster = ScriptedCluster(BROKE_BEFORE, "OK")
    assert await run(Idempotency.UNKNOWN, cluster) == "OK"
    assert cluster.said == ["unreachable", "repeated", "answered", "call_ended"]


async def test_sends_count_what_somebody_may_have_seen() -> None:
    """Not what provably nobody saw."""
    assert sends(await failure(Idempotency.IDEMPOTENT, BROKE_BEFORE, LOST, BROKE_BEFORE)) == 1
    error = await failure(Idempotency.IDEMPOTENT, BROKE_BEFORE, BROKE_BEFORE)
    assert never_sent(error)
    assert sends(error) == 0


async def test_the_lost_reply_matters_more_than_what_came_after_and_was_not_sent() -> None:
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
async def test_whether_another_attempt_may_have_done_it(outcomes: tuple[AioRpcError, ...], before: bool) -> None:
    """Only one that was sent and not answered may have."""
    assert maybe_sent_before(await failure(Idempotency.IDEMPOTENT, *outcomes)) is before


async def test_each_attempt_is_counted_once() -> None:
    """By how it ended; a refusal in the server's own words takes nobody out."""
    cluster = ScriptedCluster(LOST, NOT_NOW, "OK")
    assert await run(Idempotency.IDEMPOTENT, cluster) == "OK"
    assert cluster.said == ["failed", "repeated", "given_up", "repeated", "answered", "call_ended"]
