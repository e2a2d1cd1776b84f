"""What every payment store does with tickets and requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.kernel.errors import (
    FailedPrecondition,
    KeyMismatch,
    NotFound,
    RequestInProgress,
    ResourceExhausted,
    may_come_right,
)
from services.kernel.idempotency import Execution, RequestKey, RequestState
from services.payment.model import (
    PAY,
    Accepted,
    OutboxAction,
    PaymentState,
)
from tests.contract.payment.subject import (
    CUSTOMER_LI,
    DAY_MS,
    LI,
    REFUSED,
    RESPONSES,
    T0,
    WANG,
    Made,
    Make,
    accepted,
    draft,
    encode,
    everything,
    execution_in,
    issued,
    lease,
    refused,
    reversal_of,
    settle_key,
    succeeded,
)


class RequestsContract:
    """Which request runs, who runs it, and what it is answered with."""

    async def test_one_ticket_and_ten_payments_at_once(self, make: Make) -> None:
        """One is begun; the others are told that it is being worked on, and left no payment behind."""
        subject = await make()
        ticket = await issued(subject)
        outcomes = await asyncio.gather(
            *(subject.store.accept(draft(f"p{n}", ticket, ""), "f", lease()) for n in range(10)),
            return_exceptions=True,
        )
        assert refused(outcomes, RequestInProgress) == 9
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Accepted)]
        assert winner.execution == Execution(ticket, 1, first=True)
        assert await everything(subject) == [winner.payment]

    async def test_one_request_id_and_ten_settles_at_once(self, make: Make) -> None:
        """The same for a request id, whose row the first of them makes."""
        subject = await make()
        outcomes = await asyncio.gather(
            *(subject.store.accept(draft(f"p{n}"), "f", lease()) for n in range(10)), return_exceptions=True
        )
        assert refused(outcomes, RequestInProgress) == 9
        assert len(await everything(subject)) == 1

    async def test_ticket_is_issued_once_for_a_request(self, make: Make) -> None:
        """Asked again, the same answer, also at the quota; the second ticket was never made."""
        subject = await make()
        await issued(subject, "t1")
        again = await subject.requests.issue(
            RequestKey(LI, "IssueTicket", "ask-t1"),
            "f",
            RequestKey(LI, PAY, "t2"),
            lease=lease(),
            expires_at_ms=T0 + 1_000,
            order_id="",
            answer=RESPONSES.ticket("t2", "", 0),
            quota=1,
        )
        assert again == RESPONSES.ticket("t1", "", T0 + 1_000)
        with pytest.raises(NotFound):
            await subject.requests.ticket_order(RequestKey(LI, PAY, "t2"))

    async def test_tickets_beyond_the_quota_are_refused(self, make: Make) -> None:
        """RESOURCE_EXHAUSTED, TICKET_QUOTA, and nothing is kept: the same request may be sent again."""
        subject = await make()
        for number in range(3):
            await issued(subject, f"t{number}", quota=3)
        with pytest.raises(ResourceExhausted) as refusal:
            await issued(subject, "t3", quota=3)
        assert refusal.value.reason == "TICKET_QUOTA"
        assert not may_come_right(refusal.value), "asking again at once does not help"
        await subject.store.accept(draft("p1", RequestKey(LI, PAY, "t0"), ""), "f", lease())
        await issued(subject, "t3", quota=3)

    async def test_ticket_of_short_life_counts_for_a_day(self, make: Make) -> None:
        """Whoever lets tickets expire at once gets no more of them; one of long life counts while it can be used."""
        subject = await make()
        await issued(subject, "t1", ttl_ms=1, quota=2)
        await issued(subject, "t2", ttl_ms=2 * DAY_MS, quota=2)
        await subject.store.expire(now_ms=T0 + 10)
        with pytest.raises(ResourceExhausted):
            await issued(subject, "t3", quota=2, now_ms=T0 + 10)
        await issued(subject, "t3", quota=2, now_ms=T0 + DAY_MS)
        with pytest.raises(ResourceExhausted):
            await issued(subject, "t4", quota=2, now_ms=T0 + DAY_MS)

    async def test_tickets_asked_for_at_once_stop_at_the_quota(self, make: Make) -> None:
        """None is missed in the counting."""
        subject = await make()
        asked = (issued(subject, f"t{number}", quota=4) for number in range(12))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert refused(outcomes, ResourceExhausted) == 8

    async def test_quota_is_each_persons_own(self, make: Make) -> None:
        """Also of two who are called the same."""
        subject = await make()
        await issued(subject, "t1", quota=1)
        other = RequestKey(CUSTOMER_LI, PAY, "t2")
        answer = RESPONSES.ticket("t2", "", T0 + 1_000)
        request = RequestKey(CUSTOMER_LI, "IssueTicket", "ask-t2")
        stored = await subject.requests.issue(
            request, "f", other, lease=lease(), expires_at_ms=T0 + 1_000, order_id="", answer=answer, quota=1
        )
        assert stored is None

    async def test_ticket_names_its_order(self, make: Make) -> None:
        """None, or the one it was issued for; another caller's ticket is not there."""
        subject = await make()
        assert await subject.requests.ticket_order(await issued(subject, "t1")) == ""
        assert await subject.requests.ticket_order(await issued(subject, "t2", order_id="o1")) == "o1"
        with pytest.raises(NotFound) as refusal:
            await subject.requests.ticket_order(RequestKey(WANG, PAY, "t1"))
        assert refusal.value.reason == "TICKET_NOT_FOUND"

    async def test_ticket_that_was_never_issued_pays_nothing(self, make: Make) -> None:
        """TICKET_NOT_FOUND, and no payment."""
        subject = await make()
        with pytest.raises(NotFound):
            await subject.store.accept(draft("p1", RequestKey(LI, PAY, "t9"), ""), "f", lease())
        assert await everything(subject) == []

    @pytest.mark.parametrize("state", [RequestState.IN_PROGRESS, RequestState.DONE])
    async def test_key_is_not_taken_for_something_else(self, make: Make, state: RequestState) -> None:
        """The same id with another payload is refused while it runs and for ever after."""
        subject = await make()
        made = await accepted(subject)
        if state is RequestState.DONE:
            await made.submit()
            await made.record()
        with pytest.raises(KeyMismatch):
            await subject.store.accept(draft("p2"), "another", lease())
        assert await everything(subject) == [await made.now()]

    async def test_finished_request_is_replayed(self, make: Make) -> None:
        """Byte for byte what was stored with the effect, however the payment has moved on since."""
        subject = await make()
        made = await succeeded(subject)
        first = await subject.requests.response_to(settle_key())
        assert first == encode(await made.now())
        await made.begin_reversal()
        await made.record_reversal()
        for _ in range(2):
            assert await subject.store.accept(draft("p2"), "f", lease(T0 + DAY_MS * 400)) == first
        assert await subject.requests.response_to(settle_key()) == first
        assert len(await everything(subject)) == 1

    async def test_refusal_is_replayed(self, make: Make) -> None:
        """A definitive one is an answer like any other."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        await made.decline()
        assert await subject.store.accept(draft("p2"), "f", lease()) == REFUSED

    async def test_answered_returns_the_stored_response_and_begins_nothing(self, make: Make) -> None:
        """Nothing of a request that is not there or not finished; another payload is refused."""
        subject = await make()
        assert await subject.requests.answered(settle_key(), "f", now_ms=T0) is None
        made = await accepted(subject)
        assert await subject.requests.answered(settle_key(), "f", now_ms=T0) is None
        await made.decline()
        assert await subject.requests.answered(settle_key(), "f", now_ms=T0) == REFUSED
        with pytest.raises(KeyMismatch):
            await subject.requests.answered(settle_key(), "other", now_ms=T0)
        assert await subject.request(settle_key()) == (RequestState.DONE, 1)

    async def test_unfinished_request_has_no_response(self, make: Make) -> None:
        """response_to tells the caller to ask again."""
        subject = await make()
        await accepted(subject)
        for key in (settle_key(), settle_key("unheard-of")):
            with pytest.raises(RequestInProgress):
                await subject.requests.response_to(key)

    async def test_request_given_back_runs_again(self, make: Make) -> None:
        """As if for the first time, and with the same payment."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        assert await subject.requests.give_back(execution, now_ms=T0)
        assert await subject.request(settle_key()) == (RequestState.ISSUED, 1)
        again = await subject.store.accept(draft("p2"), "f", lease())
        assert isinstance(again, Accepted)
        assert again.execution == Execution(settle_key(), 2, first=True)
        assert again.payment == draft("p1")

    async def test_only_its_own_execution_gives_a_request_back(self, make: Make) -> None:
        """Not one that was overtaken, and not once it is done."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        later = execution_in(await subject.store.accept(draft(), "f", lease(T0 + 5_000)))
        assert later == Execution(settle_key(), 2, first=False)
        assert not await subject.requests.give_back(execution, now_ms=T0)
        assert await subject.request(settle_key()) == (RequestState.IN_PROGRESS, 2)
        await Made(subject).submit()
        await Made(subject).record()
        assert not await subject.requests.give_back(later, now_ms=T0)
        assert (await subject.request(settle_key()))[0] is RequestState.DONE

    async def test_lease_keeps_others_out_until_it_has_passed(self, make: Make) -> None:
        """Then whoever asks carries on the same payment, and is told that others may have begun something."""
        subject = await make()
        await accepted(subject)
        with pytest.raises(RequestInProgress):
            await subject.store.accept(draft("p2"), "f", lease(T0 + 4_999))
        carried_on = await subject.store.accept(draft("p2"), "f", lease(T0 + 5_000))
        assert carried_on == Accepted(Execution(settle_key(), 2, first=False), draft("p1"))

    async def test_lease_is_renewed_by_its_own_execution(self, make: Make) -> None:
        """An overtaken one renews nothing; a moment that has passed lets others in."""
        subject = await make()
        first = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.requests.renew([first], until_ms=T0 + 9_000)
        assert await subject.requests.overdue(now_ms=T0 + 8_999, limit=9) == []
        second = execution_in(await subject.store.accept(draft(), "f", lease(T0 + 9_000)))
        await subject.requests.renew([first], until_ms=T0 + 90_000)
        (row,) = await subject.requests.overdue(now_ms=T0 + 14_000, limit=9)
        assert (row.key, row.attempt) == (settle_key(), 2)
        await subject.requests.renew([second], until_ms=T0 + 20_000)
        assert await subject.requests.overdue(now_ms=T0 + 14_000, limit=9) == []
        await subject.requests.renew([second], until_ms=T0)
        assert len(await subject.requests.overdue(now_ms=T0, limit=9)) == 1

    async def test_many_leases_are_renewed_at_once(self, make: Make) -> None:
        subject = await make()
        held = [
            execution_in(await subject.store.accept(draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"), "f", lease()))
            for n in range(3)
        ]
        await subject.requests.renew(held[:2], until_ms=T0 + 60_000)
        assert [row.key for row in await subject.requests.overdue(now_ms=T0 + 5_000, limit=9)] == [settle_key("s2")]

    async def test_overdue_executions_come_longest_first(self, make: Make) -> None:
        """And no more of them than asked for."""
        subject = await make()
        for n, length_ms in enumerate((300, 100, 200)):
            await subject.store.accept(draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"), "f", lease(length_ms=length_ms))
        rows = await subject.requests.overdue(now_ms=T0 + 300, limit=2)
        assert [row.key.key for row in rows] == ["s1", "s2"]

    async def test_overdue_execution_is_taken_over_once(self, make: Make) -> None:
        """Ten workers see it; one carries it on."""
        subject = await make()
        await accepted(subject)
        (row,) = await subject.requests.overdue(now_ms=T0 + 5_000, limit=9)
        taken = await asyncio.gather(*(subject.requests.take_over(row, lease(T0 + 5_000)) for _ in range(10)))
        assert [execution for execution in taken if execution is not None] == [Execution(settle_key(), 2, first=False)]
        assert await subject.requests.take_over(row, lease(T0 + 90_000)) is None

    async def test_renewed_execution_is_not_taken_over(self, make: Make) -> None:
        """Its executor came back to life between the worker's look and its grasp."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        (row,) = await subject.requests.overdue(now_ms=T0 + 5_000, limit=9)
        await subject.requests.renew([execution], until_ms=T0 + 10_000)
        assert await subject.requests.take_over(row, lease(T0 + 5_000)) is None

    async def test_refused_request_is_answered_for_ever(self, make: Make) -> None:
        """A reversal that never touched a payment."""
        subject = await make()
        key = reversal_of().key
        assert await subject.requests.begin(key, "f", lease()) == Execution(key, 1, first=True)
        await subject.requests.finish(key, REFUSED, now_ms=T0)
        assert await subject.requests.begin(key, "f", lease()) == REFUSED

    async def test_accept_equal_request_ids_of_a_customer_and_a_clerk_of_one_name_are_two_requests(
        self, make: Make
    ) -> None:
        """Each has its payment and its answer; neither is refused for the other's payload."""
        subject = await make()
        first = await accepted(subject, draft("p1", settle_key("s1"), "o1"))
        drafted = replace(draft("p2", settle_key("s1", CUSTOMER_LI), "o2"), clerk=CUSTOMER_LI)
        second = await subject.store.accept(drafted, "other", lease())
        assert execution_in(second).first
        assert await subject.store.of_request(settle_key("s1")) == await first.now()
        of_customer = await subject.store.of_request(settle_key("s1", CUSTOMER_LI))
        assert of_customer == drafted

    async def test_ticket_of_a_clerk_is_not_there_for_a_customer_of_the_same_name(self, make: Make) -> None:
        """Neither to be read nor to be paid with."""
        subject = await make()
        ticket = await issued(subject)
        theirs = replace(ticket, caller=CUSTOMER_LI)
        with pytest.raises(NotFound):
            await subject.requests.ticket_order(theirs)
        with pytest.raises(NotFound):
            await subject.store.accept(draft("p1", theirs, ""), "f", lease())


class ExpiryContract:
    """The end of what was not used in time."""

    async def test_unused_ticket_expires(self, make: Make) -> None:
        """At its time and not before; then it is refused, never run."""
        subject = await make()
        ticket = await issued(subject, ttl_ms=1_000)
        assert await subject.store.expire(now_ms=T0 + 999) == 0
        assert await subject.store.expire(now_ms=T0 + 1_000) == 1
        assert (await subject.request(ticket))[0] is RequestState.EXPIRED
        with pytest.raises(FailedPrecondition) as refusal:
            await subject.store.accept(draft("p1", ticket, ""), "f", lease())
        assert refusal.value.reason == "TICKET_EXPIRED"
        assert await everything(subject) == []

    async def test_ticket_past_its_time_is_refused_before_it_is_swept(self, make: Make) -> None:
        subject = await make()
        ticket = await issued(subject, ttl_ms=1_000)
        with pytest.raises(FailedPrecondition):
            await subject.store.accept(draft("p1", ticket, ""), "f", lease(T0 + 1_000))

    async def test_running_request_does_not_expire(self, make: Make) -> None:
        """An execution once begun is brought to its end."""
        subject = await make()
        ticket = await issued(subject, ttl_ms=1_000)
        await accepted(subject, draft("p1", ticket, ""))
        assert await subject.store.expire(now_ms=T0 + DAY_MS * 9) == 0

    async def test_payment_given_back_and_never_run_again_ends_with_its_request(self, make: Make) -> None:
        """DECLINED, and the order service is told to free an order it may have claimed."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.requests.give_back(execution, now_ms=T0)
        assert await subject.store.expire(now_ms=T0 + DAY_MS) == 1
        payment = await subject.store.get("p1")
        assert (payment.state, payment.decline_reason, payment.version) == (
            PaymentState.DECLINED,
            "TICKET_EXPIRED",
            2,
        )
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert await subject.store.expire(now_ms=T0 + DAY_MS) == 0
