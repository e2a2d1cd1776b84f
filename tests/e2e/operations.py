"""Operations of clerks, for tests in which a process dies meanwhile: each is asked for once, alone or contended, and
says what the books must hold in the end, whichever of the two calls was quicker.

| operation | contended |
|---|---|
| an order is settled | another clerk settles it, too: one of the two pays, and the other is told so |
| a payment is undone | another accountant undoes it, too: one of the two does, and the other is told that it is done |
| an unanswered card payment is parked | another accountant parks it, too: one of the two does, and the other is told |
| a merchant or the house is paid with a ticket | the same ticket again, elsewhere: there is no lock, and one payment |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from services.checker.snapshot import Snapshot
from services.kernel.errors import AlreadyExists, FailedPrecondition
from services.kernel.principal import Role
from services.testkit.client import CallResult, RecordingClient, money, new_id
from services.testkit.harness import Harness
from tests.e2e.checked import at_acquirer, charges

MERCHANT, HOUSE = "wallet:merchant:CNY", "sales:CNY"
#: Where an operation is asked for, and where the rival asks.
HERE, ELSEWHERE = "payment-1", "payment-2"


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """What one client asks for."""

    client: RecordingClient
    request: Any

    @property
    def key(self) -> str:
        """Return its request id or ticket."""
        return str(getattr(self.request, "request_id", "") or self.request.ticket_id)

    async def call(self, at: str) -> CallResult:
        """Ask once."""
        return await self.client.call(self.request, at=at, timeout_s=8.0)

    async def call_until_answered(self, at: str) -> CallResult:
        """Ask until the answer is final; fail if it never is."""
        result = await self.client.call_until_answered(self.request, at=at, timeout_s=8.0)
        assert result.final, result
        return result


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that is to happen once.

    Args:
        first: Is asked for here.
        rival: Is asked for elsewhere, if it is contended.
        subject: The order or payment it concerns; empty: not known before.
        order_id: Whose lock it needs; empty: none.
        done: Raises unless the books say that it was done exactly once. Told the last answers of all who asked.
    """

    first: ClientRequest
    rival: ClientRequest
    subject: str
    order_id: str
    done: Callable[[Snapshot, Sequence[CallResult]], None]


async def settle(harness: Harness) -> Operation:
    """Li settles a fresh order from the drawer; Wang from the bank."""
    return await _settle(harness, card="", at=[])


async def settle_with_card(harness: Harness) -> Operation:
    """Li settles a fresh order by card; Wang does, too."""
    return await _settle(harness, card="tok-mei", at=["CHARGED"])


async def _settle(harness: Harness, *, card: str, at: list[str]) -> Operation:
    order_id = await harness.new_order()
    first, rival = (
        ClientRequest(clerk, clerk.settle_request(order_id, card=card))
        for clerk in (harness.cashier, harness.accountant)
    )
    return Operation(first, rival, order_id, order_id, lambda books, answers: _settled(books, answers, order_id, at=at))


def _settled(books: Snapshot, answers: Sequence[CallResult], order_id: str, *, at: list[str]) -> None:
    """One clerk has settled the order; the other is told who, and moved nothing, at the bank neither."""
    (payment,) = [seen.payment for seen in answers if seen.error is None]
    assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
    for refused in (seen.error for seen in answers if seen.error is not None):
        assert isinstance(refused, AlreadyExists)
        assert refused.metadata["payment_id"] == payment.payment_id
    assert charges(books, order_id) == [payment.payment_id]
    made = [str(row["payment_id"]) for row in books.payments if row["order_id"] == order_id]
    assert [state for payment_id in made for state in at_acquirer(books, payment_id)] == at
    assert at_acquirer(books, payment.payment_id) == at
    assert _order(books, order_id) == ("PAID", payment.payment_id, 1)


async def pay(harness: Harness) -> Operation:
    """Li pays a merchant from the drawer, with a ticket."""
    return await _pay(harness, pb.PayRequest(source=pb.SOURCE_DRAWER, payee_account_id=MERCHANT), at=[])


async def pay_with_card(harness: Harness) -> Operation:
    """Li takes money for the house from a customer's card, with a ticket."""
    by_card = pb.PayRequest(source=pb.SOURCE_CARD, card="tok-mei", customer_id="mei", payee_account_id=HOUSE)
    return await _pay(harness, by_card, at=["CHARGED"])


async def _pay(harness: Harness, request: pb.PayRequest, *, at: list[str]) -> Operation:
    request.ticket_id = await harness.cashier.ticket(at=ELSEWHERE)
    request.amount.CopyFrom(money(700))
    asked = ClientRequest(harness.cashier, request)

    def done(books: Snapshot, answers: Sequence[CallResult]) -> None:
        payments = [seen.payment for seen in answers]
        (payment_id,) = {payment.payment_id for payment in payments}
        assert {payment.state for payment in payments} == {pb.PAYMENT_STATE_SUCCEEDED}
        made = [str(row["payment_id"]) for row in books.payments if row["request_key"] == asked.key]
        assert made == [payment_id]
        written = [row["journal_id"] for row in books.journals if row["payment_id"] == payment_id]
        assert written == [payments[0].journal_id]
        assert at_acquirer(books, payment_id) == at

    return Operation(asked, asked, "", "", done)


async def reverse(harness: Harness) -> Operation:
    """Wang undoes a payment from the drawer; Zhou does, too."""
    return await _reverse(harness, await settle(harness), at=[])


async def reverse_with_card(harness: Harness) -> Operation:
    """Wang undoes a payment by card; Zhou does, too."""
    return await _reverse(harness, await settle_with_card(harness), at=["REFUNDED"])


async def _reverse(harness: Harness, settling: Operation, *, at: list[str]) -> Operation:
    settled, order_id = (await settling.first.call_until_answered(ELSEWHERE)).payment, settling.order_id
    first, rival = (
        ClientRequest(
            who,
            pb.ReverseRequest(request_id=new_id("reverse"), payment_id=settled.payment_id, reason="wrong order"),
        )
        for who in _accountants(harness)
    )

    def done(books: Snapshot, answers: Sequence[CallResult]) -> None:
        (payment,) = [seen.payment for seen in answers if seen.error is None]
        assert (payment.payment_id, payment.state) == (settled.payment_id, pb.PAYMENT_STATE_REVERSED)
        for refused in (seen.error for seen in answers if seen.error is not None):
            assert isinstance(refused, FailedPrecondition)
            assert (refused.reason, refused.metadata["state"]) == ("ILLEGAL_STATE", "REVERSED")
        assert charges(books, order_id) == [settled.payment_id]
        undoing = [row["journal_id"] for row in books.journals if row["reversal_of"] == settled.journal_id]
        assert undoing == [payment.reversal_journal_id]
        assert at_acquirer(books, settled.payment_id) == at
        state, _, opened = _order(books, order_id)
        assert (state, opened) == ("UNPAID", 2)

    return Operation(first, rival, settled.payment_id, order_id, done)


async def park(harness: Harness) -> Operation:
    """Wang parks li's card payment, which the acquirer never answers; Zhou does, too."""
    order_id, card = await harness.new_order(), new_id("tok")
    await _silence(harness, card)
    asked = harness.cashier.settle_request(order_id, new_id("settle"), card=card)
    unheard = (await harness.cashier.call(asked, at=ELSEWHERE, timeout_s=8.0)).payment
    assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
    first, rival = (
        ClientRequest(who, pb.ParkRequest(request_id=new_id("park"), payment_id=unheard.payment_id, reason="pays cash"))
        for who in _accountants(harness)
    )

    def done(books: Snapshot, answers: Sequence[CallResult]) -> None:
        (payment,) = [seen.payment for seen in answers if seen.error is None]
        assert (payment.payment_id, payment.state) == (unheard.payment_id, pb.PAYMENT_STATE_PARKED)
        for refused in (seen.error for seen in answers if seen.error is not None):
            assert isinstance(refused, FailedPrecondition)
            assert refused.reason == "ILLEGAL_STATE"
            assert refused.metadata["state"] in ("PARKED", "REVERSED")
        (row,) = [row for row in books.payments if row["payment_id"] == unheard.payment_id]
        assert (row["state"], row["journal_id"]) == ("REVERSED", "")
        assert at_acquirer(books, unheard.payment_id) == ["TOMBSTONE"]
        assert _order(books, order_id) == ("UNPAID", "", 1)

    return Operation(first, rival, unheard.payment_id, order_id, done)


def _accountants(harness: Harness) -> tuple[RecordingClient, RecordingClient]:
    return harness.accountant, harness.client("zhou", Role.ACCOUNTANT)


async def _silence(harness: Harness, card: str) -> None:
    """The acquirer answers no charge of this card."""
    fault = acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DOWN, method="Charge", times=10_000, subject=card)
    await harness.set_acquirer_faults(fault)


def _order(books: Snapshot, order_id: str) -> tuple[str, str, int]:
    """Where an order stands, whose payment it has, and in which round it is."""
    (order,) = [row for row in books.orders if row["order_id"] == order_id]
    return str(order["state"]), str(order["payment_id"]), int(order["round"])
