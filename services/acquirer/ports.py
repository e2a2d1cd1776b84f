"""What the operations need from outside. Adapters: `store.py`, `peers.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from services.acquirer.model import Charge, LogEntry, LoggedRequest

#: Returns the state of a key after a request, from the state before; see `model.py`.
Decide = Callable[[Charge | None], Charge]


class ChargeStore(Protocol):
    """The acquirer's keys and log. Every method is one whole step: all of it happens, or none."""

    async def receive(self, request: LoggedRequest) -> None:
        """Write a request into the log."""
        ...

    async def decide(self, request: LoggedRequest, decide: Decide) -> Charge:
        """Decide on a key under its lock, and write the key and its log entry.

        Raises:
            KeyMismatch: As `decide`; that is in the log, too.
        """
        ...

    async def find(self, key: str) -> Charge | None:
        """Return a key as it stands; None: it was never decided on."""
        ...

    async def statement(self, *, after: int, limit: int) -> list[Charge]:
        """Return keys by number, from behind the number `after`."""
        ...

    async def log(self, *, after: int | None, limit: int, key: str, newest_first: bool = False) -> list[LogEntry]:
        """Return log entries by number, rising or falling, from behind the number `after`; an empty key means all keys.

        Args:
            after: None: from the start.
        """
        ...


class Notices(Protocol):
    """How merchants are notified; see `peers.py`."""

    def send(self, address: str, charge: Charge, *, times: int) -> None:
        """Notify the merchant at `address` in the background; return at once."""
        ...
