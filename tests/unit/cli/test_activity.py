"""What is counted of the changes of orders and payments, and which payments are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from services.cli import activity
from services.cli.activity import Activity, ActivityLook, ActivityWatch, CountedSource, Listing, Payment
from services.gateway import watching
from services.gateway.sources import ORDERS, PAYMENTS
from services.gateway.watching import Piece
from services.kernel.errors import CountinghouseError, PermissionDenied, Unauthenticated, Unavailable


def change(payment_id: str, version: int, state: str, attention: str = "") -> dict[str, Any]:
    """A payment as an event has it."""
    return {
        "paymentId": payment_id,
        "version": str(version),
        "state": f"PAYMENT_STATE_{state}",
        "attention": attention,
    }


def listing(*payments: Payment, whole: bool = True) -> Listing:
    return Listing(payments, whole)


class TestCounting:
    """Without a watch."""

    def test_changes_are_counted_by_the_state_after_them(self) -> None:
        counted = Activity()
        counted.take(ORDERS, [{"state": "ORDER_STATE_PAID"}, {"state": "ORDER_STATE_UNPAID"}])
        counted.take(ORDERS, [{"state": "ORDER_STATE_PAID"}])
        counted.take(PAYMENTS, [change("p1", 3, "SUCCEEDED")])
        assert counted.look().changes == {ORDERS: {"PAID": 2, "UNPAID": 1}, PAYMENTS: {"SUCCEEDED": 1}}

    def test_each_look_counts_anew(self) -> None:
        counted = Activity()
        counted.take(ORDERS, [{"state": "ORDER_STATE_PAID"}])
        counted.lose(ORDERS)
        counted.look()
        found = counted.look()
        assert (found.changes, found.lost) == ({ORDERS: {}, PAYMENTS: {}}, [])

    def test_lost_changes_are_told_by_their_topic(self) -> None:
        """An empty one is any."""
        counted = Activity()
        counted.lose(PAYMENTS)
        assert counted.look().lost == [PAYMENTS]
        counted.lose("")
        assert counted.look().lost == [ORDERS, PAYMENTS]

    def test_open_payments_are_not_known_before_they_are_listed(self) -> None:
        counted = Activity()
        counted.take(PAYMENTS, [change("p1", 1, "UNKNOWN", "ACQUIRER_SILENT")])
        found = counted.look()
        assert (found.open, found.attention) == (None, None)

    def test_open_payments_are_those_listed_and_those_that_change(self) -> None:
        counted = Activity()
        counted.listed(listing(Payment("p1", 1, "UNKNOWN"), Payment("p2", 1, "SUBMITTED")))
        counted.take(PAYMENTS, [change("p3", 1, "CREATED"), change("p2", 2, "SUCCEEDED")])
        counted.take(PAYMENTS, [change("p1", 2, "UNKNOWN", "ACQUIRER_SILENT")])
        found = counted.look()
        assert (found.open, found.attention, found.whole) == ({"UNKNOWN": 1, "CREATED": 1}, 1, True)

    @pytest.mark.parametrize("state", ["SUCCEEDED", "DECLINED", "REVERSED"])
    def test_payment_that_has_ended_is_open_no_more(self, state: str) -> None:
        counted = Activity()
        counted.listed(listing(Payment("p1", 1, "UNKNOWN")))
        counted.take(PAYMENTS, [change("p1", 2, state)])
        assert counted.look().open == {}

    def test_payment_in_a_state_of_a_newer_release_is_open(self) -> None:
        """It may end either way."""
        counted = Activity()
        counted.listed(listing())
        counted.take(PAYMENTS, [change("p1", 2, "SUBMITTED") | {"state": 99}])
        assert counted.look().open == {"99": 1}

    def test_change_during_a_listing_is_newer_than_the_list(self) -> None:
        """The list may have read a payment before the change, or after it."""
        counted = Activity()
        counted.begin_listing()
        counted.take(PAYMENTS, [change("p1", 2, "SUCCEEDED"), change("p2", 2, "UNKNOWN"), change("p3", 1, "CREATED")])
        counted.listed(
            listing(Payment("p1", 1, "SUBMITTED"), Payment("p2", 3, "REVERSING"), Payment("p4", 1, "PARKED"))
        )
        assert counted.look().open == {"REVERSING": 1, "CREATED": 1, "PARKED": 1}

    def test_payment_that_ended_unseen_is_not_in_the_next_listing(self) -> None:
        counted = Activity()
        counted.listed(listing(Payment("p1", 1, "UNKNOWN")))
        counted.begin_listing()
        counted.listed(listing(whole=False))
        found = counted.look()
        assert (found.open, found.whole) == ({}, False)


Said = Piece | CountinghouseError


class FakeSource:
    """A service of one instance, which tells what a test has it tell.

    Attributes:
        asked: The position and the token of each watch.
    """

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.asked: list[tuple[str, str]] = []
        self._says: asyncio.Queue[Said] = asyncio.Queue()

    def addresses(self) -> frozenset[str]:
        return frozenset({"a:1"})

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    async def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:
        self.asked.append((position, authorization.removeprefix("Bearer ")))
        yield Piece([], position or "0", lost=False)
        while True:
            said = await self._says.get()
            if isinstance(said, CountinghouseError):
                raise said
            yield said

    def say(self, said: Said) -> None:
        self._says.put_nowait(said)


class NotingActivity(Activity):
    """Says when it has changed."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        super().__init__()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        self.changed.set()  # its problem, or a listing

    def take(self, topic: str, changed: Iterable[Mapping[str, Any]]) -> None:
        super().take(topic, changed)
        self.changed.set()

    def lose(self, topic: str) -> None:
        super().lose(topic)
        self.changed.set()


class Watched:
    """A watch under way, with what it has found."""

    def __init__(self) -> None:
        self.activity = NotingActivity()
        self.orders, self.payments = FakeSource(ORDERS), FakeSource(PAYMENTS)
        self.listings: list[Listing | CountinghouseError] = [listing()]
        self.listed = 0
        self._tokens = 0
        self.watch = ActivityWatch(self.activity, [self.orders, self.payments], self._token, self._list)

    def _token(self) -> str:
        self._tokens += 1
        return f"token-{self._tokens}"

    async def _list(self) -> Listing:
        self.listed += 1
        found = self.listings.pop(0) if len(self.listings) > 1 else self.listings[0]
        if isinstance(found, CountinghouseError):
            raise found
        return found

    async def until(self, condition: Callable[[ActivityLook], bool]) -> ActivityLook:
        """Return the first look of which this is true."""
        async with asyncio.timeout(30):
            while True:
                self.activity.changed.clear()
                if condition(found := self.activity.look()):
                    return found
                await self.activity.changed.wait()


@asynccontextmanager
async def watched(*listings: Listing | CountinghouseError) -> AsyncIterator[Watched]:
    found = Watched()
    if listings:
        found.listings = list(listings)
    task = asyncio.create_task(found.watch.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "_AGAIN_S", 0.0)
    monkeypatch.setattr(watching, "_AGAIN_S", 0.0)


async def test_open_payments_are_listed_when_the_watch_begins_and_followed() -> None:
    async with watched(listing(Payment("p1", 1, "UNKNOWN"))) as found:
        assert (await found.until(lambda look: look.open is not None)).open == {"UNKNOWN": 1}
        found.orders.say(Piece([{"state": "ORDER_STATE_PAID"}], "1", lost=False))
        assert (await found.until(lambda look: bool(look.changes[ORDERS]))).changes[ORDERS] == {"PAID": 1}
        found.payments.say(Piece([change("p1", 2, "SUCCEEDED")], "1", lost=False))
        assert (await found.until(lambda look: bool(look.changes[PAYMENTS]))).open == {}
        assert found.listed == 1


@pytest.mark.parametrize(("topic", "listings"), [(PAYMENTS, 2), (ORDERS, 1)])
async def test_lost_changes_of_payments_have_them_listed_again(topic: str, listings: int) -> None:
    async with watched() as found:
        await found.until(lambda look: look.open is not None)
        source = found.payments if topic == PAYMENTS else found.orders
        source.say(Piece([], "9", lost=True))
        assert (await found.until(lambda look: bool(look.lost))).lost == [topic]
        await found.until(lambda _look: not found.watch._to_list.is_set())
        await found.until(lambda _look: found.listed == listings)


async def test_token_that_has_expired_is_replaced_and_the_watch_goes_on_where_it_was() -> None:
    async with watched() as found:
        await found.until(lambda look: look.open is not None)
        found.payments.say(Piece([change("p1", 1, "CREATED")], "7", lost=False))
        await found.until(lambda look: bool(look.changes[PAYMENTS]))
        found.payments.say(Unauthenticated("TOKEN_EXPIRED", "the token has expired"))
        await found.until(lambda look: not look.problem and len(found.payments.asked) > 1)
        assert found.payments.asked == [("", "token-1"), ("7", "token-2")]
        found.payments.say(Piece([change("p1", 2, "SUCCEEDED")], "8", lost=False))
        look = await found.until(lambda look: bool(look.changes[PAYMENTS]))
        assert (look.lost, look.problem) == ([], "")


async def test_services_that_are_away_are_a_problem_until_they_are_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_BEGIN_S", 0.0)
    async with watched() as found:
        look = await found.until(lambda look: bool(look.problem))
        assert "no service can be watched now" in look.problem
        monkeypatch.setattr(watching, "_BEGIN_S", 30.0)
        await found.until(lambda look: not look.problem and look.open is not None)


async def test_listing_that_fails_is_tried_again() -> None:
    async with watched(Unavailable("SERVICE_UNAVAILABLE", "it is away"), listing(Payment("p1", 1, "PARKED"))) as found:
        assert (await found.until(lambda look: look.open is not None)).open == {"PARKED": 1}
        assert found.listed == 2


async def test_caller_who_may_not_watch_is_refused_for_good() -> None:
    found = Watched()
    found.orders.say(PermissionDenied("ROLE_NOT_ALLOWED", "a service may not watch"))
    with pytest.raises(PermissionDenied):
        async with asyncio.timeout(30):
            await found.watch.run()


async def test_source_counts_the_watches_that_have_begun() -> None:
    """One that was not answered is in flight nowhere."""
    source = FakeSource(ORDERS)
    counted = CountedSource(source)
    watch: Any = counted.watch("a:1", "", "", "Bearer t")
    async with aclosing(watch):
        assert counted.open["a:1"] == 0
        await anext(watch)
        assert counted.open["a:1"] == 1
        source.say(Piece([], "1", lost=False))
        await anext(watch)
        assert counted.open["a:1"] == 1
        source.say(Unavailable("SERVER_STOPPING", "it stops"))
        with pytest.raises(Unavailable):
            await anext(watch)
    assert counted.open["a:1"] == 0
    assert (counted.topic, counted.addresses()) == (ORDERS, frozenset({"a:1"}))
