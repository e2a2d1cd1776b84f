"""One payment from whatever state it is found in to its end: each step one commit or one call, and all can be repeated.

    submit            payment SUBMITTED, before money moves                 submitted
    charge            of a card: charged by the acquirer, under its key     charged
    post              journal `settle:<order>:<round>`                      posted
    record            payment SUCCEEDED, response, outbox: one commit       recorded
    tell_order        order PAID, or free again                             completed

    undo              the opposite journal (posted), of a card then the refund (refunded), then REVERSED (recorded)
    park_unanswered   the ledger voids the journal (voided), PARKED and its open requests refused: one commit (parked)

Rules
1. Only an execution of the payment's own request causes a charge (`Work.may_charge`). Whoever finishes another's
   payment asks what became of its key, and nothing else.
2. A card is charged only if the ledger knows the accounts of its journal, in its currency (`check_accounts`).
3. What the acquirer charged is in the ledger, or is given back before the payment is DECLINED or REVERSED.
4. A payment is PARKED only when the ledger has answered that no journal of it stands and none ever will.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from services.kernel.clock import Clock, Deadline, rfc3339
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    Unavailable,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.idempotency import Execution, StoredResponse
from services.kernel.principal import Principal
from services.payment.card import CardMoney
from services.payment.model import (
    PARK,
    REVERSE,
    AccountTerms,
    Charge,
    ConflictingPayment,
    KeyState,
    Order,
    OutboxAction,
    Parking,
    Payment,
    PaymentState,
    Reversal,
    ReversalResult,
    Source,
    already_paid,
    charge_for,
    check_accounts,
    sales_account,
)
from services.payment.ports import Failpoints, Hold, Ledger, Orders, Responses, Store
from services.runtime.grpc.context import Call

#: Kept back from a park's deadline for what comes after the question to the acquirer, in seconds.
_AFTER_QUERY_S = 0.5
#: What the order service is told of a payment that has just come to this state.
_ACTIONS = {
    PaymentState.SUCCEEDED: OutboxAction.COMPLETE,
    PaymentState.DECLINED: OutboxAction.RELEASE,
}
#: What a ledger says when it will never post this: no money moved.
_REFUSALS = (FailedPrecondition, InvalidArgument, NotFound)


class Charging(StrEnum):
    """Whether an execution may cause a charge."""

    #: Its caller wants the card charged, now.
    YES = "YES"
    #: Its caller wanted the card charged, and nobody waits for it: not once people have to look at the payment.
    UNTIL_ATTENTION = "UNTIL_ATTENTION"
    #: It finishes, reverses or parks a payment that another request made.
    NEVER = "NEVER"


@dataclass(frozen=True, slots=True)
class Work:
    """One execution: for whom, until when, and under which request.

    Args:
        call: Whose reply a failpoint may lose; None: nobody waits.
        charging: Whether it may charge the card of the payment it carries on.
    """

    deadline: Deadline
    call: Call | None
    execution: Execution | None
    charging: Charging = Charging.NEVER

    def adopting(self) -> Work:
        """The same execution, as it finishes a payment that another request made."""
        return replace(self, execution=None, charging=Charging.NEVER)

    def may_charge(self, payment: Payment) -> bool:
        """Whether it may charge this payment's card, or only ask what became of its key."""
        return self.charging is Charging.YES or (self.charging is Charging.UNTIL_ATTENTION and not payment.attention)


class Saga:
    """The steps of a payment, for whoever carries it on."""

    def __init__(
        self,
        store: Store,
        orders: Orders,
        ledger: Ledger,
        cards: CardMoney,
        responses: Responses,
        failpoints: Failpoints,
        clock: Clock,
    ) -> None:
        self._store = store
        self._orders = orders
        self._ledger = ledger
        self._cards = cards
        self._responses = responses
        self._failpoints = failpoints
        self._clock = clock
        self._house_accounts: dict[str, AccountTerms] = {}

    async def carry_on(self, work: Work, hold: Hold | None, payment: Payment, order: Order | None = None) -> Payment:
        """From whatever state a payment is in to its end; every step can be repeated.

        Args:
            order: For a payment that claimed its order and was not submitted.
        """
        if payment.state is PaymentState.CREATED and order is not None and hold is not None:
            submitted = await self.submit(hold, payment, order)
            if isinstance(submitted, ConflictingPayment):
                return payment
            payment = submitted
        action: OutboxAction | None = None
        if payment.state in (PaymentState.SUBMITTED, PaymentState.UNKNOWN):
            payment = await self._post(work, hold, payment)
            action = _ACTIONS.get(payment.state)
        if payment.state is PaymentState.REVERSING:
            payment = await self._post_reversal(work, hold, payment)
            action = None  # the order service may not even have heard yet that it was paid; that comes first
        await self.tell_order(work, hold, payment, action)
        return payment

    async def submit(self, hold: Hold, payment: Payment, order: Order) -> Payment | ConflictingPayment:
        """CREATED → SUBMITTED, or DECLINED because the card is another customer's."""
        charge = charge_for(order, payment)
        try:
            return await self._store.submit(payment.payment_id, charge, hold.fence, now_ms=self._now())
        except FailedPrecondition as refusal:
            return await self.decline(hold, payment, refusal, release=True)

    async def check_accounts(self, payment: Payment, charge: Charge, deadline: Deadline) -> None:
        """Check the accounts of a card's journal before the card is charged. The ledger checks again when it posts.

        The house's own accounts are asked for once: they cannot be closed, and an account never changes its currency.

        Raises:
            FailedPrecondition: As `check_accounts`.
            Unavailable: The ledger did not answer, and nothing was done.
        """
        if payment.source is not Source.CARD:
            return
        found = {}
        for account_id in (charge.payer_account_id, charge.payee_account_id):
            found[account_id] = self._house_accounts.get(account_id) or await self._account(account_id, deadline)
        payer, payee = found[charge.payer_account_id], found[charge.payee_account_id]
        check_accounts(charge, payer, payee)
        for account_id, account in found.items():
            if account is not None and account_id in (charge.payer_account_id, sales_account(charge.amount.currency)):
                self._house_accounts[account_id] = account

    async def _account(self, account_id: str, deadline: Deadline) -> AccountTerms | None:
        try:
            return await self._ledger.account(account_id, deadline)
        except OutcomeUnknown as silence:
            raise Unavailable(
                "LEDGER_SILENT", f"the ledger did not tell of account {account_id}; try again"
            ) from silence

    async def _post(self, work: Work, hold: Hold | None, payment: Payment) -> Payment:
        """Asks the acquirer for a card's charge, and the ledger for the journal; records what they said."""
        fence = hold.fence if hold else NO_FENCE
        if payment.amount is None:
            raise AssertionError(f"{payment.payment_id} was submitted without an amount")
        if hold is not None:
            hold.ensure()
        # The worst moment to be paused: the lock has been looked at, and the money has not moved yet.
        await self.hit("submitted", work, payment)
        by_card = payment.source is Source.CARD
        if by_card:
            ask = self._cards.charge if work.may_charge(payment) else self._cards.find_charge
            declined = await ask(payment, fence, work.deadline)
            if declined is not None:
                return await self.decline(hold, payment, declined, release=True)
            await self.hit("charged", work, payment)
        try:
            journal_id = await self._ledger.post(payment, payment.amount, fence, work.deadline)
        except OutcomeUnknown:
            if payment.state is PaymentState.SUBMITTED:
                await self._store.mark_unknown(payment.payment_id, fence, now_ms=self._now())
            raise
        except _REFUSALS as refusal:
            if by_card:
                await self._cards.reverse(payment, fence, work.deadline)  # it will never be in the books
            return await self.decline(hold, payment, await self._ledger_said(payment, refusal), release=True)
        await self.hit("posted", work, payment)
        payment = await self._store.record(payment.payment_id, fence, journal_id, self._encode, now_ms=self._now())
        await self.hit("recorded", work, payment)
        return payment

    async def park_unanswered(self, work: Work, hold: Hold, payment: Payment, parking: Parking) -> Payment:
        """Finish the payment if the acquirer or the ledger knows its outcome, otherwise park it.

        The ledger's answer is about all time: no journal of the payment stands, and it refuses one that comes late. So
        the order is free of the payment even if its holder was paused before it posts.

        Of a payment that is REVERSING the acquirer is not asked: whatever it says, the key is to be reversed. If the
        ledger has its journal, the payment stays as it is, for the acquirer owes the refund.
        """
        reversing = payment.state is PaymentState.REVERSING
        if not reversing and await self._is_decided(work, hold, payment):
            return await self.carry_on(work.adopting(), hold, payment)
        hold.ensure()
        journal_id = await self._ledger.void(payment, hold.fence, work.deadline)
        await self.hit("voided", work, payment)
        if journal_id and reversing:
            return payment
        if journal_id:
            payment = await self._store.record(
                payment.payment_id, hold.fence, journal_id, self._encode, now_ms=self._now()
            )
            await self.tell_order(work, hold, payment, OutboxAction.COMPLETE)
            return payment
        payment = await self._store.park(
            payment.payment_id, hold.fence, parking, self._encode_parking, self._encode_parked, now_ms=self._now()
        )
        await self.hit("parked", work, payment)
        return payment

    async def _is_decided(self, work: Work, hold: Hold, payment: Payment) -> bool:
        """Whether the acquirer says in time that it has decided on the payment's key."""
        try:
            said = await self._cards.query(payment, hold.fence, work.deadline.shaved(_AFTER_QUERY_S))
        except OutcomeUnknown:
            return False
        return said.state is not KeyState.UNSEEN

    async def _post_reversal(self, work: Work, hold: Hold | None, payment: Payment) -> Payment:
        """Undoes a payment's money, and records what that left in the books."""
        fence = hold.fence if hold else NO_FENCE
        reversal = payment.reversal
        if reversal is None:
            raise AssertionError(f"{payment.payment_id} is being reversed by nobody")
        if hold is not None:
            hold.ensure()
        await self.hit("submitted", work, payment)
        undo = self._undo_card if payment.source is Source.CARD else self._undo_in_ledger
        undone = await undo(work, fence, payment, reversal)
        if undone is None:
            return await self._store.get(payment.payment_id)
        payment = await self._store.record_reversal(
            payment, fence, undone, self._encode_reversal, self._encode_undone, now_ms=self._now()
        )
        await self.hit("recorded", work, payment)
        return payment

    async def _undo_card(self, work: Work, fence: Fence, payment: Payment, reversal: Reversal) -> ReversalResult | None:
        """The ledger first, which may refuse, then the acquirer; None: the ledger refused, and that is recorded.

        Of a payment whose outcome nobody knew the acquirer says whether there is anything to undo in the ledger: nobody
        posts what was not charged, and once its key is dead it never will be.
        """
        known = bool(payment.journal_id)
        charged = known or (await self._cards.query(payment, fence, work.deadline)).was_charged
        undone: ReversalResult | None = ReversalResult()
        if charged:
            undone = await self._undo_in_ledger(work, fence, payment, reversal)
            if undone is None:
                return None
        said = await self._cards.reverse(payment, fence, work.deadline)
        if said.was_charged and not charged:  # a charge arrived between the two questions
            undone = await self._undo_in_ledger(work, fence, payment, reversal)
        await self.hit("refunded", work, payment)
        return undone

    async def _undo_in_ledger(
        self, work: Work, fence: Fence, payment: Payment, reversal: Reversal
    ) -> ReversalResult | None:
        """Writes the opposite journal; None: the ledger refused, and that is recorded.

        A card's payment that was UNKNOWN may have a journal or not: it is given one, under its own key, to be undone.
        """
        journal_id = payment.journal_id
        if not journal_id and payment.amount is not None:
            try:
                journal_id = await self._ledger.post(payment, payment.amount, fence, work.deadline)
            except _REFUSALS:
                return ReversalResult()  # it is not in the books, and never will be
        try:
            posted = replace(payment, journal_id=journal_id)
            reversal_journal_id = await self._ledger.reverse(posted, reversal, fence, work.deadline)
        except _REFUSALS as refusal:
            answer = self._responses.refusal(refusal)
            await self._store.refuse_reversal(payment, fence, journal_id, answer, self._encode, now_ms=self._now())
            return None
        await self.hit("posted", work, payment)
        return ReversalResult(journal_id, reversal_journal_id)

    async def tell_order(
        self, work: Work, hold: Hold | None, payment: Payment, action: OutboxAction | None = None
    ) -> None:
        """Delivers what the order service has yet to be told. What cannot be delivered now stays in the outbox.

        Args:
            action: What was put there a moment ago; None: whatever is there.
        """
        if hold is None:
            return
        for purpose in (action,) if action else await self._store.pending_notifications(payment.payment_id):
            tell = {
                OutboxAction.COMPLETE: self._orders.complete,
                OutboxAction.RELEASE: self._orders.release,
                OutboxAction.REOPEN: self._orders.reopen,
            }[purpose]
            try:
                await tell(payment, hold.fence, work.deadline)
            except CountinghouseError:
                return  # the money is recorded, so the caller's answer stands; the worker tells the order service later
            await self.hit("completed", work, payment)
            await self._store.delivered(payment.payment_id, purpose, now_ms=self._now())

    async def decline(
        self, hold: Hold | None, payment: Payment, refusal: CountinghouseError, *, release: bool
    ) -> Payment:
        stored = self._responses.refusal(refusal)
        return await self._store.decline(
            payment.payment_id,
            hold.fence if hold else NO_FENCE,
            refusal.reason,
            lambda _payment: stored,
            release=release,
            now_ms=self._now(),
        )

    async def already_paid(
        self, order_id: str, payment_id: str, *, guard: str, clerk: Principal | None = None, settled_at_ms: int = 0
    ) -> CountinghouseError:
        """The refusal of an order that `payment_id` has settled, with what this service knows of that payment.

        Args:
            clerk: Who settled it, if another service said so; None: whoever made the payment.
            settled_at_ms: When, if another service said so; 0: when the payment was recorded.
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
        """The ledger's refusal in this service's words."""
        if refusal.reason == "IDEMPOTENCY_KEY_MISMATCH" and payment.order_id:
            told = refusal.metadata
            return await self.already_paid(
                payment.order_id,
                told.get("payment_id", ""),
                guard="unique",
                settled_at_ms=int(told.get("posted_at_ms", "0")),
            )
        return FailedPrecondition(refusal.reason, f"declined: {refusal.message}", metadata=refusal.metadata)

    def _encode(self, payment: Payment) -> StoredResponse:
        return self._responses.payment(payment.key.method, payment)

    def _encode_reversal(self, payment: Payment) -> StoredResponse:
        return self._responses.payment(REVERSE, payment)

    def _encode_undone(self, payment: Payment) -> StoredResponse:
        """The answer to the request of a payment that was undone before its outcome was known."""
        if payment.journal_id:
            return self._encode(payment)
        return self._responses.refusal(
            FailedPrecondition(
                "PAYMENT_REVERSED",
                f"{payment.payment_id} was reversed before it was posted: it settles nothing, and whatever was charged "
                "is given back",
            )
        )

    def _encode_parking(self, payment: Payment) -> StoredResponse:
        return self._responses.payment(PARK, payment)

    def _encode_parked(self, payment: Payment) -> StoredResponse:
        """The answer to the request of a payment that was parked, and to the request that was to reverse it before."""
        parked_by = payment.parking.clerk if payment.parking else payment.clerk
        return self._responses.refusal(
            FailedPrecondition(
                "PAYMENT_PARKED",
                f"{payment.payment_id} was parked by {parked_by.name} ({parked_by.role}) at "
                f"{rfc3339(payment.updated_at_ms)}: it settles nothing, and whatever was charged is given back",
                metadata={
                    "payment_id": payment.payment_id,
                    "order_id": payment.order_id,
                    "parked_by": parked_by.name,
                    "role": str(parked_by.role),
                    "parked_at_ms": str(payment.updated_at_ms),
                },
            )
        )

    async def hit(self, name: str, work: Work, payment: Payment) -> None:
        await self._failpoints.hit(name, work.call, payment.order_id, payment.payment_id)

    def _now(self) -> int:
        return self._clock.now_ms()
