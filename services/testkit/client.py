"""A client that records: every call is made here, and recorded with its outcome if there is a history.

    RecordingClient.call ──▶ history: invoke ──▶ channel to one instance, or discovered ──▶ service
                             history: ok, fail, info ◀── answer, refusal, or none

The type of a request names its method, so that a call is its request. One call is one operation of the history however
often a channel sent it: that is what a caller sees. A call without an answer stays unknown; only a call that provably
was never sent is a failure.
"""

from __future__ import annotations

import asyncio
import hashlib
import random  # noqa: TID251  seeded, so that a run can be repeated
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Final, Self

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from coordination.channel import PowerOfTwoChoices
from coordination.channel.channel import DiscoveredChannel, never_sent
from coordination.discovery import Directory, Discovery
from coordination.grpc_channel import PATIENT
from coordination.registry import Endpoint
from coordination.session import Session
from coordination.session.security import OPEN, Security
from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.debug.v1 import failpoint_pb2
from countinghouse.ledger.v1 import ledger_pb2
from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from countinghouse.type.v1 import money_pb2
from services.checker.evidence import Answered
from services.checker.history import NO_ANSWER, Answer, Arguments, HistoryWriter, Outcome, outcome_of
from services.devstack.state import ACQUIRER, INTERFACES
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, may_come_right
from services.kernel.ids import RandomIds
from services.runtime.grpc import status
from services.runtime.grpc.enum_names import name_of
from services.runtime.grpc.methods import idempotency
from services.runtime.grpc.tls import Dialer
from services.testkit.identities import CUSTOMER, Identity

CURRENCY: Final = "CNY"
TIMEOUT_S: Final = 5.0
#: How long a caller goes on under one key.
PATIENCE_S: Final = 25.0
_FIND_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 0.1
#: A server that was away is tried again this soon.
_RECONNECT: Final = (*PATIENT, ("grpc.max_reconnect_backoff_ms", 200))
#: What a history is about: these methods, and no others.
RECORDED: Final = frozenset(
    ("CreateOrder", "GetOrder", "CancelOrder", "IssueTicket", "Pay", "Settle", "Reverse", "Park", "GetPayment")
)
_UNFINISHED: Final = frozenset(("CREATED", "SUBMITTED", "UNKNOWN", "REVERSING"))


@dataclass(frozen=True, slots=True)
class _Method:
    """One method of a service.

    Args:
        path: `/package.Service/Method`.
        service: Like `payment`; empty for what every instance serves.
    """

    path: str
    name: str
    service: str
    response: type[Message]


def _methods() -> dict[str, _Method]:
    found = {}
    for module in (order_pb2, payment_pb2, ledger_pb2, acquirer_pb2, failpoint_pb2):
        file: Any = module.DESCRIPTOR
        name = file.package.split(".")[1]
        for service in file.services_by_name.values():
            for method in service.methods:
                found[method.input_type.full_name] = _Method(
                    f"/{service.full_name}/{method.name}", method.name, name, GetMessageClass(method.output_type)
                )
    return found


#: By the full name of what each takes.
_METHODS: Final[Mapping[str, _Method]] = _methods()


def method_of(request: Message) -> str:
    """Return the method that takes a request: `/package.Service/Method`."""
    return _METHODS[request.DESCRIPTOR.full_name].path


@dataclass(frozen=True, slots=True)
class CallResult:
    """How a call ended. Times are Unix milliseconds.

    Args:
        response: None: the call was refused, or not answered.
        body: The response's bytes, or those of the google.rpc.Status that came instead.
        error: What came instead of a response.
        answer: Its entry in the history.
        tries: How often the request was sent by `call_until_answered`.
        first_error: The error of the first of them.
    """

    began_ms: int
    ended_ms: int
    body: bytes = b""
    error: CountinghouseError | None = None
    answer: Answer = NO_ANSWER
    outcome: Outcome = Outcome.INFO
    response: Any = None
    tries: int = 1
    first_error: CountinghouseError | None = None

    @property
    def replayed(self) -> bool:
        """Whether this is the stored answer of an earlier call."""
        return self.answer.replayed

    @property
    def open(self) -> bool:
        """Whether the same request may yet be answered otherwise."""
        return self.error is not None and may_come_right(self.error)

    @property
    def final(self) -> bool:
        """Whether the answer stands for ever: a definitive refusal, or no payment under way.

        A state that this version does not know, which is a number, may be that of a payment under way.
        """
        state = self.answer.state
        return not self.open and (self.error is not None or not (state in _UNFINISHED or state.isdecimal()))

    @property
    def payment(self) -> payment_pb2.Payment:
        """The payment in the response. Raises what came instead."""
        payment: payment_pb2.Payment = self.returned.payment
        return payment

    @property
    def returned(self) -> Any:
        """The response. Raises what came instead."""
        if self.error is not None:
            raise self.error
        return self.response


def _in_plain_text(*, outside: bool = False) -> Dialer:
    return Dialer(None, outside=outside)


class Connections:
    """What the clients of one deployment share: channels, the history, and the definitive answers so far.

    Args:
        address_of: The address of an instance, like `payment-1`.
        dialer: Returns what connects to the services, or to the acquirer; called when something is to be connected to.
        history: Where calls about orders and payments are recorded; None: nowhere.
        zookeeper: Where a call to no certain instance finds one; empty: it goes to the first of its service.
        security: Returns how ZooKeeper is come to.
        endpoint_address: Where one that was found is connected to; None: its public address.
        rng: Chooses among endpoints and makes ids that the same seed gives again; None: ids are random.
    """

    def __init__(
        self,
        address_of: Callable[[str], str],
        clock: Clock,
        *,
        dialer: Callable[..., Dialer] = _in_plain_text,
        history: HistoryWriter | None = None,
        zookeeper: str = "",
        security: Callable[[], Security] = lambda: OPEN,
        endpoint_address: Callable[[Endpoint], str] | None = None,
        rng: random.Random | None = None,
        session_timeout_s: float = 4.0,
    ) -> None:
        self.clock = clock
        self.history = history
        self.answers: list[Answered] = []
        self.directories: dict[str, Directory] = {}
        self._address_of = address_of
        self._dialer = dialer
        self._zookeeper = zookeeper
        self._security = security
        self._endpoint_address = endpoint_address
        self._session_timeout_s = session_timeout_s
        self._rng = rng
        self._numbers = 0
        self._resources = AsyncExitStack()
        self._discovered: dict[str, grpc.aio.Channel] = {}
        self._direct: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._orders: dict[str, str] = {}  # of tickets and payments

    async def __aenter__(self) -> Self:
        if self._zookeeper:
            session = Session(
                self._zookeeper, timeout_s=self._session_timeout_s, name="testkit", security=self._security()
            )
            await self._resources.enter_async_context(session)
            discovery = Discovery(session)
            self._resources.push_async_callback(discovery.close)
            rng = self._rng or random.Random()  # noqa: S311
            dialer = self._dialer()
            for service, interface in INTERFACES.items():
                directory = await discovery.subscribe(interface, timeout_s=_FIND_TIMEOUT_S)
                self.directories[service] = directory
                channel = DiscoveredChannel(
                    directory,
                    picker=PowerOfTwoChoices(rng),
                    idempotency=idempotency,
                    address_of=self._endpoint_address,
                    credentials=dialer.credentials,
                    options=dialer.options(service),
                )
                self._discovered[service] = channel
                self._resources.push_async_callback(channel.close)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._direct.values():
            await channel.close()
        await self._resources.aclose()

    def new_id(self, what: str = "req") -> str:
        """Return an id that was never used."""
        if self._rng is None:
            return new_id(what)
        self._numbers += 1
        return f"{what}-{self._numbers:03d}-{self._rng.randrange(16**6):06x}"

    def channel(self, service: str, at: str) -> grpc.aio.Channel:
        """Return the channel to an instance; without one, to whichever discovery picks."""
        if not at and service in self._discovered:
            return self._discovered[service]
        name = at or f"{service}-1"
        address = self._address_of(name)
        called = (address, name.rpartition("-")[0])  # an address may become that of another service
        if called not in self._direct:
            dialer = self._dialer(outside=name.startswith(ACQUIRER))
            self._direct[called] = dialer.open(*called, _RECONNECT)
        return self._direct[called]

    def order_of(self, subject: str, order_id: str = "") -> str:
        """Return the order of a ticket or payment. The first answer stands: a repeated request is answered the same."""
        return self._orders.setdefault(subject, order_id) if subject else order_id

    async def wait_unregistered(self, instance: str, within_s: float) -> None:
        """Wait until ZooKeeper does not list an instance.

        Raises:
            TimeoutError: It still does after so many seconds.
        """
        directory = self.directories[instance.rpartition("-")[0]]
        changed = asyncio.Event()
        unsubscribe = directory.subscribe(changed.set)
        try:
            async with asyncio.timeout(within_s):
                while any(one.registered.parameters.get("instance") == instance for one in directory.registered):
                    changed.clear()
                    await changed.wait()
        finally:
            unsubscribe()


class RecordingClient:
    """Calls services as one identity.

    Args:
        process: The caller's name in the history; empty: the identity's name.
    """

    def __init__(self, connections: Connections, identity: Identity, process: str = "") -> None:
        self.identity = identity
        self.process = process or identity.name
        self._connections = connections

    @property
    def name(self) -> str:
        """Return the identity's name."""
        return self.identity.name

    def new_id(self, what: str = "req") -> str:
        """Return an id that was never used."""
        return self._connections.new_id(what)

    # ---- any request -----------------------------------------------------------------------------------

    async def call(self, request: Message, *, at: str = "", timeout_s: float = TIMEOUT_S) -> CallResult:
        """Send a request once.

        Args:
            at: The instance, like `payment-1`; empty: the first of the service, or whichever discovery picks.
        """
        shared, clock = self._connections, self._connections.clock
        method = _METHODS[request.DESCRIPTOR.full_name]
        history = shared.history if method.name in RECORDED else None
        invoked = history and history.invoke(self.process, method.name, self._arguments(request))
        began_ms = clock.now_ms()
        call = self._send(request, at, timeout_s)
        try:
            body: bytes = await call
        except grpc.aio.AioRpcError as refused:
            result = _refused(refused, method.name, began_ms, clock.now_ms())
        except BaseException:
            if history and invoked:
                history.complete(invoked, NO_ANSWER, Outcome.INFO)
            raise
        else:
            response = method.response.FromString(body)
            replayed = ("x-replayed", "true") in tuple(await call.trailing_metadata() or ())
            answer = _answer(method.name, response, body, replayed=replayed)
            outcome = outcome_of(method.name, answer)
            result = CallResult(began_ms, clock.now_ms(), body, None, answer, outcome, response)
            shared.order_of(answer.ticket or answer.payment_id, answer.order_id)
        if history and invoked:
            history.complete(invoked, result.answer, result.outcome)
        return result

    def _send(self, request: Message, at: str, timeout_s: float) -> Any:
        method = _METHODS[request.DESCRIPTOR.full_name]
        send: Any = self._connections.channel(method.service, at).unary_unary(
            method.path, request_serializer=type(request).SerializeToString
        )
        is_outside = method.service == ACQUIRER or at.startswith(ACQUIRER)
        token = self.identity.outside if is_outside else self.identity.token
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        return send(request, timeout=timeout_s, metadata=metadata)

    async def settle_batch(
        self, requests: Sequence[payment_pb2.SettleRequest], *, at: str = "", timeout_s: float = TIMEOUT_S
    ) -> list[CallResult]:
        """Send some settles as one batch, once; return how each ended. Each is a Settle of its own in the history."""
        shared, clock = self._connections, self._connections.clock
        history, began_ms = shared.history, clock.now_ms()
        invoked = [history and history.invoke(self.process, "Settle", self._arguments(request)) for request in requests]
        results: list[CallResult] = []
        try:
            body = await self._send(payment_pb2.SettleBatchRequest(requests=requests), at, timeout_s)
            outcomes = payment_pb2.SettleBatchResponse.FromString(body).outcomes
            results = [self._settled(outcome, began_ms) for outcome in outcomes]
        except grpc.aio.AioRpcError as refused:
            results = [_refused(refused, "Settle", began_ms, clock.now_ms())] * len(requests)
        finally:
            for place, begun in enumerate(invoked):
                found = results[place] if place < len(results) else None
                if history and begun:
                    history.complete(
                        begun, found.answer if found else NO_ANSWER, found.outcome if found else Outcome.INFO
                    )
        return results

    def _settled(self, outcome: payment_pb2.SettleOutcome, began_ms: int) -> CallResult:
        """Return how one settle of a batch ended."""
        ended_ms = self._connections.clock.now_ms()
        if outcome.HasField("response"):
            body = outcome.response.SerializeToString(deterministic=True)
            answer = _answer("Settle", outcome.response, body, replayed=outcome.replayed)
            self._connections.order_of(answer.payment_id, answer.order_id)
            ended = outcome_of("Settle", answer)
            return CallResult(began_ms, ended_ms, body, None, answer, ended, outcome.response)
        error = status.from_bytes(outcome.error)
        answer = _refusal(status.code_of(error).name, outcome.error, error, replayed=outcome.replayed)
        return CallResult(began_ms, ended_ms, outcome.error, error, answer, outcome_of("Settle", answer))

    async def call_until_answered(
        self, request: Message, *, at: str = "", timeout_s: float = TIMEOUT_S, within_s: float = PATIENCE_S
    ) -> CallResult:
        """Send a request again and again until the answer is final, or patience ends.

        Final answers are kept for the checker, under the request id or ticket.
        """
        clock = self._connections.clock
        until_s, began_ms = clock.monotonic_s() + within_s, clock.now_ms()
        tries, first = 0, None
        while True:
            result = await self.call(request, at=at, timeout_s=min(timeout_s, until_s - clock.monotonic_s()))
            tries += 1
            first = first or result.error
            pause_s = (result.error.retry_after_ms or 0) / 1000 if result.error else 0.0
            pause_s = pause_s or _RETRY_S
            if result.final or clock.monotonic_s() + pause_s >= until_s:
                break
            await asyncio.sleep(pause_s)
        if result.final and (key := _key_of(request)):
            self._connections.answers.append(Answered(key, result.error is None, result.body))
        return replace(result, began_ms=began_ms, tries=tries, first_error=first)

    async def ask(self, request: Message, *, at: str = "", timeout_s: float = TIMEOUT_S) -> Any:
        """Return the response to a request that is sent once.

        Raises:
            CountinghouseError: What came instead.
        """
        return (await self.call(request, at=at, timeout_s=timeout_s)).returned

    async def ask_until_ok(
        self, request: Message, *, at: str = "", timeout_s: float = TIMEOUT_S, within_s: float = PATIENCE_S
    ) -> Any:
        """Return the response to a request that is sent until the answer is final.

        Raises:
            CountinghouseError: The last that came instead.
        """
        return (await self.call_until_answered(request, at=at, timeout_s=timeout_s, within_s=within_s)).returned

    # ---- orders and payments ---------------------------------------------------------------------------

    async def new_order(self, amount: int = 1250, customer: str = CUSTOMER, currency: str = CURRENCY) -> str:
        """Make an order; return its id."""
        request = order_pb2.CreateOrderRequest(
            request_id=self.new_id("make"), customer_id=customer, amount=money(amount, currency)
        )
        return str((await self.ask_until_ok(request)).order.order_id)

    def settle_request(
        self,
        order_id: str,
        key: str = "",
        *,
        card: str = "",
        source: payment_pb2.Source.ValueType = payment_pb2.SOURCE_UNSPECIFIED,
    ) -> payment_pb2.SettleRequest:
        """Return a request to settle an order: by the card, or from the source that is this caller's."""
        chosen = source or (payment_pb2.SOURCE_CARD if card else self.identity.source)
        return payment_pb2.SettleRequest(
            request_id=key or self.new_id("settle"), order_id=order_id, source=chosen, card=card
        )

    async def settle(
        self,
        order_id: str,
        key: str = "",
        *,
        at: str = "",
        card: str = "",
        source: payment_pb2.Source.ValueType = payment_pb2.SOURCE_UNSPECIFIED,
        timeout_s: float = TIMEOUT_S,
        within_s: float = PATIENCE_S,
    ) -> CallResult:
        """Settle an order; see `call_until_answered`."""
        request = self.settle_request(order_id, key, card=card, source=source)
        return await self.call_until_answered(request, at=at, timeout_s=timeout_s, within_s=within_s)

    async def settle_ok(
        self,
        order_id: str,
        key: str = "",
        *,
        at: str = "",
        card: str = "",
        source: payment_pb2.Source.ValueType = payment_pb2.SOURCE_UNSPECIFIED,
        timeout_s: float = TIMEOUT_S,
    ) -> payment_pb2.Payment:
        """Settle an order; return the payment. Raises CountinghouseError: what came instead."""
        return (await self.settle(order_id, key, at=at, card=card, source=source, timeout_s=timeout_s)).payment

    async def settle_once(
        self,
        order_id: str,
        key: str = "",
        *,
        at: str = "",
        card: str = "",
        source: payment_pb2.Source.ValueType = payment_pb2.SOURCE_UNSPECIFIED,
        timeout_s: float = TIMEOUT_S,
    ) -> CallResult:
        """Ask once to settle an order."""
        request = self.settle_request(order_id, key, card=card, source=source)
        return await self.call(request, at=at, timeout_s=timeout_s)

    async def reverse(self, payment_id: str, key: str = "", *, at: str = "") -> CallResult:
        """Undo a payment; see `call_until_answered`."""
        request = payment_pb2.ReverseRequest(
            request_id=key or self.new_id("reverse"), payment_id=payment_id, reason="wrong order"
        )
        return await self.call_until_answered(request, at=at)

    async def ticket(self, order_id: str = "", *, at: str = "", ttl_s: int = 0) -> str:
        """Fetch a ticket; return its id."""
        request = payment_pb2.IssueTicketRequest(request_id=self.new_id("ticket"), order_id=order_id, ttl_s=ttl_s)
        return str((await self.ask_until_ok(request, at=at)).ticket.ticket_id)

    async def order_state(self, order_id: str) -> str:
        """Return where an order stands, like PAID."""
        order = (await self.ask(order_pb2.GetOrderRequest(order_id=order_id))).order
        return name_of(order_pb2.OrderState, order.state, "ORDER_STATE_")

    async def journals(self, order_id: str) -> list[ledger_pb2.Journal]:
        """Return the journals of an order, newest first."""
        return list((await self.ask(ledger_pb2.ListJournalsRequest(order_id=order_id))).journals)

    def _arguments(self, request: Any) -> Arguments:
        names = request.DESCRIPTOR.fields_by_name
        told: dict[str, Any] = {
            name: getattr(request, name)
            for name in ("order_id", "payment_id", "payee_account_id", "expected_version")
            if name in names
        }
        if "amount" in names and request.HasField("amount"):
            told |= {"amount_minor": request.amount.minor_units, "currency": request.amount.currency_code}
        if "source" in names:
            told["source"] = name_of(payment_pb2.Source, request.source, "SOURCE_")
        subject = getattr(request, "ticket_id", "") or told.get("payment_id", "")
        told["order_id"] = told.get("order_id") or self._connections.order_of(subject)
        return Arguments(clerk=self.name, role=self.identity.role.value, key=_key_of(request), **told)


def new_id(what: str = "req") -> str:
    """Return a random id."""
    return RandomIds().new(what)


def money(minor_units: int, currency: str = CURRENCY) -> money_pb2.Money:
    """Return an amount."""
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


def _key_of(request: Any) -> str:
    return getattr(request, "request_id", "") or getattr(request, "ticket_id", "")


def _answer(kind: str, response: Any, body: bytes, *, replayed: bool) -> Answer:
    """Return the state in a response about an order, a payment or a ticket."""
    told: dict[str, Any] = {"replayed": replayed, "sha256": hashlib.sha256(body).hexdigest()}
    if kind not in RECORDED:
        return Answer(**told)
    if kind == "IssueTicket":
        ticket = response.ticket
        state = name_of(payment_pb2.TicketState, ticket.state, "TICKET_STATE_")
        return Answer(ticket=ticket.ticket_id, order_id=ticket.order_id, state=state, **told)
    about_order = "Order" in kind
    found = response.order if about_order else response.payment
    if about_order:
        state = name_of(order_pb2.OrderState, found.state, "ORDER_STATE_")
    else:
        state = name_of(payment_pb2.PaymentState, found.state, "PAYMENT_STATE_")
    return Answer(
        state=state,
        order_id=found.order_id,
        payment_id=found.payment_id,
        round=found.round,
        version=found.version,
        amount_minor=found.amount.minor_units,
        currency=found.amount.currency_code,
        clerk=(found.settled_by if about_order else found.clerk).name,
        **told,
    )


def _refused(refused: grpc.aio.AioRpcError, method: str, began_ms: int, ended_ms: int) -> CallResult:
    """Return how a call ended that was refused, or not answered; without our ErrorInfo it has only its code."""
    trailers = tuple(refused.trailing_metadata() or ())
    body = next((value for key, value in trailers if key == status.DETAILS_KEY and isinstance(value, bytes)), b"")
    error = status.from_rpc_error(refused)
    answer = _refusal(refused.code().name, body, error, replayed=("x-replayed", "true") in trailers)
    outcome = Outcome.FAIL if never_sent(refused) else outcome_of(method, answer)
    return CallResult(began_ms, ended_ms, body, error, answer, outcome)


def _refusal(code: str, body: bytes, error: CountinghouseError, *, replayed: bool) -> Answer:
    """Return the content of a refusal."""
    reason = "" if error.reason == "OUTCOME_UNKNOWN" else error.reason
    facts = error.metadata if reason else {}
    return Answer(
        code=code,
        reason=reason,
        state=facts.get("state", ""),
        order_id=facts.get("order_id", ""),
        payment_id=facts.get("payment_id", ""),
        version=int(facts.get("actual", "0") or 0),
        clerk=facts.get("clerk", ""),
        replayed=replayed,
        sha256=hashlib.sha256(body).hexdigest() if body else "",
    )
