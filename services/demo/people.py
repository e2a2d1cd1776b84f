"""The people of the demonstration: customers and clerks, each with a token, who call one instance by its address.

A real client finds its instance through ZooKeeper and need not care which it gets. Here the cashier sits at one
instance and the accountant at another, so that two clerks do meet on two machines.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from coordination.grpc_channel import PATIENT, open_channel
from services.checker.evidence import Answered
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, may_come_right
from services.kernel.principal import Role
from services.runtime.grpc import status

_PAYMENT = "/countinghouse.payment.v1.PaymentService/"
_RETRY_MS = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer as it reached the caller. Times are Unix milliseconds.

    Args:
        body: The response's bytes, or those of the google.rpc.Status that was answered instead.
        error: What was answered instead; None: it went well.
        tries: How often the caller asked, under the same key.
    """

    body: bytes
    error: CountinghouseError | None
    replayed: bool
    began_ms: int
    ended_ms: int
    tries: int = 1
    first_error: CountinghouseError | None = None

    @property
    def open(self) -> bool:
        """Whether the same request may yet be answered."""
        return self.error is not None and may_come_right(self.error)


class Telephone:
    """One channel to each instance, and every definitive answer that came over them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answers: list[Answered] = []
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def call(self, address: str, method: str, request: Message, token: str, timeout_s: float) -> Seen:
        """Calls `/package.Service/Method` once."""
        if address not in self._channels:
            self._channels[address] = open_channel(address, [*PATIENT, ("grpc.max_reconnect_backoff_ms", 200)])
        ask: Any = self._channels[address].unary_unary(method, request_serializer=_serialize)
        began_ms = self.clock.now_ms()
        call = ask(request, timeout=timeout_s, metadata=(("authorization", f"Bearer {token}"),))
        body: bytes = b""
        error: CountinghouseError | None = None
        try:
            body = await call
        except grpc.aio.AioRpcError as refused:
            error = status.from_rpc_error(refused)
        trailers = await call.trailing_metadata() or ()
        replayed = any(pair == ("x-replayed", "true") for pair in trailers)
        if error is not None:
            body = next((value for key, value in trailers if key == status.DETAILS_KEY), b"")
        return Seen(body, error, replayed, began_ms, self.clock.now_ms())

    async def close(self) -> None:
        """Hangs up."""
        for channel in self._channels.values():
            await channel.close()


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a token."""

    name: str
    role: Role
    token: str
    telephone: Telephone

    async def ask(self, address: str, method: str, request: Message, *, timeout_s: float = 5.0) -> Seen:
        """Calls a method of the payment service once."""
        return await self.telephone.call(address, _PAYMENT + method, request, self.token, timeout_s)

    async def insist(
        self, address: str, method: str, request: Message, key: str, *, timeout_s: float = 5.0, patience_s: float = 10.0
    ) -> Seen:
        """Calls again and again under the same key until there is a definitive answer or patience ends.

        Args:
            key: The request id or ticket in `request`; definitive answers are kept under it for the checker.
        """
        clock = self.telephone.clock
        until_s = clock.monotonic_s() + patience_s
        tries, first, began_ms = 0, None, clock.now_ms()
        while True:
            seen = await self.ask(address, method, request, timeout_s=min(timeout_s, until_s - clock.monotonic_s()))
            tries += 1
            first = first or seen.error
            pause_s = ((seen.error.retry_after_ms if seen.error else None) or _RETRY_MS) / 1000
            if not seen.open or clock.monotonic_s() + pause_s >= until_s:
                break
            await asyncio.sleep(pause_s)
        if not seen.open:
            self.telephone.answers.append(Answered(key, seen.error is None, seen.body))
        return Seen(seen.body, seen.error, seen.replayed, began_ms, seen.ended_ms, tries, first)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
