"""Tickets: issued, consumed once, replayed for ever after, expired; and the direct payment, which has no lock."""

from __future__ import annotations

import asyncio

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.kernel.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    RequestInProgress,
    Unavailable,
)
from services.kernel.idempotency import Lease, RequestKey, RequestState, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import OrderState
from services.payment.commands import PayCommand
from services.payment.model import PAY, SETTLE, PaymentState, Source
from tests.fakes.payment_ports import Died
from tests.unit.payment.house import AMOUNT, CARD, LI, MEI, MERCHANT, WALLET, WANG, House, payment_in
from tests.unit.payment.test_settle import reason_in

TOM = Principal("tom", Role.CUSTOMER)


class TestTickets:
    """Method 1 of idempotency."""

    async def test_a_ticket_is_issued_once_for_a_request(self, house: House) -> None:
        """Asked again, the same one; and its time is the caller's."""
        one = house.instance()
        answers = [await one.operations.issue_ticket(house.call(LI), "r1", "o1", 60, "f") for _ in range(2)]
        assert [answer.replayed for answer in answers] == [False, True]
        assert answers[0].response == answers[1].response
        ticket = pb.IssueTicketResponse.FromString(answers[0].response.body).ticket
        assert (ticket.order_id, ticket.expires_at_ms) == ("o1", house.clock.now_ms() + 60_000)

    async def test_somebody_elses_ticket_is_not_there(self, house: House) -> None:
        """Somebody else is whoever has another name or another role."""
        one = house.instance()
        ticket = await house.ticket(one, clerk=LI)
        for principal, source in (
            (WANG, Source.BANK),
            (Principal("li", Role.ACCOUNTANT), Source.BANK),
            (Principal("li", Role.CUSTOMER), Source.CARD),
        ):
            with pytest.raises(NotFound) as refusal:
                await house.pay(one, ticket, clerk=principal, source=source, customer="")
            assert refusal.value.reason == "TICKET_NOT_FOUND"

    async def test_ten_clicks_pay_once(self, house: House) -> None:
        """One ticket, ten Pays at once at two instances: one charge, ten equal answers in the end."""
        instances = [house.instance(), house.instance()]
        ticket = await house.ticket(instances[0])
        clicks = await asyncio.gather(*(house.pay(instances[n % 2], ticket) for n in range(10)), return_exceptions=True)
        assert all(isinstance(click, RequestInProgress) for click in clicks if isinstance(click, BaseException))
        answers = [await house.pay(instances[n % 2], ticket) for n in range(10)]
        assert len({answer.response.body for answer in answers}) == 1
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        assert house.ledger.open[MERCHANT].balance == 1000 + AMOUNT
        house.check()

    async def test_an_expired_ticket_is_refused_for_ever(self, house: House) -> None:
        """Before anybody swept and after; nothing is charged."""
        one = house.instance()
        ticket = await house.ticket(one, ttl_s=1)
        house.clock.advance(1_000)
        for _ in range(2):
            with pytest.raises(FailedPrecondition) as refusal:
                await house.pay(one, ticket)
            assert refusal.value.reason == "TICKET_EXPIRED"
            await one.operations.recover()
        assert house.state(ticket, PAY) is RequestState.EXPIRED
        assert not house.store.payments

    async def test_a_used_ticket_does_not_expire(self, house: House) -> None:
        """Its stored response is replayed for ever after."""
        one = house.instance()
        ticket = await house.ticket(one, ttl_s=1)
        answer = await house.pay(one, ticket)
        house.clock.advance(400 * 24 * 3600 * 1000)
        await one.operations.recover()
        again = await house.pay(one, ticket)
        assert (again.response, again.replayed) == (answer.response, True)

    async def test_a_ticket_for_an_order_pays_it_under_its_lock(self, house: House) -> None:
        """As Settle does; the ticket stays on the payment."""
        one = house.instance()
        ticket = await house.ticket(one, "o1")
        payment = payment_in(await house.pay_order(one, ticket))
        assert (payment.order_id, payment.ticket_id) == ("o1", ticket)
        assert house.order().state is OrderState.PAID
        assert one.process.calls["hold"] == 1
        assert payment_in(await house.pay_order(house.instance(), ticket)) == payment
        house.check()

    async def test_two_tickets_for_one_order(self, house: House) -> None:
        """One pays; the other is told that it is paid."""
        one = house.instance()
        first, second = [await house.ticket(one, "o1") for _ in range(2)]
        payment_in(await house.pay_order(one, first))
        assert reason_in((await house.pay_order(one, second)).response.body) == "ORDER_ALREADY_PAID"
        house.check()

    async def test_an_amount_with_a_ticket_for_an_order(self, house: House) -> None:
        """The order says what is owed; not remembered, so the same ticket pays once that is left out."""
        one = house.instance()
        ticket = await house.ticket(one, "o1")
        with pytest.raises(InvalidArgument) as refusal:
            await house.pay(one, ticket, clerk=LI, source=Source.DRAWER)
        assert refusal.value.reason == "TICKET_NAMES_ORDER"
        payment_in(await house.pay_order(one, ticket))


class TestForm:
    """What a direct payment has to say. Refused before the ticket is consumed."""

    @pytest.mark.parametrize(
        ("clerk", "command", "reason", "field"),
        [
            (LI, {"amount": None}, "FIELD_REQUIRED", "amount"),
            (LI, {"payee_account_id": ""}, "FIELD_REQUIRED", "payee_account_id"),
            (LI, {"customer_id": ""}, "FIELD_REQUIRED", "customer_id"),
            (LI, {"payee_account_id": WALLET}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"payee_account_id": "drawer:CNY"}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"payee_account_id": MERCHANT}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"payee_account_id": "wallet:li:CNY"}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"payee_account_id": "sales:USD"}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"customer_id": "tom"}, "NOT_YOUR_WALLET", ""),
            (TOM, {}, "NOT_YOUR_WALLET", ""),
            (TOM, {"source": Source.DRAWER}, "SOURCE_NOT_ALLOWED", ""),
        ],
    )
    async def test_what_can_never_work(
        self, house: House, clerk: Principal, command: dict[str, object], reason: str, field: str
    ) -> None:
        one = house.instance()
        ticket = await house.ticket(one, clerk=MEI if clerk == LI else clerk)
        asked: dict[str, object] = {
            "ticket_id": ticket,
            "source": Source.WALLET,
            "amount": Money(AMOUNT, "CNY"),
            "payee_account_id": MERCHANT,
            "customer_id": "mei",
            "memo": "",
            "fingerprint": "f",
        }
        with pytest.raises((InvalidArgument, PermissionDenied)) as refusal:
            await one.operations.pay(house.call(clerk), PayCommand(**(asked | command)))  # type: ignore[arg-type]
        assert refusal.value.reason == reason
        assert [name for name, _ in refusal.value.fields] == [field] * bool(field)
        assert house.state(ticket, PAY) is RequestState.ISSUED
        assert not house.store.payments

    async def test_a_customer_need_not_say_whose_wallet(self, house: House) -> None:
        one = house.instance()
        ticket = await house.ticket(one, clerk=MEI)
        payment = payment_in(await house.pay(one, ticket, clerk=MEI, customer=""))
        assert payment.payer_account_id == WALLET

    async def test_the_drawer_needs_no_customer(self, house: House) -> None:
        one = house.instance()
        ticket = await house.ticket(one, clerk=LI)
        payment = payment_in(await house.pay(one, ticket, clerk=LI, source=Source.DRAWER, customer=""))
        assert payment.payer_account_id == "drawer:CNY"


class TestWallets:
    """Money leaves a wallet for its owner alone, or with a ticket that its owner has fetched."""

    @pytest.mark.parametrize("clerk", [LI, WANG])
    async def test_pay_from_wallet_with_the_clerks_own_ticket_is_refused(self, house: House, clerk: Principal) -> None:
        """Whoever is paid; nothing is stored, and the ticket stays good for what is the clerk's to do."""
        one = house.instance()
        ticket = await house.ticket(one, clerk=clerk)
        for payee in (f"wallet:{clerk.name}:CNY", "sales:CNY"):
            with pytest.raises(PermissionDenied) as refusal:
                await house.pay(one, ticket, clerk=clerk, payee=payee)
            assert refusal.value.reason == "NOT_YOUR_WALLET"
        assert house.state(ticket, PAY) is RequestState.ISSUED
        assert not house.store.payments
        assert house.ledger.open[WALLET].balance == 1000

    async def test_pay_from_wallet_with_the_owners_ticket_pays_the_house_once(self, house: House) -> None:
        """The clerk who pressed is on the payment, the ticket is its owner's, and both may ask again."""
        one = house.instance()
        ticket = await house.ticket(one, clerk=MEI)
        answer = await house.pay(one, ticket, clerk=LI, payee="sales:CNY")
        payment = payment_in(answer)
        assert (payment.payer_account_id, payment.payee_account_id) == (WALLET, "sales:CNY")
        assert (house.of(ticket).clerk, house.of(ticket).key.caller) == (LI, MEI)
        for principal in (LI, MEI):
            again = await house.pay(one, ticket, clerk=principal, payee="sales:CNY")
            assert (again.response, again.replayed) == (answer.response, True)
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        house.check()

    async def test_pay_order_from_wallet_with_the_customers_ticket_settles_it(self, house: House) -> None:
        """At the counter: mei fetches a ticket for her order, and li pays with it."""
        one = house.instance()
        ticket = await house.ticket(one, "o1", clerk=MEI)
        command = PayCommand(ticket, Source.WALLET, None, "", "mei", "", "f")
        payment = payment_in(await one.operations.pay(house.call(LI), command))
        assert (payment.order_id, payment.payer_account_id, payment.payee_account_id) == ("o1", WALLET, "sales:CNY")
        assert house.order().state is OrderState.PAID
        house.check()

    async def test_pay_order_from_wallet_with_another_customers_ticket_is_refused(self, house: House) -> None:
        """A ticket that tom fetched for mei's order is no consent of mei's."""
        one = house.instance()
        ticket = await house.ticket(one, "o1", clerk=TOM)
        with pytest.raises(InvalidArgument) as refusal:
            await one.operations.pay(house.call(LI), PayCommand(ticket, Source.WALLET, None, "", "tom", "", "f"))
        assert refusal.value.reason == "CUSTOMER_MISMATCH"
        with pytest.raises(PermissionDenied) as refused:
            await one.operations.pay(house.call(LI), PayCommand(ticket, Source.WALLET, None, "", "mei", "", "f"))
        assert refused.value.reason == "NOT_YOUR_WALLET"
        assert not house.store.payments

    @pytest.mark.parametrize("source", [Source.DRAWER, Source.CARD])
    async def test_pay_order_customer_that_contradicts_the_order_is_refused(self, house: House, source: Source) -> None:
        """From whatever source; the order's own customer may be named."""
        one = house.instance()
        ticket = await house.ticket(one, "o1")
        card = CARD if source is Source.CARD else ""
        with pytest.raises(InvalidArgument) as refusal:
            await one.operations.pay(house.call(LI), PayCommand(ticket, source, None, "", "tom", "", "f", card))
        assert (refusal.value.reason, refusal.value.fields[0][0]) == ("CUSTOMER_MISMATCH", "customer_id")
        assert not house.store.payments
        payment_in(await one.operations.pay(house.call(LI), PayCommand(ticket, source, None, "", "mei", "", "f", card)))
        house.check()

    @pytest.mark.parametrize("clerk", [LI, WANG])
    async def test_settle_from_wallet_by_a_clerk_is_refused(self, house: House, clerk: Principal) -> None:
        """An order that anybody made in a customer's name is not the customer's consent; their own Settle is."""
        one = house.instance()
        with pytest.raises(PermissionDenied) as refusal:
            await house.settle(one, clerk=clerk, source=Source.WALLET)
        assert refusal.value.reason == "NOT_YOUR_WALLET"
        assert house.order().state is OrderState.UNPAID
        payment_in(await house.settle(one, clerk=MEI, source=Source.WALLET))

    async def test_wallet_payments_of_an_earlier_release_are_answered_from_the_store(self, house: House) -> None:
        """A clerk's own ticket, and a clerk's Settle, were enough then; they are replayed, and never executed again."""
        one = house.instance()
        stored = StoredResponse(True, b"then")
        ticket = RequestKey(LI, PAY, await house.ticket(one, clerk=LI))
        settled = RequestKey(LI, SETTLE, "s1")
        for key in (ticket, settled):
            house.store.requests.begin(key, "f", Lease("then", 0, 1))
            house.store.requests.finish(key, stored, now_ms=1)
        for answer in (
            await house.pay(one, ticket.key, clerk=LI),
            await house.settle(one, "s1", clerk=LI, source=Source.WALLET),
        ):
            assert (answer.response, answer.replayed) == (stored, True)
        assert not house.store.payments

    async def test_get_payment_made_with_a_customers_ticket_is_seen_by_that_customer_alone(self, house: House) -> None:
        one = house.instance()
        ticket = await house.ticket(one, clerk=MEI)
        payment_id = payment_in(await house.pay(one, ticket, clerk=LI, payee="sales:CNY")).payment_id
        for principal in (MEI, LI):
            assert (await one.operations.get(house.call(principal), payment_id)).payment_id == payment_id
        for stranger in (TOM, Principal("li", Role.CUSTOMER)):
            with pytest.raises(NotFound):
                await one.operations.get(house.call(stranger), payment_id)


class TestDirect:
    """No order, no lock: the ticket and the ledger's business key are the only guards."""

    async def test_it_asks_nobody_but_the_ledger(self, house: House) -> None:
        one = house.instance()
        await house.pay(one, await house.ticket(one))
        calls = one.process.calls
        assert [calls[name] for name in ("hold", "claim", "complete", "post")] == [0, 0, 0, 1]
        assert one.failpoints.passed == ["accepted", "submitted", "posted", "recorded"]
        assert not house.store.outbox
        house.check()

    async def test_an_empty_wallet(self, house: House) -> None:
        """Definitive: the ticket is used up, and its refusal is replayed even when there is money."""
        one = house.instance()
        ticket = await house.ticket(one)
        house.fund(WALLET, 0)
        answer = await house.pay(one, ticket)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        house.fund(WALLET, 10 * AMOUNT)
        assert (await house.pay(one, ticket)).response == answer.response
        house.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_the_ledger_does_not_answer(self, house: House, after: bool) -> None:
        """OK with UNKNOWN; the same ticket, or the worker, brings it to its end."""
        one = house.instance()
        ticket = await house.ticket(one)
        one.process.fails("post", OutcomeUnknown("OUTCOME_UNKNOWN", "no answer"), after=after)
        assert payment_in(await house.pay(one, ticket)).state == pb.PAYMENT_STATE_UNKNOWN
        assert house.of(ticket).state is PaymentState.UNKNOWN
        assert payment_in(await house.pay(house.instance(), ticket)).state == pb.PAYMENT_STATE_SUCCEEDED
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        house.check()

    async def test_the_ledger_is_away(self, house: House) -> None:
        """Never sent, but submitted: OK with SUBMITTED, and the worker sends it."""
        one = house.instance()
        ticket = await house.ticket(one)
        one.process.fails("post", Unavailable("PEER_UNAVAILABLE", "never sent"))
        assert payment_in(await house.pay(one, ticket)).state == pb.PAYMENT_STATE_SUBMITTED
        await house.recovered(by=house.instance())
        assert house.of(ticket).state is PaymentState.SUCCEEDED
        house.check()

    async def test_two_executions_at_once(self, house: House) -> None:
        """The first is frozen after the ledger posted, the worker finishes; waking, it is answered as the other was."""
        one = house.instance()
        ticket = await house.ticket(one)

        async def meanwhile() -> None:
            await house.recovered(by=house.instance())
            assert house.of(ticket).state is PaymentState.SUCCEEDED

        one.failpoints.at["posted"] = meanwhile
        answer = await house.pay(one, ticket)
        assert answer.response == house.stored(ticket, PAY)
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        house.check()

    async def test_a_dead_one_is_carried_on_by_its_own_ticket(self, house: House) -> None:
        """Once its lease has passed, and not before."""
        one, two = house.instance(), house.instance()
        ticket = await house.ticket(one)
        one.process.fails("record", Died())
        with pytest.raises(Died):
            await house.pay(one, ticket)
        with pytest.raises(RequestInProgress):
            await house.pay(two, ticket)
        house.lapse(one)
        payment_in(await house.pay(two, ticket))
        assert house.ledger.open[WALLET].balance == 1000 - AMOUNT
        house.check()
