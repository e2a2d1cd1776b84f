"""Routes: which calls may go where. The cases follow the semantics that Dubbo documents."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordination.errors import BadRule
from coordination.registry import Endpoint, ProviderURL
from coordination.rules.patterns import ANY_HOST
from coordination.rules.routers import (
    ConditionRouter,
    Facts,
    TagRouter,
    parse_condition,
    parse_conditions,
    parse_router,
    parse_tags,
)
from coordination.turns import at_once

INTERFACE = "com.foo.BarService"
CONSUMER = ProviderURL.consumer(INTERFACE, "10.0.0.9", application="desk", timestamp_ms=1)
KEY = f"{INTERFACE}::"


def endpoint(host: str, port: int = 20880, **parameters: str) -> Endpoint:
    url = ProviderURL("tri", host, port, INTERFACE, {"interface": INTERFACE, "application": "shop"} | parameters)
    return Endpoint(url.address, url)


NORTH, NORTH_TOO, SOUTH = (
    endpoint("10.1.0.1", region="north"),
    endpoint("10.1.0.2", 20881, region="north"),
    endpoint("10.2.0.1", region="south"),
)
ALL = (NORTH, NORTH_TOO, SOUTH)


def left(route: ConditionRouter, method: str = "getFoo", endpoints: Sequence[Endpoint] = ALL) -> list[Endpoint]:
    kept, reasons = at_once(route.route(endpoints, Facts(CONSUMER), method))
    assert {one.address for one in endpoints} == {one.address for one in kept} | reasons.keys()
    assert len(kept) + len(reasons) == len(endpoints)
    return list(kept)


# ---- conditions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "applies"),
    [
        ("host = 10.0.0.9", True),
        ("host = 2.2.2.2,10.0.0.9,3.3.3.3", True),
        ("host = 2.2.2.2,10.0.0.9,3.3.3.3 & host != 10.0.0.9", False),
        ("host != 4.4.4.4 & host = 2.2.2.2,10.0.0.9", True),
        ("host != 10.0.0.*", False),
        ("host = 10.0.0.* & host != 10.0.0.8", True),
        ("consumer.host = 10.0.0.9", True),
        ("application = desk", True),
        ("application = desk & method = get*,find*", True),
        ("application = desk & method = set*", False),
        ("method = getFoo", True),
        ("methods = getFoo", True),
        ("method != getFoo", False),
        ("method = get* & method != getFoo", False),
        ("interface = com.foo.BarService & method != sayHello", True),
        ("region = north", False),  # the consumer has no such parameter
        ("region != north", False),  # nor does one that is missing differ from anything
        ("protocol = consumer", True),
        ("", True),
        ("true", True),
    ],
)
def test_condition_applies_to_matching_calls(when: str, applies: bool) -> None:
    """Terms are about the consumer and the method; all of them have to hold."""
    route = parse_condition(f"{when} => host = 10.2.0.1", "here", force=True)
    assert left(route) == ([SOUTH] if applies else list(ALL))


@pytest.mark.parametrize(
    ("then", "kept"),
    [
        ("host = 10.1.0.1", [NORTH]),
        ("host = 10.1.0.*", [NORTH, NORTH_TOO]),
        ("host = 10.1.0.* & host != 10.1.0.1", [NORTH_TOO]),
        ("host = 10.1.0.1 & host != 10.1.0.1", []),
        ("host != 10.1.0.1", [NORTH_TOO, SOUTH]),
        ("region = north", [NORTH, NORTH_TOO]),
        ("region != north", [SOUTH]),
        ("address = *:20880", [NORTH, SOUTH]),
        ("address = 10.1.0.2:20881", [NORTH_TOO]),
        ("port = 20881~20890", [NORTH_TOO]),
        ("provider.host = 10.2.0.1", [SOUTH]),
        ("application = shop", [NORTH, NORTH_TOO, SOUTH]),
        ("color = red", []),
        ("host = $host", []),
        ("", []),
        ("false", []),
    ],
)
def test_condition_leaves_matching_providers(then: str, kept: list[Endpoint]) -> None:
    """Terms are about the provider; nothing on the right forbids the call."""
    assert left(parse_condition(f"host = 10.0.0.9 => {then}", "here", force=True)) == kept


def test_condition_may_refer_to_consumer_facts() -> None:
    """`$host` keeps calls on the consumer's own machine."""
    mine = endpoint("10.0.0.9")
    route = parse_condition("=> host = $host", "here", force=True)
    assert left(route, endpoints=[*ALL, mine]) == [mine]


def test_condition_that_leaves_no_provider_is_applied_with_force_only() -> None:
    """But nothing on the right of the arrow forbids, with force or without."""
    assert left(parse_condition("=> color = red", "here", force=False)) == list(ALL)
    assert left(parse_condition("=> color = red", "here", force=True)) == []
    assert left(parse_condition("method = getFoo =>", "here", force=False)) == []


def test_condition_without_an_arrow_is_about_every_call() -> None:
    assert left(parse_condition("host = 10.2.0.1", "here", force=False)) == [SOUTH]


def test_reason_names_the_rule() -> None:
    north = parse_condition("=> region = north", "there", force=False)
    _, reasons = at_once(north.route(ALL, Facts(CONSUMER), "getFoo"))
    assert reasons == {SOUTH.address: "routed away by there (=> region = north)"}
    none = parse_condition("application = desk =>", "there", force=False)
    _, reasons = at_once(none.route([SOUTH], Facts(CONSUMER), "getFoo"))
    assert reasons == {SOUTH.address: "forbidden by there (application = desk =>)"}


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "host", "host = => x = 1", "= 1 => x = 1", "a = 1 b = 2 => x = 1", "a == 1 => x = 1"),
        *("a = 1 & => x = 1", "a = 1, => x = 1", ", a => x = 1", "a => x = 1", "a = 5~x => x = 1"),
        *("arguments[0] = a => x = 1", "attachments[foo] = bar => x = 1", "a = 1 => arguments = b"),
    ],
)
def test_malformed_condition_is_refused(text: str) -> None:
    """Neither notation nor what is not supported is taken for "no condition"."""
    with pytest.raises(BadRule, match="here"):
        parse_condition(text, "here", force=False)


def test_conditions_in_yaml_are_asked_in_order() -> None:
    """Force holds for each of them; a rule that is switched off has none."""
    text = """
        configVersion: v3.0
        scope: service
        key: com.foo.BarService
        force: true
        runtime: true
        priority: 1
        conditions:
          - method=getFoo => region=north
          - >
            application = desk
            => address = *:20880
        """
    routes = parse_conditions(text, KEY)
    assert [route.text for route in routes] == [
        "method=getFoo => region=north",
        "application = desk => address = *:20880",
    ]
    assert all(route.force for route in routes)
    assert routes[0].origin == "com.foo.BarService::.condition-router"
    assert parse_conditions(text + "enabled: false", KEY) == ()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "force: true",
            "conditions: []",
            "conditions: x",
            "conditions: [{from: a}]",
            "conditions: ['']",
            "- a => b=1",
        ),
        "conditions: ['a=1 => b=2', 'nonsense']",
        "configVersion: v3.1\nconditions: [{from: {match: a=1}, to: [{match: b=2, weight: 5}]}]",
    ],
)
def test_malformed_condition_documents_are_refused(text: str) -> None:
    with pytest.raises(BadRule):
        parse_conditions(text, KEY)


def route_name(rule: str, protocol: str = "condition", host: str = ANY_HOST, **more: str) -> str:
    """Return the name of a 2.6 rule as Java writes it: the rule encoded, and the whole again."""
    parameters = {"category": "routers", "dynamic": "false", "rule": quote_plus(rule), **more}
    query = "&".join(f"{key}={value}" for key, value in parameters.items())
    return quote_plus(f"{protocol}://{host}/{INTERFACE}?{query}")


def test_routes_of_26() -> None:
    """The rule stands in a parameter, encoded by itself."""
    (route,) = parse_router(route_name("host = 10.0.0.9 => host = 10.2.0.1", force="true", priority="3"))
    assert (route.text, route.force, route.priority) == ("host = 10.0.0.9 => host = 10.2.0.1", True, 3)
    assert left(route) == [SOUTH]
    (older,) = parse_router(route_name("=> host = 10.2.0.1", "route", router="condition"))
    assert left(older) == [SOUTH]


@pytest.mark.parametrize(
    ("more", "applies"),
    [
        ({}, True),
        ({"host": "10.0.0.9"}, True),
        ({"host": "10.0.0.8"}, False),
        ({"group": "g"}, False),
        ({"version": "1.0"}, False),
    ],
)
def test_route_of_26_applies_to_its_consumer(more: dict[str, str], applies: bool) -> None:
    """A host is a consumer's; group and version are the consumer's."""
    (route,) = parse_router(route_name("=> region = south", **more))
    assert left(route) == ([SOUTH] if applies else list(ALL))


def test_routes_of_26_that_are_none() -> None:
    """Switched off, or the copy of a 2.7 rule: no route. Scripts and nonsense: a bad rule."""
    assert parse_router(route_name("=> a = 1", enabled="false")) == ()
    assert parse_router(route_name("=> a = 1", compatible_config="true")) == ()
    for name in (
        "nonsense",
        route_name("a"),
        route_name(""),
        route_name("=> a = 1", "script"),
        route_name("=> a = 1", "route", router="script"),
        route_name("=> a = 1", priority="high"),
    ):
        with pytest.raises(BadRule):
            parse_router(name)


@given(st.text(max_size=80))
def test_any_text_is_a_route_or_a_bad_rule(text: str) -> None:
    """Nothing else ever comes out of reading, and whatever does can be asked."""
    with contextlib.suppress(BadRule):
        left(parse_condition(text, "here", force=True))
    for parse in (parse_conditions, parse_tags):
        with contextlib.suppress(BadRule):
            parse(text, KEY)
    with contextlib.suppress(BadRule):
        parse_router(text)


terms = st.text("ab=!,& *~$", max_size=12)


@given(terms, terms, st.booleans())
def test_any_condition_keeps_or_explains(when: str, then: str, force: bool) -> None:
    """Everybody is either left, in order, or has a reason."""
    with contextlib.suppress(BadRule):
        kept = left(parse_condition(f"{when}=>{then}", "here", force=force))
        assert kept == [one for one in ALL if one in kept]


# ---- tags ------------------------------------------------------------------------------------------------

GRAY = endpoint("10.3.0.1", 20880, **{"dubbo.tag": "gray"})
BLUE = endpoint("10.3.0.2", 20880, **{"dubbo.tag": "blue"})


def tagged(text: str) -> TagRouter:
    (route,) = parse_tags(text, "shop")
    return route


def addresses(route: TagRouter, tag: str, endpoints: Sequence[Endpoint]) -> list[str]:
    kept, reasons = at_once(route.route(endpoints, tag))
    assert len(kept) + len(reasons) == len(endpoints)
    return [one.url.host for one in kept]


@pytest.mark.parametrize(
    ("tag", "endpoints", "kept"),
    [
        ("", [NORTH, GRAY, BLUE], ["10.1.0.1"]),
        ("gray", [NORTH, GRAY, BLUE], ["10.3.0.1"]),
        ("green", [NORTH, GRAY, BLUE], ["10.1.0.1"]),  # nobody has it: those without any
        ("green", [GRAY, BLUE], []),
        ("", [GRAY], []),  # who is tagged serves nobody without the tag
    ],
)
def test_tags_in_the_providers_urls(tag: str, endpoints: list[Endpoint], kept: list[str]) -> None:
    """With no rule a provider's own tag counts."""
    assert addresses(TagRouter("none"), tag, endpoints) == kept


DYNAMIC = """
    force: {force}
    enabled: true
    key: shop
    tags:
      - name: one
        addresses: ['10.1.0.1:20880']
      - name: two
        addresses: ['10.1.0.*']
      - name: empty
        addresses: ['10.9.9.9:1']
      - name: nothing
"""


@pytest.mark.parametrize(
    ("tag", "force", "kept"),
    [
        ("one", "false", ["10.1.0.1"]),
        ("two", "false", ["10.1.0.1", "10.1.0.2"]),
        ("empty", "false", ["10.2.0.1"]),  # its addresses are away: those without any tag
        ("empty", "true", []),  # unless the rule insists
        ("nothing", "true", ["10.2.0.1"]),  # no addresses: as if it were not named
        ("gray", "false", ["10.3.0.1"]),  # not in the rule: the providers' own
        ("green", "true", ["10.2.0.1"]),
        ("", "true", ["10.2.0.1"]),
    ],
)
def test_tags_in_a_rule(tag: str, force: str, kept: list[str]) -> None:
    """A rule gives addresses tags; who has one serves only calls with it."""
    assert addresses(tagged(DYNAMIC.format(force=force)), tag, [*ALL, GRAY]) == kept


def test_tagged_providers_are_not_for_calls_without_a_tag() -> None:
    route = tagged("tags: [{name: all, addresses: ['*']}]")
    assert addresses(route, "", ALL) == []
    assert addresses(route, "other", ALL) == []


def test_tags_by_the_providers_parameters() -> None:
    """3.x's `match`: all that is said has to be so."""
    route = tagged("configVersion: v3.0\ntags: [{name: n, match: [{key: region, value: {exact: north}}]}]")
    assert addresses(route, "n", ALL) == ["10.1.0.1", "10.1.0.2"]
    assert addresses(route, "", ALL) == ["10.2.0.1"]
    nobody = tagged("force: true\ntags: [{name: n, match: [{key: region, value: {exact: west}}]}]")
    assert addresses(nobody, "n", ALL) == ["10.1.0.1", "10.1.0.2", "10.2.0.1"]


@pytest.mark.parametrize(
    ("tag", "kept"),
    [
        ("beta", ["10.1.0.1"]),
        ("beta|team1", ["10.1.0.2"]),
        ("beta|team1|partner", ["10.1.0.2"]),
        ("beta|team2", ["10.1.0.1"]),
        ("alpha|team1", ["10.2.0.1"]),
    ],
)
def test_tags_have_levels(tag: str, kept: list[str]) -> None:
    """Of a|b|c the most special that the rule knows counts."""
    route = tagged("tags: [{name: beta, addresses: [10.1.0.1]}, {name: beta|team1, addresses: [10.1.0.2]}]")
    assert addresses(route, tag, ALL) == kept


def test_tag_rule_that_is_switched_off_is_none() -> None:
    assert parse_tags("enabled: false\ntags: [{name: a, addresses: [h]}]", "shop") == ()


@pytest.mark.parametrize(
    "text",
    [
        *("", "tags: []", "tags: x", "tags: [x]", "tags: [{addresses: [h]}]", "tags: [{name: a, addresses: ['h:x']}]"),
        "tags: [{name: a, match: [{key: b, value: {regex: x}}]}]",
    ],
)
def test_malformed_tag_rules_are_refused(text: str) -> None:
    with pytest.raises(BadRule):
        parse_tags(text, "shop")
