"""OrderService on the wire: messages to the types of `model.py` and back; refuses malformed fields."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from grpc import aio

from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.order.v1 import order_pb2_grpc
from services.kernel.card_numbers import refuse_card_number
from services.kernel.errors import CountinghouseError, InvalidArgument
from services.kernel.idempotency import StoredResponse
from services.kernel.ids import check_name, check_text, check_text_form
from services.kernel.money import Money
from services.order.model import Order, OrderEvent, OrderLine, OrderState
from services.order.operations import OrderDraft, OrderOperations
from services.order.ports import OrderFilter
from services.runtime.grpc import pagination, status
from services.runtime.grpc.batching import serve_each
from services.runtime.grpc.context import Call, current_call
from services.runtime.grpc.interceptors import reply
from services.runtime.grpc.translate import (
    clerk_in,
    clerk_out,
    fence_in,
    fence_out,
    fingerprint_without,
    money_in,
    money_out,
    optional_enum_in,
    stored_message,
)

_Context = aio.ServicerContext[Any, Any]
_T = TypeVar("_T")

_STATES: dict[OrderState, pb.OrderState.ValueType] = {
    OrderState.UNPAID: pb.ORDER_STATE_UNPAID,
    OrderState.PAYING: pb.ORDER_STATE_PAYING,
    OrderState.PAID: pb.ORDER_STATE_PAID,
    OrderState.CANCELLED: pb.ORDER_STATE_CANCELLED,
}
_STATES_BY_NUMBER: dict[int, OrderState] = {int(number): state for state, number in _STATES.items()}


class OrderServicer(order_pb2_grpc.OrderServiceServicer):
    """See the proto for what each method promises."""

    def __init__(self, operations: OrderOperations) -> None:
        self._operations = operations

    async def CreateOrder(self, request: pb.CreateOrderRequest, _context: _Context) -> pb.CreateOrderResponse:
        draft = OrderDraft(
            order_id=refuse_card_number(check_name(request.order_id, "order_id"), "order_id")
            if request.order_id
            else "",
            customer_id=refuse_card_number(check_name(request.customer_id, "customer_id"), "customer_id"),
            amount=money_in(request.amount) if request.HasField("amount") else None,
            lines=tuple(_line_in(index, line) for index, line in enumerate(request.lines)),
        )
        request_id = check_name(request.request_id, "request_id")
        call = current_call()
        answer = await self._operations.create(call, request_id, fingerprint_without(request, "request_id"), draft)
        response: pb.CreateOrderResponse = reply(call, answer)
        return response

    async def GetOrder(self, request: pb.GetOrderRequest, _context: _Context) -> pb.GetOrderResponse:
        order = await self._operations.get(current_call(), check_name(request.order_id, "order_id"))
        return pb.GetOrderResponse(order=order_out(order))

    async def ListOrders(self, request: pb.ListOrdersRequest, _context: _Context) -> pb.ListOrdersResponse:
        which = OrderFilter(
            customer_id=check_name(request.customer_id, "customer_id") if request.customer_id else None,
            state=optional_enum_in(_STATES_BY_NUMBER, request.state, "state"),
        )
        call = current_call()
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.page(call, which, limit=limit, after=key and key[0]),
            key_of=lambda row: (row.place,),
            out=lambda row: order_out(row.order),
        )
        return pb.ListOrdersResponse(orders=page.rows, next_page_token=page.next_page_token)

    async def GetOrderHistory(
        self, request: pb.GetOrderHistoryRequest, _context: _Context
    ) -> pb.GetOrderHistoryResponse:
        order_id, call = check_name(request.order_id, "order_id"), current_call()
        page = await pagination.read_page(
            request,
            key_types=(int,),
            fetch=lambda key, limit: self._operations.history(call, order_id, after=key[0] if key else 0, limit=limit),
            key_of=lambda event: (event.version,),
            out=event_out,
        )
        return pb.GetOrderHistoryResponse(events=page.rows, next_page_token=page.next_page_token)

    async def WatchOrders(
        self, request: pb.WatchOrdersRequest, _context: _Context
    ) -> AsyncGenerator[pb.WatchOrdersResponse, None]:
        position = check_text_form(request.position, "position")
        order_id = request.order_id and check_name(request.order_id, "order_id")
        async with aclosing(self._operations.watch(current_call(), position, order_id)) as watched:
            async for seen in watched:
                orders = [order_out(replace(order, lines=())) for order in seen.changes]
                yield pb.WatchOrdersResponse(orders=orders, position=seen.position, lost=seen.lost)

    async def CancelOrder(self, request: pb.CancelOrderRequest, _context: _Context) -> pb.CancelOrderResponse:
        request_id = check_name(request.request_id, "request_id")
        order_id = check_name(request.order_id, "order_id")
        expected = request.expected_version
        if expected < 0:
            raise InvalidArgument.of_field(
                "VERSION_OUT_OF_RANGE",
                "expected_version",
                "expected_version is the version you saw, or 0 for any",
            )
        reason = refuse_card_number(check_text(request.reason, "reason"), "reason")
        call = current_call()
        answer = await self._operations.cancel(
            call, request_id, fingerprint_without(request, "request_id"), order_id, expected, reason
        )
        response: pb.CancelOrderResponse = reply(call, answer)
        return response

    async def ClaimOrder(self, request: pb.ClaimOrderRequest, _context: _Context) -> pb.ClaimOrderResponse:
        order_id, payment_id = _ids_in(request)
        call = current_call()
        order = await self._operations.claim(
            call,
            order_id,
            payment_id,
            fence_in(request.fence, required=True),
            call.on_behalf_of(clerk_in(request.clerk)),
        )
        return pb.ClaimOrderResponse(order=order_out(order))

    async def CompleteOrder(self, request: pb.CompleteOrderRequest, _context: _Context) -> pb.CompleteOrderResponse:
        order_id, payment_id = _ids_in(request)
        if request.settled_at_ms < 1:
            raise InvalidArgument.of_field(
                "FIELD_REQUIRED", "settled_at_ms", "settled_at_ms is required: Unix time in milliseconds"
            )
        call = current_call()
        settled_by = _of("settled_by", lambda: clerk_in(request.settled_by), instead_of="clerk")
        order = await self._operations.complete(
            call,
            order_id,
            payment_id,
            fence_in(request.fence, required=True),
            settled_by=call.on_behalf_of(settled_by),
            settled_at_ms=request.settled_at_ms,
        )
        return pb.CompleteOrderResponse(order=order_out(order))

    async def ClaimOrders(self, request: pb.ClaimOrdersRequest, _context: _Context) -> pb.ClaimOrdersResponse:
        outcomes = await serve_each(request.requests, self.ClaimOrder, pb.ClaimOrderOutcome)
        return pb.ClaimOrdersResponse(outcomes=outcomes)

    async def CompleteOrders(self, request: pb.CompleteOrdersRequest, _context: _Context) -> pb.CompleteOrdersResponse:
        outcomes = await serve_each(request.requests, self.CompleteOrder, pb.CompleteOrderOutcome)
        return pb.CompleteOrdersResponse(outcomes=outcomes)

    async def ReleaseOrder(self, request: pb.ReleaseOrderRequest, _context: _Context) -> pb.ReleaseOrderResponse:
        order_id, payment_id = _ids_in(request)
        call = current_call()
        order = await self._operations.release(
            call, order_id, payment_id, fence_in(request.fence, required=True), **_why_in(call, request)
        )
        return pb.ReleaseOrderResponse(order=order_out(order))

    async def ReopenOrder(self, request: pb.ReopenOrderRequest, _context: _Context) -> pb.ReopenOrderResponse:
        order_id, payment_id = _ids_in(request)
        call = current_call()
        order = await self._operations.reopen(
            call, order_id, payment_id, fence_in(request.fence, required=True), **_why_in(call, request)
        )
        return pb.ReopenOrderResponse(order=order_out(order))


class OrderResponses:
    """`ports.Responses` as serialized protobuf."""

    def created(self, order: Order) -> StoredResponse:
        return stored_message(pb.CreateOrderResponse(order=order_out(order)))

    def cancelled(self, order: Order) -> StoredResponse:
        return stored_message(pb.CancelOrderResponse(order=order_out(order)))

    def refusal(self, error: CountinghouseError) -> StoredResponse:
        return status.stored_refusal(error)


def order_out(order: Order) -> pb.Order:
    """Return the order as a message."""
    return pb.Order(
        order_id=order.order_id,
        customer_id=order.customer_id,
        state=_STATES[order.state],
        amount=money_out(order.amount),
        lines=[
            pb.OrderLine(description=line.description, quantity=line.quantity, unit_price=money_out(line.unit_price))
            for line in order.lines
        ],
        version=order.version,
        round=order.round,
        payment_id=order.payment_id,
        settled_by=None if order.settled_by is None else clerk_out(order.settled_by),
        settled_at_ms=order.settled_at_ms,
        created_at_ms=order.created_at_ms,
        updated_at_ms=order.updated_at_ms,
    )


def event_out(event: OrderEvent) -> pb.OrderEvent:
    """Return a change as a message."""
    return pb.OrderEvent(
        version=event.version,
        from_state=_STATES[event.from_state] if event.from_state else pb.ORDER_STATE_UNSPECIFIED,
        to_state=_STATES[event.to_state],
        round=event.round,
        actor=clerk_out(event.actor),
        at_ms=event.at_ms,
        reason=event.reason,
        payment_id=event.payment_id,
        fence=fence_out(event.fence) if event.fence else None,
    )


def _why_in(call: Call, request: pb.ReleaseOrderRequest | pb.ReopenOrderRequest) -> dict[str, Any]:
    """Return the actor and reason of a request to release or reopen an order; an earlier release sends neither."""
    actor = call.on_behalf_of(clerk_in(request.clerk)) if request.HasField("clerk") else None
    return {"actor": actor, "reason": check_text_form(request.reason, "reason")}


def _ids_in(
    request: pb.ClaimOrderRequest | pb.CompleteOrderRequest | pb.ReleaseOrderRequest | pb.ReopenOrderRequest,
) -> tuple[str, str]:
    return check_name(request.order_id, "order_id"), check_name(request.payment_id, "payment_id")


def _line_in(index: int, line: pb.OrderLine) -> OrderLine:
    def price() -> Money:
        return money_in(line.unit_price)

    unit_price = _of(f"lines[{index}].unit_price", price, instead_of="amount")
    place = f"lines[{index}].description"
    description = refuse_card_number(check_text(line.description, place, required=True), place)
    return _of(f"lines[{index}]", lambda: OrderLine(description, line.quantity, unit_price))


def _of(place: str, make: Callable[[], _T], *, instead_of: str = "") -> _T:
    """Return what `make` returns; an error names the field by its place in the request."""
    try:
        return make()
    except InvalidArgument as error:
        error.fields = tuple(
            (f"{place}.{field.removeprefix(instead_of).lstrip('.')}", problem) for field, problem in error.fields
        )
        raise
