"""What a merchant can ask of the bank.

A request is written into the log as it came in before anything else happens; the decision, the key and the decision's
entry in the log are one commit; the merchant is told afterwards, in the background, and if that fails it is not told.

Failpoints passed: `accepted` before a decision, `charged` and `refunded` after those of Charge and ReverseByKey.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.acquirer import model
from services.acquirer.faults import Faults
from services.acquirer.model import Charge, ChargeState, Payload, charge_not_found
from services.kernel.clock import Clock
from services.runtime.grpc.context import Call

#: Words of the log besides the states.
RECEIVED, REPEATED, REFUSED = "RECEIVED", "REPEATED", "REFUSED"


@dataclass(frozen=True, slots=True)
class Request:
    """A request, as the log has it.

    Args:
        caller: From the token.
        payload: None: the request names none.
        at_ms: Unix milliseconds.
    """

    method: str
    caller: str
    key: str
    payload: Payload | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log: what was received, or what was decided."""

    number: int
    request: Request
    word: str


def moved_by(request: Request, word: str, decided: Charge) -> Payload | None:
    """What the entry of a decision shows as its payload: of a refund, which names only its key, what it moved."""
    return decided.payload if word == ChargeState.REFUNDED else request.payload


#: Says how a key stands after a request, from how it stood; see `model.py`.
Decide = Callable[[Charge | None], Charge]


class ChargeStore(Protocol):
    """The bank's memory. Every method is one whole step: all of it happens, or none."""

    async def receive(self, request: Request) -> None:
        """Writes a request into the log."""
        ...

    async def decide(self, request: Request, decide: Decide) -> Charge:
        """Decides on a key under its lock, and writes the key and the entry in the log.

        Raises:
            KeyMismatch: As `decide`; that is in the log, too.
        """
        ...

    async def find(self, key: str) -> Charge | None:
        """A key as it stands; None: it was never decided on."""
        ...

    async def statement(self, *, after: int, limit: int) -> list[Charge]:
        """Keys by number, from behind the number `after`."""
        ...

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> list[Entry]:
        """Entries by number, rising or falling, from behind the number `after`; of one key, or if it is empty of all.

        Args:
            after: None: from the start.
        """
        ...


class Notices(Protocol):
    """How merchants are told; see `peers.py`."""

    def send(self, address: str, charge: Charge, *, times: int) -> None:
        """Tells the merchant at `address` in the background; returns at once."""
        ...


class Failpoints(Protocol):
    """Named moments at which a test may interfere."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Passes the failpoint `name`, about `subjects`."""
        ...


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
        """Charges a card.

        Raises:
            KeyMismatch: The key stands for another payload.
        """
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
        """Undoes a key, whatever it stands for or will be asked for."""
        request = await self._receive(call, "ReverseByKey", key, None)
        await self._faults.before("ReverseByKey", key)
        await self._failpoints.hit("accepted", call, key)
        now_ms = self._clock.now_ms()
        decided = await self._store.decide(request, lambda standing: model.reverse(standing, key, now_ms))
        await self._failpoints.hit("refunded", call, key)
        await self._faults.after("ReverseByKey", call, key)
        return decided

    async def find(self, call: Call, key: str) -> Charge:
        """What became of a key.

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
        """A page of the statement."""
        return await self._store.statement(after=after, limit=limit)

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> Sequence[Entry]:
        """A page of the log."""
        return await self._store.log(after=after, limit=limit, key=key, newest_first=newest_first)

    async def _receive(self, call: Call, method: str, key: str, payload: Payload | None) -> Request:
        request = Request(method, call.principal.name, key, payload, self._clock.now_ms())
        await self._store.receive(request)
        return request
