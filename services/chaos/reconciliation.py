"""Reconcile at the end of a run, as an accountant would: by what the acquirer and the services themselves answer.

The checker reads databases; this calls the running services, as `countinghouse reconcile` does. Every open discrepancy
must be a payment that waits for people, and each control total must come out even but for those.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from coordination.grpc_channel import open_channel
from countinghouse.acquirer.v1 import acquirer_pb2_grpc
from countinghouse.ledger.v1 import ledger_pb2_grpc
from countinghouse.order.v1 import order_pb2_grpc
from countinghouse.payment.v1 import payment_pb2_grpc
from services.chaos.calls import Person
from services.chaos.targets.target import Target
from services.checker.findings import Check, Findings
from services.kernel.errors import CountinghouseError
from services.reconcile.matching import Discrepancy
from services.reconcile.reading import Reconciliation, find
from services.runtime.grpc import status

NAME: Final = "reconciled by balance"
#: Between two readings, where something differs at the first.
_SETTLE_S: Final = 1.0
_TIMEOUT_S: Final = 10.0
_STUBS: Final[dict[str, Any]] = {
    "order": order_pb2_grpc.OrderServiceStub,
    "payment": payment_pb2_grpc.PaymentServiceStub,
    "ledger": ledger_pb2_grpc.LedgerServiceStub,
    "acquirer": acquirer_pb2_grpc.AcquirerServiceStub,
}


class _TargetReader:
    """Reads from the first instance of each service."""

    def __init__(self, target: Target, person: Person, resources: AsyncExitStack) -> None:
        self._target = target
        self._metadata = (("authorization", f"Bearer {person.token}"),)
        self._resources = resources
        self._stubs: dict[str, Any] = {}

    async def read(self, service: str, method: str, request: Message) -> Any:
        """See `services.reconcile.reading.Reader`."""
        if service not in self._stubs:
            channel = await self._resources.enter_async_context(open_channel(self._target.address(f"{service}-1")))
            self._stubs[service] = _STUBS[service](channel)
        call = getattr(self._stubs[service], method)
        try:
            return await call(request, timeout=_TIMEOUT_S, metadata=self._metadata, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error


async def reconcile(target: Target, accountant: Person) -> Check:
    """Reconcile a target that is at rest; undecided if a service does not answer."""
    async with AsyncExitStack() as resources:
        try:
            found = await find(_TargetReader(target, accountant, resources), _SETTLE_S)
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
