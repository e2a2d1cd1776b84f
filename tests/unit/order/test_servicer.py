"""OrderService on the wire: which fields are taken, which are refused, and what an answer looks like."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from countinghouse.order.v1 import order_pb2 as pb
from countinghouse.type.v1 import clerk_pb2, fence_pb2, money_pb2
from services.kernel.clock import CallDeadline
from services.kernel.errors import InvalidArgument
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import OrderLine
from services.order.operations import OrderOperations
from services.order.servicer import OrderResponses, OrderServicer
from services.runtime.grpc import status
from services.runtime.grpc.context import Call, current_call, serving
from services.runtime.grpc.failpoints import FailpointSet
from services.runtime.grpc.interceptors import StoredRefusal
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.order_store import FakeOrderStore

LI = Principal("li", Role.CASHIER)
FENCE = fence_pb2.Fence(generation=1, token=7)
CLERK = clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER)
CNY_100 = money_pb2.Money(minor_units=100, currency_code="CNY")
CONTEXT: Any = None  # the servicer needs nothing of grpc's


@pytest.fixture
def servicer() -> OrderServicer:
    """On a fake store, in the middle of a cashier's call."""
    clock = ManualClock()
    operations = OrderOperations(FakeOrderStore(), clock, SeededIds(1), FailpointSet(enabled=False), OrderResponses())
    serving(Call("/x/y", LI, CallDeadline.after(1, clock), represented=lambda named, _caller: named))
    return OrderServicer(operations)


def creation(**fields: Any) -> pb.CreateOrderRequest:
    asked: dict[str, Any] = {"request_id": "r1", "order_id": "o1", "customer_id": "mei", "amount": CNY_100}
    return pb.CreateOrderRequest(**(asked | fields))


def sent(answer: object) -> bytes:
    """What goes on the wire: a stored answer is bytes already."""
    assert isinstance(answer, bytes)
    return answer


async def created(servicer: OrderServicer, **fields: Any) -> pb.Order:
    return pb.CreateOrderResponse.FromString(sent(await servicer.CreateOrder(creation(**fields), CONTEXT))).order


async def test_created_order_has_every_field(servicer: OrderServicer) -> None:
    """Every field of the message is filled as the proto says."""
    line = pb.OrderLine(description="tea", quantity=2, unit_price=money_pb2.Money(minor_units=50, currency_code="CNY"))
    now_ms = ManualClock().now_ms()
    expected = pb.Order(
        order_id="o1",
        customer_id="mei",
        state=pb.ORDER_STATE_UNPAID,
        amount=CNY_100,
        lines=[line],
        version=1,
        round=1,
        created_at_ms=now_ms,
        updated_at_ms=now_ms,
    )
    assert await created(servicer, lines=[line]) == expected
    assert (await servicer.GetOrder(pb.GetOrderRequest(order_id="o1"), CONTEXT)).order == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"order_id": "4242-4242-4242-4242"}, "order_id"),
        ({"customer_id": "pan:4242424242424242"}, "customer_id"),
        (
            {"lines": [pb.OrderLine(description="card ４２４２ 4242 4242 4242", quantity=1, unit_price=CNY_100)]},
            "lines[0].description",
        ),
    ],
)
async def test_create_order_card_number_in_text_or_name_is_refused(
    servicer: OrderServicer, fields: dict[str, Any], field: str
) -> None:
    """Before anything is stored."""
    with pytest.raises(InvalidArgument) as refusal:
        await servicer.CreateOrder(creation(**fields), CONTEXT)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("CARD_NUMBER_REFUSED", field)
    assert (await created(servicer)).order_id == "o1"


async def test_amount_may_be_left_to_the_lines(servicer: OrderServicer) -> None:
    """Left out is not the same as zero."""
    order = await created(
        servicer, amount=None, lines=[pb.OrderLine(description="tea", quantity=3, unit_price=CNY_100)]
    )
    assert order.amount.minor_units == 300


async def test_repeat_is_replayed_and_marked(servicer: OrderServicer) -> None:
    """The same bytes; the call remembers that they were stored."""
    first = await servicer.CreateOrder(creation(), CONTEXT)
    assert not current_call().replayed
    assert await servicer.CreateOrder(creation(), CONTEXT) == first
    assert current_call().replayed


async def test_refusal_is_sent_as_it_was_stored(servicer: OrderServicer) -> None:
    """The first time and ever after: the same status, only the mark differs."""
    await created(servicer)
    statuses = []
    for replayed in (False, True):
        with pytest.raises(StoredRefusal) as refusal:
            await servicer.CreateOrder(creation(request_id="r2"), CONTEXT)
        assert current_call().replayed is replayed
        statuses.append(refusal.value.status.SerializeToString(deterministic=True))
    assert statuses[0] == statuses[1]
    assert status.from_status(refusal.value.status).reason == "ORDER_EXISTS"


async def test_fingerprint_covers_everything_but_the_request_id(servicer: OrderServicer) -> None:
    """Any other field makes it another payload; so does asking for a name instead of leaving it out."""
    await created(servicer)
    for other in (
        {"customer_id": "tom"},
        {"amount": money_pb2.Money(minor_units=101, currency_code="CNY")},
        {"order_id": ""},
        {"lines": [pb.OrderLine(description="tea", quantity=1, unit_price=CNY_100)]},
    ):
        with pytest.raises(InvalidArgument) as refusal:
            await servicer.CreateOrder(creation(**other), CONTEXT)
        assert refusal.value.reason == "IDEMPOTENCY_KEY_MISMATCH"


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"request_id": ""}, "FIELD_REQUIRED", "request_id"),
        ({"request_id": "a b"}, "FIELD_MALFORMED", "request_id"),
        ({"request_id": "x" * 65}, "FIELD_MALFORMED", "request_id"),
        ({"order_id": "ö"}, "FIELD_MALFORMED", "order_id"),
        ({"customer_id": ""}, "FIELD_REQUIRED", "customer_id"),
        ({"amount": None}, "AMOUNT_REQUIRED", "amount"),
        ({"amount": money_pb2.Money(currency_code="CNY")}, "AMOUNT_OUT_OF_RANGE", "amount.minor_units"),
        (
            {"amount": money_pb2.Money(minor_units=-5, currency_code="CNY")},
            "AMOUNT_OUT_OF_RANGE",
            "amount.minor_units",
        ),
        (
            {"amount": money_pb2.Money(minor_units=10**15 + 1, currency_code="CNY")},
            "AMOUNT_OUT_OF_RANGE",
            "amount.minor_units",
        ),
        (
            {"amount": money_pb2.Money(minor_units=5, currency_code="yuan")},
            "CURRENCY_INVALID",
            "amount.currency_code",
        ),
        (
            {"lines": [pb.OrderLine(quantity=1, unit_price=CNY_100)]},
            "FIELD_REQUIRED",
            "lines[0].description",
        ),
        (
            {"lines": [pb.OrderLine(description="tea", quantity=1, unit_price=CNY_100), pb.OrderLine(description="x")]},
            "CURRENCY_INVALID",
            "lines[1].unit_price.currency_code",
        ),
        (
            {"lines": [pb.OrderLine(description="tea", unit_price=CNY_100)]},
            "QUANTITY_OUT_OF_RANGE",
            "lines[0].quantity",
        ),
        (
            {"lines": [pb.OrderLine(description="tea", quantity=2, unit_price=CNY_100)]},
            "AMOUNT_MISMATCH",
            "amount",
        ),
    ],
)
async def test_malformed_orders_are_refused(
    servicer: OrderServicer, fields: dict[str, Any], reason: str, field: str
) -> None:
    """With the reason, and the field by its place in the request."""
    with pytest.raises(InvalidArgument) as refusal:
        await servicer.CreateOrder(creation(**fields), CONTEXT)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == (reason, field)


async def test_pages_follow_each_other(servicer: OrderServicer) -> None:
    """The token of one page begins the next; the last has none."""
    for number in range(3):
        await created(servicer, request_id=f"r{number}", order_id=f"o{number}")
    first = await servicer.ListOrders(pb.ListOrdersRequest(page_size=2), CONTEXT)
    second = await servicer.ListOrders(pb.ListOrdersRequest(page_size=2, page_token=first.next_page_token), CONTEXT)
    assert [order.order_id for order in (*first.orders, *second.orders)] == ["o2", "o1", "o0"]
    assert second.next_page_token == ""


async def test_orders_are_filtered_by_state(servicer: OrderServicer) -> None:
    """Unspecified is any."""
    await created(servicer)
    for state, count in ((pb.ORDER_STATE_UNSPECIFIED, 1), (pb.ORDER_STATE_UNPAID, 1), (pb.ORDER_STATE_PAID, 0)):
        assert len((await servicer.ListOrders(pb.ListOrdersRequest(state=state), CONTEXT)).orders) == count


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (pb.ListOrdersRequest(page_size=-1), "PAGE_SIZE_OUT_OF_RANGE"),
        (pb.ListOrdersRequest(page_size=1_001), "PAGE_SIZE_OUT_OF_RANGE"),
        (pb.ListOrdersRequest(page_token="?"), "PAGE_TOKEN_INVALID"),
        (pb.ListOrdersRequest(state=99), "STATE_UNKNOWN"),  # type: ignore[arg-type]
        (pb.ListOrdersRequest(customer_id="a b"), "FIELD_MALFORMED"),
    ],
)
async def test_malformed_lists_are_refused(
    servicer: OrderServicer, request_: pb.ListOrdersRequest, reason: str
) -> None:
    """With the reason."""
    with pytest.raises(InvalidArgument) as refusal:
        await servicer.ListOrders(request_, CONTEXT)
    assert refusal.value.reason == reason


async def test_order_is_settled_and_reopened(servicer: OrderServicer) -> None:
    """The four calls of a payment, as the payment service makes them."""
    await created(servicer)
    asked: dict[str, Any] = {"order_id": "o1", "payment_id": "p1", "fence": FENCE}
    claimed = (await servicer.ClaimOrder(pb.ClaimOrderRequest(clerk=CLERK, **asked), CONTEXT)).order
    assert (claimed.state, claimed.payment_id) == (pb.ORDER_STATE_PAYING, "p1")
    completion = pb.CompleteOrderRequest(settled_by=CLERK, settled_at_ms=123, **asked)
    paid = (await servicer.CompleteOrder(completion, CONTEXT)).order
    assert (paid.state, paid.settled_by, paid.settled_at_ms) == (pb.ORDER_STATE_PAID, CLERK, 123)
    again = (await servicer.ReopenOrder(pb.ReopenOrderRequest(**asked), CONTEXT)).order
    assert (again.state, again.round, again.HasField("settled_by")) == (pb.ORDER_STATE_UNPAID, 2, False)
    await servicer.ClaimOrder(pb.ClaimOrderRequest(clerk=CLERK, **asked), CONTEXT)
    freed = (await servicer.ReleaseOrder(pb.ReleaseOrderRequest(**asked), CONTEXT)).order
    assert (freed.state, freed.round, freed.version) == (pb.ORDER_STATE_UNPAID, 2, 6)


async def test_calls_record_for_whom_the_service_may_act(servicer: OrderServicer) -> None:
    """Whom it names may be another; the orders see only what the call says of that."""
    serving(replace(current_call(), represented=lambda _named, caller: caller))
    await created(servicer)
    asked: dict[str, Any] = {"order_id": "o1", "payment_id": "p1", "fence": FENCE}
    wang = clerk_pb2.Clerk(name="wang", role=clerk_pb2.ROLE_ACCOUNTANT)
    claim = pb.ClaimOrderRequest(clerk=wang, **asked)
    await servicer.ClaimOrder(claim, CONTEXT)
    await servicer.ReleaseOrder(pb.ReleaseOrderRequest(clerk=wang, **asked), CONTEXT)
    await servicer.ClaimOrder(claim, CONTEXT)
    completion = pb.CompleteOrderRequest(settled_by=wang, settled_at_ms=123, **asked)
    assert (await servicer.CompleteOrder(completion, CONTEXT)).order.settled_by == CLERK
    await servicer.ReopenOrder(pb.ReopenOrderRequest(clerk=wang, **asked), CONTEXT)
    history = await servicer.GetOrderHistory(pb.GetOrderHistoryRequest(order_id="o1"), CONTEXT)
    assert [event.actor for event in history.events] == [CLERK] * 6


async def test_order_is_cancelled(servicer: OrderServicer) -> None:
    """At the version the caller saw."""
    await created(servicer)
    answer = await servicer.CancelOrder(
        pb.CancelOrderRequest(request_id="c1", order_id="o1", expected_version=1, reason="ordered twice"), CONTEXT
    )
    assert pb.CancelOrderResponse.FromString(sent(answer)).order.state == pb.ORDER_STATE_CANCELLED
    with pytest.raises(InvalidArgument):
        await servicer.CancelOrder(
            pb.CancelOrderRequest(request_id="c2", order_id="o1", expected_version=-1, reason="ordered twice"), CONTEXT
        )


@pytest.mark.parametrize(
    ("left_out", "field"),
    [
        ("order_id", "order_id"),
        ("payment_id", "payment_id"),
        ("fence", "fence"),
        ("settled_by", "settled_by.name"),
        ("settled_at_ms", "settled_at_ms"),
    ],
)
async def test_missing_field_of_a_payments_call_is_refused(servicer: OrderServicer, left_out: str, field: str) -> None:
    """What the proto calls required is refused when it is missing, by its name."""
    await created(servicer)
    asked: dict[str, Any] = {"order_id": "o1", "payment_id": "p1", "fence": FENCE}
    methods: list[tuple[Callable[[Any, Any], Awaitable[object]], Any]] = [
        (
            servicer.CompleteOrder,
            pb.CompleteOrderRequest(**{**asked, "settled_by": CLERK, "settled_at_ms": 1}),
        )
    ]
    if left_out in asked:
        methods += [
            (servicer.ClaimOrder, pb.ClaimOrderRequest(clerk=CLERK, **asked)),
            (servicer.ReleaseOrder, pb.ReleaseOrderRequest(**asked)),
            (servicer.ReopenOrder, pb.ReopenOrderRequest(**asked)),
        ]
    for method, request in methods:
        request.ClearField(left_out)
        with pytest.raises(InvalidArgument) as refusal:
            await method(request, CONTEXT)
        assert refusal.value.fields[0][0] == field


async def test_claim_names_a_clerk_with_a_role(servicer: OrderServicer) -> None:
    """The name alone is not enough."""
    request = pb.ClaimOrderRequest(order_id="o1", payment_id="p1", fence=FENCE, clerk=clerk_pb2.Clerk(name="li"))
    with pytest.raises(InvalidArgument, match="role"):
        await servicer.ClaimOrder(request, CONTEXT)


async def test_list_of_large_orders_is_cut_by_bytes(servicer: OrderServicer) -> None:
    """Twenty orders of 100 long lines are 1.7 MB: every page fits a message, and every order is listed once."""
    line = pb.OrderLine(
        description="𠮷" * 200, quantity=1, unit_price=money_pb2.Money(minor_units=1, currency_code="CNY")
    )
    for number in range(20):
        order_id = f"o{number}"
        await created(servicer, request_id=order_id, order_id=order_id, amount=None, lines=[line] * 100)
    names, token = [], ""
    while True:
        page = await servicer.ListOrders(pb.ListOrdersRequest(page_size=1_000, page_token=token), CONTEXT)
        assert 0 < page.ByteSize() < 1 << 20
        names += [order.order_id for order in page.orders]
        token = page.next_page_token
        if not token:
            break
    assert names == [f"o{number}" for number in reversed(range(20))]


async def test_page_token_of_another_filter_is_refused(servicer: OrderServicer) -> None:
    """It would begin somewhere in another list."""
    for number in range(2):
        await created(servicer, request_id=f"r{number}", order_id=f"o{number}")
    token = (await servicer.ListOrders(pb.ListOrdersRequest(page_size=1), CONTEXT)).next_page_token
    assert token
    for request in (
        pb.ListOrdersRequest(page_token=token, customer_id="mei"),
        pb.ListOrdersRequest(page_token=token, state=pb.ORDER_STATE_UNPAID),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            await servicer.ListOrders(request, CONTEXT)
        assert refusal.value.reason == "PAGE_TOKEN_INVALID"


@pytest.mark.parametrize("code", ["RMB", "eur", "XXX", "XTS"])
async def test_order_in_a_currency_outside_iso_4217_is_refused(servicer: OrderServicer, code: str) -> None:
    """By its amount and by its lines."""
    price = money_pb2.Money(minor_units=1, currency_code=code)
    line = pb.OrderLine(description="tea", quantity=1, unit_price=price)
    for request in (creation(amount=price), creation(amount=None, lines=[line])):
        with pytest.raises(InvalidArgument) as refusal:
            await servicer.CreateOrder(request, CONTEXT)
        assert refusal.value.reason == "CURRENCY_INVALID"


@pytest.mark.parametrize("description", ["tea\x9b", "tea\u202e", "tea\u200b", "tea\u2028"])
async def test_order_line_with_a_hidden_character_is_refused(servicer: OrderServicer, description: str) -> None:
    """The field at fault is named; an order of before that has one can still be read."""
    price = money_pb2.Money(minor_units=1, currency_code="CNY")
    line = pb.OrderLine(description=description, quantity=1, unit_price=price)
    with pytest.raises(InvalidArgument) as refusal:
        await servicer.CreateOrder(creation(amount=None, lines=[line]), CONTEXT)
    assert refusal.value.fields[0][0] == "lines[0].description"
    assert OrderLine(description, 1, Money(1, "RMB")).description == description
