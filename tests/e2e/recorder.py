"""Notes every call to a running stack as its caller sees it, for the checker."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import grpc
import jwt
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.history import NO_ANSWER, Answer, Arguments, HistoryWriter
from services.demo.people import Person, Seen, Telephone
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, OutcomeUnknown
from services.kernel.principal import Principal, Role
from services.runtime.grpc import status

_RESPONSES: dict[str, type[Message]] = {
    "CreateOrder": order_pb2.CreateOrderResponse,
    "CancelOrder": order_pb2.CancelOrderResponse,
    "GetOrder": order_pb2.GetOrderResponse,
    "IssueTicket": payment_pb2.IssueTicketResponse,
    "Pay": payment_pb2.PayResponse,
    "Settle": payment_pb2.SettleResponse,
    "Reverse": payment_pb2.ReverseResponse,
    "GetPayment": payment_pb2.GetPaymentResponse,
}
_ORDERS = "/countinghouse.order.v1.OrderService/"
_PAYMENTS = "/countinghouse.payment.v1.PaymentService/"


class Recorder:
    """Calls services and writes down what was asked and answered."""

    def __init__(self, history: HistoryWriter) -> None:
        self._history = history
        #: Every payment that somebody was told of.
        self.payments: list[str] = []
        self._asked = 0
        self._again = asyncio.Condition()

    async def ask(
        self,
        process: str,
        person: Person,
        address: str,
        request: Message,
        *,
        order_id: str = "",
        timeout_s: float = 5.0,
    ) -> Seen:
        """Calls the method that takes this request, once.

        Args:
            order_id: The order that a ticket is for, which a Pay does not say.
        """
        kind = type(request).__name__.removesuffix("Request")
        service = _ORDERS if "Order" in kind else _PAYMENTS
        invoked = self._history.invoke(process, kind, arguments_of(person, request, order_id))
        seen = await person.telephone.call(address, service + kind, request, person.token, timeout_s)
        answer = answer_of(kind, seen)
        self._history.complete(invoked, answer)
        if answer.payment_id and answer.payment_id not in self.payments:
            self.payments.append(answer.payment_id)
        async with self._again:
            self._asked += 1
            self._again.notify_all()
        return seen

    async def until_asked(self, times: int) -> None:
        """Waits until so many more calls have come to their end."""
        until = self._asked + times
        async with self._again:
            await self._again.wait_for(lambda: self._asked >= until)


class NotingTelephone(Telephone):
    """A telephone over which every call about orders and payments is written down as well."""

    def __init__(self, clock: Clock, history: HistoryWriter) -> None:
        super().__init__(clock)
        self._history = history

    async def call(self, address: str, method: str, request: Message, token: str, timeout_s: float) -> Seen:
        """See `Telephone`. Nobody has two calls under way at one instance."""
        kind = method.rpartition("/")[2]
        if kind not in _RESPONSES:
            return await super().call(address, method, request, token, timeout_s)
        caller = _bearer(token)
        invoked = self._history.invoke(f"{caller.name} at {address}", kind, arguments_of(caller, request))
        seen = await super().call(address, method, request, token, timeout_s)
        self._history.complete(invoked, answer_of(kind, seen))
        return seen


def _bearer(token: str) -> Principal:
    """Who a token of ours says is calling."""
    claims = jwt.decode(token, options={"verify_signature": False})
    return Principal(claims["sub"], Role(claims["role"]))


def arguments_of(person: Person | Principal, request: Any, order_id: str = "") -> Arguments:
    """What is asked for."""
    told: dict[str, Any] = {"clerk": person.name, "role": str(person.role).lower()}
    names = {field.name for field in request.DESCRIPTOR.fields}
    for name in names & {"order_id", "payment_id", "payee_account_id", "expected_version"}:
        told[name] = getattr(request, name)
    told["key"] = getattr(request, "request_id", "") or getattr(request, "ticket_id", "")
    if "amount" in names and request.HasField("amount"):
        told |= {"amount_minor": request.amount.minor_units, "currency": request.amount.currency_code}
    if "source" in names:
        told["source"] = payment_pb2.Source.Name(request.source).removeprefix("SOURCE_")
    if order_id:
        told["order_id"] = order_id
    return Arguments(**told)


def answer_of(kind: str, seen: Seen) -> Answer:
    """What was answered."""
    if seen.error is not None:
        return refusal_of(seen.error, seen)
    response: Any = _RESPONSES[kind].FromString(seen.body)
    told: dict[str, Any] = {"replayed": seen.replayed, "sha256": hashlib.sha256(seen.body).hexdigest()}
    if kind == "IssueTicket":
        return Answer(ticket=response.ticket.ticket_id, state="ISSUED", order_id=response.ticket.order_id, **told)
    found = response.order if "Order" in kind else response.payment
    states: Any = order_pb2.OrderState if "Order" in kind else payment_pb2.PaymentState
    clerk = found.settled_by if "Order" in kind else found.clerk
    return Answer(
        state=states.Name(found.state).removeprefix("ORDER_STATE_").removeprefix("PAYMENT_STATE_"),
        order_id=found.order_id,
        payment_id=found.payment_id,
        round=found.round,
        version=found.version,
        amount_minor=found.amount.minor_units,
        currency=found.amount.currency_code,
        clerk=clerk.name,
        **told,
    )


def refusal_of(error: CountinghouseError, seen: Seen) -> Answer:
    """What was answered instead; of the transport's own errors nothing is believed."""
    if isinstance(error, OutcomeUnknown):
        return NO_ANSWER
    code: grpc.StatusCode = status.code_of(error)
    told = error.metadata
    return Answer(
        code=code.name,
        reason=error.reason,
        state=told.get("state", ""),
        payment_id=told.get("payment_id", ""),
        version=int(told.get("actual") or told.get("version") or 0),
        clerk=told.get("clerk", ""),
        replayed=seen.replayed,
        sha256=hashlib.sha256(seen.body).hexdigest(),
    )
