"""One execution of a request: under its lease, from the lock of the order to the stored answer.

    execute   Pay and Settle: hold, claim (or finish the payment that has the claim), submit, `Saga.advance`, answer
    reverse   Reverse: hold, begin the reversal, `Saga.advance`, answer
    park      Park: hold, `Saga.park`, answer

The caller's attempt and the worker, which takes over a request whose lease has passed, go through the same steps.

Rules
1. What was refused *before* the claim was sent leaves nothing behind: the request is given back and may run again.
   Every other error is an unknown outcome for its caller: another execution may carry the request on. From the claim
   on, an execution brings the payment to its end. One whose claim finds no such order ends DECLINED, and its request
   stays refused even if an order of that id is made later.
2. No answer is no refusal. The payment stays as it is (SUBMITTED becomes UNKNOWN), the caller gets it with OK, and
   the worker asks again.
3. An answer is returned as it is stored, by whichever execution that was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from services.kernel.clock import Clock, rfc3339
from services.kernel.errors import (
    Aborted,
    CountinghouseError,
    FailedPrecondition,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, Execution, Lease, RequestKey
from services.kernel.principal import Principal
from services.payment.model import Charge, ConflictingPayment, Parking, Payment, PaymentState, Reversal, Source
from services.payment.ports import Order, Orders, OrderState, PaymentStore, RequestRecords, Responses
from services.payment.saga import Context, Saga, carried_on, charge_for

#: How many half settled payments one clerk finishes before their own. More than one means that something is odd.
_MAX_ADOPTIONS = 3

#: When to ask again for an order that waits for another payment's outcome, in milliseconds.
_HALF_SETTLED_RETRY_MS = 1_000


class Leases:
    """The requests that this process executes; other processes carry on one whose lease has passed.

    Args:
        instance: Owner of the leases.
    """

    def __init__(self, requests: RequestRecords, clock: Clock, instance: str, lease_s: float) -> None:
        self._requests = requests
        self._clock = clock
        self._instance = instance
        self._lease_ms = int(lease_s * 1000)
        self._executing: dict[RequestKey, Execution] = {}
        self._given_back: set[Execution] = set()

    def new(self) -> Lease:
        """Return a lease that begins now."""
        now_ms = self._clock.now_ms()
        return Lease(self._instance, now_ms, now_ms + self._lease_ms)

    async def renew(self) -> None:
        """Keep other processes away from what this one executes. A process that is paused does not get here."""
        if self._executing:
            await self._requests.renew(list(self._executing.values()), until_ms=self._clock.now_ms() + self._lease_ms)

    @asynccontextmanager
    async def running(self, execution: Execution, *, for_caller: bool = False) -> AsyncIterator[None]:
        """While inside, the lease of this request is renewed; after an error others may carry on at once.

        Args:
            for_caller: Whether a caller gets the error. They get it as an OutcomeUnknown, unless the request was given
                back: an earlier execution may have done something, or one that carries the request on may do it yet.
        """
        self._executing[execution.key] = execution
        try:
            yield
        except CountinghouseError as error:
            with suppress(CountinghouseError):  # then the lease runs out
                await self.release(execution)
            if for_caller and execution not in self._given_back and not isinstance(error, OutcomeUnknown):
                raise carried_on(error) from error
            raise
        finally:
            self._given_back.discard(execution)
            self._forget_execution(execution)

    @asynccontextmanager
    async def giving_back(self, execution: Execution) -> AsyncIterator[None]:
        """Give the request back after an error inside, because nothing was done then; not after an OutcomeUnknown."""
        try:
            yield
        except OutcomeUnknown:
            raise
        except CountinghouseError:
            await self.give_back(execution)
            raise

    async def give_back(self, execution: Execution) -> None:
        """Let the request run again, unless another execution may have done something under it, or has it now."""
        if execution.first and self._forget_execution(execution):
            with suppress(CountinghouseError):  # then it was not given back
                if await self._requests.give_back(execution, now_ms=self._clock.now_ms()):
                    self._given_back.add(execution)

    async def release(self, execution: Execution) -> None:
        """End an execution whose payment has not ended: any other may carry on at once."""
        if self._forget_execution(execution):
            await self._requests.renew([execution], until_ms=self._clock.now_ms())

    def _forget_execution(self, execution: Execution) -> bool:
        """End the renewing of an execution's lease; False: it had been ended. The key may be another's by now."""
        ours = self._executing.get(execution.key) is execution
        if ours:
            del self._executing[execution.key]
        return ours


class Executor:
    """Brings the payment of a request to its end, and answers the request."""

    def __init__(
        self,
        store: PaymentStore,
        requests: RequestRecords,
        orders: Orders,
        saga: Saga,
        leases: Leases,
        responses: Responses,
        clock: Clock,
        guards: Guards,
    ) -> None:
        self._store = store
        self._requests = requests
        self._orders = orders
        self._saga = saga
        self._leases = leases
        self._responses = responses
        self._clock = clock
        self._guards = guards

    async def execute(
        self, execution: Execution, payment: Payment, context: Context, lease: Lease | None = None
    ) -> Answer:
        """Bring the payment of a request to its end, under the lock if it has an order.

        Args:
            lease: Under which this execution has just made the payment; None: another execution may know it.
        """
        if not payment.order_id:
            return await self._pay_directly(execution, payment, context)
        async with self._locked(execution, payment, payment.clerk, context, lease) as (current, held):
            return await self._settle(execution, current, held)

    async def reverse(self, execution: Execution, payment: Payment, reversal: Reversal, context: Context) -> Answer:
        """Undo a payment that another request made, as far as it and the ledger let it be undone."""
        async with self._locked(execution, payment, reversal.clerk, context) as (current, held):
            return await self._reverse(execution, current, reversal, held)

    async def park(self, execution: Execution, payment: Payment, parking: Parking, context: Context) -> Answer:
        """Park a payment that another request made, if it can be."""
        async with self._locked(execution, payment, parking.clerk, context) as (current, held):
            return await self._park(execution, current, parking, held)

    @asynccontextmanager
    async def _locked(
        self, execution: Execution, payment: Payment, clerk: Principal, context: Context, lease: Lease | None = None
    ) -> AsyncIterator[tuple[Payment, Context]]:
        """Hold the lock of the payment's order, and read the payment again; one without an order needs no lock.

        This process may have been paused long enough for others to carry it on. What is read under the lock stays so,
        or its fence is stale. A payment that was made under a lease is not read in the first half of it: until then no
        other execution has taken it over, and one that does so later gets a newer fence.
        """
        async with AsyncExitStack() as lock:
            if payment.order_id:
                async with self._leases.giving_back(execution):
                    context = await lock.enter_async_context(self._saga.locked(payment, clerk, context))
                await self._saga.hit("locked", payment, context)
            untouched = lease is not None and self._clock.now_ms() < (lease.now_ms + lease.until_ms) // 2
            yield payment if untouched else await self._store.get(payment.payment_id), context
        await self._saga.hit("released", payment, context)

    # The own payment of a request

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
                await self._leases.give_back(execution)
                raise
            await self._saga.hit("claimed", payment, context)
            if order.is_being_paid_by(payment) or not self._guards.state:
                return await self._charge(execution, payment, order, context)
            if order.state is not OrderState.PAYING:
                return await self._refuse(payment, await self._why_not(order), context, release=False)
            async with self._leases.giving_back(execution):
                await self._adopt(order, context)
        await self._leases.give_back(execution)
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
            Aborted: ORDER_HALF_SETTLED: its outcome is not known now.
        """
        try:
            return await self._saga.advance(other, context)
        except OutcomeUnknown as unknown:
            raise half_settled(await self._store.get(other.payment_id)) from unknown

    async def _charge(self, execution: Execution, payment: Payment, order: Order, context: Context) -> Answer:
        """Check the accounts of a payment that has the claim, submit it, then conclude."""
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
                await self._leases.give_back(execution)
                raise
            payment = submitted.payment if isinstance(submitted, ConflictingPayment) else submitted
        return await self._conclude(execution, payment, context)

    async def _conclude(self, execution: Execution, payment: Payment, context: Context) -> Answer:
        """Bring a payment that is past its claim to its end, and answer the request."""
        try:
            await self._saga.advance(payment, context)
        except (OutcomeUnknown, Unavailable):  # open, or never sent after the payment was submitted
            return await self._pending(execution, await self._store.get(payment.payment_id))
        return await self._answer(execution.key, context)

    # A change of another request's payment

    async def _reverse(self, execution: Execution, payment: Payment, reversal: Reversal, context: Context) -> Answer:
        async with self._leases.giving_back(execution):
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

    async def _park(self, execution: Execution, payment: Payment, parking: Parking, context: Context) -> Answer:
        async with self._leases.giving_back(execution):
            if payment.can_be_parked:
                payment = await self._saga.park(payment, parking, context)
        if payment.is_parked_for(parking):
            await self._saga.notify_order(payment, context)
            return await self._answer(parking.key, context)
        if payment.state is PaymentState.SUCCEEDED and payment.order_id:
            paid = await self._saga.already_paid(payment.order_id, payment.payment_id, guard="state")
            return await self._refuse_request(parking.key, paid)
        return await self._refuse_request(parking.key, not_parkable(payment))

    # Refusing

    async def _why_not(self, order: Order) -> CountinghouseError:
        """Return why an order that another payment or a cancellation has taken is refused."""
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
        """Store a definitive refusal of a request that changes no payment."""
        await self._requests.finish(key, self._responses.refusal(refusal), now_ms=self._clock.now_ms())
        return await self._answer(key)

    async def _refuse(
        self, payment: Payment, refusal: CountinghouseError, context: Context, *, release: bool = True
    ) -> Answer:
        """End a payment that was not submitted, and answer its request."""
        declined = await self._saga.decline(payment, refusal, context, release=release)
        await self._saga.notify_order(declined, context)
        return await self._answer(payment.key, context)

    # Answers

    async def _answer(self, key: RequestKey, context: Context | None = None) -> Answer:
        """Return the response as it is stored, by whichever execution that was."""
        stored = context and context.answers.get(key)
        if stored:
            return Answer(stored)
        stored = await self._requests.response_to(key)
        if not self._guards.ticket:  # then a repeated request runs anew, and had nothing left to commit its end with
            await self._requests.finish(key, stored, now_ms=self._clock.now_ms())
        return Answer(stored)

    async def _pending(self, execution: Execution, payment: Payment) -> Answer:
        """Tell the caller where the payment stands, whose outcome is not known yet; nothing is stored."""
        await self._leases.release(execution)
        return Answer(self._responses.payment(execution.key.method, payment))


def not_reversible(payment: Payment) -> FailedPrecondition:
    """Return the refusal to undo a payment in its state."""
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
