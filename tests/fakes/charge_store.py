"""The bank's memory in memory: what `SqlChargeStore` promises, without a database."""

from __future__ import annotations

from dataclasses import replace

from services.acquirer.model import RECEIVED, REFUSED, REPEATED, Charge, LogEntry, LoggedRequest, moved_by
from services.acquirer.ports import ChargeStore, Decide
from services.kernel.errors import KeyMismatch


class FakeChargeStore(ChargeStore):
    """Never waits, so each step is whole by itself."""

    def __init__(self) -> None:
        self.charges: dict[str, Charge] = {}
        self.entries: list[LogEntry] = []

    async def receive(self, request: LoggedRequest) -> None:
        self._write(request, RECEIVED)

    async def decide(self, request: LoggedRequest, decide: Decide) -> Charge:
        standing = self.charges.get(request.key)
        try:
            decided = decide(standing)
        except KeyMismatch:
            self._write(request, REFUSED)
            raise
        word = REPEATED if decided is standing else decided.state
        number = self._write(replace(request, payload=moved_by(request, word, decided)), word)
        self.charges[request.key] = replace(decided, number=decided.number or number)
        return self.charges[request.key]

    async def find(self, key: str) -> Charge | None:
        return self.charges.get(key)

    async def statement(self, *, after: int, limit: int) -> list[Charge]:
        found = sorted(self.charges.values(), key=lambda charge: charge.number)
        return [charge for charge in found if charge.number > after][:limit]

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> list[LogEntry]:
        found = [entry for entry in self.entries if key in ("", entry.request.key)]
        if newest_first:
            return [entry for entry in reversed(found) if after is None or entry.number < after][:limit]
        return [entry for entry in found if after is None or entry.number > after][:limit]

    def _write(self, request: LoggedRequest, word: str) -> int:
        number = len(self.entries) + 1
        self.entries.append(LogEntry(number, request, word))
        return number
