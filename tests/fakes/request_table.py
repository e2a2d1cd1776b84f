"""The table of tickets and requests in memory: the rules of `kernel/idempotency.py` on a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from services.kernel.errors import KeyMismatch, NotFound
from services.kernel.guards import Guards
from services.kernel.idempotency import (
    Answer,
    Decision,
    Execution,
    KeyedRequest,
    Lease,
    RequestKey,
    RequestRow,
    RequestState,
    StoredResponse,
    decide,
)
from services.kernel.principal import Principal

_TTL_MS = 24 * 3600 * 1000


class FakeRequestTable:
    """What `Requests` of `runtime/database/idempotency_table.py` does, all guards on; each move is whole by itself."""

    def __init__(self) -> None:
        self.rows: dict[RequestKey, RequestRow] = {}
        self._order_ids: dict[RequestKey, str] = {}
        self._issued_at_ms: dict[RequestKey, int] = {}

    def issue(self, key: RequestKey, *, now_ms: int, expires_at_ms: int, order_id: str) -> None:
        if key not in self.rows:
            self.rows[key] = RequestRow(key, RequestState.ISSUED, "", 0, 0, expires_at_ms, None)
            self._order_ids[key] = order_id
            self._issued_at_ms[key] = now_ms

    def begin(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        if key in self.rows:
            return self.consume(key, fingerprint, lease)
        self._order_ids[key] = ""
        self.rows[key] = RequestRow(
            key, RequestState.IN_PROGRESS, fingerprint, 1, lease.until_ms, lease.now_ms + _TTL_MS, None
        )
        return Execution(key, 1, first=True, fresh=True)

    def consume(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        row = self.rows.get(key)
        if row is None:
            raise NotFound("TICKET_NOT_FOUND", f"there is no ticket {key.key}", metadata={"key": key.key})
        if decide(row, fingerprint, lease.now_ms) is Decision.REPLAY:
            assert row.response is not None
            return row.response
        return self._started(replace(row, fingerprint=fingerprint), lease, first=row.state is RequestState.ISSUED)

    def take_over(self, key: RequestKey, attempt: int, lease: Lease) -> Execution | None:
        row = self._held(key, attempt)
        if row is None or row.lease_until_ms > lease.now_ms:
            return None
        return self._started(row, lease, first=False)

    def finish(self, key: RequestKey, response: StoredResponse, *, now_ms: int) -> bool:
        row = self.rows.get(key)
        if row is None or row.state not in {RequestState.ISSUED, RequestState.IN_PROGRESS}:
            return False
        self.rows[key] = replace(row, state=RequestState.DONE, response=response)
        return True

    def renew(self, held: Sequence[Execution], *, until_ms: int) -> None:
        for execution in held:
            row = self._held(execution.key, execution.attempt)
            if row is not None:
                self.rows[execution.key] = replace(row, lease_until_ms=until_ms)

    def give_back(self, key: RequestKey, attempt: int, *, now_ms: int) -> bool:
        row = self._held(key, attempt)
        if row is None:
            return False
        self.rows[key] = replace(row, state=RequestState.ISSUED, lease_until_ms=0)
        return True

    def reopen(self, key: RequestKey, *, now_ms: int) -> None:
        row = self.rows.get(key)
        if row is not None and row.state is RequestState.ISSUED:
            self.rows[key] = replace(row, state=RequestState.IN_PROGRESS, lease_until_ms=now_ms)

    def expire(self, *, now_ms: int) -> list[RequestKey]:
        ended = [row for row in self.rows.values() if row.state is RequestState.ISSUED and row.expires_at_ms <= now_ms]
        for row in ended:
            self.rows[row.key] = replace(row, state=RequestState.EXPIRED)
        return [row.key for row in ended]

    def unused(self, caller: Principal, method: str, *, now_ms: int) -> int:
        return sum(
            row.state in (RequestState.ISSUED, RequestState.EXPIRED)
            and (self._issued_at_ms.get(row.key, now_ms) > now_ms - _TTL_MS or row.expires_at_ms > now_ms)
            for row in self.rows.values()
            if (row.key.caller, row.key.method) == (caller, method)
        )

    def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]:
        rows = [
            row for row in self.rows.values() if row.state is RequestState.IN_PROGRESS and row.lease_until_ms <= now_ms
        ]
        return sorted(rows, key=lambda row: row.lease_until_ms)[:limit]

    def find(self, key: RequestKey) -> RequestRow | None:
        return self.rows.get(key)

    def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        row = self.rows.get(key)
        if row is None or row.response is None:
            return None
        decide(row, fingerprint, now_ms)
        return row.response

    def order_of(self, key: RequestKey) -> str | None:
        return self._order_ids.get(key)

    def _held(self, key: RequestKey, attempt: int) -> RequestRow | None:
        row = self.rows.get(key)
        return row if row and (row.state, row.attempt) == (RequestState.IN_PROGRESS, attempt) else None

    def _started(self, row: RequestRow, lease: Lease, *, first: bool) -> Execution:
        attempt = row.attempt + 1
        self.rows[row.key] = replace(
            row, state=RequestState.IN_PROGRESS, attempt=attempt, lease_until_ms=lease.until_ms
        )
        return Execution(row.key, attempt, first=first)


class FakeAnswers:
    """What `Requests.answer` and `answered` do of `runtime/database/idempotency_table.py`.

    Args:
        guards: With `ticket` off no key is ever replayed.
    """

    def __init__(self, guards: Guards) -> None:
        self._guards = guards
        self._answers: dict[RequestKey, tuple[str, StoredResponse]] = {}

    @property
    def used(self) -> bool:
        """Whether any request was answered."""
        return bool(self._answers)

    def answer(self, request: KeyedRequest, response: StoredResponse) -> Answer:
        """Keep the response, unless there is one."""
        before = self.answered(request)
        if before is not None:
            return before
        self._answers[request.key] = (request.fingerprint, response)
        return Answer(response)

    def once(self, request: KeyedRequest, response: StoredResponse, effect: Callable[[], bool]) -> Answer | None:
        """Have the effect and keep the response, unless there is one; None: there was no effect."""
        before = self.answered(request)
        if before is None and not effect():
            return None
        return self.answer(request, response)

    def answered(self, request: KeyedRequest) -> Answer | None:
        if request.key not in self._answers or not self._guards.ticket:
            return None
        fingerprint, response = self._answers[request.key]
        if fingerprint != request.fingerprint:
            raise KeyMismatch(request.key.key)
        return Answer(response, replayed=True)
