"""Reading all four sides page by page, and mending what differs through their own operations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from google.protobuf.message import Message

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.ledger.v1 import ledger_pb2 as ledger
from countinghouse.order.v1 import order_pb2 as order
from countinghouse.payment.v1 import payment_pb2 as payment
from countinghouse.type.v1 import money_pb2
from services.kernel.clock import SystemClock
from services.kernel.errors import FailedPrecondition
from services.reconcile.matching import Action, Amount, Bill, Discrepancy, Kind, Ours, Theirs
from services.reconcile.reading import find, read
from services.reconcile.repairing import Repairer

MONEY = Amount(1250, "CNY")
OURS = Ours("p1", "o1", "SUCCEEDED", "p1:1", MONEY, "tok-mei", "")


def money(amount: int = 1250) -> money_pb2.Money:
    return money_pb2.Money(minor_units=amount, currency_code="CNY")


def charge(key: str = "p1:1", state: acquirer.ChargeState.ValueType = acquirer.CHARGE_STATE_CHARGED) -> acquirer.Charge:
    return acquirer.Charge(key=key, state=state, amount=money(), reference=key.partition(":")[0])


def paid(payment_id: str, state: payment.PaymentState.ValueType = payment.PAYMENT_STATE_SUCCEEDED) -> payment.Payment:
    return payment.Payment(
        payment_id=payment_id,
        order_id=f"o-{payment_id}",
        state=state,
        amount=money(),
        acquirer_key=f"{payment_id}:1",
        card="tok-mei",
    )


@dataclass(frozen=True, slots=True)
class Reply:
    message: Any


@dataclass
class FakeDesk:
    """Answers as it was told; each answer is used once, the last one for ever. Writes down what was asked."""

    answers: dict[str, list[Message | Exception]]
    asked: list[tuple[str, Message]] = field(default_factory=list)

    async def read(self, service: str, method: str, request: Message) -> Any:
        kept = type(request)()
        kept.CopyFrom(request)
        self.asked.append((f"{service}.{method}", kept))
        waiting = self.answers[method]
        answer = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def change(self, service: str, method: str, request: Message, key: str) -> Any:
        return Reply(await self.read(service, method, request))

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.asked if name.endswith(f".{method}")]


def four_sides(**changed: list[Message | Exception]) -> FakeDesk:
    """A payment that all agree about, on two pages each where there are pages."""
    journal = ledger.Journal(
        payment_id="p1",
        currency_code="CNY",
        postings=[
            ledger.Posting(account_id="acquirer:CNY", amount=1250),
            ledger.Posting(account_id="sales:CNY", amount=-1250),
        ],
    )
    answers: dict[str, list[Message | Exception]] = {
        "ListCharges": [
            acquirer.ListChargesResponse(charges=[charge()], next_page_token="x"),
            acquirer.ListChargesResponse(charges=[charge("p2:1", acquirer.CHARGE_STATE_TOMBSTONE)]),
        ],
        "ListPayments": [
            payment.ListPaymentsResponse(payments=[paid("p1")], next_page_token="y"),
            payment.ListPaymentsResponse(payments=[paid("p2", payment.PAYMENT_STATE_REVERSED)]),
        ],
        "ListOrders": [
            order.ListOrdersResponse(next_page_token="z"),
            order.ListOrdersResponse(orders=[order.Order(order_id="o-p1", payment_id="p1", amount=money())]),
        ],
        "ListAccounts": [ledger.ListAccountsResponse(accounts=[ledger.Account(account_id="acquirer:CNY")])],
        "ListJournals": [
            ledger.ListJournalsResponse(journals=[journal], next_page_token="w"),
            ledger.ListJournalsResponse(),
        ],
    }
    return FakeDesk(answers | changed)


class TestReading:
    """All pages of all four."""

    async def test_every_page_is_read(self) -> None:
        """Each is asked for with the token of the one before."""
        desk = four_sides()
        sides = await read(desk)
        assert [row.key for row in sides.theirs] == ["p1:1", "p2:1"]
        assert [(row.payment_id, row.state) for row in sides.ours] == [("p1", "SUCCEEDED"), ("p2", "REVERSED")]
        assert sides.theirs[0] == Theirs("p1:1", "CHARGED", MONEY, "p1")
        assert sides.owed == {("p1", "CNY"): 1250}
        assert sides.paid == {"o-p1": Bill("p1", MONEY)}
        for method, token in (("ListCharges", "x"), ("ListPayments", "y"), ("ListOrders", "z"), ("ListJournals", "w")):
            assert [request.page_token for request in desk.requests(method)] == ["", token]
        assert {request.source for request in desk.requests("ListPayments")} == {payment.SOURCE_CARD}

    async def test_where_all_agree_it_is_looked_once(self) -> None:
        desk = four_sides()
        _, found = await find(desk, settle_s=60)
        assert found == []
        assert len(desk.requests("ListAccounts")) == 1

    async def test_only_what_differs_twice_is_told(self) -> None:
        """A payment that was under way at the first look has come to its end at the second."""
        moving = [
            acquirer.ListChargesResponse(charges=[charge("p8:1")]),
            acquirer.ListChargesResponse(charges=[charge("p9:1")]),
        ]
        desk = four_sides(
            ListCharges=[*moving],
            ListPayments=[payment.ListPaymentsResponse()],
            ListOrders=[order.ListOrdersResponse()],
            ListJournals=[ledger.ListJournalsResponse()],
        )
        _, found = await find(desk, settle_s=0)
        assert found == []
        desk.answers["ListCharges"] = [moving[1]]
        _, found = await find(desk, settle_s=0)
        assert [(each.kind, each.key) for each in found] == [(Kind.ONLY_THEIRS, "p9:1")]

    async def test_a_sum_of_zero_is_owed_by_nobody(self) -> None:
        """A journal and its opposite."""
        legs = [[ledger.Posting(account_id="acquirer:CNY", amount=sign * 5)] for sign in (1, -1)]
        journals = [ledger.Journal(payment_id="p1", currency_code="CNY", postings=each) for each in legs]
        desk = four_sides(ListJournals=[ledger.ListJournalsResponse(journals=journals)])
        assert (await read(desk)).owed == {}


def difference(kind: Kind, action: Action, key: str = "p1:1") -> Discrepancy:
    return Discrepancy(kind, action, key, "p1", MONEY, MONEY)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.reconcile.repairing._LOOK_S", 0)


def repairer(desk: FakeDesk, patience_s: float = 5) -> Repairer:
    return Repairer(desk, {"p1": OURS}, SystemClock(), run="run_1", patience_s=patience_s)


def got(state: payment.PaymentState.ValueType) -> payment.GetPaymentResponse:
    return payment.GetPaymentResponse(payment=paid("p1", state))


@pytest.mark.usefixtures("no_pause")
class TestRepairing:
    """Each action."""

    @pytest.mark.parametrize("kind", [Kind.ONLY_THEIRS, Kind.DUPLICATE])
    async def test_a_key_is_reversed(self, kind: Kind) -> None:
        """By its own name, whatever payment it was for."""
        answer = acquirer.ReverseByKeyResponse(charge=charge("key_9", acquirer.CHARGE_STATE_REFUNDED))
        desk = FakeDesk({"ReverseByKey": [answer]})
        mended = await repairer(desk).repair(difference(kind, Action.REFUND, "key_9"))
        assert (mended.done, mended.words) == (True, "key_9 is REFUNDED")
        assert [request.key for request in desk.requests("ReverseByKey")] == ["key_9"]

    async def test_asked_again_it_is_charged(self) -> None:
        """Under the payment's own key and with its own payload, so nothing can be charged twice."""
        desk = FakeDesk({"Charge": [acquirer.ChargeResponse(charge=charge())]})
        mended = await repairer(desk).repair(difference(Kind.ONLY_OURS, Action.ASK_AGAIN))
        assert mended.done
        expected = acquirer.ChargeRequest(key="p1:1", card="tok-mei", amount=money(), reference="p1")
        assert desk.requests("Charge") == [expected]
        assert not desk.requests("Reverse")

    @pytest.mark.parametrize(
        "state", [acquirer.CHARGE_STATE_REFUNDED, acquirer.CHARGE_STATE_TOMBSTONE, acquirer.CHARGE_STATE_DECLINED]
    )
    async def test_asked_again_it_is_refused(self, state: acquirer.ChargeState.ValueType) -> None:
        """Then the payment is reversed, and that is waited for."""
        desk = FakeDesk(
            {
                "Charge": [acquirer.ChargeResponse(charge=charge(state=state))],
                "Reverse": [payment.ReverseResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_REVERSING), got(payment.PAYMENT_STATE_REVERSED)],
            }
        )
        mended = await repairer(desk).repair(difference(Kind.ONLY_OURS, Action.ASK_AGAIN))
        assert (mended.done, mended.words) == (True, "p1 is REVERSED")
        (request,) = desk.requests("Reverse")
        assert (request.request_id, request.payment_id) == ("run_1:p1", "p1")
        assert request.reason

    async def test_a_reversal_that_is_refused_is_told(self) -> None:
        """It stays as it is, and the next run finds it again."""
        refused = FailedPrecondition("INSUFFICIENT_FUNDS", "acquirer:CNY is short")
        mended = await repairer(FakeDesk({"Reverse": [refused]})).repair(difference(Kind.AMOUNT, Action.REVERSE))
        assert (mended.done, mended.words) == (False, "INSUFFICIENT_FUNDS: acquirer:CNY is short")

    @pytest.mark.parametrize("ended", [payment.PAYMENT_STATE_SUCCEEDED, payment.PAYMENT_STATE_DECLINED])
    async def test_a_late_payment_is_told_to_ask(self, ended: payment.PaymentState.ValueType) -> None:
        """Whatever it then hears."""
        desk = FakeDesk(
            {
                "NotifyAcquirer": [payment.NotifyAcquirerResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_UNKNOWN), got(ended)],
            }
        )
        mended = await repairer(desk).repair(difference(Kind.LATE, Action.ASK_NOW))
        assert mended.done
        assert [request.key for request in desk.requests("NotifyAcquirer")] == ["p1:1"]

    async def test_one_that_stays_open_is_told(self) -> None:
        desk = FakeDesk(
            {
                "NotifyAcquirer": [payment.NotifyAcquirerResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_UNKNOWN)],
            }
        )
        mended = await repairer(desk, patience_s=0).repair(difference(Kind.LATE, Action.ASK_NOW))
        assert (mended.done, mended.words) == (False, "p1 is UNKNOWN")

    @pytest.mark.parametrize("action", [Action.WAIT, Action.LOOK])
    async def test_what_cannot_be_mended_from_here(self, action: Action) -> None:
        """Nobody is asked anything."""
        desk = FakeDesk({})
        mended = await repairer(desk).repair(difference(Kind.AMOUNT, action))
        assert not mended.done
        assert desk.asked == []
