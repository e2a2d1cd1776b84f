"""A card payment at the acquirer: charged, queried and refunded, always under the payment's own key.

    charge ──▶ CHARGED                        the ledger may post it
           ──▶ DECLINED, REFUNDED, TOMBSTONE  definitive: nothing is charged, and nothing will be
           ──▶ silence                        the payment is UNKNOWN, and asked about again: after 0.5 s, 1 s, … 5 s
           ──▶ a contradiction                as silence, and people have to look at once

Rules
1. The key was committed with SUBMITTED and never changes, so that asking again cannot charge again, whichever instance
   asks: the acquirer knows neither our lock nor our fence. (With the guard `acquirer-key` off each try has its own.)
2. Only an execution of the payment's own request charges (`charge`). Any other that finishes the payment only asks what
   became of the key (`find_charge`): a clerk who takes cash must not cause a charge.
3. After many queries without an answer people have to look (`attention`). From then on the worker of the own request
   only queries: a charge hours later, when the customer has left, would be a surprise. Its caller charges under the
   same key; a reversal or a parking gives back what was charged.
4. An answer counts as a whole: one about another key, amount, currency, card or payment than was asked is none. People
   have to look at once (ACQUIRER_MISMATCH).
5. Nothing here ends a payment because of time.
"""

from __future__ import annotations

from collections.abc import Awaitable

from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import CountinghouseError, FailedPrecondition, OutcomeUnknown
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.ids import IdSource
from services.payment.model import AcquirerRetry, Payment, PaymentState, mark_unknown
from services.payment.ports import Acquirer, ChargeStatus, ChargeTerms, KeyState, PaymentStore

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 500, 5_000
#: Why people have to look at once.
MISMATCH = "ACQUIRER_MISMATCH"
#: What each question can be answered with.
_CHARGED = frozenset(KeyState) - {KeyState.UNSEEN}
_FOUND = frozenset(KeyState)
_REVERSED = frozenset({KeyState.REFUNDED, KeyState.TOMBSTONE, KeyState.DECLINED})


class CardMoney:
    """The acquirer, as a payment meets it. Every method raises OutcomeUnknown, and then has written that down.

    Args:
        max_asks: How often it may keep silent, asked again after each pause, before people have to look.
    """

    def __init__(
        self, acquirer: Acquirer, store: PaymentStore, clock: Clock, ids: IdSource, guards: Guards, *, max_asks: int
    ) -> None:
        self._acquirer = acquirer
        self._store = store
        self._clock = clock
        self._ids = ids
        self._guards = guards
        self._max_asks = max_asks

    def check_taken(self) -> None:
        """Check that there is an acquirer; raise FailedPrecondition, CARDS_NOT_TAKEN, otherwise."""
        if not self._acquirer.present:
            raise FailedPrecondition("CARDS_NOT_TAKEN", "no cards are taken here: no acquirer is set; pay otherwise")

    async def charge(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> CountinghouseError | None:
        """Charge the card, or find it charged; return why it is not and never will be."""
        if payment.amount is None:
            raise AssertionError(f"{payment.payment_id} was submitted without an amount")
        key = payment.acquirer_key if self._guards.acquirer_key else self._ids.new("key")
        asking = self._acquirer.charge(key, payment, payment.amount, deadline)
        return _why_not(payment, await self._heard(payment, fence, asking, _CHARGED, key))

    async def find_charge(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> CountinghouseError | None:
        """Ask what became of the key and cause no charge; return as `charge`.

        Raises:
            OutcomeUnknown: Also CHARGE_UNSEEN, of a key that the acquirer has not decided on.
        """
        said = await self.query(payment, fence, deadline)
        if said.state is KeyState.UNSEEN:
            if payment.attention:  # no silence, but the worker must not ask again at once
                await self._write_down(payment, fence, payment.attention)
            raise OutcomeUnknown("CHARGE_UNSEEN", f"{payment.acquirer_key} was not charged so far")
        return _why_not(payment, said)

    async def query(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> ChargeStatus:
        """Return what became of the payment's key."""
        key = payment.acquirer_key
        return await self._heard(payment, fence, self._acquirer.query(key, deadline), _FOUND, key)

    async def reverse(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> ChargeStatus:
        """Have the acquirer refund what was charged under the key, and refuse what comes later."""
        key = payment.acquirer_key
        return await self._heard(payment, fence, self._acquirer.reverse_by_key(key, deadline), _REVERSED, key)

    async def _heard(
        self,
        payment: Payment,
        fence: Fence,
        asking: Awaitable[ChargeStatus],
        expected: frozenset[KeyState],
        key: str,
    ) -> ChargeStatus:
        """Wait for an answer and look at all of it.

        Args:
            expected: The states that answer this question.
            key: The key that was asked about.

        Raises:
            OutcomeUnknown: There is none, or ACQUIRER_MISMATCH: it contradicts what was asked.
        """
        try:
            said = await asking
        except OutcomeUnknown as silence:
            await self._write_down(payment, fence, silence.reason)
            raise
        wrong = said.contradictions(key, terms_of(payment))
        if said.state not in expected:
            wrong = (*wrong, "state")
        if wrong:
            await self._write_down(payment, fence, MISMATCH)
            raise OutcomeUnknown(
                MISMATCH, f"the acquirer answers {said.state} for {key}, with another {', '.join(wrong)} than asked"
            )
        return said

    async def _write_down(self, payment: Payment, fence: Fence, reason: str) -> None:
        """Count the silence and set when to ask again.

        A question asked before the set time does not count: however often callers try again meanwhile, the acquirer has
        been silent no longer.
        """
        now_ms = self._clock.now_ms()
        early = payment.state is not PaymentState.SUBMITTED and now_ms < payment.retry.ask_at_ms
        if early and reason != MISMATCH:
            return
        asks = payment.retry.asks + 1
        pause_ms = min(_FIRST_PAUSE_MS * 2 ** min(asks - 1, 10), _LONGEST_PAUSE_MS)
        attention = reason if asks >= self._max_asks or reason == MISMATCH else payment.attention
        retry = AcquirerRetry(asks, now_ms + pause_ms, attention)
        change = mark_unknown(payment, now_ms, retry)
        if change is None or (await self._store.apply(change, fence)).retry != retry:
            await self._store.schedule_retry(payment.payment_id, fence, retry)


def terms_of(payment: Payment) -> ChargeTerms:
    """Return what the key of a submitted payment stands for at the acquirer."""
    if payment.amount is None:
        raise AssertionError(f"{payment.payment_id} was submitted without an amount")
    return ChargeTerms(payment.amount.minor_units, payment.amount.currency, payment.card, payment.payment_id)


def _why_not(payment: Payment, said: ChargeStatus) -> FailedPrecondition | None:
    """Return the refusal of a charge that will never be made; None: it stands."""
    if said.state is KeyState.CHARGED:
        return None
    if said.state is KeyState.DECLINED:
        return FailedPrecondition(
            said.reason, f"declined: the acquirer refused the card of {payment.payment_id}: {said.reason}"
        )
    return FailedPrecondition(
        "CHARGE_REVERSED", f"declined: the charge of {payment.payment_id} was reversed at the acquirer"
    )
