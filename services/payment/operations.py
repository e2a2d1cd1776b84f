"""The use cases: issue a ticket, pay with it, settle an order, reverse a payment, and finish what others left.

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

`saga.py` lists the steps of a reversal and of a parking, and the rules about the acquirer; `recovery.py` finishes what
no execution works on any more.

Rules
1. Every step can be repeated: `Saga.advance` brings a payment to its end from whatever state it is found in. The
   caller's own attempt, the next clerk who finds the order half settled, and the worker all go through it.
2. Every step after `hold` carries the fence; who is paused between two steps finds the next one refused.
3. What was refused *before* the claim was sent leaves nothing behind: the request is given back and may run again.
   From the claim on, a payment is brought to its end, by whomever. One whose claim finds no such order ends DECLINED,
   and its request stays refused even if an order of that id is made later. A customer's request, and a Pay that
   names its customer, look at the order before they begin: told ORDER_NOT_FOUND then, they may run again.
4. An answer that did not come is not a refusal. The payment stays as it is (SUBMITTED becomes UNKNOWN), the caller is
   told so with OK, and the worker asks again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from services.kernel.clock import Clock, rfc3339
from services.kernel.errors import (
    Aborted,
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    Unavailable,
)
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, Execution, RequestKey, StoredResponse
from services.kernel.ids import IdSource
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.payment.card import CardMoney
from services.payment.model import (
    ISSUE_TICKET,
    PARK,
    PAY,
    REVERSE,
    SETTLE,
    Charge,
    ConflictingPayment,
    Parking,
    Payment,
    PaymentEvent,
    PaymentState,
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
    Order,
    Orders,
    OrderState,
    PaymentStore,
    Responses,
)
from services.payment.recovery import Leases, Recovery
from services.payment.saga import Context, Saga, charge_for
from services.runtime.grpc.context import Call

#: How many half settled payments one clerk finishes before their own. More than one means that something is odd.
_MAX_ADOPTIONS = 3

#: When to ask again for an order that waits for another payment's outcome, in milliseconds.
_HALF_SETTLED_RETRY_MS = 1_000


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

    Attributes:
        leases: Those of the requests that this process executes.
        recovery: Finishes what other executions left.
    """

    def __init__(
        self,
        *,
        store: PaymentStore,
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
    ) -> None:
        self._store = store
        self._orders = orders
        self._cards = CardMoney(acquirer, store, clock, ids, guards, max_asks=limits.acquirer_asks)
        self._responses = responses
        self._clock = clock
        self._ids = ids
        self._guards = guards
        self._ticket_quota = limits.ticket_quota
        self._saga = Saga(store, orders, ledger, self._cards, locks, responses, failpoints, clock, limits.lock_wait_s)
        self.leases = Leases(store, clock, instance, limits.lease_s)
        self.recovery = Recovery(store, self._saga, self._cards, self.leases, clock, execute=self._execute)

    # Method 1: a ticket, then a payment

    async def issue_ticket(self, call: Call, request_id: str, order_id: str, ttl_s: int, fingerprint: str) -> Answer:
        """Issues a single-use ticket; asked again with the same request id, the same one.

        Raises:
            ResourceExhausted: TICKET_QUOTA: a customer has too many that are not used.
        """
        caller, lease = call.principal, self.leases.new()
        ticket = RequestKey(caller, PAY, self._ids.new("tkt"))
        expires_at_ms = lease.now_ms + ttl_s * 1000
        answer = self._responses.ticket(ticket.key, order_id, expires_at_ms)
        request = RequestKey(caller, ISSUE_TICKET, request_id)
        stored = await self._store.issue(
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
        """Pays with a ticket.

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
            order_id = await self._store.ticket_order(key)
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
        """Settles an order.

        Raises:
            AlreadyExists: ORDER_ALREADY_PAID. FailedPrecondition: declined, or the order is cancelled.
            NotFound: ORDER_NOT_FOUND; a clerk's is stored like these, a customer's is not.
            Aborted: ORDER_LOCKED, REQUEST_IN_PROGRESS, STALE_FENCE, ORDER_LOCK_LOST: ask again with the same id.
            Unavailable: Nothing was done.
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
        """The stored answer to a payment that an earlier release made, and that would be refused today."""
        stored = await self._store.answered(key, fingerprint, now_ms=self._now())
        return None if stored is None else Answer(stored, replayed=True)

    async def _accept(self, call: Call, draft: Payment, fingerprint: str, *, customer_id: str = "") -> Answer:
        if draft.order_id and (customer_id or call.principal.role is Role.CUSTOMER):
            await self._check_customer(call, draft, customer_id)
        accepted = await self._store.accept(draft, fingerprint, self.leases.new())
        if isinstance(accepted, StoredResponse):
            return Answer(accepted, replayed=True)
        context = Context.for_caller(call, makes_payment=True)
        async with self.leases.running(accepted.execution):
            await self._saga.hit("accepted", accepted.payment, context)
            return await self._execute(accepted.execution, accepted.payment, context)

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
        """Undoes a SUCCEEDED payment, or a card payment that is UNKNOWN, whatever became of it.

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
            lambda execution, payment, context: self._reverse(execution, payment, reversal, context),
        )

    async def _on_payment(
        self,
        call: Call,
        key: RequestKey,
        command: ReverseCommand | ParkCommand,
        act: Callable[[Execution, Payment, Context], Awaitable[Answer]],
    ) -> Answer:
        """Run a request that changes a payment of another request, under the lock of its order."""
        payment = await self._store.get(command.payment_id)
        execution = await self._store.begin_request(key, command.fingerprint, self.leases.new())
        if isinstance(execution, StoredResponse):
            return Answer(execution, replayed=True)
        context = Context.for_caller(call, makes_payment=False)
        async with self.leases.running(execution):
            await self._saga.hit("accepted", payment, context)
            async with AsyncExitStack() as lock:
                context = await self._locked(lock, execution, payment, call.principal, context)
                answer = await act(execution, await self._store.get(payment.payment_id), context)
            await self._saga.hit("released", payment, context)
            return answer

    async def _reverse(self, execution: Execution, payment: Payment, reversal: Reversal, context: Context) -> Answer:
        async with self.leases.giving_back(execution):
            await self._saga.notify_order(payment, context)  # the order must be PAID before it can be reopened
            payment = await self._saga.begin_reversal(payment, reversal, context)
            undoing = payment.state is PaymentState.REVERSING
            if undoing and not payment.is_undone_for(reversal) and self._guards.recovery:
                # Another execution died undoing it. Should the ledger refuse theirs, it is ours to undo.
                payment = await self._saga.advance(payment, context.for_adoption())
                payment = await self._saga.begin_reversal(payment, reversal, context)
        if not payment.is_undone_for(reversal):
            return await self._refuse_request(reversal.key, not_reversible(payment))
        return await self._conclude(execution, payment, context)

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
            lambda execution, payment, context: self._park(execution, payment, parking, context),
        )

    async def _park(self, execution: Execution, payment: Payment, parking: Parking, context: Context) -> Answer:
        async with self.leases.giving_back(execution):  # every step before PARKED can be repeated
            if payment.can_be_parked:
                payment = await self._saga.park(payment, parking, context)
        if payment.is_parked_for(parking):
            await self._saga.notify_order(payment, context)
            return await self._answer(parking.key)
        if payment.state is PaymentState.SUCCEEDED and payment.order_id:
            paid = await self._saga.already_paid(payment.order_id, payment.payment_id, guard="state")
            return await self._refuse_request(parking.key, paid)
        return await self._refuse_request(parking.key, not_parkable(payment))

    # Reading

    async def get(self, call: Call, payment_id: str) -> Payment:
        """Raises NotFound: PAYMENT_NOT_FOUND, also for a customer's look at somebody else's."""
        payment = await self._store.get(payment_id)
        if call.principal.role is Role.CUSTOMER and not payment.is_seen_by(call.principal):
            raise NotFound("PAYMENT_NOT_FOUND", f"there is no payment {payment_id} that you may see")
        return payment

    async def history(self, call: Call, payment_id: str, *, after: int, limit: int) -> list[PaymentEvent]:
        """The changes of a payment behind the version `after`, the oldest first. Raises as `get`."""
        payment = await self.get(call, payment_id)
        return [filled_in(event, payment) for event in await self._store.history(payment_id, after=after, limit=limit)]

    async def page(self, call: Call, which: Filter, *, limit: int, after: tuple[int, str] | None) -> list[Payment]:
        """Payments, newest first; a customer's own only."""
        seen_by = call.principal if call.principal.role is Role.CUSTOMER else None
        return await self._store.page(which, limit=limit, after=after, seen_by=seen_by)

    async def notified(self, key: str) -> None:
        """The acquirer has something to say about a key: whoever waits for that asks soon. Nothing is believed."""
        await self._store.schedule_query(key)

    # The steps

    async def _execute(self, execution: Execution, payment: Payment, context: Context) -> Answer:
        """Bring the payment of a request to its end, under the lock if it has an order."""
        if not payment.order_id:
            return await self._pay_directly(execution, payment, context)
        async with AsyncExitStack() as lock:
            context = await self._locked(lock, execution, payment, payment.clerk, context)
            # We may have been paused long enough for others to carry it on. What is read under the lock stays so, or
            # our fence is stale.
            payment = await self._store.get(payment.payment_id)
            answer = await self._settle(execution, payment, context)
        await self._saga.hit("released", payment, context)
        return answer

    async def _locked(
        self, lock: AsyncExitStack, execution: Execution, payment: Payment, clerk: Principal, context: Context
    ) -> Context:
        """Hold the lock of the payment's order until `lock` is left; a payment without an order needs none."""
        if not payment.order_id:
            return context
        async with self.leases.giving_back(execution):
            context = await lock.enter_async_context(self._saga.locked(payment, clerk, context))
        await self._saga.hit("locked", payment, context)
        return context

    async def _settle(self, execution: Execution, payment: Payment, context: Context) -> Answer:
        """Claim the order for this payment, finishing other requests' half settled ones first."""
        for _ in range(_MAX_ADOPTIONS + 1):
            if payment.state is not PaymentState.CREATED:
                return await self._conclude(execution, payment, context)
            try:
                order = await self._orders.claim(payment, context.hold.fence, context.deadline)
            except OutcomeUnknown:
                return await self._pending(execution, payment)
            except NotFound as refusal:  # or it would stay CREATED until it expires
                return await self._refuse(payment, refusal, context, release=False)
            except CountinghouseError:  # refused or never sent: nothing was done
                await self.leases.give_back(execution)
                raise
            await self._saga.hit("claimed", payment, context)
            if order.is_being_paid_by(payment) or not self._guards.state:
                return await self._charge(execution, payment, order, context)
            if order.state is not OrderState.PAYING:
                return await self._refuse(payment, await self._why_not(order), context, release=False)
            async with self.leases.giving_back(execution):
                await self._adopt(order, context)
        await self.leases.give_back(execution)
        raise Unavailable("ORDER_BUSY", f"{payment.order_id} is claimed by one payment after another; try again")

    async def _adopt(self, order: Order, context: Context) -> None:
        """Finish the payment that a dead or paused process left on this order, whose lock we hold."""
        if not self._guards.recovery:
            raise Unavailable("ORDER_HALF_SETTLED", f"{order.order_id} is half settled and recovery is switched off")
        other = await self._store.get(order.payment_id)
        if other.state is PaymentState.CREATED and other.source is Source.CARD:
            raise half_settled(other)  # to finish it would be to charge it
        await self._finish_other(other, context.for_adoption(order))

    async def _finish_other(self, other: Payment, context: Context) -> Payment:
        """Bring a payment that another request made to its end, without charging its card.

        Raises:
            Aborted: ORDER_HALF_SETTLED: nobody can tell its outcome now.
        """
        try:
            return await self._saga.advance(other, context)
        except OutcomeUnknown as unknown:
            raise half_settled(await self._store.get(other.payment_id)) from unknown

    async def _charge(self, execution: Execution, payment: Payment, order: Order, context: Context) -> Answer:
        """The claim is ours: check the accounts, submit, then conclude."""
        claimed, charge = order.is_being_paid_by(payment), charge_for(order, payment)
        try:
            await self._saga.check_accounts(payment, charge, context.deadline)
        except FailedPrecondition as refusal:
            return await self._refuse(payment, refusal, context, release=claimed)
        except Unavailable:
            return await self._pending(execution, payment)
        for _ in range(_MAX_ADOPTIONS + 1):
            submitted = await self._saga.submit(payment, charge, context)
            if isinstance(submitted, Payment):
                return await self._conclude(execution, submitted, context)
            conflicting = await self._finish_other(submitted.payment, context.for_adoption())
            if conflicting.state is PaymentState.SUCCEEDED:
                paid = await self._saga.already_paid(payment.order_id, conflicting.payment_id, guard="unique")
                return await self._refuse(payment, paid, context, release=claimed)
        raise Unavailable("ORDER_BUSY", f"{payment.order_id} is paid by one payment after another; try again")

    async def _pay_directly(self, execution: Execution, payment: Payment, context: Context) -> Answer:
        """Submit a payment that has no order, unless it was, and bring it to its end."""
        if payment.state is PaymentState.CREATED and payment.amount is not None:
            charge = Charge(0, payment.customer_id, payment.amount, payment.payer_account_id, payment.payee_account_id)
            try:
                await self._saga.check_accounts(payment, charge, context.deadline)
                submitted = await self._saga.submit(payment, charge, context)
            except FailedPrecondition as refusal:
                return await self._refuse(payment, refusal, context)
            except Unavailable:
                await self.leases.give_back(execution)
                raise
            payment = submitted.payment if isinstance(submitted, ConflictingPayment) else submitted
        return await self._conclude(execution, payment, context)

    async def _conclude(self, execution: Execution, payment: Payment, context: Context) -> Answer:
        """Bring a payment that is past its claim to its end, and answer the request."""
        try:
            await self._saga.advance(payment, context)
        except (OutcomeUnknown, Unavailable):  # open, or never sent after the payment was submitted
            return await self._pending(execution, await self._store.get(payment.payment_id))
        return await self._answer(execution.key)

    # Refusing

    async def _why_not(self, order: Order) -> CountinghouseError:
        """Why an order that is not ours to charge is refused."""
        if order.state is OrderState.PAID:
            return await self._saga.already_paid(
                order.order_id,
                order.payment_id,
                guard="state",
                clerk=order.settled_by,
                settled_at_ms=order.settled_at_ms,
            )
        return FailedPrecondition(
            "ORDER_NOT_PAYABLE",
            f"{order.order_id} is {order.state}; only an UNPAID order can be settled",
            metadata={"order_id": order.order_id, "state": order.state, "guard": "state"},
        )

    async def _refuse_request(self, key: RequestKey, refusal: CountinghouseError) -> Answer:
        """Stores a definitive refusal of a request that changes no payment."""
        await self._store.refuse_request(key, self._responses.refusal(refusal), now_ms=self._now())
        return await self._answer(key)

    async def _refuse(
        self, payment: Payment, refusal: CountinghouseError, context: Context, *, release: bool = True
    ) -> Answer:
        """End a payment that was not submitted, and answer its request."""
        declined = await self._saga.decline(payment, refusal, context, release=release)
        await self._saga.notify_order(declined, context)
        return await self._answer(payment.key)

    # Answers

    async def _answer(self, key: RequestKey) -> Answer:
        """The response as it is stored, by whichever execution that was."""
        return Answer(await self._store.response_to(key))

    async def _pending(self, execution: Execution, payment: Payment) -> Answer:
        """The outcome is not known yet: the caller is told where the payment stands, and nothing is stored."""
        await self.leases.release(execution)
        return Answer(self._responses.payment(execution.key.method, payment))

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
    """The refusal of a payment from a wallet to which its owner has not consented."""
    return PermissionDenied(
        "NOT_YOUR_WALLET",
        f"role {principal.role} pays from a customer's wallet by Pay only, with a ticket that the customer has fetched",
    )


def _direct(draft: Payment, principal: Principal, command: PayCommand) -> Payment:
    """The payment of a ticket that names no order.

    Raises:
        InvalidArgument: FIELD_REQUIRED, or PAYEE_INVALID: from somebody else's wallet only the house is paid.
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
    if command.source is Source.WALLET and principal.role is not Role.CUSTOMER and command.payee_account_id != house:
        raise InvalidArgument.of_field(
            "PAYEE_INVALID", "payee_account_id", f"from a customer's wallet a clerk pays {house} and nobody else"
        )
    return replace(
        draft,
        customer_id=customer_id,
        amount=command.amount,
        payer_account_id=payer,
        payee_account_id=command.payee_account_id,
    )


def not_reversible(payment: Payment) -> FailedPrecondition:
    """The refusal to undo a payment in its state."""
    return FailedPrecondition(
        "ILLEGAL_STATE",
        f"{payment.payment_id} is {payment.state}; only a SUCCEEDED payment can be reversed, or an UNKNOWN one by card",
        metadata={"payment_id": payment.payment_id, "state": payment.state, "guard": "state"},
    )


def not_parkable(payment: Payment) -> FailedPrecondition:
    """Return the refusal to park a payment in its state.

    A REVERSING card payment of an order is refused only if the ledger has a journal of it, recorded or not.
    """
    why = "only an order's card payment that is SUBMITTED, UNKNOWN, or REVERSING without a journal can be parked"
    if payment.is_orders_card and payment.state is PaymentState.REVERSING:
        why = (
            "it cannot be parked, because the ledger has a journal of it; "
            "its order is free when the acquirer confirms the refund"
        )
    return FailedPrecondition(
        "ILLEGAL_STATE",
        f"{payment.payment_id} is {payment.state}, from the {payment.source.lower()}; {why}",
        metadata={"payment_id": payment.payment_id, "state": payment.state, "guard": "state"},
    )


def half_settled(payment: Payment) -> Aborted:
    """Return the passing refusal for an order that waits for the outcome of another payment, and the way out."""
    wait = "the refund" if payment.state is PaymentState.REVERSING else "its outcome"
    park = f"Park payment {payment.payment_id} to free the order, or wait for {wait}."
    return Aborted(
        "ORDER_HALF_SETTLED",
        f"{payment.order_id} was not settled. {payment.clerk.name} ({payment.clerk.role}) is paying it from the "
        f"{payment.source.lower()} with payment {payment.payment_id}. That payment is {payment.state} since "
        f"{rfc3339(payment.updated_at_ms)}. {park if payment.can_be_parked else 'Try again.'}",
        metadata={
            "order_id": payment.order_id,
            "payment_id": payment.payment_id,
            "source": str(payment.source),
            "clerk": payment.clerk.name,
            "role": str(payment.clerk.role),
            "state": str(payment.state),
            "since_ms": str(payment.updated_at_ms),
        },
        retry_after_ms=_HALF_SETTLED_RETRY_MS,
    )
