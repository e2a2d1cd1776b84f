"""PaymentService on the wire: proto in, proto out. Checks form, translates, decides nothing."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, ClassVar

from google.protobuf.message import Message
from grpc import aio

from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.payment.v1 import payment_pb2_grpc
from services.kernel.card_numbers import refuse_bare_number, refuse_card_number
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.idempotency import StoredResponse
from services.kernel.ids import check_account, check_name, check_reason, check_text, check_text_form
from services.kernel.principal import Principal
from services.payment.model import PARK, PAY, REVERSE, SETTLE, Payment, PaymentEvent, PaymentState, Source
from services.payment.operations import ParkCommand, PayCommand, PaymentOperations, ReverseCommand, SettleCommand
from services.payment.pacing import Pacing
from services.payment.ports import Filter
from services.runtime.grpc import pagination, status, translate
from services.runtime.grpc.batching import check_batch, serve_each
from services.runtime.grpc.context import current_call
from services.runtime.grpc.interceptors import reply

_Context = aio.ServicerContext[Any, Any]

_DEFAULT_TTL_S, _MAX_TTL_S = 900, 86_400

_SOURCES: dict[Source, pb.Source.ValueType] = {
    Source.WALLET: pb.SOURCE_WALLET,
    Source.DRAWER: pb.SOURCE_DRAWER,
    Source.BANK: pb.SOURCE_BANK,
    Source.CARD: pb.SOURCE_CARD,
}
_SOURCE_BY_NUMBER: dict[int, Source] = {int(number): source for source, number in _SOURCES.items()}
_STATES: dict[PaymentState, pb.PaymentState.ValueType] = {
    PaymentState.CREATED: pb.PAYMENT_STATE_CREATED,
    PaymentState.SUBMITTED: pb.PAYMENT_STATE_SUBMITTED,
    PaymentState.SUCCEEDED: pb.PAYMENT_STATE_SUCCEEDED,
    PaymentState.DECLINED: pb.PAYMENT_STATE_DECLINED,
    PaymentState.UNKNOWN: pb.PAYMENT_STATE_UNKNOWN,
    PaymentState.REVERSING: pb.PAYMENT_STATE_REVERSING,
    PaymentState.REVERSED: pb.PAYMENT_STATE_REVERSED,
    PaymentState.PARKED: pb.PAYMENT_STATE_PARKED,
}
_STATE_BY_NUMBER: dict[int, PaymentState] = {int(number): state for state, number in _STATES.items()}


class PaymentServicer(payment_pb2_grpc.PaymentServiceServicer):
    """See `payment.proto`. Mutating methods answer with the stored bytes of their response."""

    def __init__(self, operations: PaymentOperations, clock: Clock) -> None:
        self._operations = operations
        self._pacing = Pacing(clock)

    async def IssueTicket(self, request: pb.IssueTicketRequest, _context: _Context) -> Any:
        call = current_call()
        request_id = check_name(request.request_id, "request_id")
        if request.order_id:
            check_name(request.order_id, "order_id")
        if not 0 <= request.ttl_s <= _MAX_TTL_S:
            raise InvalidArgument.of_field(
                "TTL_OUT_OF_RANGE", "ttl_s", f"ttl_s is 1 to {_MAX_TTL_S}, or 0 for {_DEFAULT_TTL_S}"
            )
        payload = translate.fingerprint_without(request, "request_id")
        answer = await self._operations.issue_ticket(
            call, request_id, request.order_id, request.ttl_s or _DEFAULT_TTL_S, payload
        )
        return reply(call, answer)

    async def Pay(self, request: pb.PayRequest, _context: _Context) -> Any:
        call = current_call()
        command = PayCommand(
            ticket_id=check_name(request.ticket_id, "ticket_id"),
            source=translate.enum_in(_SOURCE_BY_NUMBER, request.source, "source"),
            amount=translate.money_in(request.amount) if request.HasField("amount") else None,
            payee_account_id=request.payee_account_id
            and refuse_card_number(check_account(request.payee_account_id, "payee_account_id"), "payee_account_id"),
            customer_id=request.customer_id
            and refuse_card_number(check_name(request.customer_id, "customer_id"), "customer_id"),
            memo=refuse_card_number(check_text(request.memo, "memo"), "memo"),
            fingerprint=translate.fingerprint_without(request, "ticket_id"),
            card=_card(request.card, request.source),
        )
        with self._pacing.single_call():
            return reply(call, await self._operations.pay(call, command))

    async def Settle(self, request: pb.SettleRequest, context: _Context) -> Any:
        with self._pacing.single_call():
            return await self._settle(request, context)

    async def _settle(self, request: pb.SettleRequest, _context: _Context) -> Any:
        call = current_call()
        command = SettleCommand(
            request_id=check_name(request.request_id, "request_id"),
            order_id=check_name(request.order_id, "order_id"),
            source=translate.enum_in(_SOURCE_BY_NUMBER, request.source, "source"),
            memo=refuse_card_number(check_text(request.memo, "memo"), "memo"),
            fingerprint=translate.fingerprint_without(request, "request_id"),
            card=_card(request.card, request.source),
        )
        return reply(call, await self._operations.settle(call, command))

    async def SettleBatch(self, request: pb.SettleBatchRequest, _context: _Context) -> pb.SettleBatchResponse:
        check_batch(request.requests)
        call = current_call()

        async def part(requests: Sequence[pb.SettleRequest]) -> list[pb.SettleOutcome]:
            return await serve_each(requests, self._settle, pb.SettleOutcome)

        return pb.SettleBatchResponse(outcomes=await self._pacing.serve(request.requests, call.deadline, part))

    async def Reverse(self, request: pb.ReverseRequest, _context: _Context) -> Any:
        call = current_call()
        command = ReverseCommand(
            request_id=check_name(request.request_id, "request_id"),
            payment_id=check_name(request.payment_id, "payment_id"),
            reason=refuse_card_number(check_reason(request.reason, "reason"), "reason"),
            fingerprint=translate.fingerprint_without(request, "request_id"),
        )
        with self._pacing.single_call():
            return reply(call, await self._operations.reverse(call, command))

    async def Park(self, request: pb.ParkRequest, _context: _Context) -> Any:
        call = current_call()
        command = ParkCommand(
            request_id=check_name(request.request_id, "request_id"),
            payment_id=check_name(request.payment_id, "payment_id"),
            reason=refuse_card_number(check_reason(request.reason, "reason"), "reason"),
            fingerprint=translate.fingerprint_without(request, "request_id"),
        )
        with self._pacing.single_call():
            return reply(call, await self._operations.park(call, command))

    async def GetPayment(self, request: pb.GetPaymentRequest, _context: _Context) -> pb.GetPaymentResponse:
        call = current_call()
        payment = await self._operations.get(call, check_name(request.payment_id, "payment_id"))
        return pb.GetPaymentResponse(payment=_shown(payment, call.principal))

    async def GetPaymentHistory(
        self, request: pb.GetPaymentHistoryRequest, _context: _Context
    ) -> pb.GetPaymentHistoryResponse:
        payment_id, call = check_name(request.payment_id, "payment_id"), current_call()
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.history(
                call, payment_id, after=key[0] if key else 0, limit=limit
            ),
            key_of=lambda event: (event.version,),
            out=_event_out,
        )
        return pb.GetPaymentHistoryResponse(events=page.rows, next_page_token=page.next_page_token)

    async def ListPayments(self, request: pb.ListPaymentsRequest, _context: _Context) -> pb.ListPaymentsResponse:
        which = Filter(
            state=translate.optional_enum_in(_STATE_BY_NUMBER, request.state, "state"),
            source=translate.optional_enum_in(_SOURCE_BY_NUMBER, request.source, "source"),
            order_id=request.order_id and check_name(request.order_id, "order_id"),
            needs_attention=request.needs_attention,
        )
        call = current_call()
        page = await pagination.read_page(
            request,
            key_types=(int, str),
            fetch=lambda key, limit: self._operations.page(call, which, limit=limit, after=key),
            key_of=lambda payment: (payment.created_at_ms, payment.payment_id),
            out=lambda payment: _shown(payment, call.principal),
        )
        return pb.ListPaymentsResponse(payments=page.rows, next_page_token=page.next_page_token)

    async def WatchPayments(
        self, request: pb.WatchPaymentsRequest, _context: _Context
    ) -> AsyncGenerator[pb.WatchPaymentsResponse, None]:
        position = check_text_form(request.position, "position")
        order_id = request.order_id and check_name(request.order_id, "order_id")
        call = current_call()
        async with aclosing(self._operations.watch(call, position, order_id)) as watched:
            async for seen in watched:
                payments = [_shown(payment, call.principal) for payment in seen.changes]
                yield pb.WatchPaymentsResponse(payments=payments, position=seen.position, lost=seen.lost)

    async def NotifyAcquirer(self, request: pb.NotifyAcquirerRequest, _context: _Context) -> pb.NotifyAcquirerResponse:
        await self._operations.notified(check_name(request.key, "key"))
        return pb.NotifyAcquirerResponse()


class PaymentResponses:
    """How answers look on the wire, for those who store them."""

    _MESSAGES: ClassVar[dict[str, Callable[[pb.Payment], Message]]] = {
        PAY: lambda payment: pb.PayResponse(payment=payment),
        SETTLE: lambda payment: pb.SettleResponse(payment=payment),
        REVERSE: lambda payment: pb.ReverseResponse(payment=payment),
        PARK: lambda payment: pb.ParkResponse(payment=payment),
    }

    def ticket(self, ticket_id: str, order_id: str, expires_at_ms: int) -> StoredResponse:
        """Return the answer to IssueTicket."""
        ticket = pb.Ticket(
            ticket_id=ticket_id, state=pb.TICKET_STATE_ISSUED, order_id=order_id, expires_at_ms=expires_at_ms
        )
        return StoredResponse(True, pb.IssueTicketResponse(ticket=ticket).SerializeToString())

    def payment(self, method: str, payment: Payment) -> StoredResponse:
        """Return the answer to Pay, Settle, Reverse or Park."""
        return StoredResponse(True, self._MESSAGES[method](_payment_out(payment)).SerializeToString())

    def refusal(self, error: CountinghouseError) -> StoredResponse:
        """Return a definitive refusal."""
        return StoredResponse(False, status.to_status(error).SerializeToString(deterministic=True))


def _card(token: str, source: int) -> str:
    if source != pb.SOURCE_CARD:
        if token:
            raise InvalidArgument.of_field("CARD_NOT_WANTED", "card", "leave card out, or make the source CARD")
        return ""
    return check_name(refuse_bare_number(token, "card"), "card")


def _event_out(event: PaymentEvent) -> pb.PaymentEvent:
    return pb.PaymentEvent(
        version=event.version,
        state=_STATES[event.state],
        actor=translate.clerk_out(event.actor) if event.actor else None,
        at_ms=event.at_ms,
        reason=event.reason,
        fence=translate.fence_out(event.fence) if event.fence else None,
    )


def _shown(payment: Payment, reader: Principal) -> pb.Payment:
    """Return a payment for a reader. A ticket is shown to its owner alone: it pays until the payment has ended."""
    shown = _payment_out(payment)
    if reader != payment.key.caller:
        shown.ticket_id = ""
    return shown


def _payment_out(payment: Payment) -> pb.Payment:
    return pb.Payment(
        payment_id=payment.payment_id,
        order_id=payment.order_id,
        round=payment.round,
        state=_STATES[payment.state],
        source=_SOURCES[payment.source],
        amount=translate.money_out(payment.amount) if payment.amount else None,
        payer_account_id=payment.payer_account_id,
        payee_account_id=payment.payee_account_id,
        clerk=translate.clerk_out(payment.clerk),
        journal_id=payment.journal_id,
        reversal_journal_id=payment.reversal_journal_id,
        decline_reason=payment.decline_reason,
        memo=payment.memo,
        ticket_id=payment.ticket_id,
        version=payment.version,
        created_at_ms=payment.created_at_ms,
        updated_at_ms=payment.updated_at_ms,
        settled_at_ms=payment.settled_at_ms,
        card=payment.card,
        attempt=payment.attempt,
        acquirer_key=payment.acquirer_key,
        attention=payment.attention,
    )
