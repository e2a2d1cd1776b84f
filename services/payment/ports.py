"""What the operations need from outside. Adapters: `store.py`, `peers.py`, `locks.py`, `servicer.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from services.kernel.clock import Deadline
from services.kernel.errors import CountinghouseError
from services.kernel.fence import Fence
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal
from services.payment.model import (
    NO_RETRY,
    Accepted,
    AccountTerms,
    AcquirerRetry,
    Charge,
    ChargeStatus,
    ConflictingPayment,
    Order,
    OutboxAction,
    Parking,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
)
from services.runtime.grpc.context import Call

#: Makes the response to a request from the payment as it is about to be committed.
Encode = Callable[[Payment], StoredResponse]


class Hold(Protocol):
    """A held order lock."""

    fence: Fence

    def ensure(self) -> None: ...


class Locks(Protocol):
    """Order locks; see `locks.py`."""

    def hold(
        self, order_id: str, clerk: Principal, payment_id: str, wait_s: float
    ) -> AbstractAsyncContextManager[Hold]: ...


class Orders(Protocol):
    """The order service; see `peers.py`."""

    async def get(self, order_id: str, deadline: Deadline) -> Order: ...
    async def claim(self, payment: Payment, fence: Fence, deadline: Deadline) -> Order: ...
    async def complete(self, payment: Payment, fence: Fence, deadline: Deadline) -> None: ...
    async def release(self, payment: Payment, fence: Fence, deadline: Deadline) -> None: ...
    async def reopen(self, payment: Payment, fence: Fence, deadline: Deadline) -> None: ...


class Ledger(Protocol):
    """The ledger; see `peers.py`."""

    async def account(self, account_id: str, deadline: Deadline) -> AccountTerms | None: ...
    async def void(self, payment: Payment, fence: Fence, deadline: Deadline) -> str: ...
    async def post(self, payment: Payment, amount: Money, fence: Fence, deadline: Deadline) -> str: ...
    async def reverse(self, payment: Payment, reversal: Reversal, fence: Fence, deadline: Deadline) -> str: ...


class Acquirer(Protocol):
    """The outside bank; see `peers.py`. It knows no lock and checks no fence: all it goes by is the key.

    What is not an answer about the key raises OutcomeUnknown, whatever it is: an outside bank that says it did nothing
    is not believed.
    """

    #: Whether there is one.
    present: bool

    async def charge(self, key: str, payment: Payment, amount: Money, deadline: Deadline) -> ChargeStatus: ...
    async def query(self, key: str, deadline: Deadline) -> ChargeStatus: ...
    async def reverse_by_key(self, key: str, deadline: Deadline) -> ChargeStatus: ...


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


class Store(Protocol):
    """The payment database: each method is one transaction. See `store.py` for what each guarantees and raises."""

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
    async def accept(self, draft: Payment, fingerprint: str, lease: Lease) -> Accepted | StoredResponse: ...
    async def begin_request(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse: ...
    async def refuse_request(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None: ...
    async def response_to(self, key: RequestKey) -> StoredResponse: ...
    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None: ...
    async def give_back(self, execution: Execution, *, now_ms: int) -> None: ...
    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None: ...

    async def submit(
        self, payment_id: str, charge: Charge, fence: Fence, *, now_ms: int
    ) -> Payment | ConflictingPayment: ...
    async def mark_unknown(
        self, payment_id: str, fence: Fence, *, now_ms: int, retry: AcquirerRetry = NO_RETRY
    ) -> Payment: ...
    async def record(
        self, payment_id: str, fence: Fence, journal_id: str, encode: Encode, *, now_ms: int
    ) -> Payment: ...
    async def decline(
        self, payment_id: str, fence: Fence, reason: str, encode: Encode, *, release: bool, now_ms: int
    ) -> Payment: ...
    async def begin_reversal(self, payment_id: str, fence: Fence, reversal: Reversal, *, now_ms: int) -> Payment: ...
    async def record_reversal(
        self, payment: Payment, fence: Fence, undone: ReversalResult, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment: ...
    async def refuse_reversal(
        self, payment: Payment, fence: Fence, journal_id: str, answer: StoredResponse, encode: Encode, *, now_ms: int
    ) -> None: ...
    async def park(
        self, payment_id: str, fence: Fence, parking: Parking, encode: Encode, encode_own: Encode, *, now_ms: int
    ) -> Payment: ...
    async def record_parked_reversal(self, payment: Payment, *, now_ms: int) -> Payment: ...
    async def schedule_query(self, key: str) -> None: ...
    async def delivered(self, payment_id: str, purpose: OutboxAction, *, now_ms: int) -> None: ...

    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]: ...
    async def parked(self, *, now_ms: int, limit: int) -> list[Payment]: ...
    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None: ...
    async def undelivered(self, *, before_ms: int, limit: int) -> list[str]: ...
    async def pending_notifications(self, payment_id: str) -> tuple[OutboxAction, ...]: ...
    async def expire(self, *, now_ms: int) -> int: ...

    async def get(self, payment_id: str) -> Payment: ...
    async def of_request(self, key: RequestKey) -> Payment | None: ...
    async def history(self, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]: ...
    async def page(
        self, which: Filter, *, limit: int, after: tuple[int, str] | None, seen_by: Principal | None
    ) -> list[Payment]: ...
