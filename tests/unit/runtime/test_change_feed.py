"""What watchers are told of the changes of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from services.kernel.errors import NotFound, OutcomeUnknown, Unavailable
from services.runtime.change_feed import ChangeFeed, Changes

KEPT = 100


@pytest.fixture
def feed() -> ChangeFeed[int]:
    return ChangeFeed(kept=KEPT)


def everything(_change: int) -> bool:
    return True


async def following(watched: AsyncGenerator[Changes[int], None]) -> Changes[int]:
    """What a watcher is told next."""
    async with asyncio.timeout(10):
        return await anext(watched)


async def told(feed: ChangeFeed[int], position: str, number: int) -> tuple[list[int], str]:
    """The next so many changes behind a position, and the position behind them."""
    found: list[int] = []
    async with aclosing(feed.watch(position, everything)) as watched:
        while len(found) < number:
            piece = await following(watched)
            assert not piece.lost
            found += piece.changes
            position = piece.position
    return found, position


async def now(feed: ChangeFeed[int]) -> str:
    """The position behind all changes so far."""
    async with aclosing(feed.watch("", everything)) as watched:
        return (await following(watched)).position


async def test_watcher_is_told_of_changes_from_now_on_in_their_order(feed: ChangeFeed[int]) -> None:
    feed.publish([1, 2])
    async with aclosing(feed.watch("", everything)) as watched:
        piece = await following(watched)
        assert (list(piece.changes), piece.lost) == ([], False)
        feed.publish([3, 4])
        feed.publish([5])
        piece = await following(watched)
        assert (list(piece.changes), piece.lost) == ([3, 4, 5], False)
        waiting = asyncio.ensure_future(following(watched))
        await asyncio.sleep(0)
        feed.publish([6])
        assert list((await waiting).changes) == [6]


async def test_watcher_goes_on_where_it_was(feed: ChangeFeed[int]) -> None:
    """After it lost its connection, at this process."""
    position = await now(feed)
    feed.publish([1, 2])
    feed.publish([3])
    found, position = await told(feed, position, 3)
    assert found == [1, 2, 3]
    feed.publish([4])
    assert (await told(feed, position, 1))[0] == [4]


async def test_many_changes_come_in_pieces(feed: ChangeFeed[int]) -> None:
    position = await now(feed)
    feed.publish(range(KEPT))
    assert (await told(feed, position, KEPT))[0] == list(range(KEPT))
    async with aclosing(feed.watch(position, everything)) as watched:
        await following(watched)
        assert len((await following(watched)).changes) < KEPT


async def test_watcher_that_is_too_far_behind_is_told_that_changes_were_lost(feed: ChangeFeed[int]) -> None:
    """And then of those that come."""
    position = await now(feed)
    feed.publish(range(KEPT + 1))
    async with aclosing(feed.watch(position, everything)) as watched:
        await following(watched)
        piece = await following(watched)
        assert (list(piece.changes), piece.lost) == ([], True)
        feed.publish([7])
        piece = await following(watched)
        assert (list(piece.changes), piece.lost) == ([7], False)


@pytest.mark.parametrize("ahead", ["another life", "ahead", "rubbish", "long"])
async def test_position_of_another_life_means_that_changes_were_lost(feed: ChangeFeed[int], ahead: str) -> None:
    """The process was started again, or the position is made up."""
    life, _, number = (await now(feed)).partition(".")
    position = {
        "another life": f"{ChangeFeed[int]()._life}.{number}",
        "ahead": f"{life}.{int(number) + 1}",
        "rubbish": "rubbish",
        "long": f"{life}.{'9' * 10_000}",
    }[ahead]
    async with aclosing(feed.watch(position, everything)) as watched:
        assert (await following(watched)).lost


async def test_only_what_is_wanted_is_told(feed: ChangeFeed[int]) -> None:
    position = await now(feed)
    feed.publish(range(KEPT))
    async with aclosing(feed.watch(position, lambda change: change == KEPT - 1)) as watched:
        await following(watched)
        assert list((await following(watched)).changes) == [KEPT - 1]


async def test_watcher_hears_that_nothing_has_changed() -> None:
    feed: ChangeFeed[int] = ChangeFeed(idle_s=0.01)
    async with aclosing(feed.watch("", everything)) as watched:
        first, second = [await following(watched) for _ in range(3)][1:]
    assert (list(first.changes), first.lost, first.position) == ([], False, second.position)


async def test_changes_are_published_when_the_step_has_been_committed(feed: ChangeFeed[int]) -> None:
    position = await now(feed)
    with feed.publishing() as changed:
        changed.append(1)
        assert await now(feed) == position
    assert (await told(feed, position, 1))[0] == [1]


def fail_with(error: BaseException, feed: ChangeFeed[int]) -> None:
    """A step that has changed something ends with an error."""
    with feed.publishing() as changed:
        changed.append(1)
        raise error


async def test_changes_of_a_step_that_was_not_committed_are_not_published(feed: ChangeFeed[int]) -> None:
    position = await now(feed)
    with pytest.raises(NotFound):
        fail_with(NotFound("ORDER_NOT_FOUND", "it is not there"), feed)
    feed.publish([2])
    assert (await told(feed, position, 1))[0] == [2]


@pytest.mark.parametrize("error", [OutcomeUnknown("OUTCOME_UNKNOWN", "no answer"), asyncio.CancelledError()])
async def test_step_that_may_have_been_committed_means_that_changes_were_lost(
    feed: ChangeFeed[int], error: BaseException
) -> None:
    position = await now(feed)
    with pytest.raises(type(error)):
        fail_with(error, feed)
    async with aclosing(feed.watch(position, everything)) as watched:
        assert [(await following(watched)).lost for _ in range(2)] == [False, True]


async def test_watches_end_when_the_server_stops(feed: ChangeFeed[int]) -> None:
    """Its clients watch another one."""
    running = asyncio.ensure_future(feed.run())
    async with aclosing(feed.watch("", everything)) as watched:
        await following(watched)
        waiting = asyncio.ensure_future(following(watched))
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(Unavailable) as refusal:
            await waiting
    assert refusal.value.reason == "SERVER_STOPPING"
