"""From the names in the registry to addresses to call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.registry import ProviderURL, Service
from coordination.registry.endpoint import Endpoint, ProviderReader, Registration

SERVICE = Service("a.B")
NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def node(port: int, timestamp_ms: int = 0, protocol: str = "tri", **parameters: str) -> str:
    return ProviderURL(protocol, "h", port, "a.B", {"timestamp": str(timestamp_ms), **parameters}).node_name()


def endpoint(**parameters: str) -> Endpoint:
    return Endpoint("h:1", ProviderURL("tri", "h", 1, "a.B", parameters))


def usable(found: tuple[Registration, ...]) -> list[str]:
    return [one.address for one in found if not one.refusal]


def test_sorted_by_address_and_others_left_out_with_the_reason() -> None:
    """Only what can be read and speaks gRPC is an endpoint; the rest says why it is none."""
    found = ProviderReader(SERVICE).read([node(2), node(1, protocol="grpc"), node(3, protocol="dubbo"), "nonsense"])
    assert usable(found) == ["h:1", "h:2"]
    assert {one.name: one.refusal for one in found if one.refusal} == {
        node(3, protocol="dubbo"): "speaks dubbo, not gRPC",
        "nonsense": "cannot be read: not a URL: 'nonsense'",
    }


def test_later_of_two_registrations_counts() -> None:
    """A restarted provider is there twice until its old session expires: it is one endpoint, the new one."""
    for names in ([node(1, 5), node(1, 9)], [node(1, 9), node(1, 5)]):
        found = ProviderReader(SERVICE).read(names)
        (one,) = [one for one in found if not one.refusal]
        assert one.started_ms == 9
        assert [one.refusal for one in found if one.refusal] == ["an older registration of the same address"]


def test_equal_registrations_have_a_stable_choice() -> None:
    """Two registrations of one address and time do not take turns, in whatever order ZooKeeper lists them."""
    names = [node(1, 5, pid="1"), node(1, 5, pid="2")]
    one, other = ProviderReader(SERVICE).read(names), ProviderReader(SERVICE).read(reversed(names))
    assert one == other
    assert len(usable(one)) == 1


@pytest.mark.parametrize(
    ("group", "version", "taken"),
    [
        ("", "", ["h:1"]),
        ("g", "", ["h:2"]),
        ("", "1.0", ["h:3"]),
        ("g", "1.0", ["h:4"]),
        ("*", "*", ["h:1", "h:2", "h:3", "h:4"]),
        ("*", "1.0", ["h:3", "h:4"]),
        ("g", "*", ["h:2", "h:4"]),
        ("x,g", "", ["h:2"]),
        ("x", "", []),
        ("", "2.0", []),
    ],
)
def test_group_and_version_are_compared_as_dubbo_does(group: str, version: str, taken: list[str]) -> None:
    """Nothing takes only providers without one; a star takes all; a group may be a list."""
    names = [node(1), node(2, group="g"), node(3, version="1.0"), node(4, group="g", version="1.0")]
    assert usable(ProviderReader(Service("a.B", group, version)).read(names)) == taken


def test_address_in_two_groups_is_two_endpoints() -> None:
    """So it is in two versions; of each the later registration counts, and each says in every call which it is."""
    names = [node(1), node(1, 5, group="a"), node(1, 9, group="a"), node(1, group="b"), node(1, group="a", version="2")]
    endpoints = [one.endpoint for one in ProviderReader(Service("a.B", "*", "*")).read(names) if one.endpoint]
    assert {one.key: one.metadata for one in endpoints} == {
        "h:1": (),
        "h:1?group=a": (("tri-service-group", "a"),),
        "h:1?group=b": (("tri-service-group", "b"),),
        "h:1?group=a&version=2": (("tri-service-group", "a"), ("tri-service-version", "2")),
    }
    assert {one.address for one in endpoints} == {"h:1"}


def test_keys_of_different_groups_differ_whatever_they_are_called() -> None:
    """A group may be called like a group and a version."""
    names = [node(1, group="a&version=1"), node(1, group="a", version="1")]
    read = ProviderReader(Service("a.B", "*", "*")).read(names)
    assert len({one.endpoint.key for one in read if one.endpoint}) == 2


@pytest.mark.parametrize("group", ["付", "a\nb", "a\x7f"])
def test_group_that_metadata_cannot_carry_is_refused(group: str) -> None:
    """It costs that registration, and no call."""
    found = ProviderReader(Service("a.B", "*", "*")).read([node(1, group=group), node(2)])
    assert usable(found) == ["h:2"]
    assert "printable ASCII" in next(one.refusal for one in found if one.refusal)


def test_node_name_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that went is forgotten."""
    read: list[str] = []
    parse = ProviderURL.parse

    def counted(text: str) -> ProviderURL:
        read.append(text)
        return parse(text)

    monkeypatch.setattr(ProviderURL, "parse", counted)
    reader = ProviderReader(SERVICE)
    for ports in ((1, 2), (2, 1), (1, 3), (2,)):
        assert len(usable(reader.read([node(port) for port in ports]))) == len(ports)
    assert read == [node(1), node(2), node(3), node(2)]


@pytest.mark.parametrize(
    ("uptime_ms", "warmup", "weight", "now"),
    [
        (5 * MINUTE_MS, None, 100, 50),  # Dubbo's ten minutes, if nothing is said
        (1, None, 100, 1),  # at least 1
        (MINUTE_MS, "120000", 100, 50),
        (MINUTE_MS, "120000", 7, 3),  # rounded down, as in Dubbo
        (120_000, "120000", 100, 100),
        (MINUTE_MS, "0", 100, 100),  # no warm-up is asked for
        (MINUTE_MS, "soon", 100, 10),  # malformed: the default
        (MINUTE_MS, None, 0, 0),  # weight 0 stays 0
        (0, None, 100, 100),  # neither does Dubbo warm up in the first millisecond
        (-MINUTE_MS, None, 100, 100),  # its clock is ahead of ours: warm
    ],
)
def test_weight_grows_during_warm_up(uptime_ms: int, warmup: str | None, weight: int, now: int) -> None:
    """A new provider's share grows with its uptime."""
    more = {} if warmup is None else {"warmup": warmup}
    warming = endpoint(timestamp=str(NOW_MS - uptime_ms), weight=str(weight), **more)
    assert warming.weight == weight
    assert warming.weight_at(NOW_MS) == now


def test_provider_without_a_timestamp_has_no_warm_up() -> None:
    assert endpoint(weight="40").weight_at(NOW_MS) == 40
    assert endpoint(weight="40").weight_at(1) == 40


@given(st.integers(0, 1000), st.integers(-(10**6), 10**6), st.integers(0, 10**6))
def test_warm_up_only_reduces_the_weight(weight: int, uptime_ms: int, warmup_ms: int) -> None:
    """The weight at any moment lies between 1 and the weight, or is 0 if that is."""
    warming = endpoint(timestamp=str(NOW_MS - uptime_ms), weight=str(weight), warmup=str(warmup_ms))
    assert min(1, weight) <= warming.weight_at(NOW_MS) <= weight


def test_timeout_is_set_for_a_method_or_for_all() -> None:
    """Milliseconds in the URL, seconds for us; what is no positive number says nothing."""
    said = endpoint(timeout="3000", **{"Pay.timeout": "500", "Look.timeout": "soon"})
    assert [said.timeout_s(method) for method in ("Pay", "Look", "Other")] == [0.5, 3.0, 3.0]
    assert endpoint().timeout_s("Pay") is None
    assert endpoint(timeout="-1").timeout_s("Pay") is None
