"""The payment service's neighbours in memory: orders, ledger and locks, faithful because they stand on the fakes
that pass those services' own suites; and a wire between, on which things go wrong when a test says so.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from services.kernel.clock import CallDeadline, Clock
from services.kernel.errors import Aborted, CountinghouseError
from services.kernel.fence import Fence
from services.kernel.ids import IdSource
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.ledger.model import AccountKind, Entry, JournalDraft, Leg, journal_not_found
from services.order import model as order_model
from services.order.model import Change, order_not_found
from services.order.ports import MoveOutcome, OrderStore
from services.payment.model import Change as PaymentChange
from services.payment.model import Payment, Reversal
from services.payment.ports import AccountTerms, Failpoints, Hold, Ledger, Locks, Order, Orders, OrderState
from services.runtime.grpc.context import Call
from tests.fakes.ledger_store import FakeLedgerStore
from tests.fakes.order_store import FakeOrderStore


class FakeOrders(Orders):
    """The order service: its rules on its fake store."""

    def __init__(self, store: FakeOrderStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def get(self, order_id: str, deadline: CallDeadline) -> Order:
        order = await self._store.get(order_id)
        if order is None:
            raise order_not_found(order_id)
        return _order(order)

    async def claim(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> Order:
        return await self._move(OrderStore.claim, payment, fence)

    async def complete(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        await self._move(OrderStore.complete, payment, fence)

    async def release(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        await self._move(OrderStore.release, payment, fence)

    async def reopen(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> None:
        await self._move(OrderStore.reopen, payment, fence)

    async def _move(
        self, step: Callable[[Any, list[Change]], Awaitable[list[MoveOutcome]]], payment: Payment, fence: Fence
    ) -> Order:
        lets_go = step in {OrderStore.release, OrderStore.reopen}
        actor, reason = payment.latest_change if lets_go else (payment.clerk, "")
        change = Change(
            payment.order_id,
            payment.payment_id,
            fence,
            actor,
            self._clock.now_ms(),
            payment.settled_at_ms,
            reason,
        )
        (outcome,) = await getattr(self._store, step.__name__)([change])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return _order(outcome)


def _order(order: order_model.Order) -> Order:
    return Order(
        order.order_id,
        order.customer_id,
        OrderState(order.state),
        order.amount,
        order.round,
        order.payment_id,
        order.settled_by,
        order.settled_at_ms,
    )


class FakeLedger(Ledger):
    """The ledger: its rules on its fake store."""

    def __init__(self, store: FakeLedgerStore, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def account(self, account_id: str, deadline: CallDeadline) -> AccountTerms | None:
        account = await self._store.account(account_id)
        if account is None:
            return None
        by_debits = account.kind in (AccountKind.ASSET, AccountKind.EXPENSE)
        return AccountTerms(account_id, account.currency, account.closing is not None, by_debits)

    async def void(self, payment: Payment, fence: Fence, deadline: CallDeadline) -> str:
        draft = JournalDraft(
            payment.business_key, (), "", "", payment.order_id, payment.payment_id, Principal("payment", Role.SERVICE)
        )
        journal = await self._store.void(Entry(draft, payment.payment_id, "", self._clock.now_ms(), fence))
        return journal.journal_id if journal else ""

    async def post(self, payment: Payment, amount: Money, fence: Fence, deadline: CallDeadline) -> str:
        draft = JournalDraft(
            business_key=payment.business_key,
            legs=(
                Leg(payment.payer_account_id, amount.minor_units),
                Leg(payment.payee_account_id, -amount.minor_units),
            ),
            currency=amount.currency,
            memo=payment.memo,
            order_id=payment.order_id,
            payment_id=payment.payment_id,
            clerk=payment.clerk,
        )
        return await self._write(draft.check(), payment.payment_id, fence)

    async def reverse(self, payment: Payment, reversal: Reversal, fence: Fence, deadline: CallDeadline) -> str:
        journal = await self._store.journal(journal_id=payment.journal_id)
        if journal is None:
            raise journal_not_found(payment.journal_id)
        draft = journal.reversal(reason=reversal.reason, clerk=reversal.clerk)
        return await self._write(draft, reversal.attempt, fence)

    async def _write(self, draft: JournalDraft, attempt: str, fence: Fence) -> str:
        entry = Entry(draft, attempt, self._ids.new("jnl"), self._clock.now_ms(), fence)
        (outcome,) = await self._store.post([entry])
        if isinstance(outcome, CountinghouseError):
            raise outcome
        return outcome.journal.journal_id


@dataclass(slots=True)
class _Place:
    instance: str
    holder: Principal
    token: int
    first: asyncio.Event = field(default_factory=asyncio.Event)


class FakeLockService:
    """First come, first served; the token grows with every place in any queue.

    Args:
        patience_s: Real seconds somebody who does not come first waits.
    """

    def __init__(self, patience_s: float = 0.05) -> None:
        self.patience_s = patience_s
        self.away: CountinghouseError | None = None
        self.lost = False
        self._queues: defaultdict[str, deque[_Place]] = defaultdict(deque)
        self._tokens = 0

    def of(self, instance: str) -> Locks:
        """The locks as one process sees them."""
        return _Locks(self, instance)

    def expire(self, instance: str) -> None:
        """The session of a process ends: its places are given to those behind it."""
        for order_id in list(self._queues):
            for place in [place for place in self._queues[order_id] if place.instance == instance]:
                self._leave(order_id, place)

    @property
    def held(self) -> dict[str, str]:
        """Which instance holds which order."""
        return {order_id: queue[0].instance for order_id, queue in self._queues.items() if queue}

    @asynccontextmanager
    async def _hold(self, instance: str, order_id: str, clerk: Principal) -> AsyncIterator[Hold]:
        if self.away is not None:
            raise self.away
        self._tokens += 1
        place = _Place(instance, clerk, self._tokens)
        queue = self._queues[order_id]
        queue.append(place)
        if queue[0] is place:
            place.first.set()
        try:
            try:
                async with asyncio.timeout(self.patience_s):
                    await place.first.wait()
            except TimeoutError:
                holder = queue[0].holder
                raise Aborted(
                    "ORDER_LOCKED",
                    f"{order_id} is being settled by {holder}",
                    metadata={"holder": holder.name, "guard": "lock"},
                    retry_after_ms=200,
                ) from None
            yield _Hold(self, Fence(1, place.token))
        finally:
            self._leave(order_id, place)

    def _leave(self, order_id: str, place: _Place) -> None:
        queue = self._queues[order_id]
        if place in queue:
            queue.remove(place)
        if queue:
            queue[0].first.set()


class _Hold:
    def __init__(self, service: FakeLockService, fence: Fence) -> None:
        self._service = service
        self.fence = fence

    def __repr__(self) -> str:
        return f"hold {self.fence}"

    def ensure(self) -> None:
        if self._service.lost:
            raise Aborted("ORDER_LOCK_LOST", "another clerk may hold the lock by now", retry_after_ms=50)


class _Locks(Locks):
    def __init__(self, service: FakeLockService, instance: str) -> None:
        self._service = service
        self._instance = instance

    def hold(
        self, order_id: str, clerk: Principal, payment_id: str, wait_s: float
    ) -> AbstractAsyncContextManager[Hold]:
        return self._service._hold(self._instance, order_id, clerk)


class Died(BaseException):
    """kill -9: nothing in the process catches this, and nothing it does afterwards reaches anybody."""


@dataclass(slots=True)
class Trouble:
    """What goes wrong at the next call of a port's method.

    Args:
        error: What the caller gets instead of an answer.
        after: Whether the call had its effect nevertheless.
    """

    error: BaseException
    after: bool = False


class Process:
    """The wires of one process to its ports: they can be cut, and the process can die at any of its calls.

    Every call passes the `gate`, if there is one: a test then says when it goes on, and finds what it knows in `heard`.

    Args:
        dies_at: The number of the call, from 1, at which it dies; None: it lives.
        after: Whether that call still has its effect.
    """

    def __init__(self, *, dies_at: int | None = None, after: bool = False) -> None:
        self.calls: Counter[str] = Counter()
        self.dead = False
        self.trouble: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self.gate: Callable[[str], Awaitable[None]] | None = None
        self.heard: list[str] = []
        self._dies_at = dies_at
        self._after = after

    def fails(self, name: str, error: BaseException, *, after: bool = False, times: int = 1) -> None:
        """Lets the next calls of a method end with an error."""
        self.trouble[name].extend(Trouble(error, after) for _ in range(times))

    def wired(self, port: object) -> Any:
        """The port, at the other end of a wire."""
        return _Wire(self, port)

    def locks(self, locks: Locks) -> Locks:
        """The locks, at the other end of a wire; a dead process releases none."""
        return _WiredLocks(self, locks)

    async def call(self, name: str, effect: Callable[[], Awaitable[Any]]) -> Any:
        """One call of one port."""
        self._alive()
        self.calls[name] += 1
        dies = self.calls.total() == self._dies_at
        trouble = self.trouble[name].popleft() if self.trouble[name] else None
        if self.gate is not None:
            await self.gate(name)
        try:
            result = await self._outcome(effect, trouble, dies=dies)
        except Exception as error:
            self._hears(name, error)
            raise
        self._hears(name, result)
        return result

    async def _outcome(self, effect: Callable[[], Awaitable[Any]], trouble: Trouble | None, *, dies: bool) -> Any:
        if dies and not self._after:
            self._die()
        if trouble is not None and not trouble.after:
            raise trouble.error
        try:
            result = await effect()
        finally:
            if dies:
                self._die()
        self._alive()
        if trouble is not None:
            raise trouble.error
        return result

    def _hears(self, name: str, outcome: object) -> None:
        """Writes down what the process knows from here on, an error as well."""
        if self.gate is not None:
            self.heard.append(f"{name}: {outcome!r}")

    def _alive(self) -> None:
        if self.dead:
            raise Died

    def _die(self) -> None:
        self.dead = True
        raise Died


class _Wire:
    def __init__(self, process: Process, port: object) -> None:
        self._process = process
        self._port = port

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not callable(method):
            return method  # a plain attribute is no call

        async def call(*arguments: object, **named: object) -> Any:
            change = arguments[0] if arguments else None
            called = (
                change.step.lower() if isinstance(change, PaymentChange) else name
            )  # each transition is a call of its own
            return await self._process.call(called, lambda: method(*arguments, **named))

        return call


class _WiredLocks(Locks):
    def __init__(self, process: Process, locks: Locks) -> None:
        self._process = process
        self._locks = locks

    @asynccontextmanager
    async def hold(self, order_id: str, clerk: Principal, payment_id: str, wait_s: float) -> AsyncIterator[Hold]:
        holding = self._locks.hold(order_id, clerk, payment_id, wait_s)
        hold = await self._process.call("hold", holding.__aenter__)
        try:
            yield hold
        finally:
            if not self._process.dead:
                await holding.__aexit__(None, None, None)


class FakeFailpoints(Failpoints):
    """Writes down who passes where, and does what a test wants done there."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.at: dict[str, Callable[[], Awaitable[None]]] = {}

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        self.passed.append(name)
        act = self.at.pop(name, None)
        if act is not None:
            await act()
