"""What a reader of the gateway is told of the changes at all instances."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.gateway import watching
from services.gateway.watching import Event, Piece, Watch, positions_in
from services.kernel.errors import CountinghouseError, ResourceExhausted, Unauthenticated, Unavailable

A, B = "a:1", "b:1"
Said = Piece | CountinghouseError | None


class Instances:
    """A source whose instances tell what a test has them tell.

    Attributes:
        asked: The positions from which each instance was watched.
    """

    topic = "orders"

    def __init__(self, *addresses: str) -> None:
        self._says: dict[str, asyncio.Queue[Said]] = {}
        self._changed: list[Callable[[], None]] = []
        self.asked: dict[str, list[str]] = {}
        for address in addresses:
            self.come(address)

    def addresses(self) -> frozenset[str]:
        return frozenset(self._says)

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        self._changed.append(changed)
        return lambda: self._changed.remove(changed)

    async def watch(self, address: str, position: str, order_id: str, authorization: str) -> AsyncIterator[Piece]:
        assert (order_id, authorization) == ("o1", "Bearer abc")
        self.asked.setdefault(address, []).append(position)
        while (said := await self._says[address].get()) is not None:
            if isinstance(said, CountinghouseError):
                raise said
            yield said

    def come(self, address: str) -> None:
        """An instance is registered, and its watch begins."""
        self._says[address] = asyncio.Queue()
        self.say(address, piece("0"))
        for changed in self._changed:
            changed()

    def go(self, address: str) -> None:
        del self._says[address]
        for changed in self._changed:
            changed()

    def say(self, address: str, said: Said) -> None:
        """None: the watch ends."""
        self._says[address].put_nowait(said)


def piece(position: str, *versions: int, lost: bool = False) -> Piece:
    return Piece([{"version": version} for version in versions], position, lost)


@asynccontextmanager
async def watched(
    instances: Instances, positions: Mapping[str, str] | None = None
) -> AsyncIterator[AsyncGenerator[Event, None]]:
    events = Watch([instances], "o1", "Bearer abc", positions).events()
    try:
        yield events
    finally:
        await events.aclose()


async def following(events: AsyncGenerator[Event, None]) -> Event:
    """The next event that is not idle."""
    async with asyncio.timeout(10):
        while (event := await anext(events)).name == "idle":
            pass
        return event


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_AGAIN_S", 0.0)


async def test_reader_is_told_of_the_changes_at_every_instance() -> None:
    instances = Instances(A, B)
    async with watched(instances) as events:
        assert (await following(events)).name == "begun"
        for address in (A, B):
            instances.say(address, piece("1", 7, 8))
            event = await following(events)
            assert (event.name, event.data) == ("orders", {"orders": [{"version": 7}, {"version": 8}]})
            assert positions_in(event.event_id)[f"orders@{address}"] == "1"
        assert instances.asked == {A: [""], B: [""]}


async def test_reader_goes_on_at_every_instance_where_they_were() -> None:
    instances = Instances(A, B)
    async with watched(instances, {f"orders@{A}": "5", f"orders@{B}": "6"}) as events:
        assert (await following(events)).name == "begun"
        instances.say(A, piece("7", 1))
        assert (await following(events)).name == "orders"
    assert instances.asked == {A: ["5"], B: ["6"]}


@pytest.mark.parametrize("last", [f"orders%40{A}=5&orders%40c%3A1=6", "rubbish", "another=life", "x=1&" * 1000])
async def test_reader_who_goes_on_from_what_is_no_more_is_told_that_changes_were_lost(last: str) -> None:
    """An instance is gone, or the id is made up."""
    async with watched(Instances(A), positions_in(last)) as events:
        assert [(await following(events)).name for _ in range(2)] == ["begun", "lost"]


async def test_watch_that_ends_is_begun_again_where_it_was() -> None:
    """The connection was lost, or the server has stopped the watch."""
    instances = Instances(A)
    async with watched(instances) as events:
        await following(events)
        for number, said in enumerate((None, Unavailable("SERVER_STOPPING", "it stops")), start=1):
            instances.say(A, piece(f"{number}", number))
            assert (await following(events)).name == "orders"
            instances.say(A, said)
        instances.say(A, piece("3", 3))
        assert (await following(events)).data == {"orders": [{"version": 3}]}
    assert instances.asked[A] == ["", "1", "2"]


async def test_lost_changes_are_told_before_those_that_follow() -> None:
    instances = Instances(A)
    async with watched(instances) as events:
        await following(events)
        instances.say(A, piece("9", 5, lost=True))
        assert [(await following(events)).name for _ in range(2)] == ["lost", "orders"]


async def test_instance_that_goes_may_have_changed_more() -> None:
    """Of what it committed last nothing may have been told."""
    instances = Instances(A, B)
    async with watched(instances) as events:
        await following(events)
        instances.go(A)
        event = await following(events)
        assert (event.name, event.data) == ("lost", {"topic": "orders"})
        assert f"orders@{A}" not in positions_in(event.event_id)
        instances.say(B, piece("1", 1))
        assert (await following(events)).name == "orders"


async def test_instance_that_comes_may_have_changed_something_before() -> None:
    instances = Instances(A)
    async with watched(instances) as events:
        await following(events)
        instances.come(B)
        assert (await following(events)).name == "lost"
        instances.say(B, piece("1", 1))
        assert (await following(events)).name == "orders"


@pytest.mark.parametrize(
    "refusal", [Unauthenticated("TOKEN_EXPIRED", "it has expired"), ResourceExhausted("CALLER_LIMIT", "too many")]
)
async def test_reader_who_may_watch_no_more_is_told_why(refusal: CountinghouseError) -> None:
    instances = Instances(A)
    async with watched(instances) as events:
        await following(events)
        instances.say(A, refusal)
        with pytest.raises(type(refusal)):
            await following(events)


async def test_reader_is_refused_while_nothing_can_be_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_BEGIN_S", 0.01)
    async with watched(Instances()) as events:
        with pytest.raises(Unavailable) as refusal:
            await following(events)
    assert refusal.value.reason == "SERVICE_UNAVAILABLE"


async def test_instance_that_does_not_answer_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_BEGIN_S", 0.05)
    instances = Instances(A, B)
    instances._says[B].get_nowait()  # it says nothing
    async with watched(instances) as events:
        assert (await following(events)).name == "begun"
        instances.say(A, piece("1", 1))
        assert (await following(events)).name == "orders"


async def test_watch_leaves_nothing_behind() -> None:
    instances = Instances(A, B)
    before: set[Any] = asyncio.all_tasks()
    async with watched(instances) as events:
        await following(events)
        assert asyncio.all_tasks() > before
    assert asyncio.all_tasks() == before
    assert instances._changed == []
