"""Pickers share the calls out as they promise."""

from __future__ import annotations

import random
from collections import Counter

from coordination.balancing import Picker, RoundRobin, WeightedRandom
from coordination.endpoint import Endpoint
from coordination.url import ProviderURL


def endpoint(port: int, weight: int = 100) -> Endpoint:
    url = ProviderURL("tri", "h", port, "a.B", {"weight": str(weight)})
    return Endpoint(url.address, url)


def picked(picker: Picker, endpoints: list[Endpoint], times: int) -> Counter[int]:
    """Count how often each port is picked."""
    counts: Counter[int] = Counter()
    for _ in range(times):
        chosen = picker.pick(endpoints)
        assert chosen is not None
        counts[chosen.url.port] += 1
    return counts


def test_weighted_random_follows_the_weights() -> None:
    """Over many picks each endpoint gets its weight's share, within a few per cent."""
    counts = picked(WeightedRandom(random.Random(7)), [endpoint(1, 100), endpoint(2, 50), endpoint(3, 50)], 20_000)
    assert abs(counts[1] / 20_000 - 0.5) < 0.02
    assert abs(counts[2] / 20_000 - 0.25) < 0.02
    assert abs(counts[3] / 20_000 - 0.25) < 0.02


def test_weight_zero_gets_nothing_unless_all_are_zero() -> None:
    """Weight 0 takes an endpoint out; if all have it, they share evenly."""
    picker = WeightedRandom(random.Random(7))
    assert set(picked(picker, [endpoint(1, 0), endpoint(2, 1)], 1000)) == {2}
    counts = picked(picker, [endpoint(1, 0), endpoint(2, 0)], 10_000)
    assert abs(counts[1] / 10_000 - 0.5) < 0.03


def test_a_seed_replays_a_run() -> None:
    """The same seed picks the same endpoints."""
    endpoints = [endpoint(port) for port in range(1, 6)]
    one, two = WeightedRandom(random.Random(3)), WeightedRandom(random.Random(3))
    assert [one.pick(endpoints) for _ in range(50)] == [two.pick(endpoints) for _ in range(50)]


def test_round_robin_takes_turns() -> None:
    """Each endpoint in turn; who comes or goes shifts nobody else's turn."""
    picker = RoundRobin()
    three = [endpoint(port) for port in (1, 2, 3)]
    assert picked(picker, three, 9) == {1: 3, 2: 3, 3: 3}
    assert [picker.pick(three), picker.pick(three)] == [three[0], three[1]]
    four = [*three, endpoint(4)]
    assert [picker.pick(four), picker.pick(four), picker.pick(four)] == [four[2], four[3], four[0]]


def test_excluded_are_never_picked() -> None:
    """Addresses to exclude are not picked; if that leaves nobody the answer is None."""
    endpoints = [endpoint(1), endpoint(2)]
    for picker in (WeightedRandom(random.Random(1)), RoundRobin()):
        for _ in range(20):
            assert picker.pick(endpoints, {"h:1"}) == endpoints[1]
        assert picker.pick(endpoints, {"h:1", "h:2"}) is None
        assert picker.pick([]) is None
