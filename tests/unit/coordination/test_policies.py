"""When a call is sent to another endpoint, as a table: by what the attempt came to and what the method allows."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from coordination.channel import Failover, Idempotency
from coordination.channel.connection import EndpointConnection
from coordination.channel.outcomes import DETAILS_KEY, NEVER_CONNECTED, NeverSent, Slow
from coordination.deadline import Deadline

UNKNOWN, READ, WRITE = Idempotency.UNKNOWN, Idempotency.NO_SIDE_EFFECTS, Idempotency.IDEMPOTENT


def ended(code: grpc.StatusCode, details: str = "") -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(), details=details)


class Scripted:
    """A call whose attempts come to what they are told to; there are three endpoints."""

    def __init__(
        self, idempotency: Idempotency, outcomes: list[AioRpcError | str], deadline: Deadline, takes_s: float = 0.0
    ) -> None:
        self.method = "/a.B/C"
        self.idempotency = idempotency
        self.deadline = deadline
        self.shares: list[int] = []  # among how many the deadline was shared, of each attempt
        self._outcomes = outcomes
        self._takes_s = takes_s

    async def connect(self) -> Any:
        if len(self.shares) == 3:
            raise NeverSent("nobody is left")
        return None

    async def send(self, connection: EndpointConnection, *, attempts: int = 1, forked: bool = False) -> Any:
        self.shares.append(attempts)
        await asyncio.sleep(self._takes_s)
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, AioRpcError):
            raise outcome
        return outcome

    def others(self) -> int:
        return 2 - len(self.shares)

    async def all_connections(self) -> list[EndpointConnection]:
        return []

    def answer_empty(self, error: AioRpcError) -> Any:
        raise error


async def attempts(
    idempotency: Idempotency, outcome: AioRpcError, deadline: Deadline | None = None, takes_s: float = 0.0
) -> tuple[int, list[int]]:
    """Return how many attempts are made when the first comes to `outcome` and a second would succeed, and how the
    deadline was shared among them."""
    context = Scripted(idempotency, [outcome, "OK"], deadline or Deadline.after(None), takes_s)
    with contextlib.suppress(type(outcome)):
        assert await Failover().run(context) == "OK"
    return len(context.shares), context.shares


@pytest.mark.parametrize(
    ("outcome", "repeated"),
    [
        (ended(grpc.StatusCode.UNAVAILABLE, f"{NEVER_CONNECTED}; last error: refused"), {UNKNOWN, READ, WRITE}),
        (NeverSent("the connection broke before"), {UNKNOWN, READ, WRITE}),
        (ended(grpc.StatusCode.UNAVAILABLE, "Socket closed"), {READ, WRITE}),
        (ended(grpc.StatusCode.CANCELLED), {READ, WRITE}),
        (Slow("h:1", 0.5), {READ, WRITE}),  # only reads are ever cut
        (ended(grpc.StatusCode.DEADLINE_EXCEEDED), set()),
        (ended(grpc.StatusCode.INTERNAL), set()),
        (ended(grpc.StatusCode.ABORTED), set()),
        (ended(grpc.StatusCode.UNKNOWN, f"{NEVER_CONNECTED}"), set()),
    ],
    ids=lambda value: f"{value.code().name} {value.details()}" if isinstance(value, AioRpcError) else "",
)
async def test_failover_asks_another_only_when_safe(outcome: AioRpcError, repeated: set[Idempotency]) -> None:
    """Another endpoint is asked after what was provably not sent, whatever the method; after what nobody answered, if
    the method may be repeated; and after nothing else."""
    for idempotency in Idempotency:
        times, _ = await attempts(idempotency, outcome)
        assert (times == 2) == (idempotency in repeated), idempotency


async def test_no_attempt_begins_after_the_deadline() -> None:
    """What was lost when the time was up is not repeated."""
    lost = ended(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert (await attempts(READ, lost, Deadline.after(-1.0)))[0] == 1


async def test_only_reads_share_their_deadline() -> None:
    """Fairly, among the attempts left; a write has all of it until nobody can answer it any more."""
    lost = ended(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    for idempotency, shares in ((READ, [3, 2, 1]), (WRITE, [1, 1, 1]), (UNKNOWN, [1])):
        context = Scripted(idempotency, [lost, lost, lost], Deadline.after(9.0))
        with pytest.raises(AioRpcError):
            await Failover().run(context)
        assert context.shares == shares


async def test_answer_in_hand_is_kept_when_time_is_short() -> None:
    """A server that says UNAVAILABLE in its own words did nothing. Another is asked while there is as much time left as
    the first took; after that the answer is worth more than an attempt that would run into the deadline."""
    refused = AioRpcError(
        grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata((DETAILS_KEY, b"nothing was done")), details="not now"
    )
    for timeout_s, times in ((0.5, 2), (0.15, 1)):
        assert (await attempts(WRITE, refused, Deadline.after(timeout_s), takes_s=0.1))[0] == times
    lost = ended(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    assert (await attempts(WRITE, lost, Deadline.after(0.15), takes_s=0.1))[0] == 2
