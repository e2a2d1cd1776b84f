"""Failpoints that were armed are taken back, whatever became of the process."""

from __future__ import annotations

from typing import Any

import pytest

from countinghouse.debug.v1 import failpoint_pb2 as pb
from services.kernel.errors import PermissionDenied, Unavailable
from services.testkit.failpoints import DELAY, DROP_REPLY, KILL, FailpointClient
from services.testkit.waiting import NotBroughtAbout

AWAY = Unavailable("SERVICE_UNAVAILABLE", "it is away")


class FakeOperator:
    """Arms failpoints in a table, unless an instance is away."""

    def __init__(self) -> None:
        self.armed: dict[tuple[str, str], int] = {}
        self.asked: list[str] = []
        self.away: set[str] = set()
        self.loses_answers = False

    async def ask_until_ok(self, request: pb.ArmFailpointRequest, *, at: str, **_: object) -> Any:
        self.asked.append(at)
        if at in self.away:
            raise AWAY
        if request.action:
            self.armed[at, request.name] = request.action
        else:
            self.armed.pop((at, request.name), None)
        if self.loses_answers:
            raise AWAY
        return pb.ArmFailpointResponse(pid=7)


@pytest.fixture
def operator() -> FakeOperator:
    return FakeOperator()


def client_of(operator: Any, said: list[str] | None = None) -> FailpointClient:
    sentences: list[str] = [] if said is None else said
    return FailpointClient(operator, sentences.append)


async def test_all_that_were_armed_are_taken_back(operator: FakeOperator) -> None:
    failpoints = client_of(operator)
    await failpoints.arm("payment-1", "posted", KILL, "o1")
    await failpoints.arm("acquirer-1", "accepted", DELAY, "tok", delay_s=2)
    assert len(operator.armed) == 2
    assert await failpoints.take_back() == []
    assert operator.armed == {}
    operator.asked.clear()
    assert await failpoints.take_back() == []
    assert operator.asked == [], "there is nothing left to be taken back"


async def test_one_whose_answer_was_lost_may_be_armed_and_is_taken_back(operator: FakeOperator) -> None:
    operator.loses_answers = True
    failpoints = client_of(operator)
    with pytest.raises(NotBroughtAbout):
        await failpoints.arm("payment-1", "posted", KILL, "o1")
    assert operator.armed
    operator.loses_answers = False
    assert await failpoints.take_back() == []
    assert operator.armed == {}


async def test_one_of_an_instance_that_is_away_is_named_and_the_others_are_taken_back(operator: FakeOperator) -> None:
    failpoints = client_of(operator)
    await failpoints.arm("payment-1", "posted", KILL, "o1")
    await failpoints.arm("payment-2", "recorded", DROP_REPLY, "o1")
    operator.away = {"payment-1"}
    assert await failpoints.take_back() == ["posted of payment-1"]
    assert set(operator.armed) == {("payment-1", "posted")}
    operator.away = set()
    assert await failpoints.take_back() == []
    assert operator.armed == {}


async def test_one_that_was_disarmed_is_not_taken_back_again(operator: FakeOperator) -> None:
    failpoints = client_of(operator)
    await failpoints.arm("payment-1", "posted", KILL, "o1")
    await failpoints.disarm("payment-1", "posted")
    operator.asked.clear()
    assert await failpoints.take_back() == []
    assert operator.asked == []


async def test_arming_is_told_and_disarming_is_not(operator: FakeOperator) -> None:
    said: list[str] = []
    failpoints = client_of(operator, said)
    await failpoints.arm("payment-1", "posted", KILL, "o1")
    await failpoints.arm("payment-1", "recorded", DROP_REPLY)
    await failpoints.disarm("payment-1", "posted")
    assert said == [
        "failpoint posted of payment-1 is armed for o1: it kills the process",
        "failpoint recorded of payment-1 is armed for every call: it drops the reply",
    ]


async def test_refusal_to_arm_is_not_told_as_armed(operator: FakeOperator) -> None:
    class Refusing(FakeOperator):
        async def ask_until_ok(self, request: pb.ArmFailpointRequest, *, at: str, **_: object) -> Any:
            raise PermissionDenied("ROLE_NOT_ALLOWED", "no operator")

    said: list[str] = []
    with pytest.raises(NotBroughtAbout, match="no operator"):
        await client_of(Refusing(), said).arm("payment-1", "posted", KILL)
    assert said == []
