"""A gRPC channel to the present providers of an interface.

Generated stubs take it as they take any ``grpc.aio.Channel``:
``PaymentServiceStub(DiscoveredChannel(directory, …))``.

    a stub's call ─▶ calls ─▶ execution ─▶ policies            how often, and which answer counts
                                  │
                                  └──────▶ endpoint_pool       to which endpoint: rules, weights, outliers, the picker
                                              │
                                              └──▶ connection  to one endpoint

Each of these modules says what it guarantees. In one place:

1. A request is sent again only if its method may be repeated and no server answered, or if it is proved that no server
   carried it out; never after DEADLINE_EXCEEDED. One deadline covers every attempt (`policies`, `execution`).
2. An endpoint that cannot be reached, or has fallen silent, fails no call that may be repeated as long as another
   endpoint answers (`endpoint_pool`, `connection`, `outlier_detection`).
3. An error tells whether the call may have been carried out (`outcomes`).
4. A stream is opened on one endpoint and never moved to another (`calls`).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from coordination.channel.calls import Callee, StreamStream, StreamUnary, UnaryStream, UnaryUnary
from coordination.channel.endpoint_pool import EndpointPool
from coordination.channel.invocation import Invocation, Method
from coordination.channel.load_balancing import Explanation, Picker, PowerOfTwoChoices
from coordination.channel.outcomes import maybe_sent_before, never_sent, sends
from coordination.channel.policies import Failover, Idempotency, Policy
from coordination.deadline import Deadline
from coordination.discovery.directory import Directory
from coordination.grpc_channel import Credentials, Option
from coordination.metrics import Metrics
from coordination.registry.endpoint import Endpoint

__all__ = ["DiscoveredChannel", "maybe_sent_before", "never_sent", "sends"]

Request = TypeVar("Request")
Response = TypeVar("Response")

_BEST_FIRST = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.CONNECTING,
    grpc.ChannelConnectivity.IDLE,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
)


def _no_key(_method: str, _request: Any) -> str:
    return ""


def _registered_address(endpoint: Endpoint) -> str:
    return endpoint.address


def _wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when one of these has ended; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class DiscoveredChannel(grpc.aio.Channel):
    """A ``grpc.aio.Channel`` over all endpoints of a directory.

    Args:
        directory: the endpoints.
        idempotency: tells of a full method name (``/pkg.Service/Method``) whether it may be repeated.
        picker: which endpoint next; None: `PowerOfTwoChoices`.
        policy: how often a unary call is sent and which answer counts: one for all methods, or one for each full
            method name.
        hash_key: returns the key of a request (full method name, request) for `ConsistentHash`; "" for no key.
        rng: draws for the default picker and the jitter of ejections; None: a new one.
        options: gRPC channel options, over those of `grpc_channel`.
        default_timeout_s: deadline of unary calls that give none, seconds, unless the endpoint's rules know one;
            None for no deadline. Streams that give none have none.
        address_of: where an endpoint is connected to; None: its address. For providers with a second port for some.
        credentials: for TLS; None for plain text.
        metrics: the collectors; None: some that are not exported.
        now_ms: the wall clock, Unix milliseconds; endpoints warm up by it.
        on_attempt: called when an attempt of a call has ended, in the task of that call: with the endpoint, and with
            its gRPC status code by name, or NEVER_SENT. It must not raise.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        idempotency: Callable[[str], Idempotency],
        picker: Picker | None = None,
        policy: Policy | Callable[[str], Policy] | None = None,
        hash_key: Callable[[str, Any], str] = _no_key,
        rng: random.Random | None = None,
        options: Iterable[Option] = (),
        default_timeout_s: float | None = None,
        address_of: Callable[[Endpoint], str] | None = None,
        credentials: Credentials | None = None,
        metrics: Metrics | None = None,
        now_ms: Callable[[], int] = _wall_clock_ms,
        on_attempt: Callable[[str, str], None] | None = None,
    ) -> None:
        rng = rng or random.Random()
        self._pool = EndpointPool(
            directory,
            picker=picker or PowerOfTwoChoices(rng),
            rng=rng,
            options=tuple(options),
            address_of=address_of or _registered_address,
            credentials=credentials,
            metrics=metrics or Metrics(),
            now_ms=now_ms,
            on_attempt=on_attempt,
        )
        self._idempotency = idempotency
        self._policy = policy or Failover()
        self._hash_key = hash_key
        self._default_timeout_s = default_timeout_s

    @property
    def directory(self) -> Directory:
        """The endpoints of this channel."""
        return self._pool.directory

    def explain(self, method: str, request: Any, metadata: Any = None) -> list[Explanation]:
        """Return what a call like this, made now, would do with each registered provider.

        Nothing is sent. An endpoint never connected to counts as reachable.

        Args:
            method: full method name.
            request: the message; its key may decide.
            metadata: the call's; its tag may decide.
        """
        key = self._hash_key(method, request)
        described = Method("unary_unary", method, None, None)
        return self._pool.explain(
            Invocation(described, request, Deadline.after(None), metadata, None, None, None, key=key)
        )

    # ---- what stubs call -----------------------------------------------------------------------------

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryUnaryMultiCallable[Request, Response]:
        """See grpc.aio."""
        return UnaryUnary(self._callee("unary_unary", method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.UnaryStreamMultiCallable[Request, Response]:
        """See grpc.aio."""
        return UnaryStream(self._callee("unary_stream", method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamUnaryMultiCallable[Request, Response]:
        """See grpc.aio."""
        return StreamUnary(self._callee("stream_unary", method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Request], bytes] | None = None,
        response_deserializer: Callable[[bytes], Response] | None = None,
        _registered_method: bool | None = False,
    ) -> grpc.aio.StreamStreamMultiCallable[Request, Response]:
        """See grpc.aio."""
        return StreamStream(self._callee("stream_stream", method, request_serializer, response_deserializer))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return the best state among the endpoints: READY if a call could be sent at once."""
        if self._pool.closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if try_to_connect:
            for endpoint in self._pool.directory.endpoints:
                self._pool.connection_to(endpoint).channel.get_state(try_to_connect=True)
        states = set(self._pool.states().values())
        return next((state for state in _BEST_FIRST if state in states), grpc.ChannelConnectivity.IDLE)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return once `get_state()` is another."""
        await self._wait_until(lambda: self.get_state() is not last_observed_state)

    async def channel_ready(self) -> None:
        """Return once some endpoint can be called, also one that registers later."""
        await self._wait_until(lambda: self.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY)

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        """Return once `reached()` is true; it is called again after every change of the pool.

        gRPC connects in threads of its own: the states waited on are read before `reached` is called, so that a change
        in between ends the wait.
        """
        changed = asyncio.Event()
        self._pool.watchers.add(changed)
        try:
            while True:
                changed.clear()
                states = self._pool.states()
                if reached():
                    return
                if self._pool.closed:
                    raise grpc.aio.UsageError("the channel is closed")
                await _first_of(
                    changed.wait(),
                    *(connection.channel.wait_for_state_change(state) for connection, state in states.items()),
                )
        finally:
            self._pool.watchers.remove(changed)

    async def close(self, grace: float | None = None) -> None:
        """Take no new call; cancel those under way after `grace` seconds (None: at once). Idempotent."""
        if not self._pool.closed:
            await self._pool.close(grace)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _callee(
        self,
        kind: str,
        name: str,
        request_serializer: Callable[[Any], bytes] | None,
        response_deserializer: Callable[[bytes], Any] | None,
    ) -> Callee:
        idempotency = self._idempotency(name)
        policy = self._policy(name) if callable(self._policy) else self._policy
        return Callee(
            self._pool,
            Method(kind, name, request_serializer, response_deserializer),
            idempotency,
            policy,
            policy.refuses(idempotency),
            self._hash_key,
            self._default_timeout_s,
        )
