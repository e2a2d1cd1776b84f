"""All of Dubbo's rules of an interface, applied to its providers.

    registered ──configurators──▶ governed ──not disabled──▶ endpoints ──tags──▶ ──conditions──▶ candidates of a call
                    weight,                                  (of the list)                       (of one method, tag)
                    timeout, …

Order, as in Dubbo: configurators of 2.6, then of applications, then of the service, so that the service's prevail;
tags, then conditions of the service, of applications, and of 2.6.

Invariants
1. Pure: rules are values, and applying them looks nothing up. rule_watcher.py finds them in ZooKeeper. What many rules
   and many providers make long is done in turns.
2. A rule changes or removes a provider; it never adds one.
3. For every provider removed there is a reason that names the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordination.registry.endpoint import Endpoint
from coordination.registry.url import ProviderURL
from coordination.rules.configurators import Configurator
from coordination.rules.routers import ConditionRouter, Facts, Routed, TagRouter
from coordination.turns import Work

_ONLY_STATIC_TAGS = TagRouter("the providers' own tags")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one interface, for one consumer, at one moment.

    Attributes:
        configurators: in the order in which they are applied.
        tags: by the application of the providers whose tags they are.
        conditions: in the order in which they are applied.
    """

    configurators: tuple[Configurator, ...] = ()
    tags: Mapping[str, TagRouter] = field(default_factory=dict)
    conditions: tuple[ConditionRouter, ...] = ()

    def govern(self, endpoint: Endpoint, consumer: ProviderURL) -> Work[Endpoint]:
        """Return a registered endpoint with the configurators applied (see its `url.disabled`); yield after each."""
        url, changed_by = endpoint.registered, dict[str, str]()
        for configurator in self.configurators:
            configured = configurator.configure(url, consumer)
            for key, value in configurator.parameters.items() if configured is not url else ():
                if url.parameters.get(key) != value and configured.parameters.get(key) == value:
                    changed_by[key] = configurator.origin
            url = configured
            yield
        if not changed_by:
            return Endpoint(endpoint.address, endpoint.registered) if endpoint.before_rules else endpoint
        return Endpoint(endpoint.address, url, endpoint.registered, changed_by)

    def route(self, endpoints: Sequence[Endpoint], consumer: ProviderURL, method: str, tag: str) -> Work[Routed]:
        """Return the candidates for a call, and why the other endpoints are none; yield after each step.

        Args:
            method: the bare name of the method called.
            tag: the call's tag; empty: the consumer's own, if it has one.
        """
        if not endpoints:
            return (), {}
        # Dubbo, too, takes the tags of one application, that of the first provider.
        tags = self.tags.get(endpoints[0].registered.application, _ONLY_STATIC_TAGS)
        left, reasons = yield from tags.route(endpoints, tag or consumer.tag)
        known = Facts(consumer)
        for condition in self.conditions:
            left, more = yield from condition.route(left, known, method)
            reasons |= more
        return tuple(left), reasons
