"""Who is out, for how long, and how they come back."""

from __future__ import annotations

import random

from coordination.channel.load import Load
from coordination.channel.load_balancing import Candidate
from coordination.channel.outlier_detection import (
    FAILURES_WITHIN_S,
    FIRST_OUT_S,
    JITTER,
    LONGEST_OUT_S,
    Outliers,
    State,
)
from coordination.registry import Endpoint, ProviderURL


def candidates(*hosts: str) -> list[Candidate]:
    urls = [ProviderURL("tri", host, 1, "a.B") for host in hosts]
    return [Candidate(Endpoint(url.address, url), 100, Load()) for url in urls]


def inside(outliers: Outliers, *hosts: str) -> list[str]:
    """Return which of some hosts may get calls."""
    return [candidate.endpoint.url.host for candidate in outliers.inside(candidates(*hosts))]


def new() -> Outliers:
    return Outliers(random.Random(7))


def take_out(outliers: Outliers, *hosts: str, now_s: float = 0.0) -> None:
    for host in hosts:
        while not outliers.failed(f"{host}:1", "UNAVAILABLE", now_s):
            pass


def test_single_failure_does_not_eject() -> None:
    """The second in a row takes an endpoint out; with a success in between, or half a minute, it does not."""
    outliers = new()
    assert not outliers.failed("a:1", "UNAVAILABLE", 0.0)
    assert outliers.failed("a:1", "UNAVAILABLE", 1.0)
    assert inside(outliers, "a", "b") == ["b"]

    assert not outliers.failed("b:1", "UNAVAILABLE", 1.0)
    assert not outliers.cleared("b:1")
    assert not outliers.failed("b:1", "UNAVAILABLE", 2.0)

    assert not outliers.failed("c:1", "UNAVAILABLE", 0.0)
    assert not outliers.failed("c:1", "UNAVAILABLE", FAILURES_WITHIN_S + 1)
    assert outliers.failed("c:1", "UNAVAILABLE", FAILURES_WITHIN_S + 2)


def test_ejection_lasts_longer_every_time_up_to_a_limit() -> None:
    """1 s, 2 s, 4 s … 30 s, each less up to the jitter; a success begins anew."""
    outliers, now_s, lasted_s = new(), 0.0, []
    take_out(outliers, "a")
    for _ in range(8):
        lasted_s.append(outliers["a:1"].until_s - now_s)
        now_s = outliers["a:1"].until_s
        assert outliers.due("a:1", now_s)
        outliers.probed("a:1", now_s, answered=False)
    for number, seconds in enumerate(lasted_s):
        longest_s = min(FIRST_OUT_S * 2**number, LONGEST_OUT_S)
        assert longest_s * (1 - JITTER) <= seconds <= longest_s
    assert len({seconds / min(2**number, 30) for number, seconds in enumerate(lasted_s)}) == len(lasted_s)
    assert outliers.cleared("a:1")
    take_out(outliers, "a", now_s=now_s)
    assert outliers["a:1"].until_s - now_s <= FIRST_OUT_S


def test_probe_lets_it_back_on_probation() -> None:
    """Due once its time has passed; back when the probe was answered; one failure then suffices, and counts on."""
    outliers = new()
    take_out(outliers, "a")
    until_s = outliers["a:1"].until_s
    assert not outliers.due("a:1", until_s - 0.01)
    assert outliers.due("a:1", until_s)
    assert not outliers.due("a:1", until_s)
    assert inside(outliers, "a", "b") == ["b"]
    outliers.probed("a:1", until_s, answered=True)
    assert outliers["a:1"].state is State.ON_PROBATION
    assert inside(outliers, "a", "b") == ["a", "b"]
    assert outliers.failed("a:1", "UNAVAILABLE", until_s)
    assert outliers["a:1"].until_s - until_s > FIRST_OUT_S


def test_call_that_succeeds_clears_all() -> None:
    """In whatever state: one that was under way, or was made because all were out."""
    outliers = new()
    take_out(outliers, "a")
    assert outliers.cleared("a:1")
    assert inside(outliers, "a", "b") == ["a", "b"]
    take_out(outliers, "a")
    assert outliers.due("a:1", 100.0)
    assert outliers.cleared("a:1")
    outliers.probed("a:1", 100.0, answered=False)
    assert outliers["a:1"].state is State.IN


def test_failures_of_calls_under_way_change_nothing() -> None:
    """Sixteen calls that fail with one connection take their endpoint out once, for the first time's length."""
    outliers = new()
    assert [outliers.failed("a:1", "UNAVAILABLE", 0.0) for _ in range(16)].count(True) == 1
    assert outliers["a:1"].until_s <= FIRST_OUT_S


def test_at_most_half_of_the_endpoints_are_ejected() -> None:
    """Of five at most two are kept out, those longest out; never the only one; of candidates of one call it is their
    own half that counts."""
    outliers = new()
    take_out(outliers, "c", "a", "b")
    assert inside(outliers, "a", "b", "c", "d", "e") == ["b", "d", "e"]
    assert inside(outliers, "a", "d") == ["d"]
    assert inside(outliers, "a") == ["a"]
    assert inside(outliers, "a", "c", "d") == ["a", "d"]


def test_all_endpoints_are_used_when_all_are_ejected() -> None:
    """A caller that is itself cut off sees everybody fail, and must not make it worse for a few."""
    outliers = new()
    take_out(outliers, "a", "b", "c", "d")
    assert inside(outliers, "a", "b", "c", "d") == ["a", "b", "c", "d"]
    assert inside(outliers, "a", "b") == ["a", "b"]
