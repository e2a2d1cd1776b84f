"""Who may do what with whose order, and which failpoints are passed on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.kernel.clock import CallDeadline
from services.kernel.errors import (
    CountinghouseError,
    FailedPrecondition,
    InvalidArgument,
    KeyMismatch,
    NotFound,
    PermissionDenied,
    StaleFence,
)
from services.kernel.fence import Fence
from services.kernel.idempotency import Answer, KeyedRequest, RequestKey, StoredResponse
from services.kernel.money import Money
from services.kernel.principal import Principal, Role
from services.order.model import Order, OrderLine, OrderState
from services.order.operations import OrderDraft, OrderOperations
from services.order.ports import OrderFilter
from services.order.servicer import OrderResponses
from services.runtime.grpc.context import Call
from tests.fakes.clock import ManualClock
from tests.fakes.ids import SeededIds
from tests.fakes.order_store import FakeOrderStore

MEI = Principal("mei", Role.CUSTOMER)
TOM = Principal("tom", Role.CUSTOMER)
LI = Principal("li", Role.CASHIER)
PAYMENT = Principal("payment", Role.SERVICE)
FENCE = Fence(1, 1)


@dataclass
class Passages:
    """Failpoints that write down who passes, and how many events there were by then."""

    store: FakeOrderStore
    passed: list[tuple[str, tuple[str, ...], int]] = field(default_factory=list)

    async def hit(self, name: str, call: Call | None, *subjects: str) -> None:
        assert call is not None
        self.passed.append((name, subjects, len(self.store.events)))


class ChosenIds(SeededIds):
    """Gives `next_id` once, if it is set."""

    next_id = ""

    def new(self, prefix: str) -> str:
        chosen, self.next_id = self.next_id, ""
        return chosen or super().new(prefix)


class InMemoryService:
    """Operations on a fake store."""

    def __init__(self) -> None:
        self.clock = ManualClock(5_000)
        self.store = FakeOrderStore()
        self.failpoints = Passages(self.store)
        self.ids = ChosenIds(1)
        self.operations = OrderOperations(self.store, self.clock, self.ids, self.failpoints, OrderResponses())

    def call(self, principal: Principal) -> Call:
        return Call("/x/y", principal, CallDeadline.after(1, self.clock))

    async def create(
        self, principal: Principal, key: str = "r1", *, order_id: str = "o1", customer: str = "mei"
    ) -> bool:
        """Creates an order that gets the id `order_id`: chosen by staff, and by the id source for a customer."""
        if principal.role is Role.CUSTOMER:
            self.ids.next_id, order_id = order_id, ""
        draft = OrderDraft(order_id, customer, Money(100, "CNY"), ())
        return (await self.operations.create(self.call(principal), key, "f", draft)).response.ok


@pytest.fixture
def service() -> InMemoryService:
    return InMemoryService()


@pytest.mark.parametrize("clerk", [MEI, LI, Principal("wang", Role.ACCOUNTANT)])
async def test_clerk_orders_for_any_customer_and_customer_for_themselves(
    service: InMemoryService, clerk: Principal
) -> None:
    """The customer in the request is the one whose order it is; the caller is in the history."""
    assert await service.create(clerk)
    assert (await service.operations.get(service.call(LI), "o1")).customer_id == "mei"
    assert service.store.events[0].actor == clerk


async def test_customer_cannot_make_an_order_for_another(service: InMemoryService) -> None:
    """NOT_YOUR_ORDER, and nothing is made."""
    with pytest.raises(PermissionDenied) as refusal:
        await service.create(TOM)
    assert refusal.value.reason == "NOT_YOUR_ORDER"
    assert not service.store.events


async def test_order_without_a_name_gets_one(service: InMemoryService) -> None:
    """From the id source, with the prefix `ord`; and it is dated by the clock."""
    await service.create(MEI, order_id="")
    (listed,) = await service.operations.page(service.call(MEI), OrderFilter(), limit=9, after=None)
    order = listed.order
    assert order.order_id == SeededIds(1).new("ord")
    assert (order.created_at_ms, order.updated_at_ms) == (5_000, 5_000)


@pytest.mark.parametrize("order_id", ["o1", "o2"])
async def test_create_order_id_chosen_by_customer_is_refused_whether_or_not_it_is_taken(
    service: InMemoryService, order_id: str
) -> None:
    """The refusal is the same for another's order as for no order, and is not remembered: without an id it works."""
    await service.create(LI, customer="tom")
    draft = OrderDraft(order_id, "mei", Money(100, "CNY"), ())
    with pytest.raises(PermissionDenied) as refusal:
        await service.operations.create(service.call(MEI), "r1", "f", draft)
    assert refusal.value.reason == "ORDER_ID_NOT_YOURS"
    assert order_id not in refusal.value.message
    assert await service.store.get("o2") is None
    assert await service.create(MEI, order_id="")


async def test_create_order_id_chosen_by_customer_before_the_upgrade_is_answered_from_the_store(
    service: InMemoryService,
) -> None:
    """And still makes no second order."""
    order = Order("o1", "mei", Money(100, "CNY"), (), 1, 1)
    request = KeyedRequest(RequestKey(MEI, "CreateOrder", "r1"), "f", at_ms=1)
    before = await service.store.create(request, order, StoredResponse(True, b"done"))
    assert before is not None
    draft = OrderDraft("o1", "mei", Money(100, "CNY"), ())
    answer = await service.operations.create(service.call(MEI), "r1", "f", draft)
    assert (answer.response, answer.replayed) == (before.response, True)
    assert len(service.store.events) == 1


async def test_order_that_does_not_add_up_is_not_stored(service: InMemoryService) -> None:
    """A malformed request stores nothing: the same request id may be sent again, mended."""
    lines = (OrderLine("tea", 1, Money(99, "CNY")),)
    with pytest.raises(InvalidArgument):
        await service.operations.create(service.call(MEI), "r1", "f", OrderDraft("", "mei", Money(100, "CNY"), lines))
    assert await service.create(MEI)


async def test_request_id_belongs_to_its_caller(service: InMemoryService) -> None:
    """Two customers' equal request ids never meet; one customer's second payload does."""
    assert await service.create(MEI)
    assert await service.create(TOM, order_id="o2", customer="tom")
    with pytest.raises(KeyMismatch):
        await service.operations.create(service.call(MEI), "r1", "other", OrderDraft("", "mei", Money(1, "CNY"), ()))


async def test_create_equal_request_ids_of_a_customer_and_a_clerk_of_one_name_are_two_orders(
    service: InMemoryService,
) -> None:
    """Neither is answered with the other's order, or refused for the other's payload."""
    assert await service.create(LI, "r1", order_id="o1", customer="mei")
    assert await service.create(Principal("li", Role.CUSTOMER), "r1", order_id="o2", customer="li")
    with pytest.raises(NotFound):
        await service.operations.get(service.call(Principal("li", Role.CUSTOMER)), "o1")


async def test_another_customers_order_is_not_there(service: InMemoryService) -> None:
    """Reading and cancelling say ORDER_NOT_FOUND, just as for an order that nobody made."""
    await service.create(MEI)
    refusals: list[CountinghouseError] = []
    for order_id in ("o1", "o9"):
        with pytest.raises(NotFound) as read:
            await service.operations.get(service.call(TOM), order_id)
        with pytest.raises(NotFound) as cancelled:
            await service.operations.cancel(service.call(TOM), "c1", "f", order_id, 0, "late")
        refusals += [read.value, cancelled.value]
    assert {refusal.reason for refusal in refusals} == {"ORDER_NOT_FOUND"}
    assert {refusal.message.replace("o9", "o1") for refusal in refusals} == {refusals[0].message}
    assert (await service.operations.get(service.call(MEI), "o1")).state is OrderState.UNPAID


async def test_customer_lists_own_orders_and_staff_all(service: InMemoryService) -> None:
    """A customer who asks for another's orders gets none; who asks for all gets their own."""
    await service.create(MEI)
    await service.create(LI, "r2", order_id="o2", customer="tom")

    async def listed(principal: Principal, which: OrderFilter) -> list[str]:
        page = await service.operations.page(service.call(principal), which, limit=9, after=None)
        return [listed.order.order_id for listed in page]

    assert await listed(MEI, OrderFilter()) == ["o1"]
    assert await listed(MEI, OrderFilter(customer_id="mei")) == ["o1"]
    assert await listed(MEI, OrderFilter(customer_id="tom")) == []
    assert await listed(MEI, OrderFilter(state=OrderState.PAID)) == []
    for role in (Role.CASHIER, Role.AUDITOR, Role.SERVICE):
        assert await listed(Principal("x", role), OrderFilter()) == ["o2", "o1"]
        assert await listed(Principal("x", role), OrderFilter(customer_id="tom")) == ["o2"]


async def test_customer_cancels_their_own_order(service: InMemoryService) -> None:
    """And is told of it again when they repeat the request."""
    await service.create(MEI)
    first = await service.operations.cancel(service.call(MEI), "c1", "f", "o1", 1, "late")
    again = await service.operations.cancel(service.call(MEI), "c1", "f", "o1", 1, "late")
    assert (first.replayed, again.replayed) == (False, True)
    assert first.response == again.response


async def test_settlement_and_its_reversal(service: InMemoryService) -> None:
    """Clerk of the claim and of the completion come from the request, of the others from the service's token."""
    await service.create(MEI)
    operations, call = service.operations, service.call(PAYMENT)
    service.clock.advance(1_000)
    claimed = await operations.claim(call, "o1", "p1", FENCE, LI)
    paid = await operations.complete(call, "o1", "p1", FENCE, settled_by=LI, settled_at_ms=5_900)
    again = await operations.reopen(call, "o1", "p1", FENCE)
    assert [order.state for order in (claimed, paid, again)] == [OrderState.PAYING, OrderState.PAID, OrderState.UNPAID]
    assert (paid.settled_by, paid.settled_at_ms, paid.updated_at_ms) == (LI, 5_900, 6_000)
    await operations.claim(call, "o1", "p2", FENCE, LI)
    assert (await operations.release(call, "o1", "p2", FENCE)).state is OrderState.UNPAID
    assert [event.actor for event in service.store.events] == [MEI, LI, LI, PAYMENT, LI, PAYMENT]


async def test_refusals_of_the_store_are_raised(service: InMemoryService) -> None:
    """One item's refusal becomes the call's."""
    await service.create(MEI)
    operations, call = service.operations, service.call(PAYMENT)
    with pytest.raises(NotFound):
        await operations.claim(call, "o9", "p1", FENCE, LI)
    with pytest.raises(FailedPrecondition):
        await operations.complete(call, "o1", "p1", Fence(1, 5), settled_by=LI, settled_at_ms=1)
    with pytest.raises(StaleFence):
        await operations.release(call, "o1", "p1", FENCE)


async def test_failpoints_are_passed_in_order(service: InMemoryService) -> None:
    """`accepted` before anything was written, `claimed` and `completed` after; with the order and the payment."""
    await service.create(MEI)
    operations, call = service.operations, service.call(PAYMENT)
    await operations.claim(call, "o1", "p1", FENCE, LI)
    await operations.complete(call, "o1", "p1", FENCE, settled_by=LI, settled_at_ms=1)
    await operations.reopen(call, "o1", "p1", FENCE)
    await operations.release(call, "o1", "p1", FENCE)
    await operations.cancel(service.call(MEI), "c1", "f", "o1", 0, "late")
    of_both = ("o1", "p1")
    assert service.failpoints.passed == [
        ("accepted", ("o1",), 0),
        ("accepted", of_both, 1),
        ("claimed", of_both, 2),
        ("accepted", of_both, 2),
        ("completed", of_both, 3),
        ("accepted", of_both, 3),
        ("accepted", of_both, 4),
        ("accepted", ("o1",), 4),
    ]


async def test_reads_pass_no_failpoint(service: InMemoryService) -> None:
    """Only what changes something can be interrupted."""
    await service.create(MEI)
    service.failpoints.passed.clear()
    order = await service.operations.get(service.call(MEI), "o1")
    assert isinstance(order, Order)
    await service.operations.page(service.call(MEI), OrderFilter(), limit=1, after=None)
    assert service.failpoints.passed == []


BLANKS = ("", " ", "\u3000", "\u200b\ufeff", "\u00a0\u2028\t", "\u2800\u3164\u115f", "\u034f")


async def test_cancel_of_an_order_that_changes_before_the_write_is_decided_again(
    service: InMemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The payment that claimed it keeps it; the refusal is stored and names its state."""
    await service.create(MEI)
    write = service.store.cancel

    async def claimed_before(*step: Any) -> Answer | None:
        await service.operations.claim(service.call(PAYMENT), "o1", "p1", FENCE, LI)
        return await write(*step)

    monkeypatch.setattr(service.store, "cancel", claimed_before)
    for replayed in (False, True):
        answer = await service.operations.cancel(service.call(LI), "c1", "f", "o1", 0, "late")
        assert (answer.response.ok, answer.replayed) == (False, replayed)
        assert b"PAYING" in answer.response.body
    assert (await service.operations.get(service.call(LI), "o1")).state is OrderState.PAYING


async def test_cancel_whose_repeat_commits_between_its_reads_is_replayed(
    service: InMemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not refused with STALE_VERSION: the order is read before the stored answer."""
    await service.create(MEI)
    repeats: list[Answer] = []
    begun = False

    def followed_by_repeat(read: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def step(*arguments: Any) -> Any:
            nonlocal begun
            found = await read(*arguments)
            if not begun:
                begun = True
                repeats.append(await service.operations.cancel(service.call(LI), "c1", "f", "o1", 1, "late"))
            return found

        return step

    for name in ("get", "answered"):
        monkeypatch.setattr(service.store, name, followed_by_repeat(getattr(service.store, name)))
    answer = await service.operations.cancel(service.call(LI), "c1", "f", "o1", 1, "late")
    assert [repeat.replayed for repeat in repeats] == [False]
    assert (answer.response, answer.replayed) == (repeats[0].response, True)


@pytest.mark.parametrize("reason", BLANKS)
async def test_cancel_without_a_reason_that_can_be_seen_is_refused(service: InMemoryService, reason: str) -> None:
    """And not remembered: with a reason the same request id cancels."""
    await service.create(LI)
    with pytest.raises(InvalidArgument) as refusal:
        await service.operations.cancel(service.call(LI), "c1", "f", "o1", 0, reason)
    assert (refusal.value.reason, refusal.value.fields[0][0]) == ("FIELD_REQUIRED", "reason")
    assert (await service.operations.get(service.call(LI), "o1")).state is OrderState.UNPAID
    assert (await service.operations.cancel(service.call(LI), "c1", "f", "o1", 0, "late")).response.ok


async def test_cancel_of_before_reasons_is_answered_from_the_store(service: InMemoryService) -> None:
    """A release that asked for no reason cancelled it; the same call is replayed, and cancels nothing again."""
    await service.create(LI)
    request = KeyedRequest(RequestKey(LI, "CancelOrder", "c1"), "f", at_ms=1)
    before = await service.store.answer(request, StoredResponse(True, b"done"))
    answer = await service.operations.cancel(service.call(LI), "c1", "f", "o1", 0, "")
    assert (answer.response, answer.replayed) == (before.response, True)


async def test_history_of_an_order_shows_actor_change_time_and_reason(service: InMemoryService) -> None:
    """Of a settlement that was reversed, and of the cancellation after it; a page at a time."""
    await service.create(LI)
    wang = Principal("wang", Role.ACCOUNTANT)
    caller = service.call(PAYMENT)
    await service.operations.claim(caller, "o1", "p1", FENCE, LI)
    await service.operations.complete(caller, "o1", "p1", FENCE, settled_by=LI, settled_at_ms=7)
    await service.operations.reopen(caller, "o1", "p1", FENCE, actor=wang, reason="wrong order")
    await service.operations.cancel(service.call(LI), "c1", "f", "o1", 0, "ordered twice")
    events = await service.operations.history(service.call(MEI), "o1", after=0, limit=9)
    assert [(event.version, event.to_state, event.actor, event.reason) for event in events] == [
        (1, OrderState.UNPAID, LI, ""),
        (2, OrderState.PAYING, LI, ""),
        (3, OrderState.PAID, LI, ""),
        (4, OrderState.UNPAID, wang, "wrong order"),
        (5, OrderState.CANCELLED, LI, "ordered twice"),
    ]
    assert {event.at_ms for event in events} == {5_000}
    assert await service.operations.history(service.call(MEI), "o1", after=1, limit=2) == events[1:3]


async def test_history_of_another_customers_order_is_not_there(service: InMemoryService) -> None:
    """As the order itself; staff and its own customer see it."""
    await service.create(MEI)
    for stranger in (TOM, Principal("tom", Role.CUSTOMER)):
        with pytest.raises(NotFound):
            await service.operations.history(service.call(stranger), "o1", after=0, limit=9)
    for reader in (MEI, LI, Principal("audit", Role.AUDITOR)):
        assert len(await service.operations.history(service.call(reader), "o1", after=0, limit=9)) == 1
