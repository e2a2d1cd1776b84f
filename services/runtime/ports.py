"""What the operations of every service need from outside. Adapters: `grpc/failpoints.py`."""

from __future__ import annotations

from typing import Protocol

from services.runtime.grpc.context import Call


class Failpoints(Protocol):
    """Named moments at which a test may interfere."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Pass the failpoint `name`, about `subjects`.

        Args:
            call: The call whose reply a DROP_REPLY would lose; None: no caller waits for one.
        """
        ...
