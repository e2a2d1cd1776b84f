"""A trial: a stack with some guards off and a recorded history, in which scenarios run, and which the checker judges.

Every call is in one history, and the verdict is the checker's alone, from that history, the databases and the
acquirer's own log. A trial may see one scenario after the other as long as its books are right.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from countinghouse.order.v1 import order_pb2
from services.chaos.acquirer_log import read_acquirer_log
from services.checker.findings import Check, Findings
from services.checker.history import HistoryWriter, RecordedCall, read_history
from services.checker.registry import run_checks
from services.devstack.stack import Stack, StackOptions
from services.kernel.clock import Clock
from services.testkit.client import CURRENCY
from services.testkit.harness import Harness

#: Nothing may stay unresolved longer than this.
REST_WITHIN_S: Final = 15.0
#: So long that a busy machine loses no session by chance; a scenario that waits for the end of one need not wait long.
_SESSION_TIMEOUT_S: Final = 4.0
_SETTINGS: Final[Mapping[str, object]] = {
    "lease_s": 2.0,
    "recovery_interval_s": 0.3,
    "drain_s": 1.0,
    "currencies": CURRENCY,
    "acquirer_timeout_s": 1.0,
}
_START_WITHIN_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A running stack and the history of the calls to it."""

    harness: Harness
    history: HistoryWriter
    path: Path

    @property
    def calls(self) -> int:
        """Return how many calls were made."""
        self.history.flush()
        return len(read_history(self.path).calls)

    async def judge(self, *, undisturbed_since: int | None) -> list[Check]:
        """Wait until everything is at rest, in the time it may take, and run the checks.

        Args:
            undisturbed_since: Since so many calls no process has died or frozen, so that no clerk may lose an order;
                None: one has.
        """
        harness = self.harness
        reading = await harness.settled_snapshot(REST_WITHIN_S)
        left = reading.snapshot.unfinished()
        if not left and not reading.at_rest:
            left = ["the books still changed"]
        for order_id in harness.orders:
            await harness.accountant.call(order_pb2.GetOrderRequest(order_id=order_id))
        dialer, token = harness.stack.dialer(outside=True), harness.operator.identity.outside
        log = await read_acquirer_log(dialer, harness.stack.acquirer, token)
        self.history.flush()
        # All calls are answered and this is their recorder: nothing is missing at the end.
        history = replace(read_history(self.path), whole=True)
        checks = [Findings(len(reading.snapshot.payments), left).check(f"at rest within {REST_WITHIN_S:g} s")]
        if undisturbed_since is not None:
            found = no_clerk_loses_an_order(history.calls[undisturbed_since:])
            checks.append(found.check("no clerk loses an order"))
        checks += await asyncio.to_thread(
            run_checks, reading.snapshot, history=history, acquirer=log, now_ms=reading.at_ms
        )
        return checks


def no_clerk_loses_an_order(operations: tuple[RecordedCall, ...]) -> Findings:
    """Check that a clerk who holds an order keeps it while no process dies or freezes: the others wait, or give up.

    That is what the order's lock promises. The fence, too, keeps an order from being settled twice, but by refusing the
    clerk who was there first.
    """
    pressed = [operation for operation in operations if operation.kind in ("Settle", "Pay", "Reverse")]
    lost = ("STALE_FENCE", "ORDER_LOCK_LOST")
    return Findings(
        len(pressed),
        (
            f"{operation.process} lost {operation.arguments.order_id} ({operation.answer.reason}), "
            "and had neither died nor frozen"
            for operation in pressed
            if operation.answer.reason in lost
        ),
    )


@asynccontextmanager
async def open_trial(
    folder: Path, guards_off: tuple[str, ...], replicas: Mapping[str, int], seed: int, clock: Clock
) -> AsyncIterator[Trial]:
    """Start a stack with a recorded history; stop it in the end.

    Args:
        folder: Where its data and its history go; it is there, and empty.
        replicas: Instances of each service; 1 unless named.

    Raises:
        CountinghouseError: The stack does not start.
    """
    options = StackOptions(
        data=folder / "data",
        replicas=replicas,
        guards_off=guards_off,
        failpoints=True,
        session_timeout_s=_SESSION_TIMEOUT_S,
        settings=_SETTINGS,
        start_timeout_s=_START_WITHIN_S,
    )
    path = folder / "history.jsonl"
    async with Stack(options, clock=clock) as stack:
        with HistoryWriter(path, clock, seed=seed, facts={"guards_off": ",".join(guards_off)}) as history:
            async with Harness(stack, clock, history=history, seed=seed, accountant="wu") as harness:
                yield Trial(harness, history, path)
