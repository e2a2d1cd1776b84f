"""Mends what differs, through the same operations that made it: each may be repeated, and none overrides another's.

What a payment service or an acquirer refuses stays as it is, and is told with the reason; the next run finds it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from countinghouse.acquirer.v1 import acquirer_pb2 as acquirer
from countinghouse.payment.v1 import payment_pb2 as payment
from countinghouse.type.v1 import money_pb2
from services.kernel.clock import Clock
from services.kernel.errors import CountinghouseError
from services.reconcile.matching import Action, Discrepancy, Ours
from services.reconcile.reading import Desk

_REASON = "reconciliation: the acquirer and we differ"
_LOOK_S = 0.2
_OPEN = (payment.PAYMENT_STATE_SUBMITTED, payment.PAYMENT_STATE_UNKNOWN, payment.PAYMENT_STATE_REVERSING)


@dataclass(frozen=True, slots=True)
class Repair:
    """What became of one difference.

    Args:
        done: Whether the two sides agree about it now, as far as they said.
        words: What was done, or why not.
    """

    discrepancy: Discrepancy
    done: bool
    words: str


class Repairer:
    """Mends one difference after the other.

    Args:
        run: An id of this run, part of the request ids under which payments are reversed.
        patience_s: How long it waits for what others have to bring to its end.
    """

    def __init__(self, desk: Desk, payments: Mapping[str, Ours], clock: Clock, *, run: str, patience_s: float) -> None:
        self._desk = desk
        self._payments = payments
        self._clock = clock
        self._run = run
        self._patience_s = patience_s

    async def repair(self, discrepancy: Discrepancy) -> Repair:
        """Mends it as far as that can be done from here; never raises CountinghouseError."""
        mend = {
            Action.REFUND: self._refund,
            Action.ASK_AGAIN: self._ask_again,
            Action.REVERSE: self._reverse,
            Action.ASK_NOW: self._ask_now,
            Action.WAIT: self._wait,
            Action.LOOK: self._look,
        }[discrepancy.action]
        try:
            return await mend(discrepancy)
        except CountinghouseError as error:
            return Repair(discrepancy, False, f"{error.reason}: {error.message}")

    async def _refund(self, found: Discrepancy) -> Repair:
        request = acquirer.ReverseByKeyRequest(key=found.key)
        charge = (await self._desk.change("acquirer", "ReverseByKey", request, found.key)).message.charge
        done = charge.state != acquirer.CHARGE_STATE_CHARGED
        return Repair(found, done, f"{found.key} is {_state(charge)}")

    async def _ask_again(self, found: Discrepancy) -> Repair:
        ours = self._payments[found.payment_id]
        if ours.amount is not None:
            money = money_pb2.Money(minor_units=ours.amount.minor_units, currency_code=ours.amount.currency)
            request = acquirer.ChargeRequest(key=ours.key, card=ours.card, amount=money, reference=ours.payment_id)
            charge = (await self._desk.change("acquirer", "Charge", request, ours.key)).message.charge
            if charge.state == acquirer.CHARGE_STATE_CHARGED:
                return Repair(found, True, f"{ours.key} is CHARGED")
        return await self._reverse(found)

    async def _reverse(self, found: Discrepancy) -> Repair:
        key = f"{self._run}:{found.payment_id}"
        request = payment.ReverseRequest(request_id=key, payment_id=found.payment_id, reason=_REASON)
        await self._desk.change("payment", "Reverse", request, key)
        return await self._ended(found, payment.PAYMENT_STATE_REVERSED)

    async def _ask_now(self, found: Discrepancy) -> Repair:
        request = payment.NotifyAcquirerRequest(key=found.key, outcome=payment.ACQUIRER_OUTCOME_CHARGED)
        await self._desk.change("payment", "NotifyAcquirer", request, found.key)
        return await self._ended(found)

    async def _wait(self, found: Discrepancy) -> Repair:
        return Repair(found, False, "the outbox of the payment service tells it; look again later")

    async def _look(self, found: Discrepancy) -> Repair:
        return Repair(found, False, "our own books disagree with our payment")

    async def _ended(self, found: Discrepancy, wanted: payment.PaymentState.ValueType | None = None) -> Repair:
        """Waits until the payment has come to its end.

        Args:
            wanted: In this state; None: in any.
        """
        request = payment.GetPaymentRequest(payment_id=found.payment_id)
        until_s = self._clock.monotonic_s() + self._patience_s
        while True:
            now = (await self._desk.read("payment", "GetPayment", request)).payment
            ended = now.state not in _OPEN
            if ended or self._clock.monotonic_s() >= until_s:
                state = payment.PaymentState.Name(now.state).removeprefix("PAYMENT_STATE_")
                return Repair(found, ended and wanted in (None, now.state), f"{found.payment_id} is {state}")
            await asyncio.sleep(_LOOK_S)


def _state(charge: acquirer.Charge) -> str:
    return acquirer.ChargeState.Name(charge.state).removeprefix("CHARGE_STATE_")
