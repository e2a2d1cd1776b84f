"""Governance rules under Dubbo's own paths take effect within a second, and a bad one costs nobody but itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, quote_plus

import pytest
from kazoo.client import KazooClient
from kazoo.exceptions import NoNodeError
from kazoo.security import Permissions, make_acl
from prometheus_client import CollectorRegistry

from coordination.discovery import Consumer, Directory, DirectoryState, Discovery
from coordination.metrics import Metrics
from coordination.registry import Registry
from coordination.rules.rule_watcher import config_path
from coordination.session import Session
from services.testkit.fair_clock import fair_s
from tests.integration.provider import provider_url
from tests.integration.zookeeper import ZooKeeper, connected, expire

WITHIN_S = 1.0
CONSUMER = Consumer("desk", "10.0.0.9")
APPLICATION = "tests"  # of `provider_url`


@dataclass
class Governed:
    """An interface with the providers 127.0.0.1:1 and :2, and a consumer of it."""

    interface: str
    session: Session
    directory: Directory

    @property
    def key(self) -> str:
        return f"{self.interface}::"

    def path(self, kind: str = "configurators", key: str = "") -> str:
        return config_path("/dubbo", key or self.key, kind)

    async def say(self, text: str, kind: str = "configurators", key: str = "") -> None:
        """Write a rule of 2.7 or 3.x."""
        path = self.path(kind, key)
        await self.session.ensure_path(path)
        await self.session.set(path, text.encode())

    async def unsay(self, kind: str = "configurators", key: str = "") -> None:
        """Delete a rule's node, as it may have to be for the next test."""
        try:
            await self.session.delete(self.path(kind, key))
        except NoNodeError:
            return

    async def override(self, category: str, url: str) -> str:
        """Write a rule of 2.6; returns its path."""
        path = f"/dubbo/{self.interface}/{category}/{quote(url, safe='')}"
        await self.session.ensure_path(path)
        return path

    def weights(self) -> dict[int, int]:
        """The weights of who may be called, by port."""
        return {endpoint.url.port: endpoint.weight for endpoint in self.directory.endpoints}

    def candidates(self, method: str, tag: str = "") -> list[int]:
        return [endpoint.url.port for endpoint in self.directory.candidates(method, tag)]

    async def soon(self, condition: Callable[[], bool], began: float | None = None) -> None:
        """Wait until it is so, and see that this took less than a second from `began`, or now."""
        began = fair_s() if began is None else began
        assert await self.directory._wait_until(condition, 10.0), (self.weights(), self.directory.eligibility("A"))
        assert fair_s() - began < WITHIN_S


@asynccontextmanager
async def governed(zookeeper: ZooKeeper, session: Session, interface: str) -> AsyncIterator[Governed]:
    """Provide and consume an interface of one's own; rules are written by `session`, which is another."""
    async with connected(zookeeper) as own:
        registry, discovery = Registry(own), Discovery(own, consumer=CONSUMER)
        for port in (1, 2):
            await registry.register(provider_url(port, interface))
        directory = await discovery.subscribe(interface, timeout_s=5)
        yield Governed(interface, session, directory)
        await discovery.close()
        await registry.close()


def changing(parameters: str, *, side: str = "consumer", who: str = "providerAddresses: ['127.0.0.1:1'], ") -> str:
    return f"configVersion: v3.0\nconfigs:\n- {{side: {side}, {who}parameters: {{{parameters}}}}}\n"


async def test_configurator_takes_effect_within_a_second_and_back(zookeeper: ZooKeeper, session: Session) -> None:
    """3.x's YAML: weight 0, another weight, disabled, and none of it; the node appears, changes and goes."""
    async with governed(zookeeper, session, "test.rules.yaml") as house_:
        assert house_.weights() == {1: 100, 2: 100}
        for parameters, weights in (
            ("weight: 0", {1: 0, 2: 100}),
            ("weight: 20, timeout: 300, Pay.timeout: 100", {1: 20, 2: 100}),
            ("disabled: true", {2: 100}),
        ):
            began = time.monotonic()
            await house_.say(changing(parameters))
            await house_.soon(lambda weights=weights: house_.weights() == weights, began)  # type: ignore[misc]
        began = time.monotonic()
        await house_.unsay()
        await house_.soon(lambda: house_.weights() == {1: 100, 2: 100}, began)


async def test_timeout_of_a_rule_reaches_the_channel(zookeeper: ZooKeeper, session: Session) -> None:
    async with governed(zookeeper, session, "test.rules.timeouts") as house_:
        await house_.say(changing("timeout: 300, Pay.timeout: 100"))
        await house_.soon(lambda: house_.directory.endpoints[0].timeout_s("Look") == 0.3)
        assert house_.directory.endpoints[0].timeout_s("Pay") == 0.1
        assert house_.directory.endpoints[1].timeout_s("Pay") is None


async def test_override_of_26_takes_effect_within_a_second_and_back(zookeeper: ZooKeeper, session: Session) -> None:
    """2.6's URLs, each a node's name: weight 0, disabled for all, and none of it."""
    async with governed(zookeeper, session, "test.rules.override") as house_:
        for url, weights in (
            (
                f"override://127.0.0.1:1/{house_.interface}?category=configurators&dynamic=false&weight=0",
                {1: 0, 2: 100},
            ),
            (f"override://0.0.0.0/{house_.interface}?category=configurators&disabled=true", {}),
        ):
            began = time.monotonic()
            path = await house_.override("configurators", url)
            await house_.soon(lambda weights=weights: house_.weights() == weights, began)  # type: ignore[misc]
            began = time.monotonic()
            await session.delete(path)
            await house_.soon(lambda: house_.weights() == {1: 100, 2: 100}, began)


async def test_rule_may_be_of_the_consumers_or_the_providers_application(
    zookeeper: ZooKeeper, session: Session
) -> None:
    """The consumer's for its side, the providers' for theirs; the service's own prevails over both."""
    async with governed(zookeeper, session, "test.rules.application") as house_:
        head = "scope: application\n"
        await house_.say(head + changing("weight: 5", who=""), key="desk")
        await house_.soon(lambda: house_.weights() == {1: 5, 2: 5})
        await house_.say(head + changing("weight: 7", side="provider", who="addresses: ['127.0.0.1:2'], "), key="tests")
        await house_.soon(lambda: house_.weights() == {1: 5, 2: 7})
        await house_.say(changing("weight: 9"))
        await house_.soon(lambda: house_.weights() == {1: 9, 2: 7})
        for key in ("desk", "tests", ""):
            await house_.unsay(key=key)
        await house_.soon(lambda: house_.weights() == {1: 100, 2: 100})


async def test_malformed_rule_keeps_the_last_good_one(
    zookeeper: ZooKeeper, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """It is warned of and counted; a better one is taken, and an empty one is none."""
    collected = CollectorRegistry()

    def count(readable: str) -> float:
        labels = {"kind": "configurators", "readable": readable}
        return collected.get_sample_value("coordination_rule_changes_total", labels) or 0.0

    discovery = Discovery(session, metrics=Metrics(collected))
    directory = await discovery.subscribe("test.rules.malformed", timeout_s=5)
    house_ = Governed("test.rules.malformed", session, directory)
    registry = Registry(session)
    await registry.register(provider_url(1, house_.interface))
    await house_.say(changing("weight: 20"))
    await house_.soon(lambda: house_.weights() == {1: 20})
    with caplog.at_level(logging.WARNING, "coordination"):
        for text in ("configs: [", changing("weight: heavy"), changing("weight: 1").replace("side: consumer, ", "")):
            said, bad = fair_s(), count("no")
            await house_.say(text)
            while count("no") == bad:
                assert fair_s() - said < 10
                await asyncio.sleep(0.005)
            assert house_.weights() == {1: 20}
    assert "weight should be a whole number" in caplog.text
    assert "side should be consumer or provider" in caplog.text
    good = count("yes")
    await house_.say(changing("weight: 30"))
    await house_.soon(lambda: house_.weights() == {1: 30})
    assert count("yes") == good + 1
    await house_.say(" ")
    await house_.soon(lambda: house_.weights() == {1: 100})
    await house_.unsay()
    await registry.close()
    await discovery.close()


async def test_malformed_override_costs_itself(
    zookeeper: ZooKeeper, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules of 2.6 stand side by side: the others are applied."""
    async with governed(zookeeper, session, "test.rules.badname") as house_:
        with caplog.at_level(logging.WARNING, "coordination"):
            await house_.override("configurators", "nonsense")
            await house_.override("routers", f"script://0.0.0.0/{house_.interface}?rule=x")
            await house_.override("configurators", f"override://0.0.0.0/{house_.interface}?weight=3")
            await house_.soon(lambda: house_.weights() == {1: 3, 2: 3})
        assert "nonsense" in caplog.text
        assert "script" in caplog.text


async def test_condition_routes_of_both_styles(zookeeper: ZooKeeper, session: Session) -> None:
    """Candidates of a method follow the rules within a second; the endpoints do not change."""
    async with governed(zookeeper, session, "test.rules.conditions") as house_:
        assert house_.candidates("Pay") == [1, 2]
        began = time.monotonic()
        await house_.say("conditions: ['method=Pay* & application=desk => port=2']", "condition-router")
        await house_.soon(lambda: house_.candidates("Pay") == [2], began)
        assert house_.candidates("Look") == [1, 2]
        assert house_.weights() == {1: 100, 2: 100}
        assert [verdict.why_not for verdict in house_.directory.eligibility("Pay")] == [
            "routed away by test.rules.conditions::.condition-router (method=Pay* & application=desk => port=2)",
            "",
        ]
        for key in (APPLICATION, "desk"):
            await house_.unsay("condition-router")
            await house_.soon(lambda: house_.candidates("Pay") == [1, 2])
            await house_.say("conditions: ['method=Pay => port=1']", "condition-router", key)
            await house_.soon(lambda: house_.candidates("Pay") == [1])
            await house_.unsay("condition-router", key)
        await house_.soon(lambda: house_.candidates("Pay") == [1, 2])
        began = time.monotonic()
        rule = quote_plus("method=Look => false")
        path = await house_.override(
            "routers", f"condition://0.0.0.0/{house_.interface}?category=routers&dynamic=false&rule={rule}"
        )
        await house_.soon(lambda: house_.candidates("Look") == [], began)
        assert house_.candidates("Pay") == [1, 2]
        await session.delete(path)
        await house_.soon(lambda: house_.candidates("Look") == [1, 2])


async def test_tag_routes_choose_providers_by_the_calls_tag(zookeeper: ZooKeeper, session: Session) -> None:
    """The tags of the providers' application; a call with a tag, one with another, and one without."""
    async with governed(zookeeper, session, "test.rules.tags") as house_:
        began = time.monotonic()
        await house_.say("tags: [{name: gray, addresses: ['127.0.0.1:2']}]", "tag-router", APPLICATION)
        await house_.soon(lambda: house_.candidates("Pay") == [1], began)
        assert house_.candidates("Pay", "gray") == [2]
        assert house_.candidates("Pay", "blue") == [1]
        await house_.unsay("tag-router", APPLICATION)
        await house_.soon(lambda: house_.candidates("Pay") == [1, 2])


async def test_rule_is_known_before_the_endpoints_it_is_about_are_shown(zookeeper: ZooKeeper, session: Session) -> None:
    """A consumer that starts never sees a disabled provider as callable, not for a moment: not even when the rule is
    of the provider's application, which only the list tells."""
    async with governed(zookeeper, session, "test.rules.first") as house_:
        off = changing("disabled: true", side="provider", who="addresses: ['127.0.0.1:1'], ")
        await house_.say("scope: application\n" + off, key=APPLICATION)
        await house_.soon(lambda: house_.weights() == {2: 100})
        discovery = Discovery(session)
        directory = await discovery.subscribe(house_.interface, timeout_s=0)
        seen: list[list[int]] = []
        directory.subscribe(lambda: seen.append([one.url.port for one in directory.endpoints]))
        assert await directory.wait_live(5)
        assert [1, 2] not in seen
        assert [endpoint.url.port for endpoint in directory.endpoints] == [2]
        await discovery.close()
        await house_.unsay(key=APPLICATION)


async def test_rules_are_followed_through_everything(zookeeper: ZooKeeper, session: Session) -> None:
    """Deleted and made again, the consumer's session expired, ZooKeeper restarted: the next rule is still heard of."""
    interface = "test.rules.followed"
    async with connected(zookeeper) as own:
        discovery, registry = Discovery(own, consumer=CONSUMER), Registry(session)
        await registry.register(provider_url(1, interface))
        house_ = Governed(interface, session, await discovery.subscribe(interface, timeout_s=5))

        async def both_styles_work(weight: int) -> None:
            await house_.say(changing(f"weight: {weight}"))
            await house_.soon(lambda: house_.weights() == {1: weight})
            await house_.unsay()
            await house_.soon(lambda: house_.weights() == {1: 100})
            path = await house_.override("configurators", f"override://127.0.0.1:1/{interface}?weight={weight + 1}")
            await house_.soon(lambda: house_.weights() == {1: weight + 1})
            await session.delete(path)
            await house_.soon(lambda: house_.weights() == {1: 100})

        async def back() -> None:
            assert await house_.directory._wait_until(lambda: house_.directory.state is DirectoryState.LIVE, 15)
            await registry.wait_registered(provider_url(1, interface), 15)

        await both_styles_work(10)
        await both_styles_work(20)
        await session.delete(f"/dubbo/{interface}/configurators")
        await both_styles_work(30)

        away = asyncio.create_task(
            house_.directory._wait_until(lambda: house_.directory.state is DirectoryState.AWAY, 10)
        )
        await asyncio.sleep(0)
        await expire(own)
        assert await away
        await back()
        await both_styles_work(40)

        await house_.say(changing("weight: 50"))
        await house_.soon(lambda: house_.weights() == {1: 50})
        zookeeper.stop()
        assert await house_.directory._wait_until(lambda: house_.directory.state is DirectoryState.AWAY, 10)
        assert house_.weights() == {1: 50}  # rules stay as they were
        await asyncio.to_thread(zookeeper.start)
        await back()
        await session.wait_connected(15)
        assert house_.weights() == {1: 50}
        await house_.unsay()
        assert await house_.directory._wait_until(lambda: house_.weights() == {1: 100}, 10)
        await both_styles_work(60)
        await registry.close()
        await discovery.close()


async def test_unreadable_rule_delays_no_consumer(zookeeper: ZooKeeper, session: Session) -> None:
    """Without permission to read a rule the providers are found all the same."""
    interface = "test.rules.forbidden"
    path = config_path("/dubbo", f"{interface}::", "configurators")
    nobody_reads = [make_acl("world", "anyone", all=False, write=True, delete=True, admin=True)]
    assert nobody_reads[0].perms & Permissions.READ == 0
    other = KazooClient(hosts=zookeeper.hosts)
    await asyncio.to_thread(other.start)
    await asyncio.to_thread(lambda: other.create(path, b"configs: [", acl=nobody_reads, makepath=True))
    async with governed(zookeeper, session, interface) as house_:
        began = fair_s()
        discovery = Discovery(session)
        directory = await discovery.subscribe(interface, timeout_s=5)
        assert fair_s() - began < WITHIN_S
        assert len(directory.endpoints) == 2
        assert house_.weights() == {1: 100, 2: 100}
        await discovery.close()
    await asyncio.to_thread(lambda: other.delete(path))
    await asyncio.to_thread(other.stop)
    other.close()


async def test_new_application_among_the_providers_brings_its_rules(zookeeper: ZooKeeper, session: Session) -> None:
    """Rules of an application are followed when the first of its providers comes, and before it is shown."""
    interface = "test.rules.newcomer"
    async with governed(zookeeper, session, interface) as house_:
        await house_.say("scope: application\n" + changing("disabled: true", side="provider", who=""), key="newcomers")
        seen: list[list[int]] = []
        house_.directory.subscribe(lambda: seen.append([one.url.port for one in house_.directory.endpoints]))
        registry = Registry(session)
        await registry.register(provider_url(3, interface).with_parameters({"application": "newcomers"}))
        await house_.soon(lambda: len(house_.directory.registered) == 3)
        assert house_.weights() == {1: 100, 2: 100}
        assert not any(3 in ports for ports in seen)
        await house_.unsay(key="newcomers")
        await house_.soon(lambda: house_.weights() == {1: 100, 2: 100, 3: 100})
        await registry.close()


async def test_strange_application_name_does_no_harm(zookeeper: ZooKeeper, session: Session) -> None:
    """What a provider calls its application becomes part of the path of rules: whatever it is, providers are found."""
    interface = "test.rules.strange"
    async with governed(zookeeper, session, interface) as house_:
        registry = Registry(session)
        names = ("a/b", "..", "a\x00b", "\N{PILE OF POO}", " ", "a" * 2000, "%2F")
        for port, name in enumerate(names, 11):
            await registry.register(provider_url(port, interface).with_parameters({"application": name}))
        await house_.soon(lambda: len(house_.weights()) == 2 + len(names))
        assert house_.directory.state is DirectoryState.LIVE
        await house_.say(changing("weight: 7", who=""))
        await house_.soon(lambda: set(house_.weights().values()) == {7})
        await house_.unsay()
        await registry.close()
