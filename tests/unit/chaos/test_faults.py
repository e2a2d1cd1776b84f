"""A fault is injected into a target that goes on working while it is observed."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.protobuf.message import Message

from countinghouse.payment.v1 import payment_pb2
from services.chaos import faults, runner
from services.chaos.faults import acquirer, network, trigger
from services.chaos.faults.types import FaultInjection, FaultTypes, InjectionContext, Observations, instances
from services.chaos.injector import Injector
from services.chaos.report import run_page
from services.chaos.targets.target import Target
from services.checker.history import Answer, HistoryWriter, Phase, read_history
from services.kernel.clock import SystemClock
from services.kernel.principal import Role
from services.testkit.client import CallResult, Connections, RecordingClient
from services.testkit.identities import Identity
from services.testkit.waiting import NotBroughtAbout


@dataclass(slots=True)
class Ensemble:
    """A target of three ZooKeeper servers, with another leader at each look."""

    looks: list[dict[str, str]]
    done: list[tuple[str, str]] = field(default_factory=list)

    async def zookeeper_servers(self) -> dict[str, str]:
        return self.looks.pop(0)

    async def kill_server(self, server: str) -> None:
        self.done.append(("killed", server))

    async def start_server(self, server: str) -> None:
        self.done.append(("started", server))


@dataclass(slots=True)
class Link:
    """A target with one link, which calls use from the third settle on; and the caller that makes them.

    Args:
        back_after_s: Its instance was killed, and serves again so long after it is waited for.
    """

    asked: list[str] = field(default_factory=list)
    toxic: bool = False
    back_after_s: float = 0.0

    async def wait_serving(self, instance: str) -> None:
        await asyncio.sleep(self.back_after_s)
        self.back_after_s = 0.0

    async def heal(self, link: str) -> None:
        self.toxic = False

    async def add_toxic(self, link: str, kind: str, stream: str, attributes: Mapping[str, int]) -> None:
        self.toxic = True

    async def affected_connections(self, link: str) -> int:
        return int(self.toxic and self.asked.count("Settle") >= 3 and not self.back_after_s)

    async def answer(self, _process: str, request: Any) -> None:
        self.asked.append(type(request).__name__.removesuffix("Request"))


@dataclass(slots=True)
class KilledAcquirer:
    """A target whose acquirer answers nothing until it is waited for."""

    serves: bool = False
    faults: int = 0

    async def wait_serving(self, instance: str) -> None:
        await asyncio.sleep(0.2)
        self.serves = True

    async def answer(self, _process: str, request: Any) -> Answer | None:
        if not self.serves:
            return Answer(code="UNAVAILABLE")
        self.faults = len(request.faults)
        return None


@dataclass(slots=True)
class Registry:
    """A target of which an instance can be cut off, and the caller that sees whether it stays registered."""

    stays: bool
    done: list[str] = field(default_factory=list)

    async def cut(self, link: str) -> None:
        self.done.append(f"cut {link}")

    async def heal(self, link: str) -> None:
        self.done.append(f"healed {link}")

    async def wait_unregistered(self, instance: str, within_s: float) -> None:
        if self.stays:
            raise TimeoutError
        self.done.append(f"{instance} is gone")


@dataclass(slots=True)
class SlowVictim:
    """A target in which payment-1 is slow, and the rival at payment-2 is not; the first to settle has the order."""

    instances: tuple[str, ...] = ("payment-1", "payment-2")
    holds_at_failpoints: bool = False
    session_timeout_s: float = 2.0
    taken: set[str] = field(default_factory=set)
    frozen: bool = False

    def address(self, instance: str) -> str:
        return instance

    async def is_paused(self, instance: str) -> bool:
        return self.frozen

    async def resume(self, instance: str) -> None:
        self.frozen = False

    async def answer(self, process: str, request: Any) -> Answer | None:
        if not isinstance(request, payment_pb2.SettleRequest):
            return None
        if process == "trigger-holder":
            await asyncio.sleep(0.1)
            self.frozen = request.order_id not in self.taken
        self.taken.add(request.order_id)
        return Answer(code="ABORTED", reason="STALE_FENCE") if self.frozen else None


@dataclass(slots=True)
class Freezing:
    """A target in which payment-1 freezes with each order, and is overtaken from a certain one on."""

    overtaken_from: int
    instances: tuple[str, ...] = ("payment-1", "payment-2")
    holds_at_failpoints: bool = False
    session_timeout_s: float = 0.0
    frozen: asyncio.Event = field(default_factory=asyncio.Event)
    resumed: asyncio.Event = field(default_factory=asyncio.Event)
    orders: list[str] = field(default_factory=list)

    def address(self, instance: str) -> str:
        return instance

    async def is_paused(self, instance: str) -> bool:
        return self.frozen.is_set()

    async def resume(self, instance: str) -> None:
        self.frozen.clear()
        self.resumed.set()

    async def answer(self, process: str, request: Any) -> Answer | None:
        if not isinstance(request, payment_pb2.SettleRequest) or process != "trigger-holder":
            return None
        self.orders.append(request.order_id)
        self.resumed.clear()
        self.frozen.set()
        await self.resumed.wait()
        overtaken = len(self.orders) >= self.overtaken_from
        return Answer(code="ABORTED", reason="STALE_FENCE") if overtaken else Answer(code="DEADLINE_EXCEEDED")


class Client(RecordingClient):
    """A client whose calls a target answers."""

    def __init__(self, target: Any, process: str) -> None:
        super().__init__(Connections(str, SystemClock()), Identity("li", Role.CASHIER, ""), process)
        self._target = target

    async def call(self, request: Message, *, at: str = "", timeout_s: float = 5.0) -> CallResult:
        answer = await self._target.answer(self.process, request) or Answer()
        return CallResult(0, 0, answer=answer, response=SimpleNamespace(pid=1))


def context_of(target: object) -> InjectionContext:
    async def nothing() -> Mapping[str, int]:
        return {}

    there = cast(Any, target)
    holder, rival, operator = (Client(target, name) for name in ("trigger-holder", "trigger-rival", "operator"))
    return InjectionContext(there, there, holder, rival, operator, nothing, SystemClock(), random.Random(1))


def injected(target: object, fault: str, where: str, **facts: str) -> AbstractAsyncContextManager[dict[str, Any]]:
    (found, *_) = [each for each in faults.ALL if each.name == fault]
    return found.inject(context_of(target), FaultInjection(fault, where, 1.0, 0.5, facts))


async def test_toxic_on_an_unused_link_is_met_by_orders_made_for_it() -> None:
    """A toxic that no connection meets is no fault that was injected."""
    link = Link()
    async with injected(link, "reset", "ledger-1"):
        assert link.toxic
        assert link.asked == ["CreateOrder", "Settle"] * 3
    assert not link.toxic


async def test_toxic_on_the_link_of_a_killed_instance_is_met_when_it_serves_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that takes: the time in which a call can use the link begins then."""
    for module in (network, trigger):
        monkeypatch.setattr(module, "INJECT_WITHIN_S", 0.1)
    link = Link(back_after_s=0.3)
    async with injected(link, "reset", "ledger-1"):
        assert link.asked == ["CreateOrder", "Settle"] * 3


async def test_toxic_that_no_call_meets_is_no_fault_that_was_injected(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (network, trigger):
        monkeypatch.setattr(module, "INJECT_WITHIN_S", 0.0)
    link = Link()
    with pytest.raises(NotBroughtAbout, match="no call used the link ledger-1"):
        async with injected(link, "reset", "ledger-1"):
            pytest.fail("it was injected")
    assert not link.toxic


async def test_acquirer_that_was_killed_is_given_its_faults_when_it_serves_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acquirer, "INJECT_WITHIN_S", 0.1)
    target = KilledAcquirer()
    async with injected(target, "acquirer-down", "acquirer-1"):
        assert target.faults == 1
    assert target.faults == 0


async def test_leader_kill_kills_the_leader_that_was_seen() -> None:
    """Right after an outage there is none yet, and one that was just elected may be gone again."""
    none = dict.fromkeys(("zoo1", "zoo2", "zoo3"), "")
    target = Ensemble([none, {**none, "zoo2": "leader"}, none])
    async with injected(target, "leader-kill", "") as observed:
        assert observed == {"leader": "zoo2"}
    assert target.done == [("killed", "zoo2"), ("started", "zoo2")]


async def test_session_has_expired_when_the_instance_is_registered_no_more() -> None:
    target = Registry(stays=False)
    async with injected(target, "session-expiry", "payment-1"):
        assert target.done == ["cut zookeeper/payment-1", "payment-1 is gone"]
    assert target.done[-1] == "healed zookeeper/payment-1"


async def test_session_that_does_not_expire_is_no_fault_that_was_injected() -> None:
    """And the link is healed."""
    target = Registry(stays=True)
    with pytest.raises(NotBroughtAbout, match="the session of payment-1 does not expire"):
        async with injected(target, "session-expiry", "payment-1"):
            pytest.fail("it was injected")
    assert target.done[-1] == "healed zookeeper/payment-1"


async def test_trigger_order_reaches_a_victim_slower_than_its_competitor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would never stand at a step behind the lock if the rival started at the same moment each time."""
    monkeypatch.setattr(trigger, "INJECT_WITHIN_S", 2.0)
    target = SlowVictim()
    async with injected(target, "freeze-at", "payment-1", point="submitted", contention="contended") as observed:
        assert target.frozen
        assert observed["order_id"] == "trigger-freeze-at-1000-1"
    assert not target.frozen


async def test_holder_that_no_rival_overtakes_is_frozen_again() -> None:
    """With another order; the fault is injected once."""
    target = Freezing(overtaken_from=2)
    async with injected(target, "freeze-at", "payment-1", point="charged", contention="contended") as observed:
        assert observed["order_id"] == "trigger-freeze-at-1000-0"
    assert target.orders == ["trigger-freeze-at-1000-0", "trigger-freeze-at-1000-100"]
    assert not target.frozen.is_set()


async def test_holder_that_is_never_overtaken_is_no_fault_that_was_injected() -> None:
    target = Freezing(overtaken_from=99)
    with pytest.raises(NotBroughtAbout, match="never overtaken"):
        async with injected(target, "freeze-at", "payment-1", point="charged", contention="contended"):
            pass
    assert len(target.orders) == 3


def test_readme_lists_every_fault_type() -> None:
    """As `--faults` takes them."""
    readme = (Path(__file__).parents[3] / "services/chaos/README.md").read_text()
    table = readme.partition("## Fault types")[2].partition("## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    listed = [name for row in rows for name in re.findall(r"`([a-z][a-z-]+)`", row)]
    assert sorted(listed) == sorted({fault.name for fault in faults.ALL})


async def test_fault_type_added_in_one_place_is_planned_injected_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One decorated function is all; a target that lacks what it needs does not get it."""
    added = FaultTypes("process")
    done: list[str] = []

    @added.define("hiccup", targets=instances(), duration_s=(0.01, 0.02), choices={"point": ("a",)})
    async def _hiccup(context: InjectionContext, injection: FaultInjection) -> Observations:
        done.append(f"injected into {injection.target}")
        yield {"in_flight": {"CREATED": 2}}
        done.append("healed")

    monkeypatch.setattr(faults, "ALL", tuple(added))
    target: Any = SlowVictim()
    without: Any = SlowVictim(instances=())
    config = runner.RunConfig(7, 1.1, ("hiccup",), 1.0, "countinghouse chaos run --seed 7")
    assert faults.available(cast(Target, without)) == ()
    (planned,) = config.plan(target)
    path = tmp_path / "history.jsonl"
    told: list[str] = []
    with HistoryWriter(path, SystemClock(), seed=7, facts={}) as history:
        injector = Injector(
            context_of(target), config.fault_types(target), [planned], history, seed=7, tell=told.append
        )
        await injector.run()
    assert told == [f"hiccup {planned.target} point a, open: 2 CREATED"]
    assert done == [f"injected into {planned.target}", "healed"]
    assert injector.injected == {"hiccup": 1}
    recorded = read_history(path)
    assert [moment.phase for moment in recorded.nemesis] == [Phase.PLANNED, Phase.BEGUN, Phase.ENDED]
    coverage = runner._coverage(recorded)
    assert coverage == {("hiccup payment", "alone a"): 1, ("hiccup", "CREATED"): 2}
    proofs = runner._proofs(recorded, ["hiccup"])
    assert proofs["injected: hiccup"] == 1
    page = run_page.render(
        *("A run", "ok"),
        reasons=(),
        facts={},
        command="",
        checks=(),
        coverage=coverage,
        proofs=proofs,
        history=recorded,
    )
    assert page.count("hiccup") > 3
