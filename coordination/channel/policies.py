"""Call policies: how often a call is sent, to which endpoints, and which answer counts.

    policy      sends to                                       the caller gets              for methods
    Failover    one; another if that is safe (see below)       the first answer             all
    Failfast    one                                            its answer                   all
    Failsafe    as the policy within                           an empty answer if it fails  reads, or those allowed
    Forking     several, one after the other or at once        the first OK                 reads
    Broadcast   every one that may serve the call              one answer, or the first     that may be repeated
                                                               failure

Invariants
1. A request goes to a second endpoint only if its method may be repeated and the first gave no answer
   (UNAVAILABLE; or CANCELLED by a server that is closing), or if it is proved that the first cannot have carried it
   out: never saw it, or does not have the method. Never after DEADLINE_EXCEEDED. (Dubbo's default failover repeats
   timed-out calls, payments too.)
2. A request that changes something is outstanding at one endpoint at a time, unless it is broadcast: a second one
   would meet the first still in progress. An endpoint that falls silent is noticed by its pings (see grpc_channel.py).
3. A server's own refusal is not followed by an attempt that has less time left than the refused one took: it would
   likely end without an answer, and hide the refusal.
4. Only a read is given up while it is outstanding: each attempt has a fair share of the deadline, and when it has
   passed and another endpoint is connected the attempt is cancelled.

Which function makes each move
    Failover.run  another try            Forking.run  another at the same time     CallExecution.send  gives up a read
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from grpc.aio import AioRpcError

from coordination.channel.connection import EndpointConnection
from coordination.channel.outcomes import NeverSent, Slow, answered, never_sent
from coordination.deadline import Deadline

log = logging.getLogger(__name__)

#: How an attempt without an answer ends. (CANCELLED by the caller is no AioRpcError.)
LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class Idempotency(enum.Enum):
    """What a proto says of a method with ``idempotency_level``."""

    #: Sent once.
    UNKNOWN = 0

    #: A read: may be sent any number of times.
    NO_SIDE_EFFECTS = 1

    #: A write that may be sent again when its reply was lost.
    IDEMPOTENT = 2


class CallContext(Protocol):
    """A call under way, as a policy sees it. Made by calls.py, carried out by execution.py."""

    @property
    def method(self) -> str:
        """Full name, ``/package.Service/Method``."""
        ...

    @property
    def idempotency(self) -> Idempotency:
        """The method's."""
        ...

    @property
    def deadline(self) -> Deadline:
        """Of all attempts together."""
        ...

    async def connect(self) -> EndpointConnection:
        """Return an endpoint that is connected and was not asked before in this call.

        Raises:
            NeverSent: there is none left.
        """
        ...

    async def send(self, connection: EndpointConnection, *, attempts: int = 1, forked: bool = False) -> Any:
        """Send the request to one endpoint; return the response.

        Args:
            attempts: among how many, this one included, the deadline is to be shared; with more than 1 this one
                may be given up for another.
            forked: whether an earlier attempt is still outstanding.

        Raises:
            Slow: it had no answer within its share; `connect` returns the next at once.
            NeverSent: no server can have carried it out.
            AioRpcError: any other failure.
        """
        ...

    async def all_connections(self) -> list[EndpointConnection]:
        """Return all endpoints that may serve the call, connected or not."""
        ...

    def others(self) -> int:
        """Return how many endpoints `connect` may still return."""
        ...

    def answer_empty(self, error: AioRpcError) -> Any:
        """Return an empty response, in place of an error; the call's code() still returns the error's."""
        ...


class Policy(Protocol):
    """A way to carry a call out."""

    def refuses(self, idempotency: Idempotency, /) -> str:
        """Return why methods of this kind cannot use this policy; empty if they can."""
        ...

    async def run(self, context: CallContext) -> Any:
        """Carry the call out; return the response.

        Raises:
            AioRpcError: the call failed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Failover:
    """One endpoint, and another when that is safe.

    Attributes:
        max_attempts: how often the request is sent at most; what provably was not sent does not count.
    """

    max_attempts: int = 3

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError("max_attempts must be 1 or more")

    def refuses(self, _idempotency: Idempotency) -> str:
        """See `Policy`."""
        return ""

    async def run(self, context: CallContext) -> Any:
        """See `Policy`."""
        read = context.idempotency is Idempotency.NO_SIDE_EFFECTS
        left = self.max_attempts
        while True:
            connection = await context.connect()
            attempts = min(left, 1 + context.others()) if read and left > 1 else 1
            began_s = time.monotonic()
            try:
                return await context.send(connection, attempts=attempts)
            except AioRpcError as error:
                if never_sent(error):
                    continue
                left -= 1
                if left == 0 or not _repeatable(error, context, time.monotonic() - began_s):
                    raise


@dataclass(frozen=True, slots=True)
class Failfast:
    """One endpoint, once. What provably was not sent may still go to another."""

    def refuses(self, _idempotency: Idempotency) -> str:
        """See `Policy`."""
        return ""

    async def run(self, context: CallContext) -> Any:
        """See `Policy`."""
        return await Failover(1).run(context)


@dataclass(frozen=True, slots=True)
class Failsafe:
    """A failure is logged and answered with an empty response: for calls the caller can do without.

    Attributes:
        within: how the call is carried out.
        writes: whether methods with side effects may use it; their failures then go unnoticed, too.
    """

    within: Policy = field(default_factory=Failover)
    writes: bool = False

    def refuses(self, idempotency: Idempotency) -> str:
        """See `Policy`."""
        if idempotency is not Idempotency.NO_SIDE_EFFECTS and not self.writes:
            return "failsafe would hide that something was not done; it is for reads, or Failsafe(writes=True)"
        return self.within.refuses(idempotency)

    async def run(self, context: CallContext) -> Any:
        """See `Policy`."""
        try:
            return await self.within.run(context)
        except AioRpcError as error:
            log.warning("%s failed and is answered empty: %s %s", context.method, error.code().name, error.details())
            return context.answer_empty(error)


@dataclass(frozen=True, slots=True)
class Forking:
    """Several endpoints; the first OK wins and the others are cancelled. Reads only.

    Attributes:
        endpoints: how many at most.
        stagger_s: how long to wait for an answer before one more is asked; 0: all at once. One that fails is
            followed by the next at once.
    """

    endpoints: int = 2
    stagger_s: float = 0.0

    def __post_init__(self) -> None:
        if self.endpoints < 1 or self.stagger_s < 0:
            raise ValueError("endpoints must be 1 or more, and stagger_s 0 or more")

    def refuses(self, idempotency: Idempotency) -> str:
        """See `Policy`."""
        if idempotency is Idempotency.NO_SIDE_EFFECTS:
            return ""
        return "forking sends a request to several endpoints at once; it is for methods without side effects"

    async def run(self, context: CallContext) -> Any:
        """See `Policy`."""
        tasks: list[asyncio.Task[Any]] = []
        running: set[asyncio.Task[Any]] = set()
        failures: list[BaseException] = []
        try:
            while len(tasks) < self.endpoints or running:
                if len(tasks) < self.endpoints:
                    tasks.append(asyncio.ensure_future(self._ask(context, forked=bool(running))))
                    running.add(tasks[-1])
                patience_s = self.stagger_s if len(tasks) < self.endpoints else None
                done, running = await asyncio.wait(running, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    error = task.exception()
                    if error is None:
                        return task.result()
                    failures.append(error)
            # Prefer a server's error over NeverSent.
            raise next((error for error in failures if not isinstance(error, NeverSent)), failures[0])
        finally:
            await _cancelled(tasks)

    @staticmethod
    async def _ask(context: CallContext, *, forked: bool) -> Any:
        while True:
            connection = await context.connect()
            try:
                return await context.send(connection, forked=forked)
            except AioRpcError as error:
                if not never_sent(error):
                    raise


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Every endpoint that may serve the call; it fails if one of them fails, with the failure that came first."""

    def refuses(self, idempotency: Idempotency) -> str:
        """See `Policy`."""
        if idempotency is not Idempotency.UNKNOWN:
            return ""
        return "broadcast carries a request out several times; it is for methods that may be repeated"

    async def run(self, context: CallContext) -> Any:
        """See `Policy`."""
        connections = await context.all_connections()
        if not connections:
            await context.connect()  # its error says why there is none
            connections = await context.all_connections()
        tasks = [asyncio.ensure_future(self._tell(context, connection)) for connection in connections]
        failures: list[BaseException] = []

        def ended(task: asyncio.Task[Any]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        for task in tasks:
            task.add_done_callback(ended)
        try:
            await asyncio.wait(tasks)
        finally:
            await _cancelled(tasks)
        if failures:
            raise failures[0]
        return tasks[0].result()

    @staticmethod
    async def _tell(context: CallContext, connection: EndpointConnection) -> Any:
        if not await connection.reachable(context.deadline):
            raise NeverSent(f"{connection.address} cannot be reached")
        return await context.send(connection, forked=True)


def _repeatable(error: AioRpcError, context: CallContext, took_s: float) -> bool:
    """Tell whether an attempt that may have been carried out may be followed by another."""
    if context.deadline.expired() or context.idempotency is Idempotency.UNKNOWN:
        return False
    if answered(error) and took_s > context.deadline.at - time.monotonic():
        return False
    return isinstance(error, Slow) or error.code() in LOST


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel what still runs, and see it ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
