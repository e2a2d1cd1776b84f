"""The workflow of a settle. The worker runs it in Temporal's sandbox, so it imports little, and no database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

#: A charge may take five seconds. An activity without an answer for longer is run again, perhaps by another worker.
_ACTIVITY_S = timedelta(seconds=6)


@dataclass
class Settlement:
    """What is settled, by which payment."""

    order_id: str
    payment_id: str
    card: str = ""
    amount_minor: int = 0


@workflow.defn(name="settle")
class SettleOrder:
    """Settle an order by three activities; with a card, by four."""

    @workflow.run
    async def run(self, settlement: Settlement) -> Settlement:
        """Return the settlement with the order's amount."""
        settlement.amount_minor = await self._do("claim", settlement)
        if settlement.card:
            try:
                await self._do("charge", settlement)
            except ActivityError:
                await self._do("release", settlement)
                raise
        await self._do("post", settlement)
        await self._do("complete", settlement)
        return settlement

    async def _do(self, activity: str, settlement: Settlement) -> int:
        amount_minor: int = await workflow.execute_activity(
            activity, settlement, start_to_close_timeout=_ACTIVITY_S, result_type=int
        )
        return amount_minor
