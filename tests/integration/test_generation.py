"""The ensemble's generation: made once, never lowered, and a rebuilt ensemble is refused."""

from __future__ import annotations

import asyncio

import pytest

from coordination.errors import CoordinationError, GenerationBehind, Unavailable
from coordination.locks import generation
from coordination.session import Session
from services.runtime.zookeeper_paths import GENERATION_PATH
from tests.integration.zookeeper import ZooKeeper, connected


@pytest.fixture(autouse=True)
async def no_generation(session: Session) -> None:
    """Each test begins on an ensemble without one."""
    if await session.exists(GENERATION_PATH) is not None:
        await session.delete(GENERATION_PATH)


async def test_concurrent_first_starts_agree_on_generation_1(session: Session, zookeeper: ZooKeeper) -> None:
    """Several first starts at once agree on generation 1."""
    assert await generation.read(session, path=GENERATION_PATH) is None
    async with connected(zookeeper) as other:
        found = await asyncio.gather(
            *(generation.ensure(each, 0, 5.0, path=GENERATION_PATH) for each in (session, other, session))
        )
    assert found == [1, 1, 1]
    assert await generation.read(session, path=GENERATION_PATH) == 1
    assert await generation.ensure(session, 1, path=GENERATION_PATH) == 1


async def test_rebuilt_ensemble_is_refused(session: Session) -> None:
    """No generation, or a lower one than the database's, raises and changes nothing."""
    with pytest.raises(GenerationBehind) as caught:
        await generation.ensure(session, 1, path=GENERATION_PATH)
    assert (caught.value.ensemble, caught.value.database) == (None, 1)
    assert await generation.read(session, path=GENERATION_PATH) is None
    await generation.ensure(session, 0, path=GENERATION_PATH)
    with pytest.raises(GenerationBehind) as caught:
        await generation.ensure(session, 2, path=GENERATION_PATH)
    assert (caught.value.ensemble, caught.value.database) == (1, 2)


async def test_advance_never_lowers(session: Session) -> None:
    """The repair command raises it, races included, and never lowers it."""
    assert await generation.advance(session, 3, path=GENERATION_PATH) == 3
    assert await generation.advance(session, 2, path=GENERATION_PATH) == 3
    assert (
        sorted(await asyncio.gather(*(generation.advance(session, to, path=GENERATION_PATH) for to in (4, 5, 6))))[-1]
        == 6
    )
    assert await generation.read(session, path=GENERATION_PATH) == 6
    assert await generation.ensure(session, 5, path=GENERATION_PATH) == 6


async def test_generation_that_is_no_number_is_an_error(session: Session) -> None:
    """A node somebody wrote by hand is an error that names it, not a generation."""
    await session.ensure_path("/countinghouse")
    await session.create(GENERATION_PATH, b"two")
    with pytest.raises(CoordinationError, match="/countinghouse/generation"):
        await generation.read(session, path=GENERATION_PATH)


async def test_generation_with_zookeeper_frozen_is_unavailable(session: Session, zookeeper: ZooKeeper) -> None:
    """With ZooKeeper frozen it is Unavailable, in time; nothing is guessed."""
    zookeeper.pause()
    with pytest.raises(Unavailable):
        await generation.ensure(session, 0, timeout_s=0.2, path=GENERATION_PATH)
