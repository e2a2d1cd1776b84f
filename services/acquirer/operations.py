"""The use cases of a merchant at the acquirer.

A request is written into the log as it came in before anything else happens; the decision, the key and the decision's
entry in the log are one commit; the merchant is notified afterwards, in the background and at most once.

Failpoints passed: `accepted` before a decision, `charged` and `refunded` after those of Charge and ReverseByKey.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.acquirer import model
from services.acquirer.faults import Faults
from services.acquirer.model import Charge, LogEntry, LoggedRequest, Payload, charge_not_found
from services.acquirer.ports import ChargeStore, Notices
from services.kernel.clock import Clock
from services.runtime.grpc.context import Call
from services.runtime.ports import Failpoints


class AcquirerOperations:
    """The use cases."""

    def __init__(
        self, store: ChargeStore, notices: Notices, faults: Faults, failpoints: Failpoints, clock: Clock
    ) -> None:
        self._store = store
        self._notices = notices
        self._faults = faults
        self._failpoints = failpoints
        self._clock = clock

    async def charge(self, call: Call, key: str, payload: Payload, notify_address: str) -> Charge:
        """Charge a card.

        Raises:
            KeyMismatch: The key stands for another payload.
        """
        call.concerns(payment_id=payload.reference)
        request = await self._receive(call, "Charge", key, payload)
        subjects = (key, payload.reference, payload.card)
        await self._faults.before("Charge", *subjects)
        await self._failpoints.hit("accepted", call, *subjects)
        now_ms = self._clock.now_ms()
        decided = await self._store.decide(request, lambda standing: model.charge(standing, key, payload, now_ms))
        if notify_address:
            self._notices.send(notify_address, decided, times=self._faults.notices(*subjects))
        await self._failpoints.hit("charged", call, *subjects)
        await self._faults.after("Charge", call, *subjects)
        return decided

    async def reverse(self, call: Call, key: str) -> Charge:
        """Reverse a key: refund its charge, or refuse one that comes later."""
        request = await self._receive(call, "ReverseByKey", key, None)
        await self._faults.before("ReverseByKey", key)
        await self._failpoints.hit("accepted", call, key)
        now_ms = self._clock.now_ms()
        decided = await self._store.decide(request, lambda standing: model.reverse(standing, key, now_ms))
        await self._failpoints.hit("refunded", call, key)
        await self._faults.after("ReverseByKey", call, key)
        return decided

    async def find(self, call: Call, key: str) -> Charge:
        """Return what became of a key.

        Raises:
            NotFound: CHARGE_NOT_FOUND.
        """
        await self._receive(call, "GetCharge", key, None)
        await self._faults.before("GetCharge", key)
        found = await self._store.find(key)
        if found is None:
            raise charge_not_found(key)
        return found

    async def statement(self, *, after: int, limit: int) -> Sequence[Charge]:
        """Return a page of the statement."""
        return await self._store.statement(after=after, limit=limit)

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> Sequence[LogEntry]:
        """Return a page of the log."""
        return await self._store.log(after=after, limit=limit, key=key, newest_first=newest_first)

    async def _receive(self, call: Call, method: str, key: str, payload: Payload | None) -> LoggedRequest:
        request = LoggedRequest(method, call.principal.name, key, payload, self._clock.now_ms())
        await self._store.receive(request)
        return request
