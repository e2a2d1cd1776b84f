"""What no living execution works on any more, brought to its end; called by the worker of every instance.

    overdue requests        taken over, one execution each, and carried on     `finish_request`
    pending notifications      told to the order service, under the order's lock  `deliver`
    parked payments         reversed by key at the acquirer, however long it
                            is away: PARKED → REVERSED                         `_reverse_parked`

A parked payment needs no lock: its order is free and the ledger refuses its journal, so that nothing but the acquirer's
key is left to it. Instances that reverse the same one at the same time are answered the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from services.kernel.clock import Clock, Deadline
from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import RequestRow
from services.payment.card import CardMoney
from services.payment.model import Payment
from services.payment.ports import Failpoints, Store

#: How long the worker gives one payment, in seconds.
RECOVERY_S = 10.0
#: The outbox is left to the call that filled it for this long.
_DELIVERY_GRACE_MS = 1_000
_BATCH = 50
_RECOVERIES_AT_ONCE = 8
#: Parked payments in one look. They are asked about at once and beside all else: an acquirer that is away for hours
#: delays the other recoveries by one timeout a look.
_PARKED_BATCH = 8


class Recovery:
    """Finds what was left between two commits, and has it finished.

    Args:
        finish_request: Takes over an overdue request and carries on its payment.
        deliver: Tells the order service what is in the outbox of a payment.
    """

    def __init__(
        self,
        store: Store,
        cards: CardMoney,
        failpoints: Failpoints,
        clock: Clock,
        *,
        finish_request: Callable[[RequestRow], Coroutine[Any, Any, None]],
        deliver: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._store = store
        self._cards = cards
        self._failpoints = failpoints
        self._clock = clock
        self._finish_request = finish_request
        self._deliver = deliver

    async def recover(self) -> int:
        """Finish what no living execution is working on; return how many were looked at.

        Raises:
            CountinghouseError: Why the first of those that could not be finished now could not; the others were tried.
        """
        now_ms = self._clock.now_ms()
        await self._store.expire(now_ms=now_ms)
        rows = await self._store.overdue(now_ms=now_ms, limit=_BATCH)
        payment_ids = await self._store.undelivered(before_ms=now_ms - _DELIVERY_GRACE_MS, limit=_BATCH)
        parked = await self._store.parked(now_ms=now_ms, limit=_PARKED_BATCH)
        turn = asyncio.Semaphore(_RECOVERIES_AT_ONCE)  # one that waits for a lock must not hold up all others

        async def in_turn(finish: Coroutine[Any, Any, None]) -> CountinghouseError | None:
            async with turn:
                return await _failure_of(finish)

        failures = await asyncio.gather(
            *(in_turn(self._finish_request(row)) for row in rows),
            *(in_turn(self._deliver(payment_id)) for payment_id in payment_ids),
            *(_failure_of(self._reverse_parked(payment)) for payment in parked),
        )
        for failure in failures:
            if failure is not None:
                raise failure
        return len(failures)

    async def _reverse_parked(self, payment: Payment) -> None:
        """Give back whatever was charged under a parked payment's key, and see to it that nothing will be."""
        subjects = (payment.order_id, payment.payment_id)
        await self._cards.reverse(payment, payment.fence, Deadline.after(RECOVERY_S, self._clock))
        await self._failpoints.hit("refunded", None, *subjects)
        await self._store.record_parked_reversal(payment, now_ms=self._clock.now_ms())
        await self._failpoints.hit("recorded", None, *subjects)


async def _failure_of(finish: Awaitable[None]) -> CountinghouseError | None:
    try:
        await finish
    except CountinghouseError as error:
        return error
    return None
