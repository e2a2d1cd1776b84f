"""How an act has its fault strike: a call that is refused before it proves nothing."""

from __future__ import annotations

import pytest

from services.demo import acts
from services.kernel.errors import CountinghouseError, FailedPrecondition, Unavailable
from services.testkit.client import CallResult
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
