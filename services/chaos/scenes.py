"""The scenes: each brings one fault about, for which one certain guard is the only defence.

A scene does what people and misfortune do, and judges nothing; what became of the money the checker says afterwards. It
plays the same whichever guards are on, and needs none but its own to end well: where the fault is a loss, the scene
has somebody ask again, unless finishing what others left is the very thing to be shown.

| scene | guard | what no other guard sees |
|---|---|---|
| reply lost | ticket | the retry of a payment with no order looks like a payment of its own |
| pressed while busy | lock | somebody takes over from a clerk who is alive and at work |
| late claim | fence | a claim out of a process that was frozen: the order is free again, no state forbids it |
| cancelled meanwhile | state | a first payment, against which no key, index or fence stands |
| ledger died | unique | one holder posts twice, for it heard nothing of the first time |
| clerk died | recovery | nobody else knows of it |
| bank silent | acquirer-key | the bank knows nothing of ours but the key |
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from services.chaos.booth import DELAY, DISARM, DROP_REPLY, KILL, STOP, Booth
from services.chaos.calls import Heard
from services.chaos.targets.target import NotBroughtAbout
from services.checker.history import Outcome
from services.devstack.stack import ACQUIRER_INSTANCE

CASHIERS: Final = "payment-1"
ACCOUNTANTS: Final = "payment-2"
_ORDERS: Final = ("order-1", "order-2")
#: How long somebody whose reply is dropped waits for it.
_DROPPED_S: Final = 1.0
#: The first clerk is busy for so long, and the second has so little time.
_BUSY_S, _HURRIED_S = 3.0, 1.0
_LEDGERS: Final = ("ledger-1", "ledger-2")
#: Which of two ledgers a payment asks is up to the balancer, who may prefer one; they are armed in turn, so many times.
_TURNS: Final = 10
#: A write that a woken process had in its hands is done by then.
_LATE_S: Final = 1.5


async def reply_lost(booth: Booth) -> None:
    """A payment with a ticket: its reply is lost after the commit, and the cashier asks again elsewhere."""
    ticket, amount = await booth.ticket(), booth.rng.randrange(100, 10_000)
    await booth.arm(CASHIERS, "recorded", DROP_REPLY)
    lost = await booth.pay(ticket, amount, at=CASHIERS, timeout_s=_DROPPED_S)
    if lost.answer.code != "DEADLINE_EXCEEDED":
        raise NotBroughtAbout(f"the reply was not lost: {lost.answer}")
    await booth.pay(ticket, amount, at=ACCOUNTANTS, insist=True)


async def pressed_while_busy(booth: Booth) -> None:
    """The cashier is at work on an order; the accountant presses, too, has little time, and goes away if they must."""
    order_id = await booth.new_order()
    async with _cashier_busy_with(booth, order_id):
        await booth.settle(booth.accountant, order_id, at=ACCOUNTANTS, timeout_s=_HURRIED_S)


async def pressed_at_once(booth: Booth) -> None:
    """The cashier is at work on an order; the accountant presses, too, until there is an answer."""
    order_id = await booth.new_order()
    async with _cashier_busy_with(booth, order_id):
        await booth.settle(booth.accountant, order_id, at=ACCOUNTANTS, insist=True)


@asynccontextmanager
async def _cashier_busy_with(booth: Booth, order_id: str) -> AsyncIterator[None]:
    """While inside, the cashier has submitted the payment of an order and not yet posted it; then they are answered."""
    await booth.arm(CASHIERS, "submitted", DELAY, order_id, delay_s=_BUSY_S)
    async with _meanwhile(booth.settle(booth.cashier, order_id, at=CASHIERS, timeout_s=_BUSY_S * 4)):

        async def submitted() -> bool:
            states = [row["state"] for row in (await booth.books()).payments if row["order_id"] == order_id]
            return states == ["SUBMITTED"]

        await booth.until(submitted, "the cashier's payment was not submitted")
        yield


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, Heard]) -> AsyncIterator[asyncio.Task[Heard]]:
    """Lets somebody ask beside what is done inside; they are waited for, or given up if that fails."""
    asking = asyncio.create_task(work)
    try:
        yield asking
        await asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def late_claim(booth: Booth) -> None:
    """An order instance freezes with a claim in its hands; the order is settled by way of the other one and reversed.

    Then the frozen one wakes, and carries out the claim of a payment that ended long ago.
    """
    order_id = await booth.new_order()

    def is_now(state: str) -> Callable[[], Awaitable[bool]]:
        async def is_state() -> bool:
            return await booth.order_state(order_id) == state

        return is_state

    for instance in _ORDERS:
        await booth.arm(instance, "accepted", STOP, order_id)
    asking = booth.settle(booth.cashier, order_id, at=CASHIERS, timeout_s=10.0, insist=True)
    async with _meanwhile(asking) as settling:
        frozen = await booth.until_frozen(*_ORDERS)
        try:
            (other,) = set(_ORDERS) - {frozen}
            await booth.arm(other, "accepted", DISARM)
            settled = await settling
            if settled.outcome is not Outcome.OK:
                raise NotBroughtAbout(f"the order was not settled: {settled.answer}")
            await booth.reverse(order_id, settled.answer.payment_id)
            await booth.until(is_now("UNPAID"), "the order was not reopened")
        finally:
            booth.thaw(frozen)
    with suppress(NotBroughtAbout):  # as it should be
        await booth.until(is_now("PAYING"), "it was refused", within_s=_LATE_S)


async def frozen_holder(booth: Booth) -> None:
    """The cashier's process freezes about to move money; the accountant finishes the order; then it wakes."""
    order_id = await booth.new_order()
    await booth.arm(CASHIERS, "submitted", STOP, order_id)
    async with _meanwhile(booth.settle(booth.cashier, order_id, at=CASHIERS, timeout_s=25.0)):
        await booth.until_frozen(CASHIERS)
        try:
            await booth.settle(booth.accountant, order_id, at=ACCOUNTANTS, timeout_s=10.0, insist=True)
        finally:
            booth.thaw(CASHIERS)


async def cancelled_meanwhile(booth: Booth) -> None:
    """The customer cancels an order that still stands on the cashier's screen, who then settles it."""
    order_id = await booth.new_order()
    await booth.cancel(order_id)
    await booth.settle(booth.cashier, order_id, at=CASHIERS, insist=True)


async def ledger_died(booth: Booth) -> None:
    """A ledger instance dies between its commit and its reply; the payment service asks the other one."""
    for number in range(_TURNS):
        victim = _LEDGERS[number % 2]
        order_id = await booth.new_order()
        pid = await booth.arm(victim, "posted", KILL, order_id)
        await booth.settle(booth.cashier, order_id, at=CASHIERS, timeout_s=10.0, insist=True)
        if await booth.died_at(victim, "posted", pid):
            await booth.until_died(victim, pid)
            return
    raise NotBroughtAbout("it was always the other ledger that was asked")


async def clerk_died(booth: Booth) -> None:
    """The cashier's process dies about to move money, and the cashier goes home."""
    order_id = await booth.new_order()
    pid = await booth.arm(CASHIERS, "submitted", KILL, order_id)
    await booth.settle(booth.cashier, order_id, at=CASHIERS)
    await booth.until_died(CASHIERS, pid)


async def bank_silent(booth: Booth) -> None:
    """The bank charges a card and does not answer; the accountant, who cannot wait, reverses the payment."""
    order_id = await booth.new_order()
    card = f"tok-{order_id}"
    await booth.arm(ACQUIRER_INSTANCE, "charged", DROP_REPLY, card)
    unheard = await booth.settle(booth.cashier, order_id, at=CASHIERS, card=card)
    if unheard.answer.state != "UNKNOWN":
        raise NotBroughtAbout(f"the bank's silence was not noticed: {unheard.answer}")
    await booth.reverse(order_id, unheard.answer.payment_id)


@dataclass(frozen=True, slots=True)
class Scene:
    """One fault.

    Args:
        fault: What happens, in a sentence for the table.
        play: Brings it about. Raises NotBroughtAbout.
        replicas: Instances of each service that it needs; 1 unless named.
        calm: Whether nobody dies or freezes in it.
    """

    name: str
    fault: str
    play: Callable[[Booth], Awaitable[None]]
    replicas: Mapping[str, int] = field(default_factory=dict, compare=False)
    calm: bool = False


_TWO_CLERKS: Final = {"payment": 2}

REPLY_LOST: Final = Scene(
    "reply lost", "the reply of a Pay is lost after the commit; asked again", reply_lost, _TWO_CLERKS, calm=True
)
PRESSED_WHILE_BUSY: Final = Scene(
    "pressed while busy",
    "a second clerk presses while the first is at work",
    pressed_while_busy,
    _TWO_CLERKS,
    calm=True,
)
PRESSED_AT_ONCE: Final = Scene(
    "pressed at once", "a second clerk presses while the first is at work, and insists", pressed_at_once, _TWO_CLERKS
)
LATE_CLAIM: Final = Scene(
    "late claim",
    "an order instance freezes with a claim; settled and reversed meanwhile; it wakes",
    late_claim,
    {**_TWO_CLERKS, "order": 2},
)
FROZEN_HOLDER: Final = Scene(
    "frozen holder", "a holder freezes about to post; another finishes the order; it wakes", frozen_holder, _TWO_CLERKS
)
CANCELLED_MEANWHILE: Final = Scene(
    "cancelled meanwhile", "the order is cancelled, and then settled from an old screen", cancelled_meanwhile, calm=True
)
LEDGER_DIED: Final = Scene(
    "ledger died", "a ledger dies between commit and reply; the other is asked", ledger_died, {"ledger": 2}
)
CLERK_DIED: Final = Scene(
    "clerk died", "a process dies with a payment submitted, and nobody asks again", clerk_died, _TWO_CLERKS
)
BANK_SILENT: Final = Scene(
    "bank silent", "the bank charges and does not answer; the payment is reversed", bank_silent, _TWO_CLERKS, calm=True
)
