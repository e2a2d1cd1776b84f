"""An endpoint: one address that serves an interface, as a consumer sees it.

    node's name ──read_providers──▶ Registration ──┬─▶ Endpoint, as registered ──Rules──▶ Endpoint, as governed
                                                   └─▶ why it is none

Invariants
1. Of two registrations of one address the later is the endpoint.
2. A registration that cannot be read costs itself and no other.
3. Warm-up only ever takes: `weight_at` is between 1 and `weight`, or 0 if that is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from coordination.errors import BadProviderURL
from coordination.service import Service
from coordination.url import ProviderURL

GRPC_PROTOCOLS = frozenset({"tri", "grpc"})
"""Dubbo's protocols that a gRPC client can speak; tri is gRPC, and grpc its forerunner's name."""

_OLDER = "an older registration of the same address"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider one can connect to.

    Attributes:
        address: ``host:port``; identifies it.
        url: what it is to be treated as: what it said of itself, changed by rules.
        before_rules: what it said of itself, if rules changed that.
        changed_by: by parameter, where the rule stands that set it, for people.
        weight: share of the traffic once it is warm, 0 or more.
    """

    address: str
    url: ProviderURL
    before_rules: ProviderURL | None = None
    changed_by: Mapping[str, str] = field(default_factory=dict, hash=False)
    weight: int = field(init=False, compare=False)
    _started_ms: int = field(init=False, compare=False, repr=False)
    _warmup_ms: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Read out once: a picker asks for every endpoint at every call.
        object.__setattr__(self, "weight", self.url.weight)
        object.__setattr__(self, "_started_ms", self.url.timestamp_ms)
        object.__setattr__(self, "_warmup_ms", self.url.warmup_ms if self.url.timestamp_ms else 0)

    @property
    def registered(self) -> ProviderURL:
        """What it said of itself."""
        return self.before_rules or self.url

    def weight_at(self, now_ms: int) -> int:
        """Return the share of the traffic at a moment (Unix milliseconds): less while it warms up.

        Dubbo's formula: weight · uptime / warm-up, 1 at least. A provider whose clock is ahead of ours seems not to
        have started yet; it counts as warm. (Dubbo gives it 1, which starves it for as long as the clocks differ.)
        """
        uptime_ms = now_ms - self._started_ms
        if not 0 < uptime_ms < self._warmup_ms:
            return self.weight
        return min(self.weight, max(1, self.weight * uptime_ms // self._warmup_ms))

    def timeout_s(self, method: str) -> float | None:
        """Return the seconds a call of `method` (its bare name) may take at most, if anybody has said so."""
        timeout_ms = self.url.timeout_ms(method)
        return timeout_ms / 1000 if timeout_ms else None


@dataclass(frozen=True, slots=True)
class Registration:
    """One node among an interface's providers.

    Attributes:
        name: the node's name.
        url: what it says; None if it cannot be read.
        refusal: why it is no endpoint for us; empty if it is one.
    """

    name: str
    url: ProviderURL | None
    refusal: str = ""

    @property
    def started_ms(self) -> int:
        """When it started, Unix milliseconds; 0 if unknown."""
        return 0 if self.url is None else self.url.timestamp_ms

    @property
    def address(self) -> str:
        """``host:port``; empty if it cannot be read."""
        return "" if self.url is None else self.url.address

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint as registered; None if it is none."""
        return None if self.url is None or self.refusal else Endpoint(self.url.address, self.url)


def read_providers(node_names: Iterable[str], service: Service) -> tuple[Registration, ...]:
    """Return what providers' nodes say to a consumer of `service`, by address."""
    found = [_read(name, service) for name in sorted(node_names)]
    newest: dict[str, Registration] = {}
    for one in found:
        if not one.refusal:
            known = newest.get(one.address)
            newest[one.address] = one if known is None or known.started_ms <= one.started_ms else known
    return tuple(
        sorted(
            (one if one.refusal or newest[one.address] is one else replace(one, refusal=_OLDER) for one in found),
            key=lambda one: one.address,
        )
    )


def _read(name: str, service: Service) -> Registration:
    try:
        url = ProviderURL.parse(name)
    except BadProviderURL as error:
        return Registration(name, None, f"cannot be read: {error}")
    if url.protocol not in GRPC_PROTOCOLS:
        return Registration(name, url, f"speaks {url.protocol}, not gRPC")
    if not service.accepts(Service.of(url)):
        return Registration(name, url, f"provides {Service.of(url)}, not {service}")
    return Registration(name, url)
