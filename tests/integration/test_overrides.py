"""Overrides of single providers in ZooKeeper: none is lost, none is left over."""

from __future__ import annotations

import asyncio

import pytest
from kazoo.protocol.states import ZnodeStat

from coordination.errors import Unavailable
from coordination.registry import Service
from coordination.rules import OverrideRefused, Overrides
from coordination.session import Session
from tests.integration.zookeeper import ZooKeeper, connected

PORTS = range(1, 11)


def address(port: int) -> str:
    return f"127.0.0.1:{port}"


async def weights(overrides: Overrides, service: Service) -> dict[str, int]:
    return {one.address: one.parameters["weight"] for one in await overrides.ls() if one.service == service}


async def test_concurrent_changes_are_all_written(zookeeper: ZooKeeper) -> None:
    """Ten operators write into one rule at the same time, and take theirs out again: all were there, none is left."""
    service = Service("test.overrides.many")
    async with connected(zookeeper) as one, connected(zookeeper) as other:
        both = Overrides(one), Overrides(other)

        async def all_at_once(weight: int | None) -> None:
            await asyncio.gather(*(both[port % 2].change(service, address(port), {"weight": weight}) for port in PORTS))

        await all_at_once(7)
        assert await weights(both[0], service) == {address(port): 7 for port in PORTS}
        await all_at_once(None)
        assert await weights(both[0], service) == {}
        assert await one.exists(both[0].path(service)) is None


async def test_removal_of_the_last_entry_keeps_a_concurrent_entry(
    zookeeper: ZooKeeper, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our reading and our deleting of the node somebody else writes into it: theirs stays."""
    service, read = Service("test.overrides.race"), session.get
    overrides = Overrides(session)
    await overrides.change(service, address(1), {"weight": 1})
    async with connected(zookeeper) as other:

        async def read_and_be_overtaken(path: str, *, timeout_s: float) -> tuple[bytes, ZnodeStat]:
            found = await read(path, timeout_s=timeout_s)
            monkeypatch.undo()
            assert await Overrides(other).change(service, address(2), {"weight": 2})
            return found

        monkeypatch.setattr(session, "get", read_and_be_overtaken)
        assert await overrides.change(service, address(1), {"weight": None})
    assert await weights(overrides, service) == {address(2): 2}
    await overrides.change(service, address(2), {"weight": None})


async def test_change_returns_whether_anything_was_written(session: Session) -> None:
    overrides, service = Overrides(session), Service("test.overrides.same", "g", "1.0")
    assert await overrides.change(service, address(1), {"disabled": True})
    assert not await overrides.change(service, address(1), {"disabled": True})
    assert overrides.path(service) == "/dubbo/config/dubbo/test.overrides.same:1.0:g.configurators"
    (found,) = [one for one in await overrides.ls() if one.service == service]
    assert (found.address, found.parameters) == (address(1), {"disabled": True})
    assert await overrides.change(service, address(1), {"disabled": None})
    assert not await overrides.change(service, address(1), {"disabled": None})


async def test_rule_that_cannot_be_read_is_left_as_it_is(session: Session) -> None:
    overrides, service = Overrides(session), Service("test.overrides.broken")
    path = overrides.path(service)
    await session.ensure_path(path)
    for data in (b"configs: [", b"\xff\xfe"):
        await session.set(path, data)
        with pytest.raises(OverrideRefused):
            await overrides.change(service, address(1), {"weight": 1})
        assert (await session.get(path))[0] == data
    assert [one for one in await overrides.ls() if one.service == service] == []
    await session.delete(path)


async def test_change_without_zookeeper_is_unavailable_in_time(zookeeper: ZooKeeper, session: Session) -> None:
    zookeeper.pause()
    with pytest.raises(Unavailable):
        await Overrides(session).change(Service("test.overrides.away"), address(1), {"weight": 1}, timeout_s=0.2)
