"""The table of tickets and requests, the same in every service: the moves of `kernel/idempotency.py` as SQL.

Every move is one conditional statement whose row count says whether it was made; none looks first and writes then.

| move | function |
|---|---|
| (nothing) → ISSUED | `issue` |
| (nothing) → IN_PROGRESS, ISSUED → IN_PROGRESS, take-over | `begin` |
| ISSUED → IN_PROGRESS, take-over, for a key that must be there (a ticket) | `consume` |
| take-over by the worker | `take_over` |
| IN_PROGRESS → DONE | `finish` |
| IN_PROGRESS → ISSUED | `give_back` |
| ISSUED → EXPIRED | `expire` |

A request that is executed in one transaction makes its first and its last move in `answer`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import Insert, ReturningInsert, ReturningUpdate

from services.kernel.errors import CountinghouseError, NotFound, RequestInProgress
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
from services.kernel.principal import Principal, Role
from services.runtime.database.database import Database
from services.runtime.database.transaction import Parameters, Rows, Transaction

_T = TypeVar("_T")

#: How long a request id may be executed while nothing was done under it. How long it is kept then: `retention.py`.
REQUEST_TTL_MS = 24 * 3600 * 1000


async def insert_if_absent(tx: Transaction, table: Table, values: dict[str, Any]) -> bool:
    """Insert a row unless one of its unique keys is taken; return whether it did. Waits for a rival's commit first."""
    return (await tx.execute(_insert_or_not(table, postgresql_syntax=tx.is_postgresql), values)).rowcount == 1


async def insert_each_if_absent(tx: Transaction, table: Table, rows: Sequence[Parameters]) -> Rows:
    """Insert each row unless one of its unique keys is taken; return the primary keys of those that were inserted.

    Waits for rivals' commits as `insert_if_absent`.
    """
    return await tx.execute_each(_insert_or_not_returning(table, postgresql_syntax=tx.is_postgresql), rows)


@cache
def _insert_or_not(table: Table, *, postgresql_syntax: bool) -> Insert:
    """Return one statement object per table: its compiled form is looked up by it."""
    return _new_insert_or_not(table, postgresql_syntax=postgresql_syntax)


@cache
def _insert_or_not_returning(table: Table, *, postgresql_syntax: bool) -> ReturningInsert[Any]:
    # Not made from a statement that was compiled before: SQLAlchemy would remember that it returns nothing.
    insert = _new_insert_or_not(table, postgresql_syntax=postgresql_syntax)
    return insert.returning(*table.primary_key.columns)


def _new_insert_or_not(table: Table, *, postgresql_syntax: bool) -> Insert:
    insert = postgresql.insert if postgresql_syntax else sqlite.insert
    statement: Insert = insert(table).on_conflict_do_nothing()
    return statement


def request_table(metadata: MetaData, *more: Column[Any]) -> Table:
    """Return the table; the same in every service's schema.

    Args:
        more: Columns of one service.
    """
    table = Table(
        "requests",
        metadata,
        Column("caller", String(64), primary_key=True),
        Column("caller_role", String(16), primary_key=True),
        Column("method", String(32), primary_key=True),
        Column("key", String(64), primary_key=True),
        Column("state", String(16), nullable=False),
        Column("fingerprint", String(64), nullable=False),
        Column("attempt", BigInteger, nullable=False),
        Column("owner", String(64), nullable=False),
        Column("lease_until_ms", BigInteger, nullable=False),
        Column("expires_at_ms", BigInteger, nullable=False),
        Column("order_id", String(64), nullable=False),
        Column("response_ok", Boolean, nullable=True),
        Column("response", LargeBinary, nullable=True),
        Column("created_at_ms", BigInteger, nullable=False),
        Column("updated_at_ms", BigInteger, nullable=False),
        *more,
    )
    Index("requests_by_state", table.c.state, table.c.lease_until_ms)
    return table


class DecisionOverturned(Exception):
    """The rows on which a response was decided have changed since they were read."""


class Requests:
    """The moves. Each runs inside the caller's transaction.

    Args:
        guards: With `ticket` off no key is ever refused or replayed.
        overdue_if: Conditions on an execution that is overdue, besides its lease; they may use the parameter `now_ms`.
    """

    def __init__(self, table: Table, guards: Guards, *overdue_if: ColumnElement[bool]) -> None:
        self._table = table
        self._guards = guards
        columns, is_key = table.c, is_named(table)
        open_states = (RequestState.ISSUED, RequestState.IN_PROGRESS)
        self._find = select(table).where(is_key)
        self._order_of = select(columns.order_id).where(is_key)
        executing = (columns.state == RequestState.IN_PROGRESS, columns.attempt == bindparam("seen_attempt"))
        is_new = (
            columns.expires_at_ms > bindparam("now_ms"),
            columns.fingerprint.in_([literal(""), bindparam("new_fingerprint")]),
        )
        self._start_issued = _start(
            table, columns.state == RequestState.ISSUED, *(is_new if guards.ticket else ()), with_fingerprint=True
        )
        self._start_again = _start(table, with_fingerprint=True)
        has_passed = columns.lease_until_ms <= bindparam("now_ms")
        self._take_over = _start(table, *executing, has_passed)
        self._renew = update(table).where(is_key, *executing).values(lease_until_ms=bindparam("until_ms"))
        self._give_back = (
            update(table)
            .where(is_key, *executing)
            .values(state=RequestState.ISSUED, owner="", lease_until_ms=0, updated_at_ms=bindparam("now_ms"))
        )
        self._reopen = (
            update(table)
            .where(is_key, columns.state == RequestState.ISSUED)
            .values(
                state=RequestState.IN_PROGRESS, lease_until_ms=bindparam("now_ms"), updated_at_ms=bindparam("now_ms")
            )
        )
        self._overdue = (
            select(table)
            .where(
                columns.state == RequestState.IN_PROGRESS, columns.lease_until_ms <= bindparam("now_ms"), *overdue_if
            )
            .order_by(columns.lease_until_ms)
            .limit(bindparam("at_most", type_=BigInteger))
        )
        self._expire = (
            update(table)
            .where(columns.state == RequestState.ISSUED, columns.expires_at_ms <= bindparam("now_ms"))
            .values(state=RequestState.EXPIRED, updated_at_ms=bindparam("now_ms"))
            .returning(*table.primary_key.columns)
        )
        self._finish = (
            update(table)
            .where(is_key, *([columns.state.in_([literal(state) for state in open_states])] if guards.ticket else []))
            .values(
                state=RequestState.DONE,
                response_ok=bindparam("ok"),
                response=bindparam("body"),
                updated_at_ms=bindparam("now_ms"),
            )
        )

    async def issue(self, tx: Transaction, key: RequestKey, *, now_ms: int, expires_at_ms: int, order_id: str) -> None:
        """Make a key that can be used once; one that is there already stays as it is."""
        row = self._row(key, RequestState.ISSUED, "", 0, "", 0, expires_at_ms, now_ms) | {"order_id": order_id}
        await insert_if_absent(tx, self._table, row)

    async def begin(
        self, tx: Transaction, key: RequestKey, fingerprint: str, lease: Lease
    ) -> Execution | StoredResponse:
        """Start executing a request id, or return its stored answer.

        Raises:
            KeyMismatch, RequestInProgress, FailedPrecondition: As `decide`.
        """
        (begun,) = await self.begin_all(tx, [(key, fingerprint, lease)])
        if isinstance(begun, CountinghouseError):
            raise begun
        return begun

    async def begin_all(
        self, tx: Transaction, wanted: Sequence[tuple[RequestKey, str, Lease]]
    ) -> list[Execution | StoredResponse | CountinghouseError]:
        """Start executing some request ids, each named once; return of each what `begin` returns or raises."""
        rows = [
            self._row(
                key,
                RequestState.IN_PROGRESS,
                fingerprint,
                1,
                lease.owner,
                lease.until_ms,
                lease.now_ms + REQUEST_TTL_MS,
                lease.now_ms,
            )
            for key, fingerprint, lease in wanted
        ]
        inserted = {_to_key(row) for row in await insert_each_if_absent(tx, self._table, rows)}
        begun: list[Execution | StoredResponse | CountinghouseError] = []
        for key, fingerprint, lease in wanted:
            if key in inserted:
                begun.append(Execution(key, 1, first=True, fresh=True))
            else:
                begun.append(await refusal_or(self.consume(tx, key, fingerprint, lease)))
        return begun

    async def consume(
        self, tx: Transaction, key: RequestKey, fingerprint: str, lease: Lease
    ) -> Execution | StoredResponse:
        """Start executing a key that was issued, or return its stored answer.

        Raises:
            NotFound: TICKET_NOT_FOUND.
            KeyMismatch, RequestInProgress, FailedPrecondition: As `decide`.
        """
        said = named(key) | leased(lease) | {"new_fingerprint": fingerprint}
        attempt = (await tx.execute(self._start_issued, said)).scalar_one_or_none()
        if attempt is not None:
            return Execution(key, attempt, first=True)
        if not self._guards.ticket:
            attempt = (await tx.execute(self._start_again, said)).scalar_one_or_none()
            if attempt is not None:
                return Execution(key, attempt, first=False)
        row = await self.find(tx, key)
        if row is None:
            raise NotFound(
                "TICKET_NOT_FOUND",
                f"there is no ticket {key.key} of yours; fetch one with IssueTicket",
                metadata={"key": key.key},
            )
        decision = decide(row, fingerprint, lease.now_ms, take_over=self._guards.recovery)
        if decision is Decision.REPLAY and row.response is not None:
            return row.response
        execution = await self.take_over(tx, key, row.attempt, lease)
        if execution is None:  # its executor gave it back, or another took it over, between our two statements
            raise RequestInProgress(key.key)
        return execution

    async def take_over(self, tx: Transaction, key: RequestKey, attempt: int, lease: Lease) -> Execution | None:
        """Carry on an execution whose lease has passed; None: another execution did."""
        said = named(key) | leased(lease) | {"seen_attempt": attempt}
        taken = (await tx.execute(self._take_over, said)).scalar_one_or_none()
        return None if taken is None else Execution(key, taken, first=False)

    async def finish(self, tx: Transaction, key: RequestKey, response: StoredResponse, *, now_ms: int) -> bool:
        """Store the response for good; return whether this call ended the request.

        Which of two executions may end it is decided by the effect in the same transaction, not by the attempt: a
        payment that one execution began may be brought to its end by another.
        """
        return (await tx.execute(self._finish, _answered(key, response, now_ms))).rowcount == 1

    async def finish_each(self, tx: Transaction, answers: Sequence[tuple[RequestKey, StoredResponse, int]]) -> None:
        """Store some responses, each of a key at a time in Unix milliseconds, as `finish` does."""
        await tx.execute_each(self._finish, [_answered(*answer) for answer in answers])

    async def answer(
        self,
        tx: Transaction,
        request: KeyedRequest,
        response: StoredResponse,
        effect: Callable[[Transaction], Awaitable[None]] | None = None,
    ) -> Answer:
        """Have the effect and store the response to it, unless the request was answered before.

        The row is IN_PROGRESS inside this transaction only, so no other caller meets its lease.

        Args:
            response: Encoded before the transaction, so that nothing but the database is awaited in it.
            effect: Raises DecisionOverturned if `response` is not true any more; None: nothing is to be changed.

        Raises:
            DecisionOverturned: As `effect`. The caller rolls back, reads and decides again.
            KeyMismatch, RequestInProgress, FailedPrecondition: As `decide`.
        """
        (answer,) = await self.answer_each(tx, [(request, response)], effect and (lambda tx, _places: effect(tx)))
        if isinstance(answer, CountinghouseError):
            raise answer
        return answer

    async def answer_each(
        self,
        tx: Transaction,
        wanted: Sequence[tuple[KeyedRequest, StoredResponse]],
        effect: Callable[[Transaction, Sequence[int]], Awaitable[None]] | None = None,
    ) -> list[Answer | CountinghouseError]:
        """Answer some requests, each named once; return of each what `answer` returns or raises.

        Args:
            effect: Has the effects of those that were not answered before, which are given by their places.

        Raises:
            DecisionOverturned: As `effect`, of any of them.
        """
        begun = await self.begin_all(
            tx, [(request.key, request.fingerprint, _own_lease(request)) for request, _ in wanted]
        )
        places = [place for place, execution in enumerate(begun) if isinstance(execution, Execution)]
        if effect is not None and places:
            await effect(tx, places)
        await self.finish_each(
            tx, [(wanted[place][0].key, wanted[place][1], wanted[place][0].at_ms) for place in places]
        )
        return [
            Answer(execution, replayed=True)
            if isinstance(execution, StoredResponse)
            else execution
            if isinstance(execution, CountinghouseError)
            else Answer(response)
            for (_, response), execution in zip(wanted, begun, strict=True)
        ]

    async def renew(self, tx: Transaction, held: Sequence[Execution], *, until_ms: int) -> None:
        """Keep others out of keys that are being executed; an `until_ms` that has passed lets them in."""
        await tx.execute_each(
            self._renew,
            [
                named(execution.key) | {"seen_attempt": execution.attempt, "until_ms": until_ms}
                for execution in sorted(held, key=lambda execution: str(execution.key))
            ],
        )

    async def give_back(self, tx: Transaction, key: RequestKey, attempt: int, *, now_ms: int) -> bool:
        """Let the same key run again, since nothing was done under it: only who executes it can know that.

        The attempt stays, so that an execution that was paused meanwhile holds nothing of what its successors began.
        """
        said = named(key) | {"seen_attempt": attempt, "now_ms": now_ms}
        return (await tx.execute(self._give_back, said)).rowcount == 1

    async def reopen_each(self, tx: Transaction, begun: Sequence[tuple[RequestKey, int]]) -> None:
        """Take back keys that were given back, at a time in Unix milliseconds each: something is done under them now.

        Their executions had only been paused. Their leases pass at that time: no execution renews them.
        """
        await tx.execute_each(self._reopen, [named(key) | {"now_ms": now_ms} for key, now_ms in begun])

    async def expire(self, tx: Transaction, *, now_ms: int) -> list[RequestKey]:
        """End every key whose time passed before it was used."""
        return [_to_key(row) for row in await tx.execute(self._expire, {"now_ms": now_ms})]

    async def unused(self, tx: Transaction, caller: Principal, method: str, *, now_ms: int) -> int:
        """Return how many keys issued to a caller are open: not used, and issued within a day or not yet expired.

        Callers who are counted at once wait for each other's transaction, so that none is missed.
        """
        if tx.is_postgresql:
            lock = select(func.pg_advisory_xact_lock(func.hashtextextended(f"{caller.role}:{caller.name}", 0)))
            await tx.execute(lock)
        columns = self._table.c
        counted = await tx.execute(
            select(func.count()).where(
                columns.caller == caller.name,
                columns.caller_role == caller.role,
                columns.method == method,
                columns.state.in_((RequestState.ISSUED, RequestState.EXPIRED)),
                or_(columns.created_at_ms > now_ms - REQUEST_TTL_MS, columns.expires_at_ms > now_ms),
            )
        )
        return int(counted.scalar_one())

    async def overdue(self, tx: Transaction, *, now_ms: int, limit: int) -> list[RequestRow]:
        """Return executions whose lease has passed, the longest first."""
        return [to_request(row) for row in await tx.execute(self._overdue, {"now_ms": now_ms, "at_most": limit})]

    async def find(self, tx: Transaction, key: RequestKey) -> RequestRow | None:
        """Return the row of a key."""
        row = (await tx.execute(self._find, named(key))).one_or_none()
        return None if row is None else to_request(row)

    async def answered(
        self, tx: Transaction, key: RequestKey, fingerprint: str, *, now_ms: int
    ) -> StoredResponse | None:
        """Return the stored answer to a key, without starting anything; None: it has none, or the guard is off.

        Raises:
            KeyMismatch: It was used with another payload.
        """
        row = await self.find(tx, key) if self._guards.ticket else None
        if row is None or row.response is None:
            return None
        decide(row, fingerprint, now_ms)
        return row.response

    async def order_of(self, tx: Transaction, key: RequestKey) -> str | None:
        """Return the order a ticket names, empty for none; None: there is no such ticket."""
        return (await tx.execute(self._order_of, named(key))).scalar_one_or_none()

    @staticmethod
    def _row(
        key: RequestKey,
        state: RequestState,
        fingerprint: str,
        attempt: int,
        owner: str,
        lease_until_ms: int,
        expires_at_ms: int,
        now_ms: int,
    ) -> dict[str, Any]:
        return {
            "caller": key.caller.name,
            "caller_role": key.caller.role,
            "method": key.method,
            "key": key.key,
            "state": state,
            "fingerprint": fingerprint,
            "attempt": attempt,
            "owner": owner,
            "lease_until_ms": lease_until_ms,
            "expires_at_ms": expires_at_ms,
            "order_id": "",
            "created_at_ms": now_ms,
            "updated_at_ms": now_ms,
        }


class SqlAnswerStore:
    """`runtime.ports.AnswerStore` on SQLite or PostgreSQL, and the one way in which a service stores an answer."""

    def __init__(self, database: Database, requests: Requests) -> None:
        self._database = database
        self._requests = requests

    async def answer(self, request: KeyedRequest, response: StoredResponse) -> Answer:
        """See `AnswerStore`."""

        async def step(tx: Transaction) -> Answer:
            return await self._requests.answer(tx, request, response)

        return await self._database.run(step)

    async def answered(self, request: KeyedRequest) -> Answer | None:
        """See `AnswerStore`."""

        async def step(tx: Transaction) -> Answer | None:
            stored = await self._requests.answered(tx, request.key, request.fingerprint, now_ms=request.at_ms)
            return None if stored is None else Answer(stored, replayed=True)

        return await self._database.read(step)

    async def _answer_once(
        self, request: KeyedRequest, response: StoredResponse, effect: Callable[[Transaction], Awaitable[None]]
    ) -> Answer | None:
        """Have the effect and store the response in one transaction; None: the decision was overturned."""

        async def step(tx: Transaction) -> Answer:
            return await self._requests.answer(tx, request, response, effect)

        try:
            return await self._database.run(step)
        except DecisionOverturned:
            return None


async def refusal_or(outcome: Awaitable[_T]) -> _T | CountinghouseError:
    """Return what is awaited, or the refusal it raises: one item's outcome, which does not hinder the others.

    Only of what writes nothing before it refuses.
    """
    try:
        return await outcome
    except CountinghouseError as refusal:
        return refusal


def _start(table: Table, *conditions: ColumnElement[bool], with_fingerprint: bool = False) -> ReturningUpdate[Any]:
    """Return the statement that starts an attempt at a key, on some conditions, and gives its number.

    Its parameters are those of `named` and `leased`, and `new_fingerprint`.
    """
    columns = table.c
    values: dict[str, Any] = {"fingerprint": bindparam("new_fingerprint")} if with_fingerprint else {}
    return (
        update(table)
        .where(is_named(table), *conditions)
        .values(
            state=RequestState.IN_PROGRESS,
            attempt=columns.attempt + 1,
            owner=bindparam("new_owner"),
            lease_until_ms=bindparam("until_ms"),
            updated_at_ms=bindparam("now_ms"),
            **values,
        )
        .returning(columns.attempt)
    )


def _own_lease(request: KeyedRequest) -> Lease:
    """Return the lease of a request that is executed in one transaction: it ends as it begins."""
    return Lease(request.key.caller.name, now_ms=request.at_ms, until_ms=request.at_ms)


def leased(lease: Lease) -> dict[str, Any]:
    """Return the parameters of a lease."""
    return {"new_owner": lease.owner, "until_ms": lease.until_ms, "now_ms": lease.now_ms}


def _answered(key: RequestKey, response: StoredResponse, now_ms: int) -> dict[str, Any]:
    return named(key) | {"ok": response.ok, "body": response.body, "now_ms": now_ms}


def is_named(table: Table) -> ColumnElement[bool]:
    """Return the condition that a row has the key whose parameters `named` gives."""
    columns = table.c
    return and_(
        columns.caller == bindparam("of_caller"),
        columns.caller_role == bindparam("of_role"),
        columns.method == bindparam("of_method"),
        columns.key == bindparam("of_key"),
    )


def named(key: RequestKey) -> dict[str, Any]:
    """Return the parameters of `is_named`."""
    return {
        "of_caller": key.caller.name,
        "of_role": key.caller.role,
        "of_method": key.method,
        "of_key": key.key,
    }


def _to_key(row: Row[Any]) -> RequestKey:
    return RequestKey(Principal(row.caller, Role(row.caller_role)), row.method, row.key)


def to_request(row: Row[Any]) -> RequestRow:
    """Return a row of the table."""
    return RequestRow(
        key=_to_key(row),
        state=RequestState(row.state),
        fingerprint=row.fingerprint,
        attempt=row.attempt,
        lease_until_ms=row.lease_until_ms,
        expires_at_ms=row.expires_at_ms,
        response=None if row.response is None else StoredResponse(bool(row.response_ok), bytes(row.response)),
    )
