"""What the operations of every service need from outside. Adapters: `grpc/failpoints.py`,
`database/idempotency_table.py`."""

from __future__ import annotations

from typing import Protocol

from services.kernel.idempotency import Answer, KeyedRequest, StoredResponse
from services.runtime.grpc.context import Call


class Failpoints(Protocol):
    """Named moments at which a test may interfere."""

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Pass the failpoint `name`, about `subjects`.

        Args:
            call: The call whose reply a DROP_REPLY would lose; None: no caller waits for one.
        """
        ...


class _NoFailpoints:
    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        """Pass the failpoint; nothing can be armed."""


#: Of a store that is used without a server.
NO_FAILPOINTS: Failpoints = _NoFailpoints()


class AnswerStore(Protocol):
    """What a store of requests that are executed in one transaction does with their answers."""

    async def answer(self, request: KeyedRequest, response: StoredResponse) -> Answer:
        """Store the response to a request that changes nothing.

        Raises:
            KeyMismatch, RequestInProgress: As `kernel.idempotency.decide`.
        """
        ...

    async def answered(self, request: KeyedRequest) -> Answer | None:
        """Return the stored answer to a request id that was used before; None: it was not.

        Raises:
            KeyMismatch: It was used with another payload.
        """
        ...
