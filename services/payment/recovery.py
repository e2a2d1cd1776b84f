"""What no living execution works on any more, brought to its end; called by the worker of every instance.

    overdue requests        taken over, one execution each, and carried on     `_finish_request`
    pending notifications      sent to the order service, under the order's lock  `_deliver`
    parked payments         reversed by key at the acquirer, however long it
                            is away: PARKED → REVERSED                         `_reverse_parked`

A parked payment needs no lock: its order is free and the ledger refuses its journal, so that nothing but the acquirer's
key is left to it. Instances that reverse the same one at the same time are answered the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from services.kernel.clock import Clock, Deadline
from services.kernel.errors import CountinghouseError
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow
from services.payment.card import CardMoney
from services.payment.model import Payment, Step, plan
from services.payment.ports import PaymentStore
from services.payment.saga import Context, Saga

#: How long the worker gives one payment, in seconds.
_RECOVERY_S = 10.0
#: The outbox is left to the call that filled it for this long.
_DELIVERY_GRACE_MS = 1_000
_BATCH = 50
_RECOVERIES_AT_ONCE = 8
#: Parked payments in one look. They are asked about at once and beside all else: an acquirer that is away for hours
#: delays the other recoveries by one timeout a look.
_PARKED_BATCH = 8


class Leases:
    """The requests that this process executes; other processes carry on one whose lease has passed.

    Args:
        instance: Owner of the leases.
    """

    def __init__(self, store: PaymentStore, clock: Clock, instance: str, lease_s: float) -> None:
        self._store = store
        self._clock = clock
        self._instance = instance
        self._lease_ms = int(lease_s * 1000)
        self._executing: dict[RequestKey, Execution] = {}

    def new(self) -> Lease:
        """Return a lease that begins now."""
        now_ms = self._clock.now_ms()
        return Lease(self._instance, now_ms, now_ms + self._lease_ms)

    async def renew(self) -> None:
        """Keep others away from what this process executes. A process that is paused does not get here."""
        if self._executing:
            await self._store.renew(list(self._executing.values()), until_ms=self._clock.now_ms() + self._lease_ms)

    @asynccontextmanager
    async def running(self, execution: Execution) -> AsyncIterator[None]:
        """While inside, the lease of this request is renewed; after an error others may carry on at once."""
        self._executing[execution.key] = execution
        try:
            yield
        except CountinghouseError:
            await self.release(execution)
            raise
        finally:
            self._forget_execution(execution)

    @asynccontextmanager
    async def giving_back(self, execution: Execution) -> AsyncIterator[None]:
        """Give the request back after an error inside, because nothing was done then."""
        try:
            yield
        except CountinghouseError:
            await self.give_back(execution)
            raise

    async def give_back(self, execution: Execution) -> None:
        """Let the request run again, unless an earlier execution may have done something under it."""
        if execution.first and self._forget_execution(execution):
            await self._store.give_back(execution, now_ms=self._clock.now_ms())

    async def release(self, execution: Execution) -> None:
        """End an execution whose payment has not ended: any other may carry on at once."""
        if self._forget_execution(execution):
            await self._store.renew([execution], until_ms=self._clock.now_ms())

    def _forget_execution(self, execution: Execution) -> bool:
        """Ends the renewing of an execution's lease; False: it had been ended. The key may be another's by now."""
        ours = self._executing.get(execution.key) is execution
        if ours:
            del self._executing[execution.key]
        return ours


class Recovery:
    """Finds what was left between two commits, and has it finished.

    Args:
        execute: Brings the payment of a request to its end.
    """

    def __init__(
        self,
        store: PaymentStore,
        saga: Saga,
        cards: CardMoney,
        leases: Leases,
        clock: Clock,
        *,
        execute: Callable[[Execution, Payment, Context], Awaitable[object]],
    ) -> None:
        self._store = store
        self._saga = saga
        self._cards = cards
        self._leases = leases
        self._clock = clock
        self._execute = execute

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

    async def _finish_request(self, row: RequestRow) -> None:
        """Take over an overdue request and carry on its payment."""
        execution = await self._store.take_over(row, self._leases.new())
        if execution is None:
            return
        payment = await self._store.of_request(row.key)
        if payment is None:  # a reversal that had not begun: nothing was done
            await self._store.give_back(execution, now_ms=self._clock.now_ms())
            return
        context = Context.for_worker(self._deadline(), makes_payment=row.key == payment.key)
        async with self._leases.running(execution):
            await self._execute(execution, payment, context)

    async def _deliver(self, payment_id: str) -> None:
        """Notify the order service of what is in the outbox of a payment."""
        payment = await self._store.get(payment_id)
        context = Context.for_worker(self._deadline(), makes_payment=False)
        async with self._saga.locked(payment, payment.clerk, context) as context:
            await self._saga.hit("locked", payment, context)
            await self._saga.notify_order(await self._store.get(payment_id), context)

    async def _reverse_parked(self, payment: Payment) -> None:
        """Give back whatever was charged under a parked payment's key, and see to it that nothing will be."""
        context = Context.for_worker(self._deadline(), makes_payment=False)
        await self._cards.reverse(payment, payment.fence, context.deadline)
        await self._saga.hit("refunded", payment, context)
        change = plan(Step.RECORD_PARKED_REVERSAL, payment, self._clock.now_ms())
        if change is not None:
            await self._store.apply(change, payment.fence)
        await self._saga.hit("recorded", payment, context)

    def _deadline(self) -> Deadline:
        return Deadline.after(_RECOVERY_S, self._clock)


async def _failure_of(finish: Awaitable[None]) -> CountinghouseError | None:
    try:
        await finish
    except CountinghouseError as error:
        return error
    return None
