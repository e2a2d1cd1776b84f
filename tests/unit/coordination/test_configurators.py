"""Configurators: which providers a rule changes, for whom, and which rules are refused.

The 2.7 and 3.x examples follow the forms of Dubbo's own documentation.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.errors import BadRule
from coordination.registry import ProviderURL, Service
from coordination.rules.configurators import Configurator, in_order, parse_configurators, parse_override
from coordination.rules.document import RuleDocument

INTERFACE = "com.foo.BarService"
KEY = f"{INTERFACE}::"
CONSUMER = ProviderURL.consumer(INTERFACE, "10.0.0.9", application="desk", timestamp_ms=1)


def provider(host: str = "10.0.0.5", port: int = 20880, **parameters: str) -> ProviderURL:
    said = {"interface": INTERFACE, "application": "shop", "weight": "100", "side": "provider"}
    return ProviderURL("tri", host, port, INTERFACE, said | parameters)


def changed(rules: tuple[Configurator, ...], url: ProviderURL, consumer: ProviderURL = CONSUMER) -> dict[str, str]:
    """Return what the rules, one after the other, change in a URL."""
    configured = url
    for rule in rules:
        configured = rule.configure(configured, consumer)
    return {key: value for key, value in configured.parameters.items() if url.parameters.get(key) != value}


def yaml_rule(entry: str, *, head: str = "") -> str:
    return f"configVersion: v3.0\nscope: service\nkey: {INTERFACE}\n{head}configs:\n- {entry}\n"


# ---- 2.6 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "applies"),
    [
        ("override://0.0.0.0/com.foo.BarService?category=configurators&dynamic=false&weight=7", True),
        ("override://10.0.0.5:20880/com.foo.BarService?weight=7", True),
        ("override://10.0.0.5:20881/com.foo.BarService?weight=7", False),
        ("override://10.0.0.6:20880/com.foo.BarService?weight=7", False),
        ("override://10.0.0.6:1/com.foo.BarService?anyhost=true&weight=7", True),
        ("override://10.0.0.9/com.foo.BarService?weight=7", True),  # without a port: the consumer's address
        ("override://10.0.0.5/com.foo.BarService?weight=7", False),
        ("override://0.0.0.0/com.foo.Other?weight=7", False),
        ("override://0.0.0.0/*?weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?version=1.0&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?group=g&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?application=desk&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?application=shop&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?application=other&weight=7", False),
        ("override://other@0.0.0.0/com.foo.BarService?weight=7", False),
        ("override://desk@0.0.0.0/com.foo.BarService?weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?enabled=false&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?compatible_config=true&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?side=consumer&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?side=provider&application=shop&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?side=provider&application=desk&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?~zone=north&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?~zone=south&weight=7", False),
        ("override://0.0.0.0/com.foo.BarService?providerAddresses=10.0.0.5:20880&weight=7", True),
        ("override://0.0.0.0/com.foo.BarService?providerAddresses=10.0.0.6:20880&weight=7", False),
        ("absent://0.0.0.0/com.foo.BarService?weight=7", False),
    ],
)
def test_override_applies_to_its_host_and_conditions(url: str, applies: bool) -> None:
    """The host is a provider's if there is a port, else a consumer's; every condition has to hold."""
    rules = parse_override(quote(url, safe=""))
    assert changed(rules, provider(zone="north")) == ({"weight": "7"} if applies else {})


def test_absent_sets_only_missing_parameters() -> None:
    rules = parse_override("absent://0.0.0.0/com.foo.BarService?weight=7&timeout=200")
    assert changed(rules, provider()) == {"timeout": "200"}


def test_identity_of_a_provider_is_not_changed() -> None:
    """Conditions of the rule are no parameters of the provider."""
    rules = parse_override(
        "override://0.0.0.0/com.foo.BarService?category=configurators&dynamic=false&enabled=true&priority=3"
        "&application=desk&side=consumer&check=false&timestamp=1&methods=x&disabled=true&Pay.timeout=100"
    )
    assert changed(rules, provider()) == {"disabled": "true", "Pay.timeout": "100"}


def test_more_special_prevails_and_then_the_higher_priority() -> None:
    """0.0.0.0 comes before a host, and of one host the higher priority comes last."""
    texts = [
        "override://10.0.0.5:20880/com.foo.BarService?weight=3",
        "override://0.0.0.0/com.foo.BarService?weight=2&priority=9",
        "override://0.0.0.0/com.foo.BarService?weight=1&priority=-1",
    ]
    rules = in_order(rule for text in texts for rule in parse_override(text))
    assert [rule.parameters["weight"] for rule in rules] == ["1", "2", "3"]
    assert changed(rules, provider()) == {"weight": "3"}


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "tri://10.0.0.5:20880/com.foo.BarService",
        "override://0.0.0.0/com.foo.BarService?weight=heavy",
        "override://0.0.0.0/com.foo.BarService?weight=-1",
        "override://0.0.0.0/com.foo.BarService?timeout=1s",
        "override://0.0.0.0/com.foo.BarService?Pay.timeout=",
        "override://0.0.0.0/com.foo.BarService?disabled=perhaps",
        "override://0.0.0.0/com.foo.BarService?side=middle&weight=1",
        "override://0.0.0.0/com.foo.BarService?priority=high&weight=1",
    ],
)
def test_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(BadRule):
        parse_override(text)


# ---- 2.7 and 3.x -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "applies"),
    [
        ("{side: consumer, parameters: {weight: 7}}", True),
        ("{side: consumer, addresses: [0.0.0.0], parameters: {weight: 7}}", True),
        ("{side: consumer, addresses: [10.0.0.9], parameters: {weight: 7}}", True),
        ("{side: consumer, addresses: ['10.0.0.9:0'], parameters: {weight: 7}}", True),
        ("{side: consumer, addresses: [10.0.0.5], parameters: {weight: 7}}", False),
        ("{side: consumer, providerAddresses: ['10.0.0.5:20880'], parameters: {weight: 7}}", True),
        ("{side: consumer, providerAddresses: ['10.0.0.5'], parameters: {weight: 7}}", True),
        ("{side: consumer, providerAddresses: ['0.0.0.0:20880'], parameters: {weight: 7}}", True),
        ("{side: consumer, providerAddresses: ['0.0.0.0:*'], parameters: {weight: 7}}", True),
        ("{side: consumer, providerAddresses: ['10.0.0.5:1', '10.0.0.6:20880'], parameters: {weight: 7}}", False),
        ("{side: consumer, applications: [desk, other], parameters: {weight: 7}}", True),
        ("{side: consumer, applications: [shop], parameters: {weight: 7}}", False),
        ("{side: consumer, applications: ['*'], parameters: {weight: 7}}", True),
        ("{side: provider, addresses: ['10.0.0.5:20880'], parameters: {weight: 7}}", True),
        ("{side: provider, addresses: ['10.0.0.5:20881'], parameters: {weight: 7}}", False),
        ("{side: provider, addresses: ['0.0.0.0:20880'], parameters: {weight: 7}}", True),
        ("{side: provider, addresses: ['10.0.0.9'], parameters: {weight: 7}}", False),
        ("{side: provider, applications: [shop], parameters: {weight: 7}}", True),
        ("{side: provider, applications: [desk], parameters: {weight: 7}}", False),
        ("{side: provider, enabled: false, parameters: {weight: 7}}", False),
        ("{side: consumer, match: {address: {wildcard: '10.0.0.*'}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {address: {cird: 10.0.0.0/24}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {address: {exact: 10.0.0.5}}, parameters: {weight: 7}}", False),
        ("{side: consumer, match: {providerAddress: {wildcard: '10.0.0.5:20880'}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {providerAddress: {cidr: 10.1.0.0/16}}, parameters: {weight: 7}}", False),
        ("{side: provider, match: {address: {wildcard: '10.0.0.5:20880'}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {app: {oneof: [{exact: x}, {prefix: des}]}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {application: {oneof: [{exact: shop}]}}, parameters: {weight: 7}}", False),
        ("{side: consumer, match: {service: {oneof: [{exact: com.foo.BarService}]}}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {service: {oneof: []}}, parameters: {weight: 7}}", False),
        ("{side: consumer, match: {param: [{key: zone, value: {exact: north}}]}, parameters: {weight: 7}}", True),
        ("{side: consumer, match: {param: [{key: zone, value: {exact: south}}]}, parameters: {weight: 7}}", False),
    ],
)
def test_entry_applies_to_its_side_and_conditions(entry: str, applies: bool) -> None:
    """Hosts and applications are those of the entry's side; whatever is said has to hold."""
    assert changed(parse_configurators(yaml_rule(entry), KEY), provider(zone="north")) == (
        {"weight": "7"} if applies else {}
    )


@pytest.mark.parametrize(
    ("key", "group", "version", "applies"),
    [
        ("com.foo.BarService", "", "", True),
        ("g/com.foo.BarService:1.0", "g", "1.0", True),
        ("'com.foo.BarService:1.0:g'", "g", "1.0", True),
        ("'com.foo.BarService::'", "", "", True),
        ("com.foo.BarService", "g", "", False),
        ("com.foo.BarService:1.0", "", "2.0", False),
        ("com.foo.Other", "", "", False),
    ],
)
def test_service_rule_is_for_one_group_and_version(key: str, group: str, version: str, applies: bool) -> None:
    """The key may be written as a service or as the node is named."""
    rules = parse_configurators(f"key: {key}\nconfigs: [{{side: consumer, parameters: {{weight: 7}}}}]", KEY)
    more = {name: value for name, value in (("group", group), ("version", version)) if value}
    assert changed(rules, provider("10.0.0.5", 20880, **more)) == ({"weight": "7"} if applies else {})


@pytest.mark.parametrize(
    ("entry", "applies"),
    [
        ("{side: consumer, parameters: {weight: 7}}", True),
        ("{side: consumer, services: ['*'], parameters: {weight: 7}}", True),
        ("{side: consumer, services: [com.foo.Other, com.foo.BarService], parameters: {weight: 7}}", True),
        ("{side: consumer, services: [com.foo.Other], parameters: {weight: 7}}", False),
        ("{side: provider, parameters: {weight: 7}}", False),
    ],
)
def test_application_rule_is_for_the_application_of_its_side(entry: str, applies: bool) -> None:
    rules = parse_configurators(f"scope: application\nkey: desk\nconfigs:\n- {entry}", "desk")
    assert changed(rules, provider()) == ({"weight": "7"} if applies else {})
    theirs = parse_configurators(f"scope: application\nconfigs:\n- {entry.replace('consumer', 'provider')}", "shop")
    assert bool(changed(theirs, provider())) == (applies or "side: provider" in entry)


def test_rule_that_is_switched_off_is_none() -> None:
    assert (
        parse_configurators(yaml_rule("{side: consumer, parameters: {weight: 7}}", head="enabled: false\n"), KEY) == ()
    )


def test_list_of_urls_is_understood() -> None:
    """2.6's notation in a 2.7 node, as older consoles write it."""
    rules = parse_configurators('["override://0.0.0.0/com.foo.BarService?weight=7"]', KEY)
    assert changed(rules, provider()) == {"weight": "7"}


def test_no_configs_is_a_rule_that_changes_nothing() -> None:
    assert parse_configurators("configs: []", KEY) == ()


def test_error_names_the_place_of_the_rule() -> None:
    """Of an entry that is applied, and of one that is refused."""
    (rule,) = parse_configurators(yaml_rule("{side: consumer, parameters: {weight: 7}}"), KEY)
    assert rule.origin == "com.foo.BarService::.configurators, configs 1"
    with pytest.raises(BadRule, match=r"^com\.foo\.BarService::\.configurators, configs 1: side should be"):
        parse_configurators(yaml_rule("{parameters: {weight: 7}}"), KEY)


@pytest.mark.parametrize(
    "text",
    [
        *("", "nonsense", "{", "- 1", "configs: 5", "configs: [5]", "[" * 10_000, "a" * 70_000),
        yaml_rule("{side: consumer}"),
        yaml_rule("{side: consumer, parameters: {}}"),
        yaml_rule("{side: consumer, parameters: [weight]}"),
        yaml_rule("{side: consumer, parameters: {weight: [1]}}"),
        yaml_rule("{side: consumer, parameters: {weight: lots}}"),
        yaml_rule("{side: consumer, parameters: {disabled: 1}}"),
        yaml_rule("{side: both, parameters: {weight: 1}}"),
        yaml_rule("{side: consumer, addresses: 10.0.0.9, parameters: {weight: 1}}"),
        yaml_rule("{side: consumer, match: {moon: full}, parameters: {weight: 1}}"),
        yaml_rule("{side: consumer, match: {address: {regex: '.*'}}, parameters: {weight: 1}}"),
        yaml_rule("{side: consumer, match: {address: {cird: 10.0.0.0/99}}, parameters: {weight: 1}}"),
        yaml_rule("{side: consumer, match: {param: [{key: zone}]}, parameters: {weight: 1}}"),
    ],
)
def test_malformed_rule_is_refused(text: str) -> None:
    """A rule that cannot be understood, or whose conditions cannot, is refused as a whole."""
    with pytest.raises(BadRule):
        parse_configurators(text, KEY)


def test_entry_is_read_once_for_all_its_addresses_and_services(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a list again for each pair would take the cube of a rule's length."""
    read: list[str] = []
    texts = RuleDocument.texts

    def counted(document: RuleDocument, key: str) -> tuple[str, ...]:
        read.append(key)
        return texts(document, key)

    monkeypatch.setattr(RuleDocument, "texts", counted)
    lists = "addresses: [10.0.0.1, 10.0.0.2], services: [a, b, c], providerAddresses: [10.0.0.7:1]"
    rule = yaml_rule(f"{{side: consumer, {lists}, parameters: {{weight: 1}}}}")
    rules = parse_configurators(rule.replace("scope: service", "scope: application"), KEY)
    found = {(rule.host, rule.service.interface, rule.providers) for rule in rules}
    assert found == {(f"10.0.0.{host}", name, ("10.0.0.7:1",)) for host in (1, 2) for name in "abc"}
    assert sorted(read) == ["addresses", "providerAddresses", "services"]


@pytest.mark.parametrize("entries", [1, 30])
def test_rule_that_makes_too_many_changes_is_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    """Of one entry, or of all together."""
    made: list[Configurator] = []

    def counted(common: Configurator, **changes: Any) -> Configurator:
        made.append(replace(common, **changes))
        return made[-1]

    monkeypatch.setattr("coordination.rules.configurators.replace", counted)
    pairs = 1_001 // entries + 1
    addresses = ", ".join(f"10.0.0.{number}" for number in range(pairs))
    entry = f"{{side: consumer, addresses: [{addresses}], parameters: {{weight: 1}}}}"
    with pytest.raises(BadRule, match="more than 1000 changes, one for each address and service"):
        parse_configurators(yaml_rule("\n- ".join([entry] * entries)), KEY)
    assert len(made) <= 1_000


def test_parameter_without_a_name_is_refused_with_its_place() -> None:
    """When it is read, and not at every provider that it would be set for."""
    entries = "{side: consumer, parameters: {weight: 1}}, {side: consumer, parameters: {'': x}}"
    with pytest.raises(BadRule, match=r"configurators, configs 2: a parameter without a name"):
        parse_configurators(f"configs: [{entries}]", KEY)


@given(st.text(max_size=200))
def test_any_text_is_a_rule_or_a_bad_rule(text: str) -> None:
    """Nothing else ever comes out of reading."""
    with contextlib.suppress(BadRule):
        parse_configurators(text, KEY)
    with contextlib.suppress(BadRule):
        parse_override(text)


yaml_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
entries = st.dictionaries(
    st.sampled_from(["side", "addresses", "providerAddresses", "applications", "services", "parameters", "match"]),
    st.one_of(yaml_values, st.sampled_from(["consumer", "provider"])),
)


@given(st.lists(st.one_of(entries, yaml_values), max_size=3), st.sampled_from(["service", "application", ""]))
def test_any_yaml_is_a_rule_or_a_bad_rule(configs: list[object], scope: str) -> None:
    """Also when it looks like one; and whatever it is, applying it gives a URL."""
    import yaml

    with contextlib.suppress(BadRule):
        changed(parse_configurators(yaml.safe_dump({"scope": scope, "configs": configs}), KEY), provider())


def test_services_are_read_in_both_notations() -> None:
    assert Service.parse("g/a.B:1.0") == Service.parse("a.B:1.0:g") == Service("a.B", "g", "1.0")
    assert Service("a.B", "g", "1.0").rule_key == "a.B:1.0:g"
    assert (Service("a.B").rule_key, str(Service("a.B"))) == ("a.B::", "a.B")
    assert str(Service("a.B", "g", "1.0")) == "g/a.B:1.0"


def test_repeated_addresses_make_one_change() -> None:
    text = "configs: [{side: consumer, addresses: [10.0.0.9, 10.0.0.9], parameters: {weight: 1}}]"
    assert len(parse_configurators(text, "a.B::")) == len(parse_override("override://10.0.0.9/a.B?weight=1")) == 1
