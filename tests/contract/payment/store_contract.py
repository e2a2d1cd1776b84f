"""What every payment store does. Each adapter, the fake included, runs this suite as a subclass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pytest

from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    KeyMismatch,
    NotFound,
    RequestInProgress,
    ResourceExhausted,
    StaleFence,
    may_come_right,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestState, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment import model
from services.payment.model import (
    NO_RETRY,
    PARK,
    PAY,
    REVERSE,
    SETTLE,
    TRANSITIONS,
    Accepted,
    AcquirerRetry,
    Change,
    Charge,
    ConflictingPayment,
    OutboxAction,
    Parking,
    Payment,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
    Step,
    Transition,
    plan,
)
from services.payment.ports import Filter, PaymentStore
from services.payment.servicer import PaymentResponses
from tests.fakes.payment_store import Event, OutboxMessage

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
MEI = Principal("mei", Role.CUSTOMER)
#: Another person than LI, who is called the same.
CUSTOMER_LI = Principal("li", Role.CUSTOMER)
T0 = 10_000
FENCE, NEWER = Fence(1, 100), Fence(1, 101)
CHARGE = Charge(1, "mei", Money(300, "CNY"), "drawer:CNY", "sales:CNY")
BY_CARD = Charge(1, "mei", Money(300, "CNY"), "acquirer:CNY", "sales:CNY")
SILENCE = AcquirerRetry(3, T0 + 4_000)
UNDONE = ReversalResult("j1", "j2")
REFUSED = StoredResponse(False, b"refused")
RESPONSES = PaymentResponses()
DAY_MS = 24 * 3600 * 1000


class Subject(Protocol):
    """A store under test, and a look at what it keeps behind its port."""

    @property
    def store(self) -> PaymentStore: ...

    async def history(self, payment_id: str) -> list[Event]:
        """The events of one payment, by version."""
        ...

    async def messages(self) -> list[OutboxMessage]:
        """The whole outbox, by payment and purpose."""
        ...

    async def request(self, key: RequestKey) -> tuple[RequestState, int]:
        """State and attempt of a request."""
        ...


Make = Callable[..., Awaitable[Subject]]


def lease(now_ms: int = T0, *, length_ms: int = 5_000, owner: str = "payment-1") -> Lease:
    return Lease(owner, now_ms, now_ms + length_ms)


def settle_key(key: str = "s1", caller: Principal = LI) -> RequestKey:
    return RequestKey(caller, SETTLE, key)


def reversal_of(key: str = "v1") -> Reversal:
    return Reversal(RequestKey(WANG, REVERSE, key), WANG, "wrong order")


def parking_of(key: str = "k1") -> Parking:
    return Parking(RequestKey(WANG, PARK, key), WANG, "customer pays cash")


def encode_parking(payment: Payment) -> StoredResponse:
    return RESPONSES.payment(PARK, payment)


def draft(
    payment_id: str = "p1", key: RequestKey | None = None, order_id: str = "o1", *, created_at_ms: int = T0
) -> Payment:
    return Payment.created(payment_id, key or settle_key(), order_id, Source.DRAWER, LI, "two teas", created_at_ms)


def by_card(
    payment_id: str = "p1", key: RequestKey | None = None, order_id: str = "o1", *, created_at_ms: int = T0
) -> Payment:
    """A draft of a card payment."""
    drafted = draft(payment_id, key, order_id, created_at_ms=created_at_ms)
    return replace(drafted, source=Source.CARD, card="tok-mei")


def encode(payment: Payment) -> StoredResponse:
    return RESPONSES.payment(payment.key.method, payment)


def encode_reversal(payment: Payment) -> StoredResponse:
    return RESPONSES.payment(REVERSE, payment)


def execution_in(accepted: Accepted | StoredResponse) -> Execution:
    assert isinstance(accepted, Accepted)
    return accepted.execution


@dataclass(frozen=True, slots=True)
class Made:
    """A payment in a store, and its moves."""

    subject: Subject
    payment_id: str = "p1"

    async def submit(
        self, fence: Fence = FENCE, *, charge: Charge = CHARGE, now_ms: int = T0 + 1
    ) -> Payment | ConflictingPayment:
        change = model.submit(await self.now(), charge, now_ms)
        if change is None:
            return await self.subject.store.raise_fence(self.payment_id, fence)
        return await self.subject.store.submit(change, fence)

    async def mark_unknown(
        self, fence: Fence = FENCE, *, retry: AcquirerRetry = NO_RETRY, now_ms: int = T0 + 2
    ) -> Payment:
        await self.commit(model.mark_unknown(await self.now(), now_ms, retry), fence)
        if retry != NO_RETRY:
            await self.subject.store.schedule_retry(self.payment_id, fence, retry)
        return await self.now()

    async def record(self, fence: Fence = FENCE, *, now_ms: int = T0 + 3) -> Payment:
        return await self.commit(model.record(await self.now(), "j1", now_ms), fence)

    async def decline(self, fence: Fence = FENCE, *, release: bool = True, now_ms: int = T0 + 3) -> Payment:
        change = model.decline(await self.now(), "WHY", now_ms, release=release)
        return await self.commit(change, fence, refuses=(SETTLE, PAY))

    async def park(self, key: str = "k1", fence: Fence = FENCE, *, now_ms: int = T0 + 4) -> Payment:
        await self.subject.store.begin_request(parking_of(key).key, "f", lease(now_ms))
        change = model.park(await self.now(), parking_of(key), now_ms)
        return await self.commit(change, fence, refuses=(SETTLE, REVERSE))

    async def begin_reversal(self, key: str = "v1", fence: Fence = FENCE, *, now_ms: int = T0 + 4) -> Payment:
        await self.subject.store.begin_request(reversal_of(key).key, "f", lease(now_ms))
        return await self.commit(model.begin_reversal(await self.now(), reversal_of(key), now_ms), fence)

    async def record_reversal(
        self, fence: Fence = FENCE, *, undone: ReversalResult = UNDONE, now_ms: int = T0 + 5
    ) -> Payment:
        change = model.record_reversal(await self.now(), undone, now_ms)
        return await self.commit(change, fence, refuses=(SETTLE,))

    async def refuse_reversal(self, payment: Payment, fence: Fence = FENCE, *, now_ms: int = T0 + 5) -> Payment:
        """Args: payment: As it was when the ledger was asked."""
        assert payment.reversal is not None
        change = model.refuse_reversal(payment, payment.reversal, "j1", now_ms)
        return await self.commit(change, fence, refuses=(REVERSE,))

    async def commit(self, change: Change | None, fence: Fence, *, refuses: tuple[str, ...] = ()) -> Payment:
        """Commit a transition as it was planned.

        Args:
            refuses: The methods of the requests that are answered with REFUSED.
        """
        if change is None:
            return await self.subject.store.raise_fence(self.payment_id, fence)
        answers = tuple(
            (key, REFUSED if key.method in refuses else RESPONSES.payment(key.method, change.after))
            for key in change.ended
        )
        return await self.subject.store.apply(replace(change, answers=answers), fence)

    async def now(self) -> Payment:
        return await self.subject.store.get(self.payment_id)

    async def states(self) -> list[PaymentState]:
        return [event.state for event in await self.subject.history(self.payment_id)]


async def accepted(subject: Subject, payment: Payment | None = None) -> Made:
    payment = payment or draft()
    assert isinstance(await subject.store.accept(payment, "f", lease()), Accepted)
    return Made(subject, payment.payment_id)


async def succeeded(subject: Subject, payment: Payment | None = None) -> Made:
    made = await accepted(subject, payment)
    await made.submit()
    await made.record()
    return made


async def unknown_by_card(subject: Subject) -> Made:
    """A card payment of which nobody knows."""
    made = await accepted(subject, by_card())
    await made.submit(charge=BY_CARD)
    await made.mark_unknown(retry=SILENCE)
    return made


async def issued(
    subject: Subject,
    key: str = "t1",
    *,
    ttl_ms: int = 1_000,
    order_id: str = "",
    quota: int | None = None,
    now_ms: int = T0,
) -> RequestKey:
    """A ticket of li's."""
    ticket = RequestKey(LI, PAY, key)
    answer = RESPONSES.ticket(key, order_id, now_ms + ttl_ms)
    stored = await subject.store.issue(
        RequestKey(LI, "IssueTicket", f"ask-{key}"),
        "f",
        ticket,
        lease=lease(now_ms),
        expires_at_ms=now_ms + ttl_ms,
        order_id=order_id,
        answer=answer,
        quota=quota,
    )
    assert stored is None
    return ticket


def refused(outcomes: Sequence[object], kind: type[CountinghouseError]) -> int:
    """How many of these are of a kind of refusal; fails if one is an error of another kind."""
    errors = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert all(isinstance(error, kind) for error in errors), errors
    return len(errors)


class PaymentStoreContract:
    """Subclasses bring a fixture `make`: an async callable that takes guards and gives a Subject on an empty store."""

    # Tickets and requests

    async def test_a_payment_is_kept_as_it_was_drafted(self, make: Make) -> None:
        """CREATED, version 1, with its first event; nothing for the order service yet."""
        subject = await make()
        made = await accepted(subject)
        assert await made.now() == draft()
        assert await subject.history("p1") == [Event("p1", 1, PaymentState.CREATED, NO_FENCE, T0)]
        assert await subject.messages() == []
        assert await subject.request(settle_key()) == (RequestState.IN_PROGRESS, 1)

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

    async def test_a_ticket_is_issued_once_for_a_request(self, make: Make) -> None:
        """Asked again, the same answer, also at the quota; the second ticket was never made."""
        subject = await make()
        await issued(subject, "t1")
        again = await subject.store.issue(
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
            await subject.store.ticket_order(RequestKey(LI, PAY, "t2"))

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
        stored = await subject.store.issue(
            request, "f", other, lease=lease(), expires_at_ms=T0 + 1_000, order_id="", answer=answer, quota=1
        )
        assert stored is None

    async def test_a_ticket_says_which_order_it_is_for(self, make: Make) -> None:
        """None, or the one it was issued for; another caller's ticket is not there."""
        subject = await make()
        assert await subject.store.ticket_order(await issued(subject, "t1")) == ""
        assert await subject.store.ticket_order(await issued(subject, "t2", order_id="o1")) == "o1"
        with pytest.raises(NotFound) as refusal:
            await subject.store.ticket_order(RequestKey(WANG, PAY, "t1"))
        assert refusal.value.reason == "TICKET_NOT_FOUND"

    async def test_a_ticket_that_was_never_issued_pays_nothing(self, make: Make) -> None:
        """TICKET_NOT_FOUND, and no payment."""
        subject = await make()
        with pytest.raises(NotFound):
            await subject.store.accept(draft("p1", RequestKey(LI, PAY, "t9"), ""), "f", lease())
        assert await everything(subject) == []

    @pytest.mark.parametrize("state", [RequestState.IN_PROGRESS, RequestState.DONE])
    async def test_a_key_is_not_taken_for_something_else(self, make: Make, state: RequestState) -> None:
        """The same id with another payload is refused while it runs and for ever after."""
        subject = await make()
        made = await accepted(subject)
        if state is RequestState.DONE:
            await made.submit()
            await made.record()
        with pytest.raises(KeyMismatch):
            await subject.store.accept(draft("p2"), "another", lease())
        assert await everything(subject) == [await made.now()]

    async def test_a_finished_request_is_replayed(self, make: Make) -> None:
        """Byte for byte what was stored with the effect, however the payment has moved on since."""
        subject = await make()
        made = await succeeded(subject)
        first = await subject.store.response_to(settle_key())
        assert first == encode(await made.now())
        await made.begin_reversal()
        await made.record_reversal()
        for _ in range(2):
            assert await subject.store.accept(draft("p2"), "f", lease(T0 + DAY_MS * 400)) == first
        assert await subject.store.response_to(settle_key()) == first
        assert len(await everything(subject)) == 1

    async def test_a_refusal_is_replayed(self, make: Make) -> None:
        """A definitive one is an answer like any other."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        await made.decline()
        assert await subject.store.accept(draft("p2"), "f", lease()) == REFUSED

    async def test_what_is_not_finished_has_no_response(self, make: Make) -> None:
        """response_to tells the caller to ask again."""
        subject = await make()
        await accepted(subject)
        for key in (settle_key(), settle_key("unheard-of")):
            with pytest.raises(RequestInProgress):
                await subject.store.response_to(key)

    async def test_what_was_given_back_runs_again(self, make: Make) -> None:
        """As if for the first time, and with the same payment."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.store.give_back(execution, now_ms=T0)
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
        await subject.store.give_back(execution, now_ms=T0)
        assert await subject.request(settle_key()) == (RequestState.IN_PROGRESS, 2)
        await Made(subject).submit()
        await Made(subject).record()
        await subject.store.give_back(later, now_ms=T0)
        assert (await subject.request(settle_key()))[0] is RequestState.DONE

    async def test_a_lease_keeps_others_out_until_it_has_passed(self, make: Make) -> None:
        """Then whoever asks carries on the same payment, and is told that others may have begun something."""
        subject = await make()
        await accepted(subject)
        with pytest.raises(RequestInProgress):
            await subject.store.accept(draft("p2"), "f", lease(T0 + 4_999))
        carried_on = await subject.store.accept(draft("p2"), "f", lease(T0 + 5_000))
        assert carried_on == Accepted(Execution(settle_key(), 2, first=False), draft("p1"))

    async def test_a_lease_is_renewed_by_its_own_execution(self, make: Make) -> None:
        """An overtaken one renews nothing; a moment that has passed lets others in."""
        subject = await make()
        first = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.store.renew([first], until_ms=T0 + 9_000)
        assert await subject.store.overdue(now_ms=T0 + 8_999, limit=9) == []
        second = execution_in(await subject.store.accept(draft(), "f", lease(T0 + 9_000)))
        await subject.store.renew([first], until_ms=T0 + 90_000)
        (row,) = await subject.store.overdue(now_ms=T0 + 14_000, limit=9)
        assert (row.key, row.attempt) == (settle_key(), 2)
        await subject.store.renew([second], until_ms=T0 + 20_000)
        assert await subject.store.overdue(now_ms=T0 + 14_000, limit=9) == []
        await subject.store.renew([second], until_ms=T0)
        assert len(await subject.store.overdue(now_ms=T0, limit=9)) == 1

    async def test_many_leases_are_renewed_at_once(self, make: Make) -> None:
        subject = await make()
        held = [
            execution_in(await subject.store.accept(draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"), "f", lease()))
            for n in range(3)
        ]
        await subject.store.renew(held[:2], until_ms=T0 + 60_000)
        assert [row.key for row in await subject.store.overdue(now_ms=T0 + 5_000, limit=9)] == [settle_key("s2")]

    async def test_overdue_executions_come_longest_first(self, make: Make) -> None:
        """And no more of them than asked for."""
        subject = await make()
        for n, length_ms in enumerate((300, 100, 200)):
            await subject.store.accept(draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"), "f", lease(length_ms=length_ms))
        rows = await subject.store.overdue(now_ms=T0 + 300, limit=2)
        assert [row.key.key for row in rows] == ["s1", "s2"]

    async def test_an_overdue_execution_is_taken_over_once(self, make: Make) -> None:
        """Ten workers see it; one carries it on."""
        subject = await make()
        await accepted(subject)
        (row,) = await subject.store.overdue(now_ms=T0 + 5_000, limit=9)
        taken = await asyncio.gather(*(subject.store.take_over(row, lease(T0 + 5_000)) for _ in range(10)))
        assert [execution for execution in taken if execution is not None] == [Execution(settle_key(), 2, first=False)]
        assert await subject.store.take_over(row, lease(T0 + 90_000)) is None

    async def test_a_renewed_execution_is_not_taken_over(self, make: Make) -> None:
        """Its executor came back to life between the worker's look and its grasp."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        (row,) = await subject.store.overdue(now_ms=T0 + 5_000, limit=9)
        await subject.store.renew([execution], until_ms=T0 + 10_000)
        assert await subject.store.take_over(row, lease(T0 + 5_000)) is None

    async def test_a_refused_request_is_answered_for_ever(self, make: Make) -> None:
        """A reversal that never touched a payment."""
        subject = await make()
        key = reversal_of().key
        assert await subject.store.begin_request(key, "f", lease()) == Execution(key, 1, first=True)
        await subject.store.refuse_request(key, REFUSED, now_ms=T0)
        assert await subject.store.begin_request(key, "f", lease()) == REFUSED

    # The payment's moves

    async def test_a_payment_comes_to_its_end(self, make: Make) -> None:
        """Each move one version and one event; response and word to the order service with the last."""
        subject = await make()
        made = await accepted(subject)
        submitted = await made.submit()
        assert isinstance(submitted, Payment)
        assert submitted == replace(
            draft(),
            state=PaymentState.SUBMITTED,
            round=1,
            customer_id="mei",
            amount=CHARGE.amount,
            payer_account_id="drawer:CNY",
            payee_account_id="sales:CNY",
            fence=FENCE,
            version=2,
            updated_at_ms=T0 + 1,
        )
        await made.mark_unknown()
        recorded = await made.record()
        assert (recorded.state, recorded.journal_id, recorded.settled_at_ms) == (PaymentState.SUCCEEDED, "j1", T0 + 3)
        assert await subject.history("p1") == [
            Event("p1", 1, PaymentState.CREATED, NO_FENCE, T0),
            Event("p1", 2, PaymentState.SUBMITTED, FENCE, T0 + 1),
            Event("p1", 3, PaymentState.UNKNOWN, FENCE, T0 + 2),
            Event("p1", 4, PaymentState.SUCCEEDED, FENCE, T0 + 3),
        ]
        assert await made.now() == recorded
        assert await subject.store.response_to(settle_key()) == encode(recorded)
        assert await subject.messages() == [OutboxMessage("p1", OutboxAction.COMPLETE, "o1", T0 + 3, None)]

    async def test_every_move_can_be_repeated(self, make: Make) -> None:
        """It answers with the payment as it stands, and changes nothing."""
        subject = await make()
        made = await succeeded(subject)
        stands = await made.now()
        assert await made.submit() == stands
        assert await made.mark_unknown() == stands
        assert await made.record(now_ms=T0 + 99) == stands
        assert await made.decline() == stands
        assert len(await subject.history("p1")) == 3
        assert await subject.store.response_to(settle_key()) == encode(stands)
        assert len(await subject.messages()) == 1

    async def test_a_move_out_of_turn_changes_and_answers_nothing(self, make: Make) -> None:
        """What was never submitted cannot succeed, nor be undone; its request stays open."""
        subject = await make()
        made = await accepted(subject)
        for step in (made.mark_unknown, made.record, made.begin_reversal, made.record_reversal):
            assert (await step()).state is PaymentState.CREATED
        assert await made.states() == [PaymentState.CREATED]
        assert (await subject.request(settle_key()))[0] is RequestState.IN_PROGRESS
        assert await subject.messages() == []

    async def test_an_unknown_payment_is_not_found(self, make: Make) -> None:
        subject = await make()
        made = Made(subject, "p9")
        for step in (made.now, made.submit, made.mark_unknown, made.record, made.decline, made.record_reversal):
            with pytest.raises(NotFound) as refusal:
                await step()
            assert refusal.value.reason == "PAYMENT_NOT_FOUND"
        change = model.decline(draft("p9"), "WHY", T0)
        assert change is not None
        for step_of_store in (
            subject.store.apply(change, FENCE),
            subject.store.raise_fence("p9", FENCE),
            subject.store.schedule_retry("p9", FENCE, SILENCE),
        ):
            with pytest.raises(NotFound):
                await step_of_store

    async def test_apply_of_what_was_planned_on_an_older_payment_changes_nothing(self, make: Make) -> None:
        """It answers with the payment as it stands, so that the caller plans again; its requests stay open."""
        subject = await make()
        made = await accepted(subject)
        read = await made.submit()
        assert isinstance(read, Payment)
        stands = await made.mark_unknown()
        for change in (model.record(read, "j1", T0), model.decline(read, "WHY", T0), model.mark_unknown(read, T0)):
            assert await made.commit(change, FENCE) == stands
        assert len(await made.states()) == 3
        assert await subject.messages() == []
        assert (await subject.request(settle_key()))[0] is RequestState.IN_PROGRESS
        assert (await made.record()).state is PaymentState.SUCCEEDED

    async def test_changed_row_of_the_table_changes_the_store(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No store knows the state machine by itself: where a transition leads from and to, what it ends and tells."""
        subject = await make()
        made = await accepted(subject)
        odd = Transition((PaymentState.CREATED,), PaymentState.REVERSED, ("journal_id",), outbox=(OutboxAction.REOPEN,))
        monkeypatch.setitem(TRANSITIONS, Step.RECORD, odd)
        recorded = await made.record()
        assert (recorded.state, recorded.journal_id, recorded.settled_at_ms) == (PaymentState.REVERSED, "j1", 0)
        assert await made.states() == [PaymentState.CREATED, PaymentState.REVERSED]
        assert [message.action for message in await subject.messages()] == [OutboxAction.REOPEN]
        assert (await subject.request(settle_key()))[0] is RequestState.IN_PROGRESS
        monkeypatch.undo()
        before = await made.now()
        assert (await made.record()) == before

    async def test_ten_payments_of_one_order_submitted_at_once(self, make: Make) -> None:
        """One becomes active; the others are told which."""
        subject = await make()
        made = [await accepted(subject, draft(f"p{n}", settle_key(f"s{n}"))) for n in range(10)]
        outcomes = await asyncio.gather(*(payment.submit() for payment in made))
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, Payment)]
        rivals = [outcome.payment.payment_id for outcome in outcomes if isinstance(outcome, ConflictingPayment)]
        assert rivals == [winner.payment_id] * 9
        submitted = [payment for payment in await everything(subject) if payment.state is PaymentState.SUBMITTED]
        assert [payment.payment_id for payment in submitted] == [winner.payment_id]

    @pytest.mark.parametrize("state", ["SUBMITTED", "UNKNOWN", "SUCCEEDED", "REVERSING"])
    async def test_an_active_payment_keeps_others_out(self, make: Make, state: str) -> None:
        """In each state in which money may be away; and the loser has not changed."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        if state == "UNKNOWN":
            await made.mark_unknown()
        elif state != "SUBMITTED":
            await made.record()
        if state == "REVERSING":
            await made.begin_reversal()
        other = await accepted(subject, draft("p2", settle_key("s2")))
        conflicting = await other.submit(NEWER)
        assert isinstance(conflicting, ConflictingPayment)
        assert (conflicting.payment.payment_id, conflicting.payment.state) == ("p1", state)
        assert await other.states() == [PaymentState.CREATED]

    @pytest.mark.parametrize("ended", ["DECLINED", "REVERSED"])
    async def test_an_ended_payment_makes_room(self, make: Make, ended: str) -> None:
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        if ended == "DECLINED":
            await made.decline()
        else:
            await made.record()
            await made.begin_reversal()
            await made.record_reversal()
        assert (await made.now()).state == ended
        other = await accepted(subject, draft("p2", settle_key("s2")))
        assert isinstance(await other.submit(NEWER), Payment)

    async def test_direct_payments_know_no_rivals(self, make: Make) -> None:
        """Payments without an order do not share one."""
        subject = await make()
        for n in range(3):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}"), ""))
            assert isinstance(await made.submit(NO_FENCE), Payment)

    async def test_a_stale_fence_is_refused(self, make: Make) -> None:
        """By every move, and without effect; an equal one is the same holder asking again."""
        subject = await make()
        made = await accepted(subject)
        await made.submit(NEWER)
        before = await made.now()
        for step in (made.submit, made.mark_unknown, made.record, made.decline, made.record_reversal):
            with pytest.raises(StaleFence) as refusal:
                await step(FENCE)
            assert refusal.value.metadata["guard"] == "fence"
        assert await made.now() == before
        assert (await subject.request(settle_key()))[0] is RequestState.IN_PROGRESS
        assert (await made.record(NEWER)).state is PaymentState.SUCCEEDED

    async def test_a_generation_counts_more_than_a_token(self, make: Make) -> None:
        subject = await make()
        made = await accepted(subject)
        await made.submit(Fence(2, 1))
        with pytest.raises(StaleFence):
            await made.record(Fence(1, 10**9))
        assert (await made.record(Fence(2, 1))).fence == Fence(2, 1)

    async def test_a_move_that_changes_nothing_raises_the_fence(self, make: Make) -> None:
        """Who looked under a newer lock shuts the older one out."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        assert (await made.submit(NEWER)).fence == NEWER  # type: ignore[union-attr]  # there is no conflicting payment
        with pytest.raises(StaleFence):
            await made.record(FENCE)
        assert len(await made.states()) == 2

    async def test_the_response_is_stored_with_the_effect_or_not_at_all(self, make: Make) -> None:
        """What cannot be written down has not happened."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        before = await made.now()

        for change in (model.record(before, "j1", T0), model.decline(before, "WHY", T0)):
            cannot_be_read = (1 / 0 for _ in (REFUSED,))
            assert change is not None
            with pytest.raises(ZeroDivisionError):
                await subject.store.apply(replace(change, answers=cannot_be_read), FENCE)  # type: ignore[arg-type]
        assert await made.now() == before
        assert len(await subject.history("p1")) == 2
        assert await subject.request(settle_key()) == (RequestState.IN_PROGRESS, 1)
        assert await subject.messages() == []

    @pytest.mark.parametrize("release", [True, False])
    async def test_a_decline_tells_the_order_service_if_it_has_to(self, make: Make, release: bool) -> None:
        subject = await make()
        made = await accepted(subject)
        declined = await made.decline(release=release)
        assert (declined.state, declined.decline_reason) == (PaymentState.DECLINED, "WHY")
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE] * release
        assert await subject.store.response_to(settle_key()) == REFUSED

    async def test_declined_before_it_was_claimed_its_request_is_answered_alike(self, make: Make) -> None:
        """As of an order that does not exist: nobody finds an open payment, and nobody carries the request on."""
        subject = await make()
        made = await accepted(subject)
        declined = await made.decline(release=False)
        assert await subject.store.accept(draft("p2"), "f", lease(T0 + 9)) == REFUSED
        assert await made.now() == declined
        open_ones = Filter(state=PaymentState.CREATED)
        assert await subject.store.page(open_ones, limit=9, after=None, seen_by=None) == []
        assert await subject.store.overdue(now_ms=T0 + 10**9, limit=9) == []
        assert await subject.messages() == []

    # Reversal

    async def test_a_payment_is_undone(self, make: Make) -> None:
        """For one request, whose response is stored with it."""
        subject = await make()
        made = await succeeded(subject)
        reversing = await made.begin_reversal()
        assert (reversing.state, reversing.reversal) == (PaymentState.REVERSING, reversal_of())
        assert (await subject.store.of_request(reversal_of().key)) == reversing
        reversed_ = await made.record_reversal()
        assert (reversed_.state, reversed_.reversal_journal_id) == (PaymentState.REVERSED, "j2")
        assert await subject.store.response_to(reversal_of().key) == encode_reversal(reversed_)
        assert [message.action for message in await subject.messages()] == [OutboxAction.COMPLETE, OutboxAction.REOPEN]

    async def test_a_late_record_does_not_end_a_reversal(self, make: Make) -> None:
        """Both moves lead to SUCCEEDED; only a refusal leads there from REVERSING."""
        subject = await make()
        made = await succeeded(subject)
        reversing = await made.begin_reversal()
        assert await made.record() == reversing
        assert (await subject.request(reversal_of().key))[0] is RequestState.IN_PROGRESS

    async def test_ten_reversals_at_once(self, make: Make) -> None:
        """One begins; the others get the payment with the winner's name on it."""
        subject = await make()
        made = await succeeded(subject)
        outcomes = await asyncio.gather(*(made.begin_reversal(f"v{n}") for n in range(10)))
        assert len({payment.reversal.key.key for payment in outcomes if payment.reversal}) == 1
        assert (await made.states()).count(PaymentState.REVERSING) == 1

    async def test_a_refused_reversal_leaves_the_payment_as_it_was(self, make: Make) -> None:
        """The refusal is stored; the next request may try again."""
        subject = await make()
        made = await succeeded(subject)
        await made.refuse_reversal(await made.begin_reversal("v1"))
        assert (await made.now()).state is PaymentState.SUCCEEDED
        assert await subject.store.response_to(reversal_of("v1").key) == REFUSED
        assert (await made.begin_reversal("v2")).reversal == reversal_of("v2")
        assert (await made.record_reversal()).state is PaymentState.REVERSED

    async def test_a_refused_reversal_is_not_begun_again(self, make: Make) -> None:
        """Not by an execution that slept through its own refusal: its request has been answered."""
        subject = await make()
        made = await succeeded(subject)
        await made.refuse_reversal(await made.begin_reversal("v1"))
        again = await made.begin_reversal("v1", now_ms=T0 + 9)
        assert again.state is PaymentState.SUCCEEDED
        assert (await made.states()).count(PaymentState.REVERSING) == 1

    async def test_a_late_refusal_does_not_end_the_next_reversal(self, make: Make) -> None:
        """A direct payment has no fence that would tell the two apart."""
        subject = await make()
        made = await succeeded(subject, draft(order_id=""))
        first = await made.begin_reversal("v1")
        await made.refuse_reversal(first)
        await made.begin_reversal("v2")
        await made.refuse_reversal(first)
        now = await made.now()
        assert (now.state, now.reversal) == (PaymentState.REVERSING, reversal_of("v2"))
        assert (await subject.request(reversal_of("v2").key))[0] is RequestState.IN_PROGRESS

    # Parking

    @pytest.mark.parametrize("state", [PaymentState.SUBMITTED, PaymentState.UNKNOWN])
    async def test_parking_ends_both_requests_and_releases_the_order(self, make: Make, state: PaymentState) -> None:
        """In one commit: PARKED, the own request refused, the parking answered, RELEASE in the outbox."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        if state is PaymentState.UNKNOWN:
            await made.mark_unknown(retry=replace(SILENCE, attention="ACQUIRER_SILENT"))
        parked = await made.park()
        assert (parked.state, parked.parking, parked.retry) == (PaymentState.PARKED, parking_of(), NO_RETRY)
        assert await made.now() == parked
        assert await subject.store.response_to(settle_key()) == REFUSED
        assert await subject.store.response_to(parking_of().key) == encode_parking(parked)
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert (await made.states())[-1] is PaymentState.PARKED

    async def test_parking_a_reversal_of_an_unknown_payment_ends_three_requests(self, make: Make) -> None:
        """Its own and the reversal's are refused, the parking is answered; RELEASE alone goes to the order."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.begin_reversal()
        await made.mark_unknown(retry=SILENCE)
        parked = await made.park()
        assert (parked.state, parked.parking, parked.retry) == (PaymentState.PARKED, parking_of(), NO_RETRY)
        assert (await made.now(), parked.reversal) == (parked, reversal_of())
        for key in (settle_key(), reversal_of().key):
            assert await subject.store.response_to(key) == REFUSED
        assert await subject.store.response_to(parking_of().key) == encode_parking(parked)
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert (await made.states())[-2:] == [PaymentState.REVERSING, PaymentState.PARKED]
        assert await subject.store.overdue(now_ms=T0 + 99_000, limit=9) == []
        assert await made.record_reversal() == parked

    async def test_a_reversal_of_what_has_a_journal_is_not_parked(self, make: Make) -> None:
        """It stays REVERSING, and the requests of its reversal and of the parking are open."""
        subject = await make()
        made = await succeeded(subject, by_card())
        await made.begin_reversal()
        assert (await made.park()).state is PaymentState.REVERSING
        for key in (reversal_of().key, parking_of().key):
            assert (await subject.request(key))[0] is RequestState.IN_PROGRESS
        assert (await made.record_reversal()).state is PaymentState.REVERSED

    async def test_a_parked_payment_leaves_its_order_to_another(self, make: Make) -> None:
        """It is not active: the next one is submitted, as the next attempt; both are kept."""
        subject = await make()
        await (await unknown_by_card(subject)).park()
        other = await accepted(subject, by_card("p2", settle_key("s2")))
        submitted = await other.submit(charge=BY_CARD)
        assert isinstance(submitted, Payment)
        assert (submitted.state, submitted.attempt) == (PaymentState.SUBMITTED, 2)

    async def test_only_an_open_card_payment_of_an_order_is_parked(self, make: Make) -> None:
        """Cash, a direct payment and one that has ended stay as they are, and so do their requests."""
        subject = await make()
        cash = await accepted(subject)
        await cash.submit()
        direct = await accepted(subject, by_card("p2", settle_key("s2"), ""))
        await direct.submit(NO_FENCE, charge=BY_CARD)
        ended = await succeeded(subject, by_card("p3", settle_key("s3"), "o3"))
        for made, key, state in (
            (cash, "k1", PaymentState.SUBMITTED),
            (direct, "k2", PaymentState.SUBMITTED),
            (ended, "k3", PaymentState.SUCCEEDED),
        ):
            assert (await made.park(key)).state is state
            assert (await subject.request(parking_of(key).key))[0] is RequestState.IN_PROGRESS

    async def test_a_stale_fence_parks_nothing(self, make: Make) -> None:
        subject = await make()
        made = await unknown_by_card(subject)
        await made.mark_unknown(NEWER)
        with pytest.raises(StaleFence):
            await made.park(fence=FENCE)
        assert (await made.now()).state is PaymentState.UNKNOWN

    async def test_ten_parkings_at_once(self, make: Make) -> None:
        """One is answered; the others get the payment with the winner's name on it."""
        subject = await make()
        made = await unknown_by_card(subject)
        outcomes = await asyncio.gather(*(made.park(f"k{n}") for n in range(10)))
        assert len({payment.parking for payment in outcomes}) == 1
        states = [(await subject.request(parking_of(f"k{n}").key))[0] for n in range(10)]
        assert states.count(RequestState.DONE) == 1
        assert (await made.states()).count(PaymentState.PARKED) == 1

    async def test_a_parked_payment_never_succeeds_and_is_not_declined(self, make: Make) -> None:
        """Whatever a late holder records is answered with the payment as it stands, or refused for its fence."""
        subject = await make()
        made = await unknown_by_card(subject)
        parked = await made.park()
        assert await made.record() == await made.decline() == parked
        assert await made.mark_unknown() == parked
        assert (await made.begin_reversal()).state is PaymentState.PARKED
        assert (await made.record_reversal()).state is PaymentState.PARKED

    async def test_parked_payments_are_found_when_they_are_to_be_asked_about(self, make: Make) -> None:
        """At once, and then when the pause after a silence has passed; those that wait longest come first."""
        subject = await make()
        made = await unknown_by_card(subject)
        parked = await made.park()
        store = subject.store
        assert await store.parked(now_ms=T0, limit=9) == [parked]
        silent = await made.mark_unknown(retry=SILENCE)
        assert (silent.state, (await made.now()).retry) == (PaymentState.PARKED, SILENCE)
        assert await store.parked(now_ms=SILENCE.ask_at_ms - 1, limit=9) == []
        assert len(await store.parked(now_ms=SILENCE.ask_at_ms, limit=9)) == 1
        await store.schedule_query(parked.acquirer_key)
        assert len(await store.parked(now_ms=0, limit=9)) == 1

    async def test_the_reversal_of_a_parked_payment_is_recorded_once(self, make: Make) -> None:
        """PARKED → REVERSED, without a journal, a word or an answer."""
        subject = await make()
        made = await unknown_by_card(subject)
        parked = await made.park()
        outcomes = await asyncio.gather(
            *(made.commit(plan(Step.RECORD_PARKED_REVERSAL, parked, T0 + 9), parked.fence) for _ in range(5))
        )
        assert {payment.state for payment in outcomes} == {PaymentState.REVERSED}
        assert (await made.states()).count(PaymentState.REVERSED) == 1
        assert (await made.now()).journal_id == ""
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert await subject.store.parked(now_ms=T0 + 99_000, limit=9) == []

    async def test_a_parking_is_not_taken_for_a_reversal_of_the_same_key(self, make: Make) -> None:
        """Of one caller, under one id: they are two requests, and neither has the other's payment."""
        subject = await make()
        await (await succeeded(subject)).begin_reversal("x1")
        assert await subject.store.of_request(parking_of("x1").key) is None
        assert await subject.store.of_request(reversal_of("x1").key) is not None

    # Words to the order service

    async def test_a_word_is_owed_until_it_is_delivered(self, make: Make) -> None:
        """Delivered once: a second time changes nothing."""
        subject = await make()
        made = await succeeded(subject)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE,)
        assert await subject.store.undelivered(before_ms=T0 + 2, limit=9) == []
        assert await subject.store.undelivered(before_ms=T0 + 3, limit=9) == ["p1"]
        for now_ms in (T0 + 10, T0 + 20):
            await subject.store.delivered("p1", OutboxAction.COMPLETE, now_ms=now_ms)
        assert await subject.store.pending_notifications("p1") == ()
        assert await subject.store.undelivered(before_ms=T0 + DAY_MS, limit=9) == []
        assert await subject.messages() == [OutboxMessage("p1", OutboxAction.COMPLETE, "o1", T0 + 3, T0 + 10)]
        assert await made.record() == await made.now()
        assert await subject.store.pending_notifications("p1") == ()

    async def test_words_are_owed_in_the_order_of_the_payment(self, make: Make) -> None:
        """Also when the wall clock went back between them: an order has to be PAID before it is reopened."""
        subject = await make()
        made = await succeeded(subject)
        await made.begin_reversal()
        await made.record_reversal(now_ms=T0 - 5_000)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)

    async def test_undelivered_words_come_oldest_first(self, make: Make) -> None:
        """And no more of them than asked for."""
        subject = await make()
        for n, now_ms in enumerate((T0 + 30, T0 + 10, T0 + 20)):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"))
            await made.submit()
            await made.record(now_ms=now_ms)
        assert await subject.store.undelivered(before_ms=T0 + 99, limit=2) == ["p1", "p2"]

    async def test_a_direct_payment_owes_no_word(self, make: Make) -> None:
        subject = await make()
        made = await succeeded(subject, draft(order_id=""))
        await made.begin_reversal()
        await made.record_reversal()
        assert await subject.messages() == []

    # Expiry

    async def test_an_unused_ticket_expires(self, make: Make) -> None:
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

    async def test_a_ticket_past_its_time_is_refused_before_anybody_swept(self, make: Make) -> None:
        subject = await make()
        ticket = await issued(subject, ttl_ms=1_000)
        with pytest.raises(FailedPrecondition):
            await subject.store.accept(draft("p1", ticket, ""), "f", lease(T0 + 1_000))

    async def test_what_runs_does_not_expire(self, make: Make) -> None:
        """An execution once begun is brought to its end."""
        subject = await make()
        ticket = await issued(subject, ttl_ms=1_000)
        await accepted(subject, draft("p1", ticket, ""))
        assert await subject.store.expire(now_ms=T0 + DAY_MS * 9) == 0

    async def test_a_payment_given_back_and_never_run_again_ends_with_its_request(self, make: Make) -> None:
        """DECLINED, and the order service is told to free an order it may have claimed."""
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.store.give_back(execution, now_ms=T0)
        assert await subject.store.expire(now_ms=T0 + DAY_MS) == 1
        payment = await subject.store.get("p1")
        assert (payment.state, payment.decline_reason, payment.version) == (
            PaymentState.DECLINED,
            "TICKET_EXPIRED",
            2,
        )
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert await subject.store.expire(now_ms=T0 + DAY_MS) == 0

    # Reading

    async def test_a_request_knows_its_payment(self, make: Make) -> None:
        """The one it made or the one it undoes; None before it did either."""
        subject = await make()
        made = await succeeded(subject)
        assert await subject.store.of_request(settle_key()) == await made.now()
        assert await subject.store.of_request(settle_key("s9")) is None
        assert await subject.store.of_request(reversal_of().key) is None

    async def test_pages_are_newest_first_and_miss_nothing(self, make: Make) -> None:
        """Page after page of two, with payments of the same millisecond on both sides of a border."""
        subject = await make()
        times = (T0, T0 + 1, T0 + 1, T0 + 1, T0 + 2)
        for n, created_at_ms in enumerate(times):
            payment = draft(f"p{n}", settle_key(f"s{n}"), f"o{n}", created_at_ms=created_at_ms)
            await accepted(subject, payment)
        pages, after = [], None
        while page := await subject.store.page(Filter(), limit=2, after=after, seen_by=None):
            pages.append([payment.payment_id for payment in page])
            after = (page[-1].created_at_ms, page[-1].payment_id)
        assert pages == [["p4", "p3"], ["p2", "p1"], ["p0"]]

    async def test_history_has_every_change_with_who_and_why(self, make: Make) -> None:
        """The payment's clerk, and of a reversal its own; a page at a time, the oldest change first."""
        subject = await make()
        made = await succeeded(subject)
        await made.refuse_reversal(await made.begin_reversal())
        events = await subject.store.history("p1", after=0, limit=9)
        assert [(event.version, event.state, event.actor, event.reason) for event in events] == [
            (1, PaymentState.CREATED, LI, ""),
            (2, PaymentState.SUBMITTED, LI, ""),
            (3, PaymentState.SUCCEEDED, LI, ""),
            (4, PaymentState.REVERSING, WANG, "wrong order"),
            (5, PaymentState.SUCCEEDED, WANG, "REVERSAL_REFUSED"),
        ]
        assert [event.at_ms for event in events[3:]] == [T0 + 4, T0 + 5]
        assert await subject.store.history("p1", after=2, limit=2) == events[2:4]
        assert await subject.store.history("p9", after=0, limit=9) == []

    async def test_history_of_a_decline_says_why(self, make: Make) -> None:
        subject = await make()
        made = await accepted(subject)
        await made.decline()
        (event,) = await subject.store.history("p1", after=1, limit=9)
        assert (event.state, event.actor) == (PaymentState.DECLINED, LI)
        assert event.reason == (await made.now()).decline_reason

    async def test_page_seen_by_customer_shows_nothing_of_a_clerk_of_the_same_name(self, make: Make) -> None:
        """Customer li sees what is for them, and not what cashier li has made."""
        subject = await make()
        await accepted(subject, draft("p1", settle_key("s1"), "o1"))
        assert await subject.store.page(Filter(), limit=9, after=None, seen_by=CUSTOMER_LI) == []

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
            await subject.store.ticket_order(theirs)
        with pytest.raises(NotFound):
            await subject.store.accept(draft("p1", theirs, ""), "f", lease())

    async def test_of_request_reversal_by_another_role_of_the_same_name_is_not_found(self, make: Make) -> None:
        """The key of a reversal, too, is its clerk's alone."""
        subject = await make()
        made = await succeeded(subject)
        await made.begin_reversal(now_ms=T0)
        assert await subject.store.of_request(reversal_of().key) == await made.now()
        theirs = replace(reversal_of().key, caller=Principal("wang", Role.CASHIER))
        assert await subject.store.of_request(theirs) is None

    async def test_pages_show_what_is_asked_for(self, make: Make) -> None:
        """By state, by order, and for a customer only what they pay or made."""
        subject = await make()
        made = await accepted(subject, draft("p1", settle_key("s1"), "o1"))
        await made.submit()
        await accepted(subject, draft("p2", settle_key("s2"), "o2"))
        customer_wang = Principal("wang", Role.CUSTOMER)
        await accepted(subject, replace(draft("p3", settle_key("s3", customer_wang), "o1"), clerk=customer_wang))

        async def ids(which: Filter = Filter(), seen_by: Principal | None = None) -> list[str]:  # noqa: B008  frozen
            page = await subject.store.page(which, limit=9, after=None, seen_by=seen_by)
            return sorted(payment.payment_id for payment in page)

        assert await ids(Filter(state=PaymentState.CREATED)) == ["p2", "p3"]
        assert await ids(Filter(order_id="o1")) == ["p1", "p3"]
        assert await ids(seen_by=MEI) == ["p1"]
        assert await ids(seen_by=customer_wang) == ["p3"]
        assert await ids(Filter(state=PaymentState.CREATED, order_id="o1"), MEI) == []
        assert await ids(Filter(source=Source.DRAWER)) == ["p1", "p2", "p3"]
        assert await ids(Filter(source=Source.CARD)) == []

    # Cards

    async def test_a_card_payment_gets_its_key_with_its_submission(self, make: Make) -> None:
        """In the same commit, and for ever; a payment from elsewhere has none."""
        subject = await make()
        made = await accepted(subject, by_card())
        assert (await made.now()).card == "tok-mei"
        assert (await made.now()).acquirer_key == ""
        await made.submit(charge=BY_CARD)
        for step in (made.submit, made.mark_unknown, made.record):
            await step()
            assert ((await made.now()).attempt, (await made.now()).acquirer_key) == (1, "p1:1")
        cash = await accepted(subject, draft("p2", settle_key("s2"), "o2"))
        await cash.submit()
        assert ((await cash.now()).attempt, (await cash.now()).acquirer_key) == (0, "")

    async def test_each_attempt_at_a_round_has_its_number(self, make: Make) -> None:
        """It grows with each definitive decline, begins anew with the next round, and is 1 for a direct payment."""
        subject = await make()
        for n in (1, 2, 3):
            made = await accepted(subject, by_card(f"p{n}", settle_key(f"s{n}")))
            await made.submit(charge=BY_CARD)
            assert (await made.now()).acquirer_key == f"p{n}:{n}"
            await made.decline()
        cash = await accepted(subject, draft("p4", settle_key("s4")))
        await cash.submit()
        await cash.decline()
        next_round = await accepted(subject, by_card("p5", settle_key("s5")))
        await next_round.submit(charge=replace(BY_CARD, round=2))
        assert (await next_round.now()).acquirer_key == "p5:1"
        for n in (6, 7):
            direct = await accepted(subject, by_card(f"p{n}", await issued(subject, f"t{n}"), ""))
            await direct.submit(NO_FENCE, charge=BY_CARD)
            assert (await direct.now()).acquirer_key == f"p{n}:1"

    async def test_submit_card_of_another_customer_is_refused_and_changes_nothing(self, make: Make) -> None:
        """A card is that of the customer for whom it was first submitted, whatever became of that payment."""
        subject = await make()
        first = await accepted(subject, by_card())
        await first.submit(charge=BY_CARD)
        await first.decline()
        second = await accepted(subject, by_card("p2", settle_key("s2"), "o2"))
        before = await second.now()
        with pytest.raises(FailedPrecondition) as refusal:
            await second.submit(charge=replace(BY_CARD, customer_id="tom"))
        assert refusal.value.reason == "CARD_NOT_YOURS"
        assert "mei" not in refusal.value.message
        assert await second.now() == before
        assert len(await subject.history("p2")) == 1
        assert isinstance(await second.submit(charge=BY_CARD), Payment)

    async def test_submit_card_without_a_customer_binds_nothing(self, make: Make) -> None:
        """A direct payment that names nobody leaves the card to whoever is named first."""
        subject = await make()
        for n, customer_id in ((1, ""), (2, "tom")):
            direct = await accepted(subject, by_card(f"p{n}", await issued(subject, f"t{n}"), ""))
            submitted = await direct.submit(NO_FENCE, charge=replace(BY_CARD, customer_id=customer_id))
            assert isinstance(submitted, Payment)
        with pytest.raises(FailedPrecondition):
            await (await accepted(subject, by_card("p4"))).submit(charge=BY_CARD)

    async def test_submit_card_of_a_customer_without_naming_them_is_refused(self, make: Make) -> None:
        """Else a clerk could put one customer's money into another's wallet."""
        subject = await make()
        await (await accepted(subject, by_card())).submit(charge=BY_CARD)
        direct = await accepted(subject, by_card("p2", await issued(subject, "t2"), ""))
        before = await direct.now()
        with pytest.raises(FailedPrecondition) as refusal:
            await direct.submit(NO_FENCE, charge=replace(BY_CARD, customer_id=""))
        assert refusal.value.reason == "CARD_NOT_YOURS"
        assert await direct.now() == before

    async def test_submit_card_of_ten_customers_at_once_is_one_customers(self, make: Make) -> None:
        """One of them is submitted; the nine others are refused, and nobody fails otherwise."""
        subject = await make()
        made = [await accepted(subject, by_card(f"p{n}", settle_key(f"s{n}"), f"o{n}")) for n in range(10)]
        outcomes = await asyncio.gather(
            *(each.submit(charge=replace(BY_CARD, customer_id=f"c{n}")) for n, each in enumerate(made)),
            return_exceptions=True,
        )
        assert sum(isinstance(outcome, Payment) for outcome in outcomes) == 1
        assert refused(outcomes, FailedPrecondition) == 9

    async def test_silence_is_written_down_while_somebody_waits(self, make: Make) -> None:
        """With SUBMITTED → UNKNOWN, and again while it is UNKNOWN or REVERSING, without a new version."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=SILENCE)
        assert ((await made.now()).retry, (await made.now()).version) == (SILENCE, 3)
        longer = AcquirerRetry(4, T0 + 9_000, "ACQUIRER_SILENT")
        await made.mark_unknown(retry=longer)
        assert ((await made.now()).retry, (await made.now()).version) == (longer, 3)
        assert (await made.now()).attention == "ACQUIRER_SILENT"
        undoing = await made.begin_reversal()
        assert (undoing.retry, undoing.attention) == (NO_RETRY, "")
        await made.mark_unknown(retry=SILENCE)
        assert (await made.now()).retry == SILENCE
        assert await made.states() == [
            PaymentState.CREATED,
            PaymentState.SUBMITTED,
            PaymentState.UNKNOWN,
            PaymentState.REVERSING,
        ]

    async def test_silence_about_what_has_ended_is_nothing(self, make: Make) -> None:
        """Nor does the silence of one who was overtaken count; its fence is refused."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        with pytest.raises(StaleFence):
            await made.mark_unknown(Fence(1, 99), retry=SILENCE)
        await made.record()
        before = await made.now()
        await made.mark_unknown(retry=SILENCE)
        assert await made.now() == before

    async def test_who_waits_for_the_acquirer_is_not_overdue(self, make: Make) -> None:
        """Until it is time to ask again, or the acquirer says that there is news; neither of both its requests is."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=AcquirerRetry(1, T0 + 60_000))
        await made.begin_reversal()
        await made.mark_unknown(retry=AcquirerRetry(1, T0 + 60_000))

        async def overdue(now_ms: int) -> set[str]:
            return {row.key.key for row in await subject.store.overdue(now_ms=now_ms, limit=9)}

        assert await overdue(T0 + 59_999) == set()
        assert await overdue(T0 + 60_000) == {"s1", "v1"}
        for other in ("p1:2", "p1", "", "p2:1"):
            await subject.store.schedule_query(other)
        assert await overdue(T0 + 30_000) == set()
        await subject.store.schedule_query("p1:1")
        assert await overdue(T0 + 30_000) == {"s1", "v1"}
        assert (await made.now()).version == 4

    async def test_news_of_what_has_ended_is_nothing(self, make: Make) -> None:
        """A notice may be late."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=SILENCE)
        before = await made.record()
        await subject.store.schedule_query("p1:1")
        assert await made.now() == before

    async def test_the_queue_for_people(self, make: Make) -> None:
        """Those whose silence has lasted too long, until their outcome is known."""
        subject = await make()
        for n, attention in enumerate(("", "ACQUIRER_SILENT", "ACQUIRER_SILENT")):
            made = await accepted(subject, by_card(f"p{n}", settle_key(f"s{n}"), f"o{n}"))
            await made.submit(charge=BY_CARD)
            await made.mark_unknown(retry=AcquirerRetry(9, T0, attention))

        async def queue() -> list[str]:
            page = await subject.store.page(Filter(needs_attention=True), limit=9, after=None, seen_by=None)
            return [payment.payment_id for payment in page]

        assert await queue() == ["p2", "p1"]
        await Made(subject, "p2").record()
        assert await queue() == ["p1"]
        assert (await subject.store.get("p2")).attention == ""

    async def test_only_a_card_payment_is_undone_unseen(self, make: Make) -> None:
        """UNKNOWN → REVERSING; one from elsewhere stays, for nobody can undo what the ledger has not told."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        await made.mark_unknown()
        assert (await made.begin_reversal()).state is PaymentState.UNKNOWN
        card = await accepted(subject, by_card("p2", settle_key("s2"), "o2"))
        await card.submit(charge=BY_CARD)
        assert (await card.begin_reversal("v2")).state is PaymentState.SUBMITTED
        await card.mark_unknown()
        assert (await card.begin_reversal("v3")).state is PaymentState.REVERSING

    async def test_undone_without_ever_being_charged(self, make: Make) -> None:
        """REVERSED without a journal: its own request is refused, the reversal's is done, and the order is free."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.begin_reversal()
        undone = await made.record_reversal(undone=ReversalResult())
        assert (undone.state, undone.journal_id, undone.reversal_journal_id) == (PaymentState.REVERSED, "", "")
        assert undone.settled_at_ms == 0
        assert await subject.store.response_to(settle_key()) == REFUSED
        assert await subject.store.response_to(reversal_of().key) == encode_reversal(undone)
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]

    async def test_undone_after_it_was_charged_unseen(self, make: Make) -> None:
        """REVERSED with both journals: the order service hears that it was paid, and that it is not any more."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.begin_reversal()
        undone = await made.record_reversal()
        assert (undone.journal_id, undone.reversal_journal_id, undone.settled_at_ms) == ("j1", "j2", T0 + 5)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)
        for key in (settle_key(), reversal_of().key):
            assert (await subject.request(key))[0] is RequestState.DONE

    async def test_what_was_unknown_and_may_not_be_undone_has_succeeded(self, make: Make) -> None:
        """The ledger refused the reversal of a journal that it had: both requests are answered, the order is paid."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.refuse_reversal(await made.begin_reversal())
        now = await made.now()
        assert (now.state, now.journal_id, now.settled_at_ms) == (PaymentState.SUCCEEDED, "j1", T0 + 5)
        assert await subject.store.response_to(reversal_of().key) == REFUSED
        assert await subject.store.response_to(settle_key()) == encode(now)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE,)

    async def test_a_known_success_is_answered_once(self, make: Make) -> None:
        """Undoing it, or failing to, touches neither its own answer nor when it was settled."""
        subject = await make()
        made = await succeeded(subject, by_card())
        answer, settled_at_ms = await subject.store.response_to(settle_key()), (await made.now()).settled_at_ms
        await made.refuse_reversal(await made.begin_reversal())
        assert (await made.now()).settled_at_ms == settled_at_ms
        await made.begin_reversal("v2")
        assert (await made.record_reversal()).settled_at_ms == settled_at_ms
        assert await subject.store.response_to(settle_key()) == answer
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)

    # Guards

    async def test_without_the_ticket_every_call_pays(self, make: Make) -> None:
        """What the guard stops: the same ticket makes one payment after another."""
        subject = await make(Guards.without(["ticket"]))
        ticket = await issued(subject)
        for n in range(3):
            outcome = await subject.store.accept(draft(f"p{n}", ticket, ""), "f", lease())
            assert isinstance(outcome, Accepted)
            await Made(subject, f"p{n}").submit(NO_FENCE)
            await Made(subject, f"p{n}").record(NO_FENCE)
        assert [payment.state for payment in await everything(subject)] == [PaymentState.SUCCEEDED] * 3

    async def test_without_the_fence_a_stale_holder_writes(self, make: Make) -> None:
        """What the guard stops; the fence that is kept does not fall even so."""
        subject = await make(Guards.without(["fence"]))
        made = await accepted(subject)
        await made.submit(NEWER)
        recorded = await made.record(FENCE)
        assert (recorded.state, recorded.fence) == (PaymentState.SUCCEEDED, NEWER)

    async def test_without_the_unique_index_two_payments_are_active(self, make: Make) -> None:
        """What the guard stops."""
        subject = await make(Guards.without(["unique"]))
        for n in range(2):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}")))
            assert isinstance(await made.submit(), Payment)

    async def test_without_recovery_a_dead_execution_keeps_its_request(self, make: Make) -> None:
        """What the guard does: nobody carries it on."""
        subject = await make(Guards.without(["recovery"]))
        await accepted(subject)
        with pytest.raises(RequestInProgress):
            await subject.store.accept(draft("p2"), "f", lease(T0 + DAY_MS))


async def everything(subject: Subject) -> list[Payment]:
    """All payments."""
    return await subject.store.page(Filter(), limit=99, after=None, seen_by=None)
