"""What people do at the counters, for tests in which somebody dies meanwhile: each deed is asked for once, alone or in
company, and says what the books must hold in the end, whoever of the two was quicker.

| deed | in company |
|---|---|
| an order is settled | another clerk settles it, too: one of the two pays, and the other is told so |
| a payment is undone | another accountant undoes it, too: one of the two does, and the other is told that it is done |
| an unanswered card payment is parked | another accountant parks it, too: one of the two does, and the other is told |
| somebody is paid with a ticket | the same ticket again, elsewhere: there is no lock, and one payment |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.payment.v1 import payment_pb2 as pb
from countinghouse.type.v1 import money_pb2
from services.checker.snapshot import Snapshot
from services.demo.people import Person, Seen
from services.devstack.stack import ACQUIRER_INSTANCE
from services.kernel.errors import AlreadyExists, FailedPrecondition
from services.kernel.principal import Role
from tests.e2e.desk import new_id
from tests.e2e.teller import Teller, at_bank, charges, payment_in, settle_by_card, settle_request

MERCHANT = "wallet:merchant:CNY"
#: Where a deed is asked for, and where the rival asks.
HERE, ELSEWHERE = "payment-1", "payment-2"


@dataclass(frozen=True, slots=True)
class Wish:
    """What one person asks for, under one key."""

    person: Person
    method: str
    request: Message
    key: str

    async def ask(self, teller: Teller, instance: str) -> Seen:
        """Asks once."""
        return await self.person.ask(teller.address(instance), self.method, self.request, timeout_s=8.0)

    async def insist(self, teller: Teller, instance: str) -> Seen:
        """Asks until there is an answer for good."""
        return await teller.until_answered(self.person, instance, self.method, self.request, self.key)


@dataclass(frozen=True, slots=True)
class Deed:
    """Something that is to happen once.

    Args:
        wish: Is asked for here.
        rival: Is asked for elsewhere, in company.
        subject: The order or payment it concerns; empty: not known before.
        order_id: Whose lock it needs; empty: none.
        done: Raises unless the books say that it was done exactly once. Told the last answers of all who asked.
    """

    wish: Wish
    rival: Wish
    subject: str
    order_id: str
    done: Callable[[Snapshot, Sequence[Seen]], None]


async def settle(teller: Teller) -> Deed:
    """Li settles a fresh order from the drawer; Wang from the bank."""
    order_id, keys = await teller.new_order(), (new_id("settle"), new_id("settle"))
    clerks = (teller.cashier, teller.accountant)
    wish, rival = (
        Wish(clerk, "Settle", settle_request(clerk, order_id, key), key)
        for clerk, key in zip(clerks, keys, strict=True)
    )
    return Deed(wish, rival, order_id, order_id, lambda books, answers: _settled(books, answers, order_id, at=[]))


async def settle_with_card(teller: Teller) -> Deed:
    """Li settles a fresh order by card; Wang does, too."""
    order_id, keys = await teller.new_order(), (new_id("settle"), new_id("settle"))
    clerks = (teller.cashier, teller.accountant)
    wish, rival = (
        Wish(clerk, "Settle", settle_by_card(order_id, key), key) for clerk, key in zip(clerks, keys, strict=True)
    )
    return Deed(
        wish, rival, order_id, order_id, lambda books, answers: _settled(books, answers, order_id, at=["CHARGED"])
    )


def _settled(books: Snapshot, answers: Sequence[Seen], order_id: str, *, at: list[str]) -> None:
    """One clerk has settled the order; the other is told who, and moved nothing, at the bank neither."""
    (payment,) = [payment_in(seen) for seen in answers if seen.error is None]
    assert payment.state == pb.PAYMENT_STATE_SUCCEEDED
    for refused in (seen.error for seen in answers if seen.error is not None):
        assert isinstance(refused, AlreadyExists)
        assert refused.metadata["payment_id"] == payment.payment_id
    assert charges(books, order_id) == [payment.payment_id]
    made = [str(row["payment_id"]) for row in books.payments if row["order_id"] == order_id]
    assert [state for payment_id in made for state in at_bank(books, payment_id)] == at
    assert at_bank(books, payment.payment_id) == at
    assert _order(books, order_id) == ("PAID", payment.payment_id, 1)


async def pay(teller: Teller) -> Deed:
    """Li pays a merchant from the drawer, with a ticket."""
    return await _pay(teller, pb.PayRequest(source=pb.SOURCE_DRAWER), at=[])


async def pay_with_card(teller: Teller) -> Deed:
    """Li pays a merchant from a customer's card, with a ticket."""
    return await _pay(teller, pb.PayRequest(source=pb.SOURCE_CARD, card="tok-mei", customer_id="mei"), at=["CHARGED"])


async def _pay(teller: Teller, request: pb.PayRequest, *, at: list[str]) -> Deed:
    request.ticket_id = await teller.ticket(teller.cashier, ELSEWHERE)
    request.payee_account_id = MERCHANT
    request.amount.CopyFrom(money_pb2.Money(minor_units=700, currency_code="CNY"))
    wish = Wish(teller.cashier, "Pay", request, request.ticket_id)

    def done(books: Snapshot, answers: Sequence[Seen]) -> None:
        payments = [payment_in(seen) for seen in answers]
        (payment_id,) = {payment.payment_id for payment in payments}
        assert {payment.state for payment in payments} == {pb.PAYMENT_STATE_SUCCEEDED}
        made = [str(row["payment_id"]) for row in books.payments if row["request_key"] == wish.key]
        assert made == [payment_id]
        written = [row["journal_id"] for row in books.journals if row["payment_id"] == payment_id]
        assert written == [payments[0].journal_id]
        assert at_bank(books, payment_id) == at

    return Deed(wish, wish, "", "", done)


async def reverse(teller: Teller) -> Deed:
    """Wang undoes a payment from the drawer; Zhou does, too."""
    return await _reverse(teller, await settle(teller), at=[])


async def reverse_with_card(teller: Teller) -> Deed:
    """Wang undoes a payment by card; Zhou does, too."""
    return await _reverse(teller, await settle_with_card(teller), at=["REFUNDED"])


async def _reverse(teller: Teller, settling: Deed, *, at: list[str]) -> Deed:
    settled, order_id = payment_in(await settling.wish.insist(teller, ELSEWHERE)), settling.order_id
    token = teller.stack.token("zhou", Role.ACCOUNTANT)
    accountants = (teller.accountant, Person("zhou", Role.ACCOUNTANT, token, teller.telephone))
    keys = (new_id("reverse"), new_id("reverse"))
    wish, rival = (
        Wish(
            who,
            "Reverse",
            pb.ReverseRequest(request_id=key, payment_id=settled.payment_id, reason="wrong order"),
            key,
        )
        for who, key in zip(accountants, keys, strict=True)
    )

    def done(books: Snapshot, answers: Sequence[Seen]) -> None:
        (payment,) = [payment_in(seen) for seen in answers if seen.error is None]
        assert (payment.payment_id, payment.state) == (settled.payment_id, pb.PAYMENT_STATE_REVERSED)
        for refused in (seen.error for seen in answers if seen.error is not None):
            assert isinstance(refused, FailedPrecondition)
            assert (refused.reason, refused.metadata["state"]) == ("ILLEGAL_STATE", "REVERSED")
        assert charges(books, order_id) == [settled.payment_id]
        undoing = [row["journal_id"] for row in books.journals if row["reversal_of"] == settled.journal_id]
        assert undoing == [payment.reversal_journal_id]
        assert at_bank(books, settled.payment_id) == at
        state, _, opened = _order(books, order_id)
        assert (state, opened) == ("UNPAID", 2)

    return Deed(wish, rival, settled.payment_id, order_id, done)


async def park(teller: Teller) -> Deed:
    """Wang parks li's card payment, which the acquirer never answers; Zhou does, too."""
    order_id, card = await teller.new_order(), new_id("tok")
    await _silence(teller, card)
    asked = settle_by_card(order_id, new_id("settle"), card)
    unheard = payment_in(await teller.cashier.ask(teller.address(ELSEWHERE), "Settle", asked, timeout_s=8.0))
    assert unheard.state == pb.PAYMENT_STATE_UNKNOWN
    token = teller.stack.token("zhou", Role.ACCOUNTANT)
    accountants = (teller.accountant, Person("zhou", Role.ACCOUNTANT, token, teller.telephone))
    keys = (new_id("park"), new_id("park"))
    wish, rival = (
        Wish(who, "Park", pb.ParkRequest(request_id=key, payment_id=unheard.payment_id, reason="pays cash"), key)
        for who, key in zip(accountants, keys, strict=True)
    )

    def done(books: Snapshot, answers: Sequence[Seen]) -> None:
        (payment,) = [payment_in(seen) for seen in answers if seen.error is None]
        assert (payment.payment_id, payment.state) == (unheard.payment_id, pb.PAYMENT_STATE_PARKED)
        for refused in (seen.error for seen in answers if seen.error is not None):
            assert isinstance(refused, FailedPrecondition)
            assert refused.reason == "ILLEGAL_STATE"
            assert refused.metadata["state"] in ("PARKED", "REVERSED")
        (row,) = [row for row in books.payments if row["payment_id"] == unheard.payment_id]
        assert (row["state"], row["journal_id"]) == ("REVERSED", "")
        assert at_bank(books, unheard.payment_id) == ["TOMBSTONE"]
        assert _order(books, order_id) == ("UNPAID", "", 1)

    return Deed(wish, rival, unheard.payment_id, order_id, done)


async def _silence(teller: Teller, card: str) -> None:
    """The acquirer answers no charge of this card."""
    fault = acquirer_pb2.Fault(kind=acquirer_pb2.FAULT_KIND_DOWN, method="Charge", times=10_000, subject=card)
    request = acquirer_pb2.SetFaultsRequest(faults=[fault])
    method = "countinghouse.acquirer.v1.FaultService/SetFaults"
    await teller.do(teller.operator, ACQUIRER_INSTANCE, method, request)


def _order(books: Snapshot, order_id: str) -> tuple[str, str, int]:
    """Where an order stands, whose payment it has, and in which round it is."""
    (order,) = [row for row in books.orders if row["order_id"] == order_id]
    return str(order["state"]), str(order["payment_id"]), int(order["round"])
