"""Which endpoint gets the next call.

A picker is given the endpoints known now and the addresses not to use (they were tried, or cannot be
reached); it answers with one endpoint, or None if that leaves none. It keeps no list of its own, so a
changed directory needs no telling. Randomness comes from outside, so that a seed replays a run.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from typing import Protocol

from coordination.endpoint import Endpoint


class Picker(Protocol):
    """Chooses among endpoints; called on the event loop, must not block."""

    def pick(self, endpoints: Sequence[Endpoint], exclude: Collection[str] = ()) -> Endpoint | None:
        """Return one of `endpoints` whose address is not in `exclude`, or None."""
        ...


class WeightedRandom:
    """Each endpoint gets its weight's share. Weight 0 gets nothing, unless all have it (as in Dubbo)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, endpoints: Sequence[Endpoint], exclude: Collection[str] = ()) -> Endpoint | None:
        """See `Picker`."""
        candidates = [endpoint for endpoint in endpoints if endpoint.address not in exclude]
        if not candidates:
            return None
        weights = [endpoint.weight for endpoint in candidates]
        if not any(weights):
            return self._rng.choice(candidates)
        return self._rng.choices(candidates, weights)[0]


class RoundRobin:
    """Each endpoint in turn, by address; weights are not looked at.

    The turn is remembered as the last address served, so that endpoints coming and going shift nobody's turn.
    """

    def __init__(self) -> None:
        self._last = ""

    def pick(self, endpoints: Sequence[Endpoint], exclude: Collection[str] = ()) -> Endpoint | None:
        """See `Picker`."""
        candidates = [endpoint for endpoint in endpoints if endpoint.address not in exclude]
        if not candidates:
            return None
        later = [endpoint for endpoint in candidates if endpoint.address > self._last]
        chosen = min(later or candidates, key=lambda endpoint: endpoint.address)
        self._last = chosen.address
        return chosen
