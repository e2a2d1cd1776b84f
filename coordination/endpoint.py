"""An endpoint: one address that serves an interface, as a consumer sees it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from coordination.errors import BadProviderURL
from coordination.url import ProviderURL

log = logging.getLogger(__name__)

GRPC_PROTOCOLS = frozenset({"tri", "grpc"})
"""Dubbo's protocols that a gRPC client can speak; tri is gRPC, and grpc its forerunner's name."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider one can connect to. `address` identifies it; `url` is what it said of itself."""

    address: str
    url: ProviderURL

    @property
    def weight(self) -> int:
        """Share of the traffic once it is warm, 0 or more."""
        return self.url.weight

    def weight_at(self, now_ms: int) -> int:
        """Return the share of the traffic at a moment (Unix milliseconds): less while it warms up."""
        return self.weight

    def timeout_s(self, method: str) -> float | None:
        """Return the seconds a call of `method` (its bare name) may take at most, if anybody has said so."""
        return None


def endpoints_from(node_names: Iterable[str]) -> tuple[Endpoint, ...]:
    """Return the endpoints that providers' nodes speak of, by address.

    A name that cannot be read is skipped with a warning, and what does not speak gRPC silently. Of two
    nodes with one address (the older's session has yet to expire) the later one counts.
    """
    found: dict[str, Endpoint] = {}
    for name in node_names:
        try:
            url = ProviderURL.parse(name)
        except BadProviderURL as error:
            log.warning("skipping a provider that cannot be read: %s", error)
            continue
        if url.protocol not in GRPC_PROTOCOLS:
            continue
        known = found.get(url.address)
        if known is None or known.url.timestamp_ms <= url.timestamp_ms:
            found[url.address] = Endpoint(url.address, url)
    return tuple(found[address] for address in sorted(found))
