"""PaymentService on the wire: which fields are refused for their form, before anything is stored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.type.v1 import money_pb2
from services.kernel.errors import InvalidArgument, NotFound
from services.kernel.principal import Principal, Role
from services.payment.servicer import PaymentServicer
from services.runtime.grpc.context import serving
from tests.unit.payment.cluster import LI, MEI, WANG, InMemoryCluster, payment_in

CONTEXT: Any = None  # the servicer needs nothing of grpc's
CARD_NUMBERS = (
    "4242424242424242",
    "4242-4242-4242-4242",
    "pan:4242 4242 4242 4242",
    "４２４２４２４２４２４２４２４２",
)


def settle(**fields: Any) -> pb.SettleRequest:
    asked: dict[str, Any] = {"request_id": "s1", "order_id": "o1", "source": pb.SOURCE_DRAWER}
    return pb.SettleRequest(**(asked | fields))


def pay(**fields: Any) -> pb.PayRequest:
    asked: dict[str, Any] = {
        "ticket_id": "t1",
        "source": pb.SOURCE_DRAWER,
        "amount": money_pb2.Money(minor_units=300, currency_code="CNY"),
        "payee_account_id": "sales:CNY",
    }
    return pb.PayRequest(**(asked | fields))


def reverse(**fields: Any) -> pb.ReverseRequest:
    asked: dict[str, Any] = {"request_id": "v1", "payment_id": "p1", "reason": "wrong order"}
    return pb.ReverseRequest(**(asked | fields))


async def test_ticket_of_a_payment_is_shown_to_its_owner_alone() -> None:
    """It pays until the payment has ended: staff who read it could pay for the customer."""
    cluster = InMemoryCluster()
    one = cluster.instance()
    servicer = PaymentServicer(one.operations, cluster.clock)
    ticket = await cluster.ticket(one, clerk=MEI)
    payment_id = payment_in(await cluster.pay(one, ticket, clerk=MEI)).payment_id
    for reader, seen in ((MEI, ticket), (LI, ""), (WANG, "")):
        serving(cluster.call(reader))
        payment = (await servicer.GetPayment(pb.GetPaymentRequest(payment_id=payment_id), CONTEXT)).payment
        (listed,) = (await servicer.ListPayments(pb.ListPaymentsRequest(), CONTEXT)).payments
        assert (payment.ticket_id, listed.ticket_id) == (seen, seen)


async def refusal_of(request: Any) -> InvalidArgument:
    cluster = InMemoryCluster()
    servicer = PaymentServicer(cluster.instance().operations, cluster.clock)
    serving(cluster.call(WANG if isinstance(request, pb.ReverseRequest) else LI))
    method = getattr(servicer, type(request).__name__.removesuffix("Request"))
    with pytest.raises(InvalidArgument) as refusal:
        await method(request, CONTEXT)
    assert not cluster.store.requests.rows
    return refusal.value


@pytest.mark.parametrize("reason", ["", " ", "\u3000", "\u200b\ufeff", "\u00a0\u2028", "\u2800\u3164"])
async def test_reverse_without_a_reason_that_can_be_seen_is_refused(reason: str) -> None:
    """Blanks of any script are none."""
    refusal = await refusal_of(reverse(reason=reason))
    assert (refusal.reason, refusal.fields[0][0]) == ("FIELD_REQUIRED", "reason")


async def test_get_payment_history_names_who_reversed_it_and_why() -> None:
    """As the proto says, page after page."""
    cluster = InMemoryCluster()
    await cluster.new_order()
    servicer = PaymentServicer(cluster.instance().operations, cluster.clock)
    one = cluster.instance()
    payment_id = payment_in(await cluster.settle(one)).payment_id
    await cluster.reverse(one, payment_id)
    serving(cluster.call(WANG))
    seen: list[pb.PaymentEvent] = []
    token = ""
    while True:
        request = pb.GetPaymentHistoryRequest(payment_id=payment_id, page_size=2, page_token=token)
        page = await servicer.GetPaymentHistory(request, CONTEXT)
        seen += page.events
        token = page.next_page_token
        if not token:
            break
    assert [
        (event.version, pb.PaymentState.Name(event.state)[14:], event.actor.name, event.reason) for event in seen
    ] == [
        (1, "CREATED", "li", ""),
        (2, "SUBMITTED", "li", ""),
        (3, "SUCCEEDED", "li", ""),
        (4, "REVERSING", "wang", "wrong order"),
        (5, "REVERSED", "wang", "wrong order"),
    ]
    assert all(event.at_ms for event in seen)
    assert cluster.orders.events[-1].actor == WANG
    assert cluster.orders.events[-1].reason == "wrong order"


async def test_batch_beside_a_single_call_has_the_outcome_of_each_order_in_its_place() -> None:
    """The single call is still under way when the batch comes, so that it is served in parts."""
    cluster = InMemoryCluster()
    orders = [await cluster.new_order(f"o{number}") for number in range(20)]
    one = cluster.instance()
    servicer = PaymentServicer(one.operations, cluster.clock)
    reached, may_post = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        reached.set()
        await may_post.wait()

    one.failpoints.at["submitted"] = wait
    serving(cluster.call(LI))
    single = asyncio.create_task(servicer.Settle(settle(order_id=orders[19]), CONTEXT))
    await reached.wait()
    requests = [
        settle(request_id=f"b-{order_id}", order_id=order_id, source=pb.SOURCE_BANK) for order_id in orders[:19]
    ]
    serving(cluster.call(WANG))
    answer = await servicer.SettleBatch(pb.SettleBatchRequest(requests=requests), CONTEXT)
    may_post.set()
    await single
    assert [outcome.response.payment.order_id for outcome in answer.outcomes] == orders[:19]


async def test_get_payment_history_of_another_customers_payment_is_not_found() -> None:
    cluster = InMemoryCluster()
    await cluster.new_order()
    payment_id = payment_in(await cluster.settle(cluster.instance())).payment_id
    serving(cluster.call(Principal("li", Role.CUSTOMER)))
    with pytest.raises(NotFound):
        await PaymentServicer(cluster.instance().operations, cluster.clock).GetPaymentHistory(
            pb.GetPaymentHistoryRequest(payment_id=payment_id), CONTEXT
        )


@pytest.mark.parametrize("number", CARD_NUMBERS)
@pytest.mark.parametrize(
    ("make", "field"), [(settle, "memo"), (pay, "memo"), (reverse, "reason"), (settle, "card"), (pay, "card")]
)
async def test_card_number_in_text_or_card_is_refused(make: Any, field: str, number: str) -> None:
    """With separators or without, in the digits of any script; the refusal does not repeat it."""
    source = {"source": pb.SOURCE_CARD} if field == "card" else {}
    refusal = await refusal_of(make(**{field: number}, **source))
    assert (refusal.reason, refusal.fields[0][0]) == ("CARD_NUMBER_REFUSED", field)
    assert number not in str(refusal)


@pytest.mark.parametrize("field", ["customer_id", "payee_account_id"])
@pytest.mark.parametrize("number", ["4242424242424242", "wallet:4242-4242-4242-4242"])
async def test_card_number_in_a_name_is_refused(field: str, number: str) -> None:
    refusal = await refusal_of(pay(**{field: number}))
    assert (refusal.reason, refusal.fields[0][0]) == ("CARD_NUMBER_REFUSED", field)
