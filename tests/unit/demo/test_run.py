"""A run as a whole: which acts are run, and how the verdict is given. Without a stack."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.checker.findings import Verdict
from services.demo import acts
from services.demo import run as demo
from services.demo.acts import ActResult
from services.demo.lanes import Lane
from services.demo.run import RunResult, run
from services.kernel.errors import Unavailable
from services.testkit.waiting import NotBroughtAbout
from tests.unit.checker.dataset import legal

Part = tuple[bool, str, list[Lane]]
Perform = Callable[..., Any]


async def went_well(_harness: Any) -> Part:
    return True, "as it should", []


async def went_wrong(_harness: Any) -> Part:
    return False, "2 charges", []


async def not_brought_about(_harness: Any) -> Part:
    raise NotBroughtAbout("the holder did not stay frozen")


async def broke_off(_harness: Any) -> Part:
    raise Unavailable("ZOOKEEPER_UNAVAILABLE", "ZooKeeper does not answer; try again")


async def took_too_long(_harness: Any) -> Part:
    raise TimeoutError


class FakeHarness:
    """No process, no database: books as they are given."""

    def __init__(self) -> None:
        self.dataset = legal()
        self.waited_s: list[float] = []
        self.taken_down = False
        self.seed = -1
        self.options: Any = None
        self.connections = SimpleNamespace(answers=self.dataset.answers)

    async def settled_snapshot(self, within_s: float) -> Any:
        self.waited_s.append(within_s)
        return SimpleNamespace(snapshot=self.dataset.snapshot())


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> FakeHarness:
    """The harness that `run` gets."""
    fake = FakeHarness()

    @asynccontextmanager
    async def stack(options: Any, **_: Any) -> AsyncIterator[None]:
        fake.options = options
        try:
            yield
        finally:
            fake.taken_down = True

    @asynccontextmanager
    async def open_harness(_stack: Any, _clock: Any, *, seed: int, **_: Any) -> AsyncIterator[FakeHarness]:
        fake.seed = seed
        yield fake

    monkeypatch.setattr(demo, "Stack", stack)
    monkeypatch.setattr(demo, "Harness", open_harness)
    return fake


@pytest.fixture
def playing(harness: FakeHarness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Perform:
    """Runs acts given by name."""

    async def run_acts(only: tuple[str, ...] = (), **parts: Any) -> RunResult:
        for module in (acts, demo):
            monkeypatch.setattr(module, "ACTS", parts)
        told: list[ActResult] = []
        outcome = await run(tmp_path, ("lock",), 7, on_ready=lambda _seconds: None, on_act=told.append, only=only)
        assert tuple(told) == outcome.acts
        return outcome

    return run_acts


async def test_run_with_all_acts_ok_is_ok(playing: Perform, harness: FakeHarness) -> None:
    """The books are read once nothing is under way, while the stack still runs."""
    outcome = await playing(one=went_well, two=went_well)
    assert outcome.verdict is Verdict.OK
    assert [act.name for act in outcome.acts] == ["one", "two"]
    assert all(check.ok for check in outcome.checks)
    assert outcome.seed == 7
    assert harness.waited_s == [demo._RECOVERY_BOUND_S]
    assert (harness.options.guards_off, harness.seed) == (("lock",), 7)
    assert harness.taken_down


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ((went_well, went_wrong), Verdict.VIOLATED),
        ((went_well, not_brought_about), Verdict.UNKNOWN),
        ((not_brought_about, went_wrong), Verdict.VIOLATED),
        ((went_well, broke_off), Verdict.UNKNOWN),
        ((went_well, took_too_long), Verdict.UNKNOWN),
    ],
)
async def test_worst_act_decides(playing: Perform, parts: tuple[Any, ...], verdict: Verdict) -> None:
    """An act that proved nothing is not ok; one that went wrong is worse."""
    outcome = await playing(**{str(number): part for number, part in enumerate(parts)})
    assert outcome.verdict is verdict


@pytest.mark.parametrize("part", [went_well, not_brought_about])
async def test_violated_check_decides_over_the_acts(playing: Perform, harness: FakeHarness, part: Any) -> None:
    """The acts look at their own order; the checker looks at all of them."""
    harness.dataset.accounts[0]["balance"] += 1
    outcome = await playing(one=part)
    assert outcome.verdict is Verdict.VIOLATED
    assert [check.name for check in outcome.checks if not check.ok] == ["balances true"]


async def test_act_that_was_not_brought_about_has_a_reason(playing: Perform) -> None:
    outcome = await playing(one=not_brought_about, two=broke_off, three=took_too_long)
    assert [(act.ok, act.detail) for act in outcome.acts] == [
        (None, "could not be brought about: the holder did not stay frozen"),
        (None, "broke off: ZooKeeper does not answer; try again"),
        (None, "broke off: TimeoutError"),
    ]


async def test_only_the_named_acts_are_run_in_order(playing: Perform) -> None:
    outcome = await playing(("two", "one"), one=went_well, two=went_well, three=went_wrong)
    assert [act.name for act in outcome.acts] == ["two", "one"]
    assert outcome.verdict is Verdict.OK


async def test_unexpected_error_stops_the_stack(playing: Perform, harness: FakeHarness) -> None:
    async def fell_over(_harness: Any) -> Part:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await playing(one=fell_over)
    assert harness.taken_down


def test_acts_are_run_in_this_order() -> None:
    assert list(acts.ACTS) == [
        *("double click", "two clerks, one order", "lost reply", "killed mid-payment", "frozen holder", "reversal"),
        "the acquirer did not answer",
    ]
