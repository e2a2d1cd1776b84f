"""What every payment store does with card payments."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from services.kernel.errors import (
    FailedPrecondition,
    StaleFence,
)
from services.kernel.fence import NO_FENCE, Fence
from services.payment.model import (
    NO_RETRY,
    AcquirerRetry,
    Payment,
    PaymentState,
)
from services.payment.ports import Filter
from tests.contract.payment.subject import (
    BY_CARD,
    SILENCE,
    T0,
    Made,
    Make,
    accepted,
    by_card,
    draft,
    issued,
    refused,
    settle_key,
)


class CardsContract:
    """Keys, owners of cards, and when the acquirer is to be asked again."""

    async def test_card_payment_gets_its_key_with_its_submission(self, make: Make) -> None:
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

    async def test_silence_is_counted_while_a_payment_waits(self, make: Make) -> None:
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

    async def test_silence_about_an_ended_payment_changes_nothing(self, make: Make) -> None:
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

    async def test_payment_that_waits_for_the_acquirer_is_not_overdue(self, make: Make) -> None:
        """Until it is time to ask again, or the acquirer says that there is news; neither of both its requests is."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=AcquirerRetry(1, T0 + 60_000))
        await made.begin_reversal()
        await made.mark_unknown(retry=AcquirerRetry(1, T0 + 60_000))

        async def overdue(now_ms: int) -> set[str]:
            return {row.key.key for row in await subject.requests.overdue(now_ms=now_ms, limit=9)}

        assert await overdue(T0 + 59_999) == set()
        assert await overdue(T0 + 60_000) == {"s1", "v1"}
        for other in ("p1:2", "p1", "", "p2:1"):
            await subject.store.schedule_query(other)
        assert await overdue(T0 + 30_000) == set()
        await subject.store.schedule_query("p1:1")
        assert await overdue(T0 + 30_000) == {"s1", "v1"}
        assert (await made.now()).version == 4

    async def test_notice_about_an_ended_payment_changes_nothing(self, make: Make) -> None:
        """A notice may be late."""
        subject = await make()
        made = await accepted(subject, by_card())
        await made.submit(charge=BY_CARD)
        await made.mark_unknown(retry=SILENCE)
        before = await made.record()
        await subject.store.schedule_query("p1:1")
        assert await made.now() == before

    async def test_queue_for_people(self, make: Make) -> None:
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
