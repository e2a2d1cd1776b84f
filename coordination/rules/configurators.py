"""Configurators: Dubbo's rules that change parameters of a provider's URL, such as its weight.

Two notations of one thing:

    2.6       override://0.0.0.0/pkg.S?category=configurators&weight=20      a node's name under configurators/
    2.7, 3.x  configs: [{side: consumer, providerAddresses: [h:1], parameters: {weight: 20}}]     a node's YAML

A configurator of 2.6 has effect on every reader. One of 2.7 or 3.x names a side: `consumer` (hosts, applications
are the consumer's) or `provider` (the provider's). Dubbo's Java providers apply the latter themselves and register
anew; providers that do not listen to rules cannot, so here the consumer applies both, which comes to the same.

Invariants
1. Pure: parsing gives Configurators or a BadRule, applying gives a URL; nothing is looked up.
2. A condition that is not understood makes the rule bad. It is never taken for "no condition".
3. What identifies a provider (interface, group, version, application …) is never changed.
4. Numbers are numbers: a weight, warm-up or timeout that is none makes the rule bad.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from coordination.errors import BadProviderURL, BadRule
from coordination.quoting import escaped, quoted
from coordination.registry.service_key import Service
from coordination.registry.url import CONSUMER, MAX_NUMBER, ProviderURL
from coordination.rules.document import RuleDocument, load
from coordination.rules.patterns import (
    ANY,
    ANY_HOST,
    AddressPattern,
    StringMatch,
    glob_matches,
    only_entry,
    split_address,
)

#: What the names of these rules' nodes end with, after a dot.
KIND = "configurators"

PROVIDER = "provider"
BOTH_SIDES = ""
OVERRIDE, ABSENT = "override", "absent"

#: Changes of one rule: an entry makes one for each address and service, so that a short rule could make a million.
MAX_CONFIGURATORS = 1_000
#: Parameters of a rule that say where it applies, or that no rule may change.
_IDENTITY = frozenset(
    {
        *("interface", "interfaces", "group", "version", "application", "side", "methods", "timestamp"),
        *("category", "check", "dynamic", "enabled", "priority", "anyhost", "providerAddresses"),
        *("configVersion", "compatible_config", "router", "rule", "runtime", "type"),
    }
)

_NUMBERS = re.compile(r"weight|warmup|timeout|[\w$]+\.timeout")


@dataclass(frozen=True, slots=True)
class AddressMatch:
    """What `match` says of an address: a network (`cidr`), exactly this one (`exact`), or text with ``*``."""

    kind: str
    text: str
    network: AddressPattern | None = None

    def fits(self, url: ProviderURL) -> bool:
        """Tell whether the address of a URL fits, with its port or without."""
        if self.network is not None:
            return self.network.matches(url.host, url.port)
        if self.kind == "exact":
            return self.text in (url.host, url.address)
        return self.text == ANY_HOST or any(glob_matches(self.text, address) for address in (url.host, url.address))


@dataclass(frozen=True, slots=True)
class Match:
    """The `match` of a 3.x entry; all that is said must hold."""

    address: AddressMatch | None = None
    provider_address: AddressMatch | None = None
    services: tuple[StringMatch, ...] | None = None
    applications: tuple[StringMatch, ...] | None = None
    parameters: tuple[tuple[str, StringMatch], ...] = ()

    def holds(self, side: ProviderURL, provider: ProviderURL) -> bool:
        """Tell whether it holds for a provider, and a provider or consumer of the entry's side."""
        service = str(Service.of(provider))
        return (
            (self.address is None or self.address.fits(side))
            and (self.provider_address is None or self.provider_address.fits(provider))
            and (self.services is None or any(match.matches(service) for match in self.services))
            and (self.applications is None or any(match.matches(side.application) for match in self.applications))
            and all(match.matches(provider.parameters.get(key, "")) for key, match in self.parameters)
        )


@dataclass(frozen=True, slots=True)
class Configurator:
    """One change, and what it applies to.

    Attributes:
        origin: where the rule is written, for messages.
        parameters: what it sets.
        service: the service it applies to.
        side: whether host and application are the consumer's or the provider's: CONSUMER, PROVIDER, BOTH_SIDES (2.6).
        host: of that side; ANY_HOST for all.
        port: of the provider, for 2.6 only; 0 for all.
        applications: of that side; empty for all.
        providers: addresses of providers; empty for all.
        match: further conditions of 3.x.
        required: parameters the provider's URL must have (2.6: ``~name``).
        absent: only what the URL does not say is set.
        priority: among those of one kind and host the higher comes later, and so prevails.
    """

    origin: str
    parameters: Mapping[str, str]
    service: Service
    side: str = BOTH_SIDES
    host: str = ANY_HOST
    port: int = 0
    applications: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()
    match: Match | None = None
    required: Mapping[str, str] = field(default_factory=dict)
    absent: bool = False
    priority: int = 0

    def configure(self, provider: ProviderURL, consumer: ProviderURL) -> ProviderURL:
        """Return the provider's URL with this rule applied for a consumer: the same object if nothing changed."""
        if not self._is_about(provider, consumer):
            return provider
        changed = {
            key: value
            for key, value in self.parameters.items()
            if provider.parameters.get(key) != value and not (self.absent and key in provider.parameters)
        }
        return provider.with_parameters(changed) if changed else provider

    def _is_about(self, provider: ProviderURL, consumer: ProviderURL) -> bool:
        side = provider if self.side == PROVIDER else consumer
        applications = {side.application, provider.application} if self.side == BOTH_SIDES else {side.application}
        return (
            self.service.includes(Service.of(provider))
            and self._is_about_host(side, provider)
            and (not self.providers or any(_provider_fits(text, provider) for text in self.providers))
            and (not self.applications or ANY in self.applications or bool(applications & set(self.applications)))
            and all(value == ANY or provider.parameters.get(key) == value for key, value in self.required.items())
            and (self.match is None or self.match.holds(side, provider))
        )

    def _is_about_host(self, side: ProviderURL, provider: ProviderURL) -> bool:
        if self.port:  # 2.6: a rule with a port is about one provider, for every consumer
            return self.port == provider.port and self.host in (ANY_HOST, provider.host)
        return self.host in (ANY_HOST, side.host)


def in_order(configurators: Iterable[Configurator]) -> tuple[Configurator, ...]:
    """Return the configurators of one kind as Dubbo applies them: the more special, and the more important, later."""
    return tuple(sorted(configurators, key=lambda one: (one.host, one.priority)))


# ---- 2.6 -------------------------------------------------------------------------------------------------


def parse_override(name: str) -> tuple[Configurator, ...]:
    """Read a node's name (or a URL) of 2.6; empty if it is switched off, or a 2.7 rule's copy for older readers.

    Raises:
        BadRule: it is no rule, or one that is not supported.
    """
    url = rule_url(name, (OVERRIDE, ABSENT))
    said = url.parameters
    if said.get("enabled", "true").lower() != "true" or said.get("compatible_config"):
        return ()
    origin = escaped(f"{url.protocol}://{url.address if url.port else url.host}/{url.path}")
    anyhost = said.get("anyhost", "").lower() == "true"
    side = said.get("side", "")
    if side not in (CONSUMER, PROVIDER, BOTH_SIDES):
        raise BadRule(f"{origin}: {quoted(side)} is no side")
    application = said.get("application", "")
    configurator = Configurator(
        origin=origin,
        parameters=_checked_parameters({key: value for key, value in said.items() if not key.startswith("~")}, origin),
        side=side,
        host=ANY_HOST if anyhost else url.host,
        port=0 if anyhost else url.port,
        applications=(application,) if application else (),
        service=Service.of(url),
        providers=tuple(filter(None, said.get("providerAddresses", "").split(","))),
        required={key[1:]: value for key, value in said.items() if key.startswith("~") and value},
        absent=url.protocol == ABSENT,
        priority=_priority(said.get("priority", "0"), origin),
    )
    return (configurator,)


# ---- 2.7 and 3.x -----------------------------------------------------------------------------------------


def parse_configurators(text: str, key: str) -> tuple[Configurator, ...]:
    """Read a node's YAML.

    Args:
        text: the YAML; a list of 2.6's URLs is understood too.
        key: the service or application the node is of; the rule may name another, and is then about that.

    Raises:
        BadRule: it is none, or one that is not supported.
    """
    origin = escaped(f"{key}.{KIND}")
    loaded = load(text, origin)
    if isinstance(loaded, list):
        urls = RuleDocument({KIND: loaded}, origin).texts(KIND)
        return in_order(configurator for url in urls for configurator in parse_override(url))
    rule = RuleDocument(loaded, origin)
    if not rule.flag("enabled", True):
        return ()
    entries = [entry for entry in rule.documents("configs") if entry.flag("enabled", True)]
    of_application = rule.text("scope") == "application"
    key = rule.text("key", key)
    found: list[Configurator] = []
    for entry in entries:
        found += _parse_entry(entry, key, of_application=of_application, most=MAX_CONFIGURATORS - len(found))
    return in_order(found)


def _parse_entry(entry: RuleDocument, key: str, *, of_application: bool, most: int) -> list[Configurator]:
    parameters = entry.document("parameters")
    if parameters is None or not (said := parameters.items()):
        raise BadRule(f"{entry.origin}: no parameters; an entry has to change something")
    side = entry.text("side")
    if side not in (CONSUMER, PROVIDER):
        raise BadRule(f"{entry.origin}: side should be consumer or provider, not {quoted(side)}")
    addresses = _distinct(entry.texts("addresses")) or (ANY_HOST,)
    services = (_distinct(entry.texts("services")) or (ANY,)) if of_application else (key,)
    applications = (key,) if of_application else entry.texts("applications")
    match = entry.document("match")
    if len(addresses) * len(services) > most:
        raise BadRule(f"{entry.origin}: more than {MAX_CONFIGURATORS} changes, one for each address and service")
    common = Configurator(
        origin=entry.origin,
        parameters=_checked_parameters(said, entry.origin),
        service=Service.parse(ANY),
        side=side,
        applications=applications,
        providers=entry.texts("providerAddresses") or (addresses if side == PROVIDER else ()),
        match=None if match is None else _parse_match(match),
    )
    named = [Service.parse(service) for service in services]
    return [
        replace(common, host=host, service=service)
        for host in (split_address(address)[0] for address in addresses)
        for service in named
    ]


def _parse_match(match: RuleDocument) -> Match:
    match.only("address", "providerAddress", "service", "app", "application", "param")
    applications = match.document("app") or match.document("application")
    return Match(
        address=_parse_address_match(match, "address"),
        provider_address=_parse_address_match(match, "providerAddress"),
        services=_parse_one_of(match.document("service")),
        applications=_parse_one_of(applications),
        parameters=tuple(
            (entry.text("key"), StringMatch.parse(entry.raw("value"))) for entry in match.documents("param")
        ),
    )


def _parse_address_match(match: RuleDocument, key: str) -> AddressMatch | None:
    if key not in match:
        return None
    kind, text = only_entry(match.raw(key), ("wildcard", "cird", "cidr", "exact"))
    return AddressMatch(kind, text, AddressPattern.parse(text) if kind in ("cird", "cidr") else None)


def _parse_one_of(rule: RuleDocument | None) -> tuple[StringMatch, ...] | None:
    if rule is None:
        return None
    rule.only("oneof")
    return tuple(StringMatch.parse(entry.mapping) for entry in rule.documents("oneof"))


# ---- shared ----------------------------------------------------------------------------------------------


def rule_url(name: str, protocols: tuple[str, ...]) -> ProviderURL:
    """Read the name of a 2.6-style rule's node.

    Raises:
        BadRule: it is no URL, or of another protocol.
    """
    try:
        url = ProviderURL.parse(name)
    except BadProviderURL as error:
        raise BadRule(str(error)) from error
    if url.protocol not in protocols:
        raise BadRule(f"{url.protocol}:// is not supported, only {', '.join(protocols)}")
    return url


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))


def _checked_parameters(said: Mapping[str, str], origin: str) -> dict[str, str]:
    parameters = {key: value for key, value in said.items() if key not in _IDENTITY}
    for key, value in parameters.items():
        if not key:
            raise BadRule(f"{origin}: a parameter without a name")
        if _NUMBERS.fullmatch(key):
            _integer(value, f"{origin}: {key}")
        elif key == "disabled" and value.lower() not in ("true", "false"):
            raise BadRule(f"{origin}: disabled should be true or false, not {quoted(value)}")
    return parameters


def _integer(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_NUMBER))):
        raise BadRule(f"{what} should be a whole number from 0 to {MAX_NUMBER}, not {quoted(text)}")
    return int(text)


def _priority(text: str, origin: str) -> int:
    return -_integer(text[1:], f"{origin}: priority") if text.startswith("-") else _integer(text, f"{origin}: priority")


def _provider_fits(text: str, provider: ProviderURL) -> bool:
    host, port = split_address(text)
    return host in (ANY_HOST, provider.host) and port in (ANY, str(provider.port))
