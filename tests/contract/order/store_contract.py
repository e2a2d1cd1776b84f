"""What every order store does. Each adapter, the fake included, runs this suite as a subclass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol

import pytest

from services.kernel.clock import CallDeadline
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    KeyMismatch,
    NotFound,
    StaleFence,
    StaleVersion,
)
from services.kernel.fence import NO_FENCE, Fence
from services.kernel.guards import Guards
from services.kernel.idempotency import Answer, KeyedRequest, RequestKey
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import Change, Order, OrderLine, OrderState
from services.order.operations import OrderDraft, OrderOperations
from services.order.ports import MoveOutcome, OrderFilter, OrderStore
from services.order.servicer import OrderResponses
from services.runtime.grpc.context import Call
from services.runtime.grpc.failpoints import FailpointSet
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.order_store import Event
from tests.feeds import watching

LI = Principal("li", Role.CASHIER)
WANG = Principal("wang", Role.ACCOUNTANT)
FENCE = Fence(1, 100)
NEWER = Fence(1, 101)


class Subject(Protocol):
    """A store under test, and a look at what it keeps behind its port."""

    @property
    def store(self) -> OrderStore: ...

    async def history(self, order_id: str) -> list[Event]:
        """The events of one order, by version."""
        ...

    async def fence(self, order_id: str) -> Fence:
        """The newest fence one order has seen."""
        ...


Make = Callable[..., Awaitable[Subject]]


@dataclass(frozen=True, slots=True)
class Made:
    """An order that has been created in a store."""

    subject: Subject
    order: Order

    async def claim(self, payment_id: str = "p1", fence: Fence = FENCE) -> MoveOutcome:
        return (await self.subject.store.claim([self.change(payment_id, fence)]))[0]

    async def complete(self, payment_id: str = "p1", fence: Fence = FENCE) -> MoveOutcome:
        return (await self.subject.store.complete([self.change(payment_id, fence)]))[0]

    async def release(self, payment_id: str = "p1", fence: Fence = FENCE) -> MoveOutcome:
        return (await self.subject.store.release([self.change(payment_id, fence)]))[0]

    async def reopen(self, payment_id: str = "p1", fence: Fence = FENCE) -> MoveOutcome:
        return (await self.subject.store.reopen([self.change(payment_id, fence)]))[0]

    async def cancel(self, key: str, *, customer_id: str = "", expected_version: int = 0) -> Answer:
        """As staff, or as a customer."""
        caller = Principal(customer_id, Role.CUSTOMER) if customer_id else LI
        return await operations(self.subject.store).cancel(
            call(caller), key, "f", self.order.order_id, expected_version, "late"
        )

    async def now(self) -> Order:
        order = await self.subject.store.get(self.order.order_id)
        assert order is not None
        return order

    def change(self, payment_id: str, fence: Fence) -> Change:
        return Change(self.order.order_id, payment_id, fence, WANG, at_ms=3_000, settled_at_ms=2_500)


def request(method: str, key: str, *, fingerprint: str = "f", caller: Principal = LI) -> KeyedRequest:
    return KeyedRequest(RequestKey(caller, method, key), fingerprint, at_ms=2_000)


def operations(store: OrderStore) -> OrderOperations:
    """The operations, which decide and encode what the store writes."""
    return OrderOperations(store, ManualClock(2_000), SeededIds(1), FailpointSet(enabled=False), OrderResponses())


def call(principal: Principal) -> Call:
    return Call("/x/y", principal, CallDeadline.after(60, ManualClock()))


async def create(store: OrderStore, asked: KeyedRequest, order: Order) -> Answer:
    """Create an order through the operations."""
    draft = OrderDraft(order.order_id, order.customer_id, order.amount, order.lines)
    return await operations(store).create(call(asked.key.caller), asked.key.key, asked.fingerprint, draft)


def new_order(order_id: str = "o1", customer_id: str = "mei", *, lines: int = 0) -> Order:
    return Order(
        order_id,
        customer_id,
        Money(3_600, "CNY"),
        tuple(OrderLine(f"tea {number}", 3, Money(1_200 // lines, "CNY")) for number in range(lines)),
        created_at_ms=2_000,
        updated_at_ms=2_000,
    )


async def created(subject: Subject, order: Order | None = None) -> Made:
    order = order or new_order()
    answer = await create(subject.store, request("CreateOrder", order.order_id), order)
    assert answer.response.ok
    return Made(subject, order)


class RequestContract:
    """Subclasses bring a fixture `make`: an async callable that takes guards and gives a Subject on an empty store."""

    async def test_order_is_kept_as_it_was_made(self, make: Make) -> None:
        """UNPAID, version 1, round 1, lines in their order; the first event is its making."""
        subject = await make()
        made = await created(subject, new_order(lines=3))
        assert await made.now() == made.order
        assert await subject.history("o1") == [
            Event("o1", 1, None, OrderState.UNPAID, 1, "", NO_FENCE, LI, 2_000),
        ]

    async def test_history_has_every_change_with_its_reason(self, make: Make) -> None:
        """Oldest first, a page at a time; another order's changes are not in it."""
        subject = await make()
        made = await created(subject)
        await created(subject, new_order("o2"))
        await operations(subject.store).cancel(call(WANG), "c1", "f", "o1", 0, "ordered twice")
        events = [
            Event("o1", 1, None, OrderState.UNPAID, 1, "", NO_FENCE, LI, 2_000),
            Event("o1", 2, OrderState.UNPAID, OrderState.CANCELLED, 1, "", NO_FENCE, WANG, 2_000, "ordered twice"),
        ]
        assert await subject.store.history("o1", after=0, limit=9) == events == await subject.history("o1")
        assert await subject.store.history("o1", after=1, limit=9) == events[1:]
        assert await subject.store.history("o1", after=0, limit=1) == events[:1]
        assert await subject.store.history("o9", after=0, limit=9) == []
        assert (await made.now()).state is OrderState.CANCELLED

    async def test_reopen_reason_is_kept_with_its_actor(self, make: Make) -> None:
        """A move that a payment asks for may say why, too."""
        subject = await make()
        made = await created(subject)
        await made.claim()
        await made.complete()
        change = replace(made.change("p1", FENCE), reason="wrong order")
        await subject.store.reopen([change])
        event = (await subject.store.history("o1", after=3, limit=1))[0]
        assert (event.to_state, event.actor, event.reason) == (OrderState.UNPAID, WANG, "wrong order")

    async def test_get_of_an_unknown_order_is_none(self, make: Make) -> None:
        """get says so without raising."""
        assert await (await make()).store.get("o9") is None

    async def test_answered_used_request_id_gives_its_stored_answer(self, make: Make) -> None:
        """Nothing is begun for one that was never used; another payload is refused."""
        store = (await make()).store
        assert await store.answered(request("CreateOrder", "r1")) is None
        assert await store.answered(request("CreateOrder", "r1")) is None
        stored = await create(store, request("CreateOrder", "r1"), new_order())
        assert await store.answered(request("CreateOrder", "r1")) == Answer(stored.response, replayed=True)
        with pytest.raises(KeyMismatch):
            await store.answered(request("CreateOrder", "r1", fingerprint="g"))

    async def test_creation_repeated_is_answered_as_before(self, make: Make) -> None:
        """Byte for byte, also when the order has moved on since; nothing is made twice."""
        subject = await make()
        first = await create(subject.store, request("CreateOrder", "r1"), new_order(lines=2))
        await Made(subject, new_order()).claim()
        again = await create(subject.store, request("CreateOrder", "r1"), new_order("other"))
        assert (first.replayed, again.replayed) == (False, True)
        assert first.response == again.response
        assert await subject.store.get("other") is None

    async def test_request_id_with_another_payload_is_refused(self, make: Make) -> None:
        """The same id with another payload is refused, and has no effect."""
        subject = await make()
        await create(subject.store, request("CreateOrder", "r1"), new_order())
        with pytest.raises(KeyMismatch):
            await create(subject.store, request("CreateOrder", "r1", fingerprint="g"), new_order("o2"))
        assert await subject.store.get("o2") is None

    async def test_request_ids_of_two_callers_or_methods_never_meet(self, make: Make) -> None:
        """A key belongs to (caller, method, key)."""
        subject = await make()
        made = await created(subject)
        other = await create(subject.store, request("CreateOrder", "o1", caller=WANG), new_order("o2"))
        cancelled = await made.cancel("o1")
        assert (other.replayed, cancelled.replayed) == (False, False)

    async def test_taken_order_id_is_a_stored_refusal(self, make: Make) -> None:
        """ORDER_EXISTS is definitive: it is replayed to the same request id, and the order stays as it was."""
        subject = await make()
        made = await created(subject)
        answers = [
            await create(subject.store, request("CreateOrder", "r2"), new_order(customer_id="other")) for _ in range(2)
        ]
        assert [answer.replayed for answer in answers] == [False, True]
        assert not answers[0].response.ok
        assert answers[0].response == answers[1].response
        assert await made.now() == made.order
        assert len(await subject.history("o1")) == 1

    async def test_ten_creations_at_once_make_one_order(self, make: Make) -> None:
        """The same request id ten times: one effect, ten equal answers."""
        subject = await make()
        answers = await asyncio.gather(
            *(create(subject.store, request("CreateOrder", "r1"), new_order(f"o{n}")) for n in range(10))
        )
        assert sum(not answer.replayed for answer in answers) == 1
        assert len({answer.response.body for answer in answers}) == 1
        assert len(await subject.store.page(OrderFilter(), limit=20, after=None)) == 1

    async def test_creations_at_once_are_answered_one_by_one(self, make: Make) -> None:
        """A taken id, a repeated request and another payload concern no other creation."""
        subject = await make()
        await created(subject)
        names = [f"n{number}" for number in range(8)]
        *fresh, taken, repeated, mismatched = await asyncio.gather(
            *(create(subject.store, request("CreateOrder", name), new_order(name, lines=2)) for name in names),
            create(subject.store, request("CreateOrder", "again"), new_order("o1")),
            create(subject.store, request("CreateOrder", "o1"), new_order("o1")),
            create(subject.store, request("CreateOrder", "o1", fingerprint="g"), new_order("other")),
            return_exceptions=True,
        )
        assert all(isinstance(answer, Answer) and answer.response.ok and not answer.replayed for answer in fresh)
        assert isinstance(taken, Answer)
        assert not taken.response.ok
        assert isinstance(repeated, Answer)
        assert repeated.replayed
        assert isinstance(mismatched, KeyMismatch)
        listed = await subject.store.page(OrderFilter(), limit=99, after=None)
        assert {row.order.order_id for row in listed} == {"o1", *names}
        assert all(len(row.order.lines) == 2 for row in listed if row.order.order_id != "o1")
        assert [event.version for name in names for event in await subject.history(name)] == [1] * len(names)

    async def test_order_is_cancelled_once(self, make: Make) -> None:
        """The repeat of the request id is replayed; another request id meets ILLEGAL_STATE, which is stored too."""
        subject = await make()
        made = await created(subject)
        first, again = await made.cancel("c1"), await made.cancel("c1")
        assert (first.response.ok, first.replayed, again.replayed) == (True, False, True)
        assert first.response == again.response
        assert (await made.now()).state is OrderState.CANCELLED
        late = [await made.cancel("c2"), await made.cancel("c2")]
        assert [(answer.response.ok, answer.replayed) for answer in late] == [(False, False), (False, True)]
        assert late[0].response == late[1].response
        assert [event.to_state for event in await subject.history("o1")] == [OrderState.UNPAID, OrderState.CANCELLED]

    async def test_cancellation_repeated_at_once_is_done_once(self, make: Make) -> None:
        """No repeat is refused because the order is CANCELLED, or not at the expected version any more."""
        subject = await make()
        made = await created(subject)
        answers = await asyncio.gather(*(made.cancel("c1", expected_version=1) for _ in range(10)))
        assert sorted(answer.replayed for answer in answers) == [False] + [True] * 9
        assert {answer.response for answer in answers} == {answers[0].response}
        assert answers[0].response.ok
        assert len(await subject.history("o1")) == 2

    async def test_another_version_is_refused_and_not_stored(self, make: Make) -> None:
        """STALE_VERSION passes: the same request id works once the order is at that version."""
        made = await created(await make())
        with pytest.raises(StaleVersion):
            await made.cancel("c1", expected_version=3)
        await made.claim()
        await made.release()
        assert (await made.cancel("c1", expected_version=3)).response.ok

    async def test_missing_order_is_refused_and_not_stored(self, make: Make) -> None:
        """ORDER_NOT_FOUND passes: the order may be made yet."""
        subject = await make()
        with pytest.raises(NotFound):
            await Made(subject, new_order()).cancel("c1")
        made = await created(subject)
        assert (await made.cancel("c1")).response.ok

    async def test_another_customers_order_is_not_there(self, make: Make) -> None:
        """Not to be cancelled, and not even a stored answer about it is shown."""
        made = await created(await make())
        with pytest.raises(NotFound):
            await made.cancel("c1", customer_id="other")
        assert (await made.cancel("c1", customer_id="mei")).response.ok
        with pytest.raises(NotFound):
            await made.cancel("c1", customer_id="other")


class MoveContract:
    """Claims, completions, releases and reopenings. A subclass brings the fixture `make`, as above."""

    async def test_order_goes_through_two_rounds(self, make: Make) -> None:
        """Claim, decline, claim, complete, reopen, claim: every step in the history, with fence and actor."""
        subject = await make()
        made = await created(subject, new_order(lines=2))
        steps = [
            await made.claim("p1"),
            await made.release("p1"),
            await made.claim("p2", NEWER),
            await made.complete("p2", NEWER),
            await made.reopen("p2", NEWER),
            await made.claim("p3", NEWER),
        ]
        expected = [
            ("PAYING", "p1", 1),
            ("UNPAID", "", 1),
            ("PAYING", "p2", 1),
            ("PAID", "p2", 1),
            ("UNPAID", "", 2),
            ("PAYING", "p3", 2),
        ]
        assert [(step.state, step.payment_id, step.round) for step in map(_order, steps)] == expected
        assert [_order(step).version for step in steps] == [2, 3, 4, 5, 6, 7]
        paid = _order(steps[3])
        assert (paid.settled_by, paid.settled_at_ms, paid.updated_at_ms, paid.lines) == (
            WANG,
            2_500,
            3_000,
            made.order.lines,
        )
        assert await made.now() == steps[-1]
        events = (await subject.history("o1"))[1:]
        assert [event.payment_id for event in events] == ["p1", "p1", "p2", "p2", "p2", "p3"]
        assert [event.fence for event in events] == [FENCE, FENCE, NEWER, NEWER, NEWER, NEWER]
        assert {(event.actor, event.at_ms) for event in events} == {(WANG, 3_000)}

    async def test_repeats_change_nothing(self, make: Make) -> None:
        """Each of the four moves asked for again by the same payment is answered with the order as it stands."""
        subject = await make()
        made = await created(subject)
        for move in (made.claim, made.complete, made.reopen, made.claim, made.release):
            first = await move()
            assert await move() == first
        assert [event.version for event in await subject.history("o1")] == [1, 2, 3, 4, 5, 6]

    async def test_late_repeat_is_answered_with_the_order_as_it_stands(self, make: Make) -> None:
        """A claim repeated after its completion, a release after another's claim: no error, no change."""
        made = await created(await make())
        await made.claim("p1")
        paid = await made.complete("p1")
        assert await made.claim("p1") == paid
        assert await made.claim("p2") == paid
        assert await made.release("p1") == paid
        assert await made.reopen("p2") == paid

    async def test_cancelled_order_is_not_claimed(self, make: Make) -> None:
        """The claim is answered with the order as it stands."""
        made = await created(await make())
        await made.cancel("c1")
        assert _order(await made.claim()).state is OrderState.CANCELLED

    async def test_completion_without_a_claim_is_refused(self, make: Make) -> None:
        """ILLEGAL_STATE by the guard `state`; the order stays with its own payment."""
        made = await created(await make())
        refusals = [await made.complete("p2")]
        claimed = await made.claim("p1")
        refusals.append(await made.complete("p2"))
        for refusal in refusals:
            assert isinstance(refusal, FailedPrecondition)
            assert (refusal.reason, refusal.metadata["guard"]) == ("ILLEGAL_STATE", "state")
        assert await made.now() == claimed

    async def test_ten_claims_at_once_grant_one(self, make: Make) -> None:
        """Ten payments under one fence: all are told of the same one."""
        subject = await make()
        made = await created(subject)
        outcomes = await asyncio.gather(*(made.claim(f"p{n}") for n in range(10)))
        holders = {_order(outcome).payment_id for outcome in outcomes}
        assert len(holders) == 1
        assert len(await subject.history("o1")) == 2

    async def test_claims_and_cancellations_at_once_end_in_one_of_both(self, make: Make) -> None:
        """Whichever came first, order by order; never a claimed order that is cancelled, and nobody fails."""
        subject = await make()
        orders = [await created(subject, new_order(f"o{number:02}")) for number in range(20)]
        claims, cancelled = await asyncio.gather(
            asyncio.gather(*(made.claim() for made in orders)),
            asyncio.gather(*(made.cancel(f"c-{made.order.order_id}") for made in reversed(orders))),
        )
        for made, claim, answer in zip(orders, claims, reversed(cancelled), strict=True):
            expected = OrderState.CANCELLED if answer.response.ok else OrderState.PAYING
            assert (await made.now()).state is _order(claim).state is expected
            assert len(await subject.history(made.order.order_id)) == 2

    async def test_fence_that_is_behind_is_refused(self, make: Make) -> None:
        """By every move, before anything else; generation before token; and nothing changes."""
        subject = await make()
        made = await created(subject)
        claimed = await made.claim("p1", Fence(2, 50))
        for move in (made.claim, made.complete, made.release, made.reopen):
            for behind in (Fence(2, 49), Fence(1, 2**62)):
                refusal = await move("p1", behind)
                assert isinstance(refusal, StaleFence)
                assert refusal.metadata == {
                    "subject": "order o1",
                    "carried": str(behind),
                    "seen": "2.32",
                    "guard": "fence",
                }
        assert await made.now() == claimed
        assert await subject.fence("o1") == Fence(2, 50)

    async def test_fence_is_raised_even_if_nothing_else_is_done(self, make: Make) -> None:
        """By a claim that is not granted and by a completion that is refused: their lock is newer all the same."""
        subject = await make()
        made = await created(subject)
        await made.claim("p1", FENCE)
        await made.claim("p2", NEWER)
        assert await subject.fence("o1") == NEWER
        assert isinstance(await made.complete("p2", Fence(3, 1)), FailedPrecondition)
        assert await subject.fence("o1") == Fence(3, 1)
        assert isinstance(await made.complete("p1", NEWER), StaleFence)

    async def test_tokens_need_all_64_bits(self, make: Make) -> None:
        """A czxid carries ZooKeeper's epoch in its upper half."""
        subject = await make()
        made = await created(subject)
        large = Fence(1, 2**63 - 1)
        assert _order(await made.claim("p1", large)).payment_id == "p1"
        assert await subject.fence("o1") == large
        assert isinstance(await made.complete("p1", Fence(1, 2**63 - 2)), StaleFence)

    async def test_moves_of_a_missing_order_are_not_found(self, make: Make) -> None:
        """ORDER_NOT_FOUND, not STALE_FENCE."""
        made = Made(await make(), new_order())
        for move in (made.claim, made.complete, made.release, made.reopen):
            refusal = await move()
            assert isinstance(refusal, NotFound)
            assert (refusal.reason, refusal.metadata) == ("ORDER_NOT_FOUND", {"order_id": "o1"})

    async def test_list_is_answered_item_by_item(self, make: Make) -> None:
        """In the order asked for; one refused item does not hinder the others; repeats within a list are seen."""
        subject = await make()
        for order_id in ("o1", "o2", "o3"):
            await created(subject, new_order(order_id, lines=1))
        asked = [("o3", "p1"), ("o9", "p1"), ("o1", "p1"), ("o3", "p2"), ("o1", "p1")]
        outcomes = await subject.store.claim([Change(o, p, FENCE, LI, at_ms=3_000) for o, p in asked])
        assert isinstance(outcomes[1], NotFound)
        granted = [
            (_order(outcome).order_id, _order(outcome).payment_id) for outcome in outcomes if outcome != outcomes[1]
        ]
        assert granted == [("o3", "p1"), ("o1", "p1"), ("o3", "p1"), ("o1", "p1")]
        assert [_order(outcome).version for outcome in outcomes if outcome != outcomes[1]] == [2, 2, 2, 2]
        untouched = await subject.store.get("o2")
        assert untouched is not None
        assert untouched.version == 1
        assert await subject.store.claim([]) == []

    async def test_two_lists_in_opposite_order_both_end(self, make: Make) -> None:
        """No circle of waiting; each order goes to one of the two payments."""
        subject = await make()
        names = [f"o{number:02}" for number in range(12)]
        for name in names:
            await created(subject, new_order(name))
        there, back = await asyncio.gather(
            subject.store.claim([Change(name, "p1", FENCE, LI, at_ms=3_000) for name in names]),
            subject.store.claim([Change(name, "p2", FENCE, LI, at_ms=3_000) for name in reversed(names)]),
        )
        assert [_order(outcome).payment_id for outcome in there] == [
            _order(outcome).payment_id for outcome in back[::-1]
        ]


class FeedContract:
    """Who watches is told of every change once it is committed."""

    async def test_every_change_of_an_order_is_told_as_it_was_returned(self, make: Make) -> None:
        subject = await make()
        async with watching(subject.store.feed) as watch:
            made = await created(subject)
            claimed, paid = await made.claim(), await made.complete()
            assert isinstance(paid, Order)
            assert await watch.until(paid) == [new_order(), claimed, paid]

    async def test_cancelled_order_is_told(self, make: Make) -> None:
        subject = await make()
        made = await created(subject)
        async with watching(subject.store.feed) as watch:
            await made.cancel("c1")
            assert await watch.until(await made.now()) == [await made.now()]

    async def test_what_changes_nothing_is_not_told(self, make: Make) -> None:
        """A repeated request, a refused one, a repeated move, a stale fence."""
        subject = await make()
        made = await created(subject)
        await made.cancel("c1")
        async with watching(subject.store.feed) as watch:
            await create(subject.store, request("CreateOrder", "o1"), new_order())
            await create(subject.store, request("CreateOrder", "r2"), new_order())
            await made.cancel("c1")
            await made.claim()
            other = await created(subject, new_order("o2"))
            assert await watch.until(await other.now()) == [new_order("o2")]


class ReadContract:
    """Lists, amounts, and what the guards stop. A subclass brings the fixture `make`, as above."""

    async def test_orders_are_paged_newest_first(self, make: Make) -> None:
        """Every order once, lines included; an order made meanwhile does not shift the pages after it."""
        subject = await make()
        for number in range(5):
            await created(subject, new_order(f"o{number}", lines=number % 2))
        first = await subject.store.page(OrderFilter(), limit=2, after=None)
        await created(subject, new_order("o5"))
        second = await subject.store.page(OrderFilter(), limit=2, after=first[-1].place)
        third = await subject.store.page(OrderFilter(), limit=2, after=second[-1].place)
        found = [listed.order for page in (first, second, third) for listed in page]
        assert [order.order_id for order in found] == ["o4", "o3", "o2", "o1", "o0"]
        assert [len(order.lines) for order in found] == [0, 1, 0, 1, 0]
        assert [len(page) for page in (first, second, third)] == [2, 2, 1]
        assert await subject.store.page(OrderFilter(), limit=2, after=third[-1].place) == []

    async def test_orders_are_filtered(self, make: Make) -> None:
        """By customer, by state, by both."""
        subject = await make()
        for number, customer in enumerate(("mei", "mei", "tom", "tom")):
            made = await created(subject, new_order(f"o{number}", customer))
            if number % 2:
                await made.claim()

        async def found(which: OrderFilter) -> list[str]:
            return [listed.order.order_id for listed in await subject.store.page(which, limit=9, after=None)]

        assert await found(OrderFilter(customer_id="mei")) == ["o1", "o0"]
        assert await found(OrderFilter(state=OrderState.PAYING)) == ["o3", "o1"]
        assert await found(OrderFilter(customer_id="tom", state=OrderState.UNPAID)) == ["o2"]
        assert await found(OrderFilter(customer_id="nobody")) == []

    async def test_move_without_fence_guard_accepts_a_stale_fence(self, make: Make) -> None:
        """What the guard stops; the newest fence is remembered all the same."""
        subject = await make(Guards.without(["fence"]))
        made = await created(subject)
        await made.claim("p1", NEWER)
        assert _order(await made.complete("p1", FENCE)).state is OrderState.PAID
        assert await subject.fence("o1") == NEWER

    async def test_create_without_ticket_guard_makes_another_order_when_repeated(self, make: Make) -> None:
        """What the guard stops."""
        subject = await make(Guards.without(["ticket"]))
        answers = [await create(subject.store, request("CreateOrder", "r1"), new_order(name)) for name in ("o1", "o2")]
        assert [answer.replayed for answer in answers] == [False, False]
        assert len(await subject.store.page(OrderFilter(), limit=9, after=None)) == 2

    async def test_amounts_keep_all_their_digits(self, make: Make) -> None:
        """The largest payable amount comes back as it went in."""
        made = await created(await make(), replace(new_order(), amount=Money(10**15, "CNY")))
        assert (await made.now()).amount == Money(10**15, "CNY")


class OrderStoreContract(RequestContract, MoveContract, FeedContract, ReadContract):
    """The whole suite."""


def _order(outcome: MoveOutcome) -> Order:
    if isinstance(outcome, CountinghouseError):
        raise outcome
    return outcome
