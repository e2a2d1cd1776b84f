"""Pickers share the calls out as they promise, and say why."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from coordination.channel.load import Load
from coordination.channel.load_balancing import (
    Candidate,
    ConsistentHash,
    LeastActive,
    Picker,
    PickerName,
    PowerOfTwoChoices,
    RoundRobin,
    Standing,
    WeightedRandom,
    by_name,
)
from coordination.registry import Endpoint, ProviderURL

KEYS = [f"order-{number}" for number in range(10_000)]


def candidate(port: int, weight: int = 100, in_flight: int = 0, latency_s: float | None = None) -> Candidate:
    url = ProviderURL("tri", "h", port, "a.B", {"weight": str(weight)})
    load = Load()
    if latency_s is not None:
        load.began()
        load.ended(0.0, latency_s, failed=False)
    load.in_flight = in_flight
    return Candidate(Endpoint(url.address, url), weight, load)


def picked(picker: Picker, candidates: Sequence[Candidate], times: int) -> Counter[int]:
    """Count how often each port is picked."""
    return Counter(picker.pick(candidates).endpoint.url.port for _ in range(times))


def is_binomial(count: int, times: int, share: float) -> bool:
    """Tell whether a count is within 5 standard deviations of what chance gives; it fails once in two million."""
    return abs(count - times * share) <= 5 * math.sqrt(times * share * (1 - share))


def pickers() -> list[Picker]:
    return [by_name(name, random.Random(7)) for name in PickerName]


@pytest.mark.parametrize("make", [WeightedRandom, LeastActive, PowerOfTwoChoices])
def test_endpoints_are_drawn_by_weight(make: Callable[[random.Random], Picker]) -> None:
    """While endpoints are equally good and idle each gets its weight's share of 20,000 calls, ± 5 standard
    deviations."""
    counts = picked(make(random.Random(7)), [candidate(1, 100), candidate(2, 50), candidate(3, 50)], 20_000)
    for port, share in ((1, 0.5), (2, 0.25), (3, 0.25)):
        assert is_binomial(counts[port], 20_000, share), counts


def test_weight_zero_gets_nothing_unless_all_are_zero() -> None:
    """Weight 0 takes an endpoint out under every picker and every key; if all have it, they share evenly."""
    for picker in pickers():
        one_of_two = [candidate(1, 0), candidate(2, 1)]
        assert {picker.pick(one_of_two, key).endpoint.url.port for key in ("", *KEYS[:1000])} == {2}
        both = [candidate(1, 0), candidate(2, 0)]
        counts = Counter(picker.pick(both, key).endpoint.url.port for key in KEYS)
        assert is_binomial(counts[1], len(KEYS), 0.5), (picker, counts)


def test_seed_replays_a_run() -> None:
    """The same seed picks the same endpoints."""
    candidates = [candidate(port) for port in range(1, 6)]
    for name in PickerName:
        one, two = by_name(name, random.Random(3)), by_name(name, random.Random(3))
        assert [one.pick(candidates, key) for key in KEYS[:50]] == [two.pick(candidates, key) for key in KEYS[:50]]


def test_name_for_every_picker() -> None:
    """Settings choose by name; a wrong one is refused with a list of the right ones."""
    assert len({type(picker) for picker in pickers()}) == len(PickerName)
    with pytest.raises(ValueError, match="p2c, random, roundrobin, leastactive, consistenthash"):
        by_name("fastest", random.Random(1))


class TestRoundRobin:
    """Turns, weighted and smooth."""

    def test_round_robin_takes_turns(self) -> None:
        """Each endpoint in turn; who comes or goes shifts nobody else's turn."""
        picker = RoundRobin()
        three = [candidate(port) for port in (1, 2, 3)]
        assert picked(picker, three, 9) == {1: 3, 2: 3, 3: 3}
        assert [picker.pick(three), picker.pick(three)] == [three[0], three[1]]
        four = [*three, candidate(4)]
        assert [picker.pick(four) for _ in range(3)] == [four[2], four[3], four[0]]
        assert [picker.pick(four[1:]), picker.pick(four)] == [four[1], four[2]]

    def test_round_robin_spreads_by_weight(self) -> None:
        """5 : 1 : 1 gives 5, 1 and 1 of seven, and the heavy one never has its five in a row."""
        picker = RoundRobin()
        candidates = [candidate(1, 5), candidate(2, 1), candidate(3, 1)]
        turns = "".join(str(picker.pick(candidates).endpoint.url.port) for _ in range(70))
        assert Counter(turns) == {"1": 50, "2": 10, "3": 10}
        assert "11111" not in turns

    def test_round_robin_forgets_absent_endpoints(self) -> None:
        """The memory of turns is bounded, whoever comes and goes."""
        picker = RoundRobin()
        for port in range(1, 1000):
            picker.pick([candidate(port)])
        assert len(picker._credits) <= 1 + 64 + 1


def test_least_active_looks_at_calls_in_flight_for_their_weight() -> None:
    """The fewest calls in flight win; twice the weight may have twice as many."""
    picker = LeastActive(random.Random(7))
    assert set(picked(picker, [candidate(1, in_flight=2), candidate(2, in_flight=1)], 100)) == {2}
    assert set(picked(picker, [candidate(1, 100, in_flight=3), candidate(2, 50, in_flight=2)], 100)) == {1}
    assert set(picked(picker, [candidate(1, 100, in_flight=2), candidate(2, 50, in_flight=1)], 100)) == {1, 2}


class TestPowerOfTwoChoices:
    """Two drawn by weight; clearly cheaper wins."""

    def test_endpoint_of_higher_cost_is_not_used(self) -> None:
        """Of two endpoints the one that takes ten times as long gets nothing, nor the one with more in flight, nor
        the one that has just failed."""
        failed = candidate(1, latency_s=0.01)
        failed.load.began()
        failed.load.ended(0.0, 0.01, failed=True)
        for dearer in (candidate(1, latency_s=0.1), candidate(1, in_flight=1, latency_s=0.01), failed):
            picker = PowerOfTwoChoices(random.Random(7), now_s=lambda: 0.0)
            assert set(picked(picker, [dearer, candidate(2, latency_s=0.01)], 1000)) == {2}

    def test_small_cost_differences_are_ignored(self) -> None:
        """Latencies that differ by less than half leave the shares as the weights have them."""
        picker = PowerOfTwoChoices(random.Random(7), now_s=lambda: 0.0)
        counts = picked(picker, [candidate(1, 100, 0, 0.010), candidate(2, 50, 0, 0.014)], 20_000)
        assert is_binomial(counts[1], 20_000, 2 / 3), counts

    def test_calls_in_flight_count_for_their_weight(self) -> None:
        """With twice the weight, four in flight are as good as two."""
        picker = PowerOfTwoChoices(random.Random(7), now_s=lambda: 0.0)
        counts = picked(picker, [candidate(1, 100, 4, 0.01), candidate(2, 50, 2, 0.01)], 20_000)
        assert is_binomial(counts[1], 20_000, 2 / 3), counts

    def test_slow_endpoint_is_tried_again_after_a_while(self) -> None:
        """What was measured long ago fades: ten times as slow is forgiven within ten seconds without news."""
        now_s = 0.0
        picker = PowerOfTwoChoices(random.Random(7), now_s=lambda: now_s)
        slow, quick = candidate(1, latency_s=0.1), candidate(2, latency_s=0.01)
        for now_s in (1.0, 2.0, 5.0, 9.0, 10.0):
            quick.load.began()
            quick.load.ended(now_s, 0.01, failed=False)
            assert (1 in picked(picker, [slow, quick], 100)) == (now_s >= 10.0), now_s

    def test_uncalled_endpoint_counts_as_quick_as_the_other(self) -> None:
        """A newcomer is neither flooded nor starved."""
        picker = PowerOfTwoChoices(random.Random(7), now_s=lambda: 0.0)
        counts = picked(picker, [candidate(1), candidate(2, latency_s=0.001)], 20_000)
        assert is_binomial(counts[1], 20_000, 0.5), counts
        assert set(picked(picker, [candidate(1, in_flight=1), candidate(2, latency_s=5.0)], 100)) == {2}


class TestConsistentHash:
    """One key, one endpoint."""

    @pytest.fixture
    def picker(self) -> Picker:
        return by_name(PickerName.CONSISTENT_HASH, random.Random(7))

    def owners(self, picker: Picker, candidates: Sequence[Candidate]) -> dict[str, int]:
        return {key: picker.pick(candidates, key).endpoint.url.port for key in KEYS}

    def test_each_gets_its_weights_share_of_the_keys(self, picker: Picker) -> None:
        """10,000 keys over five endpoints, one of them twice as heavy: each share is within 5 standard deviations."""
        counts = Counter(self.owners(picker, [candidate(1, 200), *(candidate(port) for port in range(2, 6))]).values())
        for port in range(1, 6):
            assert is_binomial(counts[port], len(KEYS), 2 / 6 if port == 1 else 1 / 6), counts

    def test_leaving_endpoint_moves_only_its_own_keys(self, picker: Picker) -> None:
        """Without one of five its keys are spread over the four others, and no other key moves; when it is back
        everything is as before."""
        five = [candidate(port) for port in range(1, 6)]
        before = self.owners(picker, five)
        after = self.owners(picker, [candidate for candidate in five if candidate.endpoint.url.port != 3])
        assert {key for key in KEYS if before[key] != after[key]} == {key for key in KEYS if before[key] == 3}
        heirs = Counter(after[key] for key in KEYS if before[key] == 3)
        for port in (1, 2, 4, 5):
            assert is_binomial(heirs[port], heirs.total(), 0.25), heirs
        assert self.owners(picker, list(reversed(five))) == before

    def test_weight_that_grows_only_takes(self, picker: Picker) -> None:
        """An endpoint that warms up takes keys from others; none moves between the others."""
        before = self.owners(picker, [candidate(1, 10), candidate(2), candidate(3)])
        after = self.owners(picker, [candidate(1, 60), candidate(2), candidate(3)])
        assert {after[key] for key in KEYS if before[key] != after[key]} == {1}

    def test_call_without_a_key_uses_the_other_picker(self) -> None:
        """Calls that are about nothing known are shared out by the other picker."""
        picker = ConsistentHash(RoundRobin())
        assert picked(picker, [candidate(1), candidate(2)], 10) == {1: 5, 2: 5}


def test_explanation_predicts_the_pick_and_changes_nothing() -> None:
    """For each picker `explain` names the endpoint that `pick` then returns, asked any number of times, and has a
    verdict with a reason on every other."""
    candidates = [
        candidate(1, 100, latency_s=0.01),
        candidate(2, 50, latency_s=0.3),
        candidate(3, 0),
        candidate(4, 10, in_flight=3),
    ]
    for picker in pickers():
        for key in KEYS[:200]:
            verdicts = [picker.explain(candidates, key) for _ in range(2)][-1]
            assert [verdict.address for verdict in verdicts] == [candidate.key for candidate in candidates]
            chosen = [verdict.address for verdict in verdicts if verdict.standing is Standing.CHOSEN]
            assert chosen == [picker.pick(candidates, key).key]
            assert verdicts[2].standing is Standing.WEIGHT_ZERO
            assert all(verdict.why for verdict in verdicts)


def test_explanation_names_the_cost() -> None:
    """The reason names what the picker looks at."""
    slow, quick = candidate(1, latency_s=0.25), candidate(2, latency_s=0.01, in_flight=1)
    verdicts = PowerOfTwoChoices(random.Random(1), now_s=lambda: 0.0).explain([slow, quick])
    assert (verdicts[0].standing, verdicts[1].standing) == (Standing.DEARER, Standing.CHOSEN)
    assert "250.0 ms" in verdicts[0].why
    assert "10.0 ms, 1 in flight" in verdicts[1].why
    busy = LeastActive(random.Random(1)).explain([candidate(1, in_flight=4), candidate(2)])[0]
    assert (busy.standing, busy.why) == (Standing.DEARER, "4 in flight")
