"""Inject a fault at a chosen step of a payment, by an order that is made and settled for it.

    create the order ─▶ arm the failpoint for it ─▶ settle it at the victim ─▶ the victim stands at the failpoint
                                                └─▶ if contended, a rival settles it elsewhere

The fault is injected at that step and at no other, and a frozen holder is really overtaken before it resumes. A process
stops itself at the failpoint, or is held there (`Target.holds_at_failpoints`); it is killed or paused from outside.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count
from typing import Final

from countinghouse.order.v1 import order_pb2
from services.chaos.faults.types import INJECT_WITHIN_S, POLL_S, FaultInjection, InjectionContext
from services.kernel.errors import CountinghouseError
from services.testkit.client import CallResult, RecordingClient, money
from services.testkit.failpoints import DELAY, STOP, FailpointClient
from services.testkit.identities import CUSTOMER
from services.testkit.waiting import NotBroughtAbout

#: Every trigger order's id begins with it.
PREFIX: Final = "trigger-"
_SETTLE_TIMEOUT_S: Final = 12.0
_RETRY_S: Final = 0.2
#: The rival of each further trigger order starts later by this: else a victim that is slower would never get the lock.
_HEAD_START_S: Final = 0.2
#: Long enough to pause a process that is held.
_HELD_S: Final = 5.0
_AMOUNT: Final = 777


@asynccontextmanager
async def trigger_at(
    context: InjectionContext, injection: FaultInjection, *, first: int = 0
) -> AsyncIterator[tuple[TriggerOrder, str]]:
    """Settle trigger orders until a process stands at the failpoint; yield the order and the process's instance.

    A payment instance is called itself. Which instance it calls in turn is up to the load balancer: all that may be
    called are armed, and the others are disarmed once one stands at the failpoint.

    Args:
        first: Number of the first order, which is in its id.

    Raises:
        NotBroughtAbout: None does within INJECT_WITHIN_S.
    """
    point, candidates = injection.facts["point"], _candidates(context, injection)
    stands = {name: await _watch(context, name, point) for name in candidates}
    until_s = context.clock.monotonic_s() + INJECT_WITHIN_S
    hit: list[str] = []

    async def any_stands() -> bool:
        hit.extend([name for name in candidates if await stands[name]()])
        return bool(hit)

    try:
        async with AsyncExitStack() as orders:
            for number in count():
                order = await TriggerOrder.create(context, injection, first + number)
                orders.push_async_callback(order.close)
                await order.settle_at(candidates, head_start_s=number * _HEAD_START_S)
                if await order.hit(any_stands):
                    for name in candidates:
                        if name != hit[0]:
                            await FailpointClient(context.operator).disarm(name, point)
                    yield order, hit[0]
                    return
                if context.clock.monotonic_s() >= until_s:
                    break
                await asyncio.sleep(_RETRY_S)
        raise NotBroughtAbout(f"{' or '.join(candidates)} never reached {point}")
    finally:
        for name in candidates:
            await context.target.resume(name)


class TriggerOrder:
    """An order that is settled at the victim and, if contended, by another clerk elsewhere."""

    def __init__(self, context: InjectionContext, injection: FaultInjection, order_id: str) -> None:
        self.order_id = order_id
        self._card = f"tok-{order_id}"
        self._context = context
        self._injection = injection
        self._calls: list[asyncio.Task[CallResult]] = []

    @classmethod
    async def create(cls, context: InjectionContext, injection: FaultInjection, number: int) -> TriggerOrder:
        """Create the order.

        Raises:
            NotBroughtAbout: CreateOrder is not answered within INJECT_WITHIN_S.
        """
        order_id = f"{PREFIX}{injection.fault}-{round(injection.at_s * 1000)}-{number}"
        request = order_pb2.CreateOrderRequest(
            request_id=f"make-{order_id}", order_id=order_id, customer_id=CUSTOMER, amount=money(_AMOUNT)
        )
        try:
            await context.cashier.ask_until_ok(request, timeout_s=2.0, within_s=INJECT_WITHIN_S)
        except CountinghouseError as error:
            raise NotBroughtAbout(f"no trigger order could be made: {error}") from error
        return cls(context, injection, order_id)

    async def settle_at(self, candidates: Sequence[str], head_start_s: float) -> None:
        """Arm the candidates for this order only, and settle it; a rival does so `head_start_s` later."""
        context, injection = self._context, self._injection
        # the acquirer knows no orders
        subject = self._card if injection.target.startswith("acquirer") else self.order_id
        for name in candidates:
            action = DELAY if context.target.holds_at_failpoints else STOP
            await FailpointClient(context.operator).arm(
                name, injection.facts["point"], action, subject, delay_s=_HELD_S if action == DELAY else 0.0
            )
        payments = [name for name in context.target.instances if name.startswith("payment")]
        called = candidates[0] if candidates[0] in payments else ""
        self._settle(context.cashier, called)
        if injection.facts.get("contention") == "contended":
            other = next(name for name in payments if name != called)
            self._settle(context.accountant, other, head_start_s)

    def settle_anywhere(self) -> None:
        """Settle it at the instance that the load balancer picks."""
        self._settle(self._context.cashier, "")

    async def hit(self, condition: Callable[[], Awaitable[bool]]) -> bool:
        """Wait until the condition holds, or the order is settled without; return whether it holds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(INJECT_WITHIN_S):
                while not await condition():
                    if all(call.done() for call in self._calls):
                        break
                    await asyncio.sleep(POLL_S)
        return await condition()

    @property
    def was_overtaken(self) -> bool:
        """Whether a call was refused, for another had taken the lock meanwhile."""
        answered = (
            call.result() for call in self._calls if call.done() and not call.cancelled() and not call.exception()
        )
        return any(result.answer.reason == "STALE_FENCE" for result in answered)

    async def overtaken(self) -> None:
        """Wait until the lock of the frozen holder has passed to the rival, and the rival has had time to settle."""
        if len(self._calls) > 1:
            await asyncio.wait(self._calls[1:], timeout=self._context.target.session_timeout_s + _SETTLE_TIMEOUT_S)
        else:
            await asyncio.sleep(self._context.target.session_timeout_s * 1.5)

    async def end(self) -> None:
        """Wait until the calls are answered or have timed out."""
        await asyncio.wait(self._calls, timeout=_SETTLE_TIMEOUT_S)

    async def close(self) -> None:
        """Cancel the calls that are still open."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _settle(self, clerk: RecordingClient, instance: str, after_s: float = 0.0) -> None:
        self._calls.append(asyncio.create_task(self._settle_until_answered(clerk, instance, after_s)))

    async def _settle_until_answered(self, clerk: RecordingClient, instance: str, after_s: float) -> CallResult:
        await asyncio.sleep(after_s)
        request = clerk.settle_request(self.order_id, f"{clerk.process}-{self.order_id}"[:64], card=self._card)
        while True:
            result = await clerk.call(request, at=instance, timeout_s=_SETTLE_TIMEOUT_S)
            answer = result.answer
            passing = answer.code in ("ABORTED", "UNAVAILABLE") or (
                answer.code == "DEADLINE_EXCEEDED" and answer.reason
            )
            if not passing or answer.reason == "STALE_FENCE":
                return result
            await asyncio.sleep(_RETRY_S)


def _candidates(context: InjectionContext, injection: FaultInjection) -> tuple[str, ...]:
    """Return the instances that may reach the failpoint when the trigger order is settled."""
    service = injection.target.rpartition("-")[0]
    if service == "payment":
        return (injection.target,)
    return tuple(name for name in context.target.instances if name.rpartition("-")[0] == service)


async def _watch(context: InjectionContext, instance: str, point: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: whether an instance stands at the failpoint, or has since now."""
    if not context.target.holds_at_failpoints:
        return lambda: context.target.is_paused(instance)
    failpoints = FailpointClient(context.operator)
    fired = await failpoints.fired(instance, point)

    async def held() -> bool:
        return await failpoints.fired(instance, point) > fired

    return held
