"""Reversal: undone once, for one request, by an opposite journal; refused, unanswered and left half done."""

from __future__ import annotations

import asyncio

import pytest

from countinghouse.payment.v1 import payment_pb2 as pb
from services.kernel.errors import (
    KeyMismatch,
    NotFound,
    OutcomeUnknown,
    RequestInProgress,
    StaleFence,
    Unavailable,
)
from services.kernel.idempotency import RequestState
from services.kernel.principal import Principal, Role
from services.order.model import OrderState
from services.payment.model import REVERSE, PaymentState
from services.payment.operations import ReverseCommand
from tests.fakes.payment_ports import Died
from tests.unit.payment.cluster import AMOUNT, DRAWER, MERCHANT, WALLET, WANG, InMemoryCluster, payment_in
from tests.unit.payment.test_settle import reason_in

SILENCE = OutcomeUnknown("OUTCOME_UNKNOWN", "no answer")
AWAY = Unavailable("PEER_UNAVAILABLE", "never sent")
ZHAO = Principal("zhao", Role.ACCOUNTANT)
FAILPOINTS = ["accepted", "locked", "submitted", "posted", "recorded", "completed", "released"]


@pytest.fixture
async def payment_id(cluster: InMemoryCluster) -> str:
    """`o1` is settled from the drawer."""
    return payment_in(await cluster.settle(cluster.instance())).payment_id


@pytest.fixture
async def direct_id(cluster: InMemoryCluster) -> str:
    """A direct payment from mei's wallet to the merchant."""
    one = cluster.instance()
    return payment_in(await cluster.pay(one, await cluster.ticket(one))).payment_id


def undone(cluster: InMemoryCluster) -> int:
    """How many journals undo another."""
    return sum(bool(journal.draft.reversal_of) for journal in cluster.ledger.chain)


class TestSucceeded:
    """Nothing goes wrong."""

    async def test_order_is_reopened(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """An opposite journal, the order UNPAID in its next round, every failpoint passed in its order."""
        one = cluster.instance()
        answer = await cluster.reverse(one, payment_id)
        payment = payment_in(answer)
        assert payment.state == pb.PAYMENT_STATE_REVERSED
        assert answer.response == cluster.stored("v1", REVERSE, WANG)
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        assert cluster.ledger.open[DRAWER].balance == 0
        assert one.failpoints.passed == FAILPOINTS
        cluster.check()

    async def test_order_can_be_settled_again(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """In round 2, by another payment under another business key."""
        one = cluster.instance()
        await cluster.reverse(one, payment_id)
        again = payment_in(await cluster.settle(one, "s2"))
        assert (again.round, again.payment_id != payment_id) == (2, True)
        assert [journal.draft.business_key for journal in cluster.journals()] == ["settle:o1:1", "settle:o1:2"]
        cluster.check()
        await cluster.reverse(one, again.payment_id, "v2")
        assert cluster.order().round == 3
        cluster.check()

    async def test_direct_payment_is_undone(self, cluster: InMemoryCluster, direct_id: str) -> None:
        one = cluster.instance()
        await cluster.reverse(one, direct_id)
        assert cluster.ledger.open[WALLET].balance == cluster.ledger.open[MERCHANT].balance == 1000
        assert one.process.calls["hold"] == 0
        cluster.check()

    async def test_repeated_reverse_is_replayed(self, cluster: InMemoryCluster, payment_id: str) -> None:
        first = await cluster.reverse(cluster.instance(), payment_id)
        again = await cluster.reverse(cluster.instance(), payment_id)
        assert (again.response, again.replayed) == (first.response, True)
        assert undone(cluster) == 1

    async def test_ten_concurrent_reverses_undo_once(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """Ten requests: one undoes it, nine are definitively told that it is undone."""
        cluster.locks.patience_s = 5
        answers = await asyncio.gather(*(cluster.reverse(cluster.instance(), payment_id, f"v{n}") for n in range(10)))
        assert sum(answer.response.ok for answer in answers) == 1
        assert undone(cluster) == 1
        cluster.check()


class TestRefused:
    """It cannot be undone."""

    async def test_reverse_of_a_missing_payment_is_not_found(self, cluster: InMemoryCluster) -> None:
        with pytest.raises(NotFound):
            await cluster.reverse(cluster.instance(), "pay_nothing")
        assert not cluster.store.requests.rows

    async def test_reverse_of_a_reversed_payment_is_refused(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """ILLEGAL_STATE, stored and replayed."""
        one = cluster.instance()
        await cluster.reverse(one, payment_id)
        answer = await cluster.reverse(one, payment_id, "v2")
        assert reason_in(answer.response.body) == "ILLEGAL_STATE"
        again = await cluster.reverse(one, payment_id, "v2")
        assert (again.response, again.replayed) == (answer.response, True)
        assert undone(cluster) == 1
        cluster.check()

    async def test_reverse_of_a_declined_payment_is_refused(self, cluster: InMemoryCluster, payment_id: str) -> None:
        one = cluster.instance()
        await cluster.settle(one, "s2")
        answer = await cluster.reverse(one, cluster.of("s2").payment_id)
        assert reason_in(answer.response.body) == "ILLEGAL_STATE"
        assert cluster.of("s2").state is PaymentState.DECLINED
        cluster.check()

    async def test_reverse_with_another_payload_is_refused(self, cluster: InMemoryCluster, payment_id: str) -> None:
        one = cluster.instance()
        await cluster.reverse(one, payment_id)
        command = ReverseCommand("v1", payment_id, "another reason", "another")
        with pytest.raises(KeyMismatch):
            await one.operations.reverse(cluster.call(WANG), command)

    async def test_reverse_refused_by_the_ledger_leaves_the_payment_succeeded(
        self, cluster: InMemoryCluster, payment_id: str
    ) -> None:
        """The drawer has been emptied since: SUCCEEDED again, the order stays PAID, the refusal is replayed; another
        request undoes it once the money is back.
        """
        one = cluster.instance()
        cluster.fund(DRAWER, 0)
        answer = await cluster.reverse(one, payment_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        assert cluster.order().state is OrderState.PAID
        cluster.check()
        cluster.fund(DRAWER, AMOUNT)
        assert (await cluster.reverse(one, payment_id)).response == answer.response
        assert payment_in(await cluster.reverse(one, payment_id, "v2")).state == pb.PAYMENT_STATE_REVERSED
        cluster.check()

    async def test_two_accountants_with_the_same_request_id(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """A key belongs to its caller, at the ledger too: what one was refused is not refused to the other."""
        one = cluster.instance()
        cluster.fund(DRAWER, 0)
        assert not (await cluster.reverse(one, payment_id, "v1", clerk=WANG)).response.ok
        cluster.fund(DRAWER, AMOUNT)
        assert (await cluster.reverse(one, payment_id, "v1", clerk=ZHAO)).response.ok
        cluster.check()


class TestGivenBack:
    """Nothing was done, so the same request id may run again."""

    async def test_reverse_of_a_locked_order_is_given_back(self, cluster: InMemoryCluster, payment_id: str) -> None:
        one = cluster.instance()
        async with cluster.locks.of("another").hold("o1", WANG, "p0", 1):
            with pytest.raises(Exception, match="is being settled by wang") as refusal:
                await cluster.reverse(one, payment_id)
            assert getattr(refusal.value, "reason", "") == "ORDER_LOCKED"
        assert cluster.state("v1", REVERSE, WANG) is RequestState.ISSUED
        assert payment_in(await cluster.reverse(one, payment_id)).state == pb.PAYMENT_STATE_REVERSED
        cluster.check()

    async def test_reverse_without_zookeeper_is_given_back(self, cluster: InMemoryCluster, payment_id: str) -> None:
        cluster.locks.away = AWAY
        one = cluster.instance()
        with pytest.raises(Unavailable):
            await cluster.reverse(one, payment_id)
        assert cluster.state("v1", REVERSE, WANG) is RequestState.ISSUED
        cluster.locks.away = None
        assert (await cluster.reverse(one, payment_id)).response.ok

    async def test_reverse_under_a_stale_fence_is_given_back(self, cluster: InMemoryCluster, payment_id: str) -> None:
        one = cluster.instance()

        async def overtaken() -> None:
            cluster.locks.expire(one.name)
            await cluster.settle(cluster.instance(), "s2")  # looks at the order under a newer fence
            await cluster.reverse(cluster.instance(), payment_id, "v2")

        one.failpoints.at["locked"] = overtaken
        with pytest.raises(StaleFence):
            await cluster.reverse(one, payment_id)
        assert cluster.state("v1", REVERSE, WANG) is RequestState.ISSUED
        assert reason_in((await cluster.reverse(one, payment_id)).response.body) == "ILLEGAL_STATE"
        assert undone(cluster) == 1
        cluster.check()


class TestUnanswered:
    """An answer that did not come is not a refusal."""

    @pytest.mark.parametrize("after", [False, True])
    async def test_reverse_with_a_silent_ledger_is_finished_by_the_worker(
        self, cluster: InMemoryCluster, payment_id: str, after: bool
    ) -> None:
        """OK with REVERSING; the worker asks again, and it is undone once."""
        one = cluster.instance()
        one.process.fails("reverse", SILENCE, after=after)
        answer = await cluster.reverse(one, payment_id)
        assert payment_in(answer).state == pb.PAYMENT_STATE_REVERSING
        assert cluster.state("v1", REVERSE, WANG) is RequestState.IN_PROGRESS
        await cluster.recovered(by=cluster.instance())
        assert cluster.of("s1").state is PaymentState.REVERSED
        assert undone(cluster) == 1
        assert (await cluster.reverse(one, payment_id)).response == cluster.stored("v1", REVERSE, WANG)
        cluster.check()

    async def test_unanswered_reopening_is_delivered_by_the_worker(
        self, cluster: InMemoryCluster, payment_id: str
    ) -> None:
        """The money is back, so the caller's answer stands; the worker tells the order service later."""
        one = cluster.instance()
        one.process.fails("reopen", SILENCE, after=True)
        assert payment_in(await cluster.reverse(one, payment_id)).state == pb.PAYMENT_STATE_REVERSED
        await cluster.recovered(by=cluster.instance())
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        cluster.check()

    async def test_undelivered_completion_is_delivered_before_the_reopening(self, cluster: InMemoryCluster) -> None:
        """Reversed before the order service knew that it was paid: it hears of both, in their order."""
        one = cluster.instance()
        one.process.fails("complete", AWAY, times=2)
        payment_id = payment_in(await cluster.settle(one)).payment_id
        assert (await cluster.reverse(one, payment_id)).response.ok
        await cluster.recovered(by=cluster.instance())
        assert (cluster.order().state, cluster.order().round) == (OrderState.UNPAID, 2)
        cluster.check()


async def half_reversed(cluster: InMemoryCluster, payment_id: str, step: str, *, after: bool) -> None:
    """An accountant's process dies at a step of undoing a payment."""
    dying = cluster.instance()
    dying.process.fails(step, Died(), after=after)
    with pytest.raises(Died):
        await cluster.reverse(dying, payment_id, "dead")
    dying.process.dead = True
    cluster.locks.expire(dying.name)


class TestHalfDone:
    """What a dead process left of a reversal."""

    @pytest.mark.parametrize(
        ("step", "after"), [("begin_reversal", True), ("reverse", True), ("record_reversal", True)]
    )
    async def test_next_accountant_finishes_a_half_done_reversal(
        self, cluster: InMemoryCluster, payment_id: str, step: str, after: bool
    ) -> None:
        """And is told that there is nothing left to undo; the dead one's retry gets the stored success."""
        await half_reversed(cluster, payment_id, step, after=after)
        answer = await cluster.reverse(cluster.instance(), payment_id, "v2", clerk=ZHAO)
        assert reason_in(answer.response.body) == "ILLEGAL_STATE"
        assert (
            payment_in(await cluster.reverse(cluster.instance(), payment_id, "dead")).state == pb.PAYMENT_STATE_REVERSED
        )
        assert undone(cluster) == 1
        cluster.check()

    async def test_half_done_reversal_refused_by_the_ledger_ends_its_own_request(
        self, cluster: InMemoryCluster, payment_id: str
    ) -> None:
        """The dead one's request ends with the refusal; the living one's has its own try, with an answer of its own."""
        await half_reversed(cluster, payment_id, "begin_reversal", after=True)
        cluster.fund(DRAWER, 0)
        answer = await cluster.reverse(cluster.instance(), payment_id, "v2", clerk=ZHAO)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert reason_in((await cluster.reverse(cluster.instance(), payment_id, "dead")).response.body) == (
            "INSUFFICIENT_FUNDS"
        )
        assert cluster.of("s1").state is PaymentState.SUCCEEDED
        cluster.check()

    async def test_half_done_reversal_that_cannot_be_finished_leaves_the_other_request_open(
        self, cluster: InMemoryCluster, payment_id: str
    ) -> None:
        """The living one's request did nothing, and is no outcome: it may run again at once."""
        await half_reversed(cluster, payment_id, "begin_reversal", after=True)
        two = cluster.instance()
        two.process.fails("reverse", SILENCE)
        with pytest.raises(OutcomeUnknown):
            await cluster.reverse(two, payment_id, "v2", clerk=ZHAO)
        assert cluster.state("v2", REVERSE, ZHAO) is RequestState.IN_PROGRESS
        assert reason_in((await cluster.reverse(two, payment_id, "v2", clerk=ZHAO)).response.body) == "ILLEGAL_STATE"
        await cluster.recovered(by=two)
        cluster.check()

    async def test_reversal_that_had_not_begun_is_given_back(self, cluster: InMemoryCluster, payment_id: str) -> None:
        """The worker gives the request back: nothing was done under it."""
        await half_reversed(cluster, payment_id, "begin_reversal", after=False)
        with pytest.raises(RequestInProgress):
            await cluster.reverse(cluster.instance(), payment_id, "dead")
        await cluster.recovered(by=cluster.instance())
        assert cluster.state("dead", REVERSE, WANG) is RequestState.ISSUED
        assert (await cluster.reverse(cluster.instance(), payment_id, "dead")).response.ok
        cluster.check()

    async def test_paused_execution_of_a_refused_direct_reversal_changes_nothing(
        self, cluster: InMemoryCluster, direct_id: str
    ) -> None:
        """It wakes while the next reversal runs: that one is not touched, and the sleeper gets its own refusal."""
        sleeper = cluster.instance()
        cluster.fund(MERCHANT, 0)

        async def meanwhile() -> None:
            await cluster.recovered(by=cluster.instance())
            cluster.fund(MERCHANT, AMOUNT)
            two = cluster.instance()
            two.process.fails("reverse", SILENCE)
            await cluster.reverse(two, direct_id, "v2")

        sleeper.failpoints.at["submitted"] = meanwhile
        answer = await cluster.reverse(sleeper, direct_id)
        assert reason_in(answer.response.body) == "INSUFFICIENT_FUNDS"
        assert cluster.store.payments[direct_id].state is PaymentState.REVERSING
        await cluster.recovered(by=cluster.instance())
        assert cluster.store.payments[direct_id].state is PaymentState.REVERSED
        cluster.check()
