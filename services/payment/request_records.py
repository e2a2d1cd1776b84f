"""The steps on the table of tickets and requests alone, each as one transaction; `store.py` has those with a payment.

`runtime/database/idempotency_table.py` has the moves and the guards `ticket` and `recovery`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import ColumnElement, and_, bindparam, exists, literal, not_, select, update

from services.kernel.errors import NotFound, RequestInProgress
from services.kernel.guards import Guards
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow, StoredResponse
from services.payment.model import PAY, REVERSE, UNANSWERED, check_quota
from services.payment.ports import RequestRecords
from services.payment.schema import PAYMENTS, REQUESTS
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import Requests, is_named, named, to_request
from services.runtime.database.transaction import Transaction

_FIND = select(REQUESTS).where(is_named(REQUESTS))
_NAME_TICKET = update(REQUESTS).where(is_named(REQUESTS)).values(ticket_key=bindparam("ticket"))


def _not_resting() -> tuple[ColumnElement[bool], ...]:
    """Return the conditions that leave out executions whose payment rests until the acquirer is asked again."""
    columns, request = PAYMENTS.c, REQUESTS.c
    own = and_(
        columns.request_caller == request.caller,
        columns.request_role == request.caller_role,
        columns.request_method == request.method,
        columns.request_key == request.key,
    )
    undoing = and_(
        columns.reversal_caller == request.caller,
        columns.reversal_role == request.caller_role,
        columns.reversal_key == request.key,
    )
    states = [literal(str(state)) for state in UNANSWERED]
    resting = and_(columns.ask_at_ms > bindparam("now_ms"), columns.state.in_(states))
    return (
        not_(exists().where(own, resting)),
        not_(and_(request.method == REVERSE, exists().where(undoing, resting))),
    )


class SqlRequestRecords(RequestRecords):
    """`ports.RequestRecords` on SQLite or PostgreSQL.

    Args:
        guards: Which guards are on.
    """

    def __init__(self, database: Database, guards: Guards) -> None:
        self._database = database
        self._requests = Requests(REQUESTS, guards, *_not_resting())

    async def issue(
        self,
        request: RequestKey,
        fingerprint: str,
        ticket: RequestKey,
        *,
        lease: Lease,
        expires_at_ms: int,
        order_id: str,
        answer: StoredResponse,
        quota: int | None,
    ) -> StoredResponse | None:
        """Make a ticket and store the answer to the request for it; return the stored answer of an earlier one.

        Args:
            quota: How many tickets the caller may have open; None: any number.

        Raises:
            ResourceExhausted: TICKET_QUOTA.
        """

        async def step(tx: Transaction) -> StoredResponse | None:
            execution = await self._requests.begin(tx, request, fingerprint, lease)
            if isinstance(execution, StoredResponse):
                return execution
            if quota is not None:
                check_quota(await self._requests.unused(tx, ticket.caller, PAY, now_ms=lease.now_ms), quota)
            await self._requests.issue(tx, ticket, now_ms=lease.now_ms, expires_at_ms=expires_at_ms, order_id=order_id)
            await tx.execute(_NAME_TICKET, named(request) | {"ticket": ticket.key})
            await self._requests.finish(tx, request, answer, now_ms=lease.now_ms)
            return None

        return await self._database.run(step)

    async def ticket_order(self, ticket: RequestKey) -> str:
        """Return the order that a ticket names; empty: none.

        Raises:
            NotFound: TICKET_NOT_FOUND.
        """
        order_id = await self._database.read(lambda tx: self._requests.order_of(tx, ticket))
        if order_id is None:
            raise NotFound("TICKET_NOT_FOUND", f"there is no ticket {ticket.key} of yours; fetch one with IssueTicket")
        return order_id

    async def begin(self, key: RequestKey, fingerprint: str, lease: Lease) -> Execution | StoredResponse:
        """Start a request that makes no payment of its own: to reverse one, or to park it."""
        return await self._database.run(lambda tx: self._requests.begin(tx, key, fingerprint, lease))

    async def finish(self, key: RequestKey, answer: StoredResponse, *, now_ms: int) -> None:
        """Store the answer to a request that changes no payment."""
        await self._database.run(lambda tx: self._requests.finish(tx, key, answer, now_ms=now_ms))

    async def response_to(self, key: RequestKey) -> StoredResponse:
        """Return what a finished request was answered with.

        Raises:
            RequestInProgress: It is not finished.
        """
        row = (await self._database.select(_FIND, named(key))).one_or_none()
        response = None if row is None else to_request(row).response
        if response is None:
            raise RequestInProgress(key.key)
        return response

    async def answered(self, key: RequestKey, fingerprint: str, *, now_ms: int) -> StoredResponse | None:
        """Return what a request was answered with; None: it was not, or the guard `ticket` is off.

        Raises:
            KeyMismatch: It was used with another payload.
        """
        return await self._database.read(lambda tx: self._requests.answered(tx, key, fingerprint, now_ms=now_ms))

    async def give_back(self, execution: Execution, *, now_ms: int) -> bool:
        """Let the same request run again, since nothing was done under it; False: this execution has it no more."""
        return await self._database.run(
            lambda tx: self._requests.give_back(tx, execution.key, execution.attempt, now_ms=now_ms)
        )

    async def renew(self, held: Sequence[Execution], *, until_ms: int) -> None:
        """Move the end of the leases of running executions; a moment in the past lets others carry on at once."""
        await self._database.run(lambda tx: self._requests.renew(tx, held, until_ms=until_ms))

    async def overdue(self, *, now_ms: int, limit: int) -> list[RequestRow]:
        """Return executions whose lease has passed, but for those whose payment is not to be asked about yet."""
        return await self._database.read(lambda tx: self._requests.overdue(tx, now_ms=now_ms, limit=limit))

    async def take_over(self, row: RequestRow, lease: Lease) -> Execution | None:
        """Carry on an execution; None: another execution does."""
        return await self._database.run(lambda tx: self._requests.take_over(tx, row.key, row.attempt, lease))
