"""How a payment is brought from any state to its end: `Saga.advance`, one loop over its state.

    CREATED     submit        payment SUBMITTED, before money moves                      submitted
    SUBMITTED,  charge        of a card: charged by the acquirer, under its key          charged
    UNKNOWN     post          journal `settle:<order>:<round>`                           posted
                record        payment SUCCEEDED, response, outbox: one commit            recorded
    REVERSING   reverse       the opposite journal (posted), of a card then the refund (refunded)
                record        payment REVERSED, responses, outbox: one commit            recorded
    ended       notify_order  order PAID, or free again                                  completed

    park        the ledger voids the journal (voided), PARKED and its open requests refused: one commit (parked)

Rules
1. Every step can be repeated. A step is a call or a commit (`_commit`): a transition of `model.py` planned on what was
   read, with the answers that it stores; if the payment has changed meanwhile, it is planned again.
2. Only an execution of the payment's own request causes a charge (`Context.may_charge`). Another only asks what became
   of its key; if the acquirer does not know, the payment stays as it is and the refusal names it.
3. A card is charged only if the ledger knows the accounts of its journal, in its currency (`check_accounts`).
4. What the acquirer charged is in the ledger, or is given back before the payment is DECLINED or REVERSED.
5. A payment is PARKED only when the ledger has answered that no journal of it stands and none ever will.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum

from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from services.kernel.idempotency import RequestKey, StoredResponse
from services.kernel.principal import Principal
from services.payment import model
from services.payment.card import CardMoney
from services.payment.model import (
    Change,
    Charge,
    ConflictingPayment,
    OutboxAction,
    Parking,
    Payment,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
    already_paid,
    payer_account,
    refusal_of,
    sales_account,
)
from services.payment.ports import (
    NO_HOLD,
    AccountTerms,
    Failpoints,
    Hold,
    KeyState,
    Ledger,
    Locks,
    Order,
    Orders,
    PaymentStore,
    Responses,
)
from services.runtime import tracing
from services.runtime.grpc.context import Call

#: Kept back from a call's deadline for what comes after the lock: four hops at their usual pace, several times over.
_AFTER_LOCK_S = 0.5
#: How long an order of a batch is waited for, in seconds: it is left out rather than all others held up.
_BATCH_LOCK_WAIT_S = 0.5
#: Kept back from a park's deadline for what comes after the question to the acquirer, in seconds.
_AFTER_QUERY_S = 0.5
#: How long the house's own accounts are taken to be as the ledger had them. An operator may close those of a currency
#: that the settings no longer have; a charge within this time is then given back when the ledger refuses its journal.
_HOUSE_ACCOUNTS_S = 10.0
#: What the ledger opens as a liability or as revenue only.
_CREDITABLE = re.compile(r"(wallet|sales):(.+:)?[A-Z]{3}")
#: The notification to the order service of a payment that was posted or declined a moment ago.
_NOTIFICATIONS = {PaymentState.SUCCEEDED: OutboxAction.COMPLETE, PaymentState.DECLINED: OutboxAction.RELEASE}
#: The ledger's refusals after which it will never post this: no money moved.
_REFUSALS = (FailedPrecondition, InvalidArgument, NotFound)


class Charging(StrEnum):
    """Whether an execution may cause a charge."""

    #: Its caller wants the card charged, now.
    YES = "YES"
    #: Its caller wanted the card charged, and no caller waits for it: not once people have to look at the payment.
    UNTIL_ATTENTION = "UNTIL_ATTENTION"
    #: It finishes, reverses or parks a payment that another request made.
    NEVER = "NEVER"


@dataclass(frozen=True, slots=True)
class Context:
    """For whom a payment is carried on, until when, and under which lock. Made by one of the constructors below.

    Attributes:
        call: Whose reply a failpoint may lose; None in the worker.
        charging: Whether it may charge the card of the payment.
        hold: The lock of the payment's order; NO_HOLD of a direct payment.
        order: The order that an adopted payment has claimed.
        answers: The responses that this execution has stored.
    """

    deadline: CallDeadline
    call: Call | None
    charging: Charging
    hold: Hold = NO_HOLD
    order: Order | None = None
    answers: dict[RequestKey, StoredResponse] = field(default_factory=dict)

    @property
    def in_batch(self) -> bool:
        """Return whether the caller waits for other payments with it."""
        return self.call is not None and self.call.in_batch

    @classmethod
    def for_caller(cls, call: Call, *, makes_payment: bool) -> Context:
        """Return the context of an execution whose caller waits for the answer.

        Args:
            makes_payment: Whether their request is that of the payment; otherwise it changes another request's.
        """
        return cls(call.deadline, call, Charging.YES if makes_payment else Charging.NEVER)

    @classmethod
    def for_worker(cls, deadline: CallDeadline, *, makes_payment: bool) -> Context:
        """Return the context of an execution whose own process has left it."""
        return cls(deadline, None, Charging.UNTIL_ATTENTION if makes_payment else Charging.NEVER)

    def for_adoption(self, order: Order | None = None) -> Context:
        """Finish another request's payment on the way, under the same lock.

        Args:
            order: As that payment has claimed it.
        """
        return replace(self, charging=Charging.NEVER, order=order)

    def may_charge(self, payment: Payment) -> bool:
        """Return whether it may charge this payment's card, or only ask what became of its key."""
        return self.charging is Charging.YES or (self.charging is Charging.UNTIL_ATTENTION and not payment.attention)


class Saga:
    """The steps of a payment, for the caller, the next clerk and the worker."""

    def __init__(
        self,
        store: PaymentStore,
        orders: Orders,
        ledger: Ledger,
        cards: CardMoney,
        locks: Locks,
        responses: Responses,
        failpoints: Failpoints,
        clock: Clock,
        lock_wait_s: float,
    ) -> None:
        self._store = store
        self._orders = orders
        self._ledger = ledger
        self._cards = cards
        self._locks = locks
        self._lock_wait_s = lock_wait_s
        self._responses = responses
        self._failpoints = failpoints
        self._clock = clock
        self._house_accounts: dict[str, tuple[AccountTerms, float]] = {}

    @asynccontextmanager
    async def locked(self, payment: Payment, clerk: Principal, context: Context) -> AsyncIterator[Context]:
        """Hold the lock of the payment's order.

        Raises:
            CountinghouseError: As `Locks.hold`, or DEADLINE_TOO_SHORT. Nothing was done.
        """
        remaining_s = context.deadline.remaining_s()
        longest_s = min(self._lock_wait_s, _BATCH_LOCK_WAIT_S) if context.in_batch else self._lock_wait_s
        wait_s = min(longest_s, remaining_s - min(_AFTER_LOCK_S, remaining_s / 2))
        if wait_s <= 0:
            raise Unavailable("DEADLINE_TOO_SHORT", "too little was left of the deadline for the lock; allow more time")
        async with self._locks.hold(payment.order_id, clerk, payment.payment_id, wait_s) as hold:
            yield replace(context, hold=hold)

    async def advance(self, payment: Payment, context: Context) -> Payment:
        """Carry a payment on to its end; every step can be repeated.

        Returns:
            The payment as it ended; as it was, if another payment of its order is active and it could not be submitted.

        Raises:
            OutcomeUnknown, Unavailable: A peer did not answer. The payment stays as it is.
        """
        notification: OutboxAction | None = None
        while True:
            match payment.state:
                case PaymentState.CREATED:
                    if context.order is None:
                        raise AssertionError(f"{payment.payment_id} is carried on before its order was claimed")
                    submitted = await self.submit(payment, charge_for(context.order, payment), context)
                    if isinstance(submitted, ConflictingPayment):
                        return payment
                    payment = submitted
                case PaymentState.SUBMITTED | PaymentState.UNKNOWN:
                    payment = await self._post(payment, context)
                    notification = _NOTIFICATIONS.get(payment.state)
                case PaymentState.REVERSING:
                    payment = await self._reverse(payment, context)
                    if payment.state is PaymentState.REVERSING:
                        return payment  # for the next request; this one's reversal was refused meanwhile
                    notification = None  # the order service may not know yet that it was paid; that comes first
                case PaymentState.SUCCEEDED | PaymentState.DECLINED | PaymentState.REVERSED | PaymentState.PARKED:
                    await self.notify_order(payment, context, notification)
                    return payment

    async def submit(self, payment: Payment, charge: Charge, context: Context) -> Payment | ConflictingPayment:
        """CREATED → SUBMITTED, or DECLINED because the card is another customer's."""
        change = model.submit(payment, charge, self._now())
        if change is None:
            raise AssertionError(f"{payment.payment_id} is {payment.state} and cannot be submitted")
        try:
            return await self._store.submit(change, context.hold.fence)
        except FailedPrecondition as refusal:
            return await self.decline(payment, refusal, context)

    async def check_accounts(self, payment: Payment, charge: Charge, deadline: CallDeadline) -> None:
        """Check the accounts of a journal before a card is charged, and a payee whose name does not tell its kind.

        The ledger checks again when it posts, but for the payee's kind. The house's own accounts are asked for once in
        `_HOUSE_ACCOUNTS_S`.

        Raises:
            FailedPrecondition: As `check_account_terms`.
            Unavailable: The ledger did not answer, and nothing was done.
        """
        if payment.source is not Source.CARD and names_creditable(charge.payee_account_id):
            return
        payer = await self._terms(charge.payer_account_id, charge, deadline)
        payee = await self._terms(charge.payee_account_id, charge, deadline)
        check_account_terms(charge, payer, payee)

    async def _terms(self, account_id: str, charge: Charge, deadline: CallDeadline) -> AccountTerms | None:
        """Return an account as the ledger has it, or had it a moment ago; None: there is none."""
        known = self._house_accounts.get(account_id)
        now_s = self._clock.monotonic_s()
        if known is not None and now_s - known[1] < _HOUSE_ACCOUNTS_S:
            return known[0]
        account = await self._account(account_id, deadline)
        is_house = account_id in (charge.payer_account_id, sales_account(charge.amount.currency))
        if account is not None and is_house and not account.closed:
            self._house_accounts[account_id] = (account, now_s)
        return account

    async def _account(self, account_id: str, deadline: CallDeadline) -> AccountTerms | None:
        try:
            return await self._ledger.account(account_id, deadline)
        except OutcomeUnknown as unknown:
            raise Unavailable(
                "LEDGER_SILENT", f"the ledger did not answer about account {account_id}; try again"
            ) from unknown

    async def _post(self, payment: Payment, context: Context) -> Payment:
        """Ask the acquirer for a card's charge, and the ledger for the journal; record their answers."""
        fence = context.hold.fence
        if payment.amount is None:
            raise AssertionError(f"{payment.payment_id} was submitted without an amount")
        context.hold.ensure()
        # The worst moment to be paused: the lock has been looked at, and the money has not moved yet.
        await self.hit("submitted", payment, context)
        by_card = payment.source is Source.CARD
        if by_card:
            ask = self._cards.charge if context.may_charge(payment) else self._cards.find_charge
            declined = await ask(payment, fence, context.deadline)
            if declined is not None:
                return await self.decline(payment, declined, context)
            await self.hit("charged", payment, context)
        try:
            journal_id = await self._ledger.post(payment, payment.amount, fence, context.deadline)
        except OutcomeUnknown:
            if payment.state is PaymentState.SUBMITTED:
                await self._commit(payment, context, lambda found: model.mark_unknown(found, self._now()))
            raise
        except _REFUSALS as refusal:
            if by_card:
                await self._cards.reverse(payment, fence, context.deadline)  # it will never be in the books
            return await self.decline(payment, await self._ledger_said(payment, refusal), context)
        await self.hit("posted", payment, context)
        payment = await self._record(payment, journal_id, context)
        await self.hit("recorded", payment, context)
        return payment

    async def _reverse(self, payment: Payment, context: Context) -> Payment:
        """Give a payment's money back, and record what that left in the books."""
        reversal = payment.reversal
        if reversal is None:
            raise AssertionError(f"{payment.payment_id} is REVERSING without a reversal")
        context.hold.ensure()
        await self.hit("submitted", payment, context)
        undo = self._reverse_card if payment.source is Source.CARD else self._reverse_in_ledger
        result = await undo(payment, reversal, context)
        if isinstance(result, Payment):
            return result
        payment = await self._commit(payment, context, lambda found: model.record_reversal(found, result, self._now()))
        await self.hit("recorded", payment, context)
        return payment

    async def _reverse_card(self, payment: Payment, reversal: Reversal, context: Context) -> ReversalResult | Payment:
        """Reverse in the ledger first, which may refuse, then at the acquirer. Returns as `_reverse_in_ledger`.

        Of a payment whose outcome was UNKNOWN the acquirer says whether there is anything to undo in the ledger: what
        was not charged is not posted, and once its key is dead it never will be.
        """
        fence = context.hold.fence
        known = bool(payment.journal_id)
        charged = known or (await self._cards.query(payment, fence, context.deadline)).was_charged
        result: ReversalResult | Payment = ReversalResult()
        if charged:
            result = await self._reverse_in_ledger(payment, reversal, context)
            if isinstance(result, Payment):
                return result
        said = await self._cards.reverse(payment, fence, context.deadline)
        if said.was_charged and not charged:  # a charge arrived between the two questions
            result = await self._reverse_in_ledger(payment, reversal, context)
        await self.hit("refunded", payment, context)
        return result

    async def _reverse_in_ledger(
        self, payment: Payment, reversal: Reversal, context: Context
    ) -> ReversalResult | Payment:
        """Write the opposite journal.

        A card's payment that was UNKNOWN may have a journal or not: it is given one, under its own key, to be undone.

        Returns:
            What it left in the books; the payment, if the ledger refused, which is recorded then.
        """
        fence, journal_id = context.hold.fence, payment.journal_id
        if not journal_id and payment.amount is not None:
            try:
                journal_id = await self._ledger.post(payment, payment.amount, fence, context.deadline)
            except _REFUSALS:
                return ReversalResult()  # it is not in the books, and never will be
        try:
            posted = replace(payment, journal_id=journal_id)
            reversal_journal_id = await self._ledger.reverse(posted, reversal, fence, context.deadline)
        except _REFUSALS as refusal:
            return await self._commit(
                payment,
                context,
                lambda found: model.refuse_reversal(found, reversal, journal_id, self._now()),
                {reversal.key: refusal},
            )
        await self.hit("posted", payment, context)
        return ReversalResult(journal_id, reversal_journal_id)

    async def begin_reversal(self, payment: Payment, reversal: Reversal, context: Context) -> Payment:
        """Begin a reversal; the payment as it stands, if it cannot be reversed."""
        return await self._commit(payment, context, lambda found: model.begin_reversal(found, reversal, self._now()))

    async def park(self, payment: Payment, parking: Parking, context: Context) -> Payment:
        """Finish the payment if the acquirer or the ledger knows its outcome, otherwise park it.

        The ledger's answer is about all time: no journal of the payment stands, and it refuses one that comes late. So
        the order is free of the payment even if its holder was paused before it posts.

        Of a payment that is REVERSING the acquirer is not asked: whatever it says, the key is to be reversed. If the
        ledger has its journal, the payment stays as it is, for the refund is pending.
        """
        if payment.state is not PaymentState.REVERSING and await self._is_decided(payment, context):
            return await self.advance(payment, context.for_adoption())
        context.hold.ensure()
        journal_id = await self._ledger.void(payment, context.hold.fence, context.deadline)
        try:
            return await self._park_voided(payment, parking, journal_id, context)
        except OutcomeUnknown:
            raise
        except CountinghouseError as error:  # what the ledger has voided stays so
            raise carried_on(error) from error

    async def _park_voided(self, payment: Payment, parking: Parking, journal_id: str, context: Context) -> Payment:
        """Go on with a payment of which the ledger has said whether it has a journal; empty: it never will."""
        await self.hit("voided", payment, context)
        if journal_id and payment.state is PaymentState.REVERSING:
            return payment
        if journal_id:
            payment = await self._record(payment, journal_id, context)
            await self.notify_order(payment, context, OutboxAction.COMPLETE)
            return payment
        payment = await self._commit(payment, context, lambda found: model.park(found, parking, self._now()))
        await self.hit("parked", payment, context)
        return payment

    async def _is_decided(self, payment: Payment, context: Context) -> bool:
        """Return whether the acquirer answers in time that it has decided on the payment's key."""
        try:
            said = await self._cards.query(payment, context.hold.fence, context.deadline.shaved(_AFTER_QUERY_S))
        except OutcomeUnknown:
            return False
        return said.state is not KeyState.UNSEEN

    async def notify_order(self, payment: Payment, context: Context, notification: OutboxAction | None = None) -> None:
        """Send the order service what is in the outbox. What cannot be delivered now stays there.

        Args:
            notification: What was put there a moment ago; None: whatever is there.
        """
        if not payment.order_id:
            return
        tell = {
            OutboxAction.COMPLETE: self._orders.complete,
            OutboxAction.RELEASE: self._orders.release,
            OutboxAction.REOPEN: self._orders.reopen,
        }
        pending = (notification,) if notification else await self._store.pending_notifications(payment.payment_id)
        for action in pending:
            try:
                await tell[action](payment, context.hold.fence, context.deadline)
            except CountinghouseError:
                return  # the money is recorded, so the caller's answer stands; the worker delivers it later
            await self.hit("completed", payment, context)
            await self._store.delivered(payment.payment_id, action, now_ms=self._now())

    async def decline(
        self, payment: Payment, refusal: CountinghouseError, context: Context, *, release: bool = True
    ) -> Payment:
        """End a payment that moves no money, and refuse its request.

        Args:
            release: Whether it may have claimed its order.
        """
        return await self._commit(
            payment,
            context,
            lambda found: model.decline(found, refusal.reason, self._now(), release=release),
            {payment.key: refusal},
        )

    async def _record(self, payment: Payment, journal_id: str, context: Context) -> Payment:
        return await self._commit(payment, context, lambda found: model.record(found, journal_id, self._now()))

    async def _commit(
        self,
        payment: Payment,
        context: Context,
        plan: Callable[[Payment], Change | None],
        refused: Mapping[RequestKey, CountinghouseError] | None = None,
    ) -> Payment:
        """Commit a transition with the answers to the requests that it ends.

        Args:
            plan: Plans it on the payment as it was read; once more if it has changed since, until that says None.
            refused: The requests that it refuses, and why.

        Returns:
            The payment as it stands. Its fence is raised in any case, so that an older holder changes it no more.
        """
        fence, refused = context.hold.fence, refused or {}
        while True:
            change = plan(payment)
            if change is None:
                found = await self._store.raise_fence(payment.payment_id, fence)
                if found.version == payment.version:
                    return found
            else:
                answers = tuple((key, self._encoded(change.after, key, refused.get(key))) for key in change.ended)
                found = await self._store.apply(replace(change, answers=answers), fence)
                if (found.version, found.state) == (change.after.version, change.after.state):
                    if not refused and found == replace(
                        change.after, fence=found.fence
                    ):  # and not another's transition
                        context.answers.update(answers)
                    return found
            payment = found

    def _encoded(self, payment: Payment, key: RequestKey, refusal: CountinghouseError | None) -> StoredResponse:
        refusal = refusal or refusal_of(payment, key)
        return self._responses.refusal(refusal) if refusal else self._responses.payment(key.method, payment)

    async def already_paid(
        self, order_id: str, payment_id: str, *, guard: str, clerk: Principal | None = None, settled_at_ms: int = 0
    ) -> CountinghouseError:
        """Return the refusal of an order that `payment_id` has settled, with what this service knows of that payment.

        Args:
            clerk: The clerk who settled it, as another service answered; None: the clerk of the payment.
            settled_at_ms: When, as another service answered; 0: when the payment was recorded.
        """
        source = None
        try:
            paid = await self._store.get(payment_id)
        except NotFound:  # this database is older than the order's or the ledger's
            pass
        else:
            source, clerk = paid.source, clerk or paid.clerk
            settled_at_ms = settled_at_ms or paid.settled_at_ms
        return already_paid(
            order_id, payment_id=payment_id, source=source, clerk=clerk, settled_at_ms=settled_at_ms, guard=guard
        )

    async def _ledger_said(self, payment: Payment, refusal: CountinghouseError) -> CountinghouseError:
        """Return the ledger's refusal as this service's error."""
        if refusal.reason == "IDEMPOTENCY_KEY_MISMATCH" and payment.order_id:
            told = refusal.metadata
            return await self.already_paid(
                payment.order_id,
                told.get("payment_id", ""),
                guard="unique",
                settled_at_ms=int(told.get("posted_at_ms", "0")),
            )
        return FailedPrecondition(refusal.reason, f"declined: {refusal.message}", metadata=refusal.metadata)

    async def hit(self, name: str, payment: Payment, context: Context) -> None:
        """Pass the step `name`: an event of the trace, and a failpoint."""
        tracing.event(name)
        await self._failpoints.hit(name, context.call, payment.order_id, payment.payment_id)

    def _now(self) -> int:
        return self._clock.now_ms()


def charge_for(order: Order, payment: Payment) -> Charge:
    """Return the charge that settles this order from the payment's source."""
    currency = order.amount.currency
    payer = payer_account(payment.source, order.customer_id, currency)
    return Charge(order.round, order.customer_id, order.amount, payer, sales_account(currency))


def names_creditable(account_id: str) -> bool:
    """Return whether an account's name tells that a credit raises its balance: the ledger opens it as such only."""
    return _CREDITABLE.fullmatch(account_id) is not None


def check_account_terms(charge: Charge, payer: AccountTerms | None, payee: AccountTerms | None) -> None:
    """Check that the ledger could post this charge, as far as its accounts say. Balances are the ledger's to decide.

    Raises:
        FailedPrecondition: ACCOUNT_NOT_FOUND, ACCOUNT_CLOSED, CURRENCY_MISMATCH or PAYEE_NOT_CREDITABLE.
    """
    for account_id, account in ((charge.payer_account_id, payer), (charge.payee_account_id, payee)):
        about = {"account_id": account_id, "currency": charge.amount.currency}
        if account is None:
            problem = ("ACCOUNT_NOT_FOUND", f"there is no account {account_id}; open it first")
        elif account.closed:
            problem = ("ACCOUNT_CLOSED", f"account {account_id} is closed; name another")
        elif account.currency != charge.amount.currency:
            problem = (
                "CURRENCY_MISMATCH",
                f"account {account_id} is kept in {account.currency}; use an account in {charge.amount.currency}",
            )
        elif account is payee and account.grows_by_debits:
            problem = (
                "PAYEE_NOT_CREDITABLE",
                f"{account_id} receives no payments; name a wallet or a merchant",
            )
        else:
            continue
        reason, what = problem
        raise FailedPrecondition(reason, f"declined: {what}; nothing was charged", metadata=about)


def carried_on(refusal: CountinghouseError) -> OutcomeUnknown:
    """Return the refusal of a call whose request another execution may carry on."""
    return OutcomeUnknown(
        refusal.reason,
        f"{refusal.message.removesuffix('.')}. Another execution of this request may carry it on.",
        metadata=refusal.metadata,
        retry_after_ms=refusal.retry_after_ms,
    )
