"""Routers: Dubbo's rules that say which providers a call may go to. Conditions, and tags.

    method=find* & host=10.0.0.9  =>  host=10.0.0.5,10.0.0.6        a condition: which calls => which providers
    tags: [{name: gray, addresses: [10.0.0.5:50051]}]               a tag: calls with it, and those without

A router removes providers and never adds one. It gives a reason for every provider it removed.

Invariants
1. Pure: parsing gives routers or a BadRule; routing looks nothing up. It may take long, and so is done in turns: a step
   is one provider and one condition, or one provider and all tags.
2. A condition that is not understood makes the rule bad. It is never taken for "no condition".
3. A condition router without `force` that would leave no provider is not applied. With it, or with nothing on the right
   of ``=>``, it may leave none.
4. The providers that remain keep their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coordination.errors import BadRule
from coordination.quoting import escaped, quoted
from coordination.registry.endpoint import Endpoint
from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL
from coordination.rules.configurators import rule_url
from coordination.rules.document import RuleDocument
from coordination.rules.patterns import ANY_HOST, NO_VALUES, AddressPattern, StringMatch, ValuePattern, Values
from coordination.turns import Work

#: What the names of these rules' nodes end with, after a dot.
CONDITIONS, TAGS = "condition-router", "tag-router"

_PART = re.compile(r"([&!=,]*)\s*([^&!=,\s]+)\s*")
_METHOD = ("method", "methods")
_LEVEL = "|"
_UNSUPPORTED_KEYS = re.compile(r"(arguments|attachments)\b.*", re.DOTALL)

#: By endpoint's key: why it is not to be called.
Reasons = dict[str, str]
#: The endpoints that remain, and why the others do not.
Routed = tuple[Sequence[Endpoint], Reasons]


# ---- conditions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Term:
    """What one key must be, and must not be."""

    key: str
    equal: Values = NO_VALUES
    unequal: Values = NO_VALUES

    def holds(self, value: str | None, consumer: Mapping[str, str]) -> bool:
        """Tell whether it holds; with no value at all, no term holds, not even an unequal one."""
        if value is None or self.unequal.include(value, consumer):
            return False
        return not self.equal or self.equal.include(value, consumer)


class Facts:
    """What conditions may ask of a consumer and of providers. Each provider is described once, for all conditions."""

    def __init__(self, consumer: ProviderURL) -> None:
        self.consumer = consumer
        self.of_consumer = facts(consumer)
        self._of_providers: dict[str, dict[str, str]] = {}

    def of(self, endpoint: Endpoint) -> dict[str, str]:
        """Return those of a provider, as it is registered."""
        known = self._of_providers.get(endpoint.key)
        if known is None:
            known = self._of_providers[endpoint.key] = facts(endpoint.registered)
        return known


@dataclass(frozen=True, slots=True)
class ConditionRouter:
    """One condition.

    Attributes:
        origin: where the rule is written, for messages.
        text: the condition as written.
        when: which calls, by consumer and method; all terms must hold.
        then: which providers; None forbids the call.
        force: apply it even if that leaves no provider.
        priority: of several of 2.6 the higher is asked first.
        service: of 2.6: the service it is for.
        host: of 2.6: for which consumer; ANY_HOST for all.
    """

    origin: str
    text: str
    when: tuple[Term, ...]
    then: tuple[Term, ...] | None
    force: bool = False
    priority: int = 0
    service: Service | None = None
    host: str = ANY_HOST

    def route(self, endpoints: Sequence[Endpoint], known: Facts, method: str) -> Work[Routed]:
        """Return the endpoints that remain, and why the others do not; yield after each."""
        yield
        asking, then = known.of_consumer, self.then
        if not endpoints or not self._is_for(known.consumer) or not self._applies(asking, method):
            return endpoints, {}
        if then is None:
            return (), _reasons(endpoints, (), f"forbidden by {self}")
        left = []
        for endpoint in endpoints:
            if _all_hold(then, known.of(endpoint), asking):
                left.append(endpoint)
            yield
        if not left and not self.force:
            return endpoints, {}
        return left, _reasons(endpoints, left, f"routed away by {self}")

    def _is_for(self, consumer: ProviderURL) -> bool:
        return self.host in (ANY_HOST, consumer.host) and (
            self.service is None or Service.of(consumer).accepts(self.service)
        )

    def _applies(self, asking: Mapping[str, str], method: str) -> bool:
        return _all_hold(self.when, {**asking, **dict.fromkeys(_METHOD, method)}, asking)

    def __str__(self) -> str:
        return f"{self.origin} ({self.text})"


def parse_condition(text: str, origin: str, *, force: bool) -> ConditionRouter:
    """Read one condition.

    Raises:
        BadRule: it is none, or asks for arguments or attachments of calls, which are not supported.
    """
    text = " ".join(text.split())
    if not text:
        raise BadRule(f"{origin}: an empty condition")
    left, arrow, right = text.partition("=>")
    if not arrow:
        left, right = "", left
    try:
        when = () if left.strip() in ("", "true") else _parse_terms(left)
        then = None if right.strip() in ("", "false") else _parse_terms(right)
    except BadRule as error:
        raise BadRule(f"{origin}: {error}, in {quoted(text)}") from error
    return ConditionRouter(origin, text, when, then, force)


def parse_conditions(text: str, key: str) -> tuple[ConditionRouter, ...]:
    """Read the YAML of the node of a service or application; empty if it is switched off.

    Raises:
        BadRule: it is none, or one that is not supported (3.1's weighted destinations).
    """
    origin = escaped(f"{key}.{CONDITIONS}")
    rule = RuleDocument.parse(text, origin)
    if rule.text("configVersion").lower() >= "v3.1":
        raise BadRule(f"{origin}: configVersion {quoted(rule.text('configVersion'))} is not supported, only up to v3.0")
    conditions = rule.texts("conditions")
    if not conditions:
        raise BadRule(f"{origin}: no conditions")
    routes = tuple(parse_condition(condition, origin, force=rule.flag("force", False)) for condition in conditions)
    return routes if rule.flag("enabled", True) else ()


def parse_router(name: str) -> tuple[ConditionRouter, ...]:
    """Read a node's name (or a URL) of 2.6; empty if it is switched off, or a 2.7 rule's copy for older readers.

    Raises:
        BadRule: it is no rule, or one that is not supported, such as a script.
    """
    url = rule_url(name, ("condition", "route"))
    said = url.parameters
    if said.get("enabled", "true").lower() != "true" or said.get("compatible_config"):
        return ()
    origin = escaped(f"{url.protocol}://{url.host}/{url.path}")
    if said.get("router", "condition") != "condition":
        raise BadRule(f"{origin}: {quoted(said['router'])} routers are not supported, only condition")
    # Dubbo encodes the rule by itself and then the whole URL, in Java's way, in which a plus is a blank.
    route = parse_condition(
        said.get("rule", "").replace("+", " "), origin, force=said.get("force", "").lower() == "true"
    )
    priority = said.get("priority", "0")
    if not re.fullmatch(r"-?[0-9]{1,9}", priority):
        raise BadRule(f"{origin}: priority should be a whole number, not {quoted(priority)}")
    return (
        ConditionRouter(
            origin, route.text, route.when, route.then, route.force, int(priority), Service.of(url), url.host
        ),
    )


def facts(url: ProviderURL) -> dict[str, str]:
    """Return what conditions may ask of a provider or consumer: its parameters and the parts of its URL."""
    parts = {"protocol": url.protocol, "host": url.host, "path": url.path, "address": url.host}
    if url.port:
        parts |= {"port": str(url.port), "address": url.address}
    return {**url.parameters, **parts}


def _parse_terms(text: str) -> tuple[Term, ...]:
    """Read ``key = a, b & key != c & …``; one key may come several times."""
    found: dict[str, tuple[list[ValuePattern], list[ValuePattern]]] = {}
    values: list[ValuePattern] | None = None
    key, position = "", 0
    text = text.replace("consumer.", "").replace("provider.", "").strip()
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            raise BadRule(f"{quoted(text[position:])} has no value")
        separator, content = part.groups()
        position = part.end()
        if separator == "&" or (not separator and not found):
            key, values = content, None
            if _UNSUPPORTED_KEYS.fullmatch(key):
                raise BadRule(f"conditions on {quoted(key)} are not supported")
            found.setdefault(key, ([], []))
        elif separator in ("=", "!=") and key:
            values = found[key][separator == "!="]
            values.append(ValuePattern.parse(content))
        elif separator == "," and values is not None:
            values.append(ValuePattern.parse(content))
        else:
            raise BadRule(f"{quoted(separator + content)} is not expected there")
    for key, (equal, unequal) in found.items():
        if not equal and not unequal:
            raise BadRule(f"{quoted(key)} is compared with nothing")
    return tuple(Term(key, Values.of(equal), Values.of(unequal)) for key, (equal, unequal) in found.items())


def _all_hold(terms: Iterable[Term], values: Mapping[str, str], asking: Mapping[str, str]) -> bool:
    return all(term.holds(values.get(term.key), asking) for term in terms)


# ---- tags ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tag:
    """A name, and which providers belong to it: those at some addresses, or those with some parameters."""

    name: str
    addresses: tuple[AddressPattern, ...] = ()
    parameters: tuple[tuple[str, StringMatch], ...] = ()

    def includes(self, endpoint: Endpoint) -> bool:
        """Tell whether a provider belongs to it."""
        url = endpoint.registered
        if self.addresses:
            return any(pattern.matches(url.host, url.port) for pattern in self.addresses)
        return bool(self.parameters) and all(
            match.matches(url.parameters.get(key, "")) for key, match in self.parameters
        )


@dataclass(frozen=True, slots=True)
class TagRouter:
    """The tags of one application's providers; with none in it, only those in the providers' own URLs count.

    A call with a tag goes to that tag's providers; if there is none, to those without any tag, unless the rule has
    `force` and names the tag. A call without one goes only to providers without any.
    """

    origin: str
    tags: tuple[Tag, ...] = ()
    force: bool = False

    def route(self, endpoints: Sequence[Endpoint], tag: str) -> Work[Routed]:
        """Return the endpoints that remain for a call's tag, and why the others do not; yield after each.

        Args:
            tag: Empty: the call has none.
        """
        if not tag:
            return (yield from self._untagged(endpoints, "has a tag, and the call has none"))
        members = yield from self._members_of(endpoints, tag)
        if members is not None:
            left = [endpoint for endpoint in endpoints if endpoint.key in members]
            if left or self.force:
                return left, _reasons(endpoints, left, f"not tagged {tag}, by {self.origin}")
        else:
            left = [endpoint for endpoint in endpoints if endpoint.url.tag == tag]
            if left:
                return left, _reasons(endpoints, left, f"not tagged {tag}")
        return (yield from self._untagged(endpoints, f"has another tag than {tag}"))

    def _untagged(self, endpoints: Sequence[Endpoint], why: str) -> Work[Routed]:
        left = []
        for endpoint in endpoints:
            if not endpoint.url.tag and not any(tag.includes(endpoint) for tag in self.tags):
                left.append(endpoint)
            yield
        return left, _reasons(endpoints, left, why)

    def _members_of(self, endpoints: Sequence[Endpoint], wanted: str) -> Work[set[str] | None]:
        """Return the keys of the most special tag that the rule knows: of a|b|c it may be a|b. None: of none."""
        name, names = wanted, {tag.name for tag in self.tags}
        while name:
            for tag in self.tags if name in names else ():
                if tag.name != name:
                    continue
                members = set()
                for endpoint in endpoints:
                    if tag.includes(endpoint):
                        members.add(endpoint.key)
                    yield
                if tag.addresses or members:
                    return members
            name = name.rpartition(_LEVEL)[0]
            yield
        return None


def parse_tags(text: str, key: str) -> tuple[TagRouter, ...]:
    """Read the YAML of the node of an application: one route, or none if it is switched off.

    Raises:
        BadRule: it is none, or one that is not supported.
    """
    origin = escaped(f"{key}.{TAGS}")
    rule = RuleDocument.parse(text, origin)
    tags = tuple(_parse_tag(entry) for entry in rule.documents("tags"))
    if not tags:
        raise BadRule(f"{origin}: no tags")
    return (TagRouter(origin, tags, rule.flag("force", False)),) if rule.flag("enabled", True) else ()


def _parse_tag(entry: RuleDocument) -> Tag:
    name = entry.text("name")
    if not name:
        raise BadRule(f"{entry.origin}: a tag without a name")
    return Tag(
        name,
        tuple(AddressPattern.parse(address) for address in entry.texts("addresses")),
        tuple((match.text("key"), StringMatch.parse(match.raw("value"))) for match in entry.documents("match")),
    )


def _reasons(before: Sequence[Endpoint], left: Sequence[Endpoint], why: str) -> Reasons:
    if len(left) == len(before):
        return {}
    kept = {endpoint.key for endpoint in left}
    return {endpoint.key: why for endpoint in before if endpoint.key not in kept}
