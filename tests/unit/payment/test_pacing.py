"""Batches give way to clerks: how many orders are served together, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.kernel.clock import CallDeadline
from services.payment.pacing import Pacing
from tests.fakes.clock import ManualClock

_PART_MS = 40


class PacedService:
    """Serves parts of batches, each for 40 ms of the clock, and notes them and the pauses."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.pacing = Pacing(self.clock, self.pause)
        self.parts: list[int] = []
        self.pauses: list[float] = []
        self.serving = self.most = 0

    async def part(self, items: Sequence[int]) -> list[int]:
        self.parts.append(len(items))
        self.serving += 1
        self.most = max(self.most, self.serving)
        await asyncio.sleep(0)
        self.clock.advance(_PART_MS)
        self.serving -= 1
        return [-item for item in items]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def serve(self, orders: int = 20, *, seconds: float = 60) -> list[int]:
        items = range(orders)
        served = await self.pacing.serve(items, CallDeadline.after(seconds, self.clock), self.part)
        assert served == [-item for item in items], "each item has its own outcome"
        return self.parts


@pytest.fixture
def service() -> PacedService:
    return PacedService()


async def test_batch_is_served_whole_while_no_clerk_calls(service: PacedService) -> None:
    assert await service.serve(64) == [64]
    assert not service.pauses


async def test_batch_is_served_in_parts_while_a_clerk_calls(service: PacedService) -> None:
    """Each part is followed by a pause as long as it took."""
    with service.pacing.single_call():
        assert await service.serve(20) == [8, 8, 4]
    assert service.pauses == pytest.approx([_PART_MS / 1000] * 3)


async def test_two_batches_are_served_one_part_at_a_time(service: PacedService) -> None:
    """However many batches there are, a clerk waits for one part at most."""
    with service.pacing.single_call():
        await asyncio.gather(service.serve(20), service.serve(20))
    assert (service.most, sum(service.parts)) == (1, 40)


async def test_clerk_who_called_a_moment_ago_is_still_expected(service: PacedService) -> None:
    """For 2 s after the last call; what is left of the batch is served whole then."""
    with service.pacing.single_call():
        pass
    service.clock.advance(1_999 - 2 * _PART_MS)
    assert await service.serve(40) == [8, 8, 8, 16]


async def test_batch_with_a_third_of_its_time_used_up_is_served_whole(service: PacedService) -> None:
    """A batch that gives way must still be answered in time."""
    with service.pacing.single_call():
        assert await service.serve(64, seconds=0.21) == [8, 8, 48]


class LongPause:
    """A pause after a part, which ends when the test says so."""

    def __init__(self, service: PacedService) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        service.pacing = Pacing(service.clock, self._pause)

    async def _pause(self, _seconds: float) -> None:
        self.begun.set()
        await self.may_end.wait()


async def test_batch_that_waits_for_its_turn_too_long_is_served_whole(service: PacedService) -> None:
    """However many batches wait before it."""
    pause = LongPause(service)
    with service.pacing.single_call():
        first = asyncio.create_task(service.serve(8))
        await pause.begun.wait()
        async with asyncio.timeout(30):
            await service.serve(20, seconds=0.1)
        assert service.parts == [8, 20]
        pause.may_end.set()
        await first


async def test_batch_whose_turn_comes_when_no_clerk_calls_any_more_is_served_whole(service: PacedService) -> None:
    pause = LongPause(service)
    with service.pacing.single_call():
        first = asyncio.create_task(service.serve(8))
        await pause.begun.wait()
        second = asyncio.create_task(service.serve(20))
        await asyncio.sleep(0)
    service.clock.advance(2_001)
    pause.may_end.set()
    await asyncio.gather(first, second)
    assert service.parts == [8, 20]


async def test_part_that_waits_for_a_card_lets_others_begin(service: PacedService) -> None:
    """A turn is for the use of processors, and a part that waits for something slow does not use them."""
    may_end = asyncio.Event()

    async def slow(items: Sequence[int]) -> list[int]:
        await may_end.wait()
        return list(items)

    with service.pacing.single_call():
        waits = asyncio.create_task(service.pacing.serve(range(8), CallDeadline.after(600, service.clock), slow))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            assert await service.serve(20, seconds=600) == [8, 8, 4]
        assert not waits.done()
        may_end.set()
        assert await waits == list(range(8))


async def test_cancelled_batch_gives_its_turn_back(service: PacedService) -> None:
    begun = asyncio.Event()
    cancelled: list[bool] = []

    async def hang(_items: Sequence[int]) -> list[int]:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    with service.pacing.single_call():
        batch = asyncio.create_task(service.pacing.serve(range(8), CallDeadline.after(600, service.clock), hang))
        await begun.wait()
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        assert await service.serve(8, seconds=600) == [8]
    assert cancelled == [True]


async def test_pause_has_a_limit(service: PacedService) -> None:
    """Also if a part took long, as beside a paused service."""
    take = service.part

    async def slow(items: Sequence[int]) -> list[int]:
        service.clock.advance(60_000)
        return await take(items)

    with service.pacing.single_call():
        await service.pacing.serve(range(9), CallDeadline.after(600, service.clock), slow)
    assert service.pauses == [0.25, 0.25]
