"""The scenarios: each brings one fault about, for which one certain guard is the only defence.

A scenario does what callers and faults do, and judges nothing; the checker examines the money afterwards. It
runs the same whichever guards are on, and needs none but its own to end well: where the fault is a loss, the scenario
asks again, unless finishing what was left is the very thing to be shown.

| scenario | guard | what no other guard sees |
|---|---|---|
| reply lost | ticket | the retry of a payment with no order looks like a payment of its own |
| pressed while busy | lock | a clerk takes over from another clerk who is alive and at work |
| late claim | fence | a claim out of a process that was frozen: the order is free again, no state forbids it |
| cancelled meanwhile | state | a first payment, against which no key, index or fence stands |
| ledger died | unique | one holder posts twice, for it got no answer the first time |
| clerk died | recovery | no other process knows of it |
| acquirer silent | acquirer-key | the acquirer knows nothing of ours but the key |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from countinghouse.order.v1 import order_pb2
from countinghouse.payment.v1 import payment_pb2
from services.checker.history import Outcome
from services.devstack.stack import ACQUIRER_INSTANCE
from services.testkit.client import CURRENCY, CallResult, money
from services.testkit.failpoints import DELAY, DROP_REPLY, KILL, STOP
from services.testkit.harness import ONE, TWO, Harness
from services.testkit.waiting import NotBroughtAbout, wait_until

_ORDERS: Final = ("order-1", "order-2")
#: How long a caller whose reply is dropped waits for it.
_DROPPED_S: Final = 1.0
#: The first clerk is busy for so long, and the second has so little time.
_BUSY_S, _HURRIED_S = 3.0, 1.0
_LEDGERS: Final = ("ledger-1", "ledger-2")
#: Which of two ledgers a payment calls is up to the balancer, which may prefer one; they are armed in turn, so often.
_TURNS: Final = 10
#: A write that a woken process had in its hands is done by then.
_LATE_S: Final = 1.5


async def reply_lost(harness: Harness) -> None:
    """Pay with a ticket: the reply is lost after the commit, and the cashier asks again elsewhere."""
    request = payment_pb2.PayRequest(
        ticket_id=await harness.cashier.ticket(),
        source=payment_pb2.SOURCE_DRAWER,
        amount=money(harness.rng.randrange(100, 10_000)),
        payee_account_id=f"sales:{CURRENCY}",
    )
    await harness.failpoints.arm(ONE, "recorded", DROP_REPLY)
    lost = await harness.cashier.call(request, at=ONE, timeout_s=_DROPPED_S)
    if lost.answer.code != "DEADLINE_EXCEEDED":
        raise NotBroughtAbout(f"the reply was not lost: {lost.answer}")
    await _answered(harness.cashier.call_until_answered(request, at=TWO))


async def pressed_while_busy(harness: Harness) -> None:
    """Let two clerks settle one order; the second has little time, and gives up if refused."""
    order_id = await harness.new_order()
    async with _cashier_busy_with(harness, order_id):
        await harness.accountant.settle_once(order_id, at=TWO, timeout_s=_HURRIED_S)


async def pressed_at_once(harness: Harness) -> None:
    """Let two clerks settle one order; the second repeats the request until there is an answer."""
    order_id = await harness.new_order()
    async with _cashier_busy_with(harness, order_id):
        await _answered(harness.accountant.settle(order_id, at=TWO))


@asynccontextmanager
async def _cashier_busy_with(harness: Harness, order_id: str) -> AsyncIterator[None]:
    """While inside, the cashier has submitted the payment of an order and not yet posted it; then they are answered."""
    await harness.failpoints.arm(ONE, "submitted", DELAY, order_id, delay_s=_BUSY_S)
    async with _meanwhile(harness.cashier.settle_once(order_id, at=ONE, timeout_s=_BUSY_S * 4)):

        async def submitted() -> bool:
            states = [row["state"] for row in (await harness.snapshot()).payments if row["order_id"] == order_id]
            return states == ["SUBMITTED"]

        await wait_until(submitted, "the cashier's payment was not submitted")
        yield


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, CallResult]) -> AsyncIterator[asyncio.Task[CallResult]]:
    """Make a call beside what is done inside; wait for it, or cancel it if that fails."""
    asking = asyncio.create_task(work)
    try:
        yield asking
        await asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _answered(call: Awaitable[CallResult]) -> CallResult:
    """Return the result of a call that needs a final answer. Raises NotBroughtAbout."""
    result = await call
    if not result.final:
        raise NotBroughtAbout(f"a call was never answered for good; the last answer was {result.answer}")
    return result


async def late_claim(harness: Harness) -> None:
    """Freeze an order instance with a claim; the order is settled through the other instance and reversed.

    Then the frozen one wakes, and carries out the claim of a payment that ended long ago.
    """
    order_id = await harness.new_order()

    def is_now(state: str) -> Callable[[], Awaitable[bool]]:
        async def is_state() -> bool:
            orders = (await harness.snapshot()).orders
            return [row["state"] for row in orders if row["order_id"] == order_id] == [state]

        return is_state

    for instance in _ORDERS:
        await harness.failpoints.arm(instance, "accepted", STOP, order_id)
    asking = _answered(harness.cashier.settle(order_id, at=ONE, timeout_s=10.0))
    async with _meanwhile(asking) as settling:
        frozen = await harness.wait_frozen(*_ORDERS)
        try:
            (other,) = set(_ORDERS) - {frozen}
            await harness.failpoints.disarm(other, "accepted")
            settled = await settling
            if settled.outcome is not Outcome.OK:
                raise NotBroughtAbout(f"the order was not settled: {settled.answer}")
            await _answered(harness.accountant.reverse(settled.answer.payment_id, at=TWO))
            await wait_until(is_now("UNPAID"), "the order was not reopened")
        finally:
            harness.thaw(frozen)
    with suppress(NotBroughtAbout):  # as it should be
        await wait_until(is_now("PAYING"), "it was refused", within_s=_LATE_S)


async def frozen_holder(harness: Harness) -> None:
    """Freeze the cashier's process before it posts; the accountant finishes the order; then the process wakes."""
    order_id = await harness.new_order()
    await harness.failpoints.arm(ONE, "submitted", STOP, order_id)
    async with _meanwhile(harness.cashier.settle_once(order_id, at=ONE, timeout_s=25.0)):
        await harness.wait_frozen(ONE)
        try:
            await _answered(harness.accountant.settle(order_id, at=TWO, timeout_s=10.0))
        finally:
            harness.thaw(ONE)


async def cancelled_meanwhile(harness: Harness) -> None:
    """Cancel an order as its customer, then settle it as a cashier with an old screen."""
    order_id = await harness.new_order()
    request = order_pb2.CancelOrderRequest(request_id=harness.new_id("cancel"), order_id=order_id, reason="not wanted")
    await _answered(harness.customer.call_until_answered(request))
    await _answered(harness.cashier.settle(order_id, at=ONE))


async def ledger_died(harness: Harness) -> None:
    """Kill a ledger instance between its commit and its reply; the payment service asks the other one."""
    for number in range(_TURNS):
        victim = _LEDGERS[number % 2]
        order_id = await harness.new_order()
        pid = await harness.failpoints.arm(victim, "posted", KILL, order_id)
        await _answered(harness.cashier.settle(order_id, at=ONE, timeout_s=10.0))
        if await harness.failpoints.disarm(victim, "posted") != pid:
            await harness.wait_died(victim, pid)
            return
    raise NotBroughtAbout("it was always the other ledger that was asked")


async def clerk_died(harness: Harness) -> None:
    """Kill the cashier's process before it posts; the cashier does not ask again."""
    order_id = await harness.new_order()
    pid = await harness.failpoints.arm(ONE, "submitted", KILL, order_id)
    await harness.cashier.settle_once(order_id, at=ONE)
    await harness.wait_died(ONE, pid)


async def acquirer_silent(harness: Harness) -> None:
    """Let the acquirer charge a card and not answer; the accountant reverses the payment."""
    order_id = await harness.new_order()
    card = f"tok-{order_id}"
    await harness.failpoints.arm(ACQUIRER_INSTANCE, "charged", DROP_REPLY, card)
    settled = await harness.cashier.settle_once(order_id, at=ONE, card=card)
    if settled.answer.state != "UNKNOWN":
        raise NotBroughtAbout(f"the acquirer's silence was not noticed: {settled.answer}")
    await _answered(harness.accountant.reverse(settled.answer.payment_id, at=TWO))


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault.

    Args:
        fault: What happens, in a sentence for the table.
        run: Brings it about. Raises NotBroughtAbout.
        replicas: Instances of each service that it needs; 1 unless named.
        undisturbed: Whether no process dies or freezes in it.
    """

    name: str
    fault: str
    run: Callable[[Harness], Awaitable[None]]
    replicas: Mapping[str, int] = field(default_factory=dict, compare=False)
    undisturbed: bool = False


_TWO_CLERKS: Final = {"payment": 2}

REPLY_LOST: Final = Scenario(
    "reply lost", "the reply of a Pay is lost after the commit; asked again", reply_lost, _TWO_CLERKS, undisturbed=True
)
PRESSED_WHILE_BUSY: Final = Scenario(
    "pressed while busy",
    "a second clerk presses while the first is at work",
    pressed_while_busy,
    _TWO_CLERKS,
    undisturbed=True,
)
PRESSED_AT_ONCE: Final = Scenario(
    "pressed at once", "a second clerk presses while the first is at work, and insists", pressed_at_once, _TWO_CLERKS
)
LATE_CLAIM: Final = Scenario(
    "late claim",
    "an order instance freezes with a claim; settled and reversed meanwhile; it wakes",
    late_claim,
    {**_TWO_CLERKS, "order": 2},
)
FROZEN_HOLDER: Final = Scenario(
    "frozen holder", "a holder freezes about to post; another finishes the order; it wakes", frozen_holder, _TWO_CLERKS
)
CANCELLED_MEANWHILE: Final = Scenario(
    "cancelled meanwhile",
    "the order is cancelled, and then settled from an old screen",
    cancelled_meanwhile,
    undisturbed=True,
)
LEDGER_DIED: Final = Scenario(
    "ledger died", "a ledger dies between commit and reply; the other is asked", ledger_died, {"ledger": 2}
)
CLERK_DIED: Final = Scenario(
    "clerk died", "a process dies with a payment submitted, and no caller asks again", clerk_died, _TWO_CLERKS
)
ACQUIRER_SILENT: Final = Scenario(
    "acquirer silent",
    "the acquirer charges and does not answer; the payment is reversed",
    acquirer_silent,
    _TWO_CLERKS,
    undisturbed=True,
)
