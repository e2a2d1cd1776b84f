"""The payment database under test: its two ports, a look behind them, and payments brought to where a test begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from services.kernel.errors import CountinghouseError
from services.kernel.fence import Fence
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
    Accepted,
    AcquirerRetry,
    Change,
    Charge,
    ConflictingPayment,
    Parking,
    Payment,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
)
from services.payment.ports import Filter, PaymentStore, RequestRecords
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
    """A payment database under test, and a look at what it keeps behind its ports."""

    @property
    def store(self) -> PaymentStore: ...
    @property
    def requests(self) -> RequestRecords: ...

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
        await self.subject.requests.begin(parking_of(key).key, "f", lease(now_ms))
        change = model.park(await self.now(), parking_of(key), now_ms)
        return await self.commit(change, fence, refuses=(SETTLE, REVERSE))

    async def begin_reversal(self, key: str = "v1", fence: Fence = FENCE, *, now_ms: int = T0 + 4) -> Payment:
        await self.subject.requests.begin(reversal_of(key).key, "f", lease(now_ms))
        return await self.go_on_to_reverse(key, fence, now_ms=now_ms)

    async def go_on_to_reverse(self, key: str = "v1", fence: Fence = FENCE, *, now_ms: int = T0 + 4) -> Payment:
        """Begin the reversal of a request that has begun."""
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
    stored = await subject.requests.issue(
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


async def everything(subject: Subject) -> list[Payment]:
    """All payments."""
    return await subject.store.page(Filter(), limit=99, after=None, seen_by=None)
