"""The use cases: issue a ticket, pay with it, settle an order, reverse or park a payment, read payments.

One order, from the call to the reply; each line is a commit or a call, and the name on the right its failpoint:

    accept            request row IN_PROGRESS, payment CREATED              accepted
    hold              the order's lock, and with it the fence               locked
    claim             order UNPAID → PAYING                                 claimed
    submit            payment SUBMITTED, before money moves                 submitted
    charge            of a card: charged by the acquirer, under its key     charged
    post              journal `settle:<order>:<round>`                      posted
    record            payment SUCCEEDED, response, outbox: one commit       recorded
    complete          order PAID                                            completed
    (lock released in the background)                                       released

`accept` is here; `execution.py` has `hold` and `claim`; `saga.py` has the steps from `submit` on, those of a reversal
and of a parking, and the rules about the acquirer. `recovery.py` finishes what no execution works on any more.

Rules
1. Every step can be repeated: `Saga.advance` brings a payment to its end from whatever state it is found in. The
   caller's own attempt, the next clerk who finds the order half settled, and the worker all go through it.
2. Every step after `hold` carries the fence; an execution that is paused between two steps finds the next one refused.
3. A customer's request, and a Pay that names its customer, look at the order before they begin: refused with
   ORDER_NOT_FOUND then, they may run again. Any other refusal is stored or leaves nothing behind, by the rules of
   `execution.py`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, replace

from services.kernel.clock import Clock
from services.kernel.errors import InvalidArgument, NotFound, PermissionDenied
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, Execution, RequestKey, StoredResponse
from services.kernel.ids import IdSource
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.card import CardMoney
from services.payment.execution import Executor, Leases
from services.payment.metrics import RecoveryMetrics
from services.payment.model import (
    ISSUE_TICKET,
    PARK,
    PAY,
    REVERSE,
    SETTLE,
    Parking,
    Payment,
    PaymentEvent,
    Reversal,
    Source,
    check_payee,
    check_source,
    filled_in,
    payer_account,
    sales_account,
)
from services.payment.ports import (
    Acquirer,
    Failpoints,
    Filter,
    Ledger,
    Limits,
    Locks,
    Orders,
    PaymentStore,
    RequestRecords,
    Responses,
)
from services.payment.recovery import Recovery
from services.payment.saga import Context, Saga
from services.runtime.change_feed import Changes
from services.runtime.grpc.context import Call


@dataclass(frozen=True, slots=True)
class PayCommand:
    """A direct payment, or one for the order that the ticket names."""

    ticket_id: str
    source: Source
    amount: Money | None
    payee_account_id: str
    customer_id: str
    memo: str
    fingerprint: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class SettleCommand:
    """A clerk presses Settle."""

    request_id: str
    order_id: str
    source: Source
    memo: str
    fingerprint: str
    card: str = ""


@dataclass(frozen=True, slots=True)
class ReverseCommand:
    """An accountant undoes a payment."""

    request_id: str
    payment_id: str
    reason: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ParkCommand:
    """A clerk gives up waiting for the acquirer's answer about a payment."""

    request_id: str
    payment_id: str
    reason: str
    fingerprint: str


class PaymentOperations:
    """The use cases of the payment service.

    Args:
        instance: Name of this process; owner of the requests it executes.
        metrics: Counts what the recovery does; None: it is not read.

    Attributes:
        leases: Those of the requests that this process executes.
        recovery: Finishes what other executions left.
    """

    def __init__(
        self,
        *,
        store: PaymentStore,
        requests: RequestRecords,
        orders: Orders,
        ledger: Ledger,
        acquirer: Acquirer,
        locks: Locks,
        responses: Responses,
        failpoints: Failpoints,
        clock: Clock,
        ids: IdSource,
        guards: Guards,
        limits: Limits,
        instance: str,
        metrics: RecoveryMetrics | None = None,
    ) -> None:
        self._store = store
        self._requests = requests
        self._orders = orders
        self._cards = CardMoney(acquirer, store, clock, ids, guards, max_asks=limits.acquirer_asks)
        self._responses = responses
        self._clock = clock
        self._ids = ids
        self._ticket_quota = limits.ticket_quota
        self._saga = Saga(store, orders, ledger, self._cards, locks, responses, failpoints, clock, limits.lock_wait_s)
        self.leases = Leases(requests, clock, instance, limits.lease_s)
        self._executor = Executor(store, requests, orders, self._saga, self.leases, responses, clock, guards)
        self.recovery = Recovery(
            store, requests, self._executor, self._saga, self._cards, self.leases, clock, metrics or RecoveryMetrics()
        )

    # Method 1: a ticket, then a payment

    async def issue_ticket(self, call: Call, request_id: str, order_id: str, ttl_s: int, fingerprint: str) -> Answer:
        """Issue a single-use ticket; the same request id gets the same ticket.

        Raises:
            ResourceExhausted: TICKET_QUOTA: a customer has too many that are not used.
        """
        call.concerns(order_id=order_id)
        caller, lease = call.principal, self.leases.new()
        ticket = RequestKey(caller, PAY, self._ids.new("tkt"))
        expires_at_ms = lease.now_ms + ttl_s * 1000
        answer = self._responses.ticket(ticket.key, order_id, expires_at_ms)
        request = RequestKey(caller, ISSUE_TICKET, request_id)
        stored = await self._requests.issue(
            request,
            fingerprint,
            ticket,
            lease=lease,
            expires_at_ms=expires_at_ms,
            order_id=order_id,
            answer=answer,
            quota=self._ticket_quota if caller.role is Role.CUSTOMER else None,
        )
        return Answer(answer) if stored is None else Answer(stored, replayed=True)

    async def pay(self, call: Call, command: PayCommand) -> Answer:
        """Pay with a ticket.

        Raises:
            NotFound: TICKET_NOT_FOUND. InvalidArgument, PermissionDenied: the payment could never be made.
            CountinghouseError: As `settle`; but with a `customer_id`, ORDER_NOT_FOUND leaves the ticket unused.
        """
        self._check_source(command.source, call.principal)
        key = RequestKey(ticket_owner(call.principal, command), PAY, command.ticket_id)
        if key.caller != call.principal:
            stored = await self._earlier(replace(key, caller=call.principal), command.fingerprint)
            if stored is not None:
                return stored
        try:
            order_id = await self._requests.ticket_order(key)
        except NotFound:
            if key.caller == call.principal:
                raise
            raise _not_your_wallet(call.principal) from None
        draft = self._draft(call.principal, key, order_id, command)
        if order_id:
            if command.amount is not None or command.payee_account_id:
                raise InvalidArgument.of_field(
                    "TICKET_NAMES_ORDER", "amount", f"the ticket pays {order_id}; leave amount and payee_account_id out"
                )
            return await self._accept(call, draft, command.fingerprint, customer_id=command.customer_id)
        return await self._accept(call, _direct(draft, call.principal, command), command.fingerprint)

    # Method 2: an order, under its lock

    async def settle(self, call: Call, command: SettleCommand) -> Answer:
        """Settle an order.

        Raises:
            AlreadyExists: ORDER_ALREADY_PAID. FailedPrecondition: declined, or the order is cancelled.
            NotFound: ORDER_NOT_FOUND; a clerk's is stored like these, a customer's is not.
            Aborted: ORDER_LOCKED, REQUEST_IN_PROGRESS: ask again with the same id.
            Unavailable: Nothing was done.
            OutcomeUnknown: Any other error; another execution may carry the request on: ask again with the same id.
        """
        self._check_source(command.source, call.principal)
        key = RequestKey(call.principal, SETTLE, command.request_id)
        if command.source is Source.WALLET and call.principal.role is not Role.CUSTOMER:
            stored = await self._earlier(key, command.fingerprint)
            if stored is not None:
                return stored
            raise _not_your_wallet(call.principal)
        draft = self._draft(call.principal, key, command.order_id, command)
        return await self._accept(call, draft, command.fingerprint)

    def _check_source(self, source: Source, principal: Principal) -> None:
        check_source(source, principal)
        if source is Source.CARD:
            self._cards.check_taken()

    async def _earlier(self, key: RequestKey, fingerprint: str) -> Answer | None:
        """Return the stored answer to a payment that an earlier release made, and that would be refused today."""
        stored = await self._requests.answered(key, fingerprint, now_ms=self._now())
        return None if stored is None else Answer(stored, replayed=True)

    async def _accept(self, call: Call, draft: Payment, fingerprint: str, *, customer_id: str = "") -> Answer:
        call.concerns(order_id=draft.order_id)
        if draft.order_id and (customer_id or call.principal.role is Role.CUSTOMER):
            await self._check_customer(call, draft, customer_id)
        lease = self.leases.new()
        accepted = await self._store.accept(draft, fingerprint, lease)
        if isinstance(accepted, StoredResponse):
            return Answer(accepted, replayed=True)
        call.concerns(payment_id=accepted.payment.payment_id)
        context = Context.for_caller(call, makes_payment=True)
        async with self.leases.running(accepted.execution, for_caller=True):
            await self._saga.hit("accepted", accepted.payment, context)
            made_now = lease if accepted.execution.fresh else None
            return await self._executor.execute(accepted.execution, accepted.payment, context, made_now)

    async def _check_customer(self, call: Call, draft: Payment, customer_id: str) -> None:
        """Refuse a customer who pays another customer's order, and a payment for another customer than the order's.

        The request has not begun, so no refusal is stored, and a ticket stays unused.

        Raises:
            NotFound: ORDER_NOT_FOUND: there is none, or none of this customer. InvalidArgument: CUSTOMER_MISMATCH.
        """
        order = await self._orders.get(draft.order_id, call.deadline)
        if call.principal.role is Role.CUSTOMER and not call.principal.is_customer(order.customer_id):
            raise NotFound("ORDER_NOT_FOUND", f"there is no order {draft.order_id} of yours")
        if customer_id not in ("", order.customer_id):
            raise InvalidArgument.of_field(
                "CUSTOMER_MISMATCH",
                "customer_id",
                f"{draft.order_id} is no order of {customer_id}; leave customer_id out, or take a ticket for theirs",
            )

    # Reversal

    async def reverse(self, call: Call, command: ReverseCommand) -> Answer:
        """Undo a SUCCEEDED payment, or a card payment that is UNKNOWN, whatever became of it.

        Raises:
            NotFound: PAYMENT_NOT_FOUND. FailedPrecondition: ILLEGAL_STATE, or the ledger refused.
            CountinghouseError: As `settle`.
        """
        key = RequestKey(call.principal, REVERSE, command.request_id)
        reversal = Reversal(key, call.principal, command.reason)
        return await self._on_payment(
            call,
            key,
            command,
            lambda execution, payment, context: self._executor.reverse(execution, payment, reversal, context),
        )

    async def _on_payment(
        self,
        call: Call,
        key: RequestKey,
        command: ReverseCommand | ParkCommand,
        act: Callable[[Execution, Payment, Context], Awaitable[Answer]],
    ) -> Answer:
        """Run a request that changes a payment of another request, under the lock of its order."""
        call.concerns(payment_id=command.payment_id)
        payment = await self._store.get(command.payment_id)
        call.concerns(order_id=payment.order_id)
        execution = await self._requests.begin(key, command.fingerprint, self.leases.new())
        if isinstance(execution, StoredResponse):
            return Answer(execution, replayed=True)
        # The worker gives back a request that has not begun to change its payment. Its execution may only be paused.
        execution = replace(execution, first=execution.attempt == 1)
        context = Context.for_caller(call, makes_payment=False)
        async with self.leases.running(execution, for_caller=True):
            await self._saga.hit("accepted", payment, context)
            return await act(execution, payment, context)

    # Parking

    async def park(self, call: Call, command: ParkCommand) -> Answer:
        """Give up waiting for the acquirer's answer about an order's card payment; the order is free at once.

        Raises:
            NotFound: PAYMENT_NOT_FOUND. AlreadyExists: ORDER_ALREADY_PAID, by this payment after all.
            FailedPrecondition: ILLEGAL_STATE: it has ended, is no card payment, has no order, or is being reversed and
                the ledger has a journal of it.
            CountinghouseError: As `settle`.
        """
        key = RequestKey(call.principal, PARK, command.request_id)
        parking = Parking(key, call.principal, command.reason)
        return await self._on_payment(
            call,
            key,
            command,
            lambda execution, payment, context: self._executor.park(execution, payment, parking, context),
        )

    # Reading

    async def get(self, call: Call, payment_id: str) -> Payment:
        """Return a payment; raise NotFound, PAYMENT_NOT_FOUND, also if it is another customer's."""
        call.concerns(payment_id=payment_id)
        payment = await self._store.get(payment_id)
        if call.principal.role is Role.CUSTOMER and not payment.is_seen_by(call.principal):
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return payment

    async def history(self, call: Call, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]:
        """Return the changes of a payment behind the version `after`, the oldest first. Raises as `get`."""
        payment = await self.get(call, payment_id)
        return [filled_in(event, payment) for event in await self._store.history(payment_id, after=after, limit=limit)]

    async def page(self, call: Call, which: Filter, *, limit: int, after: tuple[int, str] | None) -> list[Payment]:
        """Return payments, newest first; a customer's own only."""
        seen_by = call.principal if call.principal.role is Role.CUSTOMER else None
        return await self._store.page(which, limit=limit, after=after, seen_by=seen_by)

    def watch(self, call: Call, position: str, order_id: str) -> AsyncGenerator[Changes[Payment], None]:
        """Yield the payments that change here, from a position on; a customer's own only. See `ChangeFeed.watch`.

        Args:
            order_id: Only payments of this order; empty: all.
        """
        anybody = call.principal.role is not Role.CUSTOMER
        return self._store.feed.watch(
            position,
            lambda payment: order_id in ("", payment.order_id) and (anybody or payment.is_seen_by(call.principal)),
        )

    async def notified(self, key: str) -> None:
        """Have the worker ask the acquirer about a key soon; the notice itself changes nothing."""
        await self._store.schedule_query(key)

    def _draft(self, clerk: Principal, key: RequestKey, order_id: str, asked: PayCommand | SettleCommand) -> Payment:
        payment_id = self._ids.new("pay")
        return Payment.created(payment_id, key, order_id, asked.source, clerk, asked.memo, self._now(), asked.card)

    def _now(self) -> int:
        return self._clock.now_ms()


def ticket_owner(principal: Principal, command: PayCommand) -> Principal:
    """Return whose ticket this payment takes: the caller's own, and from a customer's wallet that customer's.

    A clerk who could pay from a wallet by themselves could empty it. The owner's ticket is the owner's consent, handed
    over at the counter; it is used up by one payment.

    Raises:
        InvalidArgument: FIELD_REQUIRED: a clerk pays from a wallet and does not say whose.
    """
    if command.source is not Source.WALLET or principal.role is Role.CUSTOMER:
        return principal
    if not command.customer_id:
        raise InvalidArgument.of_field("FIELD_REQUIRED", "customer_id", "customer_id is required: whose wallet pays?")
    return Principal(command.customer_id, Role.CUSTOMER)


def _not_your_wallet(principal: Principal) -> PermissionDenied:
    """Return the refusal of a payment from a wallet to which its owner has not consented."""
    return PermissionDenied(
        "NOT_YOUR_WALLET",
        f"role {principal.role} pays from a customer's wallet by Pay only, with a ticket that the customer has fetched",
    )


def _direct(draft: Payment, principal: Principal, command: PayCommand) -> Payment:
    """Return the payment of a ticket that names no order.

    Raises:
        InvalidArgument: FIELD_REQUIRED, or PAYEE_INVALID: from a customer's wallet or card a clerk pays the house only.
        PermissionDenied: NOT_YOUR_WALLET.
    """
    if command.amount is None:
        raise InvalidArgument.of_field("FIELD_REQUIRED", "amount", "amount is required: the ticket names no order")
    if not command.payee_account_id:
        raise InvalidArgument.of_field(
            "FIELD_REQUIRED", "payee_account_id", "payee_account_id is required: the ticket names no order"
        )
    customer_id = command.customer_id or (principal.name if principal.role is Role.CUSTOMER else "")
    if principal.role is Role.CUSTOMER and not principal.is_customer(customer_id):
        raise PermissionDenied("NOT_YOUR_WALLET", "a customer pays from their own wallet only; leave customer_id out")
    payer = payer_account(command.source, customer_id, command.amount.currency)
    check_payee(command.payee_account_id, payer)
    house = sales_account(command.amount.currency)
    is_customers = command.source in (Source.WALLET, Source.CARD)
    if is_customers and principal.role is not Role.CUSTOMER and command.payee_account_id != house:
        raise InvalidArgument.of_field(
            "PAYEE_INVALID", "payee_account_id", f"from a customer's wallet or card a clerk pays {house} only"
        )
    return replace(
        draft,
        customer_id=customer_id,
        amount=command.amount,
        payer_account_id=payer,
        payee_account_id=command.payee_account_id,
    )
