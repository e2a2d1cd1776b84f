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
from services.ledger.model import Account, AccountKind
from services.order.model import OrderState
from services.payment.model import PAY, SETTLE, PaymentState, Source
from services.payment.operations import PayCommand
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import AMOUNT, CARD, LI, MEI, MERCHANT, WALLET, WANG, InMemoryCluster, payment_in
from tests.unit.payment.test_settle import reason_in

TOM = Principal("tom", Role.CUSTOMER)


class TestTickets:
    """Method 1 of idempotency."""

    async def test_ticket_is_issued_once_for_a_request(self, cluster: InMemoryCluster) -> None:
        """Asked again, the same one; and its time is the caller's."""
        one = cluster.instance()
        answers = [await one.operations.issue_ticket(cluster.call(LI), "r1", "o1", 60, "f") for _ in range(2)]
        assert [answer.replayed for answer in answers] == [False, True]
        assert answers[0].response == answers[1].response
        ticket = pb.IssueTicketResponse.FromString(answers[0].response.body).ticket
        assert (ticket.order_id, ticket.expires_at_ms) == ("o1", cluster.clock.now_ms() + 60_000)

    async def test_ticket_of_another_caller_is_not_found(self, cluster: InMemoryCluster) -> None:
        """Somebody else is whoever has another name or another role."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=LI)
        for principal, source in (
            (WANG, Source.BANK),
            (Principal("li", Role.ACCOUNTANT), Source.BANK),
            (Principal("li", Role.CUSTOMER), Source.CARD),
        ):
            with pytest.raises(NotFound) as refusal:
                await cluster.pay(one, ticket, clerk=principal, source=source, customer="")
            assert refusal.value.reason == "TICKET_NOT_FOUND"

    async def test_ten_clicks_pay_once(self, cluster: InMemoryCluster) -> None:
        """One ticket, ten Pays at once at two instances: one charge, ten equal answers in the end."""
        instances = [cluster.instance(), cluster.instance()]
        ticket = await cluster.ticket(instances[0])
        clicks = await asyncio.gather(
            *(cluster.pay(instances[n % 2], ticket) for n in range(10)), return_exceptions=True
        )
        assert all(isinstance(click, RequestInProgress) for click in clicks if isinstance(click, BaseException))
        answers = [await cluster.pay(instances[n % 2], ticket) for n in range(10)]
        assert len({answer.response.body for answer in answers}) == 1
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        assert cluster.ledger.open[MERCHANT].balance == 1000 + AMOUNT
        cluster.check()

    async def test_expired_ticket_is_refused_for_ever(self, cluster: InMemoryCluster) -> None:
        """Before anybody swept and after; nothing is charged."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, ttl_s=1)
        cluster.clock.advance(1_000)
        for _ in range(2):
            with pytest.raises(FailedPrecondition) as refusal:
                await cluster.pay(one, ticket)
            assert refusal.value.reason == "TICKET_EXPIRED"
            await one.operations.recovery.recover()
        assert cluster.state(ticket, PAY) is RequestState.EXPIRED
        assert not cluster.store.payments

    async def test_used_ticket_does_not_expire(self, cluster: InMemoryCluster) -> None:
        """Its stored response is replayed for ever after."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, ttl_s=1)
        answer = await cluster.pay(one, ticket)
        cluster.clock.advance(400 * 24 * 3600 * 1000)
        await one.operations.recovery.recover()
        again = await cluster.pay(one, ticket)
        assert (again.response, again.replayed) == (answer.response, True)

    async def test_ticket_for_an_order_pays_it_under_its_lock(self, cluster: InMemoryCluster) -> None:
        """As Settle does; the ticket stays on the payment."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o1")
        payment = payment_in(await cluster.pay_order(one, ticket))
        assert (payment.order_id, payment.ticket_id) == ("o1", ticket)
        assert cluster.order().state is OrderState.PAID
        assert one.process.calls["hold"] == 1
        assert payment_in(await cluster.pay_order(cluster.instance(), ticket)) == payment
        cluster.check()

    async def test_second_ticket_for_a_paid_order_is_refused(self, cluster: InMemoryCluster) -> None:
        """One pays; the other is told that it is paid."""
        one = cluster.instance()
        first, second = [await cluster.ticket(one, "o1") for _ in range(2)]
        payment_in(await cluster.pay_order(one, first))
        assert reason_in((await cluster.pay_order(one, second)).response.body) == "ORDER_ALREADY_PAID"
        cluster.check()

    async def test_amount_with_a_ticket_for_an_order_is_refused(self, cluster: InMemoryCluster) -> None:
        """The order says what is owed; not remembered, so the same ticket pays once that is left out."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o1")
        with pytest.raises(InvalidArgument) as refusal:
            await cluster.pay(one, ticket, clerk=LI, source=Source.DRAWER)
        assert refusal.value.reason == "TICKET_NAMES_ORDER"
        payment_in(await cluster.pay_order(one, ticket))


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
            (LI, {"source": Source.CARD, "payee_account_id": "wallet:li:CNY"}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"source": Source.CARD, "customer_id": ""}, "PAYEE_INVALID", "payee_account_id"),
            (LI, {"customer_id": "tom"}, "NOT_YOUR_WALLET", ""),
            (TOM, {}, "NOT_YOUR_WALLET", ""),
            (TOM, {"source": Source.DRAWER}, "SOURCE_NOT_ALLOWED", ""),
        ],
    )
    async def test_invalid_payment_is_refused(
        self, cluster: InMemoryCluster, clerk: Principal, command: dict[str, object], reason: str, field: str
    ) -> None:
        one = cluster.instance()
        from_wallet = command.get("source", Source.WALLET) is Source.WALLET
        ticket = await cluster.ticket(one, clerk=MEI if clerk == LI and from_wallet else clerk)
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
            await one.operations.pay(cluster.call(clerk), PayCommand(**(asked | command)))  # type: ignore[arg-type]
        assert refusal.value.reason == reason
        assert [name for name, _ in refusal.value.fields] == [field] * bool(field)
        assert cluster.state(ticket, PAY) is RequestState.ISSUED
        assert not cluster.store.payments

    async def test_customer_may_leave_out_the_wallets_owner(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=MEI)
        payment = payment_in(await cluster.pay(one, ticket, clerk=MEI, customer=""))
        assert payment.payer_account_id == WALLET

    async def test_drawer_needs_no_customer(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=LI)
        payment = payment_in(await cluster.pay(one, ticket, clerk=LI, source=Source.DRAWER, customer=""))
        assert payment.payer_account_id == "drawer:CNY"


class TestWallets:
    """Money leaves a wallet for its owner alone, or with a ticket that its owner has fetched."""

    @pytest.mark.parametrize("clerk", [LI, WANG])
    async def test_pay_from_wallet_with_the_clerks_own_ticket_is_refused(
        self, cluster: InMemoryCluster, clerk: Principal
    ) -> None:
        """Whoever is paid; nothing is stored, and the ticket stays good for what is the clerk's to do."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=clerk)
        for payee in (f"wallet:{clerk.name}:CNY", "sales:CNY"):
            with pytest.raises(PermissionDenied) as refusal:
                await cluster.pay(one, ticket, clerk=clerk, payee=payee)
            assert refusal.value.reason == "NOT_YOUR_WALLET"
        assert cluster.state(ticket, PAY) is RequestState.ISSUED
        assert not cluster.store.payments
        assert cluster.ledger.open[WALLET].balance == 1000

    async def test_pay_from_wallet_with_the_owners_ticket_pays_the_house_once(self, cluster: InMemoryCluster) -> None:
        """The clerk who pressed is on the payment, the ticket is its owner's, and both may ask again."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=MEI)
        answer = await cluster.pay(one, ticket, clerk=LI, payee="sales:CNY")
        payment = payment_in(answer)
        assert (payment.payer_account_id, payment.payee_account_id) == (WALLET, "sales:CNY")
        assert (cluster.of(ticket).clerk, cluster.of(ticket).key.caller) == (LI, MEI)
        for principal in (LI, MEI):
            again = await cluster.pay(one, ticket, clerk=principal, payee="sales:CNY")
            assert (again.response, again.replayed) == (answer.response, True)
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        cluster.check()

    async def test_pay_order_from_wallet_with_the_customers_ticket_settles_it(self, cluster: InMemoryCluster) -> None:
        """At the counter: mei fetches a ticket for her order, and li pays with it."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o1", clerk=MEI)
        command = PayCommand(ticket, Source.WALLET, None, "", "mei", "", "f")
        payment = payment_in(await one.operations.pay(cluster.call(LI), command))
        assert (payment.order_id, payment.payer_account_id, payment.payee_account_id) == ("o1", WALLET, "sales:CNY")
        assert cluster.order().state is OrderState.PAID
        cluster.check()

    async def test_pay_order_from_wallet_with_another_customers_ticket_is_refused(
        self, cluster: InMemoryCluster
    ) -> None:
        """A ticket that tom fetched for mei's order is no consent of mei's."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o1", clerk=TOM)
        with pytest.raises(InvalidArgument) as refusal:
            await one.operations.pay(cluster.call(LI), PayCommand(ticket, Source.WALLET, None, "", "tom", "", "f"))
        assert refusal.value.reason == "CUSTOMER_MISMATCH"
        with pytest.raises(PermissionDenied) as refused:
            await one.operations.pay(cluster.call(LI), PayCommand(ticket, Source.WALLET, None, "", "mei", "", "f"))
        assert refused.value.reason == "NOT_YOUR_WALLET"
        assert not cluster.store.payments

    @pytest.mark.parametrize("source", [Source.DRAWER, Source.CARD])
    async def test_pay_order_customer_that_contradicts_the_order_is_refused(
        self, cluster: InMemoryCluster, source: Source
    ) -> None:
        """From whatever source; the order's own customer may be named."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o1")
        card = CARD if source is Source.CARD else ""
        with pytest.raises(InvalidArgument) as refusal:
            await one.operations.pay(cluster.call(LI), PayCommand(ticket, source, None, "", "tom", "", "f", card))
        assert (refusal.value.reason, refusal.value.fields[0][0]) == ("CUSTOMER_MISMATCH", "customer_id")
        assert not cluster.store.payments
        payment_in(
            await one.operations.pay(cluster.call(LI), PayCommand(ticket, source, None, "", "mei", "", "f", card))
        )
        cluster.check()

    @pytest.mark.parametrize("clerk", [LI, WANG])
    async def test_settle_from_wallet_by_a_clerk_is_refused(self, cluster: InMemoryCluster, clerk: Principal) -> None:
        """An order that anybody made in a customer's name is not the customer's consent; their own Settle is."""
        one = cluster.instance()
        with pytest.raises(PermissionDenied) as refusal:
            await cluster.settle(one, clerk=clerk, source=Source.WALLET)
        assert refusal.value.reason == "NOT_YOUR_WALLET"
        assert cluster.order().state is OrderState.UNPAID
        payment_in(await cluster.settle(one, clerk=MEI, source=Source.WALLET))

    async def test_wallet_payments_of_an_earlier_release_are_answered_from_the_store(
        self, cluster: InMemoryCluster
    ) -> None:
        """A clerk's own ticket, and a clerk's Settle, were enough then; they are replayed, and never executed again."""
        one = cluster.instance()
        stored = StoredResponse(True, b"then")
        ticket = RequestKey(LI, PAY, await cluster.ticket(one, clerk=LI))
        settled = RequestKey(LI, SETTLE, "s1")
        for key in (ticket, settled):
            cluster.store.requests.begin(key, "f", Lease("then", 0, 1))
            cluster.store.requests.finish(key, stored, now_ms=1)
        for answer in (
            await cluster.pay(one, ticket.key, clerk=LI),
            await cluster.settle(one, "s1", clerk=LI, source=Source.WALLET),
        ):
            assert (answer.response, answer.replayed) == (stored, True)
        assert not cluster.store.payments

    async def test_get_payment_made_with_a_customers_ticket_is_seen_by_that_customer_alone(
        self, cluster: InMemoryCluster
    ) -> None:
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=MEI)
        payment_id = payment_in(await cluster.pay(one, ticket, clerk=LI, payee="sales:CNY")).payment_id
        for principal in (MEI, LI):
            assert (await one.operations.get(cluster.call(principal), payment_id)).payment_id == payment_id
        for stranger in (TOM, Principal("li", Role.CUSTOMER)):
            with pytest.raises(NotFound):
                await one.operations.get(cluster.call(stranger), payment_id)


class TestDirect:
    """No order, no lock: the ticket and the ledger's business key are the only guards."""

    async def test_direct_payment_calls_only_the_ledger(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        await cluster.pay(one, await cluster.ticket(one))
        calls = one.process.calls
        assert [calls[name] for name in ("hold", "claim", "complete", "post")] == [0, 0, 0, 1]
        assert one.failpoints.passed == ["accepted", "submitted", "posted", "recorded"]
        assert not cluster.store.outbox
        cluster.check()

    @pytest.mark.parametrize("source", [Source.WALLET, Source.CARD])
    @pytest.mark.parametrize("kind", [AccountKind.ASSET, AccountKind.EXPENSE])
    async def test_direct_payment_to_an_account_that_a_credit_lowers_is_declined(
        self, cluster: InMemoryCluster, source: Source, kind: AccountKind
    ) -> None:
        """A safe would lose the money, and tell the customer what it holds. No card is charged."""
        cluster.ledger.open["safe3"] = Account("safe3", kind, "CNY", overdraft_limit=10_000)
        one = cluster.instance()
        ticket = await cluster.ticket(one, clerk=MEI)
        answer = await cluster.pay(one, ticket, clerk=MEI, source=source, payee="safe3")
        assert reason_in(answer.response.body) == "PAYEE_NOT_CREDITABLE"
        assert (one.process.calls["post"], one.process.calls["charge"]) == (0, 0)
        cluster.check()

    async def test_direct_payment_from_an_empty_wallet_is_declined(self, cluster: InMemoryCluster) -> None:
        """Definitive: the ticket is used up, and its refusal is replayed even when there is money."""
        one = cluster.instance()
        ticket = await cluster.ticket(one)
        cluster.fund(WALLET, 0)
        answer = await cluster.pay(one, ticket)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        cluster.fund(WALLET, 10 * AMOUNT)
        assert (await cluster.pay(one, ticket)).response == answer.response
        cluster.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_direct_payment_with_a_silent_ledger_is_unknown(self, cluster: InMemoryCluster, after: bool) -> None:
        """OK with UNKNOWN; the same ticket, or the worker, brings it to its end."""
        one = cluster.instance()
        ticket = await cluster.ticket(one)
        one.process.fails("post", OutcomeUnknown("OUTCOME_UNKNOWN", "no answer"), after=after)
        assert payment_in(await cluster.pay(one, ticket)).state == pb.PAYMENT_STATE_UNKNOWN
        assert cluster.of(ticket).state is PaymentState.UNKNOWN
        assert payment_in(await cluster.pay(cluster.instance(), ticket)).state == pb.PAYMENT_STATE_SUCCEEDED
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        cluster.check()

    async def test_direct_payment_with_an_absent_ledger_stays_submitted(self, cluster: InMemoryCluster) -> None:
        """Never sent, but submitted: OK with SUBMITTED, and the worker sends it."""
        one = cluster.instance()
        ticket = await cluster.ticket(one)
        one.process.fails("post", Unavailable("PEER_UNAVAILABLE", "never sent"))
        assert payment_in(await cluster.pay(one, ticket)).state == pb.PAYMENT_STATE_SUBMITTED
        await cluster.recovered(by=cluster.instance())
        assert cluster.of(ticket).state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_frozen_execution_gets_the_workers_answer(self, cluster: InMemoryCluster) -> None:
        """The first is frozen after the ledger posted, the worker finishes; waking, it is answered as the other was."""
        one = cluster.instance()
        ticket = await cluster.ticket(one)

        async def meanwhile() -> None:
            await cluster.recovered(by=cluster.instance())
            assert cluster.of(ticket).state is PaymentState.SUCCEEDED

        one.failpoints.at["posted"] = meanwhile
        answer = await cluster.pay(one, ticket)
        assert answer.response == cluster.stored(ticket, PAY)
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        cluster.check()

    async def test_dead_execution_is_carried_on_by_its_ticket(self, cluster: InMemoryCluster) -> None:
        """Once its lease has passed, and not before."""
        one, two = cluster.instance(), cluster.instance()
        ticket = await cluster.ticket(one)
        one.process.fails("record", Died())
        with pytest.raises(Died):
            await cluster.pay(one, ticket)
        with pytest.raises(RequestInProgress):
            await cluster.pay(two, ticket)
        cluster.lapse(one)
        payment_in(await cluster.pay(two, ticket))
        assert cluster.ledger.open[WALLET].balance == 1000 - AMOUNT
        cluster.check()
