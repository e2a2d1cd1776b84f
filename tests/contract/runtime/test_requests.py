"""The table of tickets and requests, on both databases, and its fake beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

import services.order
from services.kernel.errors import FailedPrecondition, KeyMismatch, NotFound, RequestInProgress
from services.kernel.guards import Guards
from services.kernel.idempotency import Execution, Lease, RequestKey, RequestRow, RequestState, StoredResponse
from services.kernel.principal import Principal, Role
from services.order.schema import REQUESTS
from services.runtime.database.database import Database
from services.runtime.database.idempotency_table import REQUEST_TTL_MS, Requests
from services.runtime.database.transaction import Transaction
from tests.fakes.request_table import FakeRequestTable

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
KEY = RequestKey(LI, "Pay", "t1")
DONE = StoredResponse(True, b"\x00answer\xff")
NOW_MS = 1_000_000
Move = Callable[..., Awaitable[Any]]
FreshDatabase = Callable[[Path], Awaitable[Database]]


def lease(now_ms: int = NOW_MS, owner: str = "one") -> Lease:
    return Lease(owner, now_ms, now_ms + 5_000)


class OneMoveEach:
    """Each move in a transaction of its own: `await moves.begin(…)`."""

    def __init__(self, database: Database, requests: Requests) -> None:
        self._database = database
        self._requests = requests

    def __getattr__(self, name: str) -> Move:
        move: Move = getattr(self._requests, name)

        async def alone(*arguments: Any, **named: Any) -> Any:
            async def step(tx: Transaction) -> Any:
                return await move(tx, *arguments, **named)

            return await self._database.run(step)

        return alone


class Immediate:
    """The fake, awaited like the others."""

    def __init__(self, fake: FakeRequestTable) -> None:
        self._fake = fake

    def __getattr__(self, name: str) -> Move:
        async def at_once(*arguments: Any, **named: Any) -> Any:
            return getattr(self._fake, name)(*arguments, **named)

        return at_once


class RequestTableContract:
    """What every table of requests does. Subclasses bring a fixture `moves`, on an empty REQUESTS."""

    async def test_request_is_begun_and_finished_once(self, moves: Any) -> None:
        """And answered with what was stored, byte for byte, for ever after."""
        begun = await moves.begin(KEY, "f", lease())
        assert begun == Execution(KEY, 1, first=True)
        assert begun.fresh, "no other execution has seen the request"
        assert await moves.finish(KEY, DONE, now_ms=NOW_MS)
        for now_ms in (NOW_MS, NOW_MS + 2 * REQUEST_TTL_MS):
            assert await moves.begin(KEY, "f", lease(now_ms)) == DONE
        assert not await moves.finish(KEY, StoredResponse(False, b"other"), now_ms=NOW_MS)
        row = await moves.find(KEY)
        assert (row.state, row.response) == (RequestState.DONE, DONE)

    async def test_stored_refusal_is_replayed_as_a_refusal(self, moves: Any) -> None:
        """`ok` comes back, and an empty body is a body."""
        await moves.begin(KEY, "f", lease())
        await moves.finish(KEY, StoredResponse(False, b""), now_ms=NOW_MS)
        assert await moves.begin(KEY, "f", lease()) == StoredResponse(False, b"")

    async def test_another_payload_is_refused(self, moves: Any) -> None:
        """While it runs and when it is done."""
        await moves.begin(KEY, "f", lease())
        with pytest.raises(KeyMismatch):
            await moves.begin(KEY, "g", lease())
        await moves.finish(KEY, DONE, now_ms=NOW_MS)
        with pytest.raises(KeyMismatch):
            await moves.begin(KEY, "g", lease())

    async def test_keys_of_two_callers_are_independent(self, moves: Any) -> None:
        """Another caller, another role of the same name, another method, another key."""
        others = [
            RequestKey(WANG, "Pay", "t1"),
            RequestKey(Principal("li", Role.CUSTOMER), "Pay", "t1"),
            RequestKey(LI, "Settle", "t1"),
            RequestKey(LI, "Pay", "t2"),
        ]
        for key in (KEY, *others):
            assert await moves.begin(key, "f", lease()) == Execution(key, 1, first=True)

    async def test_ten_concurrent_begins_begin_once(self, moves: Any) -> None:
        """One executes; the others are told to wait."""
        found = await asyncio.gather(*(moves.begin(KEY, "f", lease()) for _ in range(10)), return_exceptions=True)
        assert [result for result in found if isinstance(result, Execution)] == [Execution(KEY, 1, first=True)]
        assert sum(isinstance(result, RequestInProgress) for result in found) == 9

    async def test_ten_concurrent_consumes_use_a_ticket_once(self, moves: Any) -> None:
        """The same for a key that was issued before."""
        await moves.issue(KEY, now_ms=NOW_MS, expires_at_ms=NOW_MS + 100, order_id="o1")
        found = await asyncio.gather(*(moves.consume(KEY, "f", lease()) for _ in range(10)), return_exceptions=True)
        assert [result for result in found if isinstance(result, Execution)] == [Execution(KEY, 1, first=True)]
        assert sum(isinstance(result, RequestInProgress) for result in found) == 9

    async def test_ticket_must_have_been_issued(self, moves: Any) -> None:
        """To this caller: another's ticket is not there."""
        with pytest.raises(NotFound) as refusal:
            await moves.consume(KEY, "f", lease())
        assert refusal.value.reason == "TICKET_NOT_FOUND"
        assert await moves.order_of(KEY) is None

    async def test_ticket_knows_its_order_and_is_issued_once(self, moves: Any) -> None:
        """Issuing it again changes nothing, also when it has been used."""
        await moves.issue(KEY, now_ms=NOW_MS, expires_at_ms=NOW_MS + 100, order_id="o1")
        await moves.issue(KEY, now_ms=NOW_MS, expires_at_ms=NOW_MS + 900, order_id="o2")
        row = await moves.find(KEY)
        assert (row.state, row.expires_at_ms, await moves.order_of(KEY)) == (RequestState.ISSUED, NOW_MS + 100, "o1")
        await moves.consume(KEY, "f", lease())
        await moves.issue(KEY, now_ms=NOW_MS, expires_at_ms=NOW_MS + 900, order_id="o2")
        assert (await moves.find(KEY)).state is RequestState.IN_PROGRESS

    async def test_expired_ticket_is_refused_for_ever(self, moves: Any) -> None:
        """From its millisecond on, whether or not anybody has written that down."""
        await moves.issue(KEY, now_ms=NOW_MS, expires_at_ms=NOW_MS + 100, order_id="")
        assert await moves.expire(now_ms=NOW_MS + 99) == []
        for _ in range(2):
            with pytest.raises(FailedPrecondition) as refusal:
                await moves.consume(KEY, "f", lease(NOW_MS + 100))
            assert refusal.value.reason == "TICKET_EXPIRED"
            await moves.expire(now_ms=NOW_MS + 100)
        with pytest.raises(FailedPrecondition):
            await moves.consume(KEY, "f", lease(NOW_MS))
        assert not await moves.finish(KEY, DONE, now_ms=NOW_MS)

    async def test_only_what_was_not_used_expires(self, moves: Any) -> None:
        """An execution once begun is brought to its end."""
        unused, running, done = (RequestKey(LI, "Pay", name) for name in ("unused", "running", "done"))
        for key in (unused, running, done):
            await moves.issue(key, now_ms=NOW_MS, expires_at_ms=NOW_MS + 100, order_id="")
        for key in (running, done):
            await moves.consume(key, "f", lease())
        await moves.finish(done, DONE, now_ms=NOW_MS)
        assert await moves.expire(now_ms=NOW_MS + 10**9) == [unused]
        assert await moves.expire(now_ms=NOW_MS + 10**9) == []
        states = [(await moves.find(key)).state for key in (unused, running, done)]
        assert states == [RequestState.EXPIRED, RequestState.IN_PROGRESS, RequestState.DONE]

    async def test_key_is_given_back_by_its_own_execution(self, moves: Any) -> None:
        """Then it runs again, as if for the first time, with the same payload only."""
        execution = await moves.begin(KEY, "f", lease())
        assert not await moves.give_back(KEY, execution.attempt + 1, now_ms=NOW_MS)
        assert await moves.give_back(KEY, execution.attempt, now_ms=NOW_MS)
        assert not await moves.give_back(KEY, execution.attempt, now_ms=NOW_MS)
        with pytest.raises(KeyMismatch):
            await moves.begin(KEY, "g", lease())
        assert (await moves.begin(KEY, "f", lease())).first

    async def test_paused_execution_holds_nothing_of_its_successors(self, moves: Any) -> None:
        """Taken over, given back and begun anew, the key is another's: who wakes up later neither gives it back, nor
        renews its lease, nor takes it over by the attempt they saw.
        """
        paused = await moves.begin(KEY, "f", lease())
        worker = await moves.take_over(KEY, paused.attempt, lease(NOW_MS + 5_000, "two"))
        assert await moves.give_back(KEY, worker.attempt, now_ms=NOW_MS + 5_001)
        successor = await moves.begin(KEY, "f", lease(NOW_MS + 5_002, "two"))
        assert successor.first
        assert not await moves.give_back(KEY, paused.attempt, now_ms=NOW_MS + 5_003)
        await moves.renew([paused], until_ms=0)
        with pytest.raises(RequestInProgress):
            await moves.begin(KEY, "f", lease(NOW_MS + 5_004))
        assert await moves.take_over(KEY, paused.attempt, lease(NOW_MS + 99_000)) is None
        assert await moves.give_back(KEY, successor.attempt, now_ms=NOW_MS + 99_000)

    async def test_key_given_back_may_still_be_answered(self, moves: Any) -> None:
        """Its payment may be finished by another clerk: then the answer is there for whoever comes back."""
        execution = await moves.begin(KEY, "f", lease())
        await moves.give_back(KEY, execution.attempt, now_ms=NOW_MS)
        assert await moves.finish(KEY, DONE, now_ms=NOW_MS)
        assert await moves.begin(KEY, "f", lease()) == DONE

    async def test_abandoned_execution_is_carried_on(self, moves: Any) -> None:
        """By the caller's own retry, once the lease has passed; it is not the first any more."""
        await moves.begin(KEY, "f", lease())
        with pytest.raises(RequestInProgress):
            await moves.begin(KEY, "f", lease(NOW_MS + 4_999))
        assert await moves.begin(KEY, "f", lease(NOW_MS + 5_000)) == Execution(KEY, 2, first=False)
        assert not await moves.give_back(KEY, 1, now_ms=NOW_MS + 5_000)

    async def test_ten_workers_take_over_once(self, moves: Any) -> None:
        """By the attempt they saw, and only when the lease has passed."""
        await moves.begin(KEY, "f", lease())
        assert await moves.take_over(KEY, 1, lease(NOW_MS + 4_999)) is None
        late = lease(NOW_MS + 5_000, "worker")
        found = await asyncio.gather(*(moves.take_over(KEY, 1, late) for _ in range(10)))
        assert [taken for taken in found if taken is not None] == [Execution(KEY, 2, first=False)]
        assert await moves.take_over(KEY, 1, lease(NOW_MS + 99_000)) is None
        assert await moves.take_over(KEY, 2, lease(NOW_MS + 99_000)) == Execution(KEY, 3, first=False)

    async def test_finished_request_is_not_taken_over(self, moves: Any) -> None:
        """Nor what was never begun."""
        assert await moves.take_over(KEY, 1, lease()) is None
        await moves.begin(KEY, "f", lease())
        await moves.finish(KEY, DONE, now_ms=NOW_MS)
        assert await moves.take_over(KEY, 1, lease(NOW_MS + 10**9)) is None

    async def test_lease_is_renewed_by_its_holder_only(self, moves: Any) -> None:
        """Longer to keep others out, shorter to let them in; a former holder renews nothing."""
        execution = await moves.begin(KEY, "f", lease())
        await moves.renew([execution], until_ms=NOW_MS + 50_000)
        with pytest.raises(RequestInProgress):
            await moves.begin(KEY, "f", lease(NOW_MS + 49_999))
        await moves.renew([execution], until_ms=0)
        second = await moves.begin(KEY, "f", lease())
        assert second.attempt == 2
        await moves.renew([execution], until_ms=0)
        with pytest.raises(RequestInProgress):
            await moves.begin(KEY, "f", lease())

    async def test_overdue_are_listed_the_longest_first(self, moves: Any) -> None:
        """Up to a limit; neither the finished nor those whose lease still runs."""
        keys = [RequestKey(LI, "Pay", f"t{number}") for number in range(5)]
        for number, key in enumerate(keys):
            await moves.begin(key, "f", lease(NOW_MS - number))
        await moves.finish(keys[4], DONE, now_ms=NOW_MS)

        async def overdue(now_ms: int, limit: int) -> list[RequestKey]:
            rows: list[RequestRow] = await moves.overdue(now_ms=now_ms, limit=limit)
            return [row.key for row in rows]

        assert await overdue(NOW_MS + 4_996, 9) == []
        assert await overdue(NOW_MS + 4_998, 9) == [keys[3], keys[2]]
        assert await overdue(NOW_MS + 9_999, 3) == [keys[3], keys[2], keys[1]]

    async def test_unused_key_is_not_found(self, moves: Any) -> None:
        """And cannot be finished or given back."""
        assert await moves.find(KEY) is None
        assert not await moves.finish(KEY, DONE, now_ms=NOW_MS)
        assert not await moves.give_back(KEY, 1, now_ms=NOW_MS)


class TestFakeRequestTable(RequestTableContract):
    """The suite on the fake."""

    @pytest.fixture
    def moves(self) -> Any:
        return Immediate(FakeRequestTable())


@pytest.fixture
async def database(fresh_database: FreshDatabase) -> Database:
    """One with a table of requests: the order service's."""
    return await fresh_database(Path(services.order.__file__).parent)


class TestRequests(RequestTableContract):
    """The suite on the databases."""

    @pytest.fixture
    def moves(self, database: Database) -> Any:
        return OneMoveEach(database, Requests(REQUESTS, Guards()))


async def test_effect_and_its_answer_are_stored_together(database: Database) -> None:
    """What is rolled back was never begun."""
    requests = Requests(REQUESTS, Guards())

    async def broken(tx: Transaction) -> None:
        await requests.begin(tx, KEY, "f", lease())
        await requests.finish(tx, KEY, DONE, now_ms=NOW_MS)
        raise FailedPrecondition("ILLEGAL_STATE", "no")

    with pytest.raises(FailedPrecondition):
        await database.run(broken)
    assert await OneMoveEach(database, requests).find(KEY) is None


async def test_two_instances_begin_one_request_once(database: Database) -> None:
    """Two processes' connections to the same database."""
    async with Database(database.url) as other:
        each = [OneMoveEach(instance, Requests(REQUESTS, Guards())) for instance in (database, other)]
        found = await asyncio.gather(
            *(each[number % 2].begin(KEY, "f", lease()) for number in range(20)), return_exceptions=True
        )
    assert sum(isinstance(result, Execution) for result in found) == 1
    assert sum(isinstance(result, RequestInProgress) for result in found) == 19


async def test_key_given_back_between_two_statements_is_in_progress(database: Database) -> None:
    """A rival gives the key back after our update missed it: passing, never an error of ours."""
    requests = Requests(REQUESTS, Guards())

    class Overtaken(Requests):
        async def find(self, tx: Transaction, key: RequestKey) -> RequestRow | None:
            await tx.execute(update(REQUESTS).values(state=RequestState.ISSUED, lease_until_ms=0))
            return await super().find(tx, key)

    await OneMoveEach(database, requests).begin(KEY, "f", lease())
    with pytest.raises(RequestInProgress):
        await OneMoveEach(database, Overtaken(REQUESTS, Guards())).begin(KEY, "f", lease())


async def test_begin_without_ticket_guard_always_executes(database: Database) -> None:
    """Running, done or with another payload: what the guard stops."""
    moves = OneMoveEach(database, Requests(REQUESTS, Guards.without(["ticket"])))
    assert (await moves.begin(KEY, "f", lease())).attempt == 1
    assert (await moves.begin(KEY, "f", lease())).attempt == 2
    await moves.finish(KEY, DONE, now_ms=NOW_MS)
    assert (await moves.begin(KEY, "g", lease())).attempt == 3
    assert await moves.finish(KEY, StoredResponse(True, b"other"), now_ms=NOW_MS)


async def test_take_over_without_recovery_guard_is_refused(database: Database) -> None:
    """A request whose process died stays in progress: what the guard is there for."""
    moves = OneMoveEach(database, Requests(REQUESTS, Guards.without(["recovery"])))
    await moves.begin(KEY, "f", lease())
    with pytest.raises(RequestInProgress):
        await moves.begin(KEY, "f", lease(NOW_MS + 10**9))
