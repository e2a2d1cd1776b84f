"""What a run asks the services, and what it makes of their answers."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.type.v1 import clerk_pb2, money_pb2
from services.cli.order_file import OrderLine
from services.cli.result_file import Outcome, Result
from services.cli.settling import Preview, Settling, request_id_of
from services.kernel.errors import (
    Aborted,
    AlreadyExists,
    CountinghouseError,
    FailedPrecondition,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    Unavailable,
)
from services.kernel.ids import check_name
from services.runtime.grpc.status import to_status

PAID = AlreadyExists("ORDER_ALREADY_PAID", "paid by li.", metadata={"payment_id": "pay_0"})


class Services:
    """Answers a batch with scripted outcomes, and reads of orders with scripted orders."""

    def __init__(self, outcomes: list[pb.SettleOutcome] | None = None, **orders: Any) -> None:
        self.sent: list[Any] = []
        self._outcomes = outcomes or []
        self._orders = orders

    async def send(self, service: str, method: str, request: Message, within_s: float) -> Any:
        assert within_s > 0
        asked: Any = request
        if method == "GetOrder":
            answer = self._orders.get(asked.order_id, NotFound("ORDER_NOT_FOUND", "there is none"))
            if isinstance(answer, CountinghouseError):
                raise answer
            return order_pb2.GetOrderResponse(order=answer)
        if method == "GetPayment":
            run_id = "r1" if asked.payment_id == "pay_8" else "r2"
            return pb.GetPaymentResponse(payment=pb.Payment(memo=f"run {run_id}"))
        assert (service, method) == ("payment", "SettleBatch")
        self.sent.append(asked)
        return pb.SettleBatchResponse(outcomes=self._outcomes)


def served(state: pb.PaymentState.ValueType, *, replayed: bool = False) -> pb.SettleOutcome:
    payment = pb.Payment(payment_id="pay_1", state=state)
    return pb.SettleOutcome(response=pb.SettleResponse(payment=payment), replayed=replayed)


def refused(error: CountinghouseError, *, replayed: bool = False) -> pb.SettleOutcome:
    return pb.SettleOutcome(error=to_status(error).SerializeToString(), replayed=replayed)


def order(state: order_pb2.OrderState.ValueType = order_pb2.ORDER_STATE_UNPAID, **fields: Any) -> order_pb2.Order:
    return order_pb2.Order(state=state, amount=money_pb2.Money(minor_units=1250, currency_code="CNY"), **fields)


async def settled(outcome: pb.SettleOutcome) -> Result:
    (result,) = await Settling(Services([outcome]), "r1")([OrderLine(2, "o1")])
    return result


async def test_batch_settles_each_order_from_the_bank_under_the_request_id_of_the_run() -> None:
    services = Services([served(pb.PAYMENT_STATE_SUCCEEDED)] * 2)
    await Settling(services, "r1")([OrderLine(2, "o1"), OrderLine(3, "o2")])
    (batch,) = services.sent
    assert list(batch.requests) == [
        pb.SettleRequest(request_id=f"r1:{order_id}", order_id=order_id, source=pb.SOURCE_BANK, memo="run r1")
        for order_id in ("o1", "o2")
    ]


@pytest.mark.parametrize(
    ("outcome", "kind", "says", "payment_id"),
    [
        (served(pb.PAYMENT_STATE_SUCCEEDED), Outcome.SETTLED, "", "pay_1"),
        (served(pb.PAYMENT_STATE_SUCCEEDED, replayed=True), Outcome.REPLAYED, "", "pay_1"),
        (served(pb.PAYMENT_STATE_UNKNOWN), Outcome.OPEN, "UNKNOWN", "pay_1"),
        (served(pb.PAYMENT_STATE_CREATED, replayed=True), Outcome.OPEN, "CREATED", "pay_1"),
        (served(pb.PAYMENT_STATE_DECLINED), Outcome.REFUSED, "DECLINED", "pay_1"),
        (refused(PAID), Outcome.SKIPPED, "paid by li.", "pay_0"),
        (refused(PAID, replayed=True), Outcome.SKIPPED, "stored answer to run r1", "pay_0"),
        (refused(NotFound("ORDER_NOT_FOUND", "none")), Outcome.SKIPPED, "none", ""),
        (refused(FailedPrecondition("ORDER_NOT_PAYABLE", "cancelled")), Outcome.SKIPPED, "cancelled", ""),
        (refused(FailedPrecondition("ACCOUNT_CLOSED", "closed")), Outcome.REFUSED, "closed", ""),
        (refused(PermissionDenied("SOURCE_NOT_ALLOWED", "no")), Outcome.REFUSED, "no", ""),
        (refused(Aborted("ORDER_LOCKED", "held", retry_after_ms=5)), Outcome.OPEN, "held", ""),
        (refused(Unavailable("PEER_BUSY", "busy")), Outcome.OPEN, "busy", ""),
        (refused(OutcomeUnknown("OUTCOME_UNKNOWN", "lost")), Outcome.OPEN, "lost", ""),
        (pb.SettleOutcome(error=b"\xff"), Outcome.OPEN, "no answer", ""),
    ],
)
async def test_outcome_of_an_order_is_told_with_its_reason(
    outcome: pb.SettleOutcome, kind: Outcome, says: str, payment_id: str
) -> None:
    result = await settled(outcome)
    assert (result.line, result.order_id, result.outcome) == (2, "o1", kind)
    assert says in result.reason
    assert bool(result.reason) == bool(says)
    if kind is not Outcome.OPEN:
        assert result.payment_id == payment_id


@pytest.mark.parametrize("replayed", [False, True])
async def test_settle_that_ends_in_a_state_that_this_version_does_not_know_is_open(replayed: bool) -> None:
    """A newer service may have it."""
    result = await settled(served(99, replayed=replayed))  # type: ignore[arg-type]
    assert (result.outcome, result.reason) == (Outcome.OPEN, "its payment is 99: not known yet")
    assert result.payment_id == "pay_1"


async def test_preview_skips_an_order_in_a_state_that_this_version_does_not_know() -> None:
    services = Services(o1=order(99))  # type: ignore[arg-type]
    (result,) = await Preview(services, "r1")([OrderLine(2, "o1")])
    assert (result.outcome, result.reason) == (Outcome.WOULD_BE_SKIPPED, "it is 99")


async def test_answer_of_another_length_is_no_answer() -> None:
    """Which outcome is whose is not known."""
    with pytest.raises(OutcomeUnknown):
        await Settling(Services([]), "r1")([OrderLine(2, "o1")])


@pytest.mark.parametrize(
    ("amount", "currency", "says"),
    [
        ("12.50", "", ""),
        ("12,50", "CNY", ""),
        ("12.5", "CNY", ""),
        ("12.51", "", "the order is 12.50 CNY, and the line 12.51 CNY"),
        ("1,250", "", "is not an amount"),
        ("12.50", "JPY", "in another currency"),
        ("", "JPY", "in another currency"),
        ("", "CNY", ""),
        ("twelve", "", "is not an amount"),
    ],
)
async def test_order_of_another_amount_than_the_line_is_skipped(amount: str, currency: str, says: str) -> None:
    """Nothing is asked about it; the others of the batch are settled."""
    services = Services([served(pb.PAYMENT_STATE_SUCCEEDED)] * (1 if says else 2), o1=order())
    lines = [OrderLine(2, "o1", amount, currency), OrderLine(3, "o2")]
    first, second = await Settling(services, "r1")(lines)
    assert second.outcome is Outcome.SETTLED
    assert first.outcome is (Outcome.SKIPPED if says else Outcome.SETTLED)
    assert says in first.reason
    assert [request.order_id for request in services.sent[0].requests] == (["o2"] if says else ["o1", "o2"])


async def test_order_whose_amount_cannot_be_read_now_is_open() -> None:
    services = Services(o1=Unavailable("AWAY", "away"))
    (result,) = await Settling(services, "r1")([OrderLine(2, "o1", "12.50")])
    assert (result.outcome, result.reason) == (Outcome.OPEN, "away")
    assert services.sent == []


async def test_preview_says_what_would_become_of_each_order_and_settles_none() -> None:
    services = Services(
        o1=order(),
        o2=order(
            order_pb2.ORDER_STATE_PAID,
            payment_id="pay_2",
            settled_by=clerk_pb2.Clerk(name="li", role=clerk_pb2.ROLE_CASHIER),
            settled_at_ms=1_700_000_000_000,
        ),
        o3=order(order_pb2.ORDER_STATE_CANCELLED),
        o4=order(order_pb2.ORDER_STATE_PAYING, payment_id="pay_4"),
        o6=Unavailable("AWAY", "away"),
        o7=order(),
        o8=order(order_pb2.ORDER_STATE_PAID, payment_id="pay_8"),
    )
    lines = [OrderLine(number + 1, f"o{number}") for number in range(1, 7)]
    results = await Preview(services, "r1")([*lines, OrderLine(8, "o7", "1.00"), OrderLine(9, "o8")])
    assert [(result.outcome, result.reason, result.payment_id) for result in results] == [
        (Outcome.WOULD_BE_SETTLED, "", ""),
        (Outcome.WOULD_BE_SKIPPED, "it is PAID since 2023-11-14T22:13:20.000Z, by li (cashier)", "pay_2"),
        (Outcome.WOULD_BE_SKIPPED, "it is CANCELLED", ""),
        (Outcome.WOULD_BE_SKIPPED, "it is PAYING", ""),
        (Outcome.WOULD_BE_SKIPPED, "there is none", ""),
        (Outcome.OPEN, "away", ""),
        (Outcome.WOULD_BE_SKIPPED, "the order is 12.50 CNY, and the line 1.00 CNY", ""),
        (Outcome.REPLAYED, "", "pay_8"),
    ]
    assert services.sent == []


def test_request_id_is_stable_and_always_a_name() -> None:
    """Orders with a long common beginning have different ones."""
    assert request_id_of("r1", "o1") == "r1:o1"
    run_id, long = "r" * 32, "o" * 63
    ids = {request_id_of(run_id, f"{long}{end}") for end in "ab"}
    assert len(ids) == 2
    assert all(check_name(each, "request_id") for each in ids)
    assert request_id_of(run_id, "o" * 31) == f"{run_id}:{'o' * 31}"
    assert request_id_of(run_id, "o" * 64) == f"{run_id}:2b2858dbb4c85c8e7e6de337"
