"""How an act has its fault strike: a call that is refused before it proves nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from services.demo import acts
from services.kernel.errors import CountinghouseError, FailedPrecondition, Unavailable
from services.testkit.client import CallResult
from services.testkit.failpoints import DROP_REPLY
from services.testkit.waiting import NotBroughtAbout

_REFUSED = Unavailable("ZOOKEEPER_UNAVAILABLE", "there is no session; try again")


class _Caller:
    """Gives these results one after the other; the fault strikes with one of them."""

    def __init__(self, *errors: CountinghouseError | None, strikes_with: int) -> None:
        self.sent = 0
        self._errors = errors
        self._strikes_with = strikes_with

    async def send(self) -> CallResult:
        self.sent += 1
        return CallResult(0, self.sent, error=self._errors[min(self.sent, len(self._errors)) - 1])

    async def struck(self) -> bool:
        return self.sent >= self._strikes_with


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acts, "_STRIKES_WITHIN_S", 0.05)


async def test_call_that_was_refused_is_sent_until_the_fault_strikes() -> None:
    caller = _Caller(_REFUSED, _REFUSED, None, strikes_with=3)

    seen = await acts._call_until(caller.send, caller.struck)

    assert (seen.error, seen.ended_ms) == (None, 3)


async def test_fault_that_strikes_after_the_caller_stopped_waiting_is_of_that_call() -> None:
    caller = _Caller(_REFUSED, strikes_with=1)
    asked = []

    async def struck_at_the_second_look() -> bool:
        asked.append(1)
        return len(asked) > 1

    seen = await acts._call_until(caller.send, struck_at_the_second_look)

    assert (seen.error, caller.sent) == (_REFUSED, 1)


@pytest.mark.parametrize("error", [None, FailedPrecondition("ORDER_CANCELLED", "it was cancelled")])
async def test_final_answer_without_the_fault_proves_nothing(error: CountinghouseError | None) -> None:
    caller = _Caller(error, strikes_with=2)

    with pytest.raises(NotBroughtAbout, match="did not come to the fault"):
        await acts._call_until(caller.send, caller.struck)

    assert caller.sent == 1


async def test_call_that_is_refused_for_ever_proves_nothing() -> None:
    caller = _Caller(_REFUSED, strikes_with=99)

    with pytest.raises(NotBroughtAbout, match="there is no session"):
        await acts._call_until(caller.send, caller.struck)

    assert caller.sent == acts._TRIES


class _Failpoints:
    """Have fired so often; one that is armed fires when a test has it fire."""

    def __init__(self, fired: int) -> None:
        self.count = fired

    async def fired(self, _instance: str, _point: str) -> int:
        return self.count

    async def arm(self, *_: object, **__: object) -> int:
        return 7


async def test_fault_that_struck_an_earlier_order_has_not_struck_this_one() -> None:
    """A process counts all that its failpoints did since it began."""
    failpoints = _Failpoints(fired=3)
    harness: Any = SimpleNamespace(failpoints=failpoints)
    has_struck = await acts._arm(harness, "payment-1", "recorded", DROP_REPLY, "o1")
    assert not await has_struck()
    failpoints.count += 1
    assert await has_struck()


class _Acquirer:
    """An operator whose log of the acquirer has one word more at each look."""

    def __init__(self, *words: tuple[str, str]) -> None:
        self._words = words
        self._looks = 0

    async def ask(self, request: Any) -> Any:
        assert request.key == "p1:1"
        self._looks += 1
        return SimpleNamespace(
            entries=[SimpleNamespace(method=method, word=word) for method, word in self._words[: self._looks]]
        )


_UNDONE = (("Charge", "RECEIVED"), ("ReverseByKey", "RECEIVED"), ("ReverseByKey", "TOMBSTONE"))


async def test_late_charge_is_waited_for_until_the_acquirer_has_decided() -> None:
    """On the charge: what it decided on the reversal came before."""
    harness: Any = SimpleNamespace(operator=_Acquirer(*_UNDONE, ("Charge", "REPEATED")))
    assert await acts._late_decision(harness, "p1:1") == "REPEATED"


async def test_charge_that_came_before_the_reversal_proves_nothing() -> None:
    harness: Any = SimpleNamespace(operator=_Acquirer(("Charge", "RECEIVED"), ("Charge", "CHARGED")))
    with pytest.raises(NotBroughtAbout, match="before the reversal"):
        await acts._late_decision(harness, "p1:1")


class _FrozenHarness:
    """A holder that never freezes: the call is on its way. It answers nothing."""

    def __init__(self) -> None:
        self.waits = asyncio.Event()
        self.thawed: list[str] = []
        self.failpoints = _Failpoints(fired=0)
        self.cashier = self

    async def new_order(self) -> str:
        return "o1"

    def new_id(self, _what: str) -> str:
        return "key"

    async def settle_once(self, *_: object, **__: object) -> CallResult:
        await asyncio.Event().wait()
        raise AssertionError("nothing ends this wait")

    async def wait_frozen(self, _instance: str) -> None:
        self.waits.set()
        await asyncio.Event().wait()

    def thaw(self, instance: str) -> None:
        self.thawed.append(instance)


async def test_interruption_before_the_holder_freezes_does_not_wait_for_its_call() -> None:
    """Which may yet freeze the process: what cleans up has to take that back."""
    harness = _FrozenHarness()
    given: Any = harness
    act = asyncio.create_task(acts.frozen_holder(given))
    await harness.waits.wait()
    act.cancel()
    await asyncio.wait({act}, timeout=10)
    assert act.cancelled()
    assert harness.thawed == ["payment-1"]
