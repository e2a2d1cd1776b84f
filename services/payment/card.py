"""A card payment's money, outside: charged, asked for and given back, always under the payment's own key.

    charge ──▶ CHARGED                        the ledger may post it
           ──▶ DECLINED, REFUNDED, TOMBSTONE  definitive: nothing is charged, and nothing will be
           ──▶ silence                        the payment is UNKNOWN, and asked about again: after 0.5 s, 1 s, … 5 s

Rules
1. The key was committed with SUBMITTED and never changes, so that asking again cannot charge again, whoever asks: the
   acquirer knows neither our lock nor our fence. (With the guard `acquirer-key` off each try has a key of its own.)
2. After so many asks without an answer people have to look (`attention`). From then on the worker asks what became of
   the key and charges no more: a bill that is charged hours later, when nobody stands at the counter, surprises its
   customer. Somebody who presses Settle charges, under the same key; who reverses gives back whatever there is.
3. Nothing here ends a payment because of time.
"""

from __future__ import annotations

from collections.abc import Awaitable

from services.kernel.clock import Clock, Deadline
from services.kernel.errors import CountinghouseError, FailedPrecondition, OutcomeUnknown
from services.kernel.fence import Fence
from services.kernel.guards import Guards
from services.kernel.ids import IdSource
from services.payment.model import AcquirerSays, KeyState, Payment, Silence
from services.payment.ports import Acquirer, Store

_FIRST_PAUSE_MS, _LONGEST_PAUSE_MS = 500, 5_000


class CardMoney:
    """The acquirer, as a payment meets it. Every method raises OutcomeUnknown, and then has written that down.

    Args:
        max_asks: How often it may keep silent before people have to look.
    """

    def __init__(
        self, acquirer: Acquirer, store: Store, clock: Clock, ids: IdSource, guards: Guards, *, max_asks: int
    ) -> None:
        self._acquirer = acquirer
        self._store = store
        self._clock = clock
        self._ids = ids
        self._guards = guards
        self._max_asks = max_asks

    def check_taken(self) -> None:
        """Raises FailedPrecondition: CARDS_NOT_TAKEN: there is no acquirer."""
        if not self._acquirer.present:
            raise FailedPrecondition("CARDS_NOT_TAKEN", "no cards are taken here: no acquirer is set; pay otherwise")

    async def charge(
        self, payment: Payment, fence: Fence, deadline: Deadline, *, by_itself: bool
    ) -> CountinghouseError | None:
        """Charges the card, or finds it charged; returns why it is not and never will be.

        Args:
            by_itself: Nobody waits for this: the worker does not charge what is before people.
        """
        if payment.amount is None:
            raise AssertionError(f"{payment.payment_id} was submitted without an amount")
        if by_itself and payment.attention:
            said = await self._heard(payment, fence, self._acquirer.query(payment.acquirer_key, deadline))
            if said.state is KeyState.UNSEEN:
                silence = OutcomeUnknown(payment.attention, f"{payment.acquirer_key} was never charged so far")
                await self._write_down(payment, fence, silence)
                raise silence
        else:
            key = payment.acquirer_key if self._guards.acquirer_key else self._ids.new("key")
            asking = self._acquirer.charge(key, payment, payment.amount, deadline)
            said = await self._heard(payment, fence, asking)
        return None if said.state is KeyState.CHARGED else _why_not(payment, said)

    async def query(self, payment: Payment, fence: Fence, deadline: Deadline) -> AcquirerSays:
        """What became of the payment's key."""
        return await self._heard(payment, fence, self._acquirer.query(payment.acquirer_key, deadline))

    async def reverse(self, payment: Payment, fence: Fence, deadline: Deadline) -> AcquirerSays:
        """Gives back whatever was charged, and sees to it that nothing will be."""
        return await self._heard(payment, fence, self._acquirer.reverse_by_key(payment.acquirer_key, deadline))

    async def _heard(self, payment: Payment, fence: Fence, asking: Awaitable[AcquirerSays]) -> AcquirerSays:
        try:
            return await asking
        except OutcomeUnknown as silence:
            await self._write_down(payment, fence, silence)
            raise

    async def _write_down(self, payment: Payment, fence: Fence, silence: OutcomeUnknown) -> None:
        asks = payment.silence.asks + 1
        now_ms = self._clock.now_ms()
        pause_ms = min(_FIRST_PAUSE_MS * 2 ** min(asks - 1, 10), _LONGEST_PAUSE_MS)
        attention = silence.reason if asks >= self._max_asks else ""
        await self._store.lose_sight(
            payment.payment_id, fence, now_ms=now_ms, silence=Silence(asks, now_ms + pause_ms, attention)
        )


def _why_not(payment: Payment, said: AcquirerSays) -> FailedPrecondition:
    """A charge that will never be, in this service's words."""
    if said.state is KeyState.DECLINED:
        return FailedPrecondition(
            said.reason, f"declined: the acquirer refused the card of {payment.payment_id}: {said.reason}"
        )
    return FailedPrecondition(
        "CHARGE_REVERSED", f"declined: the charge of {payment.payment_id} was reversed at the acquirer"
    )
