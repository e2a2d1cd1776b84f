"""Situations on a running stack: which stack they need, and that their faults are taken back whatever ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from services.demo import situations
from services.demo.lanes import Lane
from services.demo.situations import SITUATIONS, Outcome, Situation, bring_about
from services.devstack.state import Instance, InstanceState, StackRefused, StackState
from services.testkit.waiting import NotBroughtAbout
from tests.fakes.clock import ManualClock

PAYMENT = Instance("payment-1", "payment", "", 1, "", InstanceState.SERVING)
ORDER = replace(PAYMENT, name="order-1", service="order")
STACK = StackState(1, True, "", 0, (PAYMENT, ORDER), failpoints=True)
BOTH = (PAYMENT, ORDER, replace(PAYMENT, name="payment-2"))
Part = tuple[bool, str, list[Lane]]


def test_every_situation_says_what_happens() -> None:
    assert list(SITUATIONS) == [
        *("double-click", "two-clerks", "lost-reply", "killed-mid-payment"),
        *("frozen-holder", "late-charge", "silent-acquirer"),
    ]
    assert all(name == each.name and each.says.endswith(".") for name, each in SITUATIONS.items())


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_stack_without_failpoints_is_refused_where_they_are_needed(situation: Situation) -> None:
    """With what to do; two clerks need no failpoint to meet."""
    bare = replace(STACK, failpoints=False, instances=BOTH)
    if situation.name in ("double-click", "two-clerks"):
        situation.check(bare)
        return
    with pytest.raises(StackRefused, match=r"`countinghouse down`, and `countinghouse up --failpoints") as refusal:
        situation.check(bare)
    assert refusal.value.reason == "FAILPOINTS_OFF"
    situation.check(replace(bare, failpoints=True))


def test_stack_with_one_payment_instance_is_refused_where_two_are_needed() -> None:
    """The second clerk has to settle while the first one's process is frozen."""
    frozen = SITUATIONS["frozen-holder"]
    with pytest.raises(StackRefused, match=r"`countinghouse up --failpoints --replicas payment=2`") as refusal:
        frozen.check(STACK)
    assert refusal.value.reason == "TOO_FEW_INSTANCES"
    frozen.check(replace(STACK, instances=BOTH))
    for name in SITUATIONS.keys() - {"frozen-holder"}:
        SITUATIONS[name].check(STACK)


class FakeStack:
    """A running stack, as its description has it."""

    described = STACK

    def __init__(self, _data: Path, _clock: ManualClock) -> None:
        pass

    def describe(self) -> StackState:
        return self.described


class FakeHarness:
    """Notes what is done with it; what could not be disarmed is given."""

    last: FakeHarness
    left: tuple[str, ...] = ()

    def __init__(self, _stack: Any, _clock: Any, *, tell: Any, **_: Any) -> None:
        self.done: list[str] = []
        self.frozen = False
        self.orders = ["order-1"]
        self.tell = tell
        self.failpoints = self
        FakeHarness.last = self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.done.append("closed")

    def thaw_all(self) -> None:
        self.done.append("thawed")
        self.frozen = False

    async def take_back(self) -> list[str]:
        await asyncio.sleep(0)
        self.done.append("disarmed")
        return ["submitted of payment-1"] if self.frozen else list(self.left)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        self.done.append("undisturbed")
        yield
        self.done.append("disturbed")


#: Frozen processes first, for they take no call; and again, for one may freeze before its failpoint is disarmed.
TAKEN_BACK = ["undisturbed", "thawed", "disarmed", "thawed", "disturbed", "closed"]


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(situations, "AttachedStack", FakeStack)
    monkeypatch.setattr(situations, "StackHarness", FakeHarness)
    monkeypatch.setattr("services.devstack.state.running", lambda _data: True)


async def went_well(harness: Any) -> Part:
    harness.tell("li settles")
    return True, "1 charge", []


async def not_brought_about(_harness: Any) -> Part:
    raise NotBroughtAbout("the holder did not stay frozen")


async def with_a_defect(_harness: Any) -> Part:
    raise KeyError("no such row")


async def trigger(act: Any, said: list[str] | None = None) -> Outcome:
    sentences: list[str] = [] if said is None else said

    def undisturbed() -> AbstractContextManager[None]:
        return FakeHarness.last.undisturbed()

    situation = Situation("one", "It happens.", act)
    return await bring_about(situation, Path("data"), ManualClock(), sentences.append, undisturbed)


async def test_outcome_has_the_orders_and_each_step_is_told() -> None:
    said: list[str] = []
    outcome = await trigger(went_well, said)
    assert (outcome.act.ok, outcome.act.detail, outcome.orders, outcome.left) == (True, "1 charge", ("order-1",), ())
    assert said == ["li settles", "nothing is left frozen or armed"]
    assert FakeHarness.last.done == TAKEN_BACK


async def test_situation_that_did_not_come_about_is_unknown_and_taken_back() -> None:
    outcome = await trigger(not_brought_about)
    assert (outcome.act.ok, outcome.act.name) == (None, "one")
    assert FakeHarness.last.done == TAKEN_BACK


async def test_defect_takes_the_faults_back_before_it_is_reported() -> None:
    with pytest.raises(KeyError):
        await trigger(with_a_defect)
    assert FakeHarness.last.done == TAKEN_BACK


async def test_interruption_takes_the_faults_back() -> None:
    begun = asyncio.Event()

    async def goes_on_for_ever(_harness: Any) -> Part:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing ends this wait")

    task = asyncio.create_task(trigger(goes_on_for_ever))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert FakeHarness.last.done == TAKEN_BACK


async def test_process_that_freezes_before_its_failpoint_is_disarmed_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its failpoint has fired, and the second try finds nothing armed."""
    thaw = FakeHarness.thaw_all

    def freezes_after_the_first(self: FakeHarness) -> None:
        first = "thawed" not in self.done
        thaw(self)
        self.frozen = first

    monkeypatch.setattr(FakeHarness, "thaw_all", freezes_after_the_first)
    assert (await trigger(went_well)).left == ()
    assert not FakeHarness.last.frozen
    assert FakeHarness.last.done == ["undisturbed", "thawed", "disarmed", "thawed", "disarmed", "disturbed", "closed"]


async def test_failpoint_that_stays_armed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless its process is gone with the stack."""
    monkeypatch.setattr(FakeHarness, "left", ("posted of payment-1",))
    said: list[str] = []
    assert (await trigger(went_well, said)).left == ("posted of payment-1",)
    assert said[-1] == "still armed, for the instance does not answer: posted of payment-1"
    monkeypatch.setattr("services.devstack.state.running", lambda _data: False)
    assert (await trigger(went_well)).left == ()


async def test_guards_that_are_off_are_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is violated then is no defect."""
    monkeypatch.setattr(FakeStack, "described", replace(STACK, guards_off=("lock", "unique")))
    said: list[str] = []
    await trigger(went_well, said)
    assert said[0] == "this stack runs without the guards lock, unique"


async def test_stack_that_is_unfit_is_refused_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeStack, "described", replace(STACK, failpoints=False))
    said: list[str] = []
    with pytest.raises(StackRefused):
        await trigger(went_well, said)
    assert said == []
