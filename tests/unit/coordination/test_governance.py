"""All rules together: their order, and that what they change is told."""

from __future__ import annotations

from coordination.registry import Endpoint, ProviderURL
from coordination.rules import Rules
from coordination.rules.configurators import parse_configurators, parse_override
from coordination.rules.routers import parse_condition, parse_conditions, parse_tags
from coordination.turns import at_once

CONSUMER = ProviderURL.consumer("a.B", "10.0.0.9", application="desk", timestamp_ms=1)


def endpoint(port: int, application: str = "shop", **parameters: str) -> Endpoint:
    said = {"interface": "a.B", "application": application, "weight": "100"} | parameters
    url = ProviderURL("tri", "10.0.0.5", port, "a.B", said)
    return Endpoint(url.address, url)


def weight(weight: int, key: str = "a.B", scope: str = "service") -> str:
    return f"scope: {scope}\nkey: {key}\nconfigs: [{{side: consumer, parameters: {{weight: {weight}}}}}]"


def test_service_prevails_over_the_application_and_that_over_26() -> None:
    """Of three weights the last applied counts, and it is told who set it."""
    rules = Rules(
        configurators=(
            *parse_override("override://0.0.0.0/a.B?weight=1&timeout=5"),
            *parse_configurators(weight(2, "desk", "application"), "desk"),
            *parse_configurators(weight(3), "a.B::"),
        )
    )
    governed = at_once(rules.govern(endpoint(1), CONSUMER))
    assert governed.weight == 3
    assert governed.timeout_s("Any") == 0.005
    assert governed.changed_by == {"weight": "a.B::.configurators, configs 1", "timeout": "override://0.0.0.0/a.B"}
    assert governed.registered == endpoint(1).url


def test_rules_are_applied_to_the_registered_url() -> None:
    """A rule that goes leaves nothing behind."""
    rules = Rules(configurators=parse_override("override://0.0.0.0/a.B?weight=1"))
    ruled = at_once(rules.govern(endpoint(1), CONSUMER))
    assert ruled.weight == 1
    assert at_once(Rules().govern(ruled, CONSUMER)) == endpoint(1)


def test_rule_equal_to_the_url_changes_nothing() -> None:
    rules = Rules(configurators=parse_override("override://0.0.0.0/a.B?weight=100"))
    assert at_once(rules.govern(endpoint(1), CONSUMER)) == endpoint(1)


def test_tags_come_before_conditions() -> None:
    """A condition may take away everybody a tag has left; each says who took whom."""
    rules = Rules(
        tags={"shop": parse_tags("tags: [{name: gray, addresses: ['10.0.0.5:2']}]", "shop")[0]},
        conditions=parse_conditions("force: true\nconditions: ['method=Pay => port = 3']", "a.B::"),
    )
    endpoints = [endpoint(port) for port in (1, 2, 3)]
    left, reasons = at_once(rules.route(endpoints, CONSUMER, "Pay", ""))
    assert left == (endpoints[2],)
    assert reasons == {
        "10.0.0.5:1": "routed away by a.B::.condition-router (method=Pay => port = 3)",
        "10.0.0.5:2": "has a tag, and the call has none",
    }
    assert at_once(rules.route(endpoints, CONSUMER, "Pay", "gray"))[0] == ()
    assert at_once(rules.route(endpoints, CONSUMER, "Look", "gray"))[0] == (endpoints[1],)


def test_consumers_tag_is_that_of_calls_without_one() -> None:
    tagged = ProviderURL.consumer("a.B", "10.0.0.9", application="desk", timestamp_ms=1, **{"dubbo.tag": "gray"})
    gray, plain = endpoint(1, **{"dubbo.tag": "gray"}), endpoint(2)
    assert at_once(Rules().route([gray, plain], tagged, "Pay", ""))[0] == (gray,)
    assert at_once(Rules().route([gray, plain], tagged, "Pay", "blue"))[0] == (plain,)


def test_tags_of_another_application_do_not_count() -> None:
    rules = Rules(tags={"other": parse_tags("tags: [{name: gray, addresses: ['*']}]", "other")[0]})
    assert at_once(rules.route([endpoint(1)], CONSUMER, "Pay", ""))[0] == (endpoint(1),)


def test_conditions_use_the_registered_url_and_tags_the_governed_one() -> None:
    """As in Dubbo: a condition on the weight means the registered one; a tag may be given by a configurator."""
    rules = Rules(
        configurators=parse_override("override://0.0.0.0/a.B?weight=1&dubbo.tag=gray"),
        conditions=(parse_condition("=> weight = 100", "here", force=True),),
    )
    governed = at_once(rules.govern(endpoint(1), CONSUMER))
    assert at_once(rules.route([governed], CONSUMER, "Pay", "gray"))[0] == (governed,)
    assert at_once(rules.route([governed], CONSUMER, "Pay", ""))[0] == ()


def test_rules_on_an_empty_list_leave_an_empty_list() -> None:
    assert at_once(Rules().route([], CONSUMER, "Pay", "gray")) == ((), {})
