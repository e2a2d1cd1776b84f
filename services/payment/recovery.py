"""Recovery: finish the requests, notifications and parked payments that no live execution works on.

    overdue requests        taken over, one execution each, and carried on     `_finish_request`
    pending notifications   sent to the order service, under the order's lock  `_deliver`
    parked payments         reversed by key at the acquirer, however long it
                            is away: PARKED → REVERSED                         `_reverse_parked`

A parked payment needs no lock: its order is free and the ledger refuses its journal, so that nothing but the acquirer's
key is left to it. Instances that reverse the same one at the same time are answered the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import RequestRow
from services.payment.card import CardMoney
from services.payment.execution import Executor, Leases
from services.payment.metrics import NOTIFICATION, PARKED, REQUEST, RecoveryMetrics
from services.payment.model import Payment, Step, plan
from services.payment.ports import PaymentStore, RequestRecords
from services.payment.saga import Context, Saga
from services.runtime import tracing
from services.runtime.grpc.context import loggable

#: How long the worker gives one payment, in seconds.
_RECOVERY_S = 10.0
#: The outbox is left to the call that filled it for this long.
_DELIVERY_GRACE_MS = 1_000
_BATCH = 50
_RECOVERIES_AT_ONCE = 8
#: Parked payments in one look. They are asked about at once and beside all else: an acquirer that is away for hours
#: delays the other recoveries by one timeout a look.
_PARKED_BATCH = 8


class Recovery:
    """Finds what was left between two commits, and has it finished."""

    def __init__(
        self,
        store: PaymentStore,
        requests: RequestRecords,
        executor: Executor,
        saga: Saga,
        cards: CardMoney,
        leases: Leases,
        clock: Clock,
        metrics: RecoveryMetrics,
    ) -> None:
        self._store = store
        self._requests = requests
        self._executor = executor
        self._saga = saga
        self._cards = cards
        self._leases = leases
        self._clock = clock
        self._metrics = metrics

    async def recover(self) -> int:
        """Finish what no living execution is working on; return how many were looked at.

        Raises:
            CountinghouseError: Why the first of those that could not be finished now could not; the others were tried.
        """
        now_ms = self._clock.now_ms()
        await self._store.expire(now_ms=now_ms)
        rows = await self._requests.overdue(now_ms=now_ms, limit=_BATCH)
        payment_ids = await self._store.undelivered(now_ms=now_ms, grace_ms=_DELIVERY_GRACE_MS, limit=_BATCH)
        parked = await self._store.parked(now_ms=now_ms, limit=_PARKED_BATCH)
        self._metrics.looked(len(payment_ids))
        turn = asyncio.Semaphore(_RECOVERIES_AT_ONCE)  # one that waits for a lock must not hold up all others

        async def in_turn(kind: str, finish: Coroutine[Any, Any, None]) -> CountinghouseError | None:
            async with turn:
                return await self._failure_of(kind, finish)

        failures = await asyncio.gather(
            *(in_turn(REQUEST, self._finish_request(row)) for row in rows),
            *(in_turn(NOTIFICATION, self._deliver(payment_id)) for payment_id in payment_ids),
            *(self._failure_of(PARKED, self._reverse_parked(payment)) for payment in parked),
        )
        for failure in failures:
            if failure is not None:
                raise failure
        return len(failures)

    async def _finish_request(self, row: RequestRow) -> None:
        """Take over an overdue request and carry on its payment."""
        execution = await self._requests.take_over(row, self._leases.new())
        if execution is None:
            return
        payment = await self._store.of_request(row.key)
        if payment is None:  # a reversal that had not begun: nothing was done
            await self._requests.give_back(execution, now_ms=self._clock.now_ms())
            return
        context = Context.for_worker(self._deadline(), makes_payment=row.key == payment.key)
        with _recovering("recover request", payment):
            async with self._leases.running(execution):
                await self._executor.execute(execution, payment, context)

    async def _deliver(self, payment_id: str) -> None:
        """Notify the order service of what is in the outbox of a payment."""
        payment = await self._store.get(payment_id)
        context = Context.for_worker(self._deadline(), makes_payment=False)
        with _recovering("recover notification", payment):
            async with self._saga.locked(payment, payment.clerk, context) as context:
                await self._saga.hit("locked", payment, context)
                await self._saga.notify_order(await self._store.get(payment_id), context)

    async def _reverse_parked(self, payment: Payment) -> None:
        """Give back whatever was charged under a parked payment's key, and see to it that nothing will be."""
        context = Context.for_worker(self._deadline(), makes_payment=False)
        with _recovering("recover parked payment", payment):
            await self._cards.reverse(payment, payment.fence, context.deadline)
            await self._saga.hit("refunded", payment, context)
            change = plan(Step.RECORD_PARKED_REVERSAL, payment, self._clock.now_ms())
            if change is not None:
                await self._store.apply(change, payment.fence)
            await self._saga.hit("recorded", payment, context)

    async def _failure_of(self, kind: str, finish: Awaitable[None]) -> CountinghouseError | None:
        failure: CountinghouseError | None = None
        try:
            await finish
        except CountinghouseError as error:
            failure = error
        self._metrics.taken_up(kind, finished=failure is None)
        return failure

    def _deadline(self) -> CallDeadline:
        return CallDeadline.after(_RECOVERY_S, self._clock)


def _recovering(name: str, payment: Payment) -> tracing.Span:
    """Return the span of a recovery: a trace of its own, since no row keeps the trace of the execution before."""
    return tracing.root(name, order_id=loggable(payment.order_id), payment_id=payment.payment_id)
