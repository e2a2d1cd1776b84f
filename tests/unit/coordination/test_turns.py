"""Rules that are long to apply: the event loop has its turns, and no call waits for longer than it may."""

from __future__ import annotations

import asyncio

import pytest

from coordination import turns
from coordination.deadline import Deadline
from coordination.discovery import Directory
from coordination.registry import Endpoint, ProviderURL
from coordination.rules import Rules, routers
from coordination.rules.configurators import parse_configurators
from coordination.rules.routers import parse_conditions, parse_tags
from coordination.turns import TURN_S, Work, at_once, in_turns
from tests.unit.coordination.loop_turns import counted

PROVIDERS, RULES = 30, 40
NAMES = [ProviderURL("tri", "h", port, "a.B", {"region": "north"}).node_name() for port in range(1, PROVIDERS + 1)]
KEY = "a.B::"
ENTRIES = ", ".join(f"{{side: consumer, parameters: {{p: {number}}}}}" for number in range(RULES))
MANY = Rules(
    configurators=parse_configurators(f"configs: [{ENTRIES}]", KEY),
    tags={"": parse_tags("tags: [{name: gray, addresses: ['10.*']}]", "")[0]},
    conditions=parse_conditions(f"conditions: {['=> region = n*'] * RULES}", KEY),
)


def directory() -> Directory:
    listed = Directory("a.B")
    listed.take(listed.reader.read(NAMES))
    return listed


async def test_work_is_done_in_turns_of_five_milliseconds() -> None:
    """Another task runs after each; what takes less is done in one."""
    now_s = 0.0

    def work(steps: int) -> Work[str]:
        nonlocal now_s
        for _ in range(steps):
            now_s += 0.6 * TURN_S
            yield
        return "done"

    async with counted() as had:
        assert await in_turns(work(1), now_s=lambda: now_s) == "done"
        assert had() == 0
        assert await in_turns(work(10), now_s=lambda: now_s) == "done"
        assert had() == 5


def test_work_may_be_done_at_once() -> None:
    def work() -> Work[str]:
        yield
        return "done"

    assert at_once(work()) == "done"


async def test_rules_that_are_long_to_apply_leave_the_loop_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is one provider and one rule: of the rules that change providers, and of those that choose some."""
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = directory()
    async with counted() as had:
        await listed.govern(MANY)
        assert had() >= PROVIDERS * RULES
    assert listed.endpoints[0].url.parameters["p"] == str(RULES - 1)
    async with counted() as had:
        assert len(await listed.route("Pay", "", Deadline.after(60))) == PROVIDERS
        assert had() >= PROVIDERS * RULES
    for tag in ("", "gray", "gray|blue"):
        assert sum(1 for _ in MANY.route(listed.endpoints, listed.consumer, "Pay", tag)) >= PROVIDERS


async def test_new_providers_are_governed_in_turns_before_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = Directory("a.B")
    await listed.govern(MANY)
    found = listed.reader.read(NAMES)
    async with counted() as had:
        await listed.prepare(found)
        assert had() >= PROVIDERS * RULES
    govern = Rules.govern
    governed: list[Endpoint] = []

    def noted(rules: Rules, endpoint: Endpoint, consumer: ProviderURL) -> Work[Endpoint]:
        governed.append(endpoint)
        return govern(rules, endpoint, consumer)

    monkeypatch.setattr(Rules, "govern", noted)
    listed.take(found)
    assert not governed
    assert {endpoint.url.parameters["p"] for endpoint in listed.endpoints} == {str(RULES - 1)}


async def test_calls_that_ask_at_once_are_routed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = directory()
    await listed.govern(MANY)
    route = Rules.route
    routed: list[str] = []

    def noted(rules: Rules, *arguments: object) -> object:
        routed.append("once")
        return route(rules, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Rules, "route", noted)
    asked = [listed.route("Pay", "", Deadline.after(60)) for _ in range(10)]
    assert {len(found) for found in await asyncio.gather(*asked)} == {PROVIDERS}
    assert routed == ["once"]


async def test_call_is_routed_among_the_providers_there_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list changes while a call waits: it does not get a provider that has gone."""
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = directory()
    await listed.govern(MANY)
    waiting = asyncio.create_task(listed.route("Pay", "", Deadline.after(60)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    listed.take(listed.reader.read(NAMES[:3]))
    assert await waiting == listed.endpoints
    assert len(listed.endpoints) == 3


async def test_rules_that_change_meanwhile_are_applied_to_new_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was worked out with the old rules is not shown."""
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = Directory("a.B")
    await listed.govern(MANY)
    found = listed.reader.read(NAMES)
    preparing = asyncio.create_task(listed.prepare(found))
    await asyncio.sleep(0)
    await listed.govern(Rules())
    await preparing
    assert listed._by_node.keys() == set(NAMES)
    listed.take(found)
    assert all(endpoint.before_rules is None for endpoint in listed.endpoints)


async def test_call_does_not_wait_for_rules_past_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call gets what was worked out meanwhile."""
    monkeypatch.setattr(turns, "TURN_S", 0)
    listed = directory()
    await listed.govern(MANY)
    with pytest.raises(TimeoutError, match=r"the rules of a\.B take longer to apply"):
        await listed.route("Pay", "", Deadline.after(0))
    assert len(await listed.route("Pay", "", Deadline.after(60))) == PROVIDERS


async def test_routing_that_fails_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours reaches the call; the next call does not wait for it for ever."""
    listed = directory()

    def failing(_: Rules, *__: object) -> Work[None]:
        yield
        raise ArithmeticError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(Rules, "route", failing)
        with pytest.raises(ArithmeticError):
            await listed.route("Pay", "", Deadline.after(60))
    assert len(await listed.route("Pay", "", Deadline.after(60))) == PROVIDERS


def test_provider_is_described_once_for_all_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []
    facts = routers.facts

    def noted(url: ProviderURL) -> dict[str, str]:
        described.append(url.address)
        return facts(url)

    monkeypatch.setattr(routers, "facts", noted)
    listed = directory()
    at_once(MANY.route(listed.endpoints, listed.consumer, "Pay", ""))
    assert len(described) == PROVIDERS + 1  # and the consumer
