"""What every payment store does with the transitions of a payment."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.kernel.errors import (
    NotFound,
    StaleFence,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, RequestState
from services.kernel.principal import MAX_DELEGATION_CHARS
from services.payment import model
from services.payment.model import (
    NO_RETRY,
    REVERSE,
    SETTLE,
    TRANSITIONS,
    ConflictingPayment,
    OutboxAction,
    Payment,
    PaymentState,
    ReversalResult,
    Step,
    Transition,
    plan,
)
from services.payment.ports import Filter
from tests.contract.payment.subject import (
    BY_CARD,
    CHARGE,
    DAY_MS,
    FENCE,
    LI,
    NEWER,
    REFUSED,
    SILENCE,
    T0,
    WANG,
    Made,
    Make,
    accepted,
    by_card,
    draft,
    encode,
    encode_parking,
    encode_reversal,
    everything,
    execution_in,
    lease,
    parking_of,
    reversal_of,
    settle_key,
    succeeded,
    unknown_by_card,
)
from tests.fakes.payment_store import Event, OutboxMessage
from tests.feeds import watching


class TransitionsContract:
    """From CREATED to SUCCEEDED or DECLINED: fences, versions, one active payment of an order."""

    async def test_payment_is_kept_as_it_was_drafted(self, make: Make) -> None:
        """CREATED, version 1, with its first event; nothing for the order service yet."""
        subject = await make()
        made = await accepted(subject)
        assert await made.now() == draft()
        assert await subject.history("p1") == [Event("p1", 1, PaymentState.CREATED, NO_FENCE, T0)]
        assert await subject.messages() == []
        assert await subject.request(settle_key()) == (RequestState.IN_PROGRESS, 1)

    async def test_payment_comes_to_its_end(self, make: Make) -> None:
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
        assert await subject.requests.response_to(settle_key()) == encode(recorded)
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
        assert await subject.requests.response_to(settle_key()) == encode(stands)
        assert len(await subject.messages()) == 1

    async def test_move_out_of_turn_changes_and_answers_nothing(self, make: Make) -> None:
        """What was never submitted cannot succeed, nor be undone; its request stays open."""
        subject = await make()
        made = await accepted(subject)
        for step in (made.mark_unknown, made.record, made.begin_reversal, made.record_reversal):
            assert (await step()).state is PaymentState.CREATED
        assert await made.states() == [PaymentState.CREATED]
        assert (await subject.request(settle_key()))[0] is RequestState.IN_PROGRESS
        assert await subject.messages() == []

    async def test_unknown_payment_is_not_found(self, make: Make) -> None:
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

    async def test_apply_of_a_transition_of_an_older_payment_changes_nothing(self, make: Make) -> None:
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
    async def test_active_payment_keeps_others_out(self, make: Make, state: str) -> None:
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
    async def test_ended_payment_makes_room(self, make: Make, ended: str) -> None:
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

    async def test_direct_payments_do_not_exclude_each_other(self, make: Make) -> None:
        """Payments without an order do not share one."""
        subject = await make()
        for n in range(3):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}"), ""))
            assert isinstance(await made.submit(NO_FENCE), Payment)

    async def test_stale_fence_is_refused(self, make: Make) -> None:
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

    async def test_generation_counts_more_than_a_token(self, make: Make) -> None:
        subject = await make()
        made = await accepted(subject)
        await made.submit(Fence(2, 1))
        with pytest.raises(StaleFence):
            await made.record(Fence(1, 10**9))
        assert (await made.record(Fence(2, 1))).fence == Fence(2, 1)

    async def test_move_that_changes_nothing_raises_the_fence(self, make: Make) -> None:
        """Who looked under a newer lock shuts the older one out."""
        subject = await make()
        made = await accepted(subject)
        await made.submit()
        assert (await made.submit(NEWER)).fence == NEWER  # type: ignore[union-attr]  # there is no conflicting payment
        with pytest.raises(StaleFence):
            await made.record(FENCE)
        assert len(await made.states()) == 2

    async def test_response_is_stored_with_the_effect_or_not_at_all(self, make: Make) -> None:
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
    async def test_decline_notifies_the_order_service_if_it_may_have_claimed(self, make: Make, release: bool) -> None:
        subject = await make()
        made = await accepted(subject)
        declined = await made.decline(release=release)
        assert (declined.state, declined.decline_reason) == (PaymentState.DECLINED, "WHY")
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE] * release
        assert await subject.requests.response_to(settle_key()) == REFUSED

    async def test_declined_before_it_was_claimed_its_request_is_answered_alike(self, make: Make) -> None:
        """As of an order that does not exist: nobody finds an open payment, and nobody carries the request on."""
        subject = await make()
        made = await accepted(subject)
        declined = await made.decline(release=False)
        assert await subject.store.accept(draft("p2"), "f", lease(T0 + 9)) == REFUSED
        assert await made.now() == declined
        open_ones = Filter(state=PaymentState.CREATED)
        assert await subject.store.page(open_ones, limit=9, after=None, seen_by=None) == []
        assert await subject.requests.overdue(now_ms=T0 + 10**9, limit=9) == []
        assert await subject.messages() == []


class DelegationsContract:
    """By which the payment service may name the clerks to other services."""

    async def test_delegations_are_kept_with_the_payment(self, make: Make) -> None:
        """Of its own clerk, of the one who reverses it, and of the one who parks it."""
        subject = await make()
        made = await accepted(subject, replace(by_card(), clerk=replace(LI, delegation="of li")))
        assert (await made.now()).clerk.delegation == "of li"
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=SILENCE)
        reversal = replace(reversal_of(), clerk=replace(WANG, delegation="of wang"))
        await subject.requests.begin(reversal.key, "f", lease(T0 + 4))
        await made.commit(model.begin_reversal(await made.now(), reversal, T0 + 4), FENCE)
        parking = replace(parking_of(), clerk=replace(WANG, delegation="of wang, later"))
        await subject.requests.begin(parking.key, "f", lease(T0 + 5))
        await made.commit(model.park(await made.now(), parking, T0 + 5), FENCE, refuses=(SETTLE, REVERSE))
        found = await made.now()
        assert found.reversal is not None
        assert found.parking is not None
        kept = [each.clerk.delegation for each in (found, found.reversal, found.parking)]
        assert kept == ["of li", "of wang", "of wang, later"]

    async def test_longest_delegation_is_kept_whole(self, make: Make) -> None:
        subject = await make()
        longest = "x" * MAX_DELEGATION_CHARS
        made = await accepted(subject, replace(draft(), clerk=replace(LI, delegation=longest)))
        assert (await made.now()).clerk.delegation == longest


class FeedContract:
    """Who watches is told of every change once it is committed."""

    async def test_every_change_of_a_payment_is_told_as_it_was_returned(self, make: Make) -> None:
        subject = await make()
        async with watching(subject.store.feed) as watch:
            made = await accepted(subject, by_card())
            submitted = await made.submit(charge=BY_CARD)
            await made.mark_unknown(retry=SILENCE)
            parked = await made.park()
            told = await watch.until(parked)
        assert told[:2] == [by_card(), submitted]
        versions = [payment.version for payment in told]
        assert versions == sorted(versions)
        assert {payment.state for payment in told} == {*await made.states()}
        assert SILENCE in [payment.retry for payment in told]

    async def test_what_changes_nothing_is_not_told(self, make: Make) -> None:
        """A repeated request, a transition of an older payment, a fence."""
        subject = await make()
        made = await accepted(subject)
        before = await made.now()
        await made.submit()
        async with watching(subject.store.feed) as watch:
            await subject.store.accept(draft(), "f", lease(T0 + 60_000))
            await made.commit(model.decline(before, "WHY", T0 + 2, release=True), FENCE)
            await subject.store.raise_fence("p1", NEWER)
            recorded = await made.record(NEWER)
            assert await watch.until(recorded) == [recorded]

    async def test_expired_payment_is_told(self, make: Make) -> None:
        subject = await make()
        execution = execution_in(await subject.store.accept(draft(), "f", lease()))
        await subject.requests.give_back(execution, now_ms=T0)
        async with watching(subject.store.feed) as watch:
            assert await subject.store.expire(now_ms=T0 + DAY_MS) == 1
            (told,) = await watch.until(await Made(subject).now())
        assert told.state is PaymentState.DECLINED


class ReversalContract:
    """To REVERSED, or back to SUCCEEDED."""

    async def test_payment_is_undone(self, make: Make) -> None:
        """For one request, whose response is stored with it."""
        subject = await make()
        made = await succeeded(subject)
        reversing = await made.begin_reversal()
        assert (reversing.state, reversing.reversal) == (PaymentState.REVERSING, reversal_of())
        assert (await subject.store.of_request(reversal_of().key)) == reversing
        reversed_ = await made.record_reversal()
        assert (reversed_.state, reversed_.reversal_journal_id) == (PaymentState.REVERSED, "j2")
        assert await subject.requests.response_to(reversal_of().key) == encode_reversal(reversed_)
        assert [message.action for message in await subject.messages()] == [OutboxAction.COMPLETE, OutboxAction.REOPEN]

    async def test_late_record_does_not_end_a_reversal(self, make: Make) -> None:
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

    async def test_reversal_that_begins_takes_its_request_back(self, make: Make) -> None:
        """Its execution was only paused when the request was given back. If it dies now, the worker carries it on."""
        subject = await make()
        made = await succeeded(subject)
        execution = await subject.requests.begin(reversal_of().key, "f", lease())
        assert isinstance(execution, Execution)
        assert await subject.requests.give_back(execution, now_ms=T0)
        assert await subject.requests.overdue(now_ms=T0 + DAY_MS, limit=9) == []
        await made.go_on_to_reverse()
        (row,) = await subject.requests.overdue(now_ms=T0 + 4, limit=9)
        assert (row.key, row.attempt) == (reversal_of().key, 1)
        assert await subject.requests.take_over(row, lease(T0 + 4)) is not None

    async def test_reversal_that_begins_leaves_a_request_in_progress_as_it_is(self, make: Make) -> None:
        subject = await make()
        made = await succeeded(subject)
        await subject.requests.begin(reversal_of().key, "f", lease())
        await made.go_on_to_reverse()
        assert await subject.requests.overdue(now_ms=T0 + 4_999, limit=9) == []
        assert len(await subject.requests.overdue(now_ms=T0 + 5_000, limit=9)) == 1

    async def test_refused_reversal_leaves_the_payment_as_it_was(self, make: Make) -> None:
        """The refusal is stored; the next request may try again."""
        subject = await make()
        made = await succeeded(subject)
        await made.refuse_reversal(await made.begin_reversal("v1"))
        assert (await made.now()).state is PaymentState.SUCCEEDED
        assert await subject.requests.response_to(reversal_of("v1").key) == REFUSED
        assert (await made.begin_reversal("v2")).reversal == reversal_of("v2")
        assert (await made.record_reversal()).state is PaymentState.REVERSED

    async def test_refused_reversal_is_not_begun_again(self, make: Make) -> None:
        """Not by an execution that slept through its own refusal: its request has been answered."""
        subject = await make()
        made = await succeeded(subject)
        await made.refuse_reversal(await made.begin_reversal("v1"))
        again = await made.begin_reversal("v1", now_ms=T0 + 9)
        assert again.state is PaymentState.SUCCEEDED
        assert (await made.states()).count(PaymentState.REVERSING) == 1

    async def test_late_refusal_does_not_end_the_next_reversal(self, make: Make) -> None:
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

    async def test_only_a_card_payment_of_unknown_outcome_is_reversed(self, make: Make) -> None:
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

    async def test_unknown_payment_that_was_not_charged_is_reversed_without_a_journal(self, make: Make) -> None:
        """REVERSED without a journal: its own request is refused, the reversal's is done, and the order is free."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.begin_reversal()
        undone = await made.record_reversal(undone=ReversalResult())
        assert (undone.state, undone.journal_id, undone.reversal_journal_id) == (PaymentState.REVERSED, "", "")
        assert undone.settled_at_ms == 0
        assert await subject.requests.response_to(settle_key()) == REFUSED
        assert await subject.requests.response_to(reversal_of().key) == encode_reversal(undone)
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]

    async def test_unknown_payment_that_was_charged_is_reversed_with_both_journals(self, make: Make) -> None:
        """REVERSED with both journals: the order service hears that it was paid, and that it is not any more."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.begin_reversal()
        undone = await made.record_reversal()
        assert (undone.journal_id, undone.reversal_journal_id, undone.settled_at_ms) == ("j1", "j2", T0 + 5)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)
        for key in (settle_key(), reversal_of().key):
            assert (await subject.request(key))[0] is RequestState.DONE

    async def test_unknown_payment_whose_reversal_is_refused_has_succeeded(self, make: Make) -> None:
        """The ledger refused the reversal of a journal that it had: both requests are answered, the order is paid."""
        subject = await make()
        made = await unknown_by_card(subject)
        await made.refuse_reversal(await made.begin_reversal())
        now = await made.now()
        assert (now.state, now.journal_id, now.settled_at_ms) == (PaymentState.SUCCEEDED, "j1", T0 + 5)
        assert await subject.requests.response_to(reversal_of().key) == REFUSED
        assert await subject.requests.response_to(settle_key()) == encode(now)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE,)

    async def test_known_success_is_answered_once(self, make: Make) -> None:
        """Undoing it, or failing to, touches neither its own answer nor when it was settled."""
        subject = await make()
        made = await succeeded(subject, by_card())
        answer, settled_at_ms = await subject.requests.response_to(settle_key()), (await made.now()).settled_at_ms
        await made.refuse_reversal(await made.begin_reversal())
        assert (await made.now()).settled_at_ms == settled_at_ms
        await made.begin_reversal("v2")
        assert (await made.record_reversal()).settled_at_ms == settled_at_ms
        assert await subject.requests.response_to(settle_key()) == answer
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)


class ParkingContract:
    """To PARKED, and from there to REVERSED."""

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
        assert await subject.requests.response_to(settle_key()) == REFUSED
        assert await subject.requests.response_to(parking_of().key) == encode_parking(parked)
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
            assert await subject.requests.response_to(key) == REFUSED
        assert await subject.requests.response_to(parking_of().key) == encode_parking(parked)
        assert [message.action for message in await subject.messages()] == [OutboxAction.RELEASE]
        assert (await made.states())[-2:] == [PaymentState.REVERSING, PaymentState.PARKED]
        assert await subject.requests.overdue(now_ms=T0 + 99_000, limit=9) == []
        assert await made.record_reversal() == parked

    async def test_reversal_of_a_payment_with_a_journal_is_not_parked(self, make: Make) -> None:
        """It stays REVERSING, and the requests of its reversal and of the parking are open."""
        subject = await make()
        made = await succeeded(subject, by_card())
        await made.begin_reversal()
        assert (await made.park()).state is PaymentState.REVERSING
        for key in (reversal_of().key, parking_of().key):
            assert (await subject.request(key))[0] is RequestState.IN_PROGRESS
        assert (await made.record_reversal()).state is PaymentState.REVERSED

    async def test_parked_payment_leaves_its_order_to_another(self, make: Make) -> None:
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

    async def test_stale_fence_parks_nothing(self, make: Make) -> None:
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

    async def test_parked_payment_never_succeeds_and_is_not_declined(self, make: Make) -> None:
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

    async def test_reversal_of_a_parked_payment_is_recorded_once(self, make: Make) -> None:
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

    async def test_parking_is_not_taken_for_a_reversal_of_the_same_key(self, make: Make) -> None:
        """Of one caller, under one id: they are two requests, and neither has the other's payment."""
        subject = await make()
        await (await succeeded(subject)).begin_reversal("x1")
        assert await subject.store.of_request(parking_of("x1").key) is None
        assert await subject.store.of_request(reversal_of("x1").key) is not None
