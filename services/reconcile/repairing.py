"""Repair what differs, through the services' own operations: each is idempotent, and none overrides another's.

No card is ever charged from here, and no key is reversed that is not a payment's own, unless it is named. What the
payment service or the acquirer refuses stays as it is, and is reported with the reason; the next run finds it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.payment.v1 import payment_pb2 as payment
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError, InvalidArgument, NotFound
from services.reconcile.matching import Action, Discrepancy
from services.reconcile.reading import Writer, charge_state, payment_state

_REASON = "reconciliation: the acquirer and we differ"
_LOOK_S = 0.2
#: States in which a payment still waits for an answer.
_OPEN = ("SUBMITTED", "UNKNOWN", "REVERSING", "PARKED")


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one difference.

    Args:
        done: Whether the two sides agree about it now, by their answers.
        words: What was done, or why not.
    """

    discrepancy: Discrepancy
    done: bool
    words: str


def named(keys: Iterable[str], discrepancies: Iterable[Discrepancy]) -> list[Discrepancy]:
    """Return the discrepancies of the keys that people want refunded, in their order.

    Raises:
        InvalidArgument: REFUND_NOT_OPEN: a key is not among the charges that can be refunded by name.
    """
    refundable = {found.key: found for found in discrepancies if found.action is Action.NAME}
    wanted = list(dict.fromkeys(keys))
    for key in wanted:
        if key not in refundable:
            raise InvalidArgument(
                "REFUND_NOT_OPEN",
                f"{key!r} is not the key of an open discrepancy that can be refunded by name; nothing was refunded",
            )
    return [refundable[key] for key in wanted]


class Repairer:
    """Repair one difference after the other.

    Args:
        run: An id of this run, part of the request ids under which payments are reversed.
        patience_s: How long it waits for what others have to bring to its end.
    """

    def __init__(self, services: Writer, clock: Clock, *, run: str, patience_s: float) -> None:
        self._services = services
        self._clock = clock
        self._run = run
        self._patience_s = patience_s

    async def repair(self, discrepancy: Discrepancy) -> Repair:
        """Repair it as far as that can be done from here; never raises CountinghouseError."""
        mend = {
            Action.REFUND: self._refund,
            Action.UNDO: self._undo,
            Action.ASK_NOW: self._ask_now,
        }.get(discrepancy.action, self._leave)
        return await self._tried(mend, discrepancy)

    async def refund_named(self, discrepancy: Discrepancy) -> Repair:
        """Reverse a key that no payment of ours has, which the operator named; never raises CountinghouseError."""
        return await self._tried(self._refund, discrepancy)

    async def _tried(self, mend: Callable[[Discrepancy], Awaitable[Repair]], discrepancy: Discrepancy) -> Repair:
        try:
            return await mend(discrepancy)
        except CountinghouseError as error:
            return Repair(discrepancy, False, f"{error.reason}: {error.message}")

    async def _refund(self, found: Discrepancy) -> Repair:
        request = acquirer.ReverseByKeyRequest(key=found.key)
        charge = (await self._services.change("acquirer", "ReverseByKey", request, found.key)).message.charge
        done = charge.state != acquirer.CHARGE_STATE_CHARGED
        return Repair(found, done, f"{found.key} is {charge_state(charge)}")

    async def _undo(self, found: Discrepancy) -> Repair:
        """Reverse the payment unless the acquirer turns out to hold its money; it is queried, and charges nothing."""
        try:
            request = acquirer.GetChargeRequest(key=found.key)
            charge = (await self._services.read("acquirer", "GetCharge", request)).charge
        except NotFound:
            return await self._reverse(found)
        if charge.state == acquirer.CHARGE_STATE_CHARGED:
            return Repair(found, True, f"{found.key} is CHARGED")
        return await self._reverse(found)

    async def _reverse(self, found: Discrepancy) -> Repair:
        key = f"{self._run}:{found.payment_id}"
        request = payment.ReverseRequest(request_id=key, payment_id=found.payment_id, reason=_REASON)
        await self._services.change("payment", "Reverse", request, key)
        return await self._ended(found, payment.PAYMENT_STATE_REVERSED)

    async def _ask_now(self, found: Discrepancy) -> Repair:
        request = payment.NotifyAcquirerRequest(key=found.key, outcome=payment.ACQUIRER_OUTCOME_CHARGED)
        await self._services.change("payment", "NotifyAcquirer", request, found.key)
        return await self._ended(found)

    async def _leave(self, found: Discrepancy) -> Repair:
        return Repair(found, False, found.action)

    async def _ended(self, found: Discrepancy, wanted: payment.PaymentState.ValueType | None = None) -> Repair:
        """Wait until the payment has come to its end.

        Args:
            wanted: In this state; None: in any.
        """
        request = payment.GetPaymentRequest(payment_id=found.payment_id)
        until_s = self._clock.monotonic_s() + self._patience_s
        while True:
            now = (await self._services.read("payment", "GetPayment", request)).payment
            state = payment_state(now)
            ended = state not in _OPEN
            if ended or self._clock.monotonic_s() >= until_s:
                return Repair(found, ended and wanted in (None, now.state), f"{found.payment_id} is {state}")
            await asyncio.sleep(_LOOK_S)
