"""A fault is brought about in a world that does not stand still while it is looked at."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from services.chaos import injector
from services.chaos.calls import Heard, Person
from services.chaos.injector import FAULTS, Stage
from services.chaos.plan import Strike
from services.chaos.targets.target import NotBroughtAbout
from services.checker.history import NO_ANSWER, Outcome
from services.kernel.clock import SystemClock
from services.kernel.principal import Role


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


@dataclass(slots=True)
class Line:
    """A world with one line, of which the calls that are made use it from the third on; and who makes those calls."""

    asked: list[str] = field(default_factory=list)
    spoiled: bool = False

    async def mend(self, line: str) -> None:
        self.spoiled = False

    async def spoil(self, line: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        self.spoiled = True

    async def concerned(self, line: str) -> int:
        return int(self.spoiled and self.asked.count("Settle") >= 3)

    async def ask(self, process: str, person: Person, kind: str, *_: object, **__: object) -> Heard:
        self.asked.append(kind)
        return Heard(Outcome.OK, NO_ANSWER)


@dataclass(slots=True)
class Registry:
    """A world in which an instance can be cut off, and who sees whether it stays registered."""

    stays: bool
    done: list[str] = field(default_factory=list)

    async def cut(self, line: str) -> None:
        self.done.append(f"cut {line}")

    async def mend(self, line: str) -> None:
        self.done.append(f"mended {line}")

    async def wait_unregistered(self, instance: str, within_s: float) -> None:
        if self.stays:
            raise TimeoutError
        self.done.append(f"{instance} is gone")


@dataclass(slots=True)
class SlowVictim:
    """A world in which payment-1 takes its time, and the rival at payment-2 none; who is first has the order."""

    instances: tuple[str, ...] = ("payment-1", "payment-2")
    holds_at_failpoints: bool = False
    taken: set[str] = field(default_factory=set)
    frozen: bool = False

    def address(self, instance: str) -> str:
        return instance

    async def is_paused(self, instance: str) -> bool:
        return self.frozen

    async def resume(self, instance: str) -> None:
        self.frozen = False

    async def ask(self, process: str, person: Person, kind: str, request: Any, *_: object, **__: object) -> Heard:
        if kind == "Settle" and process == "bait-holder":
            await asyncio.sleep(0.1)
            self.frozen = request.order_id not in self.taken
        if kind == "Settle":
            self.taken.add(request.order_id)
        return Heard(Outcome.OK, NO_ANSWER)


def stage_of(world: Ensemble | Line | Registry | SlowVictim) -> Stage:
    nobody: Any = None
    cashier = Person("li", Role.CASHIER, "")

    async def nothing() -> Mapping[str, int]:
        return {}

    return Stage(cast(Any, world), cast(Any, world), cashier, cashier, nobody, nothing, 2.0, SystemClock())


async def test_a_line_that_nobody_uses_is_used_by_orders_made_for_it() -> None:
    """A spoiled line of which nobody takes notice is no fault that struck."""
    line = Line()
    async with FAULTS["reset"](stage_of(line), Strike("reset", "ledger-1", 1.0, 0.5), random.Random(1)):
        assert line.spoiled
        assert line.asked == ["CreateOrder", "Settle"] * 3
    assert not line.spoiled


async def test_the_leader_that_was_seen_is_killed_though_it_leads_no_more() -> None:
    """Right after an outage there is none yet, and one that was just elected may be gone again."""
    nobody = dict.fromkeys(("zoo1", "zoo2", "zoo3"), "")
    world = Ensemble([nobody, {**nobody, "zoo2": "leader"}, nobody])
    async with FAULTS["leader-kill"](stage_of(world), Strike("leader-kill", "", 1.0, 2.0), random.Random(1)) as seen:
        assert seen == {"leader": "zoo2"}
    assert world.done == [("killed", "zoo2"), ("started", "zoo2")]


async def test_a_session_has_expired_when_the_instance_is_registered_no_more() -> None:
    world = Registry(stays=False)
    strike = Strike("session-expiry", "payment-1", 1.0, 0.5)
    async with FAULTS["session-expiry"](stage_of(world), strike, random.Random(1)):
        assert world.done == ["cut zookeeper/payment-1", "payment-1 is gone"]
    assert world.done[-1] == "mended zookeeper/payment-1"


async def test_a_session_that_does_not_expire_is_no_fault_that_struck() -> None:
    """And it is not cut off any longer."""
    world = Registry(stays=True)
    strike = Strike("session-expiry", "payment-1", 1.0, 0.5)
    with pytest.raises(NotBroughtAbout, match="the session of payment-1 does not expire"):
        async with FAULTS["session-expiry"](stage_of(world), strike, random.Random(1)):
            pytest.fail("it struck")
    assert world.done[-1] == "mended zookeeper/payment-1"


async def test_a_victim_that_is_slower_than_its_rival_is_met_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a step behind the lock it would never stand, if the rival pressed at the same moment each time."""
    monkeypatch.setattr(injector, "_STRIKE_WITHIN_S", 2.0)
    monkeypatch.setattr(injector, "_arm", lambda *_: asyncio.sleep(0))
    world = SlowVictim()
    strike = Strike("freeze-at", "payment-1", 1.0, 0.5, {"point": "submitted", "company": "contended"})
    async with FAULTS["freeze-at"](stage_of(world), strike, random.Random(1)) as seen:
        assert world.frozen
        assert seen["order_id"] == "bait-freeze-at-1000-1"
    assert not world.frozen
