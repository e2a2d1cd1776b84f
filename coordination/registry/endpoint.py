"""An endpoint: one address that serves an interface in a group and version.

    node's name ──ProviderReader──▶ Registration ──┬─▶ Endpoint, as registered ──Rules──▶ Endpoint, as governed
                                                   └─▶ why it is none

Invariants
1. Of two registrations of one address in one group and version the later is the endpoint. One address in two groups
   is two endpoints: a server tells its groups apart by the metadata of a call.
2. A registration that cannot be parsed affects no other.
3. Warm-up only reduces: `weight_at` is between 1 and `weight`, or 0 if that is 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlencode

from coordination.errors import BadProviderURL
from coordination.registry.service_key import Service
from coordination.registry.url import ProviderURL

#: Dubbo's protocols that a gRPC client can speak; tri is gRPC, and grpc its forerunner's name.
GRPC_PROTOCOLS = frozenset({"tri", "grpc"})

#: The metadata with the group and version that a call is for, as in Dubbo's Triple protocol.
GROUP_KEY, VERSION_KEY = "tri-service-group", "tri-service-version"

#: How many new names are parsed in one turn of the loop: some milliseconds.
READ_AT_ONCE = 100

_OLDER = "an older registration of the same address"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider that can be called.

    Attributes:
        address: ``host:port``.
        url: as registered, changed by rules.
        before_rules: as registered, if rules changed that.
        changed_by: by parameter, the origin of the rule that set it.
        weight: share of the traffic once it is warm, 0 or more.
        key: what identifies it: the address, with group and version where it has them.
        metadata: the group and version, sent with every call.
    """

    address: str
    url: ProviderURL
    before_rules: ProviderURL | None = None
    changed_by: Mapping[str, str] = field(default_factory=dict, hash=False)
    weight: int = field(init=False, compare=False)
    key: str = field(init=False, compare=False)
    metadata: tuple[tuple[str, str], ...] = field(init=False, compare=False, repr=False)
    _started_ms: int = field(init=False, compare=False, repr=False)
    _warmup_ms: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        # Parsed once: a picker reads them for every endpoint at every call.
        registered = self.registered
        group, version = registered.group, registered.version
        object.__setattr__(self, "weight", self.url.weight)
        object.__setattr__(self, "key", _key(self.address, group, version))
        given = ((GROUP_KEY, group), (VERSION_KEY, version)) if group or version else ()
        object.__setattr__(self, "metadata", tuple(pair for pair in given if pair[1]))
        started_ms = self.url.timestamp_ms
        object.__setattr__(self, "_started_ms", started_ms)
        object.__setattr__(self, "_warmup_ms", self.url.warmup_ms if started_ms else 0)

    @property
    def registered(self) -> ProviderURL:
        """The URL as registered."""
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
        """Return the limit for a call of `method` (its bare name), seconds; None if neither URL nor rules set one."""
        timeout_ms = self.url.timeout_ms(method)
        return timeout_ms / 1000 if timeout_ms else None


@dataclass(frozen=True, slots=True)
class Registration:
    """One node among an interface's providers.

    Attributes:
        name: the node's name.
        url: its URL; None if it cannot be parsed.
        refusal: why it is no endpoint for this consumer; empty if it is one.
        endpoint: the endpoint as registered; None if it is none.
    """

    name: str
    url: ProviderURL | None
    refusal: str = ""
    endpoint: Endpoint | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        endpoint = None if self.url is None or self.refusal else Endpoint(self.url.address, self.url)
        object.__setattr__(self, "endpoint", endpoint)

    @property
    def started_ms(self) -> int:
        """When it started, Unix milliseconds; 0 if unknown."""
        return 0 if self.url is None else self.url.timestamp_ms

    @property
    def address(self) -> str:
        """``host:port``; empty if it cannot be read."""
        return "" if self.url is None else self.url.address

    @property
    def key(self) -> str:
        """As an endpoint's; empty if it cannot be read."""
        return "" if self.url is None else _key(self.url.address, self.url.group, self.url.version)


class ProviderReader:
    """Parses providers' nodes for a consumer of one service; a name known from the last time is not parsed again."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[str, Registration] = {}

    async def prepare(self, node_names: Iterable[str]) -> None:
        """Parse the new ones among some names, READ_AT_ONCE in a turn of the loop, so that `read` finds them parsed."""
        new = [name for name in node_names if name not in self._known]
        for start in range(0, len(new), READ_AT_ONCE):
            self._known |= {name: _read(name, self._service) for name in new[start : start + READ_AT_ONCE]}
            await asyncio.sleep(0)

    def read(self, node_names: Iterable[str]) -> tuple[Registration, ...]:
        """Return the registrations of these nodes, by address; forget all others."""
        known, service = self._known, self._service
        self._known = {name: known.get(name) or _read(name, service) for name in sorted(node_names)}
        newest: dict[str, Registration] = {}
        for one in self._known.values():
            if one.endpoint is not None:
                other = newest.get(one.endpoint.key)
                if other is None or other.started_ms <= one.started_ms:
                    newest[one.endpoint.key] = one
        return tuple(
            sorted(
                (
                    one if one.endpoint is None or newest[one.endpoint.key] is one else replace(one, refusal=_OLDER)
                    for one in self._known.values()
                ),
                key=lambda one: one.address,
            )
        )


def _key(address: str, group: str, version: str) -> str:
    if not group and not version:
        return address
    return f"{address}?{urlencode({key: value for key, value in (('group', group), ('version', version)) if value})}"


def _read(name: str, service: Service) -> Registration:
    try:
        url = ProviderURL.parse(name)
    except BadProviderURL as error:
        return Registration(name, None, f"cannot be read: {error}")
    if url.protocol not in GRPC_PROTOCOLS:
        return Registration(name, url, f"speaks {url.protocol}, not gRPC")
    if not service.accepts(Service.of(url)):
        return Registration(name, url, f"provides {Service.of(url)}, not {service}")
    if not (url.group + url.version).isascii() or not (url.group + url.version + "-").isprintable():
        return Registration(name, url, "its group or version cannot be sent as metadata, which must be printable ASCII")
    return Registration(name, url)
