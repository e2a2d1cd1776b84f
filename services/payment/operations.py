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

Undoing it: the opposite journal (posted), and only then, of a card, the refund (refunded), then REVERSED (recorded).
The ledger may refuse, the acquirer never does.

Parking it, while the acquirer does not answer: the ledger voids the journal (voided), the payment is PARKED and its
request refused (parked), the order is released (completed). The worker owes the acquirer the reversal of its key
(refunded), then it is REVERSED (recorded): `recovery.py`.

Rules
1. Every step can be repeated: `Saga.carry_on` brings a payment to its end from whatever state it is found in. The
   caller's own attempt, the next clerk who finds the order half settled, and the worker all go through it.
2. Every step after `hold` carries the fence; who is paused between two steps finds the next one refused.
3. What was refused *before* the claim was sent leaves nothing behind: the request is given back and may run again.
   From the claim on, a payment is brought to its end, by whomever. One whose claim finds no such order ends DECLINED,
   and its request stays refused even if an order of that id is made later. A customer's request, and a Pay that
   names its customer, look at the order before they begin: told ORDER_NOT_FOUND then, they may run again.
4. An answer that did not come is not a refusal. The payment stays as it is (SUBMITTED becomes UNKNOWN), the caller is
   told so with OK, and the worker asks again.
5. What the acquirer charged is in the ledger, or is given back before the payment is DECLINED or REVERSED.
6. Only an execution of the payment's own request causes a charge (`saga.Charging`). Whoever finishes another's payment
   asks what became of its key; if nobody can tell, the payment stays as it is and they are told which one it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

from services.kernel.clock import Clock, Deadline
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from services.kernel.fence import NO_FENCE
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, Execution, Lease, RequestKey, RequestRow, StoredResponse
from services.kernel.ids import IdSource
from services.kernel.principal import Principal, Role
from services.payment.card import CardMoney
from services.payment.commands import (
    ParkCommand,
    PayCommand,
    ReverseCommand,
    SettleCommand,
    direct,
    not_your_wallet,
    ticket_owner,
)
from services.payment.model import (
    ISSUE_TICKET,
    PARK,
    PAY,
    REVERSE,
    SETTLE,
    Charge,
    ConflictingPayment,
    Order,
    OrderState,
    Parking,
    Payment,
    PaymentEvent,
    PaymentState,
    Reversal,
    Source,
    charge_for,
    check_source,
    filled_in,
    half_settled,
    not_parkable,
    not_reversible,
)
from services.payment.ports import Acquirer, Failpoints, Filter, Hold, Ledger, Limits, Locks, Orders, Responses, Store
from services.payment.recovery import RECOVERY_S, Recovery
from services.payment.saga import Charging, Saga, Work
from services.runtime.grpc.context import Call

#: Kept back from a call's deadline for what comes after the lock: four hops at their usual pace, several times over.
_AFTER_LOCK_S = 0.5
#: How many half settled payments one clerk finishes before their own. More than one means that something is odd.
_MAX_ADOPTIONS = 3

#: Outcomes that leave open whether something happened, or was never sent after the payment was submitted.
_NO_ANSWER = (OutcomeUnknown, Unavailable)


class PaymentOperations:
    """The use cases of the payment service.

    Args:
        instance: Name of this process; owner of the requests it executes.
    """

    def __init__(
        self,
        *,
        store: Store,
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
        self._locks = locks
        self._responses = responses
        self._clock = clock
        self._ids = ids
        self._guards = guards
        self._limits = limits
        self._instance = instance
        self._executing: dict[RequestKey, Execution] = {}
        self._saga = Saga(store, orders, ledger, self._cards, responses, failpoints, clock)
        self._recovery = Recovery(
            store,
            self._cards,
            failpoints,
            clock,
            finish_request=self._recover_request,
            deliver=self._recover_notification,
        )

    # Method 1: a ticket, then a payment

    async def issue_ticket(self, call: Call, request_id: str, order_id: str, ttl_s: int, fingerprint: str) -> Answer:
        """Issues a single-use ticket; asked again with the same request id, the same one.

        Raises:
            ResourceExhausted: TICKET_QUOTA: a customer has too many that are not used.
        """
        caller, lease = call.principal, self._lease()
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
            quota=self._limits.ticket_quota if caller.role is Role.CUSTOMER else None,
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
            raise not_your_wallet(call.principal) from None
        draft = self._draft(call.principal, key, order_id, command)
        if order_id:
            if command.amount is not None or command.payee_account_id:
                raise InvalidArgument.of_field(
                    "TICKET_NAMES_ORDER", "amount", f"the ticket pays {order_id}; leave amount and payee_account_id out"
                )
            return await self._accept(call, draft, command.fingerprint, customer_id=command.customer_id)
        return await self._accept(call, direct(draft, call.principal, command), command.fingerprint)

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
            raise not_your_wallet(call.principal)
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
        accepted = await self._store.accept(draft, fingerprint, self._lease())
        if isinstance(accepted, StoredResponse):
            return Answer(accepted, replayed=True)
        work = Work(call.deadline, call, accepted.execution, Charging.YES)
        async with self._execution(accepted.execution):
            await self._saga.hit("accepted", work, accepted.payment)
            return await self._execute(work, accepted.payment)

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
            lambda work, hold, payment: self._reverse(work, hold, payment, reversal),
        )

    async def _on_payment(
        self,
        call: Call,
        key: RequestKey,
        command: ReverseCommand | ParkCommand,
        act: Callable[[Work, Hold | None, Payment], Awaitable[Answer]],
    ) -> Answer:
        """Run a request that changes a payment of another request, under the lock of its order."""
        payment = await self._store.get(command.payment_id)
        execution = await self._store.begin_request(key, command.fingerprint, self._lease())
        if isinstance(execution, StoredResponse):
            return Answer(execution, replayed=True)
        work = Work(call.deadline, call, execution)
        async with self._execution(execution):
            await self._saga.hit("accepted", work, payment)
            async with self._held(work, payment, call.principal) as hold:
                answer = await act(work, hold, await self._store.get(payment.payment_id))
            await self._saga.hit("released", work, payment)
            return answer

    async def _reverse(self, work: Work, hold: Hold | None, payment: Payment, reversal: Reversal) -> Answer:
        fence = hold.fence if hold else NO_FENCE
        try:
            await self._saga.tell_order(work, hold, payment)  # the order must be PAID before it can be reopened
            payment = await self._store.begin_reversal(payment.payment_id, fence, reversal, now_ms=self._now())
            undoing = payment.state is PaymentState.REVERSING
            if undoing and not payment.is_undone_for(reversal) and self._guards.recovery:
                # Somebody died undoing it. Should the ledger refuse theirs, it is ours to undo.
                await self._saga.carry_on(work.adopting(), hold, payment)
                payment = await self._store.begin_reversal(payment.payment_id, fence, reversal, now_ms=self._now())
        except CountinghouseError:
            await self._give_back(work)
            raise
        if not payment.is_undone_for(reversal):
            return await self._refuse_request(reversal.key, not_reversible(payment))
        return await self._conclude(work, hold, payment)

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
            call, key, command, lambda work, hold, payment: self._park(work, hold, payment, parking)
        )

    async def _park(self, work: Work, hold: Hold | None, payment: Payment, parking: Parking) -> Answer:
        try:
            if hold is not None and payment.can_be_parked:
                payment = await self._saga.park_unanswered(work, hold, payment, parking)
        except CountinghouseError:
            await self._give_back(work)  # every step before PARKED can be repeated
            raise
        if payment.is_parked_for(parking):
            await self._saga.tell_order(work, hold, payment)
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

    # What was left between two commits

    async def recover(self) -> int:
        """As `Recovery.recover`."""
        return await self._recovery.recover()

    async def renew_leases(self) -> None:
        """Keeps others away from what this process is executing. A process that is paused does not get here."""
        if self._executing:
            until_ms = self._now() + int(self._limits.lease_s * 1000)
            await self._store.renew(list(self._executing.values()), until_ms=until_ms)

    async def _recover_request(self, row: RequestRow) -> None:
        execution = await self._store.take_over(row, self._lease())
        if execution is None:
            return
        payment = await self._store.of_request(row.key)
        if payment is None:  # a reversal that had not begun: nothing was done
            await self._store.give_back(execution, now_ms=self._now())
            return
        charging = Charging.UNTIL_ATTENTION if row.key == payment.key else Charging.NEVER
        work = Work(Deadline.after(RECOVERY_S, self._clock), None, execution, charging)
        async with self._execution(execution):
            await self._execute(work, payment)

    async def _recover_notification(self, payment_id: str) -> None:
        payment = await self._store.get(payment_id)
        work = Work(Deadline.after(RECOVERY_S, self._clock), None, None)
        async with self._held(work, payment, payment.clerk) as hold:
            await self._saga.tell_order(work, hold, await self._store.get(payment_id))

    # The steps

    async def _execute(self, work: Work, payment: Payment) -> Answer:
        """Brings the payment of a request to its end, under the lock if it has an order."""
        if not payment.order_id:
            return await self._pay_directly(work, payment)
        async with self._held(work, payment, payment.clerk) as hold:
            # We may have been paused long enough for others to carry it on. What is read under the lock stays so, or
            # our fence is stale.
            payment = await self._store.get(payment.payment_id)
            answer = await self._settle(work, hold, payment) if hold else await self._conclude(work, None, payment)
        await self._saga.hit("released", work, payment)
        return answer

    async def _settle(self, work: Work, hold: Hold, payment: Payment) -> Answer:
        """Claims the order for this payment, finishing other people's half settled ones first."""
        for _ in range(_MAX_ADOPTIONS + 1):
            if payment.state is not PaymentState.CREATED:
                return await self._conclude(work, hold, payment)
            try:
                order = await self._orders.claim(payment, hold.fence, work.deadline)
            except OutcomeUnknown:
                await self._release_lease(work.execution)
                return self._pending(work, payment)
            except NotFound as refusal:
                return await self._refuse(work, hold, payment, refusal)  # or it would stay CREATED until it expires
            except CountinghouseError:
                await self._give_back(work)  # refused or never sent: nothing was done
                raise
            await self._saga.hit("claimed", work, payment)
            if order.is_being_paid_by(payment) or not self._guards.state:
                return await self._charge(work, hold, payment, order)
            if order.state is not OrderState.PAYING:
                return await self._refuse(work, hold, payment, await self._why_not(order))
            await self._adopt(work, hold, order)
        await self._give_back(work)
        raise Unavailable("ORDER_BUSY", f"{payment.order_id} is claimed by one payment after another; try again")

    async def _adopt(self, work: Work, hold: Hold, order: Order) -> None:
        """Finishes the payment that a dead or paused process left on this order, whose lock we hold."""
        if not self._guards.recovery:
            await self._give_back(work)
            raise Unavailable("ORDER_HALF_SETTLED", f"{order.order_id} is half settled and recovery is switched off")
        try:
            await self._finish_other(work, hold, await self._store.get(order.payment_id), order)
        except CountinghouseError:
            await self._give_back(work)
            raise

    async def _finish_other(self, work: Work, hold: Hold, other: Payment, order: Order | None = None) -> Payment:
        """Bring a payment that another request made to its end, without charging its card.

        Args:
            order: As for `Saga.carry_on`.

        Raises:
            Aborted: ORDER_HALF_SETTLED: nobody can tell its outcome now.
        """
        if other.state is PaymentState.CREATED and other.source is Source.CARD:
            raise half_settled(other)  # to finish it would be to charge it
        try:
            return await self._saga.carry_on(work.adopting(), hold, other, order)
        except OutcomeUnknown as unknown:
            raise half_settled(await self._store.get(other.payment_id)) from unknown

    async def _charge(self, work: Work, hold: Hold, payment: Payment, order: Order) -> Answer:
        """The claim is ours: check the accounts, submit, then conclude."""
        claimed = order.is_being_paid_by(payment)
        try:
            await self._saga.check_accounts(payment, charge_for(order, payment), work.deadline)
        except FailedPrecondition as refusal:
            return await self._refuse(work, hold, payment, refusal, release=claimed)
        except Unavailable:
            await self._release_lease(work.execution)
            return self._pending(work, payment)
        for _ in range(_MAX_ADOPTIONS + 1):
            submitted = await self._saga.submit(hold, payment, order)
            if isinstance(submitted, Payment):
                return await self._conclude(work, hold, submitted)
            conflicting = await self._finish_other(work, hold, submitted.payment)
            if conflicting.state is PaymentState.SUCCEEDED:
                paid = await self._saga.already_paid(payment.order_id, conflicting.payment_id, guard="unique")
                return await self._refuse(work, hold, payment, paid, release=claimed)
        raise Unavailable("ORDER_BUSY", f"{payment.order_id} is paid by one payment after another; try again")

    async def _pay_directly(self, work: Work, payment: Payment) -> Answer:
        """Submit a payment that has no order, unless it was, and bring it to its end."""
        if payment.state is not PaymentState.CREATED or payment.amount is None:
            return await self._conclude(work, None, payment)
        charge = Charge(
            0,
            payment.customer_id,
            payment.amount,
            payment.payer_account_id,
            payment.payee_account_id,
            by_card=payment.source is Source.CARD,
        )
        try:
            await self._saga.check_accounts(payment, charge, work.deadline)
            submitted = await self._store.submit(payment.payment_id, charge, NO_FENCE, now_ms=self._now())
        except FailedPrecondition as refusal:
            return await self._refuse(work, None, payment, refusal)
        except Unavailable:
            await self._give_back(work)
            raise
        return await self._conclude(
            work, None, submitted.payment if isinstance(submitted, ConflictingPayment) else submitted
        )

    async def _conclude(self, work: Work, hold: Hold | None, payment: Payment) -> Answer:
        """Brings a payment that is past its claim to its end, and answers its request."""
        try:
            ended = await self._saga.carry_on(work, hold, payment)
        except _NO_ANSWER:
            await self._release_lease(work.execution)
            return self._pending(work, await self._store.get(payment.payment_id))
        return await self._answer(ended.key if work.execution is None else work.execution.key)

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
        self, work: Work, hold: Hold | None, payment: Payment, refusal: CountinghouseError, *, release: bool = False
    ) -> Answer:
        """Ends a payment that was not submitted, and answers its request."""
        declined = await self._saga.decline(hold, payment, refusal, release=release)
        await self._saga.tell_order(work, hold, declined)
        return await self._answer(payment.key)

    # Small parts

    async def _answer(self, key: RequestKey) -> Answer:
        """The response as it is stored, by whichever execution that was."""
        return Answer(await self._store.response_to(key))

    def _pending(self, work: Work, payment: Payment) -> Answer:
        """The outcome is not known yet: the caller is told where the payment stands, and nothing is stored."""
        key = work.execution.key if work.execution else payment.key
        return Answer(self._responses.payment(key.method, payment))

    def _draft(self, clerk: Principal, key: RequestKey, order_id: str, asked: PayCommand | SettleCommand) -> Payment:
        payment_id = self._ids.new("pay")
        return Payment.created(payment_id, key, order_id, asked.source, clerk, asked.memo, self._now(), asked.card)

    @asynccontextmanager
    async def _held(self, work: Work, payment: Payment, clerk: Principal) -> AsyncIterator[Hold | None]:
        """Holds the lock of the payment's order; a payment without one needs none."""
        if not payment.order_id:
            yield None
            return
        remaining_s = work.deadline.remaining_s()
        wait_s = min(self._limits.lock_wait_s, remaining_s - min(_AFTER_LOCK_S, remaining_s / 2))
        try:
            if wait_s <= 0:
                raise Unavailable(
                    "DEADLINE_TOO_SHORT", "too little was left of the deadline for the lock; allow more time"
                )
            holding = self._locks.hold(payment.order_id, clerk, payment.payment_id, wait_s)
            hold = await holding.__aenter__()
        except CountinghouseError:
            await self._give_back(work)
            raise
        try:
            await self._saga.hit("locked", work, payment)
            yield hold
        finally:
            await holding.__aexit__(None, None, None)

    @asynccontextmanager
    async def _execution(self, execution: Execution) -> AsyncIterator[None]:
        """While inside, the lease of this request is renewed; after an error others may carry on at once."""
        self._executing[execution.key] = execution
        try:
            yield
        except CountinghouseError:
            await self._release_lease(execution)
            raise
        finally:
            self._forget_execution(execution)

    async def _give_back(self, work: Work) -> None:
        """Nothing was done, so the request may run again; unless an earlier execution may have done something."""
        if work.execution is not None and work.execution.first and self._forget_execution(work.execution):
            await self._store.give_back(work.execution, now_ms=self._now())

    async def _release_lease(self, execution: Execution | None) -> None:
        """This execution is over and its payment is not: whoever comes next may carry on at once."""
        if execution is not None and self._forget_execution(execution):
            await self._store.renew([execution], until_ms=self._now())

    def _forget_execution(self, execution: Execution) -> bool:
        """Ends the renewing of an execution's lease; False: it had been ended. The key may be another's by now."""
        ours = self._executing.get(execution.key) is execution
        if ours:
            del self._executing[execution.key]
        return ours

    def _lease(self) -> Lease:
        now_ms = self._now()
        return Lease(self._instance, now_ms, now_ms + int(self._limits.lease_s * 1000))

    def _now(self) -> int:
        return self._clock.now_ms()
