"""A fault is brought about in a world that does not stand still while it is looked at."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, cast

from services.chaos.nemesis import FAULTS, Stage
from services.chaos.plan import Strike


@dataclass(slots=True)
class Ensemble:
    """A world of three servers, of which the leader is another one at each look."""

    looks: list[dict[str, str]]
    done: list[tuple[str, str]] = field(default_factory=list)

    async def zookeeper_servers(self) -> dict[str, str]:
        return self.looks.pop(0)

    async def kill_server(self, server: str) -> None:
        self.done.append(("killed", server))

    async def start_server(self, server: str) -> None:
        self.done.append(("started", server))


def stage_of(world: Ensemble) -> Stage:
    nobody: Any = None
    return Stage(cast(Any, world), nobody, nobody, nobody, nobody, nobody, 2.0, nobody)


async def test_the_leader_that_was_seen_is_killed_though_it_leads_no_more() -> None:
    """Right after an outage there is none yet, and one that was just elected may be gone again."""
    nobody = dict.fromkeys(("zoo1", "zoo2", "zoo3"), "")
    world = Ensemble([nobody, {**nobody, "zoo2": "leader"}, nobody])
    async with FAULTS["leader-kill"](stage_of(world), Strike("leader-kill", "", 1.0, 2.0), random.Random(1)) as seen:
        assert seen == {"leader": "zoo2"}
    assert world.done == [("killed", "zoo2"), ("started", "zoo2")]
