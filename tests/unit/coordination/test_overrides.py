"""Writing into a rule: our entry changes, everybody else's stay."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from coordination.registry import ProviderURL, Service
from coordination.rules.configurators import parse_configurators
from coordination.rules.overrides import Changes, OverrideRefused, edited, read

SERVICE = Service("a.B", "g", "1.0")
ADDRESS = "10.0.0.5:50051"
OTHERS: list[dict[str, Any]] = [
    {"side": "provider", "addresses": [ADDRESS], "parameters": {"weight": 7}},
    {"side": "consumer", "providerAddresses": [ADDRESS, "10.0.0.6:50051"], "parameters": {"disabled": True}},
    {"side": "consumer", "addresses": ["10.0.0.9"], "providerAddresses": [ADDRESS], "parameters": {"timeout": 5}},
    {"side": "consumer", "providerAddresses": [ADDRESS], "applications": ["x"], "parameters": {"weight": 8}},
    {"side": "consumer", "providerAddresses": [ADDRESS], "enabled": False, "parameters": {"weight": 9}},
    {
        "side": "consumer",
        "providerAddresses": [ADDRESS],
        "match": {"app": {"oneof": [{"exact": "y"}]}},
        "parameters": {"a": 1},
    },
    {"side": "consumer", "providerAddresses": ["10.0.0.7:1"], "parameters": {"weight": 1}},
]


def after(*changes: Changes, text: str = "") -> str:
    for change in changes:
        text = edited(text, SERVICE, ADDRESS, change)
    return text


def rule(entries: list[dict[str, Any]], **head: Any) -> str:
    return yaml.safe_dump(
        {"configVersion": "v3.0", "key": "g/a.B:1.0", **head, "configs": json.loads(json.dumps(entries))}
    )


def test_new_rule_has_side_addresses_key_and_version() -> None:
    """What is written is what Dubbo reads: side, addresses, key and version."""
    assert yaml.safe_load(after({"weight": 20})) == {
        "configVersion": "v2.7",
        "scope": "service",
        "key": "g/a.B:1.0",
        "enabled": True,
        "configs": [
            {
                "side": "consumer",
                "addresses": ["0.0.0.0"],  # noqa: S104
                "providerAddresses": [ADDRESS],
                "parameters": {"weight": 20},
            }
        ],
    }


def test_override_has_effect_on_that_provider_only() -> None:
    consumer = ProviderURL.consumer("a.B", "10.0.0.9", application="desk", timestamp_ms=1)
    said = {"interface": "a.B", "group": "g", "version": "1.0"}
    ours, other = (ProviderURL("tri", "10.0.0.5", port, "a.B", said) for port in (50051, 50052))
    (configurator,) = parse_configurators(after({"disabled": True}), SERVICE.rule_key)
    assert configurator.configure(ours, consumer).disabled
    assert not configurator.configure(other, consumer).disabled


def test_parameters_come_and_go_in_one_entry_and_the_rule_with_the_last() -> None:
    both = after({"weight": 20}, {"disabled": True})
    assert [entry["parameters"] for entry in yaml.safe_load(both)["configs"]] == [{"weight": 20, "disabled": True}]
    assert yaml.safe_load(after({"disabled": None}, text=both))["configs"][0]["parameters"] == {"weight": 20}
    assert after({"disabled": None}, {"weight": None}, text=both) == ""


def test_entries_of_others_stay() -> None:
    """Whatever is about other consumers, other providers, or is conditional is not ours; neither are other
    parameters of an entry like ours."""
    text = rule(OTHERS)
    written = after({"weight": 20}, text=text)
    assert yaml.safe_load(written)["configs"][:-1] == OTHERS
    back = after({"weight": None}, text=written)
    assert yaml.safe_load(back) == yaml.safe_load(text)
    mixed = rule([{"side": "consumer", "providerAddresses": [ADDRESS], "parameters": {"timeout": 5, "weight": 1}}])
    assert yaml.safe_load(after({"weight": None}, text=mixed))["configs"][0]["parameters"] == {"timeout": 5}


def test_other_keys_of_a_rule_stay() -> None:
    """Also when no entry is left."""
    text = rule([], **{"x-team": "payments"})
    written = after({"weight": 20}, text=text)
    assert yaml.safe_load(written)["x-team"] == "payments"
    assert yaml.safe_load(after({"weight": None}, text=written)) == yaml.safe_load(text)


def test_override_without_a_change_is_not_written() -> None:
    """Byte for byte the same text, comments and all."""
    text = after({"weight": 20}) + "# by hand\n"
    assert after({"weight": 20}, text=text) is text
    assert after({"disabled": None}, text=text) is text
    assert after({"disabled": None}) == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("configs: [", "cannot be read"),
        (rule([{"side": "consumer", "parameters": {"weight": "heavy"}}]), "cannot be read"),
        ('["override://0.0.0.0/a.B?weight=1"]', "list of URLs"),
        (rule([], key="a.C"), "about a.C"),
        (rule([], scope="application", key="desk"), "about desk"),
        (rule([], enabled=False), "switched off"),
    ],
)
def test_foreign_rule_is_not_written_into(text: str, why: str) -> None:
    with pytest.raises(OverrideRefused, match=why):
        after({"weight": 20}, text=text)


def test_parameter_is_removed_from_a_rule_that_is_switched_off() -> None:
    text = after({"weight": 20}).replace("enabled: true", "enabled: false")
    assert after({"weight": None}, text=text) == ""


def test_overrides_are_read_from_a_rule() -> None:
    """Only entries like ours; of a blank rule none."""
    found = read(after({"weight": 20}, text=rule(OTHERS)), SERVICE)
    assert [(one.address, one.parameters) for one in found] == [
        ("10.0.0.7:1", {"weight": 1}),
        (ADDRESS, {"weight": 20}),
    ]
    assert read("", SERVICE) == []


changes = st.dictionaries(
    st.sampled_from(["weight", "disabled"]), st.one_of(st.none(), st.integers(0, 1000)), min_size=1
).map(
    lambda found: {
        key: (bool(value) if key == "disabled" and value is not None else value) for key, value in found.items()
    }
)


@settings(max_examples=40)
@given(st.lists(st.sampled_from(OTHERS), max_size=4), st.lists(changes, max_size=6))
def test_any_changes_leave_others_alone_and_can_be_undone(others: list[dict[str, Any]], steps: list[Changes]) -> None:
    """After any changes and their undoing the rule says what it said; where there was none, none is left."""
    text = rule(others) if others else ""
    written = after(*steps, text=text)
    undone = after({"weight": None, "disabled": None}, text=written)
    assert yaml.safe_load(undone or "null") == yaml.safe_load(text or "null")
