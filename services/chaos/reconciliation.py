"""Reconcile at the end of a run, as an accountant would: by what the acquirer and the services themselves answer.

The checker reads databases; this calls the running services, as `countinghouse reconcile` does. Every open discrepancy
must be a payment that waits for people, and each control total must come out even but for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.message import Message

from services.checker.findings import Check, Findings
from services.kernel.errors import CountinghouseError
from services.reconcile.matching import Discrepancy
from services.reconcile.reading import Reconciliation, find
from services.testkit.client import RecordingClient

NAME: Final = "reconciled by balance"
#: Between two readings, where something differs at the first.
_SETTLE_S: Final = 1.0
_TIMEOUT_S: Final = 10.0


class _ClientReader:
    """Reads from the first instance of each service of a target."""

    def __init__(self, client: RecordingClient) -> None:
        self._client = client

    async def read(self, service: str, _method: str, request: Message) -> Any:
        """See `services.reconcile.reading.Reader`."""
        return await self._client.ask_until_ok(request, at=f"{service}-1", timeout_s=_TIMEOUT_S)


async def reconcile(accountant: RecordingClient) -> Check:
    """Reconcile a target that is at rest; undecided if a service does not answer."""
    try:
        found = await find(_ClientReader(accountant), _SETTLE_S)
    except CountinghouseError as error:
        return Findings(0, undecided=(f"{error.reason}: {error.message}",)).check(NAME)
    return balanced(found).check(NAME)


def balanced(found: Reconciliation) -> Findings:
    """Find what is open but no payment that waits for people, and each account that differs from its counterpart."""
    sides = found.sides
    waiting = {payment.payment_id for payment in sides.ours if payment.attention}
    open_ = [each for each in found.compared.discrepancies if each.payment_id not in waiting]

    def violations() -> Iterator[str]:
        yield from map(_words, open_)
        for total in found.compared.totals:
            if total.difference and (open_ or total.difference != total.explained):
                yield f"{total.account_id} is {total.booked}, and the acquirer holds {total.held}"

    return Findings(len(sides.theirs) + len(sides.ours) + len(sides.journals) + len(sides.orders), violations())


def _words(found: Discrepancy) -> str:
    about = found.key or found.journal_id or found.order_id or found.payment_id or found.account_id
    return f"{found.kind}: {about}: theirs {found.theirs or 'nothing'}, ours {found.ours or 'nothing'}"
