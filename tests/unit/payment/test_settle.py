"""Settle, step by step: what each thing that can go wrong leaves behind, and that the same request id ends it well."""

from __future__ import annotations

import asyncio

import pytest

from services.kernel.clock import rfc3339
from services.kernel.errors import (
    Aborted,
    CountinghouseError,
    FailedPrecondition,
    KeyMismatch,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    RequestInProgress,
    StaleFence,
    Unavailable,
)
from services.kernel.fence import Fence
from services.kernel.idempotency import RequestState
from services.kernel.principal import Principal, Role
from services.ledger.model import Account, AccountKind
from services.order.model import OrderState
from services.payment.model import PaymentState, Source
from services.runtime.grpc import status
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import (
    AMOUNT,
    DRAWER,
    LEASE_MS,
    LI,
    MEI,
    WALLET,
    WANG,
    InMemoryCluster,
    Instance,
    payment_in,
)

SILENCE = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
AWAY = Unavailable("PEER_UNAVAILABLE", "never sent")
FAILPOINTS = ["accepted", "locked", "claimed", "submitted", "posted", "recorded", "completed", "released"]


def reason_in(body: bytes) -> str:
    """The reason of a stored refusal."""
    return refusal_in(body).reason


def refusal_in(body: bytes) -> CountinghouseError:
    from google.rpc import status_pb2

    return status.from_status(status_pb2.Status.FromString(body))


async def half_settled(cluster: InMemoryCluster, step: str, *, after: bool = False) -> Instance:
    """A clerk's process dies at a step of settling `o1`, and its session ends."""
    dying = cluster.instance()
    dying.process.fails(step, Died(), after=after)
    with pytest.raises(Died):
        await cluster.settle(dying, "dead")
    dying.process.dead = True
    cluster.locks.expire(dying.name)
    return dying


class TestSucceeded:
    """Nothing goes wrong."""

    async def test_order_is_settled(self, cluster: InMemoryCluster) -> None:
        """PAID by the clerk of the token, one journal, the answer stored, every failpoint passed in its order."""
        one = cluster.instance()
        answer = await cluster.settle(one)
        payment = payment_in(answer)
        assert (payment.clerk.name, payment.order_id, payment.round) == ("li", "o1", 1)
        assert not answer.replayed
        assert answer.response == cluster.stored("s1")
        (journal,) = cluster.journals()
        assert (journal.draft.business_key, journal.draft.payment_id) == ("settle:o1:1", payment.payment_id)
        order = cluster.order()
        assert (order.state, order.settled_by, order.payment_id) == (OrderState.PAID, LI, payment.payment_id)
        assert cluster.ledger.open[DRAWER].balance == AMOUNT
        assert one.failpoints.passed == FAILPOINTS
        cluster.check()

    async def test_money_moves_after_the_submission_is_committed(self, cluster: InMemoryCluster) -> None:
        """Invariant 1 of the model: at `submitted` the store says so, and the ledger has not been asked."""
        one = cluster.instance()

        async def look() -> None:
            assert cluster.of("s1").state is PaymentState.SUBMITTED
            assert not cluster.ledger.chain

        one.failpoints.at["submitted"] = look
        await cluster.settle(one)
        assert "submitted" not in one.failpoints.at

    async def test_repeated_settle_is_replayed(self, cluster: InMemoryCluster) -> None:
        """At another instance too: the stored bytes, marked, and nothing is touched."""
        first = await cluster.settle(cluster.instance())
        other = cluster.instance()
        again = await cluster.settle(other)
        assert again.replayed
        assert again.response == first.response
        assert dict(other.process.calls) == {"accept": 1}

    async def test_ten_clicks_settle_once(self, cluster: InMemoryCluster) -> None:
        """The same request id ten times at two instances: one effect, and every answer is the stored one in the end."""
        instances = [cluster.instance(), cluster.instance()]
        outcomes = await asyncio.gather(*(cluster.settle(instances[n % 2]) for n in range(10)), return_exceptions=True)
        assert all(isinstance(outcome, RequestInProgress) for outcome in outcomes if isinstance(outcome, BaseException))
        answers = [await cluster.settle(instances[n % 2]) for n in range(10)]
        assert {answer.response.body for answer in answers} == {cluster.stored("s1").body}  # type: ignore[union-attr]
        assert len(cluster.journals()) == 1
        cluster.check()

    async def test_another_payload_under_the_key_is_refused(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        await cluster.settle(one)
        with pytest.raises(KeyMismatch):
            await cluster.settle(one, fingerprint="another")

    @pytest.mark.parametrize(
        ("clerk", "source"), [(LI, Source.BANK), (WANG, Source.DRAWER), (Principal("a", Role.AUDITOR), Source.WALLET)]
    )
    async def test_source_of_another_role_is_refused(
        self, cluster: InMemoryCluster, clerk: Principal, source: Source
    ) -> None:
        """Refused before anything is written down, so the same id may be sent again, mended."""
        one = cluster.instance()
        with pytest.raises(PermissionDenied):
            await cluster.settle(one, clerk=clerk, source=source)
        assert not cluster.store.requests.rows

    async def test_customer_settles_their_own_order_only(self, cluster: InMemoryCluster) -> None:
        """Another's is not forbidden but not there."""
        one = cluster.instance()
        with pytest.raises(NotFound):
            await cluster.settle(one, clerk=Principal("tom", Role.CUSTOMER), source=Source.WALLET)
        assert not cluster.store.payments
        payment = payment_in(await cluster.settle(one, clerk=MEI, source=Source.WALLET))
        assert payment.payer_account_id == WALLET


class TestRefused:
    """The order is not there to be settled."""

    async def test_settle_of_a_paid_order_is_refused(self, cluster: InMemoryCluster) -> None:
        """ALREADY_EXISTS, with the payment, the clerk and the time; stored, and replayed byte for byte."""
        one = cluster.instance()
        settled = payment_in(await cluster.settle(one))
        cluster.clock.advance(41)
        answer = await cluster.settle(one, "s2", clerk=WANG)
        assert not answer.response.ok
        refusal = refusal_in(answer.response.body)
        assert refusal.reason == "ORDER_ALREADY_PAID"
        settled_at = rfc3339(settled.settled_at_ms)
        assert refusal.message == (
            f"o1 was already settled by li (cashier) from the drawer at {settled_at} with payment {settled.payment_id}"
        )
        assert (refusal.metadata["source"], refusal.metadata["role"]) == ("DRAWER", "cashier")
        assert refusal.metadata["payment_id"] == settled.payment_id
        assert refusal.metadata["clerk"] == "li"
        assert refusal.metadata["settled_at_ms"] == str(settled.settled_at_ms)
        assert cluster.of("s2").state is PaymentState.DECLINED
        cluster.clock.advance(60_000)
        again = await cluster.settle(cluster.instance(), "s2", clerk=WANG)
        assert (again.response, again.replayed) == (answer.response, True)
        assert len(cluster.journals()) == 1
        cluster.check()

    async def test_settle_of_a_cancelled_order_is_refused(self, cluster: InMemoryCluster) -> None:
        """ORDER_NOT_PAYABLE, definitive; the cancelled order stays cancelled."""
        await cluster.cancel()
        answer = await cluster.settle(cluster.instance())
        assert reason_in(answer.response.body) == "ORDER_NOT_PAYABLE"
        assert cluster.order().state is OrderState.CANCELLED
        assert not cluster.ledger.chain
        cluster.check()

    async def test_settle_of_an_order_that_does_not_exist_ends_its_payment(self, cluster: InMemoryCluster) -> None:
        """DECLINED, so that no list shows it as open; the same request id is answered alike, even once it exists."""
        answer = await cluster.settle(cluster.instance(), order_id="o2")
        assert (type(refusal_in(answer.response.body)), reason_in(answer.response.body)) == (
            NotFound,
            "ORDER_NOT_FOUND",
        )
        assert (cluster.of("s1").state, cluster.of("s1").decline_reason) == (PaymentState.DECLINED, "ORDER_NOT_FOUND")
        assert cluster.state("s1") is RequestState.DONE
        await cluster.new_order("o2")
        again = await cluster.settle(cluster.instance(), order_id="o2")
        assert (again.response, again.replayed) == (answer.response, True)
        assert payment_in(await cluster.settle(cluster.instance(), "s2", "o2")).order_id == "o2"
        cluster.check()

    async def test_pay_for_an_order_that_does_not_exist_ends_its_payment(self, cluster: InMemoryCluster) -> None:
        """The ticket is used up by the refusal."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o2", clerk=LI)
        answer = await cluster.pay_order(one, ticket)
        assert reason_in(answer.response.body) == "ORDER_NOT_FOUND"
        (payment,) = cluster.store.payments.values()
        assert payment.state is PaymentState.DECLINED
        assert (await cluster.pay_order(one, ticket)).response == answer.response
        cluster.check()

    async def test_pay_for_a_customer_whose_order_does_not_exist_leaves_the_ticket_unused(
        self, cluster: InMemoryCluster
    ) -> None:
        """The order is looked at first; the same ticket pays it once it exists."""
        one = cluster.instance()
        ticket = await cluster.ticket(one, "o2", clerk=LI)
        with pytest.raises(NotFound, match="o2") as refusal:
            await cluster.pay_order(one, ticket, customer="mei")
        assert (refusal.value.reason, cluster.store.payments) == ("ORDER_NOT_FOUND", {})
        await cluster.new_order("o2")
        assert payment_in(await cluster.pay_order(one, ticket, customer="mei")).order_id == "o2"
        cluster.check()

    async def test_settle_whose_clerk_died_and_whose_order_does_not_exist_is_ended_by_the_worker(
        self, cluster: InMemoryCluster
    ) -> None:
        """With the answer that the clerk would have got."""
        dying = cluster.instance()
        dying.process.fails("claim", Died())
        with pytest.raises(Died):
            await cluster.settle(dying, order_id="o2")
        dying.process.dead = True
        cluster.locks.expire(dying.name)
        cluster.lapse()
        await cluster.instance().operations.recovery.recover()
        assert cluster.of("s1").state is PaymentState.DECLINED
        assert reason_in((await cluster.settle(cluster.instance(), order_id="o2")).response.body) == "ORDER_NOT_FOUND"
        cluster.check()

    async def test_settle_from_an_empty_wallet_is_declined(self, cluster: InMemoryCluster) -> None:
        """DECLINED: no money moved, the order is free again, and the refusal is replayed even when there is money."""
        cluster.fund(WALLET, AMOUNT - 1)
        one = cluster.instance()
        answer = await cluster.settle(one, source=Source.WALLET)
        refusal = refusal_in(answer.response.body)
        assert (type(refusal), refusal.reason) == (FailedPrecondition, "INSUFFICIENT_FUNDS")
        assert cluster.of("s1").state is PaymentState.DECLINED
        assert cluster.order().state is OrderState.UNPAID
        assert not cluster.ledger.chain
        cluster.check()
        cluster.fund(WALLET, 10 * AMOUNT)
        again = await cluster.settle(one, source=Source.WALLET)
        assert (again.response, again.replayed) == (answer.response, True)
        assert payment_in(await cluster.settle(one, "s2", source=Source.WALLET)).order_id == "o1"
        cluster.check()

    async def test_settle_from_a_missing_wallet_is_declined(self, cluster: InMemoryCluster) -> None:
        """The ledger does not know the account: as definitive as an empty one."""
        del cluster.ledger.open[WALLET]
        answer = await cluster.settle(cluster.instance(), source=Source.WALLET)
        assert reason_in(answer.response.body) == "ACCOUNT_NOT_FOUND"
        cluster.ledger.open[WALLET] = Account(WALLET, AccountKind.LIABILITY, "CNY", balance=AMOUNT)
        assert not cluster.journals()
        cluster.check()

    async def test_settle_of_a_round_in_the_ledger_names_its_payment(self, cluster: InMemoryCluster) -> None:
        """The unique business key is the last guard: the loser is told that it was settled, and whose payment did."""
        one = cluster.instance()
        settled = payment_in(await cluster.settle(one))
        cluster.forget_settled()
        answer = await cluster.settle(one, "s2")
        refusal = refusal_in(answer.response.body)
        assert (refusal.reason, refusal.metadata["guard"]) == ("ORDER_ALREADY_PAID", "unique")
        assert refusal.metadata["payment_id"] == settled.payment_id
        assert len(cluster.journals()) == 1

    async def test_settle_of_an_order_lost_by_the_order_service_is_refused(self, cluster: InMemoryCluster) -> None:
        """It was restored from a backup; the one active payment refuses, and the new claim on the order is released."""
        one = cluster.instance()
        settled = payment_in(await cluster.settle(one))
        cluster.forget_order()
        answer = await cluster.settle(one, "s2")
        refusal = refusal_in(answer.response.body)
        assert (refusal.reason, refusal.metadata["guard"]) == ("ORDER_ALREADY_PAID", "unique")
        assert refusal.metadata["payment_id"] == settled.payment_id
        assert cluster.order().state is OrderState.UNPAID
        assert len(cluster.journals()) == 1


class TestGivenBack:
    """Nothing was done, so the same request id may run again."""

    async def test_settle_of_a_locked_order_is_given_back(self, cluster: InMemoryCluster) -> None:
        """ABORTED with the holder; when the holder is gone, the same id settles."""
        holder = cluster.locks.of("another")
        one = cluster.instance()
        async with holder.hold("o1", WANG, "p0", 1):
            with pytest.raises(Aborted) as refusal:
                await cluster.settle(one)
            assert refusal.value.reason == "ORDER_LOCKED"
            assert refusal.value.metadata["holder"] == "wang"
            assert cluster.state("s1") is RequestState.ISSUED
            assert refusal.value.__cause__ is not refusal.value
            assert one.process.calls["claim"] == 0
        payment_in(await cluster.settle(cluster.instance()))
        cluster.check()

    async def test_ten_clerks_queue_for_one_order(self, cluster: InMemoryCluster) -> None:
        """Ten clerks at ten instances: the first in line settles, the others are told by whom."""
        cluster.locks.patience_s = 5
        outcomes = await asyncio.gather(*(cluster.settle(cluster.instance(), f"s{n}") for n in range(10)))
        assert [outcome.response.ok for outcome in outcomes] == [True] + [False] * 9
        assert {reason_in(outcome.response.body) for outcome in outcomes[1:]} == {"ORDER_ALREADY_PAID"}
        cluster.check()

    async def test_settle_without_zookeeper_is_given_back(self, cluster: InMemoryCluster) -> None:
        """UNAVAILABLE, nothing left IN_PROGRESS; back again, the same id settles."""
        cluster.locks.away = Unavailable("ZOOKEEPER_UNAVAILABLE", "away")
        one = cluster.instance()
        with pytest.raises(Unavailable) as refusal:
            await cluster.settle(one)
        assert refusal.value.reason == "ZOOKEEPER_UNAVAILABLE"
        assert refusal.value.retry_after_ms
        assert cluster.state("s1") is RequestState.ISSUED
        assert one.process.calls["claim"] == 0
        cluster.locks.away = None
        payment_in(await cluster.settle(one))
        cluster.check()

    async def test_settle_without_the_order_service_is_given_back(self, cluster: InMemoryCluster) -> None:
        """The claim was never sent."""
        one = cluster.instance()
        one.process.fails("claim", AWAY)
        with pytest.raises(Unavailable):
            await cluster.settle(one)
        assert cluster.state("s1") is RequestState.ISSUED
        payment_in(await cluster.settle(one))
        cluster.check()

    async def test_settle_whose_claim_has_a_stale_fence_is_given_back(self, cluster: InMemoryCluster) -> None:
        """Somebody locked the order since: ABORTED, and the retry comes with a newer fence."""
        cluster.orders.fences["o1"] = Fence(1, 2)
        one = cluster.instance()
        with pytest.raises(StaleFence):
            await cluster.settle(one)
        assert cluster.state("s1") is RequestState.ISSUED
        await cluster.settle(one)  # fence 2: equal is the same holder asking again
        cluster.check()

    async def test_settle_without_time_for_the_lock_is_given_back(self, cluster: InMemoryCluster) -> None:
        """DEADLINE_TOO_SHORT, before anybody was asked."""
        one = cluster.instance()
        with pytest.raises(Unavailable) as refusal:
            await cluster.settle(one, seconds=0)
        assert refusal.value.reason == "DEADLINE_TOO_SHORT"
        assert cluster.state("s1") is RequestState.ISSUED
        assert one.process.calls["hold"] == 0
        payment_in(await cluster.settle(one))

    async def test_settle_begun_by_an_earlier_execution_is_not_given_back(self, cluster: InMemoryCluster) -> None:
        """A second execution cannot know what the first one did: the request stays open, and free to be carried on."""
        await half_settled(cluster, "claim")
        cluster.lapse()
        cluster.locks.away = AWAY
        with pytest.raises(OutcomeUnknown, match="may carry it on") as refusal:
            await cluster.settle(cluster.instance(), "dead")
        assert refusal.value.reason == AWAY.reason
        assert cluster.state("dead") is RequestState.IN_PROGRESS
        cluster.locks.away = None
        payment_in(await cluster.settle(cluster.instance(), "dead"))
        cluster.check()

    async def test_settle_taken_over_while_it_waits_for_the_lock_is_not_refused(self, cluster: InMemoryCluster) -> None:
        """The worker has its request and will settle the order: ORDER_LOCKED would say that nothing was done."""
        one, worker = cluster.instance(), cluster.instance()

        async def meanwhile() -> None:
            cluster.lapse()
            with pytest.raises(Aborted) as refusal:
                await worker.operations.recovery.recover()
            assert refusal.value.reason == "ORDER_LOCKED"

        one.failpoints.at["accepted"] = meanwhile
        async with cluster.locks.of("another").hold("o1", WANG, "p0", 1):
            with pytest.raises(OutcomeUnknown, match="may carry it on") as refusal:
                await cluster.settle(one)
        assert refusal.value.reason == "ORDER_LOCKED"
        assert refusal.value.metadata["holder"] == "wang"
        await cluster.recovered(by=worker)
        assert cluster.order().state is OrderState.PAID
        assert (await cluster.settle(one)).response == cluster.stored("s1")
        cluster.check()

    async def test_settle_that_cannot_be_given_back_is_not_refused(self, cluster: InMemoryCluster) -> None:
        """The database is away by then: the worker finds the request when it is back, and settles the order."""
        one = cluster.instance()
        one.process.fails("give_back", AWAY)
        async with cluster.locks.of("another").hold("o1", WANG, "p0", 1):
            with pytest.raises(OutcomeUnknown, match="may carry it on") as refusal:
                await cluster.settle(one)
        assert refusal.value.reason == "ORDER_LOCKED"
        await cluster.recovered(by=cluster.instance())
        assert cluster.order().state is OrderState.PAID
        cluster.check()

    async def test_settle_without_a_database_after_the_claim_is_not_refused(self, cluster: InMemoryCluster) -> None:
        """UNAVAILABLE would say that nothing was done; the worker brings the payment to its end."""
        one = cluster.instance()
        one.process.fails("submit", AWAY)
        with pytest.raises(OutcomeUnknown, match="may carry it on") as refusal:
            await cluster.settle(one)
        assert refusal.value.reason == AWAY.reason
        await cluster.recovered(by=cluster.instance())
        assert cluster.order().state is OrderState.PAID
        cluster.check()


class TestUnanswered:
    """An answer that did not come is not a refusal."""

    @pytest.mark.parametrize("after", [False, True])
    async def test_unanswered_claim_is_finished_by_the_worker(self, cluster: InMemoryCluster, after: bool) -> None:
        """OK with a payment that has not ended; the worker finishes it, whether the claim was heard or not."""
        one = cluster.instance()
        one.process.fails("claim", SILENCE, after=after)
        answer = await cluster.settle(one)
        assert payment_in(answer).payment_id == cluster.of("s1").payment_id
        assert cluster.of("s1").state is PaymentState.CREATED
        assert cluster.stored("s1") is None
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        assert (await cluster.settle(one)).response == cluster.stored("s1")
        cluster.check()

    @pytest.mark.parametrize("after", [False, True])
    async def test_silent_ledger_leaves_the_payment_unknown(self, cluster: InMemoryCluster, after: bool) -> None:
        """UNKNOWN; the worker asks again under the same business key, and it is never charged twice."""
        one = cluster.instance()
        one.process.fails("post", SILENCE, after=after)
        assert payment_in(await cluster.settle(one)).state == 5, "PAYMENT_STATE_UNKNOWN"
        assert cluster.of("s1").state is PaymentState.UNKNOWN
        assert cluster.order().state is OrderState.PAYING
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        assert len(cluster.journals()) == 1
        cluster.check()

    async def test_ledger_that_stays_silent_is_asked_until_it_answers(self, cluster: InMemoryCluster) -> None:
        """Time alone never makes UNKNOWN failed: after a month of silence it is still UNKNOWN, and then it ends."""
        one, worker = cluster.instance(), cluster.instance()
        one.process.fails("post", SILENCE, after=True)
        worker.process.fails("post", SILENCE, times=5)
        await cluster.settle(one)
        for _ in range(5):
            cluster.clock.advance(6 * 24 * 3600 * 1000)
            await worker.operations.recovery.recover()
            assert cluster.of("s1").state is PaymentState.UNKNOWN
        await cluster.recovered(by=worker)
        cluster.check()

    async def test_absent_ledger_leaves_the_payment_submitted(self, cluster: InMemoryCluster) -> None:
        """Never sent, but the payment is submitted: it stays so and is carried on at once by the same id."""
        one = cluster.instance()
        one.process.fails("post", AWAY)
        assert payment_in(await cluster.settle(one)).state == 2, "PAYMENT_STATE_SUBMITTED"
        payment_in(await cluster.settle(cluster.instance()))
        cluster.check()

    async def test_unknown_payment_that_the_ledger_then_refuses(self, cluster: InMemoryCluster) -> None:
        """UNKNOWN → DECLINED by a definitive word only."""
        cluster.fund(WALLET, 1)
        one = cluster.instance()
        one.process.fails("post", SILENCE)
        await cluster.settle(one, source=Source.WALLET)
        await cluster.recovered(by=cluster.instance())
        assert reason_in((await cluster.settle(one, source=Source.WALLET)).response.body) == "INSUFFICIENT_FUNDS"
        assert cluster.order().state is OrderState.UNPAID
        cluster.check()

    @pytest.mark.parametrize("error", [SILENCE, AWAY])
    async def test_unanswered_completion_is_delivered_by_the_worker(
        self, cluster: InMemoryCluster, error: CountinghouseError
    ) -> None:
        """The money is recorded, so the caller's answer stands; the worker tells the order service later."""
        one = cluster.instance()
        one.process.fails("complete", error)
        answer = await cluster.settle(one)
        assert answer.response == cluster.stored("s1")
        assert cluster.order().state is OrderState.PAYING
        assert await cluster.instance().operations.recovery.recover() == 0, (
            "it is left to the call that filled the outbox"
        )
        await cluster.recovered(by=cluster.instance())
        assert cluster.order().state is OrderState.PAID
        cluster.check()

    async def test_unanswered_release_is_delivered_by_the_next_clerk(self, cluster: InMemoryCluster) -> None:
        """A declined payment whose order could not be freed: the next clerk frees it and settles."""
        cluster.fund(WALLET, 1)
        one = cluster.instance()
        one.process.fails("release", AWAY)
        await cluster.settle(one, source=Source.WALLET)
        assert cluster.order().state is OrderState.PAYING
        payment_in(await cluster.settle(one, "s2"))
        assert cluster.of("s1").state is PaymentState.DECLINED
        cluster.check()


class TestAdopted:
    """A clerk finds the order half settled by a dead process, and finishes *that* payment."""

    @pytest.mark.parametrize(
        ("step", "after", "left"),
        [
            ("claim", True, PaymentState.CREATED),
            ("submit", True, PaymentState.SUBMITTED),
            ("post", True, PaymentState.SUBMITTED),
            ("record", True, PaymentState.SUCCEEDED),
        ],
    )
    async def test_payment_of_a_dead_clerk_is_finished_in_every_state(
        self, cluster: InMemoryCluster, step: str, after: bool, left: PaymentState
    ) -> None:
        """The order is paid by the dead clerk's payment; the living one is told; the dead one's retry is answered."""
        await half_settled(cluster, step, after=after)
        assert cluster.of("dead").state is left
        answer = await cluster.settle(cluster.instance(), "s2", clerk=WANG)
        refusal = refusal_in(answer.response.body)
        assert (refusal.reason, refusal.metadata["clerk"]) == ("ORDER_ALREADY_PAID", "li")
        assert cluster.order().payment_id == cluster.of("dead").payment_id
        assert cluster.of("s2").state is PaymentState.DECLINED
        assert [journal.draft.clerk for journal in cluster.journals()] == [LI]
        again = await cluster.settle(cluster.instance(), "dead")
        assert (again.response, again.replayed) == (cluster.stored("dead"), True)
        cluster.check()

    async def test_payment_of_unknown_outcome_is_adopted(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        one.process.fails("post", SILENCE, after=True)
        await cluster.settle(one, "dead")
        answer = await cluster.settle(cluster.instance(), "s2")
        assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"
        assert cluster.order().payment_id == cluster.of("dead").payment_id
        cluster.check()

    async def test_adopted_payment_that_is_declined_frees_the_order(self, cluster: InMemoryCluster) -> None:
        """Then the order is free, and the living clerk settles it."""
        cluster.fund(WALLET, 1)
        dying = cluster.instance()
        dying.process.fails("post", Died())
        with pytest.raises(Died):
            await cluster.settle(dying, "dead", source=Source.WALLET)
        dying.process.dead = True
        cluster.locks.expire(dying.name)
        payment = payment_in(await cluster.settle(cluster.instance(), "s2"))
        assert cluster.order().payment_id == payment.payment_id
        assert cluster.of("dead").state is PaymentState.DECLINED
        cluster.check()

    async def test_payment_that_cannot_be_adopted_now_gives_the_request_back(self, cluster: InMemoryCluster) -> None:
        """The living clerk's own request did nothing and is given back; nobody is charged twice later."""
        await half_settled(cluster, "submit", after=True)
        two = cluster.instance()
        two.process.fails("post", SILENCE)
        with pytest.raises(Aborted) as refusal:
            await cluster.settle(two, "s2")
        assert refusal.value.reason == "ORDER_HALF_SETTLED"
        assert cluster.state("s2") is RequestState.ISSUED
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("dead").state is PaymentState.SUCCEEDED
        assert reason_in((await cluster.settle(two, "s2")).response.body) == "ORDER_ALREADY_PAID"
        cluster.check()

    async def test_order_that_stays_claimed_is_unavailable_and_given_back(self, cluster: InMemoryCluster) -> None:
        """An order that stays claimed is not tried for ever: UNAVAILABLE, given back."""
        await half_settled(cluster, "record", after=True)
        two = cluster.instance()
        two.process.fails("complete", AWAY, times=9)
        with pytest.raises(Unavailable) as refusal:
            await cluster.settle(two, "s2")
        assert refusal.value.reason == "ORDER_BUSY"
        assert cluster.state("s2") is RequestState.ISSUED


class TestOvertaken:
    """The lock was lost on the way: the fence speaks."""

    @pytest.mark.parametrize("at", ["claimed", "submitted", "posted"])
    async def test_frozen_holder_is_overtaken_and_refused(self, cluster: InMemoryCluster, at: str) -> None:
        """Frozen past its session, it wakes when another has finished its payment: STALE_FENCE, or the payment as it
        stands, one journal, and the retry gets the stored answer.
        """
        frozen = cluster.instance()

        async def meanwhile() -> None:
            cluster.lapse(frozen)
            answer = await cluster.settle(cluster.instance(), "s2", clerk=WANG)
            assert reason_in(answer.response.body) == "ORDER_ALREADY_PAID"

        frozen.failpoints.at[at] = meanwhile
        with pytest.raises(OutcomeUnknown) as refusal:
            await cluster.settle(frozen)
        assert refusal.value.reason == "STALE_FENCE"
        assert refusal.value.metadata["guard"] == "fence"
        again = await cluster.settle(cluster.instance())
        assert again.replayed
        assert payment_in(again).payment_id == cluster.order().payment_id
        assert len(cluster.journals()) == 1
        cluster.check()

    async def test_holder_frozen_before_the_claim_is_refused(self, cluster: InMemoryCluster) -> None:
        """Another payment paid the order meanwhile: the claim is stale, and the retry is told by whom."""
        frozen = cluster.instance()

        async def meanwhile() -> None:
            cluster.lapse(frozen)
            payment_in(await cluster.settle(cluster.instance(), "s2"))

        frozen.failpoints.at["locked"] = meanwhile
        with pytest.raises(StaleFence):
            await cluster.settle(frozen)
        assert reason_in((await cluster.settle(cluster.instance())).response.body) == "ORDER_ALREADY_PAID"
        cluster.check()

    async def test_execution_frozen_before_the_lock_gets_the_stored_response(self, cluster: InMemoryCluster) -> None:
        """Its own payment was finished by the worker and reversed since; waking, it must not claim the order anew."""
        frozen = cluster.instance()

        async def meanwhile() -> None:
            worker = cluster.instance()
            await cluster.recovered(by=worker)
            await cluster.reverse(worker, cluster.of("s1").payment_id)
            assert cluster.order().state is OrderState.UNPAID

        frozen.failpoints.at["accepted"] = meanwhile
        answer = await cluster.settle(frozen)
        assert answer.response == cluster.stored("s1")
        assert cluster.order().state is OrderState.UNPAID
        cluster.check()
        payment_in(await cluster.settle(cluster.instance(), "s2"))
        cluster.check()

    async def test_payment_that_was_just_made_is_not_read_again(self, cluster: InMemoryCluster) -> None:
        """It costs a round trip; a request that is repeated reads it."""
        one = cluster.instance()
        await cluster.settle(one)
        assert one.process.calls["get"] == 0

    async def test_lost_lock_moves_no_money(self, cluster: InMemoryCluster) -> None:
        """ORDER_LOCK_LOST before the ledger is asked; the same id carries on at once."""
        one = cluster.instance()
        cluster.locks.lost = True
        with pytest.raises(OutcomeUnknown) as refusal:
            await cluster.settle(one)
        assert refusal.value.reason == "ORDER_LOCK_LOST"
        assert not cluster.ledger.chain
        cluster.locks.lost = False
        payment_in(await cluster.settle(one))
        cluster.check()

    @pytest.mark.parametrize("step", ["submit", "mark_unknown", "record"])
    async def test_stale_fence_lets_the_same_id_carry_on_at_once(self, cluster: InMemoryCluster, step: str) -> None:
        """The refusal says: ask again in 50 ms. Then nobody may still be keeping the request."""
        one = cluster.instance()
        if step == "mark_unknown":
            one.process.fails("post", SILENCE, after=True)
        one.process.fails(step, StaleFence("o1", Fence(1, 1), Fence(1, 2)))
        with pytest.raises(OutcomeUnknown, match="ask again, same id"):
            await cluster.settle(one)
        cluster.clock.advance(50)
        payment_in(await cluster.settle(cluster.instance()))
        assert cluster.clock.now_ms() < cluster.of("s1").created_at_ms + LEASE_MS
        cluster.check()


class TestLeases:
    """Others keep out while an execution lives."""

    async def test_slow_execution_keeps_its_request(self, cluster: InMemoryCluster) -> None:
        """Renewed, it is neither overtaken nor taken over, however long it takes."""
        one = cluster.instance()

        async def slow() -> None:
            for _ in range(5):
                cluster.clock.advance(LEASE_MS - 1)
                await one.operations.leases.renew()
                with pytest.raises(RequestInProgress):
                    await cluster.settle(cluster.instance())
                assert await cluster.instance().operations.recovery.recover() == 0

        one.failpoints.at["posted"] = slow
        payment_in(await cluster.settle(one))
        assert not one.failpoints.at
        cluster.check()

    async def test_lease_of_an_ended_execution_is_not_renewed(self, cluster: InMemoryCluster) -> None:
        one = cluster.instance()
        one.process.fails("post", SILENCE)
        await cluster.settle(one)
        await one.operations.leases.renew()
        assert one.process.calls["renew"] == 1, "only the one that let others in"
