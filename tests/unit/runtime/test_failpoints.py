"""Failpoints fire once, where and when they were told to, and nowhere else."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

from countinghouse.debug.v1 import failpoint_pb2 as pb
from services.kernel.clock import CallDeadline
from services.kernel.errors import InvalidArgument
from services.kernel.principal import Principal, Role
from services.runtime.grpc.context import Call
from services.runtime.grpc.failpoints import NAMES, FailpointServicer, FailpointSet
from tests.fakes.clock import ManualClock

DROP = pb.FAILPOINT_ACTION_DROP_REPLY


def a_call() -> Call:
    return Call("/x/y", Principal("li", Role.CASHIER), CallDeadline.after(1, ManualClock()))


async def dropped(failpoints: FailpointSet, name: str, *subjects: str) -> bool:
    """Whether a call that passes now loses its reply."""
    call = a_call()
    await failpoints.hit(name, call, *subjects)
    return call.reply_dropped


async def test_failpoint_fires_once() -> None:
    """And says how often it was passed and fired."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("posted", DROP)
    assert [await dropped(failpoints, "posted") for _ in range(3)] == [True, False, False]
    assert (failpoints.passed["posted"], failpoints.fired["posted"]) == (3, 1)


async def test_failpoint_fires_at_the_nth_pass() -> None:
    """Counted from when it was armed."""
    failpoints = FailpointSet(enabled=True)
    await dropped(failpoints, "posted")
    failpoints.arm("posted", DROP, hit=3)
    assert [await dropped(failpoints, "posted") for _ in range(4)] == [False, False, True, False]


async def test_passes_of_other_subjects_do_not_count() -> None:
    """Of the order or of the payment; other failpoints neither."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("claimed", DROP, hit=2, subject="o1")
    passes = [("claimed", "o2", "p2"), ("claimed", "o1", "p1"), ("posted", "o1", "p1"), ("claimed", "o3", "o1")]
    assert [await dropped(failpoints, *passing) for passing in passes] == [False, False, False, True]


async def test_arming_again_replaces_and_unspecified_disarms() -> None:
    """The last word counts."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("posted", DROP)
    failpoints.arm("posted", DROP, hit=2)
    assert not await dropped(failpoints, "posted")
    failpoints.arm("posted", pb.FAILPOINT_ACTION_UNSPECIFIED)
    assert not await dropped(failpoints, "posted")


async def test_disabled_failpoints_do_nothing() -> None:
    """Armed or not: nothing fires, nothing is counted."""
    failpoints = FailpointSet(enabled=False)
    failpoints.arm("posted", DROP)
    assert not await dropped(failpoints, "posted")
    assert not failpoints.passed


@pytest.mark.parametrize(
    ("action", "expected"),
    [(pb.FAILPOINT_ACTION_KILL, signal.SIGKILL), (pb.FAILPOINT_ACTION_STOP, signal.SIGSTOP)],
)
async def test_killing_and_stopping_mean_this_process(
    monkeypatch: pytest.MonkeyPatch, action: pb.FailpointAction.ValueType, expected: signal.Signals
) -> None:
    """By the signals nobody can catch."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("posted", action)
    await failpoints.hit("posted", None)
    assert sent == [(os.getpid(), expected)]


async def test_delay_lasts_as_long_as_asked() -> None:
    """And the passing goes on after it."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("posted", pb.FAILPOINT_ACTION_DELAY, delay_ms=30)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    await failpoints.hit("posted", None)
    assert loop.time() - began_s >= 0.029


async def test_drop_reply_without_a_call_does_nothing() -> None:
    """A worker passes unharmed."""
    failpoints = FailpointSet(enabled=True)
    failpoints.arm("posted", DROP)
    await failpoints.hit("posted", None)
    assert failpoints.fired["posted"] == 1


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("nowhere", {}, "FAILPOINT_UNKNOWN"),
        ("posted", {"delay_ms": -1}, "OUT_OF_RANGE"),
        ("posted", {"delay_ms": 600_001}, "OUT_OF_RANGE"),
        ("posted", {"hit": -1}, "OUT_OF_RANGE"),
    ],
)
def test_unknown_failpoint_is_refused(name: str, arguments: dict[str, Any], reason: str) -> None:
    """Is refused with its reason."""
    with pytest.raises(InvalidArgument) as refusal:
        FailpointSet(enabled=True).arm(name, DROP, **arguments)
    assert refusal.value.reason == reason


async def test_failpoints_are_armed_by_the_servicer() -> None:
    """Through the servicer: 0 means the first pass; the list has all eight with their counts."""
    context: Any = None
    failpoints = FailpointSet(enabled=True)
    servicer = FailpointServicer(failpoints)
    request = pb.ArmFailpointRequest(name="posted", action=DROP, hit=0, subject="o1")
    assert (await servicer.ArmFailpoint(request, context)).pid == os.getpid()
    assert await dropped(failpoints, "posted", "o1")
    listed = (await servicer.ListFailpoints(pb.ListFailpointsRequest(), context)).failpoints
    assert [point.name for point in listed] == list(NAMES)
    assert {point.name: (point.passed, point.fired) for point in listed}["posted"] == (1, 1)
