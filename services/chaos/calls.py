"""Calls as a client makes them: found through ZooKeeper, and every one of them written down, whatever came of it.

    Caller.ask ──▶ history: invoke ──▶ DiscoveredChannel ──▶ service
                   history: ok, fail, info ◀── answer, refusal, or none

A call is one operation of the history however often the channel sent it: that is what a caller sees. What nobody heard
of stays unknown; only a call that provably never left is a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message

from coordination.channel import PowerOfTwoChoices
from coordination.channel.channel import DiscoveredChannel, never_sent
from coordination.discovery import Directory, Discovery
from coordination.grpc_channel import PATIENT, open_channel
from coordination.session import Session
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.history import NO_ANSWER, Answer, Arguments, HistoryWriter, Outcome
from services.devstack.state import INTERFACES
from services.kernel.principal import Role
from services.runtime.grpc import status
from services.runtime.grpc.methods import idempotency

_SESSION_TIMEOUT_S = 4.0
_FIND_TIMEOUT_S = 5.0

#: Each kind of call: its service, what answers, and which field of that holds what the call is about.
_KINDS: Final[Mapping[str, tuple[str, type[Message], str]]] = {
    "CreateOrder": ("order", order_pb2.CreateOrderResponse, "order"),
    "GetOrder": ("order", order_pb2.GetOrderResponse, "order"),
    "CancelOrder": ("order", order_pb2.CancelOrderResponse, "order"),
    "IssueTicket": ("payment", payment_pb2.IssueTicketResponse, "ticket"),
    "Pay": ("payment", payment_pb2.PayResponse, "payment"),
    "Settle": ("payment", payment_pb2.SettleResponse, "payment"),
    "Reverse": ("payment", payment_pb2.ReverseResponse, "payment"),
    "Park": ("payment", payment_pb2.ParkResponse, "payment"),
    "GetPayment": ("payment", payment_pb2.GetPaymentResponse, "payment"),
}


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody with a token."""

    name: str
    role: Role
    token: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What a caller knows after a call.

    Args:
        message: The response's message; None: it was refused, or nothing was heard.
    """

    outcome: Outcome
    answer: Answer
    message: Any = None


class Caller:
    """Calls services and writes the history.

    Args:
        zookeeper: Where to find them.
        history: Where every call is written.
        rng: Chooses among endpoints.
    """

    def __init__(self, zookeeper: str, history: HistoryWriter, rng: random.Random) -> None:
        self._session = Session(zookeeper, timeout_s=_SESSION_TIMEOUT_S, name="chaos")
        self._history = history
        self._rng = rng
        self._resources = AsyncExitStack()
        self._directories: dict[str, Directory] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.discovery = Discovery(self._session)

    async def __aenter__(self) -> Self:
        await self._session.start()
        self._resources.push_async_callback(self._session.close)
        self._resources.push_async_callback(self.discovery.close)
        for service, interface in INTERFACES.items():
            directory = await self.discovery.subscribe(interface, timeout_s=_FIND_TIMEOUT_S)
            self._directories[service] = directory
            channel = DiscoveredChannel(directory, picker=PowerOfTwoChoices(self._rng), idempotency=idempotency)
            self._channels[service] = channel
            self._resources.push_async_callback(channel.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._resources.aclose()

    async def ask(
        self,
        process: str,
        person: Person,
        kind: str,
        request: Message,
        arguments: Arguments,
        *,
        timeout_s: float,
        address: str = "",
    ) -> Heard:
        """Makes one call.

        Args:
            process: Who calls, as the history names them.
            kind: One of the methods of orders and payments, like `Settle`.
            arguments: What the history is to say of the request.
            address: `host:port` of one certain instance; empty: whichever the picker takes.
        """
        service, response, field = _KINDS[kind]
        method = f"/{INTERFACES[service]}/{kind}"
        invoked = self._history.invoke(process, kind, arguments)
        call: Any = self._channel(service, address).unary_unary(method, request_serializer=_serialize)(
            request, timeout=timeout_s, metadata=(("authorization", f"Bearer {person.token}"),)
        )
        try:
            body: bytes = await call
        except grpc.aio.AioRpcError as error:
            answer = _refusal(error)
            outcome = self._history.complete(invoked, answer, Outcome.FAIL if never_sent(error) else None)
            return Heard(outcome, answer)
        except BaseException:
            self._history.complete(invoked, NO_ANSWER, Outcome.INFO)
            raise
        message = response.FromString(body)
        replayed = ("x-replayed", "true") in tuple(await call.trailing_metadata() or ())
        answer = _told(getattr(message, field), body, replayed=replayed)
        return Heard(self._history.complete(invoked, answer), answer, message)

    async def wait_unregistered(self, instance: str, within_s: float) -> None:
        """Waits until ZooKeeper lists an instance no more.

        Raises:
            TimeoutError: It still does after so many seconds.
        """
        directory = self._directories[instance.rpartition("-")[0]]
        news = asyncio.Event()
        unsubscribe = directory.subscribe(news.set)
        try:
            async with asyncio.timeout(within_s):
                while any(one.registered.parameters.get("instance") == instance for one in directory.registered):
                    news.clear()
                    await news.wait()
        finally:
            unsubscribe()

    def _channel(self, service: str, address: str) -> grpc.aio.Channel:
        if not address:
            return self._channels[service]
        if address not in self._channels:
            channel = open_channel(address, PATIENT)
            self._channels[address] = channel
            self._resources.push_async_callback(channel.close)
        return self._channels[address]


def _told(thing: Any, body: bytes, *, replayed: bool) -> Answer:
    """What a response says of an order, a payment or a ticket."""
    digest = hashlib.sha256(body).hexdigest()
    kind = type(thing)
    state = kind.DESCRIPTOR.fields_by_name["state"].enum_type.values_by_number[thing.state].name
    if kind is payment_pb2.Ticket:
        return Answer(
            state=state.removeprefix("TICKET_STATE_"),
            order_id=thing.order_id,
            ticket=thing.ticket_id,
            replayed=replayed,
            sha256=digest,
        )
    clerk = thing.clerk if kind is payment_pb2.Payment else thing.settled_by
    return Answer(
        state=state.removeprefix("PAYMENT_STATE_").removeprefix("ORDER_STATE_"),
        order_id=thing.order_id,
        payment_id=thing.payment_id,
        round=thing.round,
        version=thing.version,
        amount_minor=thing.amount.minor_units,
        currency=thing.amount.currency_code,
        clerk=clerk.name,
        replayed=replayed,
        sha256=digest,
    )


def _refusal(error: grpc.aio.AioRpcError) -> Answer:
    """What a refusal says; without our ErrorInfo only its code."""
    refusal = status.from_rpc_error(error)
    trailers = tuple(error.trailing_metadata() or ())
    body = next((value for key, value in trailers if key == status.DETAILS_KEY), b"")
    reason = "" if refusal.reason == "OUTCOME_UNKNOWN" else refusal.reason
    facts = refusal.metadata if reason else {}
    return Answer(
        code=error.code().name,
        reason=reason,
        state=facts.get("state", ""),
        order_id=facts.get("order_id", ""),
        payment_id=facts.get("payment_id", ""),
        version=int(facts.get("actual", "0") or 0),
        clerk=facts.get("clerk", ""),
        replayed=("x-replayed", "true") in trailers,
        sha256=hashlib.sha256(body).hexdigest() if body else "",
    )


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
