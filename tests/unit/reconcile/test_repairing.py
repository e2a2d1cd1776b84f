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
from services.kernel.errors import FailedPrecondition, InvalidArgument, NotFound
from services.reconcile.matching import (
    Action,
    Amount,
    ControlAccount,
    Discrepancy,
    DiscrepancyKind,
    Journal,
    PaidOrder,
    Period,
    Theirs,
)
from services.reconcile.reading import find, read
from services.reconcile.repairing import Repairer, named

MONEY = Amount(1250, "CNY")


def money(amount: int = 1250) -> money_pb2.Money:
    return money_pb2.Money(minor_units=amount, currency_code="CNY")


def charge(key: str = "p1:1", state: acquirer.ChargeState.ValueType = acquirer.CHARGE_STATE_CHARGED) -> acquirer.Charge:
    reference = key.partition(":")[0]
    return acquirer.Charge(key=key, state=state, amount=money(), reference=reference, decided_at_ms=10)


def paid(payment_id: str, state: payment.PaymentState.ValueType = payment.PAYMENT_STATE_SUCCEEDED) -> payment.Payment:
    return payment.Payment(
        payment_id=payment_id,
        order_id=f"o-{payment_id}",
        state=state,
        amount=money(),
        acquirer_key=f"{payment_id}:1",
        source=payment.SOURCE_CARD,
        journal_id=f"j-{payment_id}",
    )


@dataclass(frozen=True, slots=True)
class Reply:
    message: Any


@dataclass
class FakeServices:
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


PAID = order.Order(order_id="o-p1", payment_id="p1", amount=money(), settled_at_ms=30)
ACCOUNT = ledger.Account(
    account_id="acquirer:CNY", kind=ledger.ACCOUNT_KIND_ASSET, currency_code="CNY", balance=1250, version=2
)


def four_sides(**changed: list[Message | Exception]) -> FakeServices:
    """A payment that all agree about, on two pages each where there are pages."""
    journal = ledger.Journal(
        journal_id="j-p1",
        payment_id="p1",
        order_id="o-p1",
        sequence=1,
        posted_at_ms=20,
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
            order.ListOrdersResponse(orders=[PAID]),
        ],
        "ListAccounts": [ledger.ListAccountsResponse(accounts=[ACCOUNT])],
        "ListJournals": [
            ledger.ListJournalsResponse(journals=[journal], next_page_token="w"),
            ledger.ListJournalsResponse(),
        ],
    }
    return FakeServices(answers | changed)


class TestReading:
    """All pages of all four."""

    async def test_every_page_is_read(self) -> None:
        """Each is asked for with the token of the one before."""
        services = four_sides()
        sides = await read(services)
        assert [row.key for row in sides.theirs] == ["p1:1", "p2:1"]
        assert [(row.payment_id, row.state) for row in sides.ours] == [("p1", "SUCCEEDED"), ("p2", "REVERSED")]
        assert sides.theirs[0] == Theirs("p1:1", "CHARGED", MONEY, "p1", 10)
        assert sides.journals == (Journal("j-p1", "p1", "o-p1", 1, 20, MONEY, 1250),)
        assert sides.orders == (PaidOrder("o-p1", "p1", MONEY, 30),)
        assert sides.accounts == (ControlAccount("acquirer:CNY", "CNY", 1250, 1),)
        for method, token in (("ListCharges", "x"), ("ListPayments", "y"), ("ListOrders", "z"), ("ListJournals", "w")):
            assert [request.page_token for request in services.requests(method)] == ["", token]

    async def test_payments_of_every_source_are_read(self) -> None:
        """An order paid in cash needs its payment as well."""
        services = four_sides()
        await read(services)
        assert {request.source for request in services.requests("ListPayments")} == {payment.SOURCE_UNSPECIFIED}

    async def test_balance_is_read_before_the_journals_and_payments_last(self) -> None:
        services = four_sides()
        await read(services)
        order_of_methods = list(dict.fromkeys(name for name, _ in services.asked))
        assert order_of_methods.index("ledger.ListAccounts") < order_of_methods.index("ledger.ListJournals")
        assert order_of_methods[-1] == "payment.ListPayments"

    async def test_journals_are_listed_once_for_all_accounts(self) -> None:
        """So the number of calls grows with the journals, not with journals and accounts."""
        others = [ledger.Account(account_id=f"acquirer:{code}", currency_code=code) for code in ("EUR", "JPY")]
        services = four_sides(ListAccounts=[ledger.ListAccountsResponse(accounts=[ACCOUNT, *others])])
        await read(services)
        assert [request.account_id for request in services.requests("ListJournals")] == ["", ""]

    async def test_account_that_is_no_counterpart_is_not_held_against_the_acquirer(self) -> None:
        other = ledger.Account(account_id="acquirer:fees", currency_code="CNY")
        services = four_sides(ListAccounts=[ledger.ListAccountsResponse(accounts=[other])])
        assert (await read(services)).accounts == ()

    async def test_journal_that_undoes_another_is_negative(self) -> None:
        undoing = ledger.Journal(
            journal_id="r-1",
            payment_id="p1",
            currency_code="CNY",
            reversal_of="j-p1",
            postings=[
                ledger.Posting(account_id="acquirer:CNY", amount=-1250),
                ledger.Posting(account_id="sales:CNY", amount=1250),
            ],
        )
        services = four_sides(ListJournals=[ledger.ListJournalsResponse(journals=[undoing])])
        (found,) = (await read(services)).journals
        assert (found.amount, found.owed) == (Amount(-1250, "CNY"), -1250)

    async def test_state_this_program_does_not_know_is_a_number(self) -> None:
        unknown = paid("p1")
        unknown.state = 99  # type: ignore[assignment]
        services = four_sides(ListPayments=[payment.ListPaymentsResponse(payments=[unknown])])
        assert [row.state for row in (await read(services)).ours] == ["99"]

    async def test_agreeing_sides_are_read_once(self) -> None:
        services = four_sides()
        assert (await find(services, settle_s=60)).compared.discrepancies == ()
        assert len(services.requests("ListAccounts")) == 1

    async def test_only_differences_in_both_readings_are_reported(self) -> None:
        """A payment that was under way at the first look has come to its end at the second."""
        moving = [
            acquirer.ListChargesResponse(charges=[charge("p8:1")]),
            acquirer.ListChargesResponse(charges=[charge("p9:1")]),
        ]
        services = four_sides(
            ListCharges=[*moving],
            ListAccounts=[ledger.ListAccountsResponse()],
            ListPayments=[payment.ListPaymentsResponse()],
            ListOrders=[order.ListOrdersResponse()],
            ListJournals=[ledger.ListJournalsResponse()],
        )
        assert (await find(services, settle_s=0)).compared.discrepancies == ()
        services.answers["ListCharges"] = [moving[1]]
        found = (await find(services, settle_s=0)).compared.discrepancies
        assert [(each.kind, each.key) for each in found] == [(DiscrepancyKind.ONLY_THEIRS, "p9:1")]

    async def test_only_items_of_the_period_are_reported(self) -> None:
        services = four_sides(ListPayments=[payment.ListPaymentsResponse()])
        assert (await find(services, settle_s=0, period=Period(100, None))).compared.discrepancies == ()
        assert (await find(services, settle_s=0, period=Period(0, 100))).compared.discrepancies


def difference(kind: DiscrepancyKind, action: Action, key: str = "p1:1") -> Discrepancy:
    return Discrepancy(kind, action, key, "p1", MONEY, MONEY)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.reconcile.repairing._LOOK_S", 0)


def repairer(services: FakeServices, patience_s: float = 5) -> Repairer:
    return Repairer(services, SystemClock(), run="run_1", patience_s=patience_s)


def got(state: payment.PaymentState.ValueType) -> payment.GetPaymentResponse:
    return payment.GetPaymentResponse(payment=paid("p1", state))


@pytest.mark.usefixtures("no_pause")
class TestRepairing:
    """Each action."""

    async def test_key_of_a_payment_without_money_is_reversed(self) -> None:
        answer = acquirer.ReverseByKeyResponse(charge=charge("p1:1", acquirer.CHARGE_STATE_REFUNDED))
        services = FakeServices({"ReverseByKey": [answer]})
        mended = await repairer(services).repair(difference(DiscrepancyKind.ONLY_THEIRS, Action.REFUND))
        assert (mended.done, mended.words) == (True, "p1:1 is REFUNDED")
        assert [request.key for request in services.requests("ReverseByKey")] == ["p1:1"]

    @pytest.mark.parametrize("kind", [DiscrepancyKind.ONLY_THEIRS, DiscrepancyKind.DUPLICATE])
    async def test_key_that_no_payment_has_is_reversed_only_when_it_is_named(self, kind: DiscrepancyKind) -> None:
        found = difference(kind, Action.NAME, "key_9")
        answer = acquirer.ReverseByKeyResponse(charge=charge("key_9", acquirer.CHARGE_STATE_REFUNDED))
        services = FakeServices({"ReverseByKey": [answer]})
        assert not (await repairer(services).repair(found)).done
        assert services.asked == []
        mended = await repairer(services).refund_named(found)
        assert (mended.done, mended.words) == (True, "key_9 is REFUNDED")
        assert [request.key for request in services.requests("ReverseByKey")] == ["key_9"]

    async def test_money_that_the_acquirer_turns_out_to_hold_changes_nothing(self) -> None:
        services = FakeServices({"GetCharge": [acquirer.GetChargeResponse(charge=charge())]})
        mended = await repairer(services).repair(difference(DiscrepancyKind.ONLY_OURS, Action.UNDO))
        assert (mended.done, mended.words) == (True, "p1:1 is CHARGED")
        assert services.requests("GetCharge") == [acquirer.GetChargeRequest(key="p1:1")]

    @pytest.mark.parametrize(
        "answer",
        [
            acquirer.GetChargeResponse(charge=charge(state=acquirer.CHARGE_STATE_REFUNDED)),
            acquirer.GetChargeResponse(charge=charge(state=acquirer.CHARGE_STATE_TOMBSTONE)),
            acquirer.GetChargeResponse(charge=charge(state=acquirer.CHARGE_STATE_DECLINED)),
            NotFound("CHARGE_NOT_FOUND", "nothing was ever decided on p1:1"),
        ],
    )
    async def test_payment_without_a_charge_is_reversed_and_no_card_charged(self, answer: Message | Exception) -> None:
        """The reversal is waited for."""
        services = FakeServices(
            {
                "GetCharge": [answer],
                "Charge": [acquirer.ChargeResponse(charge=charge())],
                "Reverse": [payment.ReverseResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_REVERSING), got(payment.PAYMENT_STATE_REVERSED)],
            }
        )
        mended = await repairer(services).repair(difference(DiscrepancyKind.ONLY_OURS, Action.UNDO))
        assert (mended.done, mended.words) == (True, "p1 is REVERSED")
        (request,) = services.requests("Reverse")
        assert (request.request_id, request.payment_id) == ("run_1:p1", "p1")
        assert request.reason
        assert services.requests("Charge") == []

    async def test_refused_reversal_is_reported(self) -> None:
        """It stays as it is, and the next run finds it again."""
        refused = FailedPrecondition("INSUFFICIENT_FUNDS", "acquirer:CNY is short")
        services = FakeServices({"GetCharge": [NotFound("CHARGE_NOT_FOUND", "")], "Reverse": [refused]})
        mended = await repairer(services).repair(difference(DiscrepancyKind.ONLY_OURS, Action.UNDO))
        assert (mended.done, mended.words) == (False, "INSUFFICIENT_FUNDS: acquirer:CNY is short")

    @pytest.mark.parametrize("ended", [payment.PAYMENT_STATE_SUCCEEDED, payment.PAYMENT_STATE_DECLINED])
    @pytest.mark.parametrize("kind", [DiscrepancyKind.LATE, DiscrepancyKind.REVERSAL_OWED])
    async def test_open_payment_is_made_to_ask_the_acquirer(
        self, kind: DiscrepancyKind, ended: payment.PaymentState.ValueType
    ) -> None:
        """Whatever it then hears."""
        services = FakeServices(
            {
                "NotifyAcquirer": [payment.NotifyAcquirerResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_UNKNOWN), got(ended)],
            }
        )
        mended = await repairer(services).repair(difference(kind, Action.ASK_NOW))
        assert mended.done
        assert [request.key for request in services.requests("NotifyAcquirer")] == ["p1:1"]

    async def test_payment_that_stays_open_is_reported(self) -> None:
        services = FakeServices(
            {
                "NotifyAcquirer": [payment.NotifyAcquirerResponse()],
                "GetPayment": [got(payment.PAYMENT_STATE_UNKNOWN)],
            }
        )
        mended = await repairer(services, patience_s=0).repair(difference(DiscrepancyKind.LATE, Action.ASK_NOW))
        assert (mended.done, mended.words) == (False, "p1 is UNKNOWN")

    @pytest.mark.parametrize("action", [Action.WAIT, Action.LOOK, Action.CORRECT, Action.LOST, Action.NAME])
    async def test_difference_without_a_repair_is_left(self, action: Action) -> None:
        """Nobody is asked anything."""
        services = FakeServices({})
        mended = await repairer(services).repair(difference(DiscrepancyKind.AMOUNT, action))
        assert not mended.done
        assert services.asked == []


class TestNamedRefunds:
    """Only an open discrepancy that waits for people can be refunded by name."""

    FOUND = (
        difference(DiscrepancyKind.ONLY_THEIRS, Action.NAME, "x:1"),
        difference(DiscrepancyKind.DUPLICATE, Action.NAME, "y:1"),
        difference(DiscrepancyKind.ONLY_OURS, Action.UNDO, "p1:1"),
    )

    def test_each_key_is_found_once(self) -> None:
        assert [each.key for each in named(["y:1", "x:1", "y:1"], self.FOUND)] == ["y:1", "x:1"]

    @pytest.mark.parametrize("key", ["p1:1", "z:1", ""])
    def test_another_key_is_refused(self, key: str) -> None:
        """Before anything is refunded."""
        with pytest.raises(InvalidArgument, match="nothing was refunded") as refused:
            named(["x:1", key], self.FOUND)
        assert refused.value.reason == "REFUND_NOT_OPEN"
