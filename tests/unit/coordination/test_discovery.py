"""Directories and their memory, without ZooKeeper."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from coordination.discovery.consumer import Consumer
from coordination.discovery.directory import MAX_ROUTED, Directory, DirectoryState
from coordination.discovery.provider_cache import ProviderCache
from coordination.errors import NoProviders
from coordination.metrics import Metrics
from coordination.registry import Endpoint, ProviderURL, Service
from coordination.rules import Rules
from coordination.rules.configurators import parse_configurators
from coordination.rules.routers import parse_condition
from coordination.turns import Work
from tests.unit.coordination.loop_turns import counted

NODE = ProviderURL("tri", "h", 1, "a.B").node_name()
OTHER = ProviderURL("tri", "h", 2, "a.B").node_name()


def addresses(directory: Directory) -> list[str]:
    return [endpoint.address for endpoint in directory.endpoints]


def disabling(address: str) -> Rules:
    text = f"configs: [{{side: consumer, providerAddresses: ['{address}'], parameters: {{disabled: true}}}}]"
    return Rules(configurators=parse_configurators(text, "a.B::"))


def test_away_and_empty_are_different_states() -> None:
    """Going away takes nobody out; an empty list that is believed does."""
    directory = Directory("a.B", empty_list_grace_s=0)
    directory.on_away()
    assert directory.state is DirectoryState.UNKNOWN
    directory.take(directory.reader.read([NODE]))
    directory.on_away()
    assert (directory.state, len(directory.endpoints)) == (DirectoryState.AWAY, 1)
    directory.take(directory.reader.read([]))
    assert (directory.state, directory.endpoints) == (DirectoryState.LIVE, ())


async def test_empty_list_is_taken_as_true_after_the_grace_period() -> None:
    """Nobody where there was somebody is doubted; read again after the time of doubt it is the truth."""
    directory = Directory("a.B", empty_list_grace_s=0.2)
    directory.take(directory.reader.read([NODE]))
    assert directory.reread_after_s() is None
    directory.take(directory.reader.read([]))
    assert (directory.state, addresses(directory)) == (DirectoryState.EMPTYING, ["h:1"])
    await asyncio.sleep(0.05)
    directory.take(directory.reader.read([]))  # the same again does not begin the doubt anew
    assert directory.state is DirectoryState.EMPTYING
    doubtful_s = directory.reread_after_s()
    assert doubtful_s is not None
    assert doubtful_s <= 0.15
    await asyncio.sleep(doubtful_s)
    directory.take(directory.reader.read([]))
    assert (directory.state, addresses(directory)) == (DirectoryState.LIVE, [])
    assert directory.reread_after_s() is None


def test_returning_provider_ends_the_grace_period() -> None:
    """Whoever comes back is the list, be it another; and the next emptiness is doubted anew."""
    directory = Directory("a.B", empty_list_grace_s=60)
    directory.take(directory.reader.read([NODE]))
    directory.take(directory.reader.read([]))
    directory.take(directory.reader.read([OTHER]))
    assert (directory.state, addresses(directory)) == (DirectoryState.LIVE, ["h:2"])
    directory.take(directory.reader.read([]))
    assert (directory.state, addresses(directory)) == (DirectoryState.EMPTYING, ["h:2"])


def test_provider_that_leaves_others_behind_is_gone_at_once() -> None:
    directory = Directory("a.B", empty_list_grace_s=60)
    directory.take(directory.reader.read([NODE, OTHER]))
    directory.take(directory.reader.read([OTHER]))
    assert (directory.state, addresses(directory)) == (DirectoryState.LIVE, ["h:2"])


def test_list_without_usable_providers_counts_as_empty() -> None:
    """A list in which nobody can be called is as good as empty, and is doubted like one."""
    directory = Directory("a.B", empty_list_grace_s=60)
    directory.take(directory.reader.read([NODE]))
    directory.take(directory.reader.read(["nonsense"]))
    assert (directory.state, addresses(directory)) == (DirectoryState.EMPTYING, ["h:1"])
    assert [verdict.why_not for verdict in directory.eligibility("Any")] == [
        "cannot be read: not a URL: 'nonsense'",
        "",
    ]


def test_outage_while_emptying_restarts_the_grace_period() -> None:
    """ZooKeeper gone and back with nobody: they may be about to register again."""
    directory = Directory("a.B", empty_list_grace_s=60)
    directory.take(directory.reader.read([NODE]))
    directory.take(directory.reader.read([]))
    directory.on_away()
    assert (directory.state, addresses(directory)) == (DirectoryState.AWAY, ["h:1"])
    assert directory.reread_after_s() is None
    directory.take(directory.reader.read([]))
    assert (directory.state, addresses(directory)) == (DirectoryState.EMPTYING, ["h:1"])


def test_empty_first_list_has_no_grace_period() -> None:
    """The first list is the truth at once, empty or not."""
    directory = Directory("a.B", empty_list_grace_s=60)
    directory.take(directory.reader.read([]))
    assert directory.state is DirectoryState.LIVE


def test_cached_list_never_replaces_one_that_was_read() -> None:
    """A file read late does not undo ZooKeeper's list, and an empty memory says nothing."""
    directory = Directory("a.B")
    directory.load_cached([])
    assert directory.state is DirectoryState.UNKNOWN
    directory.load_cached(["nonsense"])
    assert directory.state is DirectoryState.UNKNOWN
    directory.take(directory.reader.read([]))
    directory.load_cached([NODE])
    assert (directory.state, directory.endpoints) == (DirectoryState.LIVE, ())


def test_subscribers_are_called_at_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """The same list again is no news; a subscriber that fails keeps none of the others from hearing."""
    directory, heard = Directory("a.B", empty_list_grace_s=0), list[int]()

    def fail() -> None:
        raise RuntimeError("a subscriber's own fault")

    directory.subscribe(fail)
    unsubscribe = directory.subscribe(lambda: heard.append(len(directory.endpoints)))
    with caplog.at_level(logging.CRITICAL):
        directory.take(directory.reader.read([NODE]))
        directory.take(directory.reader.read([NODE]))
        directory.take(directory.reader.read([]))
        unsubscribe()
        directory.take(directory.reader.read([NODE]))
    assert heard == [1, 0]
    assert directory.changed.is_set()


async def test_wait_any_without_providers_fails_in_time() -> None:
    """wait_any() fails in time, saying whether ZooKeeper could be asked."""
    directory = Directory("a.B")
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.01)
    assert caught.value.away
    directory.take(directory.reader.read([]))
    with pytest.raises(NoProviders) as caught:
        await directory.wait_any(0.01)
    assert not caught.value.away
    assert caught.value.interface == "a.B"


async def test_disabled_endpoint_leaves_at_once_and_is_still_known() -> None:
    """Also when it is the last: that is somebody's decision, not a restart. What was done is told."""
    directory = Directory("a.B")
    directory.take(directory.reader.read([NODE]))
    await directory.govern(disabling("h:1"))
    assert (directory.state, addresses(directory)) == (DirectoryState.LIVE, [])
    assert [endpoint.address for endpoint in directory.registered] == ["h:1"]
    (verdict,) = directory.eligibility("Any")
    assert verdict.why_not == "disabled by a.B::.configurators, configs 1"
    with pytest.raises(NoProviders, match=r"every provider of a\.B is disabled \(1\)") as caught:
        await directory.wait_any(0.01)
    assert caught.value.disabled == 1
    await directory.govern(Rules())
    assert addresses(directory) == ["h:1"]


def test_provider_disabled_by_its_url_is_no_endpoint() -> None:
    directory = Directory("a.B")
    directory.take(directory.reader.read([ProviderURL("tri", "h", 1, "a.B", {"enabled": "false"}).node_name()]))
    assert [verdict.why_not for verdict in directory.eligibility("Any")] == ["registered as disabled"]


async def test_candidates_follow_the_list_and_the_rules() -> None:
    """What is remembered of a method and a tag is forgotten when either changes."""
    directory = Directory("a.B")
    directory.take(directory.reader.read([NODE, OTHER]))
    assert [one.address for one in directory.candidates("Pay")] == ["h:1", "h:2"]
    assert directory.candidates("Pay") is directory.candidates("Pay")
    await directory.govern(Rules(conditions=(parse_condition("method = Pay => port = 2", "here", force=True),)))
    assert [one.address for one in directory.candidates("Pay")] == ["h:2"]
    assert [one.address for one in directory.candidates("Look")] == ["h:1", "h:2"]
    directory.take(directory.reader.read([NODE]))
    assert directory.candidates("Pay") == ()
    (verdict,) = directory.eligibility("Pay")
    assert verdict.why_not == "routed away by here (method = Pay => port = 2)"
    assert verdict.endpoint is not None


def test_cache_of_candidates_is_bounded() -> None:
    """Tags come from callers: what is remembered of them is bounded."""
    directory = Directory("a.B")
    directory.take(directory.reader.read([NODE]))
    for number in range(3 * MAX_ROUTED):
        directory.candidates("Pay", str(number))
    assert len(directory._routed) <= MAX_ROUTED


async def test_every_registration_has_an_eligibility() -> None:
    """Every node is answered for: candidates, and why the others are none."""
    gray = ProviderURL("tri", "h", 3, "a.B", {"dubbo.tag": "gray"}).node_name()
    of_group = ProviderURL("tri", "h", 4, "a.B", {"group": "g"}).node_name()
    directory = Directory("a.B")
    await directory.govern(disabling("h:2"))
    directory.take(
        directory.reader.read(
            [NODE, OTHER, gray, of_group, "nonsense", ProviderURL("dubbo", "h", 5, "a.B").node_name()]
        )
    )
    assert {verdict.address: verdict.why_not for verdict in directory.eligibility("Pay")} == {
        "": "cannot be read: not a URL: 'nonsense'",
        "h:1": "",
        "h:2": "disabled by a.B::.configurators, configs 1",
        "h:3": "has a tag, and the call has none",
        "h:4": "provides g/a.B, not a.B",
        "h:5": "speaks dubbo, not gRPC",
    }


def test_unreadable_node_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Not again at every change of the list."""
    directory = Directory("a.B")
    with caplog.at_level(logging.WARNING, "coordination"):
        directory.take(directory.reader.read(["nonsense"]))
        directory.take(directory.reader.read(["nonsense", NODE]))
    assert caplog.text.count("nonsense") == 1


async def test_endpoints_and_list_state_are_exported() -> None:
    """Endpoints that may be called, and whether the list is ZooKeeper's own."""
    collected = CollectorRegistry()
    directory = Directory("a.B", metrics=Metrics(collected))

    def figures() -> tuple[float | None, float | None]:
        labels = {"interface": "a.B"}
        return (
            collected.get_sample_value("coordination_endpoints", labels),
            collected.get_sample_value("coordination_directory_live", labels),
        )

    directory.take(directory.reader.read([NODE, OTHER]))
    assert figures() == (2, 1)
    await directory.govern(disabling("h:1"))
    assert figures() == (1, 1)
    directory.on_away()
    assert figures() == (1, 0)
    directory.take(directory.reader.read([]))
    assert figures() == (1, 0)


def test_consumer_url_names_consumer_service_and_process() -> None:
    """A consumer says who it is and for which service; its process keeps it apart from others of its host."""
    url = Consumer("desk", "10.0.0.9", timestamp_ms=5, instance="desk-1", tag="gray").url(Service("a.B", "g", "1.0"))
    assert (url.host, url.application, url.group, url.version, url.tag) == ("10.0.0.9", "desk", "g", "1.0", "gray")
    assert url.parameters["pid"] == str(os.getpid())
    assert url.parameters["category"] == "consumers"
    assert Service.of(url) == Service("a.B", "g", "1.0")
    assert "group" not in Consumer("desk", "10.0.0.9").url(Service("a.B")).parameters


@pytest.mark.parametrize("content", [None, "", "nonsense", "{}", '["a", 1]', pytest.param("[" * 20_000, id="deep")])
def test_unreadable_cache_is_empty(tmp_path: Path, content: str | None) -> None:
    """A missing or damaged file costs the cold start and nothing else."""
    path = tmp_path / "a.B.json"
    if content is not None:
        path.write_text(content)
    assert ProviderCache(path).load() in ([], ["a"])


def test_cache_file_is_replaced_atomically(tmp_path: Path) -> None:
    """What was saved is what is loaded, and no draft is left."""
    cache = ProviderCache(tmp_path / "deep" / "a.B.json")
    cache.save(["b", "a"])
    cache.save(["c"])
    assert cache.load() == ["c"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.B.json"]


def test_cache_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that is a file, as a read-only one would: nothing is raised, and what was there stays."""
    (tmp_path / "taken").write_text("a file")
    cache = ProviderCache(tmp_path / "taken" / "a.B.json")
    with caplog.at_level(logging.WARNING, "coordination"):
        cache.save(["a"])
        assert cache.load() == []
    assert "cannot be cached" in caplog.text
    assert (tmp_path / "taken").read_text() == "a file"


async def test_one_change_among_a_thousand_providers_costs_one_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the node that came is read, and only it is looked at by the rules; the others stay the objects they were."""
    names = [ProviderURL("tri", "h", port, "a.B", {"weight": "7"}).node_name() for port in range(1, 1001)]
    other = ProviderURL("tri", "h", 1001, "a.B").node_name()
    directory = Directory("a.B")
    directory.take(directory.reader.read(names))
    before = {endpoint.key: endpoint for endpoint in directory.endpoints}
    read: list[str] = []
    governed: list[Endpoint] = []
    parse, govern = ProviderURL.parse, Rules.govern

    def parsing(text: str) -> ProviderURL:
        read.append(text)
        return parse(text)

    def governing(rules: Rules, endpoint: Endpoint, consumer: ProviderURL) -> Work[Endpoint]:
        governed.append(endpoint)
        return govern(rules, endpoint, consumer)

    monkeypatch.setattr(ProviderURL, "parse", parsing)
    monkeypatch.setattr(Rules, "govern", governing)
    directory.take(directory.reader.read([*names[1:], other]))  # h:1 went, and h:1001 came
    assert read == [other]
    assert [endpoint.key for endpoint in governed] == ["h:1001"]
    assert len(directory.endpoints) == 1000
    assert [one.key for one in directory.endpoints if before.get(one.key) is not one] == ["h:1001"]


async def test_many_new_providers_leave_the_loop_its_turns() -> None:
    """A thousand at once are read in parts."""
    directory = Directory("a.B")
    names = [ProviderURL("tri", "h", port, "a.B").node_name() for port in range(1, 1001)]
    async with counted() as had:
        await directory.reader.prepare(names)
        assert had() >= 10
    directory.take(directory.reader.read(names))
    assert len(directory.endpoints) == 1000


def test_log_names_only_providers_that_came_or_went(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand addresses at every change would bury all else."""
    caplog.set_level(logging.INFO)
    directory = Directory("a.B")
    directory.take(directory.reader.read([ProviderURL("tri", "h", port, "a.B").node_name() for port in range(1, 1001)]))
    assert "1000 endpoints" in caplog.messages[-1]
    assert "and 990 more" in caplog.messages[-1]
    directory.take(directory.reader.read([ProviderURL("tri", "h", port, "a.B").node_name() for port in range(2, 1001)]))
    assert caplog.messages[-1] == "a.B: 999 endpoints (live); new: none; gone: h:1"
