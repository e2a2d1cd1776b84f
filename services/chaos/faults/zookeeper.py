"""Faults of the ZooKeeper ensemble. The loss of one instance's session is in `network`."""

from __future__ import annotations

import asyncio
from typing import Final

from services.chaos.faults.types import (
    INJECT_WITHIN_S,
    POLL_S,
    FaultInjection,
    FaultTypes,
    InjectionContext,
    Observations,
)
from services.chaos.targets.target import Target
from services.testkit.waiting import NotBroughtAbout

TYPES: Final = FaultTypes("zookeeper")


@TYPES.define("leader-kill", duration_s=(2.0, 4.0))
async def _leader_kill(context: InjectionContext, _injection: FaultInjection) -> Observations:
    leader = await _leader(context.target)
    try:
        await context.target.kill_server(leader)
        yield {"leader": leader}
    finally:
        await context.target.start_server(leader)


@TYPES.define("quorum-loss", duration_s=(2.0, 5.0))
async def _quorum_loss(context: InjectionContext, _injection: FaultInjection) -> Observations:
    victims = context.rng.sample(sorted(await context.target.zookeeper_servers()), 2)
    try:
        for server in victims:
            await context.target.kill_server(server)
        yield {"servers": "+".join(victims)}
    finally:
        await asyncio.gather(*(context.target.start_server(server) for server in victims))


@TYPES.define("zookeeper-freeze", duration_s=(1.0, 5.0))
async def _zookeeper_freeze(context: InjectionContext, _injection: FaultInjection) -> Observations:
    servers = sorted(await context.target.zookeeper_servers())
    try:
        for server in servers:
            await context.target.pause(server)
        yield {"servers": "+".join(servers)}
    finally:
        for server in servers:
            await context.target.resume(server)


async def _leader(target: Target) -> str:
    """Return the leader; wait for one after an outage."""
    try:
        async with asyncio.timeout(INJECT_WITHIN_S):
            while True:
                for server, mode in (await target.zookeeper_servers()).items():
                    if mode == "leader":
                        return server
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise NotBroughtAbout("no ZooKeeper leader") from None
