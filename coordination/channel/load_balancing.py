"""Load balancing: which endpoint gets the next call.

A picker is given the candidates of one call: endpoints that may serve it, with their present weight and load. Those
that were tried, cannot be reached or are ejected are not among them. A picker keeps no list of endpoints, so a changed
directory needs no notice. Randomness comes from outside, so that a seed replays a run.

    picker              name             the endpoint that gets the call
    PowerOfTwoChoices   p2c              one drawn by weight, unless a second one costs less by COST_RATIO_MIN
    WeightedRandom      random           one drawn by weight
    RoundRobin          roundrobin       each in turn, as often as its weight says and evenly spread
    LeastActive         leastactive      the one with the fewest calls in flight for its weight; failures count as such
    ConsistentHash      consistenthash   for one key always the same

Invariants
1. Weight 0 gets nothing, unless all have it; then all count the same.
2. `explain` says which endpoint `pick` would choose now, and changes neither turns nor the state of `rng`.
"""

from __future__ import annotations

import copy
import enum
import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from coordination.channel.load import Load
from coordination.registry.endpoint import Endpoint

COST_RATIO_MIN = 1.5  # smaller differences in cost are noise: equal endpoints show them, too
FAILURE_COST = 10.0  # a recent failure multiplies an endpoint's cost, or counts as so many calls in flight; it fades
TURNS_KEPT = 64  # how many absent endpoints RoundRobin remembers the turn of


@dataclass(slots=True)
class Candidate:
    """An endpoint that may get a call, with its weight now and its load."""

    endpoint: Endpoint
    weight: int
    load: Load

    @property
    def key(self) -> str:
        """The endpoint's key."""
        return self.endpoint.key


class Standing(enum.StrEnum):
    """How an endpoint stands when one is picked."""

    CHOSEN = "chosen"
    NOT_DRAWN = "not drawn"
    DEARER = "dearer"
    WARMING_UP = "warming up"
    WEIGHT_ZERO = "weight 0"
    EJECTED = "ejected"
    UNREACHABLE = "unreachable"
    RULED_OUT = "ruled out"


@dataclass(frozen=True, slots=True)
class Explanation:
    """An endpoint's standing, and the reason in a few words.

    Attributes:
        address: the endpoint's key: its address, with group and version where it has them.
    """

    address: str
    standing: Standing
    why: str


class Picker(Protocol):
    """Chooses among candidates; called on the event loop for every attempt, must be quick."""

    def pick(self, candidates: Sequence[Candidate], key: str = "", /) -> Candidate:
        """Return one of `candidates`, of which there is at least one.

        Args:
            key: what the call is about; "" if it has no key.
        """
        ...

    def explain(self, candidates: Sequence[Candidate], key: str = "", /) -> list[Explanation]:
        """Return an explanation for each of `candidates`, in order; CHOSEN is the one `pick` would return."""
        ...


class PowerOfTwoChoices:
    """One is drawn by weight; a second, drawn likewise, takes its place if it is cheaper by COST_RATIO_MIN.

    The cost of an endpoint is the expected time of a call there: the average latency × the calls before it (those in
    flight, and itself) ÷ weight, times a factor for its recent failures. An endpoint not called yet counts as quick
    as the other.

    While endpoints are equally good each gets exactly its weight's share, also with one call at a time: hence two
    draws and a threshold, not the cheaper of any two. The calls in flight are divided by the weight, the call itself
    by the greater weight of the two; otherwise the heavier of two idle endpoints would get every call.

    Args:
        rng: the source of randomness.
        now_s: a monotonic clock, seconds.
    """

    def __init__(self, rng: random.Random, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rng = rng
        self._now_s = now_s

    def pick(self, candidates: Sequence[Candidate], _key: str = "") -> Candidate:
        """See `Picker`."""
        first, second = self._two(candidates, self._rng)
        return first if second is None or not self._costs_more(first, second) else second

    def explain(self, candidates: Sequence[Candidate], _key: str = "") -> list[Explanation]:
        """See `Picker`."""
        first, second = self._two(candidates, copy.copy(self._rng))
        chosen = first if second is None or not self._costs_more(first, second) else second

        def passed_over(candidate: Candidate) -> tuple[Standing, str]:
            if candidate is first:
                return Standing.DEARER, f"than {chosen.key}: {self._figures(first)}"
            if candidate is second:
                return Standing.DEARER, f"or not cheaper enough than {chosen.key}: {self._figures(second)}"
            return Standing.NOT_DRAWN, f"{_share(candidate, candidates)}; {self._figures(candidate)}"

        return _explanations(candidates, chosen, self._figures(chosen), passed_over)

    @staticmethod
    def _two(candidates: Sequence[Candidate], rng: random.Random) -> tuple[Candidate, Candidate | None]:
        entrants = _weighted(candidates)
        if len(entrants) == 1:
            return entrants[0], None
        first = _draw(entrants, rng)
        entrants.remove(first)
        return first, _draw(entrants, rng)

    def _costs_more(self, one: Candidate, other: Candidate) -> bool:
        """Tell whether a call costs at `one` more than COST_RATIO_MIN times what it costs at `other`."""
        now_s = self._now_s()
        heavier = max(one.weight, other.weight) or 1
        latency_s, others_s = one.load.latency_s(now_s), other.load.latency_s(now_s)
        if latency_s is None or others_s is None:
            latency_s = others_s = 1.0
        cost = latency_s * (one.load.in_flight / (one.weight or 1) + 1 / heavier)
        others = others_s * (other.load.in_flight / (other.weight or 1) + 1 / heavier)
        cost *= 1 + FAILURE_COST * one.load.failures(now_s)
        others *= 1 + FAILURE_COST * other.load.failures(now_s)
        return cost > COST_RATIO_MIN * others

    def _figures(self, candidate: Candidate) -> str:
        now_s = self._now_s()
        latency_s = candidate.load.latency_s(now_s)
        latency = "not called yet" if latency_s is None else f"{latency_s * 1000:.1f} ms"
        failures = candidate.load.failures(now_s)
        failed = f", {failures:.1f} failures lately" if failures >= 0.05 else ""
        return f"{latency}, {candidate.load.in_flight} in flight{failed}"


class WeightedRandom:
    """Each endpoint gets its weight's share."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def pick(self, candidates: Sequence[Candidate], _key: str = "") -> Candidate:
        """See `Picker`."""
        return _draw(_weighted(candidates), self._rng)

    def explain(self, candidates: Sequence[Candidate], _key: str = "") -> list[Explanation]:
        """See `Picker`."""
        chosen = _draw(_weighted(candidates), copy.copy(self._rng))
        return _explanations(
            candidates,
            chosen,
            _share(chosen, candidates),
            lambda candidate: (Standing.NOT_DRAWN, _share(candidate, candidates)),
        )


class RoundRobin:
    """Each endpoint in turn, as often as its weight says, and evenly spread.

    Smooth weighted round robin: at every pick each candidate earns its weight as credit; the one with the most gets
    the call and pays what all have earned. An absent endpoint neither earns nor pays, so it shifts no other's turn.
    """

    def __init__(self) -> None:
        self._credits: dict[str, int] = {}

    def pick(self, candidates: Sequence[Candidate], _key: str = "") -> Candidate:
        """See `Picker`."""
        entrants = _weighted(candidates)
        earned = self._earned(entrants)
        chosen = max(entrants, key=lambda entrant: earned[entrant.key])
        earned[chosen.key] -= sum(entrant.weight or 1 for entrant in entrants)
        self._credits.update(earned)
        if len(self._credits) > len(candidates) + TURNS_KEPT:
            self._credits = earned
        return chosen

    def explain(self, candidates: Sequence[Candidate], _key: str = "") -> list[Explanation]:
        """See `Picker`."""
        entrants = _weighted(candidates)
        earned = self._earned(entrants)
        chosen = max(entrants, key=lambda entrant: earned[entrant.key])
        return _explanations(
            candidates,
            chosen,
            f"its turn: {earned[chosen.key]} earned",
            lambda candidate: (Standing.NOT_DRAWN, f"its turn comes later: {earned[candidate.key]} earned"),
        )

    def _earned(self, entrants: Sequence[Candidate]) -> dict[str, int]:
        return {entrant.key: self._credits.get(entrant.key, 0) + (entrant.weight or 1) for entrant in entrants}


class LeastActive:
    """The endpoint with the fewest calls in flight for its weight; of several one drawn by weight.

    A call that has just failed counts as FAILURE_COST calls in flight: an endpoint that fails fast is always idle.

    Args:
        rng: the source of randomness.
        now_s: a monotonic clock, seconds.
    """

    def __init__(self, rng: random.Random, now_s: Callable[[], float] = time.monotonic) -> None:
        self._rng = rng
        self._now_s = now_s

    def pick(self, candidates: Sequence[Candidate], _key: str = "") -> Candidate:
        """See `Picker`."""
        return _draw(self._idlest(candidates), self._rng)

    def explain(self, candidates: Sequence[Candidate], _key: str = "") -> list[Explanation]:
        """See `Picker`."""
        idlest = self._idlest(candidates)
        chosen = _draw(idlest, copy.copy(self._rng))

        def passed_over(candidate: Candidate) -> tuple[Standing, str]:
            return (Standing.NOT_DRAWN if candidate in idlest else Standing.DEARER), self._figures(candidate)

        return _explanations(candidates, chosen, self._figures(chosen), passed_over)

    def _idlest(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        now_s = self._now_s()
        entrants = _weighted(candidates)
        active = [_active(entrant, now_s) for entrant in entrants]
        least = min(active)
        return [entrant for entrant, its in zip(entrants, active, strict=True) if its == least]

    def _figures(self, candidate: Candidate) -> str:
        failures = candidate.load.failures(self._now_s())
        failed = f", {failures:.1f} failures lately" if failures >= 0.1 else ""
        return f"{candidate.load.in_flight} in flight{failed}"


class ConsistentHash:
    """For one key always the same endpoint, as long as it is there; each gets its weight's share of the keys.

    Weighted rendezvous hashing: every endpoint gets a score from the call's key and its own, and the highest wins. An
    endpoint that leaves gives up its keys and no other key moves; one that comes takes only its own. The scores are
    the same in every process.

    Args:
        without_key: picks for a call that has no key.
    """

    def __init__(self, without_key: Picker) -> None:
        self._without_key = without_key

    def pick(self, candidates: Sequence[Candidate], key: str = "") -> Candidate:
        """See `Picker`."""
        if not key:
            return self._without_key.pick(candidates)
        return max(_weighted(candidates), key=lambda candidate: _score(candidate, key))

    def explain(self, candidates: Sequence[Candidate], key: str = "") -> list[Explanation]:
        """See `Picker`."""
        if not key:
            return self._without_key.explain(candidates)
        ranking = sorted(_weighted(candidates), key=lambda candidate: _score(candidate, key), reverse=True)
        return _explanations(
            candidates,
            ranking[0],
            f"{key} belongs here",
            lambda candidate: (Standing.NOT_DRAWN, f"number {ranking.index(candidate) + 1} for {key}"),
        )


class PickerName(enum.StrEnum):
    """The pickers' names in settings: those of Dubbo's ``loadbalance``."""

    POWER_OF_TWO_CHOICES = "p2c"
    WEIGHTED_RANDOM = "random"
    ROUND_ROBIN = "roundrobin"
    LEAST_ACTIVE = "leastactive"
    CONSISTENT_HASH = "consistenthash"


def by_name(name: str, rng: random.Random) -> Picker:
    """Return a new picker.

    Args:
        name: a `PickerName`.
        rng: the source of randomness.

    Raises:
        ValueError: no picker has this name; the message lists the names.
    """
    match name:
        case PickerName.POWER_OF_TWO_CHOICES:
            return PowerOfTwoChoices(rng)
        case PickerName.WEIGHTED_RANDOM:
            return WeightedRandom(rng)
        case PickerName.ROUND_ROBIN:
            return RoundRobin()
        case PickerName.LEAST_ACTIVE:
            return LeastActive(rng)
        case PickerName.CONSISTENT_HASH:
            return ConsistentHash(PowerOfTwoChoices(rng))
    raise ValueError(f"no picker is called {name!r}; there are {', '.join(PickerName)}")


def _weighted(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates with a weight, or all if none has one; then each counts 1."""
    return [candidate for candidate in candidates if candidate.weight > 0] or list(candidates)


def _draw(entrants: Sequence[Candidate], rng: random.Random) -> Candidate:
    point = rng.random() * sum(entrant.weight or 1 for entrant in entrants)
    for entrant in entrants:
        point -= entrant.weight or 1
        if point < 0:
            return entrant
    return entrants[-1]


def _active(candidate: Candidate, now_s: float) -> float:
    """Return the calls in flight at an endpoint for its weight, with those that failed lately, in whole calls."""
    failures = int(FAILURE_COST * candidate.load.failures(now_s))
    return (candidate.load.in_flight + failures) / (candidate.weight or 1)


def _score(candidate: Candidate, key: str) -> float:
    """Return a number that grows with the weight: each candidate has the greatest with a probability by weight."""
    digest = hashlib.blake2b(f"{key}\0{candidate.key}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 0.5) / 2**64
    return -(candidate.weight or 1) / math.log(uniform)


def _share(candidate: Candidate, candidates: Sequence[Candidate]) -> str:
    entrants = _weighted(candidates)
    return f"weight {candidate.weight or 1} of {sum(entrant.weight or 1 for entrant in entrants)}"


def _explanations(
    candidates: Sequence[Candidate],
    chosen: Candidate,
    why: str,
    passed_over: Callable[[Candidate], tuple[Standing, str]],
) -> list[Explanation]:
    """Return an explanation for each; `passed_over` explains those that could have been chosen."""
    entrants = _weighted(candidates)
    explanations = []
    for candidate in candidates:
        if candidate is chosen:
            explanations.append(Explanation(candidate.key, Standing.CHOSEN, why))
        elif candidate not in entrants:
            explanations.append(Explanation(candidate.key, Standing.WEIGHT_ZERO, "others have a weight"))
        else:
            explanations.append(Explanation(candidate.key, *passed_over(candidate)))
    return explanations
