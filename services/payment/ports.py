"""What the operations need from outside.

Adapters: `store.py`, `request_records.py`, `peers.py`, `locks.py`, `servicer.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.kernel.clock import CallDeadline
from services.kernel.errors import CountinghouseError
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal
from services.payment.model import (
    Accepted,
    AcquirerRetry,
    Change,
    ConflictingPayment,
    OutboxAction,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    Source,
)
from services.runtime.change_feed import ChangeFeed
from services.runtime.grpc.context import Call


class Hold(Protocol):
    """A held order lock."""

    fence: Fence

    def ensure(self) -> None: ...


class _NoHold:
    fence = NO_FENCE

    def ensure(self) -> None:
        """Do nothing: there is no lock to lose."""


#: Of a direct payment: it has no order, and needs no lock.
NO_HOLD: Hold = _NoHold()


class Locks(Protocol):
    """Order locks; see `locks.py`."""

    def hold(
        self, order_id: str, clerk: Principal, payment_id: str, wait_s: float
    ) -> AbstractAsyncContextManager[Hold]: ...


class OrderState(StrEnum):
    """The state of an order, as the order service answers."""

    UNPAID = "UNPAID"
    PAYING = "PAYING"
    PAID = "PAID"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Order:
    """An order as this service sees it."""

    order_id: str
    customer_id: str
    state: OrderState
    amount: Money
    round: int
    payment_id: str
    settled_by: Principal | None
    settled_at_ms: int

    def is_being_paid_by(self, payment: Payment) -> bool:
        """Return whether this payment owns the claim."""
        return self.state is OrderState.PAYING and self.payment_id == payment.payment_id


class Orders(Protocol):
    """The order service; see `peers.py`."""

    async def get(self, order_id: str, deadline: CallDeadline) -> Order: ...
    async def claim(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> Order: ...
    async def complete(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None: ...
    async def release(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None: ...
    async def reopen(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None: ...


@dataclass(frozen=True, slots=True)
class AccountTerms:
    """A ledger account as a payment needs to know it before a card is charged.

    Args:
        closed: Whether nothing can be posted to it any more.
        grows_by_debits: Whether a credit lowers its balance: an asset or an expense.
    """

    account_id: str
    currency: str
    closed: bool = False
    grows_by_debits: bool = False


class Ledger(Protocol):
    """The ledger; see `peers.py`."""

    async def account(self, account_id: str, deadline: CallDeadline) -> AccountTerms | None: ...
    async def void(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> str: ...
    async def post(self, payment: Payment, amount: Money, fence: Fence, deadline: CallDeadline) -> str: ...
    async def reverse(self, payment: Payment, reversal: Reversal, fence: Fence, deadline: CallDeadline) -> str: ...


class KeyState(StrEnum):
    """The state of a key at the acquirer, as far as it answers."""

    #: It has not decided on it; a charge may be on its way.
    UNSEEN = "UNSEEN"
    CHARGED = "CHARGED"
    DECLINED = "DECLINED"
    REFUNDED = "REFUNDED"
    #: Reversed before it was ever charged: it never will be.
    TOMBSTONE = "TOMBSTONE"


@dataclass(frozen=True, slots=True)
class ChargeTerms:
    """What a charge is for: the payload that a key stands for at the acquirer.

    Args:
        minor_units: As stated; an answer may hold any number.
        currency: As stated; an answer may hold any text.
    """

    minor_units: int
    currency: str
    card: str
    reference: str


@dataclass(frozen=True, slots=True)
class ChargeStatus:
    """An answer of the acquirer.

    Args:
        reason: Why it was DECLINED, UPPER_SNAKE; empty otherwise.
        key: Which key the answer is about; empty if UNSEEN.
        terms: What the key stands for there; None: nothing, as for a TOMBSTONE.
    """

    state: KeyState
    reason: str = ""
    key: str = ""
    terms: ChargeTerms | None = None

    @property
    def was_charged(self) -> bool:
        """Whether money came in under the key, though it may have been given back."""
        return self.state in (KeyState.CHARGED, KeyState.REFUNDED)

    def contradictions(self, key: str, terms: ChargeTerms) -> tuple[str, ...]:
        """Name the parts of this answer that are not what was asked for, by field; empty: all of it agrees."""
        if self.state is KeyState.UNSEEN:
            return ()
        wrong = ("key",) if self.key != key else ()
        if self.terms is None:
            return wrong if self.state is KeyState.TOMBSTONE else (*wrong, "amount")
        stated, asked = self.terms, terms
        return wrong + tuple(
            name
            for name, agrees in (
                ("amount", stated.minor_units == asked.minor_units),
                ("currency", stated.currency == asked.currency),
                ("card", stated.card == asked.card),
                ("reference", stated.reference == asked.reference),
            )
            if not agrees
        )


class Acquirer(Protocol):
    """The acquirer; see `peers.py`. It knows no lock and checks no fence: only the key counts.

    What is not an answer about the key raises OutcomeUnknown, whatever it is: that an outside system did nothing cannot
    be checked.
    """

    #: Whether there is one.
    present: bool

    async def charge(self, key: str, payment: Payment, amount: Money, deadline: CallDeadline) -> ChargeStatus: ...
    async def query(self, key: str, deadline: CallDeadline) -> ChargeStatus: ...
    async def reverse_by_key(self, key: str, deadline: CallDeadline) -> ChargeStatus: ...


class Responses(Protocol):
    """How answers look on the wire; see `servicer.py`."""

    def ticket(self, ticket_id: str, order_id: str, expires_at_ms: int) -> StoredResponse: ...
    def payment(self, method: str, payment: Payment) -> StoredResponse: ...
    def refusal(self, error: CountinghouseError) -> StoredResponse: ...


class Failpoints(Protocol):
    """Named moments; see `runtime/grpc/failpoints.py`."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """The waits of operations, in seconds, and how many there may be of things; see `runtime/settings.py`."""

    lock_wait_s: float
    lease_s: float
    acquirer_asks: int
    ticket_quota: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which payments to list; by default all."""

    state: PaymentState | None = None
    source: Source | None = None
    order_id: str = ""
    needs_attention: bool = False


class RequestRecords(Protocol):
    """The tickets and requests in the payment database: which may run, who runs them, what they were answered with.

    Each method is one transaction. See `request_records.py` for what each guarantees and raises.
    """

    async def issue(
        self,
        request: RequestKey,
        fingerprint: str,
        ticket: RequestKey,
        *,
        lease: Lease,
        expires_at_ms: int,
        order_id: str,
        answer: StoredResponse,
        quota: int | None,
    ) -> StoredResponse | None: ...
    async def ticket_order(self, ticket: RequestKey) -> str: ...
    async def begin(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse: ...
    async def finish(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None: ...
    async def response_to(self, key: RequestKey) -> StoredResponse: ...
    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None: ...

    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None: ...
    async def give_back(self, execution: Execution, *, now_ms: int) -> bool: ...
    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]: ...
    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None: ...


class PaymentStore(Protocol):
    """The payments in the payment database, with the requests that their changes begin and end.

    Each method is one transaction. See `store.py` for what each guarantees and raises.

    Attributes:
        feed: Is told of every payment that was made or changed, as it stands since.
    """

    feed: ChangeFeed[Payment]

    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse: ...
    async def apply(self, change: Change, fence: Fence) -> Payment: ...
    async def submit(self, change: Change, fence: Fence) -> Payment | ConflictingPayment: ...
    async def expire(self, *, now_ms: int) -> int: ...
    async def raise_fence(self, payment_id: str, fence: Fence) -> Payment: ...

    async def schedule_retry(self, payment_id: str, fence: Fence, retry: AcquirerRetry) -> None: ...
    async def schedule_query(self, key: str) -> None: ...
    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]: ...

    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]: ...
    async def delivered(self, payment_id: str, action: OutboxAction, *, now_ms: int) -> None: ...
    async def undelivered(self, *, now_ms: int, grace_ms: int, limit: int) -> list[str]: ...

    async def get(self, payment_id: str) -> Payment: ...
    async def of_request(self, key: RequestKey) -> Payment | None: ...
    async def history(self, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]: ...
    async def page(
        self, which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None
    ) -> list[Payment]: ...
