"""The seven faults of the demo, brought about alike with every system: through its callers, its process, the acquirer.

What the acquirer does with one card is set by its own FaultService, by the card's token, and what it did is read from
its own log. A caller who has no final answer asks again under the same request id, as every system wants it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import grpc

from countinghouse.acquirer.v1 import acquirer_pb2
from countinghouse.payment.v1 import payment_pb2
from services.testkit.harness import Harness
from services.testkit.waiting import NotBroughtAbout, wait_until
from tests.bench.faults.outcomes import Outcome, charged
from tests.bench.faults.systems import System
from tests.bench.peers.serving import METHOD

_CALL_S = 8.0
_PAUSE_S = 0.2
#: How long callers ask again, and how long the system has afterwards to come to rest.
_PATIENCE_S = 15.0
_REST_S = 12.0
_SILENT_S = 4.0
_MAY_PASS = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNKNOWN,
    )
)


class Trial:
    """One order of one system, its card, and its callers."""

    def __init__(self, system: System, harness: Harness, order_id: str, card: str) -> None:
        self.system = system
        self.order_id = order_id
        self.card = card
        self.answers: list[str] = []
        self._harness = harness

    async def settle(self, clerk: str, instance: int = 0, *, timeout_s: float = _CALL_S) -> payment_pb2.Payment | None:
        """Ask once, under the clerk's request id; return the payment, None without an answer.

        Raises:
            grpc.aio.AioRpcError: It was refused for good.
        """
        request = payment_pb2.SettleRequest(
            request_id=f"{clerk}-{self.order_id}",
            order_id=self.order_id,
            source=payment_pb2.SOURCE_CARD,
            card=self.card,
        )
        token = self.system.token(clerk)
        metadata = (("authorization", f"Bearer {token}"),) if token else ()
        async with self.system.dialer.open(self.system.address(instance), "payment") as channel:
            send: Any = channel.unary_unary(METHOD, request_serializer=payment_pb2.SettleRequest.SerializeToString)
            try:
                body = await send(request, timeout=timeout_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _MAY_PASS:
                    raise
                return None
        return payment_pb2.SettleResponse.FromString(body).payment

    async def insist(self, clerk: str, instance: int = 0, within_s: float = _PATIENCE_S) -> None:
        """Ask until there is a final answer, or the time is over; note what was answered."""
        until_s = time.monotonic() + within_s
        while True:
            try:
                payment = await self.settle(clerk, instance)
            except grpc.aio.AioRpcError as error:
                self.answers.append(f"{clerk}: {error.code().name}")
                return
            if payment is not None and payment.state == payment_pb2.PAYMENT_STATE_SUCCEEDED:
                self.answers.append(f"{clerk}: SUCCEEDED")
                return
            if time.monotonic() > until_s:
                self.answers.append(f"{clerk}: no final answer")
                return
            await asyncio.sleep(_PAUSE_S)

    async def acquirer_does(self, kind: acquirer_pb2.FaultKind.ValueType, *, times: int = 1, delay_ms: int = 0) -> None:
        """Have the acquirer do this with charges of the card."""
        fault = acquirer_pb2.Fault(kind=kind, method="Charge", times=times, delay_ms=delay_ms, subject=self.card)
        await self._harness.set_acquirer_faults(fault)

    async def acquirer_does_well(self) -> None:
        """End the faults."""
        await self._harness.set_acquirer_faults()

    async def log(self) -> list[tuple[str, str]]:
        """Return the acquirer's log of this card: key and word, oldest first."""
        request = acquirer_pb2.ListLogRequest(page_size=1000, newest_first=True)
        entries = list(reversed((await self._harness.operator.ask(request)).entries))
        keys = {entry.key for entry in entries if entry.card == self.card}
        return [(entry.key, entry.word) for entry in entries if entry.key in keys]

    async def wait_logged(self, word: str) -> None:
        """Wait until the acquirer has done this with the card. Raises NotBroughtAbout."""

        async def logged() -> bool:
            return word in [one for _, one in await self.log()]

        await wait_until(logged, f"the acquirer's log has no {word}")

    async def outcome(self) -> Outcome:
        """Return what became of the order, once it is paid or the time to come to rest is over."""

        async def paid() -> bool:
            return await self.system.state(self.order_id) == "PAID"

        with suppress(NotBroughtAbout):
            await wait_until(paid, "", _REST_S)
        return Outcome(charged(await self.log()), await self.system.state(self.order_id), "; ".join(self.answers))


async def _double_click(trial: Trial) -> None:
    """Send one request twice at once."""
    await asyncio.gather(trial.insist("li"), trial.insist("li"))


async def _two_callers(trial: Trial) -> None:
    """Have two clerks settle one order at once, through two instances."""
    await asyncio.gather(trial.insist("li"), trial.insist("wang", 1))


async def _lost_reply(trial: Trial) -> None:
    """Lose the reply to the caller, who asks again."""
    await trial.acquirer_does(acquirer_pb2.FAULT_KIND_DELAY_AFTER, delay_ms=1000)
    await trial.settle("li", timeout_s=0.5)
    await trial.insist("li")


async def _killed(trial: Trial) -> None:
    """Kill the instance when the acquirer has charged; another clerk asks, then the first one asks again."""
    await trial.acquirer_does(acquirer_pb2.FAULT_KIND_DELAY_AFTER, delay_ms=3000)
    first = asyncio.create_task(trial.settle("li"))
    await trial.wait_logged("CHARGED")
    await trial.system.kill()
    await asyncio.wait({first})
    first.exception()
    await trial.insist("wang", 1)
    await trial.insist("li")


async def _frozen(trial: Trial) -> None:
    """Freeze the instance when the acquirer has charged; another clerk settles through the other; it wakes."""
    await trial.acquirer_does(acquirer_pb2.FAULT_KIND_DELAY_AFTER, delay_ms=1000)
    first = asyncio.create_task(trial.insist("li"))
    try:
        await trial.wait_logged("CHARGED")
        trial.system.freeze()
        await trial.insist("wang", 1)
    finally:
        trial.system.thaw()
        await first


async def _late_charge(trial: Trial) -> None:
    """Reverse a payment whose charge is still on its way to the acquirer."""
    await trial.acquirer_does(acquirer_pb2.FAULT_KIND_DELAY_BEFORE, delay_ms=5000)
    payment = await trial.settle("li")
    if payment is not None:
        trial.answers.append(f"reversal: {await trial.system.reverse(payment.payment_id)}")
    await asyncio.sleep(5.5)


async def _silent(trial: Trial) -> None:
    """Have the acquirer charge and not answer, however often it is asked, for a while."""
    await trial.acquirer_does(acquirer_pb2.FAULT_KIND_DROP_REPLY, times=0)
    await trial.insist("li", within_s=_SILENT_S)
    await trial.acquirer_does_well()
    await trial.insist("li")


#: In the order in which they are shown.
FAULTS: Final[dict[str, Callable[[Trial], Awaitable[None]]]] = {
    "double click": _double_click,
    "two callers": _two_callers,
    "lost reply": _lost_reply,
    "killed between charge and record": _killed,
    "frozen holder": _frozen,
    "reversal against a late charge": _late_charge,
    "silent acquirer": _silent,
}


async def bring_about(fault: str, system: System, harness: Harness, number: int) -> Outcome:
    """Bring a fault about on a new order, and return what became of it."""
    if FAULTS[fault] is _late_charge and not system.reverses:
        return Outcome("", "", "it has no reversal")
    trial = Trial(system, harness, await system.new_order(), f"tok-fault-{number}")
    try:
        await FAULTS[fault](trial)
    except NotBroughtAbout as why:
        return Outcome("", "", f"not brought about: {why}")
    finally:
        await trial.acquirer_does_well()
    return await trial.outcome()
