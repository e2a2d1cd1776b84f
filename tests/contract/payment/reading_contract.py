"""What every payment store tells of its payments."""

from __future__ import annotations

from dataclasses import replace

from services.kernel.principal import Principal, Role
from services.payment.model import (
    OutboxAction,
    PaymentState,
    Source,
)
from services.payment.ports import Filter
from tests.contract.payment.subject import (
    CUSTOMER_LI,
    DAY_MS,
    LI,
    MEI,
    T0,
    WANG,
    Make,
    accepted,
    draft,
    reversal_of,
    settle_key,
    succeeded,
)
from tests.fakes.payment_store import OutboxMessage


class OutboxContract:
    """What the order service is to be told."""

    async def test_notification_is_pending_until_it_is_delivered(self, make: Make) -> None:
        """Delivered once: a second time changes nothing."""
        subject = await make()
        made = await succeeded(subject)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE,)
        assert await subject.store.undelivered(now_ms=T0 + 3, grace_ms=1, limit=9) == []
        assert await subject.store.undelivered(now_ms=T0 + 4, grace_ms=1, limit=9) == ["p1"]
        for now_ms in (T0 + 10, T0 + 20):
            await subject.store.delivered("p1", OutboxAction.COMPLETE, now_ms=now_ms)
        assert await subject.store.pending_notifications("p1") == ()
        assert await subject.store.undelivered(now_ms=T0 + DAY_MS, grace_ms=1, limit=9) == []
        assert await subject.messages() == [OutboxMessage("p1", OutboxAction.COMPLETE, "o1", T0 + 3, T0 + 10)]
        assert await made.record() == await made.now()
        assert await subject.store.pending_notifications("p1") == ()

    async def test_notification_dated_ahead_is_undelivered(self, make: Make) -> None:
        """The clock of the process that wrote it was ahead: no other process would deliver it until then."""
        subject = await make()
        await succeeded(subject)
        assert await subject.store.undelivered(now_ms=T0 + 3 - DAY_MS, grace_ms=1, limit=9) == ["p1"]
        assert await subject.store.undelivered(now_ms=T0 + 2, grace_ms=1, limit=9) == []

    async def test_notifications_are_in_the_order_of_the_payment(self, make: Make) -> None:
        """Also when the wall clock went back between them: an order has to be PAID before it is reopened."""
        subject = await make()
        made = await succeeded(subject)
        await made.begin_reversal()
        await made.record_reversal(now_ms=T0 - 5_000)
        assert await subject.store.pending_notifications("p1") == (OutboxAction.COMPLETE, OutboxAction.REOPEN)

    async def test_undelivered_notifications_come_oldest_first(self, make: Make) -> None:
        """And no more of them than asked for."""
        subject = await make()
        for n, now_ms in enumerate((T0 + 30, T0 + 10, T0 + 20)):
            made = await accepted(subject, draft(f"p{n}", settle_key(f"s{n}"), f"o{n}"))
            await made.submit()
            await made.record(now_ms=now_ms)
        assert await subject.store.undelivered(now_ms=T0 + 99, grace_ms=1, limit=2) == ["p1", "p2"]

    async def test_direct_payment_has_no_notification(self, make: Make) -> None:
        subject = await make()
        made = await succeeded(subject, draft(order_id=""))
        await made.begin_reversal()
        await made.record_reversal()
        assert await subject.messages() == []


class ReadingContract:
    """Payments, pages of them, and their history."""

    async def test_request_knows_its_payment(self, make: Make) -> None:
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

    async def test_history_has_every_change_with_actor_and_reason(self, make: Make) -> None:
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

    async def test_history_of_a_decline_has_its_reason(self, make: Make) -> None:
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

    async def test_reversal_by_another_role_of_the_same_name_is_not_found(self, make: Make) -> None:
        """The key of a reversal, too, is its clerk's alone."""
        subject = await make()
        made = await succeeded(subject)
        await made.begin_reversal(now_ms=T0)
        assert await subject.store.of_request(reversal_of().key) == await made.now()
        theirs = replace(reversal_of().key, caller=Principal("wang", Role.CASHIER))
        assert await subject.store.of_request(theirs) is None

    async def test_pages_are_filtered(self, make: Make) -> None:
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
